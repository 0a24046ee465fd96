//! A language model in one GGUF file of llama.cpp's: configuration and tokenizer from what the file says of itself.

use std::path::Path;

use candle_core::{DType, Device};
use llamavid_models::language_model::{LanguageModelConfig, RopeScaling};
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_weights::Checkpoint;
use llamavid_weights::gguf::{GgufFile, Value};
use llamavid_weights::key_table::ROPE_DIVISORS;
use serde_json::{Map, Value as Json, json};

use crate::model_folder::in_file;
use crate::{Error, ErrorCode, Result, TokenizerFiles};

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
        let tokenizer = TokenizerFiles::of_gguf(&file)?.read()?;
        let described = describe(&file);
        let checkpoint = Checkpoint::from_gguf(file)?;
        let described = with_shapes(described, &checkpoint)?;
        let config = LanguageModelConfig::from_json(described.to_string().as_bytes())
            .map_err(|error| in_file(path, error))?;
        let config = with_divisors(config, &checkpoint)?;
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

/// The same configuration, whose rotary frequencies are divided as the file's own list of divisors says. LLaMA 3.1 to
/// 3.3 differ in one number of their rule, which the list shows; lists of other rules are refused.
fn with_divisors(config: LanguageModelConfig, checkpoint: &Checkpoint) -> Result<LanguageModelConfig> {
    let Some(divisors) = divisors(checkpoint)? else { return Ok(config) };
    // The lowest frequencies are divided by the whole factor.
    let factor = divisors.iter().fold(1f32, |largest, divisor| largest.max(*divisor)).into();
    let scaling = RopeScaling::Llama3 { factor, low: 1., high: 4., trained: 8192 };
    let config = LanguageModelConfig { rope_scaling: Some(scaling), ..config };
    expect_divisors(checkpoint, &config)?;
    Ok(config)
}

