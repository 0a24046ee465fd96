//! The exact GELU.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::layer_norm::values;

/// Values that one thread takes at a time.
const BLOCK: usize = 4096;

/// GELU with the error function, not its tanh approximation, in the dtype of `x`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && !x.track_op() && x.dtype() != DType::F64 {
        let single = x.to_dtype(DType::F32)?.contiguous()?;
        single.apply_op1_no_bwd(&Gelu)?.to_dtype(x.dtype())
    } else {
        x.gelu_erf()
    }
}

/// candle takes one core and one value at a time, which shows beside the matrix products.
struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let mut result = vec![0f32; x.len()];
        result.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(result, x)| fill(x, result));
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }
}

/// Fills `result` with the widest vectors that this processor has.
fn fill(x: &[f32], result: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(x: &[f32], result: &mut [f32]) {
            fill_inline(x, result);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { wide(x, result) };
        }
    }
    fill_inline(x, result);
}

#[inline(always)]
fn fill_inline(x: &[f32], result: &mut [f32]) {
    for (result, x) in result.iter_mut().zip(x) {
        let x = f64::from(*x);
        *result = (0.5 * x * (1.0 + error_function(x * std::f64::consts::FRAC_1_SQRT_2))) as f32;
    }
}

/// The error function to 2e-8, without a branch or a table, so that it runs in vectors.
///
/// In f64, because for negative `x` the GELU is what is left of 1 less the error function. The polynomials are
/// printed by `tools/reference/error_function.py`.
#[inline(always)]
fn error_function(x: f64) -> f64 {
    const P: [f64; 7] = [
        1.12837916815,
        0.166902832875,
        0.050938406266,
        0.00295599118768,
        0.000305757806129,
        -2.88769835856e-07,
        -4.48404022104e-08,
    ];
    const Q: [f64; 7] = [
        1.0,
        0.481247156552,
        0.105558440403,
        0.0134913505604,
        0.00103985823812,
        4.09996661443e-05,
        -6.20097900601e-07,
    ];
    let square = x * x;
    let polynomial =
        |factors: &[f64; 7]| factors[..6].iter().rev().fold(factors[6], |sum, factor| sum * square + factor);
    let inside = x * polynomial(&P) / polynomial(&Q);
    // Beyond 4 it differs from 1 by less than f32 can tell.
    if x.abs() < 4.0 { inside } else { x.signum() }
}
