//! Softmax.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::instructions::vector::{exp, largest, sum_of, widest};
use crate::operations::rows::{fusible, rows_of_a_task, tensor, values, width, with_values};

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
        // A sum below the smallest f32 would be infinite, and a row of those NaN.
        let sum = *score + bias;
        *score = if sum < f32::MIN { f32::MIN } else { sum };
    }
}

/// Turns a row into its softmax.
#[inline(always)]
fn softmax_row<const FUSED: bool>(row: &mut [f32]) {
    let largest = largest(row);
    for value in row.iter_mut() {
        *value = exp::<FUSED>(*value - largest);
    }
    let scale = sum_of(row.len(), |place| row[place]).recip();
    for value in row.iter_mut() {
        *value *= scale;
    }
}
widest!(pub(crate) fn normalise_row(row: &mut [f32]) = softmax_row);

#[inline(always)]
fn add_and_normalise_inline<const FUSED: bool>(bias: &[f32], row: &mut [f32]) {
    add_bias::<FUSED>(bias, row);
    softmax_row::<FUSED>(row);
}
widest!(
    /// Turns scores of a row, to which a bias is added, into their softmax.
    pub(crate) fn add_and_normalise(bias: &[f32], row: &mut [f32]) = add_and_normalise_inline
);

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
fn differentiate_inline<const FUSED: bool>(width: usize, y: &[f32], gradients: &mut [f32]) {
    for (y, gradients) in y.chunks_exact(width.max(1)).zip(gradients.chunks_exact_mut(width.max(1))) {
        let along = sum_of(width, |place| y[place] * gradients[place]);
        for (gradient, y) in gradients.iter_mut().zip(y) {
            *gradient = y * (*gradient - along);
        }
    }
}
widest!(
    /// Turns gradients of rows of `width`, the softmax `y` of others, into gradients of those.
    pub(crate) fn differentiate(width: usize, y: &[f32], gradients: &mut [f32]) = differentiate_inline
);

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut result = values(x, layout)?.to_vec();
        let width = width(layout.shape());
        let task = rows_of_a_task(width) * width.max(1);
        result.par_chunks_mut(task).for_each(|rows| normalise(width, width, rows));
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = width(x.shape());
        let of_x = with_values([result, gradient], |[result, gradient]| {
            let mut of_x = gradient.to_vec();
            let task = rows_of_a_task(width) * width.max(1);
            let tasks = of_x.par_chunks_mut(task).zip(result.par_chunks(task));
            tasks.for_each(|(of_x, result)| differentiate(width, result, of_x));
            Ok(of_x)
        })?;
        tensor(of_x, x.shape()).map(Some)
    }
}
