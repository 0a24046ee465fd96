//! Language models in GGUF files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use llamavid_models::observer::Blind;
use llamavid_runtime::ErrorCode;
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_weights::writer::write_safetensors;
use llamavid_weights::{Checkpoint, Quantisation};
use serde_json::json;

use crate::answers::{answer, greedy};
use crate::folders::{copy, options, random_model, refused, run, tiny_model};
use crate::made;

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

/// A quantised model in parts: everything but the language model as stage 1 leaves it, with `beside` of its small files, and
/// the language model's GGUF file.
fn apart(output: &Path, rest: &Path, beside: &[&str]) -> Vec<PathBuf> {
    fs::create_dir(rest).unwrap();
    for name in beside {
        fs::copy(output.join(name), rest.join(name)).unwrap();
    }
    let weights = Checkpoint::open_folder(output).unwrap();
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
    // Elsewhere, so that nothing lies beside it.
    let gguf = rest.with_extension("gguf");
    fs::copy(output.join("language-model.gguf"), &gguf).unwrap();
    vec![
        gguf,
        rest.to_path_buf(),
        rest.join("vision.safetensors"),
        output.join("bert"),
        output.join("processor"),
    ]
}

#[test]
fn a_gguf_file_is_taken_over_as_it_is() {
    let (place, output) = quantised(Quantisation::Q4_0, false);
    let beside = ["config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"];
    let inputs = apart(&output, &place.path().join("rest"), &beside);
    let again = place.path().join("again");
    let mut options = options(&inputs, &again);
    run(&options).unwrap();
    assert_eq!(fs::read(again.join("language-model.gguf")).unwrap(), fs::read(&inputs[0]).unwrap());
    let open = |folder: &Path| answer(&ModelFolder::open(folder).unwrap());
    assert_eq!(open(&again), open(&output));
    let origin = &Manifest::read(&again).unwrap().unwrap().tensors["model.layers.0.mlp.up_proj.weight"];
    assert_eq!((origin.key.as_str(), origin.source.as_str()), ("blk.0.ffn_up.weight", "rest.gguf"));

    options.quantize = Some(Quantisation::Q8_0);
    options.output = place.path().join("third");
    refused(run(&options), ErrorCode::InvalidArgument, &["quantised already"]);
}

#[test]
fn interleaved_rows_answer_as_they_did() {
    for quantize in [Quantisation::Q8_0, Quantisation::Q4_0] {
        let (place, output) = quantised(quantize, false);
        let once = place.path().join("once");
        let mut options = options(&[tiny_model()], &once);
        (options.quantize, options.interleave) = (Some(quantize), true);
        run(&options).unwrap();
        // Of the file in blocks: nothing is rounded again, so it is the same file up to what it says of itself.
        let again = place.path().join("again");
        (options.quantize, options.inputs, options.output) = (None, vec![output.clone()], again.clone());
        run(&options).unwrap();
        // What is interleaved already stays so, with and without the option.
        let third = place.path().join("third");
        (options.inputs, options.output) = (vec![again.clone()], third.clone());
        run(&options).unwrap();
        let file = |folder: &Path| fs::read(folder.join("language-model.gguf")).unwrap();
        assert_eq!(file(&third), file(&again));
        options.interleave = false;
        options.output = place.path().join("fourth");
        run(&options).unwrap();
        assert_eq!(file(&options.output), file(&again));

        let expected = answer(&ModelFolder::open(&output).unwrap());
        let weights = |folder: &Path| ModelFolder::open(folder).unwrap().language_weights().unwrap().0;
        let plain = weights(&output);
        for folder in [&once, &again] {
            let interleaved = weights(folder);
            assert_eq!(interleaved.names().collect::<Vec<_>>(), plain.names().collect::<Vec<_>>());
            let mut count = 0;
            for name in plain.names() {
                let read = |weights: &Checkpoint| weights.read(name, &Device::Cpu).unwrap();
                let values = |weights| read(weights).flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(&interleaved), values(&plain), "{name}");
                count += usize::from(interleaved.is_interleaved(name).unwrap());
            }
            // Seven matrices of each of five layers, and the output's.
            assert_eq!(count, 36);
            let (logits, tokens) = answer(&ModelFolder::open(folder).unwrap());
            assert_eq!(tokens, expected.1, "{}", quantize.name());
            for (logits, expected) in logits.iter().zip(&expected.0) {
                let logits = Tensor::new(logits.as_slice(), &Device::Cpu).unwrap();
                let expected = Tensor::new(expected.as_slice(), &Device::Cpu).unwrap();
                // Another order of sums may round one of the numbers between the layers to its other neighbour of 8 bits.
                let distance = distance(&logits, &expected);
                assert!(distance < 1e-2, "{}: {distance}", quantize.name());
            }
            let manifest = Manifest::read(folder).unwrap().unwrap();
            let origin = &manifest.tensors["model.layers.0.self_attn.q_proj.weight"];
            assert_eq!(origin.dtype, format!("{} interleaved", quantize.name().to_uppercase()));
            assert_eq!(manifest.tensors["model.embed_tokens.weight"].dtype, "F16");
        }
    }
}

