//! Language models in GGUF files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use llamavid_convert::Quantisation;
use llamavid_runtime::ErrorCode;
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_weights::Checkpoint;
use llamavid_weights::writer::write_safetensors;

use crate::answers::{answer, greedy};
use crate::folders::{options, refused, run, tiny_model};

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
    assert_eq!(tokens.len(), 1195);
    assert_eq!(tokens[1].to_string().unwrap(), "<s>");
}

#[test]
fn it_loads_and_answers_nearly_the_same() {
    let (_place, output) = quantised(Quantisation::Q8_0, true);
    let (rounded, _) = answer(&ModelFolder::open(&output).unwrap());
    let (exact, _) = answer(&ModelFolder::open(&tiny_model()).unwrap());
    let distance = rounded[0].iter().zip(&exact[0]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let largest = exact[0].iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(distance > 0. && distance / largest < 0.05, "{distance} of {largest}");
}

#[test]
fn a_gguf_file_is_taken_over_as_it_is() {
    let (place, output) = quantised(Quantisation::Q4_0, false);
    // Everything but the language model, as stage 1 leaves it, and the language model apart.
    let rest = place.path().join("rest");
    fs::create_dir(&rest).unwrap();
    for name in ["config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::copy(output.join(name), rest.join(name)).unwrap();
    }
    let weights = Checkpoint::open_folder(&output).unwrap();
    let only = |families: &[&str], file: &Path| {
        let tensors = weights
            .names()
            .filter(|name| families.iter().any(|family| name.starts_with(family)))
            .map(|name| (name.to_owned(), weights.read(name, &Device::Cpu).unwrap()))
            .collect();
        write_safetensors(&mut File::create(file).unwrap(), &tensors, &Default::default()).unwrap();
    };
    only(&["model.vlm_att_", "model.mm_projector."], &rest.join("mm_projector.bin"));
    only(&["model.vision_tower."], &rest.join("vision.safetensors"));
    let gguf = output.join("language-model.gguf");
    let inputs = [
        gguf.clone(),
        rest.clone(),
        rest.join("vision.safetensors"),
        output.join("bert"),
        output.join("processor"),
    ];
    let again = place.path().join("again");
    let mut options = options(&inputs, &again);
    run(&options).unwrap();
    assert_eq!(fs::read(again.join("language-model.gguf")).unwrap(), fs::read(gguf).unwrap());
    let open = |folder: &Path| answer(&ModelFolder::open(folder).unwrap());
    assert_eq!(open(&again), open(&output));
    let origin = &Manifest::read(&again).unwrap().unwrap().tensors["model.layers.0.mlp.up_proj.weight"];
    assert_eq!((origin.key.as_str(), origin.source.as_str()), ("blk.0.ffn_up.weight", "language-model.gguf"));

    options.quantize = Some(Quantisation::Q8_0);
    options.output = place.path().join("third");
    refused(run(&options), ErrorCode::InvalidArgument, &["quantised already"]);
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

/// What llama.cpp answers on the same file, whatever its own tokenizer makes of a text: the ids that the tiny model's
/// `q8_0` file gave in node-llama-cpp 3.22.1, greedily, on a CPU, up to the end of the answer.
#[test]
fn it_answers_as_llama_cpp_does() {
    let (_place, output) = quantised(Quantisation::Q8_0, false);
    let folder = ModelFolder::open(&output).unwrap();
    let tokenizer = folder.llama_tokenizer().unwrap();
    let text = tokenizer.encode("what is shown?", true);
    assert_eq!(text, [1, 968, 616, 825, 1178, 1186, 1177, 1130]);
    let model = folder.language_model(DType::F32, &Device::Cpu).unwrap();
    for (prompt, expected) in
        [(&text[..], &[276, 1125, 354, 977, 931][..]), (&[1, 22, 45, 78], &[360, 354, 789, 861, 602, 602])]
    {
        let embeds = model.embed(prompt).unwrap().unsqueeze(0).unwrap();
        let (_, answer) = greedy(&model, embeds, expected.len());
        assert_eq!(answer, expected);
    }
}
