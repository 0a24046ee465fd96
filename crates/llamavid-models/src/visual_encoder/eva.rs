//! EVA ViT, the visual encoder of every published model.
//!
//! Paper: "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale" (arXiv 2211.07636).
//! Reference: upstream's `eva_vit.py`. Returns the last block's output, without a final norm.
//! Letters: F frames, P patches, V visual width.

use candle_core::{DType, Result, Tensor};
use llamavid_kernels::{
    Activation, FrozenAttention, FrozenFeedForward, Heads, NormPlace, Projection, attention_block, gelu_block,
};
use tracing::info_span;

use super::EvaConfig;
use super::blocks::{self, Blocks, FrozenBlock};
use super::layer_norm::LayerNorm;
use super::patch_embedding::PatchEmbedding;
use super::position_table;
use crate::linear::{Linear, Matrix, linear};
use crate::observer::Observer;
use crate::weight_source::WeightSource;

const EPS: f64 = 1e-6;

#[derive(Debug, Clone)]
pub(super) struct EvaTower {
    patch_embedding: PatchEmbedding,
    class_row: Tensor,
    positions: Tensor,
    blocks: Blocks<Block>,
}

impl EvaTower {
    /// `frozen` for inference only.
    pub fn new(config: &EvaConfig, vb: WeightSource, frozen: bool) -> Result<Self> {
        let rows = config.position_side * config.position_side + 1;
        // Resized in f32 whatever the dtype, as the reference does.
        let positions = vb.tensors().get_with_hints_dtype(
            (1, rows, config.width),
            "pos_embed",
            Default::default(),
            DType::F32,
        )?;
        let side = config.image_size / config.patch_size;
        let blocks = vb.pp("blocks");
        let block = |index: usize| Block::new(config, blocks.pp(index));
        Ok(Self {
            patch_embedding: PatchEmbedding::new(
                config.width,
                config.patch_size,
                true,
                vb.pp("patch_embed").pp("proj"),
            )?,
            class_row: vb.get((1, 1, config.width), "cls_token")?,
            positions: position_table::resize(&positions, config.position_side, side)?
                .to_dtype(vb.dtype())?,
            blocks: Blocks::new(config.depth, frozen, block)?,
        })
    }

    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// `pixels` (F, 3, S, S) give (F, P+1, V).
    pub fn forward(&self, pixels: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let patches = info_span!("patches").in_scope(|| self.patch_embedding.forward(pixels))?;
        observer.see("vit.patch_embed", &patches);
        let (frames, _patches, width) = patches.dims3()?;
        let class_rows = self.class_row.broadcast_as((frames, 1, width))?;
        let x = Tensor::cat(&[&class_rows, &patches], 1)?.broadcast_add(&self.positions)?;
        observer.see("vit.embeddings", &x);
        self.blocks.forward(x, observer)
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(config: &EvaConfig, vb: WeightSource) -> Result<Self> {
        let mlp = vb.pp("mlp");
        Ok(Self {
            norm1: LayerNorm::new(config.width, EPS, vb.pp("norm1"))?,
            attn: Attention::new(config, vb.pp("attn"))?,
            norm2: LayerNorm::new(config.width, EPS, vb.pp("norm2"))?,
            fc1: linear(config.width, config.mlp_width, mlp.pp("fc1"))?,
            fc2: linear(config.mlp_width, config.width, mlp.pp("fc2"))?,
        })
    }
}

impl blocks::Block for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = info_span!("attention").in_scope(|| self.attn.forward(x, &self.norm1))?;
        let norm = (self.norm2.norm(), NormPlace::Before);
        let _span = info_span!("feed forward").entered();
        gelu_block(&x, norm, self.fc1.projection(), self.fc2.projection())
    }

    fn frozen(self) -> Result<FrozenBlock> {
        let (norm, [fc1, fc2]) = (self.norm2.norm(), [&self.fc1, &self.fc2].map(Linear::projection));
        Ok(FrozenBlock {
            attention: self.attn.frozen(&self.norm1)?,
            feed_forward: FrozenFeedForward::new(norm, fc1, Activation::Gelu, fc2)?,
        })
    }
}

/// Self-attention with its norm and residual.
#[derive(Debug, Clone)]
struct Attention {
    qkv: Matrix,
    query_bias: Tensor,
    value_bias: Tensor,
    /// Both as the packed projection has them, where training does not change them.
    bias: Option<Tensor>,
    proj: Linear,
    heads: usize,
}

/// Of queries, keys and values. Softmax would cancel a bias on the keys, so the file has none.
fn packed_bias(queries: &Tensor, values: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[queries, &queries.zeros_like()?, values], 0)
}

impl Attention {
    fn new(config: &EvaConfig, vb: WeightSource) -> Result<Self> {
        let width = config.width;
        let (query_bias, value_bias) = (vb.get(width, "q_bias")?, vb.get(width, "v_bias")?);
        let constant = !query_bias.track_op() && !value_bias.track_op();
        Ok(Self {
            qkv: Matrix::new(3 * width, width, Default::default(), &vb.pp("qkv"))?,
            bias: constant.then(|| packed_bias(&query_bias, &value_bias)).transpose()?,
            query_bias,
            value_bias,
            proj: linear(width, width, vb.pp("proj"))?,
            heads: config.heads,
        })
    }

    fn bias(&self) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => Ok(bias.clone()),
            None => packed_bias(&self.query_bias, &self.value_bias),
        }
    }

    fn frozen(&self, norm: &LayerNorm) -> Result<FrozenAttention> {
        let bias = self.bias()?;
        let packed = Projection { weight: self.qkv.weight(), bias: Some(&bias) };
        FrozenAttention::new(norm.norm(), &[packed], self.proj.projection(), self.heads)
    }

    fn forward(&self, x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        let (_frames, _rows, width) = x.dims3()?;
        let bias = self.bias()?;
        let packed = Projection { weight: self.qkv.weight(), bias: Some(&bias) }; // (F, P+1, 3 V)
        let heads = Heads::new(self.heads, width / self.heads);
        let norm = (norm.norm(), NormPlace::Before);
        attention_block(x, norm, &[packed], self.proj.projection(), &heads)
    }
}
