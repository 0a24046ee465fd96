//! Models in fewer bits, from folders and from GGUF files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod shared;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device as TensorDevice, Tensor};
use llamavid_models::language_model::CachePrecision;
use llamavid_models::observer::Blind;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{
    Cancellation, Device, Dtype, ErrorCode, LanguageModel, Precision, Result, Session, Split, TokenGenerator,
    VisualEncoder,
};
use llamavid_weights::{Checkpoint, Quantisation};
use sentencepiece_model::{SentencePieceModel, Type};
use tempfile::TempDir;

use shared::request;

/// The embedded model: 128 wide, so that blocks of 32 fill its rows.
fn embedded() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packages/tiny/model"))
}

fn precision(quantisation: Option<Quantisation>) -> Precision {
    Precision { dtype: Dtype::F32, quantisation }
}

fn load(place: &Path, quantisation: Option<Quantisation>) -> Result<LanguageModel> {
    let device = Device::open("cpu").unwrap();
    LanguageModel::load(
        place.to_owned(),
        device,
        precision(quantisation),
        Split::Layers,
        Cancellation::default(),
    )
    .wait()
}

/// Questions that the embedded model answers at some length, about nothing.
const PROMPTS: [&str; 3] = [
    "USER: describe the video. ASSISTANT:",
    "USER: what is shown? ASSISTANT: first a large",
    "USER: describe the picture. ASSISTANT: there is",
];

fn answer(model: LanguageModel, cache: CachePrecision) -> Vec<u32> {
    let model = Arc::new(model);
    PROMPTS.into_iter().flat_map(|prompt| answer_to(prompt, &model, cache)).collect()
}

fn answer_to(prompt: &str, model: &Arc<LanguageModel>, cache: CachePrecision) -> Vec<u32> {
    let session = Session::new(model.clone());
    session.start(request(prompt, 24, cache), &Cancellation::default()).unwrap().wait().unwrap();
    let mut ids = Vec::new();
    while let Some(piece) = session.next(&Cancellation::default()).unwrap().wait().unwrap() {
        ids.extend(piece.token_ids);
    }
    ids
}

