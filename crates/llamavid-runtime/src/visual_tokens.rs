//! Context and content tokens of a video for one question.

use std::sync::Arc;

use candle_core::Tensor;

use crate::visual_features::values_of;
use crate::{Device, Error, Reply, Result};

/// Tokens (F * (1 + n), D): those of frame 0, of frame 1, …, each the context token first.
#[derive(Debug, Clone)]
pub struct VisualTokens {
    tensor: Tensor,
    frame_count: usize,
    device: Arc<Device>,
}

impl VisualTokens {
    pub(crate) fn new(tensor: Tensor, frame_count: usize, device: Arc<Device>) -> Result<Self> {
        let (rows, _width) = tensor.dims2()?;
        if frame_count == 0 || !rows.is_multiple_of(frame_count) {
            return Err(Error::argument(format!("{rows} tokens do not divide into {frame_count} frames")));
        }
        Ok(Self { tensor, frame_count, device })
    }

    /// F.
    pub fn frame_count(&self) -> usize {
        self.frame_count
    }

    /// 1 + n.
    pub fn tokens_per_frame(&self) -> usize {
        self.tensor.dims()[0] / self.frame_count
    }

    /// (F * (1 + n), D).
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// The device that holds them.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// A copy of the values, row-major of the shape.
    pub fn values(&self) -> Reply<Vec<f32>> {
        values_of(&self.tensor, &self.device)
    }
}
