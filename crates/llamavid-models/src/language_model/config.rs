//! Sizes and constants of the decoder, read once from `config.json`.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// How positions beyond those of the base model are reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by `factor` before the angles are computed.
    Linear {
        /// At least 1. Stage 3 of the reference trains with 16 (65536 positions over 4096).
        factor: f64,
    },
    /// The base grows with the length of the sequence once it is beyond `trained` positions.
    Dynamic {
        /// At least 1.
        factor: f64,
        /// Positions of the base model.
        trained: usize,
    },
    /// Low frequencies are divided by `factor`, high ones stay, those in between are something in between (LLaMA 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Waves longer than `trained` over this are low.
        low: f64,
        /// Waves shorter than `trained` over this are high. More than `low`.
        high: f64,
        /// Positions of the base model.
        trained: usize,
    },
}

/// Which projections of the attention have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AttentionBias {
    /// None, as in LLaMA and Vicuna.
    #[default]
    None,
    /// Those of queries, keys and values, as in Qwen2.
    QueryKeyValue,
    /// All four (`attention_bias`).
    All,
}

/// Sizes and constants of the decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageModelConfig {
    /// Rows of the embedding table, added tokens included.
    pub vocab_size: usize,
    /// Language width D.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, even.
    pub head_dim: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of positions, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Positions the context holds, rope scaling included: [`LanguageModelConfig::context_length`].
    pub max_positions: usize,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Biases of the attention.
    pub attention_bias: AttentionBias,
    /// Begin-of-sequence id.
    pub bos_id: u32,
    /// Ids that end an answer.
    pub eos_ids: Vec<u32>,
    /// Padding id, if the model names one.
    pub pad_id: Option<u32>,
}

