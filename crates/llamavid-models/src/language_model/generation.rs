//! One answer, in small steps that a caller can interleave with other work or give up between.

use std::sync::Arc;

use candle_core::{IndexOp, Tensor};
use llamavid_kernels::largest;

use super::kv_cache::{CachePrecision, KvCache};
use super::llama::LanguageModel;
use super::sampling::{Sampler, SamplingOptions};
use super::stop_rule::StopRule;
use crate::observer::Blind;
use crate::{Error, Result};

/// Positions of one prefill step. Enough rows to keep the products busy, few enough to answer a cancellation soon.
pub const PREFILL_CHUNK: usize = 256;

/// Positions of one prefill step at most: what is left behind a whole chunk is read with it where it is little, since a step reads all
/// weights however few its positions are.
pub const fn longest_step(prefill_chunk: usize) -> usize {
    prefill_chunk + prefill_chunk / 4
}

/// The spliced prompt.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Embeddings (S, D) of text and visual tokens, in the model's dtype.
    pub embeds: Tensor,
    /// How many of the S are visual tokens; only told in errors.
    pub visual_tokens: usize,
}

/// How long and how an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// At most this many new tokens, at least 1. Fewer when the context ends before.
    pub max_new_tokens: usize,
    /// How ids are chosen.
    pub sampling: SamplingOptions,
    /// How the keys and values of past positions are held.
    pub cache: CachePrecision,
    /// Positions of one prefill step, usually [`PREFILL_CHUNK`]. The numbers do not depend on it.
    pub prefill_chunk: usize,
}

impl GenerationOptions {
    /// Options with the usual prefill chunk.
    pub fn new(max_new_tokens: usize, sampling: SamplingOptions) -> Self {
        Self { max_new_tokens, sampling, cache: CachePrecision::Full, prefill_chunk: PREFILL_CHUNK }
    }
}

/// How far the prompt is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefill {
    /// Positions in the cache.
    pub done: usize,
    /// Positions of the prompt.
    pub total: usize,
}

impl Prefill {
    /// Whether the first token can be decoded.
    pub fn is_complete(&self) -> bool {
        self.done == self.total
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The stop rule.
    Stop,
    /// The number of new tokens, or the end of the context.
    Length,
}

/// A new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its id; an end-of-sequence id is given too.
    pub id: u32,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

/// Where the logits of the next token come from.
#[derive(Debug)]
enum Next {
    /// The prompt is not read yet, or a step failed.
    Nothing,
    /// What the last position gave.
    Logits(Vec<f32>),
    /// The best of what the last position gave, chosen where it was computed.
    Best(u32),
    /// A pass over this id, which is not in the cache yet.
    Pass(u32),
}

impl Next {
    /// From logits (1, vocabulary). Of those that are not finite the sampler says which.
    fn of(logits: &Tensor, greedy: bool) -> Result<Self> {
        if greedy && let [Some(best)] = largest(logits)?.as_slice() {
            return Ok(Self::Best(*best));
        }
        Ok(Self::Logits(logits.squeeze(0)?.to_vec1()?))
    }
}

/// Generates the answer to one prompt: [`Generation::prefill_step`] until complete, then
/// [`Generation::decode_step`] until it gives `None`. Generations of one model are independent of each other;
/// [`Generation::read_together`] makes those that step side by side share a pass over the weights.
#[derive(Debug)]
pub struct Generation {
    model: Arc<LanguageModel>,
    /// (1, S, D); freed once read.
    prompt: Option<Tensor>,
    prompt_length: usize,
    prefill_chunk: usize,
    cache: KvCache,
    next: Next,
    sampler: Sampler,
    stop_rule: StopRule,
    new_ids: Vec<u32>,
    max_new_tokens: usize,
    finish: Option<FinishReason>,
}

impl Generation {
    /// Checks everything that can be checked before the first pass.
    ///
    /// [`Error::ContextOverflow`] when the context has no room for the prompt and one new token; when it has
    /// room for some of the wanted new tokens, the answer ends with [`FinishReason::Length`] there.
    /// [`Error::Argument`] for an empty or wrongly shaped prompt and options outside their range.
    pub fn new(
        model: Arc<LanguageModel>,
        prompt: Prompt,
        options: GenerationOptions,
        stop_rule: StopRule,
    ) -> Result<Self> {
        Self::continuing(model, prompt, options, stop_rule, None)
    }

