//! Muon: the momentum of a matrix, brought close to an orthogonal one, is the direction of the step.

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use super::in_place;

const BLOCK: usize = 1 << 14;
const NEWTON_SCHULZ_STEPS: usize = 5;
/// The published polynomial: steep at zero, so that five steps bring all singular values near 1.
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
/// Keeps a gradient of zeros from a division by zero.
const SMALLEST_NORM: f64 = 1e-7;

/// One step of one matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub momentum: f64,
    pub nesterov: bool,
    pub rate: f64,
    /// Rate times weight decay.
    pub decay: f64,
    pub gradient_factor: f64,
}

impl Step {
    /// Changes `weight` (R, C) and `momentum` (R, C) in place.
    pub fn apply(&self, weight: &Var, gradient: &Tensor, momentum: &Tensor) -> Result<()> {
        let direction = orthogonal(&self.accumulate(gradient, momentum)?)?;
        let (rows, columns) = weight.dims2()?;
        // A tall matrix has more rows than directions: its step grows so that each output moves as far.
        let length = self.rate * (rows as f64 / columns as f64).max(1.).sqrt();
        let keep = 1. - self.decay;
        if in_place::possible(weight) && in_place::possible(&direction) {
            let (keep, length) = (keep as f32, length as f32);
            in_place::look(&direction, |direction| {
                in_place::change(weight, |weight| {
                    let blocks = weight.par_chunks_mut(BLOCK).zip(direction.par_chunks(BLOCK));
                    blocks.for_each(|(weight, direction)| {
                        for (weight, direction) in weight.iter_mut().zip(direction) {
                            *weight = *weight * keep - length * direction;
                        }
                    });
                    Ok(())
                })
            })?
        } else {
            weight.set(&((weight.as_detached_tensor() * keep)? - (direction * length)?)?)
        }
    }

    /// Adds the gradient to the momentum and gives what the step follows.
    fn accumulate(&self, gradient: &Tensor, momentum: &Tensor) -> Result<Tensor> {
        let gradient = match self.gradient_factor {
            1. => gradient.clone(),
            factor => (gradient * factor)?,
        };
        let grown = ((momentum * self.momentum)? + &gradient)?;
        momentum.slice_set(&grown, 0, 0)?;
        if self.nesterov { gradient + (grown * self.momentum)? } else { Ok(grown) }
    }
}

/// A matrix with the same singular vectors and singular values near 1.
fn orthogonal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    // The products are as large as the shorter side squared.
    let tall = rows > columns;
    let matrix = if tall { matrix.t()?.contiguous()? } else { matrix.clone() };
    let norm = matrix.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
    let mut x = (matrix / (f64::from(norm) + SMALLEST_NORM))?;
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..NEWTON_SCHULZ_STEPS {
        let gram = x.matmul(&x.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    if tall { x.t()?.contiguous() } else { Ok(x) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;
    use candle_nn::Init;

    use super::*;
    use crate::creation::create;

    #[test]
    fn singular_values_come_near_one() {
        for (rows, columns) in [(6, 10), (10, 6), (8, 8)] {
            let (shape, init) = ((rows, columns).into(), Init::Randn { mean: 0., stdev: 1. });
            let made = orthogonal(&create(5, "matrix", &shape, init, &Device::Cpu).unwrap()).unwrap();
            assert_eq!(made.dims(), [rows, columns]);
            let gram = if rows <= columns {
                made.matmul(&made.t().unwrap()).unwrap()
            } else {
                made.t().unwrap().matmul(&made).unwrap()
            };
            for (i, row) in gram.to_vec2::<f32>().unwrap().iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let expected = f32::from(i == j);
                    assert!((value - expected).abs() < 0.5, "{rows}x{columns} {i},{j}: {value}");
                }
            }
        }
    }
}
