//! Sizes and constants of the decoder, read once from `config.json`.

use serde::Deserialize;

use crate::{Error, Result};

/// How positions beyond those of the base model are reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by `factor` before the angles are computed.
    Linear {
        /// At least 1. Stage 3 of the reference trains with 16 (65536 positions over 4096).
        factor: f64,
    },
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
    /// A missing or impossible value is [`Error::Config`], a valid one that this decoder cannot do (another
    /// activation, biases, dynamic rope scaling) is [`Error::Unsupported`].
    pub fn from_json(config_json: &[u8]) -> Result<Self> {
        let file: ConfigFile = serde_json::from_slice(config_json)
            .map_err(|error| Error::Config { key: "config.json".to_string(), problem: error.to_string() })?;
        let rope_scaling = file.rope_scaling()?;
        if file.hidden_act != "silu" {
            return Err(Error::Unsupported {
                key: "hidden_act".to_string(),
                problem: format!("`{}`; this decoder has `silu`", file.hidden_act),
            });
        }
        for (key, biases) in [("attention_bias", file.attention_bias), ("mlp_bias", file.mlp_bias)] {
            if biases {
                return Err(Error::Unsupported {
                    key: key.to_string(),
                    problem: "true; this decoder has no biases".to_string(),
                });
            }
        }
        let config = Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            kv_heads: file.num_key_value_heads.unwrap_or(file.num_attention_heads),
            head_dim: match file.head_dim {
                Some(width) => width,
                None if file.num_attention_heads == 0 => 0,
                None => file.hidden_size / file.num_attention_heads,
            },
            rms_norm_eps: file.rms_norm_eps,
            rope_theta: file.rope_theta,
            rope_scaling,
            max_positions: Self::context_length(file.max_position_embeddings, rope_scaling),
            tie_word_embeddings: file.tie_word_embeddings,
            bos_id: file.bos_token_id,
            eos_ids: match file.eos_token_id {
                OneOrMore::One(id) => vec![id],
                OneOrMore::More(ids) => ids,
            },
            // Older LLaMA checkpoints write -1 for "none".
            pad_id: file.pad_token_id.and_then(|id| u32::try_from(id).ok()),
        };
        config.validate()?;
        Ok(config)
    }

    /// Positions of the context: `max_position_embeddings`, times the factor of linear rope scaling.
    ///
    /// `max_position_embeddings` stays that of the base model when stage 3 sets a factor (4096 · 16 = 65536), so
    /// it has to be multiplied. Two other numbers that look like a context length are not one: `max_token` is
    /// the length to which training samples were cut, and the 2048 that the reference's loader reports for every
    /// model is its constant for configurations without `max_sequence_length`.
    /// The reference itself enforces no limit: past the context its rotary table grows and the answers decay.
    pub fn context_length(max_position_embeddings: usize, rope_scaling: Option<RopeScaling>) -> usize {
        match rope_scaling {
            Some(RopeScaling::Linear { factor }) => {
                (max_position_embeddings as f64 * factor).round() as usize
            }
            None => max_position_embeddings,
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
            let problem = format!("{} is not a small positive number", self.rms_norm_eps);
            return Err(impossible("rms_norm_eps", problem));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(impossible("rope_theta", format!("{} is not a positive number", self.rope_theta)));
        }
        if let Some(RopeScaling::Linear { factor }) = self.rope_scaling
            && !(factor.is_finite() && factor >= 1.0)
        {
            return Err(impossible("rope_scaling.factor", format!("{factor} is not a number of at least 1")));
        }
        if let Some(id) = self.eos_ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            let problem = format!("{id} is outside the vocabulary of {}", self.vocab_size);
            return Err(impossible("eos_token_id", problem));
        }
        Ok(())
    }
}

fn impossible(key: &str, problem: String) -> Error {
    Error::Config { key: key.to_string(), problem }
}

/// `config.json` as written; defaults are those of transformers' `LlamaConfig`.
#[derive(Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    #[serde(default = "default_rms_norm_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    rope_scaling: Option<RopeScalingFile>,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_bos_token_id")]
    bos_token_id: u32,
    #[serde(default = "default_eos_token_id")]
    eos_token_id: OneOrMore,
    pad_token_id: Option<i64>,
}

/// Transformers renamed `type` to `rope_type`; both are in use.
#[derive(Deserialize)]
struct RopeScalingFile {
    #[serde(alias = "rope_type")]
    r#type: String,
    factor: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl ConfigFile {
    fn rope_scaling(&self) -> Result<Option<RopeScaling>> {
        let Some(scaling) = &self.rope_scaling else { return Ok(None) };
        match (scaling.r#type.as_str(), scaling.factor) {
            ("default", _) => Ok(None),
            ("linear", Some(factor)) if factor.is_finite() && factor >= 1.0 => {
                Ok(Some(RopeScaling::Linear { factor }))
            }
            ("linear", factor) => {
                Err(impossible("rope_scaling.factor", format!("{factor:?} is not a number of at least 1")))
            }
            (kind, _) => Err(Error::Unsupported {
                key: "rope_scaling.type".to_string(),
                problem: format!("`{kind}`; this decoder has `linear`"),
            }),
        }
    }
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_rope_theta() -> f64 {
    10_000.0
}

fn default_hidden_act() -> String {
    "silu".to_string()
}

fn default_bos_token_id() -> u32 {
    1
}

fn default_eos_token_id() -> OneOrMore {
    OneOrMore::One(2)
}