#[test]
fn what_is_in_no_blocks_cannot_be_interleaved() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    let mut options = options(&[tiny_model()], &output);
    options.interleave = true;
    refused(run(&options), ErrorCode::InvalidArgument, &["not in blocks"]);
    // A GGUF file of numbers in 16 bits.
    let half = place.path().join("half");
    made::make(&half, &json!({ "hidden_size": 48, "intermediate_size": 80 }), "fixtures/random-model");
    (options.inputs, options.dtype) = (vec![half], Some(DType::F16));
    (options.quantize, options.interleave) = (Some(Quantisation::Q8_0), false);
    run(&options).unwrap();
    (options.inputs, options.output) = (vec![output], place.path().join("again"));
    (options.quantize, options.dtype, options.interleave) = (None, None, true);
    refused(run(&options), ErrorCode::InvalidArgument, &["not in blocks"]);
    assert!(!options.output.exists());
}

/// Rows that are read one at a time stay in their order, unless they are multiplied with as well.
#[test]
fn a_table_is_interleaved_where_it_is_the_output() {
    for (tied, expected) in [(true, "Q8_0 interleaved"), (false, "Q8_0")] {
        let place = tempfile::tempdir().unwrap();
        let (model, blocks) = (place.path().join("model"), place.path().join("blocks"));
        let changes = json!({ "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
            "num_key_value_heads": 4, "tie_word_embeddings": tied });
        made::make(&model, &changes, "fixtures/random-model");
        let mut options = options(&[model], &blocks);
        options.quantize = Some(Quantisation::Q8_0);
        run(&options).unwrap();
        // llama.cpp's quantiser makes blocks of the table too.
        let file = blocks.join("language-model.gguf");
        in_blocks(&file, "token_embd.weight");
        fs::remove_file(blocks.join("manifest.json")).unwrap();
        let again = place.path().join("again");
        (options.inputs, options.output) = (vec![blocks.clone()], again.clone());
        (options.quantize, options.interleave) = (None, true);
        run(&options).unwrap();
        let manifest = Manifest::read(&again).unwrap().unwrap();
        assert_eq!(manifest.tensors["model.embed_tokens.weight"].dtype, expected);
        let logits = |folder: &Path| logits(&ModelFolder::open(folder).unwrap());
        let tensor = |logits: Vec<f32>| Tensor::new(logits, &Device::Cpu).unwrap();
        assert!(distance(&tensor(logits(&again)), &tensor(logits(&blocks))) < 1e-4, "{tied}");
    }
}

/// Writes a file anew with one of its tensors in blocks.
fn in_blocks(path: &Path, chosen: &str) {
    let (content, tensors) = read(path);
    let metadata: Vec<(&str, &Value)> =
        content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let format = |name: &str| match content.tensor_infos[name].ggml_dtype {
        _ if name == chosen => GgmlDType::Q8_0,
        stored => stored,
    };
    let tensors: Vec<(&str, QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), QTensor::quantize(tensor, format(name)).unwrap()))
        .collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn a_gguf_file_brings_its_tokenizer() {
    let (place, output) = quantised(Quantisation::Q8_0, false);
    let inputs = apart(&output, &place.path().join("rest"), &["config.json"]);
    let again = place.path().join("again");
    run(&options(&inputs, &again)).unwrap();
    assert!(again.join("tokenizer.model").is_file());
    let same = || {
        let tokenizer = |folder: &Path| ModelFolder::open(folder).unwrap().llama_tokenizer().unwrap();
        let (made, own) = (tokenizer(&again), tokenizer(&output));
        for text in ["What is the colour of the circle?", "  two  spaces\n", "ü 猫 \u{1f600}", "</s><s>", ""]
        {
            assert_eq!(made.encode(text, true), own.encode(text, true), "{text:?}");
        }
        assert_eq!((made.vocab_size(), made.eos_id()), (own.vocab_size(), own.eos_id()));
    };
    same();
    // A folder that somebody put together without one.
    for name in ["manifest.json", "tokenizer.model", "tokenizer_config.json"] {
        fs::remove_file(again.join(name)).unwrap();
    }
    same();
}

