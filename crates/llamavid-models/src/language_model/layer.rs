//! A layer of the decoder: attention and feed-forward layer, each with its norm and residual, on one device or shared by several.
//!
//! Letters: B batch, S new positions, D language width.

use candle_core::{Device, Tensor};
use candle_nn::Init;
use llamavid_kernels::{BlockFormat, Norm, NormPlace, Ranks, rms_norm, swiglu, swiglu_block};

use super::adapted_linear::AdaptedLinear;
use super::attention::{AttentionPlan, SelfAttention};
use super::config::LanguageModelConfig;
use super::kv_cache::{CachePlace, KvCache};
use super::lora::LoraTarget;
use super::share::{Share, read_on};
use crate::Result;
use crate::weight_source::WeightSource;

/// Masks and positions of a pass, shared by its layers.
#[derive(Debug)]
pub struct Pass {
    pub(super) plan: AttentionPlan,
    /// Cosines and sines of the positions.
    pub(super) angles: (Tensor, Tensor),
}

/// A decoder layer: whole, or in shares, one for each rank.
#[derive(Debug, Clone)]
pub(super) struct Layer(Vec<DecoderLayer>);

impl Layer {
    pub(super) fn new(config: &LanguageModelConfig, vb: &WeightSource, ranks: &Ranks) -> Result<Self> {
        let whole = DecoderLayer::new(config, vb.on(read_on(ranks)))?;
        if let [_only] = ranks.devices() {
            return Ok(Self(vec![whole]));
        }
        Ok(Self(Share::of_each(ranks).map(|share| whole.share(&share)).collect::<Result<_>>()?))
    }

    /// How many ranks have a share of it.
    pub(super) fn ranks(&self) -> usize {
        self.0.len()
    }

    /// The layer itself, where one device has all of it.
    pub(super) fn whole(&self) -> Option<&DecoderLayer> {
        match self.0.as_slice() {
            [whole] => Some(whole),
            _ => None,
        }
    }

    /// The format of its weights, those of the feed-forward layer, when they are in blocks.
    pub(super) fn block_format(&self) -> Option<BlockFormat> {
        self.0.first()?.mlp.up_proj.block_format()
    }

    /// `x` (B, S, D), which every rank has, gives the same of this layer.
    pub(super) fn forward(
        &self,
        x: &[Tensor],
        ranks: &Ranks,
        passes: &[Pass],
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<Vec<Tensor>> {
        let places = match cache {
            Some((cache, index)) => cache.places(index, self.0.len())?.into_iter().map(Some).collect(),
            None => self.0.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let inputs = self.0.iter().zip(x).zip(passes).zip(places);
        if let [_whole] = self.0.as_slice() {
            let whole = inputs.map(|(((whole, x), pass), place)| whole.forward(x, pass, place));
            return whole.collect();
        }
        let attended = ranks.each(inputs.collect(), |(((share, x), pass), place)| {
            let angles = (&pass.angles.0, &pass.angles.1);
            share.self_attn.forward((x, &share.input_layernorm), angles, &pass.plan, place, None)
        })?;
        self.feed_forward(&ranks.add(x, &attended)?, ranks)
    }

    /// As [`SelfAttention::forward_each`].
    pub(super) fn forward_each(
        &self,
        x: &[Tensor],
        ranks: &Ranks,
        angles: &[(Tensor, Tensor)],
        caches: &mut [&mut KvCache],
        index: usize,
    ) -> Result<Vec<Tensor>> {
        let mut places: Vec<_> = self.0.iter().map(|_| Vec::with_capacity(caches.len())).collect();
        for cache in caches {
            let of_each_rank = cache.places(index, self.0.len())?;
            places.iter_mut().zip(of_each_rank).for_each(|(places, place)| places.push(place));
        }
        let inputs = self.0.iter().zip(x).zip(angles).zip(places);
        let alone = self.whole().is_some();
        let attended = ranks.each(inputs.collect(), |(((share, x), angles), places)| {
            let rows = (x, &share.input_layernorm);
            share.self_attn.forward_each(rows, (&angles.0, &angles.1), places, alone.then_some(x))
        })?;
        match alone {
            true => self.feed_forward(&attended, ranks),
            false => self.feed_forward(&ranks.add(x, &attended)?, ranks),
        }
    }

    /// What follows the attention.
    fn feed_forward(&self, x: &[Tensor], ranks: &Ranks) -> Result<Vec<Tensor>> {
        let inputs = self.0.iter().zip(x);
        if let [_whole] = self.0.as_slice() {
            return inputs.map(|(whole, x)| whole.mlp.forward(x, &whole.post_attention_layernorm)).collect();
        }
        let addends = ranks.each(inputs.collect(), |(share, x)| {
            share.mlp.addend(&share.post_attention_layernorm.forward(x)?)
        })?;
        Ok(ranks.add(x, &addends)?)
    }

    /// One of its projections, on each rank.
    pub(super) fn projections(&mut self, target: LoraTarget) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.0.iter_mut().map(move |share| share.projection(target))
    }
}

/// One decoder layer, pre-norm.
#[derive(Debug, Clone)]
pub(super) struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: SwiGlu,
}