fn divisors(checkpoint: &Checkpoint) -> Result<Option<Vec<f32>>> {
    if !checkpoint.contains(ROPE_DIVISORS) {
        return Ok(None);
    }
    let values = checkpoint.read(ROPE_DIVISORS, &Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(Some(values.flatten_all()?.to_vec1()?))
}

/// Checks that a file that lists divisors of the rotary frequencies means those of the configuration.
///
/// # Errors
/// `MODEL_UNSUPPORTED` where it does not.
pub(crate) fn expect_divisors(checkpoint: &Checkpoint, config: &LanguageModelConfig) -> Result<()> {
    let Some(found) = divisors(checkpoint)? else { return Ok(()) };
    let expected = config.frequency_divisors().unwrap_or_default();
    let close = |(found, expected): (&f32, &f32)| (found / expected - 1.).abs() < 1e-3;
    if found.len() == expected.len() && found.iter().zip(&expected).all(close) {
        return Ok(());
    }
    let file = checkpoint.place(ROPE_DIVISORS).0;
    let message = format!("{}: `{ROPE_DIVISORS}` turns positions as no known rule does", file.display());
    Err(Error::new(ErrorCode::ModelUnsupported, message)
        .with_hint("Its config.json has another `rope_scaling`, or it is none of LLaMA 3.1 to 3.3."))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;

    use candle_core::{D, Tensor};
    use llamavid_models::language_model::LanguageModel;
    use llamavid_models::observer::Blind;
    use llamavid_weights::key_table::LANGUAGE;
    use llamavid_weights::writer::{GgufTensor, GgufValue, GgufWriter};
    use llamavid_weights::{BlockFormat, Loader};

    use super::*;
    use crate::model_folder::build;

    fn config() -> LanguageModelConfig {
        let json = br#"{"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1,
            "vocab_size": 8, "max_position_embeddings": 512, "rope_theta": 500000.0}"#;
        LanguageModelConfig::from_json(json).unwrap()
    }

    /// A file that has nothing but divisors.
    fn with(divisors: &[f32]) -> Checkpoint {
        let metadata = [
            ("general.architecture".to_owned(), GgufValue::Text("llama".into())),
            ("llama.attention.key_length".to_owned(), GgufValue::U32(16)),
        ];
        let tensor = GgufTensor::new(ROPE_DIVISORS, [divisors.len()], BlockFormat::F32);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut writer = GgufWriter::new(File::create(&path).unwrap(), &metadata, vec![tensor]).unwrap();
        writer.write(&Tensor::new(divisors, &Device::Cpu).unwrap()).unwrap();
        writer.finish().unwrap();
        Checkpoint::from_gguf(GgufFile::open(&path).unwrap()).unwrap()
    }

    #[test]
    fn the_rule_behind_divisors_is_found() {
        for factor in [8., 32.] {
            let scaling = RopeScaling::Llama3 { factor, low: 1., high: 4., trained: 8192 };
            let scaled = LanguageModelConfig { rope_scaling: Some(scaling), ..config() };
            let file = with(&scaled.frequency_divisors().unwrap());
            assert_eq!(with_divisors(config(), &file).unwrap(), scaled);
            expect_divisors(&file, &scaled).unwrap();
            assert_eq!(expect_divisors(&file, &config()).unwrap_err().code, ErrorCode::ModelUnsupported);
        }
    }

    #[test]
    fn divisors_of_another_rule_are_refused() {
        for divisors in [[1., 2., 3., 4., 5., 6., 7., 8.].as_slice(), &[1., 8.], &[f32::NAN; 8], &[0.; 8]] {
            let error = with_divisors(config(), &with(divisors)).unwrap_err();
            assert_eq!(error.code, ErrorCode::ModelUnsupported, "{error}");
            assert!(error.message.contains("model.gguf") && error.message.contains(ROPE_DIVISORS), "{error}");
        }
    }

    /// A file of another program, and the likeliest tokens behind a prompt. fixtures/gguf/README.md says where the numbers are from.
    fn greedy(name: &str, prompt: &[u32], count: usize) -> (GgufModel, Vec<u32>) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf").join(name);
        let file = GgufModel::open(&path).unwrap();
        let loader = Loader::new(file.checkpoint.clone(), &LANGUAGE, DType::F32, &Device::Cpu);
        let model = build(loader, |source| LanguageModel::new(&file.config, source)).unwrap();
        let (mut cache, mut ids) = (model.new_cache(prompt.len() + count), prompt.to_vec());
        let mut answer = Vec::new();
        for _ in 0..count {
            let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
            let hidden = model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
            let logits = model.logits(&hidden.narrow(1, ids.len() - 1, 1).unwrap(), &mut Blind).unwrap();
            let best = logits.argmax(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
            answer.extend(&best);
            ids = best;
        }
        (file, answer)
    }

    const TEXT: &str = "the thethe an ünder 12345 on<frame> the";

    #[test]
    fn a_file_of_llama_cpp_answers_as_there() {
        let prompt = [1, 251, 123, 36, 23, 46, 71, 89, 88];
        let expected = [144, 216, 96, 96, 273, 168, 168, 168, 166, 139, 210];
        let (file, answer) = greedy("llama-cpp.gguf", &prompt, expected.len());
        assert_eq!(answer, expected);
        let formats: BTreeSet<_> = file
            .checkpoint
            .names()
            .filter_map(|name| file.checkpoint.format(name).unwrap())
            .map(BlockFormat::name)
            .collect();
        assert!(
            ["Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0"].iter().all(|name| formats.contains(name)),
            "{formats:?}"
        );
        let ids = [
            1, 268, 268, 267, 272, 264, 198, 191, 263, 103, 259, 117, 264, 52, 53, 54, 55, 56, 275, 276, 264,
            268,
        ];
        let ours = file.tokenizer.encode(TEXT, true);
        // Behind an added token the reference loses the space, which llama.cpp keeps.
        assert_eq!(ours[..20], ids[..20]);
    }

    #[test]
    fn a_file_of_gguf_py_answers_as_llama_cpp_does() {
        let expected = [176, 176, 176, 253, 193, 163, 253, 193, 93, 58, 176];
        let (file, answer) = greedy("gguf-py.gguf", &[53, 164, 20, 208], expected.len());
        assert_eq!(answer, expected);
        let ids = [
            257, 258, 257, 32, 259, 32, 195, 188, 110, 100, 101, 114, 32, 49, 50, 51, 52, 53, 32, 260, 262,
            258,
        ];
        assert_eq!(file.tokenizer.encode(TEXT, true), ids);
        assert_eq!(file.tokenizer.decode(&ids, true), TEXT);
        assert_eq!((file.tokenizer.bos_id(), file.tokenizer.eos_id()), (None, 261));
    }
}
