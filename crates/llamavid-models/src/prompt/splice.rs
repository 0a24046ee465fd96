//! Splice: visual tokens take the places of the placeholders.
//!
//! Reference: `prepare_inputs_labels_for_multimodal`. Letters: B rows, S sequence length after splicing,
//! N visual tokens of one placeholder, D language width.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::placeholders::IMAGE_TOKEN;
use crate::{Error, Result};

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpliceKind {
    /// All tokens made with one prompt: images and short videos.
    PerPlaceholder,
    /// One token: long videos, whose subtitles stand between the frames.
    PerToken,
}

/// A row for the language model.
#[derive(Debug, Clone)]
pub struct Spliced {
    /// (S, D)
    pub embeds: Tensor,
    /// Rows of `embeds` that are visual tokens, in order; neighbours are one range.
    pub visual_positions: Vec<Range<usize>>,
}

impl Spliced {
    /// Number of visual tokens in the row.
    pub fn visual_count(&self) -> usize {
        self.visual_positions.iter().map(ExactSizeIterator::len).sum()
    }
}

/// Replaces the placeholders of `ids` by `visual`, whose tensors are (N, D).
///
/// Per placeholder, the j-th tensor takes the place of the j-th placeholder, and there must be as many of
/// both. Per token, the tensors' rows go one by one into the placeholders, and there must be as many of
/// these. `embed` gives rows (ids, D) of the text's ids.
pub fn splice(
    ids: &[i64],
    visual: &[Tensor],
    kind: SpliceKind,
    embed: impl FnOnce(&[u32]) -> Result<Tensor>,
) -> Result<Spliced> {
    let text = text_ids(ids)?;
    let rows = visual.iter().map(|tokens| Ok(tokens.dims2()?.0)).collect::<Result<Vec<usize>>>()?;
    expect_places(ids.len() - text.len(), &rows, kind)?;
    if ids.is_empty() {
        return Err(Error::Prompt("the prompt is empty".into()));
    }

    let text = if text.is_empty() { None } else { Some(embed(&text)?) };
    let visual = match (visual, &text) {
        ([], _) => None,
        (visual, Some(text)) => Some(Tensor::cat(visual, 0)?.to_dtype(text.dtype())?),
        (visual, None) => Some(Tensor::cat(visual, 0)?),
    };
    let mut counts = rows.into_iter();
    let (mut text_row, mut visual_row, mut position) = (0, 0, 0);
    let mut segments: Vec<Tensor> = Vec::new();
    let mut visual_positions: Vec<Range<usize>> = Vec::new();
    for run in ids.chunk_by(|left, right| (*left == IMAGE_TOKEN) == (*right == IMAGE_TOKEN)) {
        if run.first() != Some(&IMAGE_TOKEN) {
            if let Some(text) = &text {
                segments.push(text.narrow(0, text_row, run.len())?);
            }
            text_row += run.len();
            position += run.len();
            continue;
        }
        let count = match kind {
            SpliceKind::PerPlaceholder => counts.by_ref().take(run.len()).sum(),
            SpliceKind::PerToken => run.len(),
        };
        if let Some(visual) = visual.as_ref().filter(|_| count > 0) {
            segments.push(visual.narrow(0, visual_row, count)?);
            visual_positions.push(position..position + count);
        }
        visual_row += count;
        position += count;
    }
    Ok(Spliced { embeds: Tensor::cat(&segments, 0)?, visual_positions })
}

/// The ids of a prompt without its placeholders.
fn text_ids(ids: &[i64]) -> Result<Vec<u32>> {
    let text = ids.iter().enumerate().filter(|(_, id)| **id != IMAGE_TOKEN);
    text.map(|(position, id)| {
        u32::try_from(*id).map_err(|_| {
            Error::Prompt(format!("id {id} at position {position} is neither a token nor a placeholder"))
        })
    })
    .collect()
}

/// Whether visual tokens, so many `rows` of each question, go with so many placeholders.
fn expect_places(placeholders: usize, rows: &[usize], kind: SpliceKind) -> Result<()> {
    if let Some(empty) = rows.iter().position(|rows| *rows == 0) {
        return Err(Error::Prompt(format!("question {empty} has no visual tokens")));
    }
    let total: usize = rows.iter().sum();
    match kind {
        SpliceKind::PerPlaceholder if placeholders != rows.len() => Err(Error::Prompt(format!(
            "{placeholders} places for visual tokens and {} questions with visual tokens",
            rows.len()
        ))),
        SpliceKind::PerToken if placeholders != total => {
            Err(Error::Prompt(format!("{placeholders} places for {total} visual tokens")))
        }
        SpliceKind::PerPlaceholder | SpliceKind::PerToken => Ok(()),
    }
}

/// One row of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchRow<'a> {
    /// Ids and placeholders, without padding.
    pub ids: &'a [i64],
    /// Visual tokens, see [`splice`].
    pub visual: &'a [Tensor],
    /// What a placeholder stands for.
    pub kind: SpliceKind,
}

/// Rows of one length.
#[derive(Debug, Clone)]
pub struct SplicedBatch {
    /// (B, S, D)
    pub embeds: Tensor,
    /// (B, S) u8, 1 where a position is attended to.
    pub attention_mask: Tensor,
    /// For each row, see [`Spliced`].
    pub visual_positions: Vec<Vec<Range<usize>>>,
}

/// Splices rows of a batch as the reference does: ids are filled with `pad_id` to the longest, spliced,
/// and filled with zero vectors to the longest again.
///
/// The mask of a row is 1 for as many positions as splicing added, then 1 for every id that is not
/// `pad_id`. That hides a real `<unk>` of the text, and in a row with visual tokens it is not the position
/// of that id that is hidden; the released models were trained so.
pub fn splice_batch(
    rows: &[BatchRow<'_>],
    pad_id: u32,
    mut embed: impl FnMut(&[u32]) -> Result<Tensor>,
) -> Result<SplicedBatch> {
    if rows.is_empty() {
        return Err(Error::Prompt("the batch has no rows".into()));
    }
    let ids_length = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let pad = i64::from(pad_id);
    let mut spliced = Vec::with_capacity(rows.len());
    let mut id_masks = Vec::with_capacity(rows.len());
    for row in rows {
        let mut ids = row.ids.to_vec();
        ids.resize(ids_length, pad);
        id_masks.push(ids.iter().map(|id| u8::from(*id != pad)).collect::<Vec<u8>>());
        spliced.push(splice(&ids, row.visual, row.kind, &mut embed)?);
    }
    let lengths = spliced.iter().map(|row| Ok(row.embeds.dims2()?.0)).collect::<Result<Vec<usize>>>()?;
    let length = lengths.iter().copied().max().unwrap_or(0);
    let mut embeds = Vec::with_capacity(rows.len());
    let mut masks = Vec::with_capacity(rows.len());
    for ((row, id_mask), row_length) in spliced.iter().zip(id_masks).zip(&lengths) {
        embeds.push(row.embeds.pad_with_zeros(0, 0, length - row_length)?);
        // A placeholder holds one token or more, so no row has become shorter.
        let mut mask = vec![1u8; row_length.saturating_sub(ids_length)];
        mask.extend(id_mask);
        mask.resize(length, 0);
        masks.push(Tensor::new(mask, row.embeds.device())?);
    }
    Ok(SplicedBatch {
        embeds: Tensor::stack(&embeds, 0)?,
        attention_mask: Tensor::stack(&masks, 0)?.to_dtype(DType::U8)?,
        visual_positions: spliced.into_iter().map(|row| row.visual_positions).collect(),
    })
}