impl DecoderLayer {
    fn new(config: &LanguageModelConfig, vb: WeightSource) -> Result<Self> {
        Ok(Self {
            input_layernorm: RmsNorm::new(config, vb.pp("input_layernorm"))?,
            self_attn: SelfAttention::new(config, vb.pp("self_attn"))?,
            post_attention_layernorm: RmsNorm::new(config, vb.pp("post_attention_layernorm"))?,
            mlp: SwiGlu::new(config, vb.pp("mlp"))?,
        })
    }

    /// A rank's part of it; norms are whole everywhere.
    fn share(&self, share: &Share) -> Result<Self> {
        Ok(Self {
            input_layernorm: self.input_layernorm.to_device(&share.device)?,
            self_attn: self.self_attn.share(share)?,
            post_attention_layernorm: self.post_attention_layernorm.to_device(&share.device)?,
            mlp: self.mlp.share(share)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<CachePlace>) -> Result<Tensor> {
        let (plan, angles) = (&pass.plan, (&pass.angles.0, &pass.angles.1));
        let x = match (plan.whole_padding(), cache) {
            (Some(padding), None) => {
                self.self_attn.forward_whole(x, &self.input_layernorm, angles, padding)?
            }
            (_, cache) => self.self_attn.forward((x, &self.input_layernorm), angles, plan, cache, Some(x))?,
        };
        self.mlp.forward(&x, &self.post_attention_layernorm)
    }

    fn projection(&mut self, target: LoraTarget) -> &mut AdaptedLinear {
        match target {
            LoraTarget::QueryProj => &mut self.self_attn.q_proj,
            LoraTarget::KeyProj => &mut self.self_attn.k_proj,
            LoraTarget::ValueProj => &mut self.self_attn.v_proj,
            LoraTarget::OutputProj => &mut self.self_attn.o_proj,
            LoraTarget::GateProj => &mut self.mlp.gate_proj,
            LoraTarget::UpProj => &mut self.mlp.up_proj,
            LoraTarget::DownProj => &mut self.mlp.down_proj,
        }
    }
}

/// Gated feed-forward layer, `down(silu(gate(x)) · up(x))`, with its norm and residual.
#[derive(Debug, Clone)]
struct SwiGlu {
    gate_proj: AdaptedLinear,
    up_proj: AdaptedLinear,
    down_proj: AdaptedLinear,
}

impl SwiGlu {
    fn new(config: &LanguageModelConfig, vb: WeightSource) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: AdaptedLinear::new(width, inner, false, vb.pp("gate_proj"))?,
            up_proj: AdaptedLinear::new(width, inner, false, vb.pp("up_proj"))?,
            down_proj: AdaptedLinear::new(inner, width, false, vb.pp("down_proj"))?,
        })
    }

    fn forward(&self, x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
        let [gate, up, down] =
            [&self.gate_proj, &self.up_proj, &self.down_proj].map(|layer| layer.projection());
        if let (Some(gate), Some(up), Some(down)) = (gate, up, down) {
            return Ok(swiglu_block(x, (norm.norm(), NormPlace::Before), gate, up, down)?);
        }
        Ok((x + self.addend(&norm.forward(x)?)?)?)
    }

    /// What it adds to what is behind the norm.
    fn addend(&self, normed: &Tensor) -> Result<Tensor> {
        let inner = swiglu(&self.gate_proj.forward(normed)?, &self.up_proj.forward(normed)?)?;
        Ok(self.down_proj.forward(&inner)?)
    }

    /// A rank's part of it.
    fn share(&self, share: &Share) -> Result<Self> {
        let (inner, width) = self.up_proj.dims()?;
        let format = self.down_proj.block_format();
        let own = share.of(inner, format.map_or(1, BlockFormat::block_length));
        share.expect_blocks(&own, format, "numbers of the feed-forward layer")?;
        Ok(Self {
            gate_proj: self.gate_proj.part(own.clone(), 0..width, &share.device)?,
            up_proj: self.up_proj.part(own.clone(), 0..width, &share.device)?,
            down_proj: self.down_proj.part(0..width, own, &share.device)?,
        })
    }
}

#[derive(Debug, Clone)]
pub(super) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(super) fn new(config: &LanguageModelConfig, vb: WeightSource) -> Result<Self> {
        let weight = vb.get_with_hints(config.hidden_size, "weight", Init::Const(1.0))?;
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self { weight: self.weight.to_device(device)?, eps: self.eps })
    }

    pub(super) fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: None, eps: self.eps }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.weight, self.eps)?)
    }
}
