//! Gradients of several batches: their sum and their norm.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use rayon::prelude::*;

use crate::optimizer::in_place;

/// Numbers whose squares are summed before the sums are.
const BLOCK: usize = 1 << 14;

/// Adds the gradients of `variables` in `more` to those in `sum`; other gradients in `more` are let go of.
///
/// # Errors
/// A device without memory.
pub fn accumulate(
    sum: &mut Option<GradStore>,
    mut more: GradStore,
    variables: &[(String, Var)],
) -> Result<()> {
    let Some(sum) = sum else {
        *sum = Some(more);
        return Ok(());
    };
    for (_, var) in variables {
        let Some(gradient) = more.remove(var.as_tensor()) else { continue };
        let total = match sum.remove(var.as_tensor()) {
            Some(earlier) => (earlier + gradient)?.detach(),
            None => gradient,
        };
        sum.insert(var.as_tensor(), total);
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
