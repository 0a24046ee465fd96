//! The decoder: embeddings in, hidden states and logits out.
//!
//! Paper: LLaMA 2 (arXiv 2307.09288). Reference: `LlamaModel`, `LlamaForCausalLM` of transformers 4.31.
//! Letters: B batch, S new positions, T all positions, D language width.

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use llamavid_kernels::{BlockFormat, Dropout, Ranks};

use super::adapted_linear::AdaptedLinear;
use super::attention::AttentionPlan;
use super::config::LanguageModelConfig;
use super::kv_cache::{CachePrecision, KvCache};
use super::layer::{Layer, Pass, RmsNorm};
use super::lora::{LoraConfig, LoraTarget};
use super::placement::{Placement, Stage};
use super::rotary::Rotary;
use super::share::{Share, read_on};
use crate::linear::{Linear, Matrix, linear_no_bias};
use crate::observer::Observer;
use crate::weight_source::WeightSource;
use crate::{Error, Result};

/// The language model. Cloning shares the weights.
///
/// Weights are f32, f16 or bf16, matrices also in blocks; norms and softmax are computed in f32, positions in the weights' dtype, logits
/// are f32. On a CPU bf16 works and is slow: each product widens the whole weight (13 ms become 200 ms for
/// a 4096 × 11008 matrix and one position), so f32 or f16 is the dtype to load there.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    config: LanguageModelConfig,
    /// (vocabulary, D).
    embed_tokens: Matrix,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Head,
    rotary: Rotary,
    dtype: DType,
    /// That of the embeddings.
    device: Device,
    placement: Placement,
}

