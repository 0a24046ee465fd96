//! The LLaMA decoder: forward pass, KV cache, sampling, stop rules.
//!
//! Reference: `LlamaForCausalLM` of transformers 4.31 (Vicuna v1.5 is LLaMA-2), below upstream's
//! `LlavaLlamaAttForCausalLM`. The decoder reads embeddings, not ids: visual tokens are spliced in before it.
//! Letters: B batch, S new positions, T all positions (cached and new), D language width.

mod adapted_linear;
mod attention;
mod config;
mod generation;
mod kv_cache;
mod layer;
mod llama;
mod lora;
mod placement;
mod rotary;
mod sampling;
mod share;
mod stop_rule;

pub use attention::{QUERY_BLOCK, SCORES_AT_ONCE};
pub use config::{AttentionBias, LanguageModelConfig, RopeScaling};
pub use generation::{
    FinishReason, Generation, GenerationOptions, PREFILL_CHUNK, Prefill, Prompt, Token, longest_step,
};
pub use kv_cache::{CachePrecision, KvCache};
pub use layer::Pass;
pub use llama::LanguageModel;
pub use lora::{LoraConfig, LoraTarget};
pub use placement::{Placement, Stage};
pub use sampling::{Sampler, SamplingOptions};
pub use stop_rule::{Keyword, StopRule};
