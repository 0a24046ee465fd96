//! Layer normalisation with its weights.

use crate::weight_source::WeightSource;
use candle_core::{Result, Tensor};
use llamavid_kernels::Norm;

/// Layer normalisation over the last dimension, with a backward pass.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn new(width: usize, eps: f64, vb: WeightSource) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")?, eps })
    }

    /// Its weights, for an operation that it is a part of.
    pub fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: Some(&self.bias), eps: self.eps }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        llamavid_kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
