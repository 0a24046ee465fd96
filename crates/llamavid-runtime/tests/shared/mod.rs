//! What tests ask a language model.

use llamavid_models::language_model::{CachePrecision, SamplingOptions};
use llamavid_runtime::{GenerateRequest, SpliceKind};

/// A request about nothing to be seen, whose tokens are the likeliest ones.
pub fn request(prompt: &str, max_new_tokens: usize, cache: CachePrecision) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_owned(),
        visual_tokens: Vec::new(),
        layout: SpliceKind::PerPlaceholder,
        max_new_tokens,
        sampling: SamplingOptions::default(),
        cache,
        keep: false,
        stop: Vec::new(),
    }
}