impl LanguageModelConfig {
    /// Reads the language model's keys of a `config.json` in the Hugging Face layout; other keys are not looked at.
    ///
    /// An absent key has the value that transformers' `LlamaConfig` gives it, the sizes must be there.
    /// A missing or impossible value is [`Error::Config`], a valid one that this decoder cannot do (another
    /// activation, biases in the feed-forward layers, other rope scaling) is [`Error::Unsupported`].
    pub fn from_json(config_json: &[u8]) -> Result<Self> {
        let file: Value = serde_json::from_slice(config_json)
            .map_err(|error| impossible("config.json", format!("is not JSON: {error}")))?;
        let hidden_act = optional::<String>(&file, "hidden_act")?.unwrap_or_else(|| "silu".to_string());
        if hidden_act != "silu" {
            return Err(unsupported("hidden_act", format!("`{hidden_act}`; this decoder has `silu`")));
        }
        for (key, what) in [("mlp_bias", "biases there"), ("use_sliding_window", "such windows")] {
            if optional::<bool>(&file, key)? == Some(true) {
                return Err(unsupported(key, format!("true; this decoder has no {what}")));
            }
        }
        let hidden_size: usize = required(&file, "hidden_size")?;
        let heads: usize = required(&file, "num_attention_heads")?;
        let head_dim = match optional(&file, "head_dim")? {
            Some(width) => width,
            None if heads == 0 || hidden_size.is_multiple_of(heads) => hidden_size / heads.max(1),
            None => {
                let problem = format!("{heads} does not divide hidden_size, {hidden_size}");
                return Err(impossible("num_attention_heads", problem));
            }
        };
        let max_position_embeddings = required(&file, "max_position_embeddings")?;
        let rope_scaling = rope_scaling(&file, max_position_embeddings)?;
        // Qwen2's configuration has no key for its biases.
        let qwen = optional::<String>(&file, "model_type")?.is_some_and(|kind| kind.contains("qwen2"));
        let attention_bias = match optional::<bool>(&file, "attention_bias")? {
            Some(true) => AttentionBias::All,
            None if qwen => AttentionBias::QueryKeyValue,
            _ => AttentionBias::None,
        };
        let config = Self {
            vocab_size: required(&file, "vocab_size")?,
            hidden_size,
            intermediate_size: required(&file, "intermediate_size")?,
            layers: required(&file, "num_hidden_layers")?,
            heads,
            kv_heads: optional(&file, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: optional(&file, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: optional(&file, "rope_theta")?.unwrap_or(10_000.0),
            rope_scaling,
            max_positions: Self::context_length(max_position_embeddings, rope_scaling),
            tie_word_embeddings: optional(&file, "tie_word_embeddings")?.unwrap_or(false),
            attention_bias,
            bos_id: optional(&file, "bos_token_id")?.unwrap_or(1),
            eos_ids: match file.get("eos_token_id") {
                Some(Value::Array(_)) => required(&file, "eos_token_id")?,
                _ => vec![optional(&file, "eos_token_id")?.unwrap_or(2)],
            },
            // Older LLaMA checkpoints write -1 for "none".
            pad_id: optional::<i64>(&file, "pad_token_id")?.and_then(|id| u32::try_from(id).ok()),
        };
        config.validate()?;
        Ok(config)
    }

    /// Positions of the context: `max_position_embeddings`, times the factor of linear and dynamic rope scaling.
    ///
    /// `max_position_embeddings` stays that of the base model when stage 3 sets a factor (4096 · 16 = 65536), so
    /// it has to be multiplied. Two other numbers that look like a context length are not one: `max_token` is
    /// training's maximum length, and the 2048 that the reference's loader reports is the same for every model.
    /// The reference enforces no limit: past the context its rotary table grows. Whoever needs the numbers it
    /// gives there (the parity case `image-224/multi-prompt` does) raises `max_positions`.
    pub fn context_length(max_position_embeddings: usize, rope_scaling: Option<RopeScaling>) -> usize {
        match rope_scaling {
            Some(RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. }) => {
                (max_position_embeddings as f64 * factor).round() as usize
            }
            // `max_position_embeddings` of LLaMA 3.1 is the context.
            Some(RopeScaling::Llama3 { .. }) | None => max_position_embeddings,
        }
    }

    /// Checks that the sizes fit each other. [`Error::Config`] names the first key that does not.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_positions),
        ];
        for (key, size) in sizes {
            if size == 0 {
                return Err(impossible(key, "must be at least 1".to_string()));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("{} does not divide num_attention_heads, {}", self.kv_heads, self.heads);
            return Err(impossible("num_key_value_heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            let problem = format!("{} is odd; rotary positions turn pairs", self.head_dim);
            return Err(impossible("head_dim", problem));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            let problem = format!("{} is not a number of at least 0", self.rms_norm_eps);
            return Err(impossible("rms_norm_eps", problem));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(impossible("rope_theta", format!("{} is not a positive number", self.rope_theta)));
        }
        if let Some(scaling) = self.rope_scaling {
            scaling.validate()?;
        }
        if let Some(id) = self.eos_ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            let problem = format!("{id} is outside the vocabulary of {}", self.vocab_size);
            return Err(impossible("eos_token_id", problem));
        }
        Ok(())
    }
}

impl RopeScaling {
    fn validate(self) -> Result<()> {
        let wrong = |problem: String| Err(impossible("rope_scaling", problem));
        let (Self::Linear { factor } | Self::Dynamic { factor, .. } | Self::Llama3 { factor, .. }) = self;
        if !(factor.is_finite() && factor >= 1.0) {
            return wrong(format!("factor {factor} is not a number of at least 1"));
        }
        match self {
            Self::Dynamic { trained: 0, .. } | Self::Llama3 { trained: 0, .. } => {
                wrong("the base model has no positions".to_string())
            }
            Self::Llama3 { low, high, .. } if !(low > 0.0 && high > low && high.is_finite()) => {
                wrong(format!("low_freq_factor {low} and high_freq_factor {high} are no range above 0"))
            }
            _ => Ok(()),
        }
    }
}

/// Transformers renamed `type` to `rope_type`; both are in use.
fn rope_scaling(file: &Value, max_position_embeddings: usize) -> Result<Option<RopeScaling>> {
    let Some(scaling) = file.get("rope_scaling").filter(|scaling| !scaling.is_null()) else {
        return Ok(None);
    };
    let kind = match optional::<String>(scaling, "type")? {
        Some(kind) => kind,
        None => required(scaling, "rope_type")?,
    };
    match kind.as_str() {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: required(scaling, "factor")? })),
        "dynamic" => Ok(Some(RopeScaling::Dynamic {
            factor: required(scaling, "factor")?,
            trained: optional(scaling, "original_max_position_embeddings")?
                .unwrap_or(max_position_embeddings),
        })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: required(scaling, "factor")?,
            low: required(scaling, "low_freq_factor")?,
            high: required(scaling, "high_freq_factor")?,
            trained: required(scaling, "original_max_position_embeddings")?,
        })),
        _ => {
            let known = "this decoder has `linear`, `dynamic` and `llama3`";
            Err(unsupported("rope_scaling", format!("type `{kind}`; {known}")))
        }
    }
}

fn required<T: DeserializeOwned>(file: &Value, key: &str) -> Result<T> {
    optional(file, key)?.ok_or_else(|| impossible(key, "is missing".to_string()))
}

/// `None` for a key that is absent or null.
fn optional<T: DeserializeOwned>(file: &Value, key: &str) -> Result<Option<T>> {
    let value = file.get(key).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| impossible(key, error.to_string()))
}

fn impossible(key: &str, problem: String) -> Error {
    Error::Config { key: key.to_string(), problem }
}

fn unsupported(key: &str, problem: String) -> Error {
    Error::Unsupported { key: key.to_string(), problem }
}
