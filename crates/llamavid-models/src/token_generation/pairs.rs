//! Pairs of a question and a frame, question by question: pair `p * F + f` is question p with frame f.
//!
//! Whatever depends on a frame alone is computed once a frame; only what depends on both has pairs.
//! Letters: P questions, F frames.

use candle_core::{Result, Tensor};

/// Something of each question (P, …) for each frame: (P * F, …).
pub(super) fn repeat_questions(per_question: &Tensor, frames: usize) -> Result<Tensor> {
    let mut shape = per_question.dims().to_vec();
    shape.insert(1, frames);
    per_question.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?.flatten(0, 1)
}

/// Something of each frame (F, …) for each question: (P * F, …).
pub(super) fn repeat_frames(per_frame: &Tensor, questions: usize) -> Result<Tensor> {
    let mut shape = per_frame.dims().to_vec();
    shape.insert(0, questions);
    per_frame.unsqueeze(0)?.broadcast_as(shape)?.contiguous()?.flatten(0, 1)
}

/// Rows of pairs (P * F, R, w) as rows of frames (F, P * R, w), so that all questions attend to the
/// frame's keys at once and the keys need no copies.
pub(super) fn rows_by_frame(pairs: &Tensor, frames: usize) -> Result<Tensor> {
    let (count, rows, width) = pairs.dims3()?;
    let questions = count / frames;
    if questions == 1 {
        return Ok(pairs.clone());
    }
    pairs.reshape((questions, frames, rows, width))?.transpose(0, 1)?.contiguous()?.reshape((
        frames,
        questions * rows,
        width,
    ))
}

/// The inverse of `rows_by_frame`: (F, P * R, w) gives (P * F, R, w).
pub(super) fn rows_by_pair(by_frame: &Tensor, questions: usize) -> Result<Tensor> {
    let (frames, rows, width) = by_frame.dims3()?;
    if questions == 1 {
        return Ok(by_frame.clone());
    }
    let rows = rows / questions;
    by_frame.reshape((frames, questions, rows, width))?.transpose(0, 1)?.contiguous()?.reshape((
        questions * frames,
        rows,
        width,
    ))
}
