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

/// candle's formula on every core: candle itself takes one for an operation on single values, and the error
/// function is dear enough to show beside the matrix products.
struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let mut result = vec![0f32; x.len()];
        result.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(result, x)| {
            for (result, x) in result.iter_mut().zip(x) {
                *result =
                    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2));
            }
        });
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }
}
