//! The exact GELU.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::instructions::vector::{exp, multiply_add, sigmoid, widest};
use crate::operations::rows::{fusible, tensor, values, with_values};

/// Values that one thread takes at a time.
const BLOCK: usize = 4096;

/// 1 / √(2π), the density of the normal distribution at 0.
const DENSITY: f32 = 0.398_942_3;

/// GELU with the error function, not its tanh approximation, in the dtype of `x`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[x]) {
        return crate::cuda::gelu(x);
    }
    if fusible(&[x]) {
        x.contiguous()?.apply_op1(Gelu)
    } else if x.device().is_cpu() && !x.track_op() && x.dtype() != DType::F64 {
        x.to_dtype(DType::F32)?.contiguous()?.apply_op1_no_bwd(&Gelu)?.to_dtype(x.dtype())
    } else {
        x.gelu_erf()
    }
}

/// CLIP's approximation, `x / (1 + e^(-1.702 x))`, in the dtype of `x`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[x]) {
        return crate::cuda::quick_gelu(x);
    }
    x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
}

/// candle takes one core and one value at a time, which shows beside the matrix products.
struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(activated(values(x, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let of_x = with_values([x, gradient], |[x, gradient]| Ok(differentiated(x, gradient)))?;
        tensor(of_x, x.shape()).map(Some)
    }
}

/// The GELU of each value.
pub(crate) fn activated(x: &[f32]) -> Vec<f32> {
    let mut result = vec![0f32; x.len()];
    result.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(result, x)| fill(x, result));
    result
}

/// Puts in the place of each value its GELU, as near as [`activate`] has it.
pub(crate) fn activate_all(values: &mut [f32]) {
    values.par_chunks_mut(BLOCK).for_each(activate_block);
}
widest!(fn activate_block(values: &mut [f32]) = activate);

/// The gradient of each value.
pub(crate) fn differentiated(x: &[f32], gradient: &[f32]) -> Vec<f32> {
    let mut of_x = vec![0f32; x.len()];
    let tasks = of_x.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(gradient.par_chunks(BLOCK));
    tasks.for_each(|((of_x, x), gradient)| differentiate(x, gradient, of_x));
    of_x
}

#[inline(always)]
fn fill_inline<const FUSED: bool>(x: &[f32], result: &mut [f32]) {
    for (result, x) in result.iter_mut().zip(x) {
        *result = (f64::from(*x) * normal_cdf(*x)) as f32;
    }
}
widest!(fn fill(x: &[f32], result: &mut [f32]) = fill_inline);

#[inline(always)]
fn differentiate_inline<const FUSED: bool>(x: &[f32], gradient: &[f32], of_x: &mut [f32]) {
    for ((of_x, x), gradient) in of_x.iter_mut().zip(x).zip(gradient) {
        let density = DENSITY * exp::<FUSED>(-0.5 * x * x);
        *of_x = gradient * (normal_cdf(*x) as f32 + x * density);
    }
}
widest!(fn differentiate(x: &[f32], gradient: &[f32], of_x: &mut [f32]) = differentiate_inline);

/// Writes the result and the gradient.
#[inline(always)]
fn both_inline<const FUSED: bool>(x: &[f32], gradient: &[f32], result: &mut [f32], of_x: &mut [f32]) {
    for (((result, of_x), x), gradient) in result.iter_mut().zip(of_x.iter_mut()).zip(x).zip(gradient) {
        let density = DENSITY * exp::<FUSED>(-0.5 * x * x);
        let cdf = normal_cdf(*x);
        *result = (f64::from(*x) * cdf) as f32;
        *of_x = gradient * (cdf as f32 + x * density);
    }
}
widest!(fn both(x: &[f32], gradient: &[f32], result: &mut [f32], of_x: &mut [f32]) = both_inline);

/// The GELU again, and the gradient of each value.
pub(crate) fn activated_and_differentiated(x: &[f32], gradient: &[f32]) -> [Vec<f32>; 2] {
    let mut results = [(); 2].map(|()| vec![0f32; x.len()]);
    let [result, of_x] = &mut results;
    let outputs = result.par_chunks_mut(BLOCK).zip(of_x.par_chunks_mut(BLOCK));
    let inputs = x.par_chunks(BLOCK).zip(gradient.par_chunks(BLOCK));
    outputs.zip(inputs).for_each(|((result, of_x), (x, gradient))| both(x, gradient, result, of_x));
    results
}

/// The normal distribution function of `x`.
///
/// In f64, because for negative `x` it is what is left of 1 less the error function.
#[inline(always)]
fn normal_cdf(x: f32) -> f64 {
    0.5 * (1.0 + error_function(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))
}

/// The error function of `x` up to 4 in size is `x` P(x²) / Q(x²), with the factors of 1 first.
pub(crate) const P: [f64; 7] = [
    1.12837916815,
    0.166902832875,
    0.050938406266,
    0.00295599118768,
    0.000305757806129,
    -2.88769835856e-07,
    -4.48404022104e-08,
];
pub(crate) const Q: [f64; 7] = [
    1.0,
    0.481247156552,
    0.105558440403,
    0.0134913505604,
    0.00103985823812,
    4.09996661443e-05,
    -6.20097900601e-07,
];

/// The GELU of each value to 2e-7 of its size, or of 1 where that is less: all in f32, a third of the time of [`fill`].
#[inline(always)]
pub(crate) fn activate<const FUSED: bool>(values: &mut [f32]) {
    for value in values {
        let x = *value * std::f32::consts::FRAC_1_SQRT_2;
        let square = x * x;
        let (mut above, mut below) = (P[6] as f32, Q[6] as f32);
        for power in (0..6).rev() {
            above = multiply_add::<FUSED>(above, square, P[power] as f32);
            below = multiply_add::<FUSED>(below, square, Q[power] as f32);
        }
        let inside = x * above / below;
        let error = if x.abs() < 4.0 { inside } else { x.signum() };
        let half = 0.5 * *value;
        *value = multiply_add::<FUSED>(half, error, half);
    }
}

/// CLIP's approximation of each value.
#[inline(always)]
pub(crate) fn activate_quick<const FUSED: bool>(values: &mut [f32]) {
    for value in values {
        *value *= sigmoid::<FUSED>(1.702 * *value);
    }
}

/// The error function to 2e-8, without a branch or a table, so that it runs in vectors.
///
/// The polynomials are printed by `tools/reference/error_function.py`.
#[inline(always)]
fn error_function(x: f64) -> f64 {
    let square = x * x;
    let polynomial =
        |factors: &[f64; 7]| factors[..6].iter().rev().fold(factors[6], |sum, factor| sum * square + factor);
    let inside = x * polynomial(&P) / polynomial(&Q);
    // Beyond 4 it differs from 1 by less than f32 can tell.
    if x.abs() < 4.0 { inside } else { x.signum() }
}
