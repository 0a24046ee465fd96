//! AdamW, in the order of operations and the precision of torch's `AdamW` on one tensor.

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use super::in_place;

/// Numbers that a core takes at a time.
const BLOCK: usize = 1 << 14;

/// One step of one weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub rate: f64,
    /// Rate times weight decay.
    pub decay: f64,
    pub gradient_factor: f64,
    /// Steps with this one.
    pub count: u64,
}

impl Step {
    /// Changes `weight`, `mean` and `square` in place; all have the shape of `gradient`.
    pub fn apply(&self, weight: &Var, gradient: &Tensor, mean: &Tensor, square: &Tensor) -> Result<()> {
        if [weight.as_tensor(), gradient, mean, square].into_iter().all(in_place::possible) {
            in_place::look(gradient, |gradient| {
                in_place::change(weight, |weight| {
                    in_place::change(mean, |mean| {
                        in_place::change(square, |square| {
                            self.apply_to_slices(weight, gradient, mean, square);
                            Ok(())
                        })
                    })
                })
            })?
        } else {
            self.apply_to_tensors(weight, gradient, mean, square)
        }
    }

    /// The step's length, and what the root of the mean square is divided by: both undo that means begin at 0.
    fn corrections(&self) -> (f64, f64) {
        let count = self.count.min(i32::MAX as u64) as i32;
        (self.rate / (1. - self.beta1.powi(count)), (1. - self.beta2.powi(count)).sqrt())
    }

    fn apply_to_slices(&self, weight: &mut [f32], gradient: &[f32], mean: &mut [f32], square: &mut [f32]) {
        let (length, root) = self.corrections();
        let (length, root, epsilon) = (length as f32, root as f32, self.epsilon as f32);
        let (beta1, new1) = (self.beta1 as f32, (1. - self.beta1) as f32);
        let (beta2, new2) = (self.beta2 as f32, (1. - self.beta2) as f32);
        let (keep, factor) = ((1. - self.decay) as f32, self.gradient_factor as f32);
        let blocks = weight.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK));
        let blocks = blocks.zip(mean.par_chunks_mut(BLOCK)).zip(square.par_chunks_mut(BLOCK));
        blocks.for_each(|(((weight, gradient), mean), square)| {
            for (((weight, gradient), mean), square) in
                weight.iter_mut().zip(gradient).zip(mean.iter_mut()).zip(square.iter_mut())
            {
                let gradient = gradient * factor;
                *mean = *mean * beta1 + gradient * new1;
                *square = *square * beta2 + gradient * gradient * new2;
                let divisor = square.sqrt() / root + epsilon;
                *weight = *weight * keep - length * (*mean / divisor);
            }
        });
    }

    /// The same on a device whose numbers cannot be reached.
    fn apply_to_tensors(
        &self,
        weight: &Var,
        gradient: &Tensor,
        mean: &Tensor,
        square: &Tensor,
    ) -> Result<()> {
        let (length, root) = self.corrections();
        let gradient = (gradient * self.gradient_factor)?;
        let new_mean = ((mean * self.beta1)? + (&gradient * (1. - self.beta1))?)?;
        let new_square = ((square * self.beta2)? + (gradient.sqr()? * (1. - self.beta2))?)?;
        let divisor = ((new_square.sqrt()? / root)? + self.epsilon)?;
        let moved =
            ((weight.as_detached_tensor() * (1. - self.decay))? - ((&new_mean / divisor)? * length)?)?;
        mean.slice_set(&new_mean, 0, 0)?;
        square.slice_set(&new_square, 0, 0)?;
        weight.set(&moved)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn both_ways_are_one() {
        let make = || {
            let tensor = |values: Vec<f32>| Tensor::from_vec(values, (2, 50), &Device::Cpu).unwrap();
            let weight = tensor((0..100).map(|i| (i as f32 * 0.37).sin()).collect());
            let gradient = tensor((0..100).map(|i| (i as f32 * 1.7).cos() * 3.).collect());
            let zeros = || tensor(vec![0.; 100]);
            (Var::from_tensor(&weight).unwrap(), gradient, zeros(), zeros())
        };
        let step = |count| Step {
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            rate: 0.01,
            decay: 0.001,
            gradient_factor: 0.5,
            count,
        };
        let ((left, gradient, mean, square), (right, _, mean2, square2)) = (make(), make());
        for count in 1..6 {
            step(count).apply(&left, &gradient, &mean, &square).unwrap();
            step(count).apply_to_tensors(&right, &gradient, &mean2, &square2).unwrap();
        }
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (left, right) in [(left.as_tensor(), right.as_tensor()), (&mean, &mean2), (&square, &square2)] {
            for (left, right) in values(left).iter().zip(values(right)) {
                assert!((left - right).abs() < 1e-6, "{left} {right}");
            }
        }
    }
}
