//! The language model as llama.cpp has it: names, order of rows, formats, metadata.
//!
//! Reference: llama.cpp's `convert_hf_to_gguf.py` (class `LlamaModel`), its `src/llama-quant.cpp`, and `gguf-py`'s names.

use candle_core::quantized::GgmlDType;
use candle_core::{Result as TensorResult, Tensor};
use llamavid_models::language_model::{LanguageModelConfig, RopeScaling};
use llamavid_runtime::{Error, ErrorCode, Result};
use llamavid_weights::writer::GgufValue;
use sentencepiece_model::{SentencePieceModel, Type};
use serde_json::{Map, Value};

use crate::formats::Quantisation;

/// Version of ggml's block formats.
pub const QUANTISATION_VERSION: u32 = 2;
/// The score of a token that is no piece.
const ADDED_SCORE: f32 = -1000.0;

/// llama.cpp's name of a weight of ours.
pub fn name(ours: &str) -> Option<String> {
    Some(match ours {
        "embed_tokens.weight" => "token_embd.weight".to_owned(),
        "norm.weight" => "output_norm.weight".to_owned(),
        "lm_head.weight" => "output.weight".to_owned(),
        _ => {
            let (layer, rest) = ours.strip_prefix("layers.")?.split_once('.')?;
            let (module, kind) = rest.rsplit_once('.')?;
            let module = match module {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            format!("blk.{layer}.{module}.{kind}")
        }
    })
}

/// The rows of a weight in llama.cpp's order: it turns neighbours where we turn halves, so the rows of each query and key
/// head change places. Others stay as they are.
///
/// # Errors
/// A shape that has not that many heads.
pub fn ordered(ours: &str, tensor: Tensor, config: &LanguageModelConfig) -> TensorResult<Tensor> {
    let heads = match ours.rsplit('.').nth(1) {
        Some("q_proj") => config.heads,
        Some("k_proj") => config.kv_heads,
        _ => return Ok(tensor),
    };
    let shape = tensor.dims().to_vec();
    tensor.reshape((heads, 2, config.head_dim / 2, ()))?.transpose(1, 2)?.contiguous()?.reshape(shape)
}

/// The format of a weight, as llama.cpp chooses it for the usual mix of this quantisation: the output's and some
/// values' and downward matrices are finer, vectors stay numbers.
pub fn format(ours: &str, shape: &[usize], layers: usize, wanted: Quantisation) -> GgmlDType {
    let &[_rows, columns] = shape else { return GgmlDType::F32 };
    let fine = match wanted {
        Quantisation::Q8_0 => GgmlDType::Q8_0,
        _ => GgmlDType::Q6K,
    };
    let mut parts = ours.split('.');
    let format = match (parts.next(), parts.next().and_then(|layer| layer.parse::<usize>().ok())) {
        (Some("lm_head"), _) => fine,
        (Some("layers"), Some(layer))
            if matches!(wanted, Quantisation::Q4K | Quantisation::Q5K)
                && (ours.contains("v_proj") || ours.contains("down_proj"))
                && deserves_more(layer, layers) =>
        {
            fine
        }
        _ => wanted.format(),
    };
    crate::formats::fitting(format, columns)
}

/// llama.cpp's rule: the first and last eighth of the layers, and every third between.
fn deserves_more(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Everything that llama.cpp wants to know beside the weights.
///
/// # Errors
/// `MODEL_INVALID` for a tokenizer that does not fit the vocabulary, `MODEL_UNSUPPORTED` for positions that llama.cpp
/// scales in another way.
pub fn metadata(
    config: &LanguageModelConfig,
    name: &str,
    file_type: Quantisation,
    tokenizer: &Tokenizer,
) -> Result<Vec<(String, GgufValue)>> {
    let number = |value: usize| {
        u32::try_from(value).map(GgufValue::U32).map_err(|_| {
            Error::new(ErrorCode::ModelInvalid, format!("config.json: {value} is larger than a size can be"))
        })
    };
    let positions = match config.rope_scaling {
        Some(RopeScaling::Linear { factor }) => (config.max_positions as f64 / factor).round() as usize,
        None => config.max_positions,
        Some(other) => {
            let message = format!("config.json: rope_scaling: {other:?} cannot be written to a GGUF file");
            return Err(Error::new(ErrorCode::ModelUnsupported, message)
                .with_hint("Convert without --quantize, and quantise while loading: --load 4bit."));
        }
    };
    let mut metadata = vec![
        ("general.architecture".to_owned(), GgufValue::Text("llama".into())),
        ("general.name".to_owned(), GgufValue::Text(name.into())),
        ("general.quantization_version".to_owned(), GgufValue::U32(QUANTISATION_VERSION)),
        ("general.file_type".to_owned(), GgufValue::U32(file_type.file_type())),
    ];
    let mut say = |key: &str, value: GgufValue| metadata.push((format!("llama.{key}"), value));
    say("vocab_size", number(config.vocab_size)?);
    say("context_length", number(positions)?);
    say("embedding_length", number(config.hidden_size)?);
    say("block_count", number(config.layers)?);
    say("feed_forward_length", number(config.intermediate_size)?);
    say("attention.head_count", number(config.heads)?);
    say("attention.head_count_kv", number(config.kv_heads)?);
    say("attention.key_length", number(config.head_dim)?);
    say("attention.value_length", number(config.head_dim)?);
    say("attention.layer_norm_rms_epsilon", GgufValue::F32(config.rms_norm_eps as f32));
    say("rope.dimension_count", number(config.head_dim)?);
    say("rope.freq_base", GgufValue::F32(config.rope_theta as f32));
    if let Some(RopeScaling::Linear { factor }) = config.rope_scaling {
        say("rope.scaling.type", GgufValue::Text("linear".into()));
        say("rope.scaling.factor", GgufValue::F32(factor as f32));
    }
    metadata.extend(tokenizer.metadata(config)?);
    Ok(metadata)
}

/// What the tokenizer's files say.
#[derive(Debug)]
pub struct Tokenizer {
    pieces: SentencePieceModel,
    /// Tokens behind the pieces, in order.
    added: Vec<String>,
    unknown: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.model` and `added_tokens.json`, which the tokenizer itself has found good.
    ///
    /// # Errors
    /// `MODEL_INVALID` for files that are damaged.
    pub fn read(tokenizer_model: &[u8], added_tokens: Option<&[u8]>) -> Result<Self> {
        let damaged = |problem: String| Error::new(ErrorCode::ModelInvalid, problem);
        let pieces = SentencePieceModel::from_slice(tokenizer_model)
            .map_err(|error| damaged(format!("tokenizer.model: {error}")))?;
        let added: Map<String, Value> = match added_tokens {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| damaged(format!("added_tokens.json: {error}")))?,
            None => Map::new(),
        };
        let count = pieces.pieces().len() as u64;
        let mut added: Vec<(u64, String)> = added
            .into_iter()
            .filter_map(|(token, id)| Some((id.as_u64().filter(|id| *id >= count)?, token)))
            .collect();
        added.sort();
        let unknown = pieces.pieces().iter().position(|piece| piece.r#type() == Type::Unknown).unwrap_or(0);
        Ok(Self {
            added: added.into_iter().map(|(_, token)| token).collect(),
            unknown: unknown as u32,
            pieces,
        })
    }

    fn metadata(&self, config: &LanguageModelConfig) -> Result<Vec<(String, GgufValue)>> {
        const NORMAL: i32 = 1;
        const UNKNOWN: i32 = 2;
        const CONTROL: i32 = 3;
        const USER_DEFINED: i32 = 4;
        const UNUSED: i32 = 5;
        const BYTE: i32 = 6;
        let (mut tokens, mut scores, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        let mut push = |text: String, score: f32, kind: i32| {
            tokens.push(text);
            scores.push(score);
            kinds.push(kind);
        };
        for piece in self.pieces.pieces() {
            let kind = match piece.r#type() {
                Type::Normal => NORMAL,
                Type::Unknown => UNKNOWN,
                Type::Control => CONTROL,
                Type::UserDefined => USER_DEFINED,
                Type::Unused => UNUSED,
                Type::Byte => BYTE,
            };
            push(piece.piece().to_owned(), piece.score(), kind);
        }
        for token in &self.added {
            push(token.clone(), ADDED_SCORE, USER_DEFINED);
        }
        let known = self.pieces.pieces().len() + self.added.len();
        if known > config.vocab_size {
            let rows = config.vocab_size;
            let message = format!("tokenizer.model has {known} tokens, the language model {rows}");
            return Err(Error::new(ErrorCode::ModelInvalid, message)
                .with_hint("Give the tokenizer that belongs to this language model."));
        }
        for unused in known..config.vocab_size {
            push(format!("[PAD{unused}]"), ADDED_SCORE, UNUSED);
        }
        let mut metadata = vec![
            ("model", GgufValue::Text("llama".into())),
            ("pre", GgufValue::Text("default".into())),
            ("tokens", GgufValue::Texts(tokens)),
            ("scores", GgufValue::F32s(scores)),
            ("token_type", GgufValue::I32s(kinds)),
            ("bos_token_id", GgufValue::U32(config.bos_id)),
            ("unknown_token_id", GgufValue::U32(self.unknown)),
            ("add_bos_token", GgufValue::Bool(true)),
            ("add_eos_token", GgufValue::Bool(false)),
        ];
        metadata.extend(config.eos_ids.first().map(|id| ("eos_token_id", GgufValue::U32(*id))));
        metadata.extend(config.pad_id.map(|id| ("padding_token_id", GgufValue::U32(id))));
        let space = self.pieces.normalizer().is_none_or(|normalizer| normalizer.add_dummy_prefix());
        metadata.push(("add_space_prefix", GgufValue::Bool(space)));
        Ok(metadata.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
    }
}
