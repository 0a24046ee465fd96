//! Gradients of several batches: their sum and their norm.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use rayon::prelude::*;

use crate::optimizer::in_place;

/// Numbers whose squares are summed before the sums are.
const BLOCK: usize = 1 << 14;

/// Adds the gradients of `variables` in `more` to those in `sum`, and lets go of all others: candle also keeps those
/// of leaves that do not train.
///
/// # Errors
/// A device without memory.
pub fn accumulate(sum: &mut GradStore, mut more: GradStore, variables: &[(String, Var)]) -> Result<()> {
    for (_, var) in variables {
        let Some(gradient) = more.remove(var.as_tensor()) else { continue };
        let total = match sum.remove(var.as_tensor()) {
            Some(earlier) => (earlier + gradient)?.detach(),
            None => gradient.detach(),
        };
        sum.insert(var.as_tensor(), total);
    }
    Ok(())
}

/// Gives every variable without a gradient one of zeros.
///
/// A batch of text alone does not reach what makes visual tokens. In the reference it does, with gradients of zero, and
/// they count: means of gradients fade, weights move on by what they remember.
///
/// # Errors
/// A device without memory.
pub fn fill_with_zeros(gradients: &mut GradStore, variables: &[(String, Var)]) -> Result<()> {
    for (_, var) in variables {
        if gradients.get(var.as_tensor()).is_none() {
            gradients.insert(var.as_tensor(), var.as_tensor().zeros_like()?.detach());
        }
    }
    Ok(())
}

/// The norm of a gradient. Summed in f64, in an order that does not depend on the number of cores.
///
/// # Errors
/// A device without memory.
pub fn norm(gradient: &Tensor) -> Result<f64> {
    squares(gradient).map(f64::sqrt)
}

/// The norm of the gradients of `variables` together. A weight without a gradient counts nothing.
///
/// # Errors
/// A device without memory.
pub fn global_norm<'a>(
    gradients: &GradStore,
    variables: impl IntoIterator<Item = &'a (String, Var)>,
) -> Result<f64> {
    let mut sum = 0.;
    for (_, var) in variables {
        if let Some(gradient) = gradients.get(var.as_tensor()) {
            sum += squares(gradient)?;
        }
    }
    Ok(sum.sqrt())
}

/// The factor that brings gradients of this norm down to `largest`, as torch's `clip_grad_norm_` computes it.
pub fn clip_factor(norm: f64, largest: f64) -> f64 {
    (largest / (norm + 1e-6)).min(1.)
}

fn squares(gradient: &Tensor) -> Result<f64> {
    if gradient.device().is_cpu() {
        let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
        return in_place::look(&gradient, |values| {
            let block = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            let sums: Vec<f64> = values.par_chunks(BLOCK).map(block).collect();
            sums.iter().sum()
        });
    }
    gradient.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()
}
