//! Operations that the model shares, on any candle device, each with a backward pass.
//!
//! candle-nn's fused operations are fast and record no backward pass: the gradient stops without an error.
//! So each operation here takes the fused form only when no gradient can flow through its input.

mod gelu;
mod layer_norm;

use candle_core::{D, DType, Result, Tensor};

pub use gelu::gelu;
pub use layer_norm::layer_norm;

/// Softmax over the last dimension, in the dtype of `x`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        candle_nn::ops::softmax(x, D::Minus1)
    } else {
        candle_nn::ops::softmax_last_dim(&x.contiguous()?)
    }
}

/// Root-mean-square normalisation over the last dimension with `weight` of that size.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.track_op() || weight.track_op() {
        candle_nn::ops::rms_norm_slow(x, weight, eps as f32)
    } else {
        candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)
    }
}

/// Rotary position embedding of `x` (B, heads, S, head width), halves rotated against each other as LLaMA does.
///
/// `cos` and `sin` are (S, head width / 2).
pub fn rotary_embedding(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        candle_nn::rotary_emb::rope_slow(x, cos, sin)
    } else {
        candle_nn::rotary_emb::rope(&x.contiguous()?, cos, sin)
    }
}

/// Attention of `q` (B, heads, Q, head width) over `k` and `v` (B, heads, K, head width).
///
/// `bias` is added to the scaled scores and broadcasts to (B, heads, Q, K). Half-precision scores are
/// normalised in f32, as the reference does. Gives (B, heads, Q, head width).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let scores = (q.contiguous()? * scale)?.matmul(&k.transpose(2, 3)?.contiguous()?)?; // (B, heads, Q, K)
    let scores = scores.to_dtype(DType::F32)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    };
    softmax(&scores)?.to_dtype(v.dtype())?.matmul(&v.contiguous()?)
}
