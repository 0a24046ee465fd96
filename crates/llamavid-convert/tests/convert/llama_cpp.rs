//! GGUF files that are run in llama.cpp: what it answered stands in fixtures/gguf/llama-cpp-answers.json, which
//! `tools/reference/llama_cpp_answers.mjs` recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_runtime::TokenizerFiles;
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_weights::Quantisation;
use llamavid_weights::gguf::GgufFile;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answers::greedy;
use crate::folders::{options, repository, run};
use crate::made;

const PIECES: &str = "fixtures/random-model";

/// A model, and what is made of it.
struct Case {
    name: &'static str,
    changes: Value,
    tokenizer: &'static str,
    dtype: Option<DType>,
    quantize: Quantisation,
}

/// Each format of blocks, numbers of 16 bits, and both kinds of byte pairs.
fn cases() -> Vec<Case> {
    // Rows that large blocks fill, and heads that share keys.
    let whole = json!({ "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2 });
    let case =
        |name, quantize| Case { name, changes: whole.clone(), tokenizer: PIECES, dtype: None, quantize };
    // Rows that no blocks fill.
    let odd = json!({ "hidden_size": 48, "intermediate_size": 80 });
    let mut qwen2 = whole.clone();
    let more = json!({ "model_type": "qwen2", "tie_word_embeddings": true, "rope_theta": 1e6, "bos_token_id": 301,
        "eos_token_id": 303 });
    qwen2.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vec![
        case("q8_0", Quantisation::Q8_0),
        case("q4_0", Quantisation::Q4_0),
        case("q4_k", Quantisation::Q4K),
        case("q5_k", Quantisation::Q5K),
        case("q6_k", Quantisation::Q6K),
        Case { changes: odd, dtype: Some(DType::F16), ..case("f16", Quantisation::Q8_0) },
        Case { tokenizer: "fixtures/byte-pairs/llama3", ..case("llama3", Quantisation::Q8_0) },
        Case { changes: qwen2, tokenizer: "fixtures/byte-pairs/qwen2", ..case("qwen2", Quantisation::Q4K) },
    ]
}

/// Makes a case's model and converts it.
fn converted(case: &Case, place: &Path) -> PathBuf {
    let (model, output) = (place.join("model"), place.join("out"));
    made::make(&model, &case.changes, case.tokenizer);
    let mut options = options(&[model], &output);
    options.dtype = case.dtype;
    options.quantize = Some(case.quantize);
    run(&options).unwrap();
    output
}

/// The same in rows that are interleaved.
fn interleaved(output: &Path, place: &Path) -> ModelFolder {
    let again = place.join("interleaved");
    let mut options = options(&[output.to_path_buf()], &again);
    options.interleave = true;
    run(&options).unwrap();
    ModelFolder::open(&again).unwrap()
}

#[test]
#[ignore = "writes the files that llama.cpp answers on"]
fn writes_its_files() {
    let folder = PathBuf::from(std::env::var_os("LLAMAVID_TEST_OUTPUT").expect("a folder to write to"));
    for case in cases() {
        let place = tempfile::tempdir().unwrap();
        let file = converted(&case, place.path()).join("language-model.gguf");
        fs::copy(file, folder.join(case.name).with_extension("gguf")).unwrap();
    }
}

#[derive(Deserialize)]
struct Recorded {
    greedy: Vec<Answer>,
    /// What it puts in front of a text.
    bos: Option<u32>,
    eos: u32,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Answer {
    prompt: Vec<u32>,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn ours_answer_there_as_here() {
    let recorded = fs::read(repository("fixtures/gguf/llama-cpp-answers.json")).unwrap();
    let mut recorded: BTreeMap<String, Recorded> = serde_json::from_slice(&recorded).unwrap();
    for case in cases() {
        let place = tempfile::tempdir().unwrap();
        let output = converted(&case, place.path());
        let manifest = Manifest::read(&output).unwrap().unwrap();
        let formats: Vec<&str> = (manifest.tensors.values())
            .filter(|tensor| tensor.file == "language-model.gguf")
            .map(|tensor| tensor.dtype.as_str())
            .collect();
        let wanted = if case.dtype.is_some() { "F16" } else { case.quantize.name() };
        assert!(
            formats.iter().any(|format| format.eq_ignore_ascii_case(wanted)),
            "{}: {formats:?}",
            case.name
        );

        let Recorded { greedy: answers, bos, eos, texts } = recorded.remove(case.name).unwrap();
        let folder = ModelFolder::open(&output).unwrap();
        // A choice or two would be no proof.
        let choices: usize = answers.iter().map(|answer| answer.ids.len()).sum();
        assert!(choices >= 8, "{}: {choices}", case.name);
        let interleaved = case.dtype.is_none().then(|| interleaved(&output, place.path()));
        for folder in [Some(&folder), interleaved.as_ref()].into_iter().flatten() {
            let model = folder.language_model(DType::F32, &Device::Cpu).unwrap();
            for Answer { prompt, ids } in &answers {
                let embeds = model.embed(prompt).unwrap().unsqueeze(0).unwrap();
                assert_eq!(greedy(&model, embeds, ids.len()).1, *ids, "{} {prompt:?}", case.name);
            }
        }

        // The file alone, and the files beside it.
        let file = GgufFile::open(&output.join("language-model.gguf")).unwrap();
        let alone = TokenizerFiles::of_gguf(&file).unwrap().read().unwrap();
        for tokenizer in [alone, folder.llama_tokenizer().unwrap()] {
            assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (bos, eos), "{}", case.name);
            // Next to special tokens pieces follow the reference's habits, which llama.cpp has not.
            let alike = texts.iter().filter(|text| case.tokenizer != PIECES || !text.text.contains("</s>"));
            for Text { text, ids } in alike {
                assert_eq!(tokenizer.encode(text, false), *ids, "{}: {text:?}", case.name);
            }
        }
    }
    assert!(recorded.is_empty(), "{:?}", recorded.keys());
}
