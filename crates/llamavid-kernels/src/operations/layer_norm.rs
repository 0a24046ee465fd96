//! Layer normalisation.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::instructions::vector::{sum_of, widest};
use crate::operations::rows::{fusible, rows_of_a_task, sum_parts, tensor, values, width, with_values};

/// Layer normalisation over the last dimension with `weight` and `bias` of that size.
///
/// Half precision is normalised in f32, as the reference does.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[x, weight, bias]) {
        return crate::cuda::norm(x, crate::Norm { weight, bias: Some(bias), eps });
    }
    let op = LayerNorm { eps: eps as f32 };
    if fusible(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    if x.track_op() || weight.track_op() || bias.track_op() || x.dtype() == DType::F64 {
        candle_nn::ops::layer_norm_slow(x, weight, bias, eps as f32)
    } else if x.device().is_cpu() {
        let single = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
        single(x)?.apply_op3_no_bwd(&single(weight)?, &single(bias)?, &op)?.to_dtype(x.dtype())
    } else {
        candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps as f32)
    }
}

/// Sums squares of distances from the mean. candle-nn's form for the CPU, the mean of the squares less the square
/// of the mean, loses the variance of a row far from zero, down to the root of a negative number.
struct LayerNorm {
    eps: f32,
}

/// The mean of a row and the reciprocal of its standard deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum_of(x.len(), |place| x[place]) / x.len() as f32;
    let variance = sum_of(x.len(), |place| (x[place] - mean) * (x[place] - mean)) / x.len() as f32;
    (mean, (variance + eps).sqrt().recip())
}

#[inline(always)]
fn normalise_inline<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    result: &mut [f32],
) {
    let width = weight.len();
    for (result, x) in result.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let (mean, scale) = moments(x, eps);
        for (((result, value), weight), bias) in result.iter_mut().zip(x).zip(weight).zip(bias) {
            *result = (value - mean) * scale * weight + bias;
        }
    }
}
widest!(pub(crate) fn normalise(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, result: &mut [f32]) = normalise_inline);

/// Adds to the gradient of `x` and to those of weight and bias, one after the other in `of_others`.
#[inline(always)]
fn differentiate_inline<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    gradient: &[f32],
    of_x: &mut [f32],
    of_others: &mut [f32],
) {
    let width = weight.len();
    let (of_weight, of_bias) = of_others.split_at_mut(width);
    for ((of_x, x), gradient) in
        of_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gradient.chunks_exact(width))
    {
        let (mean, scale) = moments(x, eps);
        let level = sum_of(width, |place| gradient[place] * weight[place]) / width as f32;
        let along = sum_of(width, |place| gradient[place] * weight[place] * (x[place] - mean)) / width as f32;
        let along = along * scale * scale;
        let places = of_x.iter_mut().zip(of_weight.iter_mut()).zip(of_bias.iter_mut()).zip(x).zip(gradient);
        for (((((of_x, of_weight), of_bias), x), gradient), weight) in places.zip(weight) {
            *of_x += scale * (gradient * weight - level - (x - mean) * along);
            *of_weight += gradient * (x - mean) * scale;
            *of_bias += gradient;
        }
    }
}
widest!(fn differentiate(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    gradient: &[f32],
    of_x: &mut [f32],
    of_others: &mut [f32],
) = differentiate_inline);

/// Writes normalised rows.
pub(crate) fn write_normalised(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, result: &mut [f32]) {
    let task = rows_of_a_task(weight.len()) * weight.len().max(1);
    let tasks = result.par_chunks_mut(task).zip(x.par_chunks(task));
    tasks.for_each(|(result, x)| normalise(x, weight, bias, eps, result));
}

/// Adds the gradient of `x` to `of_x` and gives those of weight and bias, one after the other.
pub(crate) fn differentiated(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    gradient: &[f32],
    of_x: &mut [f32],
) -> Vec<f32> {
    let width = weight.len();
    let task = rows_of_a_task(width) * width.max(1);
    let tasks = of_x.par_chunks_mut(task).zip(x.par_chunks(task)).zip(gradient.par_chunks(task));
    let parts = tasks
        .map(|((of_x, x), gradient)| {
            let mut of_others = vec![0f32; 2 * width];
            differentiate(x, weight, eps, gradient, of_x, &mut of_others);
            of_others
        })
        .collect();
    sum_parts(parts, 2 * width)
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
        let width = width(shape);
        if weight.len() != width || bias.len() != width {
            bail!(
                "layer-norm of {shape:?} needs {width} weights and biases, not {} and {}",
                weight.len(),
                bias.len()
            );
        }
        let x = values(x, x_layout)?;
        let mut result = vec![0f32; x.len()];
        write_normalised(x, weight, bias, self.eps, &mut result);
        Ok((CpuStorage::F32(result), shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = width(x.shape());
        let (of_x, of_others) = with_values([x, weight, gradient], |[x, weight, gradient]| {
            let mut of_x = vec![0f32; x.len()];
            let of_others = differentiated(x, weight, self.eps, gradient, &mut of_x);
            Ok((of_x, of_others))
        })?;
        let part = |of: &Tensor, from: usize| {
            let gradient = || tensor(of_others[from..from + width].to_vec(), of.shape());
            of.track_op().then(gradient).transpose()
        };
        let of_x = x.track_op().then(|| tensor(of_x, x.shape())).transpose()?;
        Ok((of_x, part(weight, 0)?, part(bias, width)?))
    }
}
