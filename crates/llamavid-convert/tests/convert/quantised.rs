//! Language models in GGUF files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use llamavid_convert::Quantisation;
use llamavid_runtime::manifest::Manifest;
use llamavid_weights::Checkpoint;

use crate::folders::{options, run, tiny_model};

fn quantised(quantize: Quantisation, vision: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    let mut options = options(&[tiny_model()], &output);
    options.quantize = Some(quantize);
    options.quantize_vision = vision;
    // Whether it loads is another test's concern.
    run(&options).unwrap();
    (place, output)
}

/// candle's own reader, which knows nothing of the writer.
fn read(file: &Path) -> (Content, BTreeMap<String, Tensor>) {
    let mut opened = File::open(file).unwrap();
    let content = Content::read(&mut opened).unwrap();
    let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
    let tensors = names
        .into_iter()
        .map(|name| {
            let tensor = content.tensor(&mut opened, &name, &Device::Cpu).unwrap();
            (name, tensor.dequantize(&Device::Cpu).unwrap())
        })
        .collect();
    (content, tensors)
}

fn distance(left: &Tensor, right: &Tensor) -> f32 {
    let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest(&(left - right).unwrap()) / largest(right)
}

#[test]
fn the_file_holds_the_weights_under_the_names_and_in_the_order_of_llama_cpp() {
    let (_place, output) = quantised(Quantisation::Q8_0, false);
    let (content, tensors) = read(&output.join("language-model.gguf"));
    let source = Checkpoint::open_folder(&tiny_model()).unwrap();
    let original = |name: &str| source.read(name, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    for (name, upstream) in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.2.attn_v.weight", "model.layers.2.self_attn.v_proj.weight"),
        ("blk.4.ffn_down.weight", "model.layers.4.mlp.down_proj.weight"),
    ] {
        assert!(distance(&tensors[name], &original(upstream)) < 1. / 127., "{name}");
    }
    // Row 2 i + j of a head is row i of its half j.
    let (query, expected) =
        (&tensors["blk.1.attn_q.weight"], original("model.layers.1.self_attn.q_proj.weight"));
    for (row, from) in [(0, 0), (1, 16), (2, 1), (31, 31), (32, 32), (33, 48)] {
        let (left, right) = (query.narrow(0, row, 1).unwrap(), expected.narrow(0, from, 1).unwrap());
        assert!(distance(&left, &right) < 0.02, "row {row}");
    }
    let text = |key: &str| content.metadata[key].to_string().unwrap().clone();
    let number = |key: &str| content.metadata[key].to_u32().unwrap();
    assert_eq!(text("general.architecture"), "llama");
    assert_eq!(text("tokenizer.ggml.model"), "llama");
    assert_eq!(number("llama.block_count"), 5);
    assert_eq!(number("llama.rope.dimension_count"), 32);
    let Value::Array(tokens) = &content.metadata["tokenizer.ggml.tokens"] else { panic!("no list") };
    assert_eq!(tokens.len(), 1199);
    assert_eq!(tokens[1].to_string().unwrap(), "<s>");
}

#[test]
fn formats_that_do_not_fit_the_columns_give_way() {
    // 128 columns are no whole block of 256.
    let (_place, output) = quantised(Quantisation::Q4K, false);
    let manifest = Manifest::read(&output).unwrap().unwrap();
    let origin = &manifest.tensors["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!((origin.file.as_str(), origin.dtype.as_str()), ("language-model.gguf", "Q8_0"));
    assert_eq!(manifest.tensors["model.norm.weight"].dtype, "F32");
}

#[test]
fn vision_in_eight_bits_keeps_the_published_names() {
    let (_place, output) = quantised(Quantisation::Q4_0, true);
    assert!(!output.join("model.safetensors").exists());
    let (_, vision) = read(&output.join("visual-encoder.gguf"));
    let (_, tokens) = read(&output.join("token-generator.gguf"));
    let manifest = Manifest::read(&output).unwrap().unwrap();
    let dtype = |name: &str| manifest.tensors[name].dtype.as_str();
    let qkv = "model.vision_tower.vision_tower.blocks.0.attn.qkv.weight";
    assert!(vision.contains_key(qkv));
    assert_eq!(dtype(qkv), "Q8_0");
    let words = "model.vlm_att_encoder.bert.embeddings.word_embeddings.weight";
    assert!(tokens.contains_key(words));
    assert_eq!(dtype(words), "F16");
    assert_eq!(dtype("model.layers.0.mlp.up_proj.weight"), "Q4_0");
    assert_eq!(dtype("lm_head.weight"), "Q8_0");
}