/// llama.cpp's order of the rows of queries and keys.
fn turned(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let weight = weight.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    weight.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

/// The embedded model's decoder as llama.cpp's converter writes it.
fn gguf(path: &Path, change: impl Fn(&mut BTreeMap<String, Value>, &mut BTreeMap<String, QTensor>)) {
    let folder = ModelFolder::open(&embedded()).unwrap();
    let config = &folder.config().language;
    let checkpoint = Checkpoint::open_folder(&embedded()).unwrap();
    let mut tensors = BTreeMap::new();
    let modules = [
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    for name in checkpoint.names() {
        let theirs = match name {
            "model.embed_tokens.weight" => "token_embd".to_owned(),
            "model.norm.weight" => "output_norm".to_owned(),
            "lm_head.weight" => "output".to_owned(),
            name => {
                let Some(rest) = name.strip_prefix("model.layers.") else { continue };
                let (layer, module) = rest.strip_suffix(".weight").unwrap().split_once('.').unwrap();
                let (_, theirs) = modules.iter().find(|(ours, _)| *ours == module).unwrap();
                format!("blk.{layer}.{theirs}")
            }
        };
        let mut weight = checkpoint.read(name, &TensorDevice::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        if theirs.ends_with("attn_q") || theirs.ends_with("attn_k") {
            weight = turned(&weight, config.heads);
        }
        let format = match (theirs.as_str(), weight.rank()) {
            ("token_embd", _) => GgmlDType::F16,
            (_, 1) => GgmlDType::F32,
            _ => GgmlDType::Q8_0,
        };
        tensors.insert(format!("{theirs}.weight"), QTensor::quantize(&weight, format).unwrap());
    }
    let whole = |value: usize| Value::U32(value as u32);
    let pieces = fs::read(embedded().join("tokenizer.model")).unwrap();
    let pieces = SentencePieceModel::from_slice(&pieces).unwrap();
    let kind = |kind: Type| match kind {
        Type::Normal => 1,
        Type::Unknown => 2,
        Type::Control => 3,
        Type::Byte => 6,
        other => panic!("{other:?}"),
    };
    let list = |values: Vec<Value>| Value::Array(values);
    let all = pieces.pieces();
    let mut metadata = BTreeMap::from_iter(
        [
            ("general.architecture", Value::String("llama".into())),
            ("llama.embedding_length", whole(config.hidden_size)),
            ("llama.feed_forward_length", whole(config.intermediate_size)),
            ("llama.block_count", whole(config.layers)),
            ("llama.attention.head_count", whole(config.heads)),
            ("llama.attention.head_count_kv", whole(config.kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
            ("llama.context_length", whole(config.max_positions)),
            ("tokenizer.ggml.model", Value::String("llama".into())),
            ("tokenizer.ggml.tokens", list(all.iter().map(|p| Value::String(p.piece().into())).collect())),
            ("tokenizer.ggml.scores", list(all.iter().map(|p| Value::F32(p.score())).collect())),
            ("tokenizer.ggml.token_type", list(all.iter().map(|p| Value::I32(kind(p.r#type()))).collect())),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    change(&mut metadata, &mut tensors);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// A copy of the embedded model whose decoder is a GGUF file.
fn converted() -> TempDir {
    let folder = TempDir::new().unwrap();
    for place in ["", "bert", "processor"] {
        fs::create_dir_all(folder.path().join(place)).unwrap();
        for entry in fs::read_dir(embedded().join(place)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), folder.path().join(place).join(entry.file_name())).unwrap();
            }
        }
    }
    gguf(&folder.path().join("language-model.gguf"), |_, _| {});
    folder
}

#[test]
fn the_same_answer_from_a_file_in_eight_bits_and_from_rounding_while_loading() {
    let rounded = load(&embedded(), Some(Quantisation::Q8_0)).unwrap();
    assert_eq!((rounded.stored_as().as_str(), rounded.dtype()), ("q8_0", DType::F32));
    let expected = answer(rounded, CachePrecision::Full);
    assert!(expected.len() > 4, "{expected:?}");

    let folder = converted();
    let in_folder = load(folder.path(), None).unwrap();
    assert_eq!(in_folder.stored_as(), "q8_0");
    assert_eq!(answer(in_folder, CachePrecision::Full), expected);

    let alone = load(&folder.path().join("language-model.gguf"), None).unwrap();
    assert_eq!(answer(alone, CachePrecision::Full), expected);

    let plain = load(&embedded(), None).unwrap();
    assert_eq!(plain.stored_as(), "f32");

    // The same to the last digit, at every position of a longer text.
    let hidden = |folder: &Path, quantisation| {
        let folder = ModelFolder::open(folder).unwrap().with_quantisation(quantisation);
        let model = folder.language_model(DType::F32, &TensorDevice::Cpu).unwrap();
        let ids: Vec<u32> = (0..60).map(|place| 3 + place * 17 % 1000).collect();
        let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
        let hidden = model.forward_uncached(&embeds, None, &mut Blind).unwrap();
        model.logits(&hidden, &mut Blind).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let from_file = hidden(folder.path(), None);
    assert_eq!(from_file, hidden(&embedded(), Some(Quantisation::Q8_0)));
    assert_ne!(from_file, hidden(&embedded(), None));
}

#[test]
fn a_file_brings_its_tokenizer() {
    let folder = converted();
    let alone = load(&folder.path().join("language-model.gguf"), None).unwrap();
    let whole = load(&embedded(), None).unwrap();
    let own = |model: &LanguageModel| -> LlamaTokenizer { model.tokenizer().clone() };
    let (alone, whole) = (own(&alone), own(&whole));
    for text in ["What is the colour of the circle?", "  two  spaces\n", "ü 猫 \u{1f600}", "</s><s>", ""] {
        assert_eq!(alone.encode(text, true), whole.encode(text, true), "{text:?}");
        let ids = whole.encode(text, false);
        assert_eq!(alone.decode(&ids, true), whole.decode(&ids, true), "{text:?}");
    }
    assert_eq!((alone.vocab_size(), alone.unk_id()), (whole.vocab_size(), whole.unk_id()));
}

#[test]
fn all_parts_load_in_fewer_bits() {
    let folder = ModelFolder::open(&embedded()).unwrap();
    let device = Device::open("cpu").unwrap();
    for quantisation in [Quantisation::Q8_0, Quantisation::Q4K] {
        let precision = precision(Some(quantisation));
        let place = folder.path().to_owned();
        VisualEncoder::load(place.clone(), device.clone(), precision, Cancellation::default())
            .wait()
            .unwrap();
        TokenGenerator::load(place.clone(), device.clone(), precision, Cancellation::default())
            .wait()
            .unwrap();
        let model = load(&place, Some(quantisation)).unwrap();
        for cache in [CachePrecision::EightBit, CachePrecision::FourBit] {
            let model = load(&place, Some(quantisation)).unwrap();
            assert!(!answer(model, cache).is_empty());
        }
        drop(model);
    }
}

/// A change of a file's metadata and tensors.
type Change<'a> = dyn Fn(&mut BTreeMap<String, Value>, &mut BTreeMap<String, QTensor>) + 'a;

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let refused = |code: ErrorCode, told: &str, change: &Change| {
        gguf(&path, change);
        let error = load(&path, None).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(told), "{error}");
        assert!(error.message.contains("model.gguf"), "{error}");
    };
    let text = |text: &str| Value::String(text.into());
    refused(ErrorCode::ModelUnsupported, "gemma", &|metadata, _| {
        metadata.insert("general.architecture".into(), text("gemma"));
    });
    refused(ErrorCode::ModelUnsupported, "`bert`", &|metadata, _| {
        metadata.insert("tokenizer.ggml.model".into(), text("bert"));
    });
    refused(ErrorCode::ModelUnsupported, "split as `falcon`", &|metadata, _| {
        metadata.insert("tokenizer.ggml.model".into(), text("gpt2"));
        metadata.insert("tokenizer.ggml.pre".into(), text("falcon"));
    });
    refused(ErrorCode::ModelInvalid, "tokenizer.ggml.scores", &|metadata, _| {
        metadata.remove("tokenizer.ggml.scores");
    });
    refused(ErrorCode::ModelInvalid, "hidden_size", &|metadata, _| {
        metadata.insert("llama.embedding_length".into(), Value::U32(0));
        metadata.insert("llama.attention.key_length".into(), Value::U32(32));
    });
    refused(ErrorCode::ModelInvalid, "`model.layers.2.mlp.up_proj.weight` is needed", &|_, tensors| {
        tensors.remove("blk.2.ffn_up.weight");
    });
    refused(ErrorCode::ModelInvalid, "`blk.2.ffn_up.weight`: expected shape", &|_, tensors| {
        let down = tensors.remove("blk.2.ffn_down.weight").unwrap();
        tensors.insert("blk.2.ffn_up.weight".into(), down);
    });
    refused(ErrorCode::ModelInvalid, "no place for", &|metadata, _| {
        metadata.insert("llama.block_count".into(), Value::U32(4));
    });
    refused(ErrorCode::ModelUnsupported, "`output.weight`", &|_, tensors| {
        let weight = tensors["output.weight"].dequantize(&TensorDevice::Cpu).unwrap();
        tensors.insert("output.weight".into(), QTensor::quantize(&weight, GgmlDType::Q5_0).unwrap());
    });
    // Cut behind its head.
    gguf(&path, |_, _| {});
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(load(&path, None).unwrap_err().code, ErrorCode::ModelInvalid);
    fs::write(&path, b"").unwrap();
    assert_eq!(load(&path, None).unwrap_err().code, ErrorCode::ModelInvalid);
}

#[test]
fn a_decoder_of_another_model_in_a_folder_is_refused() {
    let folder = converted();
    gguf(&folder.path().join("language-model.gguf"), |_, tensors| {
        let weight = Tensor::zeros((64, 128), DType::F32, &TensorDevice::Cpu).unwrap();
        tensors.insert("output.weight".into(), QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap());
    });
    let error = load(folder.path(), None).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelInvalid);
    assert!(error.message.contains("language-model.gguf: tensor `output.weight`"), "{error}");
}

#[test]
fn models_in_fewer_bits_answer_side_by_side() {
    let folder = converted();
    let expected = answer(load(folder.path(), None).unwrap(), CachePrecision::Full);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                assert_eq!(answer(load(folder.path(), None).unwrap(), CachePrecision::Full), expected);
            });
        }
    });
}
