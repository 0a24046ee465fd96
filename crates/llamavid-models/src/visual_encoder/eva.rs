//! EVA ViT, the visual encoder of every published model.
//!
//! Paper: "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale" (arXiv 2211.07636).
//! Reference: upstream's `eva_vit.py`. Returns the last block's output, without a final norm.
//! Letters: F frames, P patches, V visual width.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};

use super::EvaConfig;
use super::layer_norm::LayerNorm;
use super::patch_embedding::PatchEmbedding;
use super::position_table;
use crate::observer::Observer;

const EPS: f64 = 1e-6;

#[derive(Debug, Clone)]
pub(super) struct EvaTower {
    patch_embedding: PatchEmbedding,
    class_row: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
}

impl EvaTower {
    pub fn new(config: &EvaConfig, vb: VarBuilder) -> Result<Self> {
        let rows = config.position_side * config.position_side + 1;
        // Resized in f32 whatever the dtype, as the reference does.
        let positions =
            vb.get_with_hints_dtype((1, rows, config.width), "pos_embed", Default::default(), DType::F32)?;
        let side = config.image_size / config.patch_size;
        let blocks = vb.pp("blocks");
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
            blocks: (0..config.depth)
                .map(|index| Block::new(config, blocks.pp(index)))
                .collect::<Result<_>>()?,
        })
    }

    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// `pixels` (F, 3, S, S) give (F, P+1, V).
    pub fn forward(&self, pixels: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let patches = self.patch_embedding.forward(pixels)?;
        observer.see("vit.patch_embed", &patches);
        let (frames, _patches, width) = patches.dims3()?;
        let class_rows = self.class_row.broadcast_as((frames, 1, width))?;
        let mut x = Tensor::cat(&[&class_rows, &patches], 1)?.broadcast_add(&self.positions)?;
        observer.see("vit.embeddings", &x);
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            observer.see(&format!("vit.block{index}"), &x);
        }
        Ok(x)
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
    fn new(config: &EvaConfig, vb: VarBuilder) -> Result<Self> {
        let mlp = vb.pp("mlp");
        Ok(Self {
            norm1: LayerNorm::new(config.width, EPS, vb.pp("norm1"))?,
            attn: Attention::new(config, vb.pp("attn"))?,
            norm2: LayerNorm::new(config.width, EPS, vb.pp("norm2"))?,
            fc1: linear(config.width, config.mlp_width, mlp.pp("fc1"))?,
            fc2: linear(config.mlp_width, config.width, mlp.pp("fc2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attn.forward(&self.norm1.forward(x)?)?)?;
        let hidden = llamavid_kernels::gelu(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        x + self.fc2.forward(&hidden)?
    }
}

#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(config: &EvaConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.width;
        let query_bias = vb.get(width, "q_bias")?;
        let value_bias = vb.get(width, "v_bias")?;
        // Softmax would cancel a bias on the keys, so the file has none.
        let bias = Tensor::cat(&[&query_bias, &query_bias.zeros_like()?, &value_bias], 0)?;
        Ok(Self {
            qkv: Linear::new(vb.get((3 * width, width), "qkv.weight")?, Some(bias)),
            proj: linear(width, width, vb.pp("proj"))?,
            heads: config.heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (frames, rows, width) = x.dims3()?;
        let head_width = width / self.heads;
        let qkv = self
            .qkv
            .forward(x)?
            .reshape((frames, rows, 3, self.heads, head_width))?
            .permute((2, 0, 3, 1, 4))?; // (3, F, heads, P+1, head width)
        let scale = (head_width as f64).powf(-0.5);
        let attended = llamavid_kernels::attention(&qkv.get(0)?, &qkv.get(1)?, &qkv.get(2)?, scale, None)?;
        self.proj.forward(&attended.transpose(1, 2)?.flatten_from(D::Minus2)?)
    }
}
