//! Attention: scores, softmax and weighted sum, in one operation where there is one for the inputs.
//!
//! Letters: B batch, H query heads, Q query rows, K key rows, R rows of both, d head width.

pub(crate) mod cached;
pub(crate) mod folded;
mod fused;
mod head_rows;

use candle_core::{DType, Result, Tensor, bail};

use crate::operations::dropout::Dropout;
use crate::operations::rows::accumulation_dtype;
use crate::operations::softmax::softmax;

use fused::Packed;
pub(crate) use fused::{Attention, Sequences, fused};

/// Who sees whom.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Every row sees every key.
    All,
    /// What is added to the scaled scores; broadcasts to (B, H, Q, K). f32 for the fused form.
    Bias(&'a Tensor),
    /// A row sees the keys up to its own place; the last row is at the last key's place. Keys are hidden where
    /// `padding` (B, K) is 0. A row that sees nothing gets the mean of what is before it.
    Causal {
        /// (B, K) of any number type.
        padding: Option<&'a Tensor>,
    },
}

/// How rows are split into heads, and what happens to the scores.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Query heads H.
    pub heads: usize,
    /// Heads of keys and values; they divide the query heads.
    pub key_heads: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Who sees whom.
    pub mask: Mask<'a>,
    /// Cosines and sines (rows, d / 2) by which queries and keys are rotated; constants.
    pub angles: Option<(&'a Tensor, &'a Tensor)>,
    /// Dropout of the normalised scores.
    pub dropout: Option<Dropout>,
}

impl Heads<'_> {
    /// As many heads of keys as of queries, scaled by 1 / √d, everybody sees everything.
    pub fn new(heads: usize, head_width: usize) -> Self {
        Self {
            heads,
            key_heads: heads,
            scale: (head_width as f64).powf(-0.5),
            mask: Mask::All,
            angles: None,
            dropout: None,
        }
    }
}

/// Attention of `q` (B, H, Q, d) over `k` and `v` (B, H, K, d).
///
/// `bias` is added to the scaled scores and broadcasts to (B, H, Q, K). Half-precision scores are
/// normalised in f32, as the reference does. Gives (B, H, Q, d).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_batch, heads, _rows, width) = q.dims4()?;
    let mask = bias.map_or(Mask::All, Mask::Bias);
    let options = Heads { scale, mask, ..Heads::new(heads, width) };
    #[cfg(feature = "cuda")]
    if crate::cuda::takes_heads(&[q, k, v], width, &options) {
        let (batch, _heads, rows, width) = q.dims4()?;
        let attended = crate::cuda::attention(q, k, v, &options, None)?;
        return attended.reshape((batch, rows, heads, width))?.transpose(1, 2)?.contiguous();
    }
    match fused(&[q, k, v], &options)? {
        Some(op) => {
            last_contiguous(q)?.apply_op3(&last_contiguous(k)?, &last_contiguous(v)?, op.of_split_heads())
        }
        None => decomposed(q, k, v, &options),
    }
}

/// Attention of rows `q` (B, Q, H · d) over `k` and `v` (B, K, key heads · d): (B, Q, H · d).
///
/// The heads stay where they are: nothing is transposed or copied.
pub fn multi_head_attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Heads) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(attended) = crate::cuda::multi_head_attention(q, k, v, options)? {
        return Ok(attended);
    }
    if let Some(op) = fused(&[q, k, v], options)? {
        return last_contiguous(q)?.apply_op3(&last_contiguous(k)?, &last_contiguous(v)?, op);
    }
    let (batch, count, width) = q.dims3()?;
    let split = |x: &Tensor, heads: usize| {
        let (batch, rows, width) = x.dims3()?;
        x.reshape((batch, rows, heads, width / heads.max(1)))?.transpose(1, 2)
    };
    let (mut q, mut k, v) =
        (split(q, options.heads)?, split(k, options.key_heads)?, split(v, options.key_heads)?);
    if let Some((cos, sin)) = options.angles {
        q = crate::rotary_embedding(&q, cos, sin)?;
        k = crate::rotary_embedding(&k, cos, sin)?;
    }
    let (k, v) = (repeat_heads(&k, options.heads)?, repeat_heads(&v, options.heads)?);
    decomposed(&q, &k, &v, options)?.transpose(1, 2)?.reshape((batch, count, width))
}

