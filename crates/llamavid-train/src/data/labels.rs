//! Which ids of a sample are learned.
//!
//! Reference: the masks of `preprocess_v1`, `preprocess_imgsp_v1`, `preprocess_plain_guided`, `_mask_targets`. Its rule for
//! rounds counts on LLaMA's tokenizer, where a text has one id more than its pieces and a separator is one id; of byte
//! pairs neither holds, so there the places of ids in the text decide.

use std::ops::Range;

/// The label of an id that is not learned.
pub const IGNORED: i64 = -100;

fn ignore(labels: &mut [i64], start: usize, end: usize) {
    let end = end.min(labels.len());
    if let Some(span) = labels.get_mut(start.min(end)..end) {
        span.fill(IGNORED);
    }
}

/// All ids from `start` on are learned.
pub(super) fn behind(ids: &[i64], start: usize) -> Vec<i64> {
    let mut labels = ids.to_vec();
    ignore(&mut labels, 0, start);
    labels
}

/// What answers are found by in a text of rounds.
pub(super) struct Rounds<'a> {
    /// Stands behind each answer.
    pub(super) separator: &'a str,
    /// Stands between a question and its answer, once in a round.
    pub(super) answer_mark: &'a str,
    pub(super) pad_id: i64,
    pub(super) max_length: usize,
}

impl Rounds<'_> {
    /// Labels of `ids`, the ids of `text`; `length` says how many ids a text by itself has.
    ///
    /// The lengths of the rounds, tokenised alone, must add up to the ids that are not padding. Where they do not, for
    /// instance because a real `<unk>` counts as padding, nothing is learned and both counts are returned. A sample
    /// that reaches the maximum length is not tested.
    pub(super) fn labels(
        &self,
        text: &str,
        ids: &[i64],
        length: impl Fn(&str) -> usize,
    ) -> (Vec<i64>, Option<(usize, usize)>) {
        let mut labels = ids.to_vec();
        let mut position = 1;
        ignore(&mut labels, 0, position);
        for round in text.split(self.separator) {
            let mut parts = round.split(self.answer_mark);
            let (Some(question), Some(_), None) = (parts.next(), parts.next(), parts.next()) else { break };
            // The id of the text's beginning stands for the separator, and the space at the end of the mark
            // belongs to the answer's first piece.
            let question = length(&format!("{question}{}", self.answer_mark)).saturating_sub(2);
            ignore(&mut labels, position, position.saturating_add(question));
            position += length(round);
        }
        ignore(&mut labels, position, usize::MAX);
        let present = ids.iter().filter(|id| **id != self.pad_id).count();
        if position < self.max_length && position != present {
            labels.fill(IGNORED);
            return (labels, Some((position, present)));
        }
        (labels, None)
    }

    /// Labels of `ids`, of which each begins at a byte of `text`: an id is learned if it begins in an answer.
    pub(super) fn labels_at(&self, text: &str, ids: &[i64], starts: &[usize]) -> Vec<i64> {
        let answers = self.answers(text);
        let learned = |start: &usize| answers.iter().any(|answer| answer.contains(start));
        ids.iter()
            .zip(starts)
            .map(|(id, start)| if *id >= 0 && learned(start) { *id } else { IGNORED })
            .collect()
    }

    /// Where answers stand in `text`, each with the space in front of it and the separator behind.
    fn answers(&self, text: &str) -> Vec<Range<usize>> {
        let mut answers = Vec::new();
        let mut round_start = 0;
        for round in text.split(self.separator) {
            let round_end = round_start + round.len() + self.separator.len();
            let mut parts = round.split(self.answer_mark);
            let (Some(question), Some(_), None) = (parts.next(), parts.next(), parts.next()) else { break };
            answers.push(round_start + question.len() + self.answer_mark.trim_end().len()..round_end);
            round_start = round_end;
        }
        answers
    }
}

/// Labels where each message is a span behind a header; questions lose all but their first two ids, which are the
/// sign in front of them.
pub(super) fn between_signs(
    ids: &[i64],
    header: usize,
    spans: impl Iterator<Item = (bool, usize)>,
) -> Vec<i64> {
    let mut labels = behind(ids, header);
    let mut position = header;
    for (is_question, length) in spans {
        if is_question {
            ignore(&mut labels, position + 2, position + length);
        }
        position += length;
    }
    labels
}
