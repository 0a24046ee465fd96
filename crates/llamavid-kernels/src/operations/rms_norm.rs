//! Root-mean-square normalisation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::instructions::vector::{sum_of, widest};
use crate::operations::rows::{fusible, rows_of_a_task, sum_parts, tensor, values, width, with_values};

/// Root-mean-square normalisation over the last dimension with `weight` of that size.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[x, weight]) {
        return crate::cuda::norm(x, crate::Norm { weight, bias: None, eps });
    }
    if fusible(&[x, weight]) {
        x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })
    } else if x.track_op() || weight.track_op() {
        candle_nn::ops::rms_norm_slow(x, weight, eps as f32)
    } else {
        candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)
    }
}

struct RmsNorm {
    eps: f32,
}

#[inline(always)]
fn scale_of<const FUSED: bool>(x: &[f32], eps: f32) -> f32 {
    (sum_of(x.len(), |place| x[place] * x[place]) / x.len() as f32 + eps).sqrt().recip()
}

#[inline(always)]
fn normalise_inline<const FUSED: bool>(x: &[f32], weight: &[f32], eps: f32, result: &mut [f32]) {
    let width = weight.len();
    for (result, x) in result.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let scale = scale_of::<FUSED>(x, eps);
        for ((result, value), weight) in result.iter_mut().zip(x).zip(weight) {
            *result = value * scale * weight;
        }
    }
}
widest!(fn normalise(x: &[f32], weight: &[f32], eps: f32, result: &mut [f32]) = normalise_inline);

/// Adds to the gradients of `x` and of the weight.
#[inline(always)]
fn differentiate_inline<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    gradient: &[f32],
    of_x: &mut [f32],
    of_weight: &mut [f32],
) {
    let width = weight.len();
    for ((of_x, x), gradient) in
        of_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gradient.chunks_exact(width))
    {
        let scale = scale_of::<FUSED>(x, eps);
        let along = sum_of(width, |place| x[place] * gradient[place] * weight[place]) / width as f32;
        let along = along * scale * scale;
        let places = of_x.iter_mut().zip(of_weight.iter_mut()).zip(x).zip(gradient).zip(weight);
        for ((((of_x, of_weight), x), gradient), weight) in places {
            *of_x += scale * (gradient * weight - x * along);
            *of_weight += gradient * x * scale;
        }
    }
}
widest!(fn differentiate(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    gradient: &[f32],
    of_x: &mut [f32],
    of_weight: &mut [f32],
) = differentiate_inline);

/// Writes normalised rows.
pub(crate) fn write_normalised(x: &[f32], weight: &[f32], eps: f32, result: &mut [f32]) {
    let task = rows_of_a_task(weight.len()) * weight.len().max(1);
    let tasks = result.par_chunks_mut(task).zip(x.par_chunks(task));
    tasks.for_each(|(result, x)| normalise(x, weight, eps, result));
}

/// Adds the gradient of `x` to `of_x` and gives that of the weight.
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
            let mut of_weight = vec![0f32; width];
            differentiate(x, weight, eps, gradient, of_x, &mut of_weight);
            of_weight
        })
        .collect();
    sum_parts(parts, width)
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(x, x_layout)?, values(weight, weight_layout)?);
        let shape = x_layout.shape();
        let width = width(shape);
        if weight.len() != width {
            bail!("rms-norm of {shape:?} needs {width} weights, not {}", weight.len());
        }
        let mut result = vec![0f32; x.len()];
        write_normalised(x, weight, self.eps, &mut result);
        Ok((CpuStorage::F32(result), shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight) = with_values([x, weight, gradient], |[x, weight, gradient]| {
            let mut of_x = vec![0f32; x.len()];
            let of_weight = differentiated(x, weight, self.eps, gradient, &mut of_x);
            Ok((of_x, of_weight))
        })?;
        let of_x = x.track_op().then(|| tensor(of_x, x.shape())).transpose()?;
        let of_weight = weight.track_op().then(|| tensor(of_weight, weight.shape())).transpose()?;
        Ok((of_x, of_weight))
    }
}
