//! The language model as llama.cpp has it: names, order of rows, formats, metadata.
//!
//! Reference: llama.cpp's `convert_hf_to_gguf.py` (class `LlamaModel`), its `src/llama-quant.cpp`, and `gguf-py`'s names.

use std::collections::BTreeMap;

use candle_core::{Result as TensorResult, Tensor};
use llamavid_models::language_model::{LanguageModelConfig, RopeScaling};
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_runtime::{Error, ErrorCode, Result, SPLIT_RULES, TokenizerFiles, token_kind};
use llamavid_weights::Quantisation;
use llamavid_weights::writer::GgufValue;
use sentencepiece_model::{SentencePieceModel, Type};
use serde_json::{Map, Value};

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

/// Everything that llama.cpp wants to know beside the weights.
///
/// # Errors
/// `MODEL_INVALID` for a tokenizer that does not fit the vocabulary, `MODEL_UNSUPPORTED` for one that llama.cpp has no
/// name for.
pub fn metadata(
    config: &LanguageModelConfig,
    name: &str,
    file_type: Quantisation,
    tokenizer: &TokenizerFiles,
) -> Result<Vec<(String, GgufValue)>> {
    let number = |value: usize| {
        u32::try_from(value).map(GgufValue::U32).map_err(|_| {
            Error::new(ErrorCode::ModelInvalid, format!("config.json: {value} is larger than a size can be"))
        })
    };
    let positions = match config.rope_scaling {
        Some(RopeScaling::Linear { factor }) => (config.max_positions as f64 / factor).round() as usize,
        // llama.cpp has no such rule, which changes nothing up to the positions of training.
        Some(RopeScaling::Dynamic { trained, .. }) => trained,
        // Its divisors are a tensor.
        Some(RopeScaling::Llama3 { .. }) | None => config.max_positions,
    };
    let mut metadata = vec![
        ("general.architecture".to_owned(), GgufValue::Text("llama".into())),
        ("general.name".to_owned(), GgufValue::Text(name.into())),
        ("general.quantization_version".to_owned(), GgufValue::U32(QUANTISATION_VERSION)),
        ("general.file_type".to_owned(), GgufValue::U32(file_type_number(file_type))),
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
    let vocabulary = match tokenizer.get("tokenizer.json") {
        Some(file) => byte_pairs(file, &added_tokens(tokenizer)?)?,
        None => pieces(tokenizer)?,
    };
    metadata.extend(vocabulary.metadata(config, &tokenizer.read()?)?);
    Ok(metadata)
}

/// llama.cpp's number of the usual mix of formats.
fn file_type_number(quantisation: Quantisation) -> u32 {
    match quantisation {
        Quantisation::Q4_0 => 2,
        Quantisation::Q8_0 => 7,
        Quantisation::Q4K => 15,
        Quantisation::Q5K => 17,
        Quantisation::Q6K => 18,
    }
}

/// What llama.cpp wants to know of a tokenizer.
struct Vocabulary {
    /// Text, score and kind of each id.
    tokens: Vec<(String, f32, i32)>,
    /// What its kind alone has.
    special: Vec<(&'static str, GgufValue)>,
}

/// Those that a training added, by their ids.
fn added_tokens(files: &TokenizerFiles) -> Result<BTreeMap<u64, String>> {
    let Some(bytes) = files.get("added_tokens.json") else { return Ok(BTreeMap::new()) };
    let added: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| damaged(format!("added_tokens.json: {error}")))?;
    Ok(added.into_iter().filter_map(|(token, id)| Some((id.as_u64()?, token))).collect())
}

/// Those of `tokenizer.model` and the tokens behind them, which the tokenizer itself has found good.
fn pieces(files: &TokenizerFiles) -> Result<Vocabulary> {
    let model = SentencePieceModel::from_slice(files.get("tokenizer.model").unwrap_or_default())
        .map_err(|error| damaged(format!("tokenizer.model: {error}")))?;
    let mut tokens: Vec<_> = model
        .pieces()
        .iter()
        .map(|piece| {
            let kind = match piece.r#type() {
                Type::Normal => token_kind::NORMAL,
                Type::Unknown => token_kind::UNKNOWN,
                Type::Control => token_kind::CONTROL,
                Type::UserDefined => token_kind::USER_DEFINED,
                Type::Unused => token_kind::UNUSED,
                Type::Byte => token_kind::BYTE,
            };
            (piece.piece().to_owned(), piece.score(), kind)
        })
        .collect();
    let unknown = tokens.iter().position(|(_, _, kind)| *kind == token_kind::UNKNOWN).unwrap_or(0);
    let space = model.normalizer().is_none_or(|normalizer| normalizer.add_dummy_prefix());
    let added = added_tokens(files)?.split_off(&(tokens.len() as u64));
    tokens.extend(added.into_values().map(|token| (token, ADDED_SCORE, token_kind::USER_DEFINED)));
    let special = vec![
        ("model", GgufValue::Text("llama".into())),
        ("pre", GgufValue::Text("default".into())),
        ("unknown_token_id", GgufValue::U32(unknown as u32)),
        ("add_space_prefix", GgufValue::Bool(space)),
    ];
    Ok(Vocabulary { tokens, special })
}

