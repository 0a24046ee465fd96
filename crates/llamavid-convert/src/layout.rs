//! Names of a converted folder's files.

/// The language model, where it is quantised.
pub const LANGUAGE_GGUF: &str = "language-model.gguf";
/// The visual encoder, where it is quantised.
pub const VISION_GGUF: &str = "visual-encoder.gguf";
/// Query model, context attention and projector, where they are quantised.
pub const TOKENS_GGUF: &str = "token-generator.gguf";
/// Everything else, in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Which shard holds which weight, where there are several.
pub const INDEX: &str = "model.safetensors.index.json";
/// The configuration.
pub const CONFIG: &str = "config.json";

/// Largest file of weights, unless one weight is larger.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The name of a shard, counted from 0.
pub fn shard(index: usize, count: usize) -> String {
    if count == 1 { WEIGHTS.to_owned() } else { format!("model-{:05}-of-{count:05}.safetensors", index + 1) }
}
