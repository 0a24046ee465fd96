//! Dropout.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::instructions::vector::widest;
use crate::operations::rows::{fusible, rows_of_a_task, tensor, values, width, with_values};

/// Which values of a tensor become 0 while the others are divided by the fraction that stays.
///
/// It depends on the seed and a value's place only, so that the backward pass finds the same values without
/// keeping them. Use another seed for every tensor.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Fraction of the values that become 0, from 0 up to less than 1.
    pub rate: f32,
    /// Decides which values these are.
    pub seed: u64,
}

impl Dropout {
    /// `x` with some of its values set to 0 and the others divided by what stays, in the dtype of `x`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if self.rate <= 0.0 {
            return Ok(x.clone());
        }
        if fusible(&[x]) {
            return x.contiguous()?.apply_op1(Apply(*self));
        }
        let mut factors = vec![1f32; x.elem_count()];
        self.scale(width(x.shape()), &mut factors);
        x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?
    }

    /// Applies it to rows of `width`.
    fn scale(&self, width: usize, values: &mut [f32]) {
        let rows = rows_of_a_task(width);
        let tasks = values.par_chunks_mut(rows * width.max(1)).enumerate();
        tasks.for_each(|(task, values)| keep_rows(*self, task * rows, width, values));
    }
}

/// Mixes the bits of a number so that each depends on all (the end of MurmurHash3).
#[inline(always)]
fn mix(mut bits: u32) -> u32 {
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b);
    bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

/// Applies dropout to a row by its number.
#[inline(always)]
fn keep_row(dropout: Dropout, number: usize, row: &mut [f32]) {
    let number = number as u64;
    let key = mix(dropout.seed as u32 ^ mix((dropout.seed >> 32) as u32 ^ mix(number as u32)))
        ^ mix((number >> 32) as u32);
    let least = (f64::from(dropout.rate) * f64::from(u32::MAX)) as u32;
    let scale = 1.0 / (1.0 - dropout.rate);
    for (place, value) in row.iter_mut().enumerate() {
        let bits = mix((place as u32).wrapping_mul(0x9e37_79b9) ^ key);
        *value = if bits >= least { *value * scale } else { 0.0 };
    }
}

#[inline(always)]
fn keep_rows_inline<const FUSED: bool>(dropout: Dropout, first: usize, width: usize, values: &mut [f32]) {
    for (index, row) in values.chunks_exact_mut(width.max(1)).enumerate() {
        keep_row(dropout, first + index, row);
    }
}
widest!(
    /// Applies dropout to rows of `width`, the first of which has the number `first`.
    pub(crate) fn keep_rows(dropout: Dropout, first: usize, width: usize, values: &mut [f32]) = keep_rows_inline
);

struct Apply(Dropout);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut result = values(x, layout)?.to_vec();
        self.0.scale(width(layout.shape()), &mut result);
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        debug_assert_eq!(gradient.dtype(), DType::F32);
        let mut of_x = with_values([gradient], |[gradient]| Ok(gradient.to_vec()))?;
        self.0.scale(width(x.shape()), &mut of_x);
        tensor(of_x, x.shape()).map(Some)
    }
}
