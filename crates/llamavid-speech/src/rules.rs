//! Which tokens may follow.
//!
//! Reference: the logit filters in `whisper/decoding.py`. A text is pieces between times: `<0.00> words <2.50><2.50> words <4.10>`.

use crate::SpeechTokenizer;

/// Steps of 0.02 s to the latest first time: 1 s.
const LATEST_FIRST: u32 = 50;

/// Sets the logits of what cannot follow `text`, without its beginning, to minus infinity.
pub(crate) fn restrict(logits: &mut [f32], text: &[u32], tokenizer: &SpeechTokenizer) {
    let (first_time, ids) = (tokenizer.time(0), logits.len() as u32);
    let mut forbid = |ids: &mut dyn Iterator<Item = u32>| {
        for id in ids {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    };
    if text.is_empty() {
        forbid(&mut tokenizer.blank.iter().copied());
    }
    forbid(&mut tokenizer.suppressed.iter().copied());

    // Times come in pairs, except in front of the end.
    let is_time = |place: usize| text.len().checked_sub(place).is_none_or(|index| text[index] >= first_time);
    let behind_time = !text.is_empty() && is_time(1);
    let behind_pair = behind_time && is_time(2);
    match (behind_time, behind_pair) {
        (true, true) => forbid(&mut (first_time..ids)),
        (true, false) => forbid(&mut (0..tokenizer.end)),
        _ => {}
    }
    // They do not fall, and a piece is longer than nothing.
    if let Some(last) = text.iter().rev().find(|id| **id >= first_time) {
        forbid(&mut (first_time..if behind_time && !behind_pair { *last } else { *last + 1 }));
    }
    if text.is_empty() {
        forbid(&mut (0..first_time));
        forbid(&mut (tokenizer.time(LATEST_FIRST) + 1..ids));
    }
    // A time, whichever, that is likelier than each word is taken.
    let (words, times) = logits.split_at_mut((first_time as usize).min(logits.len()));
    let likeliest = words.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if log_sum_exp(times) > f64::from(likeliest) {
        words.fill(f32::NEG_INFINITY);
    }
}

/// The logarithm of the sum of the exponentials; minus infinity of nothing.
pub(crate) fn log_sum_exp(values: &[f32]) -> f64 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let sum: f64 = values.iter().map(|value| f64::from(value - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}