/// Those of `tokenizer.json` and the tokens behind them, which the tokenizer itself has found good.
fn byte_pairs(file: &[u8], added: &BTreeMap<u64, String>) -> Result<Vocabulary> {
    let file: Value =
        serde_json::from_slice(file).map_err(|error| damaged(format!("tokenizer.json: {error}")))?;
    let pattern = pattern(&file["pre_tokenizer"]).unwrap_or_default();
    let Some(rule) = SPLIT_RULES.iter().find(|rule| rule.pattern == pattern) else {
        let message = format!("tokenizer.json splits texts as {pattern:?}, which has no name in a GGUF file");
        return Err(Error::new(ErrorCode::ModelUnsupported, message)
            .with_hint("Convert without --quantize, and quantise while loading: --load 4bit."));
    };
    let mut by_id: BTreeMap<u64, (&str, i32)> =
        added.iter().map(|(id, token)| (*id, (token.as_str(), token_kind::USER_DEFINED))).collect();
    for (token, id) in file["model"]["vocab"].as_object().into_iter().flatten() {
        by_id.extend(id.as_u64().map(|id| (id, (token.as_str(), token_kind::NORMAL))));
    }
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let special = token["special"] == true;
        let kind = if special { token_kind::CONTROL } else { token_kind::USER_DEFINED };
        by_id
            .extend(token["id"].as_u64().zip(token["content"].as_str()).map(|(id, text)| (id, (text, kind))));
    }
    let mut tokens = Vec::with_capacity(by_id.len());
    for (id, (text, kind)) in by_id {
        if id != tokens.len() as u64 {
            return Err(damaged(format!("tokenizer.json: no token has id {}", tokens.len())));
        }
        tokens.push((text.to_owned(), 0.0, kind));
    }
    // Older files write a merge as one text, newer ones as two.
    let merge = |merge: &Value| match merge {
        Value::Array(pair) => Some(pair.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(" ")),
        text => text.as_str().map(str::to_owned),
    };
    let merges = file["model"]["merges"].as_array().into_iter().flatten().map(merge);
    let merges: Option<Vec<String>> = merges.collect();
    let special = vec![
        ("model", GgufValue::Text("gpt2".into())),
        ("pre", GgufValue::Text(rule.name.into())),
        ("merges", GgufValue::Texts(merges.ok_or_else(|| damaged("tokenizer.json: merges".to_owned()))?)),
    ];
    Ok(Vocabulary { tokens, special })
}

/// The expression by which texts are split, wherever it stands.
fn pattern(pre_tokenizer: &Value) -> Option<&str> {
    let own = pre_tokenizer["pattern"]["Regex"].as_str();
    own.or_else(|| pre_tokenizer["pretokenizers"].as_array()?.iter().find_map(pattern))
}

fn damaged(problem: String) -> Error {
    Error::new(ErrorCode::ModelInvalid, problem)
}

impl Vocabulary {
    fn metadata(
        self,
        config: &LanguageModelConfig,
        tokenizer: &LlamaTokenizer,
    ) -> Result<Vec<(String, GgufValue)>> {
        let (mut tokens, rows) = (self.tokens, config.vocab_size);
        let known = tokens.len();
        if known > rows {
            let message = format!("the tokenizer has {known} tokens, the language model {rows}");
            return Err(damaged(message).with_hint("Give the tokenizer that belongs to this language model."));
        }
        tokens.extend((known..rows).map(|id| (format!("[PAD{id}]"), ADDED_SCORE, token_kind::UNUSED)));
        let scores = tokens.iter().map(|(_, score, _)| *score).collect();
        let kinds = tokens.iter().map(|(_, _, kind)| *kind).collect();
        let texts = tokens.into_iter().map(|(text, ..)| text).collect();
        let mut metadata = self.special;
        metadata.extend([
            ("tokens", GgufValue::Texts(texts)),
            ("scores", GgufValue::F32s(scores)),
            ("token_type", GgufValue::I32s(kinds)),
            // Some have a token of that name that no text begins with.
            ("bos_token_id", GgufValue::U32(tokenizer.bos_id().unwrap_or(config.bos_id))),
            ("add_bos_token", GgufValue::Bool(tokenizer.bos_id().is_some())),
            ("eos_token_id", GgufValue::U32(tokenizer.eos_id())),
            ("add_eos_token", GgufValue::Bool(false)),
        ]);
        metadata.extend(config.pad_id.map(|id| ("padding_token_id", GgufValue::U32(id))));
        Ok(metadata.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
    }
}
