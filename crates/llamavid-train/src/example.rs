//! What the model learns from: a sample and what it looks at.

use candle_core::Tensor;
use llamavid_models::token_generation::FeatureKind;

use crate::data::Sample;

/// A sample with its pictures.
#[derive(Debug, Clone)]
pub struct Example {
    /// Ids, labels and questions.
    pub sample: Sample,
    /// What is looked at.
    pub visual: Visual,
}

/// What a sample looks at.
#[derive(Debug, Clone)]
pub enum Visual {
    /// Nothing: text alone.
    None,
    /// Pixels (F, 3, S, S) for the visual encoder.
    Pixels(Tensor),
    /// Features (F, R, V) that were computed before, with or without their class row.
    Features(Tensor, FeatureKind),
}

impl Visual {
    /// Pictures, F.
    pub fn frames(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Pixels(tensor) | Self::Features(tensor, _) => tensor.dims().first().copied().unwrap_or(0),
        }
    }
}
