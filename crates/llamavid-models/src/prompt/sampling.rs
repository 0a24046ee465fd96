//! Which frames of a video are shown to the model.

use crate::{Error, Result};

/// Indices of the chosen frames: every n-th, n the video's rate over the wanted one, rounded with ties to
/// even. A wanted rate above the video's takes every frame, where the reference's step of 0 fails.
pub fn frame_indices(avg_fps: f64, frames: usize, target_fps: f64) -> Result<Vec<usize>> {
    for (name, fps) in [("the video's", avg_fps), ("the wanted", target_fps)] {
        if !(fps.is_finite() && fps > 0.0) {
            return Err(Error::Argument(format!("{name} frame rate is {fps}, it must be above 0")));
        }
    }
    // A quotient above what an integer holds becomes the largest integer: the first frame alone.
    let step = (avg_fps / target_fps).round_ties_even().max(1.0) as usize;
    Ok((0..frames).step_by(step).collect())
}

/// Seconds at which the frames of `indices` are shown.
pub fn frame_times(indices: &[usize], avg_fps: f64) -> Vec<f64> {
    indices.iter().map(|index| *index as f64 / avg_fps).collect()
}