/// Self-attention of rows that hold query, key and value of all heads one after the other, (B, R, 3 · H · d):
/// (B, R, H · d).
pub fn packed_attention(packed: &Tensor, options: &Heads) -> Result<Tensor> {
    let (_batch, _rows, width) = packed.dims3()?;
    if !width.is_multiple_of(3) || options.key_heads != options.heads {
        bail!("rows of {width} do not hold queries, keys and values of {} heads", options.heads);
    }
    #[cfg(feature = "cuda")]
    if let Some(attended) = crate::cuda::packed_attention(packed, options)? {
        return Ok(attended);
    }
    if let Some(op) = fused(&[packed], options)? {
        return packed.contiguous()?.apply_op1(Packed(op));
    }
    let part = |index: usize| packed.narrow(2, index * width / 3, width / 3)?.contiguous();
    multi_head_attention(&part(0)?, &part(1)?, &part(2)?, options)
}

/// Each key head as often as it has query heads: (B, key heads, K, d) gives (B, H, K, d).
fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, key_heads, rows, width) = x.dims4()?;
    if key_heads == heads {
        return Ok(x.clone());
    }
    let repeated = x.unsqueeze(2)?.broadcast_as((batch, key_heads, heads / key_heads, rows, width))?;
    repeated.contiguous()?.reshape((batch, heads, rows, width))
}

/// The same by candle's own operations, on any device and in any dtype.
fn decomposed(q: &Tensor, k: &Tensor, v: &Tensor, options: &Heads) -> Result<Tensor> {
    let scores = (q.contiguous()? * options.scale)?.matmul(&k.transpose(2, 3)?.contiguous()?)?; // (B, H, Q, K)
    let scores = scores.to_dtype(accumulation_dtype(&scores))?;
    let scores = match options.mask {
        Mask::All => scores,
        Mask::Bias(bias) => scores.broadcast_add(bias)?,
        Mask::Causal { padding } => {
            scores.broadcast_add(&causal_bias(&scores, padding)?.to_dtype(scores.dtype())?)?
        }
    };
    let mut weights = softmax(&scores)?;
    if let Some(dropout) = options.dropout {
        weights = dropout.apply(&weights)?;
    }
    weights.to_dtype(v.dtype())?.matmul(&v.contiguous()?)
}

/// 0 where a row may look, the smallest f32 elsewhere: (1 or B, 1, Q, K).
fn causal_bias(scores: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
    let (_batch, _heads, rows, keys) = scores.dims4()?;
    let device = scores.device();
    let places = Tensor::arange(0, keys as u32, device)?.reshape((1, keys))?;
    let first = keys.saturating_sub(rows) as u32;
    let own = Tensor::arange(first, first + rows as u32, device)?.reshape((rows, 1))?;
    let mut seen = places.broadcast_le(&own)?.reshape((1, 1, rows, keys))?;
    if let Some(padding) = padding {
        seen = seen.broadcast_mul(&not_padding(padding)?)?;
    }
    hiding(&seen)
}

/// Whether keys may be seen at all, of `padding` (B, K): u8 (B, 1, 1, K).
pub(crate) fn not_padding(padding: &Tensor) -> Result<Tensor> {
    let (batch, keys) = padding.dims2()?;
    padding.to_dtype(DType::U8)?.ne(0u8)?.reshape((batch, 1, 1, keys))
}

/// What `padding` (B, K) adds to the scores of each key: the smallest f32 where it is 0.
pub(crate) fn hidden(padding: &Tensor) -> Result<Vec<f32>> {
    let seen = padding.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(seen.iter().map(|seen| if *seen == 0.0 { f32::MIN } else { 0.0 }).collect())
}

/// 0 where a key is `seen` (u8), the smallest f32 elsewhere.
pub(crate) fn hiding(seen: &Tensor) -> Result<Tensor> {
    let zero = Tensor::zeros(seen.shape(), DType::F32, seen.device())?;
    let hidden = Tensor::full(f32::MIN, seen.shape(), seen.device())?;
    seen.where_cond(&zero, &hidden)
}

/// `x`, copied if its last dimension is not in one piece.
fn last_contiguous(x: &Tensor) -> Result<Tensor> {
    match x.stride().last() {
        Some(1) | None => Ok(x.clone()),
        Some(_) => x.contiguous(),
    }
}
