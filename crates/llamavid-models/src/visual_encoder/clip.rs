//! The vision part of CLIP, by the names of transformers' `CLIPVisionModel`.
//!
//! Paper: "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020).
//! Letters: F frames, P patches, V visual width.

use candle_core::{Result, Tensor};
use llamavid_kernels::{
    Activation, FrozenAttention, FrozenFeedForward, Heads, multi_head_attention, quick_gelu,
};
use tracing::info_span;

use super::ClipConfig;
use super::blocks::{Block, Blocks, FrozenBlock};
use super::layer_norm::LayerNorm;
use super::patch_embedding::PatchEmbedding;
use crate::linear::{Linear, linear};
use crate::observer::Observer;
use crate::weight_source::WeightSource;
use crate::{Error, Result as ModelResult};

const EPS: f64 = 1e-5;

#[derive(Debug, Clone)]
pub(super) struct ClipTower {
    patch_embedding: PatchEmbedding,
    class_row: Tensor,
    positions: Tensor,
    /// Named so, without the `e`, in every published file.
    pre_layrnorm: LayerNorm,
    layers: Blocks<Layer>,
    class_token: bool,
}

impl ClipTower {
    /// `frozen` for inference only.
    pub fn new(config: &ClipConfig, vb: WeightSource, frozen: bool) -> ModelResult<Self> {
        let embeddings = vb.pp("embeddings");
        let rows = config.position_side * config.position_side + 1;
        let layers = vb.pp("encoder").pp("layers");
        Ok(Self {
            patch_embedding: PatchEmbedding::new(
                config.width,
                config.patch_size,
                false,
                embeddings.pp("patch_embedding"),
            )?,
            class_row: embeddings.get(config.width, "class_embedding")?,
            positions: embeddings.get((rows, config.width), "position_embedding.weight")?,
            pre_layrnorm: LayerNorm::new(config.width, EPS, vb.pp("pre_layrnorm"))?,
            layers: Blocks::new(layers_used(config)?, frozen, |index| Layer::new(config, layers.pp(index)))?,
            class_token: config.class_token,
        })
    }

    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// `pixels` (F, 3, S, S) give (F, P+1, V), or (F, P, V) without the class row.
    pub fn forward(&self, pixels: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let patches = self.patch_embedding.forward(pixels)?;
        observer.see("vit.patch_embed", &patches);
        let (frames, count, width) = patches.dims3()?;
        let class_rows = self.class_row.broadcast_as((frames, 1, width))?;
        let embeddings = Tensor::cat(&[&class_rows, &patches], 1)?.broadcast_add(&self.positions)?;
        observer.see("vit.embeddings", &embeddings);
        let x = self.layers.forward(self.pre_layrnorm.forward(&embeddings)?, observer)?;
        if self.class_token { Ok(x) } else { x.narrow(1, 1, count)?.contiguous() }
    }
}

/// How many layers come before the selected output.
fn layers_used(config: &ClipConfig) -> ModelResult<usize> {
    let outputs = config.depth as i64 + 1;
    let selected = config.select_layer;
    let index = if selected < 0 { selected.saturating_add(outputs) } else { selected };
    if (0..outputs).contains(&index) {
        return Ok(index as usize);
    }
    Err(Error::Config {
        key: "select_layer".into(),
        problem: format!(
            "{selected}, but a tower of {} layers has outputs {} to {}",
            config.depth,
            -outputs,
            outputs - 1
        ),
    })
}

#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn new(config: &ClipConfig, vb: WeightSource) -> Result<Self> {
        let mlp = vb.pp("mlp");
        Ok(Self {
            layer_norm1: LayerNorm::new(config.width, EPS, vb.pp("layer_norm1"))?,
            self_attn: Attention::new(config, vb.pp("self_attn"))?,
            layer_norm2: LayerNorm::new(config.width, EPS, vb.pp("layer_norm2"))?,
            fc1: linear(config.width, config.mlp_width, mlp.pp("fc1"))?,
            fc2: linear(config.mlp_width, config.width, mlp.pp("fc2"))?,
        })
    }
}

impl Block for Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let attended =
            info_span!("attention").in_scope(|| self.self_attn.forward(&self.layer_norm1.forward(x)?))?;
        let x = (x + attended)?;
        let _span = info_span!("feed forward").entered();
        let hidden = quick_gelu(&self.fc1.forward(&self.layer_norm2.forward(&x)?)?)?;
        x + self.fc2.forward(&hidden)?
    }

    fn frozen(self) -> Result<FrozenBlock> {
        let Attention { q_proj, k_proj, v_proj, out_proj, heads } = &self.self_attn;
        let packed = [q_proj, k_proj, v_proj].map(Linear::projection);
        let [out_proj, fc1, fc2] = [out_proj, &self.fc1, &self.fc2].map(Linear::projection);
        let [norm1, norm2] = [&self.layer_norm1, &self.layer_norm2].map(LayerNorm::norm);
        Ok(FrozenBlock {
            attention: FrozenAttention::new(norm1, &packed, out_proj, *heads)?,
            feed_forward: FrozenFeedForward::new(norm2, fc1, Activation::QuickGelu, fc2)?,
        })
    }
}

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(config: &ClipConfig, vb: WeightSource) -> Result<Self> {
        let square = |name| linear(config.width, config.width, vb.pp(name));
        Ok(Self {
            q_proj: square("q_proj")?,
            k_proj: square("k_proj")?,
            v_proj: square("v_proj")?,
            out_proj: square("out_proj")?,
            heads: config.heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_frames, _rows, width) = x.dims3()?;
        let attended = multi_head_attention(
            &self.q_proj.forward(x)?,
            &self.k_proj.forward(x)?,
            &self.v_proj.forward(x)?,
            &Heads::new(self.heads, width / self.heads),
        )?;
        self.out_proj.forward(&attended)
    }
}
