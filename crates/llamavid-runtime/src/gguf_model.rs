//! A language model in one GGUF file of llama.cpp's: configuration and tokenizer from what the file says of itself.

use std::path::Path;

use llamavid_models::language_model::LanguageModelConfig;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_weights::Checkpoint;
use llamavid_weights::gguf::{GgufFile, Value};
use serde_json::{Map, Value as Json, json};

use crate::model_folder::in_file;
use crate::{Error, ErrorCode, Result};

/// What a file holds, its weights mapped.
pub(crate) struct GgufModel {
    pub(crate) config: LanguageModelConfig,
    pub(crate) tokenizer: LlamaTokenizer,
    pub(crate) checkpoint: Checkpoint,
}

impl GgufModel {
    /// Opens a file.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a damaged file, `MODEL_UNSUPPORTED` for another architecture or another kind of tokenizer.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let tokenizer = tokenizer(&file)?;
        let described = describe(&file);
        let checkpoint = Checkpoint::from_gguf(file)?;
        let described = with_shapes(described, &checkpoint)?;
        let config = LanguageModelConfig::from_json(described.to_string().as_bytes())
            .map_err(|error| in_file(path, error))?;
        Ok(Self { config, tokenizer, checkpoint })
    }
}

/// The file's sizes by the names that `config.json` has for them.
fn describe(file: &GgufFile) -> Map<String, Json> {
    let architecture = file.architecture();
    let mut config = Map::from_iter([("model_type".to_owned(), json!(architecture))]);
    for (theirs, ours) in [
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("block_count", "num_hidden_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("rope.freq_base", "rope_theta"),
        ("context_length", "max_position_embeddings"),
    ] {
        let value = match file.metadata().get(&format!("{architecture}.{theirs}")) {
            Some(Value::Whole(value)) => u64::try_from(*value).ok().map(Json::from),
            // Written in 32 bits: 1e-5 of a file is the f32 next to it, and not the f64.
            Some(Value::Real(value)) => Some(json!((*value as f32).to_string().parse().unwrap_or(*value))),
            _ => None,
        };
        config.extend(value.map(|value| (ours.to_owned(), value)));
    }
    if let Some(kind) = file.text(&format!("{architecture}.rope.scaling.type")).filter(|kind| *kind != "none")
    {
        let factor = file.real(&format!("{architecture}.rope.scaling.factor"));
        config.insert("rope_scaling".to_owned(), json!({ "type": kind, "factor": factor }));
    }
    for (theirs, ours) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        let id = file.whole(&format!("tokenizer.ggml.{theirs}_token_id"));
        config.extend(id.map(|id| (ours.to_owned(), Json::from(id))));
    }
    config
}

/// The same with what only the tensors tell.
fn with_shapes(mut config: Map<String, Json>, checkpoint: &Checkpoint) -> Result<Json> {
    let rows = checkpoint.shape("model.embed_tokens.weight")?.first().copied();
    config.insert("vocab_size".to_owned(), json!(rows));
    config.insert("tie_word_embeddings".to_owned(), json!(!checkpoint.contains("lm_head.weight")));
    let output_bias = checkpoint.contains("model.layers.0.self_attn.o_proj.bias");
    config.extend(output_bias.then(|| ("attention_bias".to_owned(), json!(true))));
    Ok(Json::Object(config))
}

fn tokenizer(file: &GgufFile) -> Result<LlamaTokenizer> {
    let invalid = |problem: String| {
        Error::new(ErrorCode::ModelInvalid, format!("{}: {problem}", file.path().display()))
            .with_hint("Download the file again, or take one with its tokenizer in it.")
    };
    match file.text("tokenizer.ggml.model") {
        Some("llama") => {}
        None => return Err(invalid("no tokenizer (`tokenizer.ggml.model`)".to_owned())),
        Some(other) => {
            let message =
                format!("{}: a tokenizer of kind `{other}`; `llama` is read", file.path().display());
            return Err(Error::new(ErrorCode::ModelUnsupported, message)
                .with_hint("Take a model with LLaMA's tokenizer, such as Vicuna or LLaMA 2."));
        }
    }
    let list = |name: &str| {
        let key = format!("tokenizer.ggml.{name}");
        file.list(&key).ok_or_else(|| invalid(format!("no list `{key}`")))
    };
    let (texts, scores, kinds) = (list("tokens")?, list("scores")?, list("token_type")?);
    if texts.len() != scores.len() || texts.len() != kinds.len() {
        return Err(invalid("tokens, scores and types of tokens are of different numbers".to_owned()));
    }
    let token = |((text, score), kind): ((&Value, &Value), &Value)| match (text, score, kind) {
        (Value::Text(text), Value::Real(score), Value::Whole(kind)) => {
            Some((text.clone(), *score as f32, u32::try_from(*kind).ok()?))
        }
        _ => None,
    };
    let tokens: Option<Vec<_>> = texts.iter().zip(scores).zip(kinds).map(token).collect();
    let tokens = tokens.ok_or_else(|| invalid("tokens that are no texts with scores".to_owned()))?;
    let roles =
        [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")];
    let special: Vec<(&str, u64)> = roles
        .iter()
        .filter_map(|(theirs, ours)| Some((*ours, file.whole(&format!("tokenizer.ggml.{theirs}_token_id"))?)))
        .collect();
    let space = file.metadata().get("tokenizer.ggml.add_space_prefix") != Some(&Value::Flag(false));
    LlamaTokenizer::from_vocabulary(&tokens, space, &special).map_err(|error| in_file(file.path(), error))
}