impl LanguageModel {
    /// Reads `embed_tokens`, `layers.N`, `norm` and, unless tied to the embeddings, `lm_head` below `vb`.
    pub fn new<'a>(config: &LanguageModelConfig, vb: impl Into<WeightSource<'a>>) -> Result<Self> {
        let vb = vb.into();
        let placement = Placement::single(vb.device(), config.layers);
        Self::placed(config, vb, placement)
    }

    /// The same with its layers on several devices. Embeddings are on that of `vb`, the last norm and the output on that
    /// of the last layer; where several devices share that, they share the output too.
    ///
    /// # Errors
    /// Those of [`LanguageModel::new`], a placement of another number of layers, and [`Error::Shares`] for layers that cannot be shared
    /// so.
    pub fn placed<'a>(
        config: &LanguageModelConfig,
        vb: impl Into<WeightSource<'a>>,
        placement: Placement,
    ) -> Result<Self> {
        config.validate()?;
        let vb = vb.into();
        if placement.layers() != config.layers {
            let (placed, layers) = (placement.layers(), config.layers);
            return Err(Error::Argument(format!("{placed} layers are placed, the model has {layers}")));
        }
        placement.stages().iter().try_for_each(|stage| config.expect_shares(stage.ranks.devices().len()))?;
        let alone = Ranks::one(vb.device());
        let ranks = |layer: usize| placement.ranks_of(layer).unwrap_or(&alone);
        let behind = ranks(config.layers);
        let last = vb.on(behind.first());
        let init = Init::Randn { mean: 0., stdev: 1. };
        let embed_tokens =
            Matrix::table(config.vocab_size, config.hidden_size, init, &vb.pp("embed_tokens"))?;
        let layers = (0..config.layers)
            .map(|layer| Layer::new(config, &vb.pp("layers").pp(layer), ranks(layer)))
            .collect::<Result<Vec<_>>>()?;
        let vb_of_head = vb.on(read_on(behind));
        let lm_head = match config.tie_word_embeddings {
            true => Linear::new(embed_tokens.to_device(vb_of_head.device())?, None),
            false => linear_no_bias(config.hidden_size, config.vocab_size, vb_of_head.pp("lm_head"))?,
        };
        let lm_head = Head::new(lm_head, behind, config)?;
        Ok(Self {
            norm: RmsNorm::new(config, last.pp("norm"))?,
            rotary: Rotary::new(config),
            dtype: match &embed_tokens {
                Matrix::Dense(table) => table.dtype(),
                Matrix::Blocks(_) => vb.dtype(),
            },
            device: vb.device().clone(),
            config: config.clone(),
            embed_tokens,
            layers,
            lm_head,
            placement,
        })
    }

    /// The same model with adapters, read below `vb` by the names of the projections beside which they stand
    /// (`layers.0.self_attn.q_proj.lora_A.weight`).
    ///
    /// # Errors
    /// [`Error::Config`] for numbers that make no adapter; [`Error::Tensor`] names a missing weight.
    pub fn with_lora<'a>(&self, lora: &LoraConfig, vb: impl Into<WeightSource<'a>>) -> Result<Self> {
        lora.validate()?;
        let vb = vb.into();
        let mut adapted = self.clone();
        for (index, layer) in adapted.layers.iter_mut().enumerate() {
            let vb = vb.on(self.placement.ranks_of(index).map_or(vb.device(), read_on));
            for target in &lora.targets {
                let vb = vb.pp("layers").pp(index).pp(target.path());
                layer.projections(*target).try_for_each(|layer| layer.adapt(lora.rank, lora.scale(), &vb))?;
            }
        }
        Ok(adapted)
    }

    /// The same model, whose adapters drop a share `rate` of what they read, as in training. The same seed drops the
    /// same values.
    pub fn with_lora_dropout(&self, rate: f32, seed: u64) -> Self {
        let mut changed = self.clone();
        let mut number = seed;
        for layer in &mut changed.layers {
            for target in LoraTarget::ALL {
                number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let dropout = (rate > 0.).then_some(Dropout { rate, seed: number });
                layer.projections(target).for_each(|layer| layer.set_adapter_dropout(dropout));
            }
        }
        changed
    }

    /// The same model with its adapters added to its weights: as quick as without, and the weights no longer shared.
    /// An adapter of a weight in blocks stays beside it.
    ///
    /// # Errors
    /// A device without memory.
    pub fn with_merged_lora(&self) -> Result<Self> {
        let mut merged = self.clone();
        for layer in &mut merged.layers {
            for target in LoraTarget::ALL {
                layer.projections(target).try_for_each(AdaptedLinear::merge_adapter)?;
            }
        }
        Ok(merged)
    }

    /// Sizes and constants.
    pub fn config(&self) -> &LanguageModelConfig {
        &self.config
    }

    /// Positions the context holds, rope scaling included.
    pub fn context_length(&self) -> usize {
        self.config.max_positions
    }

    /// The weights' dtype, which embeddings must have.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The format of most of the weights, those of the feed-forward layers, when they are in blocks.
    pub fn block_format(&self) -> Option<BlockFormat> {
        self.layers.first()?.block_format()
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Embeddings (S, D) of `ids`. An id outside the vocabulary is [`Error::Argument`].
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            let size = self.config.vocab_size;
            return Err(Error::Argument(format!("token id {id} is outside the vocabulary of {size}")));
        }
        if ids.is_empty() {
            return Ok(Tensor::zeros((0, self.config.hidden_size), self.dtype, &self.device)?);
        }
        let device = match &self.embed_tokens {
            Matrix::Dense(_) => &self.device,
            Matrix::Blocks(_) => &Device::Cpu,
        };
        let embeds = self.embed_tokens.weight().embedding(&Tensor::new(ids, device)?)?;
        Ok(embeds.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// An empty cache with room for `capacity_hint` positions; it grows up to the context.
    pub fn new_cache(&self, capacity_hint: usize) -> KvCache {
        self.new_cache_in(CachePrecision::Full, capacity_hint)
    }

    /// The same, which holds keys and values in fewer bits. Heads must be a multiple of 32 wide then.
    pub fn new_cache_in(&self, precision: CachePrecision, capacity_hint: usize) -> KvCache {
        let in_blocks = self.block_format().is_some_and(|format| format.block_length() > 1);
        let precision = if in_blocks { precision.beside_blocks() } else { precision };
        let layers = self.layers.iter().map(Layer::ranks);
        KvCache::new(layers, capacity_hint, self.config.max_positions, precision)
    }

    /// The next positions of a batch: `embeds` (B, S, D) give the hidden states (B, S, D) after the last norm.
    ///
    /// The new positions follow those in `cache` and are added to it. `mask` (B, T), 0 for padding on the
    /// right, covers cached and new positions. Scores are made in blocks of rows, so memory grows with T and
    /// not with its square. No gradient flows to cached positions: train with
    /// [`LanguageModel::forward_uncached`].
    ///
    /// Positions are counted per slot: padded rows of a batch do not continue where their text ended, so
    /// batches are for passes over whole sequences. [`LanguageModel::forward_each`] continues sequences of any lengths.
    ///
    /// Observed: `llm.layerI`, `llm.norm`. [`Error::ContextOverflow`] when the context has no room.
    pub fn forward(
        &self,
        embeds: &Tensor,
        cache: &mut KvCache,
        mask: Option<&Tensor>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let (batch, count) = self.expect_embeds(embeds)?;
        cache.reserve(count)?;
        let past = cache.len();
        let plan = AttentionPlan::in_blocks(&self.config, batch, past, count, mask, &self.device)?;
        let hidden = self.decode(embeds, past, &plan, Some(&mut *cache), observer)?;
        cache.advance(count);
        Ok(hidden)
    }

    /// One next position of each of N sequences, in one pass over the weights: `embeds` (N, D), a row a sequence, give the
    /// hidden states (N, D) after the last norm. Row i follows the positions in `caches[i]` and is added to it.
    ///
    /// A sequence gets what it gets alone, but for rounding: products with dense weights add up in an order that depends
    /// on the number of rows.
    ///
    /// [`Error::ContextOverflow`] when one of the contexts has no room. A pass that fails leaves the caches as they were.
    pub fn forward_each(&self, embeds: &Tensor, caches: &mut [&mut KvCache]) -> Result<Tensor> {
        let mut hidden = embeds.unsqueeze(0)?;
        let (_one, count) = self.expect_embeds(&hidden)?;
        if count != caches.len() {
            let caches = caches.len();
            return Err(Error::Argument(format!("{count} positions do not go with {caches} caches")));
        }
        caches.iter().try_for_each(|cache| cache.reserve(1))?;
        for stage in self.placement.stages() {
            let Stage { ranks, layers } = stage;
            let angles = |device: &Device| {
                let of_each = caches.iter().map(|cache| {
                    self.rotary.angles(cache.len(), 1, cache.length_with(1), self.dtype, device)
                });
                let (cosines, sines): (Vec<_>, Vec<_>) =
                    of_each.collect::<candle_core::Result<Vec<_>>>()?.into_iter().unzip();
                Ok((Tensor::cat(&cosines, 0)?, Tensor::cat(&sines, 0)?))
            };
            let angles = ranks.devices().iter().map(angles).collect::<Result<Vec<_>>>()?;
            let mut x = stage.take(&hidden)?;
            for (index, layer) in layers.clone().zip(&self.layers[layers.clone()]) {
                x = layer.forward_each(&x, ranks, &angles, caches, index)?;
            }
            hidden = x.swap_remove(0);
        }
        let hidden = self.norm.forward(&hidden)?.squeeze(0)?;
        caches.iter_mut().for_each(|cache| cache.advance(1));
        Ok(hidden)
    }

    /// Whole sequences at once, differentiable: `embeds` (B, S, D) give (B, S, D) after the last norm.
    ///
    /// `mask` (B, S) is 0 for padding on the right. Every weight that is a variable, and `embeds`, get a gradient.
    /// Observed and errors as in [`LanguageModel::forward`].
    pub fn forward_uncached(
        &self,
        embeds: &Tensor,
        mask: Option<&Tensor>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        self.decode(embeds, 0, &self.whole_plan(embeds, mask)?, None, observer)
    }

    /// What the layers of [`LanguageModel::forward_uncached`] share, for a caller that runs them one by one: gradient
    /// checkpointing computes each layer twice and keeps only what lies between them.
    ///
    /// # Errors
    /// As [`LanguageModel::forward_uncached`].
    pub fn pass(&self, embeds: &Tensor, mask: Option<&Tensor>) -> Result<Pass> {
        let plan = self.whole_plan(embeds, mask)?;
        let (_batch, count, _width) = embeds.dims3()?;
        Ok(Pass { plan, angles: self.rotary.angles(0, count, count, self.dtype, &self.device)? })
    }

    /// Who sees whom in whole sequences.
    fn whole_plan(&self, embeds: &Tensor, mask: Option<&Tensor>) -> Result<AttentionPlan> {
        let (batch, count) = self.expect_embeds(embeds)?;
        self.new_cache(0).reserve(count)?;
        AttentionPlan::whole(batch, count, mask, self.dtype, &self.device)
    }

    /// One layer of a pass: (B, S, D) gives (B, S, D). The first one reads embeddings.
    ///
    /// # Errors
    /// No such layer, or one that several devices share.
    pub fn layer(&self, index: usize, hidden: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self.layers.get(index).map(Layer::whole) {
            Some(Some(whole)) => whole.forward(hidden, pass, None),
            Some(None) => Err(Error::Argument(format!("layer {index} is shared by several devices"))),
            None => Err(Error::Argument(format!("layer {index} of {}", self.layers.len()))),
        }
    }

    /// The norm behind the last layer: (B, S, D) gives (B, S, D).
    ///
    /// # Errors
    /// A device without memory.
    pub fn last_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(hidden)
    }

    /// Logits in f32 of `hidden` (…, D) as the forward passes give it: (…, vocabulary). Observed: `llm.logits`.
    pub fn logits(&self, hidden: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let logits = self.lm_head.forward(&hidden.contiguous()?)?;
        observer.see("llm.logits", &logits);
        Ok(logits)
    }

    fn decode(
        &self,
        embeds: &Tensor,
        past: usize,
        plan: &AttentionPlan,
        mut cache: Option<&mut KvCache>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let count = embeds.dims()[1];
        let length = cache.as_ref().map_or(past + count, |cache| cache.length_with(count));
        let mut hidden = embeds.clone();
        for stage in self.placement.stages() {
            let Stage { ranks, layers } = stage;
            let passes = ranks.devices().iter().map(|device| {
                let angles = self.rotary.angles(past, count, length, self.dtype, device)?;
                Ok(Pass { plan: plan.on(device)?, angles })
            });
            let passes = passes.collect::<Result<Vec<_>>>()?;
            let mut x = stage.take(&hidden)?;
            for (index, layer) in layers.clone().zip(&self.layers[layers.clone()]) {
                let place = cache.as_mut().map(|cache| (&mut **cache, index));
                x = layer.forward(&x, ranks, &passes, place)?;
                if observer.wants() {
                    observer.see(&format!("llm.layer{index}"), &x[0]);
                }
            }
            hidden = x.swap_remove(0);
        }
        let hidden = self.norm.forward(&hidden)?;
        observer.see("llm.norm", &hidden);
        Ok(hidden)
    }

    /// B and S of `embeds`, or an error that says what they should look like.
    fn expect_embeds(&self, embeds: &Tensor) -> Result<(usize, usize)> {
        let (batch, count, width) = embeds.dims3()?;
        if batch == 0 || count == 0 {
            return Err(Error::Argument(format!(
                "a pass needs a position, the input is {:?}",
                embeds.dims()
            )));
        }
        if width != self.config.hidden_size {
            let expected = self.config.hidden_size;
            return Err(Error::Argument(format!(
                "embeddings are {width} wide, the model is {expected} wide"
            )));
        }
        if embeds.dtype() != self.dtype {
            let (found, expected) = (embeds.dtype(), self.dtype);
            return Err(Error::Argument(format!("embeddings are {found:?}, the model is {expected:?}")));
        }
        Ok((batch, count))
    }
}

/// The output projection.
#[derive(Debug, Clone)]
struct Head {
    ranks: Ranks,
    /// Rows of the vocabulary, for each rank its own.
    shares: Vec<Linear>,
}

impl Head {
    /// `whole` is where [`read_on`] has it.
    fn new(whole: Linear, ranks: &Ranks, config: &LanguageModelConfig) -> Result<Self> {
        let shares = match ranks.devices() {
            [_only] => vec![whole],
            _ => {
                let rows = |share: &Share| share.of(config.vocab_size, 1);
                let shares = Share::of_each(ranks).map(|share| whole.outputs(rows(&share), &share.device));
                shares.collect::<candle_core::Result<_>>()?
            }
        };
        Ok(Self { ranks: ranks.clone(), shares })
    }

    /// Logits (…, vocabulary) in f32 of hidden states (…, D).
    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = self.ranks.share(hidden)?;
        let inputs = self.shares.iter().zip(&hidden).collect();
        let of_each =
            self.ranks.each(inputs, |(share, hidden)| share.forward(hidden)?.to_dtype(DType::F32))?;
        let logits = self.ranks.gather(&of_each)?;
        // They are read next, and whoever waits for them must hear of a device that failed.
        self.ranks.settle()?;
        Ok(logits)
    }
}