    /// The same with a `cache` that holds the first positions of the prompt already, and not all of them: an earlier generation's
    /// whose prompt and answer began as this prompt does, and that held keys and values in the same way.
    pub fn continuing(
        model: Arc<LanguageModel>,
        prompt: Prompt,
        options: GenerationOptions,
        stop_rule: StopRule,
        cache: Option<KvCache>,
    ) -> Result<Self> {
        let (length, width) = prompt.embeds.dims2()?;
        let context = model.context_length();
        if length == 0 {
            return Err(Error::Argument("the prompt has no tokens".to_string()));
        }
        if width != model.config().hidden_size {
            let expected = model.config().hidden_size;
            return Err(Error::Argument(format!("the prompt is {width} wide, the model is {expected} wide")));
        }
        if options.max_new_tokens == 0 {
            return Err(Error::Argument("the number of new tokens is 0, it must be at least 1".to_string()));
        }
        if options.prefill_chunk == 0 {
            return Err(Error::Argument("the prefill chunk is 0, it must be at least 1".to_string()));
        }
        if length >= context {
            return Err(Error::ContextOverflow {
                prompt: length,
                visual: prompt.visual_tokens,
                new: options.max_new_tokens,
                context,
            });
        }
        let max_new_tokens = options.max_new_tokens.min(context - length);
        // The last new token is never read back. A long answer grows the cache by doubling.
        let mut cache = match cache {
            Some(cache) if cache.len() < length => cache,
            Some(cache) => {
                let held = cache.len();
                return Err(Error::Argument(format!(
                    "a cache of {held} positions leaves nothing of {length} to read"
                )));
            }
            None => model.new_cache_in(options.cache, length + max_new_tokens.min(PREFILL_CHUNK)),
        };
        cache.announce(length);
        Ok(Self {
            sampler: Sampler::new(options.sampling)?,
            prompt: Some(prompt.embeds.unsqueeze(0)?),
            prompt_length: length,
            prefill_chunk: options.prefill_chunk,
            cache,
            next: Next::Nothing,
            stop_rule,
            new_ids: Vec::new(),
            max_new_tokens,
            finish: None,
            model,
        })
    }

    /// Reads the next chunk of the prompt. Does nothing when it is read.
    pub fn prefill_step(&mut self) -> Result<Prefill> {
        if let Some(prompt) = &self.prompt {
            let done = self.cache.len();
            let left = self.prompt_length - done;
            let count = if left <= longest_step(self.prefill_chunk) { left } else { self.prefill_chunk };
            let chunk = prompt.narrow(1, done, count)?;
            let hidden = self.model.forward(&chunk, &mut self.cache, None, &mut Blind)?;
            if done + count == self.prompt_length {
                let last = hidden.i((0, count - 1..))?; // (1, D)
                let logits = self.model.logits(&last, &mut Blind)?;
                self.next = Next::of(&logits, self.sampler.is_greedy())?;
                self.prompt = None;
            }
        }
        let done = self.cache.len().min(self.prompt_length);
        Ok(Prefill { done, total: self.prompt_length })
    }

    /// The next token, or `None` after the last. `text_of` decodes ids without special tokens, for the stop rule.
    ///
    /// [`Error::Argument`] before the prompt is read. Logits that are not finite are an error.
    pub fn decode_step(&mut self, text_of: &dyn Fn(&[u32]) -> String) -> Result<Option<Token>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        if self.prompt.is_some() {
            let (done, total) = (self.cache.len(), self.prompt_length);
            return Err(Error::Argument(format!(
                "{done} of {total} prompt tokens are read, decode after all"
            )));
        }
        if let Next::Pass(_) = self.next {
            Self::read_together(&mut [&mut *self])?;
        }
        let id = match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Best(id) => id,
            Next::Logits(logits) => self.sampler.sample(&logits, &self.new_ids)?,
            Next::Nothing | Next::Pass(_) => {
                return Err(Error::Argument("an earlier step of this generation failed".to_string()));
            }
        };
        self.new_ids.push(id);
        self.next = Next::Pass(id);
        if self.stop_rule.ends(&self.new_ids, text_of) {
            self.finish = Some(FinishReason::Stop);
        } else if self.new_ids.len() == self.max_new_tokens {
            self.finish = Some(FinishReason::Length);
        }
        Ok(Some(Token { id, finish: self.finish }))
    }

    /// Reads the newest token of each of several generations of one model, in one pass over its weights. The next
    /// [`Generation::decode_step`] of each takes what that gave it; without this call it reads its own token alone. Those with
    /// nothing to read, because they ended or begin, are left out.
    ///
    /// # Errors
    /// [`Error::Argument`] for different models. None of the generations of a pass that failed goes on.
    pub fn read_together(generations: &mut [&mut Self]) -> Result<()> {
        let reads = |each: &&mut &mut Self| matches!(each.next, Next::Pass(_)) && each.finish.is_none();
        let mut reading: Vec<_> = generations.iter_mut().filter(reads).collect();
        let Some(model) = reading.first().map(|first| Arc::clone(&first.model)) else { return Ok(()) };
        if reading.iter().any(|each| !Arc::ptr_eq(&each.model, &model)) {
            return Err(Error::Argument(
                "generations of different models cannot be read together".to_string(),
            ));
        }
        let (mut ids, mut caches) = (Vec::new(), Vec::new());
        for each in &mut reading {
            // Left behind as `Nothing` on failure, so that no position is read twice.
            if let Next::Pass(id) = std::mem::replace(&mut each.next, Next::Nothing) {
                ids.push(id);
                caches.push(&mut each.cache);
            }
        }
        let hidden = model.forward_each(&model.embed(&ids)?, &mut caches)?;
        let logits = model.logits(&hidden, &mut Blind)?;
        for (row, each) in reading.into_iter().enumerate() {
            each.next = Next::of(&logits.narrow(0, row, 1)?, each.sampler.is_greedy())?;
        }
        Ok(())
    }

    /// Positions that the cache holds: of the prompt, and behind it of what was generated.
    pub fn cached_positions(&self) -> usize {
        self.cache.len()
    }

    /// Ends it and gives its cache.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }

    /// The ids generated so far.
    pub fn new_ids(&self) -> &[u32] {
        &self.new_ids
    }

    /// Tokens of the prompt, visual ones included.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_length
    }

    /// Why it ended, once it did.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The rule that ends it.
    pub fn stop_rule(&self) -> &StopRule {
        &self.stop_rule
    }
}
