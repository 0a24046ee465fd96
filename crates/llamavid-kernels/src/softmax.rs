//! Softmax.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::rows::{fusible, rows_of_a_task, tensor, values, width, with_values};
use crate::vector::{exp, largest, sum_of, widest};

/// Softmax over the last dimension, in the dtype of `x`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if fusible(&[x]) {
        x.contiguous()?.apply_op1(Softmax)
    } else if x.track_op() {
        candle_nn::ops::softmax(x, D::Minus1)
    } else {
        candle_nn::ops::softmax_last_dim(&x.contiguous()?)
    }
}

struct Softmax;

/// Adds a bias to scores.
#[inline(always)]
pub(crate) fn add_bias<const FUSED: bool>(bias: &[f32], scores: &mut [f32]) {
    for (score, bias) in scores.iter_mut().zip(bias) {
        // A sum below the smallest f32 would be infinite, and a row of those no number.
        let sum = *score + bias;
        *score = if sum < f32::MIN { f32::MIN } else { sum };
    }
}

/// Turns a row into its softmax.
#[inline(always)]
pub(crate) fn softmax_row<const FUSED: bool>(row: &mut [f32]) {
    let largest = largest(row);
    for value in row.iter_mut() {
        *value = exp::<FUSED>(*value - largest);
    }
    let scale = sum_of(row.len(), |place| row[place]).recip();
    for value in row.iter_mut() {
        *value *= scale;
    }
}

#[inline(always)]
fn forward_inline<const FUSED: bool>(width: usize, x: &[f32], result: &mut [f32]) {
    result.copy_from_slice(x);
    normalise_inline::<FUSED>(width, width, result);
}
widest!(fn forward(width: usize, x: &[f32], result: &mut [f32]) = forward_inline);

#[inline(always)]
fn normalise_inline<const FUSED: bool>(width: usize, stride: usize, rows: &mut [f32]) {
    // A loop: inside an iterator's own function the row would be compiled for any processor.
    for row in rows.chunks_exact_mut(stride) {
        softmax_row::<FUSED>(&mut row[..width]);
    }
}
widest!(
    /// Turns rows, each `stride` numbers after the one before, into their softmax.
    pub(crate) fn normalise(width: usize, stride: usize, rows: &mut [f32]) = normalise_inline
);

#[inline(always)]
fn backward_inline<const FUSED: bool>(width: usize, y: &[f32], gradient: &[f32], of_x: &mut [f32]) {
    let rows = of_x.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(gradient.chunks_exact(width));
    for ((of_x, y), gradient) in rows {
        let along = sum_of(width, |place| y[place] * gradient[place]);
        for ((of_x, y), gradient) in of_x.iter_mut().zip(y).zip(gradient) {
            *of_x = y * (gradient - along);
        }
    }
}
widest!(fn backward(width: usize, y: &[f32], gradient: &[f32], of_x: &mut [f32]) = backward_inline);

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let width = width(layout.shape());
        let mut result = vec![0f32; x.len()];
        let task = rows_of_a_task(width) * width.max(1);
        let tasks = result.par_chunks_mut(task).zip(x.par_chunks(task));
        tasks.for_each(|(result, x)| forward(width, x, result));
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = width(x.shape());
        let of_x = with_values([result, gradient], |[result, gradient]| {
            let mut of_x = vec![0f32; result.len()];
            let task = rows_of_a_task(width) * width.max(1);
            let tasks = of_x.par_chunks_mut(task).zip(result.par_chunks(task)).zip(gradient.par_chunks(task));
            tasks.for_each(|((of_x, result), gradient)| backward(width, result, gradient, of_x));
            Ok(of_x)
        })?;
        tensor(of_x, x.shape()).map(Some)
    }
}
