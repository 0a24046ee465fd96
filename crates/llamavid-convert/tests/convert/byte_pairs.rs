//! Tokenizers of byte pairs from the inputs to the converted folder, and into GGUF files and back.

use std::fs;
use std::path::Path;

use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_runtime::TokenizerFiles;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_weights::Quantisation;
use llamavid_weights::gguf::{GgufFile, Value};
use serde::Deserialize;
use serde_json::json;

use crate::answers::answer;
use crate::folders::{options, repository, run};
use crate::made;

const KINDS: [&str; 2] = ["llama3", "qwen2"];

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

/// Texts and the ids that the tokenizers library gave for them.
fn expect_recorded(tokenizer: &LlamaTokenizer, kind: &str, what: &str) {
    let recorded = fs::read(repository("fixtures/byte-pairs").join(kind).join("texts.json")).unwrap();
    let recorded: Vec<Text> = serde_json::from_slice(&recorded).unwrap();
    assert!(recorded.len() > 5);
    for Text { text, ids } in recorded {
        assert_eq!(tokenizer.encode(&text, true), ids, "{kind} {what}: {text:?}");
    }
}

/// A model with that tokenizer.
fn model(place: &Path, kind: &str) -> std::path::PathBuf {
    let folder = place.join(kind);
    made::make(
        &folder,
        &json!({ "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1 }),
        &format!("fixtures/byte-pairs/{kind}"),
    );
    folder
}

#[test]
fn a_converted_folder_reads_texts_as_its_inputs_did() {
    for kind in KINDS {
        let place = tempfile::tempdir().unwrap();
        let (model, output) = (model(place.path(), kind), place.path().join("out"));
        run(&options(std::slice::from_ref(&model), &output)).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            assert_eq!(fs::read(output.join(name)).unwrap(), fs::read(model.join(name)).unwrap(), "{name}");
        }
        assert!(!output.join("tokenizer.model").exists());
        let (before, after) = (ModelFolder::open(&model).unwrap(), ModelFolder::open(&output).unwrap());
        expect_recorded(&after.llama_tokenizer().unwrap(), kind, "converted");
        assert_eq!(answer(&after), answer(&before), "{kind}");
    }
}

#[test]
fn a_gguf_file_says_all_of_it() {
    for kind in KINDS {
        let place = tempfile::tempdir().unwrap();
        let (model, output) = (model(place.path(), kind), place.path().join("out"));
        // As a training with `mm_use_im_start_end` leaves it.
        fs::write(model.join("added_tokens.json"), r#"{"<im_start>": 305, "<im_end>": 306}"#).unwrap();
        let mut options = options(&[model], &output);
        options.quantize = Some(Quantisation::Q8_0);
        run(&options).unwrap();
        let beside = ModelFolder::open(&output).unwrap().llama_tokenizer().unwrap();
        let file = GgufFile::open(&output.join("language-model.gguf")).unwrap();
        let begins = kind == "llama3";
        assert_eq!(file.text("tokenizer.ggml.pre"), Some(if begins { "llama-bpe" } else { "qwen2" }));
        assert_eq!(file.metadata()["tokenizer.ggml.add_bos_token"], Value::Flag(begins));
        let alone = TokenizerFiles::of_gguf(&file).unwrap().read().unwrap();
        for tokenizer in [&beside, &alone] {
            expect_recorded(tokenizer, kind, "in blocks");
            assert_eq!(tokenizer.encode("<im_start>a<im_end>", false).len(), 3, "{kind}");
        }
        assert_eq!(
            (alone.bos_id(), alone.eos_id(), alone.bos_id().is_some()),
            (beside.bos_id(), beside.eos_id(), begins)
        );
        for id in 0..beside.vocab_size() as u32 {
            assert_eq!(alone.decode(&[id], false), beside.decode(&[id], false), "{kind} {id}");
        }
    }
}
