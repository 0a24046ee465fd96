//! Causal self-attention with grouped heads, over cached and new positions.
//!
//! Letters: B batch, S new positions, T all positions, H query heads, K key heads, G = H / K.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{D, DType, Device, Tensor};
use llamavid_kernels::{
    Heads, Mask, NormPlace, added_projection, attention_block, multi_head_attention, normed_projections,
    rotary_embedding, softmax,
};

use super::adapted_linear::AdaptedLinear;
use super::config::{AttentionBias, LanguageModelConfig};
use super::kv_cache::CachePlace;
use super::layer::RmsNorm;
use super::share::Share;
use crate::weight_source::WeightSource;
use crate::{Error, Result};

/// Rows of queries scored at once.
pub const QUERY_BLOCK: usize = 256;
/// Scores (B · H · rows · T) held at once: 256 MB in f32.
pub const SCORES_AT_ONCE: usize = 1 << 26;

/// Self-attention of one decoder layer.
#[derive(Debug, Clone)]
pub(super) struct SelfAttention {
    pub(super) q_proj: AdaptedLinear,
    pub(super) k_proj: AdaptedLinear,
    pub(super) v_proj: AdaptedLinear,
    pub(super) o_proj: AdaptedLinear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl SelfAttention {
    pub(super) fn new(config: &LanguageModelConfig, vb: WeightSource) -> Result<Self> {
        let width = config.hidden_size;
        let biased = config.attention_bias != AttentionBias::None;
        let output_biased = config.attention_bias == AttentionBias::All;
        let (query_width, key_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok(Self {
            q_proj: AdaptedLinear::new(width, query_width, biased, vb.pp("q_proj"))?,
            k_proj: AdaptedLinear::new(width, key_width, biased, vb.pp("k_proj"))?,
            v_proj: AdaptedLinear::new(width, key_width, biased, vb.pp("v_proj"))?,
            o_proj: AdaptedLinear::new(query_width, width, output_biased, vb.pp("o_proj"))?,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        })
    }

    /// A rank's heads of it.
    pub(super) fn share(&self, share: &Share) -> Result<Self> {
        let (heads, kv_heads) = (share.of(self.heads, 1), share.of_few(self.kv_heads));
        let numbers = |heads: &Range<usize>| heads.start * self.head_dim..heads.end * self.head_dim;
        share.expect_blocks(&numbers(&heads), self.o_proj.block_format(), "numbers of heads")?;
        let (width, device) = (self.q_proj.dims()?.1, &share.device);
        Ok(Self {
            q_proj: self.q_proj.part(numbers(&heads), 0..width, device)?,
            k_proj: self.k_proj.part(numbers(&kv_heads), 0..width, device)?,
            v_proj: self.v_proj.part(numbers(&kv_heads), 0..width, device)?,
            o_proj: self.o_proj.part(0..width, numbers(&heads), device)?,
            heads: heads.len(),
            kv_heads: kv_heads.len(),
            head_dim: self.head_dim,
        })
    }

    /// Norm, self-attention of whole sequences and residual in one operation: `x` (B, S, D) gives (B, S, D).
    pub(super) fn forward_whole(
        &self,
        x: &Tensor,
        norm: &RmsNorm,
        angles: (&Tensor, &Tensor),
        padding: Option<&Tensor>,
    ) -> Result<Tensor> {
        let options = self.options(angles, padding);
        let layers = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        if let [Some(q), Some(k), Some(v), Some(output)] = layers.map(|layer| layer.projection()) {
            return Ok(attention_block(x, (norm.norm(), NormPlace::Before), &[q, k, v], output, &options)?);
        }
        self.attend_whole(&norm.forward(x)?, &options, Some(x))
    }

    fn options<'a>(&self, angles: (&'a Tensor, &'a Tensor), padding: Option<&'a Tensor>) -> Heads<'a> {
        Heads {
            key_heads: self.kv_heads,
            mask: Mask::Causal { padding },
            angles: Some(angles),
            ..Heads::new(self.heads, self.head_dim)
        }
    }

