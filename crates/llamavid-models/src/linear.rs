//! Linear layers.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use llamavid_kernels::Projection;

/// A linear layer with its weights: `x` (…, in) gives (…, out).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// (out, in).
    weight: Tensor,
    /// (out).
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Its weights, for an operation that it is a part of.
    pub(crate) fn projection(&self) -> Projection<'_> {
        Projection { weight: &self.weight, bias: self.bias.as_ref() }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        llamavid_kernels::linear(x, &self.weight, self.bias.as_ref())
    }
}

impl From<candle_nn::Linear> for Linear {
    fn from(layer: candle_nn::Linear) -> Self {
        Self::new(layer.weight().clone(), layer.bias().cloned())
    }
}

/// Reads `weight` and `bias`; where they are created, as candle-nn does.
pub(crate) fn linear(input: usize, output: usize, vb: VarBuilder) -> Result<Linear> {
    Ok(candle_nn::linear(input, output, vb)?.into())
}

/// Reads `weight` only.
pub(crate) fn linear_no_bias(input: usize, output: usize, vb: VarBuilder) -> Result<Linear> {
    Ok(candle_nn::linear_no_bias(input, output, vb)?.into())
}
