//! Rotary position embedding.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::instructions::vector::widest;
use crate::operations::rows::{fusible, rows_of_a_task, tensor, values, with_values};

/// Rotary position embedding of `x` (B, heads, S, head width), halves rotated against each other as LLaMA does.
///
/// `cos` and `sin` are (S, head width / 2), constants without a gradient.
pub fn rotary_embedding(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[x, cos, sin]) {
        return crate::cuda::rotate_heads(x, cos, sin);
    }
    if fusible(&[x, cos, sin]) && !cos.track_op() && !sin.track_op() {
        x.contiguous()?.apply_op3(&cos.contiguous()?, &sin.contiguous()?, Rotary)
    } else if x.track_op() {
        candle_nn::rotary_emb::rope_slow(x, cos, sin)
    } else {
        candle_nn::rotary_emb::rope(&x.contiguous()?, cos, sin)
    }
}

struct Rotary;

/// Rotates a row of one head by the angles of its position; back again with `direction` -1.
#[inline(always)]
pub(crate) fn rotate_row(row: &[f32], cos: &[f32], sin: &[f32], direction: f32, result: &mut [f32]) {
    let half = cos.len();
    let (low, high) = row.split_at(half);
    let (low_result, high_result) = result.split_at_mut(half);
    let places = low_result.iter_mut().zip(high_result).zip(low).zip(high).zip(cos).zip(sin);
    for (((((low_result, high_result), low), high), cos), sin) in places {
        let sin = direction * sin;
        *low_result = low * cos - high * sin;
        *high_result = low * sin + high * cos;
    }
}

#[inline(always)]
fn rotate_inline<const FUSED: bool>(
    x: &[f32],
    width: usize,
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    result: &mut [f32],
) {
    let rows = result.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((result, row), angles) in rows.zip(cos.chunks_exact(width / 2).zip(sin.chunks_exact(width / 2))) {
        rotate_row(row, angles.0, angles.1, direction, result);
    }
}
widest!(fn rotate(
    x: &[f32],
    width: usize,
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    result: &mut [f32],
) = rotate_inline);

/// Rotates all heads.
fn rotate_all(x: &[f32], width: usize, cos: &[f32], sin: &[f32], direction: f32) -> Vec<f32> {
    let mut result = vec![0f32; x.len()];
    let head = 2 * cos.len();
    if head > 0 {
        let heads = result.par_chunks_mut(head).zip(x.par_chunks(head));
        heads
            .with_min_len(rows_of_a_task(head))
            .for_each(|(result, x)| rotate(x, width, cos, sin, direction, result));
    }
    result
}

impl CustomOp3 for Rotary {
    fn name(&self) -> &'static str {
        "rotary-embedding"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        let (_batch, _heads, positions, width) = shape.dims4()?;
        let expected = [positions, width / 2];
        if cos_layout.dims() != expected || sin_layout.dims() != expected || !width.is_multiple_of(2) {
            bail!(
                "rotary-embedding of {shape:?} needs angles {expected:?}, not {:?} and {:?}",
                cos_layout.dims(),
                sin_layout.dims()
            );
        }
        let x = values(x, x_layout)?;
        let result = rotate_all(x, width, values(cos, cos_layout)?, values(sin, sin_layout)?, 1.0);
        Ok((CpuStorage::F32(result), shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_batch, _heads, _positions, width) = x.dims4()?;
        let of_x = with_values([gradient, cos, sin], |[gradient, cos, sin]| {
            Ok(rotate_all(gradient, width, cos, sin, -1.0))
        })?;
        Ok((Some(tensor(of_x, x.shape())?), None, None))
    }
}