    /// Whole sequences `x` (B, S, D), normalised, give (B, S, D).
    fn attend_whole(&self, x: &Tensor, options: &Heads, residual: Option<&Tensor>) -> Result<Tensor> {
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|layer| layer.forward(x));
        self.output(&multi_head_attention(&q?, &k?, &v?, options)?, residual)
    }

    /// Norm and attention of `x` (B, S, D), with the residual where this is all of a layer: (B, S, D). `cache` is the place in the
    /// cache, if there is one.
    pub(super) fn forward(
        &self,
        (x, norm): (&Tensor, &RmsNorm),
        angles: (&Tensor, &Tensor),
        plan: &AttentionPlan,
        cache: Option<CachePlace>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if let (Some(padding), None) = (plan.whole_padding(), &cache) {
            return self.attend_whole(&norm.forward(x)?, &self.options(angles, padding), residual);
        }
        let [queries, keys, values] = self.project(x, norm)?;
        let (queries, keys, values) = match cache {
            Some(mut cache) => {
                let (queries, total) = cache.write([&queries, &keys, &values], angles)?;
                if let Some(attended) = cache.attend(&queries, total, plan.padding.as_ref())? {
                    return self.output(&attended, residual);
                }
                let (keys, values) = cache.read(total, &keys)?; // (B, K, T, head)
                (queries, keys, values)
            }
            None => {
                let [queries, keys] = [&queries, &keys].map(|x| rotary_embedding(x, angles.0, angles.1));
                (queries?, keys?.contiguous()?, values.contiguous()?)
            }
        };
        let attended = plan
            .blocks
            .iter()
            .map(|block| self.attend(&queries, &keys, &values, block, plan.bias(block)?.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        self.output(&joined(&attended)?, residual)
    }

    /// One next position of each of N sequences, which follows those in the sequence's cache: `x` (1, N, D), a row a
    /// sequence, gives (1, N, D), as [`SelfAttention::forward`] does. `angles` (N, head / 2) are those of each one's position.
    pub(super) fn forward_each(
        &self,
        (x, norm): (&Tensor, &RmsNorm),
        (cosines, sines): (&Tensor, &Tensor),
        caches: Vec<CachePlace>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [queries, keys, values] = self.project(x, norm)?;
        let attended = caches
            .into_iter()
            .enumerate()
            .map(|(row, mut cache)| {
                let [queries, keys, values] = [&queries, &keys, &values].map(|rows| rows.narrow(2, row, 1));
                let keys = keys?;
                let angles = (&cosines.narrow(0, row, 1)?, &sines.narrow(0, row, 1)?);
                let (queries, total) = cache.write([&queries?, &keys, &values?], angles)?;
                if let Some(attended) = cache.attend(&queries, total, None)? {
                    return Ok(attended);
                }
                let block = QueryBlock { start: 0, rows: 1, visible: total };
                let (keys, values) = cache.read(total, &keys)?; // (1, K, T, head)
                joined(&[self.attend(&queries, &keys, &values, &block, None)?])
            })
            .collect::<Result<Vec<_>>>()?;
        self.output(&Tensor::cat(&attended, 1)?, residual)
    }

    /// Queries (B, H, S, head), keys and values (B, K, S, head) of the norm of `x` (B, S, D), not turned to their positions yet.
    fn project(&self, x: &Tensor, norm: &RmsNorm) -> Result<[Tensor; 3]> {
        let (batch, count, _width) = x.dims3()?;
        let split = |projected: Tensor, heads: usize| {
            projected.reshape((batch, count, heads, self.head_dim))?.transpose(1, 2)
        };
        let layers = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [queries, keys, values] = match layers.map(|layer| layer.projection()) {
            [Some(q), Some(k), Some(v)] => normed_projections(x, norm.norm(), [q, k, v])?,
            _ => {
                let rows = norm.forward(x)?;
                let [q, k, v] = layers.map(|layer| layer.forward(&rows));
                [q?, k?, v?]
            }
        };
        Ok([split(queries, self.heads)?, split(keys, self.kv_heads)?, split(values, self.kv_heads)?])
    }

    /// The last projection, plus the residual where there is one.
    fn output(&self, attended: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match (residual, self.o_proj.projection()) {
            (Some(x), Some(projection)) => Ok(added_projection(x, projection, attended)?),
            (Some(x), None) => Ok((x + self.o_proj.forward(attended)?)?),
            (None, _) => Ok(self.o_proj.forward(attended)?),
        }
    }

    /// The rows of one block over the positions they can see: (B, H, rows, head).
    fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        block: &QueryBlock,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (batch, _heads, _count, width) = queries.dims4()?;
        let group = self.heads / self.kv_heads;
        // The G query heads of a key head become rows of one product: keys are never repeated, and cached
        // ones are read in place through their strides.
        let queries = (queries.narrow(2, block.start, block.rows)? * (1.0 / (width as f64).sqrt()))?;
        let queries = queries.contiguous()?.reshape((batch, self.kv_heads, group * block.rows, width))?;
        let keys = keys.narrow(2, 0, block.visible)?;
        let values = values.narrow(2, 0, block.visible)?;
        let scores = queries.matmul(&keys.transpose(2, 3)?)?; // (B, K, G rows, T)
        let scores = scores.to_dtype(DType::F32)?.reshape((batch, self.heads, block.rows, block.visible))?;
        let scores = match bias {
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        let weights = softmax(&scores)?.to_dtype(values.dtype())?;
        let weights = weights.reshape((batch, self.kv_heads, group * block.rows, block.visible))?;
        Ok(weights.matmul(&values)?.reshape((batch, self.heads, block.rows, width))?)
    }
}

/// Rows that attended, (B, H, rows, head) each, in their order: (B, S, H · head).
fn joined(attended: &[Tensor]) -> Result<Tensor> {
    let attended = match attended {
        [whole] => whole.clone(),
        blocks => Tensor::cat(blocks, 2)?,
    }; // (B, H, S, head)
    let (batch, heads, count, width) = attended.dims4()?;
    Ok(attended.transpose(1, 2)?.reshape((batch, count, heads * width))?)
}

/// Who sees whom in one pass, for every layer.
#[derive(Debug, Clone)]
pub(super) struct AttentionPlan {
    blocks: Vec<QueryBlock>,
    /// (B, T) u8, 0 for padding.
    padding: Option<Tensor>,
    device: Device,
    /// The bias of a pass of one block, shared by the layers. Those of many blocks together would be as
    /// large as the scores that the blocks avoid, so each layer makes them again.
    /// Made by the first layer that needs it: operations that read the cache in place do not.
    shared_bias: OnceLock<Option<Tensor>>,
    /// Whole sequences in one operation, which needs neither blocks nor a bias.
    fused: bool,
}

/// `rows` queries from `start` of the new positions; they see the first `visible` of all positions at most.
#[derive(Debug, Clone)]
struct QueryBlock {
    start: usize,
    rows: usize,
    visible: usize,
}

impl AttentionPlan {
    /// Whether whole sequences go through [`SelfAttention::forward_whole`], and then with which padding.
    pub(super) fn whole_padding(&self) -> Option<Option<&Tensor>> {
        self.fused.then_some(self.padding.as_ref())
    }

    /// The same for layers on a device.
    pub(super) fn on(&self, device: &Device) -> Result<Self> {
        let padding = self.padding.as_ref().map(|padding| padding.to_device(device)).transpose()?;
        let shared_bias = match device.same_device(&self.device) {
            true => self.shared_bias.clone(),
            false => OnceLock::new(),
        };
        Ok(Self { padding, shared_bias, device: device.clone(), ..self.clone() })
    }

    /// In blocks of rows, so that the scores of a long sequence never exist as a whole.
    ///
    /// `padding` (B, T) u8 is 0 where a position is padding.
    pub(super) fn in_blocks(
        config: &LanguageModelConfig,
        batch: usize,
        past: usize,
        count: usize,
        padding: Option<&Tensor>,
        device: &Device,
    ) -> Result<Self> {
        let a_row = batch * config.heads * (past + count);
        let rows = (SCORES_AT_ONCE / a_row.max(1)).clamp(1, QUERY_BLOCK);
        Self::with_rows(rows, batch, past, count, padding, device)
    }

    /// Whole sequences, differentiable. In one operation where there is a fused one; elsewhere as one block: what
    /// the backward pass keeps anyway, without the cost of putting blocks together.
    pub(super) fn whole(
        batch: usize,
        count: usize,
        padding: Option<&Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if !device.is_cpu() || dtype != DType::F32 {
            return Self::with_rows(count, batch, 0, count, padding, device);
        }
        expect_padding(padding, batch, count)?;
        Ok(Self {
            blocks: Vec::new(),
            padding: padding.cloned(),
            device: device.clone(),
            shared_bias: OnceLock::new(),
            fused: true,
        })
    }

    fn with_rows(
        rows: usize,
        batch: usize,
        past: usize,
        count: usize,
        padding: Option<&Tensor>,
        device: &Device,
    ) -> Result<Self> {
        expect_padding(padding, batch, past + count)?;
        let blocks: Vec<_> = (0..count)
            .step_by(rows.max(1))
            .map(|start| {
                let rows = rows.min(count - start);
                QueryBlock { start, rows, visible: past + start + rows }
            })
            .collect();
        Ok(Self {
            blocks,
            padding: padding.cloned(),
            device: device.clone(),
            shared_bias: OnceLock::new(),
            fused: false,
        })
    }

    fn bias(&self, block: &QueryBlock) -> Result<Option<Tensor>> {
        let made = || bias(block, self.padding.as_ref(), &self.device);
        if self.blocks.len() > 1 {
            return made();
        }
        if let Some(shared) = self.shared_bias.get() {
            return Ok(shared.clone());
        }
        let made = made()?;
        Ok(self.shared_bias.get_or_init(|| made).clone())
    }
}

fn expect_padding(padding: Option<&Tensor>, batch: usize, positions: usize) -> Result<()> {
    match padding {
        Some(padding) if padding.dims() != [batch, positions] => Err(Error::Argument(format!(
            "the attention mask has shape {:?}, the sequences need {:?}",
            padding.dims(),
            [batch, positions]
        ))),
        _ => Ok(()),
    }
}

/// What is added to the scores of a block, broadcasting to (B, H, rows, visible): 0 where a row may look, else
/// the smallest f32, as in the reference. A row that sees nothing (its own position masked too) stays finite.
fn bias(block: &QueryBlock, padding: Option<&Tensor>, device: &Device) -> Result<Option<Tensor>> {
    let QueryBlock { rows, visible, .. } = *block;
    let first = (visible - rows) as u32;
    let causal = if rows == 1 {
        None
    } else {
        let keys = Tensor::arange(0, visible as u32, device)?.reshape((1, visible))?;
        let queries = Tensor::arange(first, visible as u32, device)?.reshape((rows, 1))?;
        Some(keys.broadcast_le(&queries)?.reshape((1, 1, rows, visible))?)
    };
    let padding = match padding {
        Some(padding) => {
            let seen = padding.narrow(D::Minus1, 0, visible)?.to_dtype(DType::U8)?.ne(0u8)?;
            Some(seen.reshape((seen.dims()[0], 1, 1, visible))?)
        }
        None => None,
    };
    let seen = match (causal, padding) {
        (None, None) => return Ok(None),
        (Some(seen), None) | (None, Some(seen)) => seen,
        (Some(causal), Some(padding)) => causal.broadcast_mul(&padding)?,
    };
    let zero = Tensor::zeros(seen.shape(), DType::F32, device)?;
    let hidden = Tensor::full(f32::MIN, seen.shape(), device)?;
    Ok(Some(seen.where_cond(&zero, &hidden)?))
}
