//! From the scores of rows to shares, and from gradients of shares to those of scores.

use crate::softmax::{add_bias, softmax_row};
use crate::vector::{sum_of, widest};

widest!(pub(super) fn normalise_row(row: &mut [f32]) = softmax_row);

#[inline(always)]
fn add_and_normalise_inline<const FUSED: bool>(bias: &[f32], row: &mut [f32]) {
    add_bias::<FUSED>(bias, row);
    softmax_row::<FUSED>(row);
}
widest!(pub(super) fn add_and_normalise(bias: &[f32], row: &mut [f32]) = add_and_normalise_inline);

/// Turns gradients of shares into gradients of scores.
#[inline(always)]
fn differentiate_inline<const FUSED: bool>(width: usize, shares: &[f32], gradients: &mut [f32]) {
    for (shares, gradients) in shares.chunks_exact(width.max(1)).zip(gradients.chunks_exact_mut(width.max(1)))
    {
        let along = sum_of(width, |place| shares[place] * gradients[place]);
        for (gradient, share) in gradients.iter_mut().zip(shares) {
            *gradient = share * (*gradient - along);
        }
    }
}
widest!(pub(super) fn differentiate(width: usize, shares: &[f32], gradients: &mut [f32]) = differentiate_inline);