/// Logits of a prompt.
fn logits(folder: &ModelFolder) -> Vec<f32> {
    let model = folder.language_model(DType::F32, &Device::Cpu).unwrap();
    let ids: Vec<u32> = (0..40).map(|place| 3 + place * 37 % 300).collect();
    let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
    let hidden = model.forward_uncached(&embeds, None, &mut Blind).unwrap();
    model.logits(&hidden, &mut Blind).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The random model with other positions.
fn with_positions(place: &Path, scaling: &str) -> PathBuf {
    let folder = place.join("model");
    copy(&random_model(), &folder);
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let changed = config.replace("\"rope_scaling\": null", &format!("\"rope_scaling\": {scaling}"));
    assert_ne!(changed, config);
    fs::write(folder.join("config.json"), changed).unwrap();
    folder
}

#[test]
fn every_kind_of_positions_survives() {
    const LLAMA_3: &str = r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
    for scaling in [
        r#"{"type": "linear", "factor": 4.0}"#,
        r#"{"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}"#,
        LLAMA_3,
    ] {
        let place = tempfile::tempdir().unwrap();
        let model = with_positions(place.path(), scaling);
        let output = place.path().join("out");
        let mut options = options(std::slice::from_ref(&model), &output);
        options.quantize = Some(Quantisation::Q8_0);
        run(&options).unwrap();
        let loaded = ModelFolder::open(&model).unwrap().with_quantisation(Some(Quantisation::Q8_0));
        let (converted, expected) = (logits(&ModelFolder::open(&output).unwrap()), logits(&loaded));
        assert_eq!(converted, expected, "{scaling}");
        assert_ne!(expected, logits(&ModelFolder::open(&random_model()).unwrap()), "{scaling}");

        let (_, tensors) = read(&output.join("language-model.gguf"));
        let divisors = tensors.get("rope_freqs.weight");
        assert_eq!(divisors.is_some(), scaling == LLAMA_3, "{scaling}");
        let Some(divisors) = divisors else { continue };
        // Pairs of a head of 16: the highest frequency stays, the lowest is divided by all of it.
        let divisors: Vec<f32> = divisors.to_vec1().unwrap();
        assert_eq!((divisors.len(), divisors[0]), (8, 1.0));
        assert!((divisors[7] - 8.0).abs() < 1e-5, "{divisors:?}");

        // In the place of a model with other positions.
        let config = fs::read_to_string(output.join("config.json")).unwrap();
        fs::remove_file(output.join("manifest.json")).unwrap();
        fs::write(output.join("config.json"), config.replace("\"factor\": 8.0", "\"factor\": 4.0")).unwrap();
        let folder = ModelFolder::open(&output).unwrap();
        let error = folder.language_model(DType::F32, &Device::Cpu).unwrap_err();
        assert_eq!(error.code, ErrorCode::ModelUnsupported, "{error}");
        assert!(error.message.contains("rope_freqs.weight"), "{error}");
    }
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
    assert_eq!(dtype("model.embed_tokens.weight"), "F16");
}

#[test]
fn converting_and_loading_round_to_the_same_numbers() {
    for (quantize, name) in Quantisation::ALL.map(|quantisation| (quantisation, quantisation.name())) {
        let (_place, output) = quantised(quantize, false);
        let loaded = ModelFolder::open(&tiny_model()).unwrap().with_quantisation(Some(quantize));
        let converted = ModelFolder::open(&output).unwrap();
        assert_eq!(logits(&converted), logits(&loaded), "{name}");
    }
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
        [(&text[..], &[602, 899, 509][..]), (&[1, 789, 861, 602], &[899, 539, 566, 864, 566, 458, 360, 354])]
    {
        let embeds = model.embed(prompt).unwrap().unsqueeze(0).unwrap();
        let (_, answer) = greedy(&model, embeds, expected.len());
        assert_eq!(answer, expected);
    }
}
