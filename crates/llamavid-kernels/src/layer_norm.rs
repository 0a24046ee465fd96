//! Layer normalisation.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Layer normalisation over the last dimension with `weight` and `bias` of that size.
///
/// Half precision is normalised in f32, as the reference does.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.track_op() || weight.track_op() || bias.track_op() || x.dtype() == DType::F64 {
        candle_nn::ops::layer_norm_slow(x, weight, bias, eps as f32)
    } else if x.device().is_cpu() {
        let single = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
        let normalised =
            single(x)?.apply_op3_no_bwd(&single(weight)?, &single(bias)?, &LayerNorm { eps: eps as f32 })?;
        normalised.to_dtype(x.dtype())
    } else {
        candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32)
    }
}

/// Sums squares of distances from the mean. candle-nn's form for the CPU, the mean of the squares less the square
/// of the mean, loses the variance of a row far from zero, down to the root of a negative number.
struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    fn row(&self, x: &[f32], weight: &[f32], bias: &[f32], result: &mut [f32]) {
        let mean = sum(x, |value| value) / x.len() as f32;
        let variance = sum(x, |value| (value - mean) * (value - mean)) / x.len() as f32;
        let scale = (variance + self.eps).sqrt().recip();
        for (((result, value), weight), bias) in result.iter_mut().zip(x).zip(weight).zip(bias) {
            *result = (value - mean) * scale * weight + bias;
        }
    }
}

/// A sum in several lanes: quicker than one after the other, and closer to the exact sum.
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest: f32 = blocks.remainder().iter().map(|value| term(*value)).sum();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += term(block[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight = values(weight, weight_layout)?;
        let bias = values(bias, bias_layout)?;
        let shape = x_layout.shape();
        let width = shape.dims().last().copied().unwrap_or(1);
        if weight.len() != width || bias.len() != width {
            bail!(
                "layer-norm of {shape:?} needs {width} weights and biases, not {} and {}",
                weight.len(),
                bias.len()
            );
        }
        let x = values(x, x_layout)?;
        let mut result = vec![0f32; x.len()];
        if width > 0 {
            let rows = result.par_chunks_mut(width).zip(x.par_chunks(width));
            rows.for_each(|(result, x)| self.row(x, weight, bias, result));
        }
        Ok((CpuStorage::F32(result), shape.clone()))
    }
}

/// The values of a contiguous f32 tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a tensor of layout {layout:?} is not contiguous"),
    }
}
