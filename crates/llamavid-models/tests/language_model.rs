//! The decoder against the reference's numbers, and the laws that hold without a reference.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::safetensors::BufferedSafetensors;
use candle_core::{D, DType, Device, IndexOp, Tensor};
use candle_nn::{VarBuilder, VarMap};
use llamavid_models::language_model::{
    AttentionBias, FinishReason, Generation, GenerationOptions, Keyword, LanguageModel, LanguageModelConfig,
    Prompt, RopeScaling, Sampler, SamplingOptions, StopRule,
};
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::{Error, Result};
use sentencepiece_model::{SentencePieceModel, Type};
use serde_json::Value;

const CASES: [&str; 9] = [
    "image-224",
    "image-336",
    "image-grid4",
    "video-mean",
    "video-grid2",
    "eps-probe",
    "start-end",
    "long-video",
    "raw-bert",
];

fn oracle(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle")).join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(oracle(path)).unwrap()).unwrap()
}

fn tensors(case: &str) -> BufferedSafetensors {
    BufferedSafetensors::new(std::fs::read(oracle(case).join("tensors.safetensors")).unwrap()).unwrap()
}

fn config(folder: &str) -> LanguageModelConfig {
    LanguageModelConfig::from_json(&std::fs::read(oracle(folder).join("config.json")).unwrap()).unwrap()
}

/// A model from the reference's shards.
fn load(folder: &str, config: &LanguageModelConfig, dtype: DType) -> LanguageModel {
    let mut weights = HashMap::new();
    for entry in std::fs::read_dir(oracle(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            weights.extend(candle_core::pickle::read_all(&path).unwrap());
        }
    }
    let ours = |name: String| name.strip_prefix("model.").map(str::to_string).unwrap_or(name);
    let weights = weights.into_iter().map(|(name, tensor)| (ours(name), tensor)).collect();
    LanguageModel::new(config, VarBuilder::from_tensors(weights, dtype, &Device::Cpu)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn distance(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (actual.to_dtype(DType::F32).unwrap(), expected.to_dtype(DType::F32).unwrap());
    let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest(&(&actual - &expected).unwrap()) / largest(&expected)
}

#[track_caller]
fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, limit: f32) {
    let error = distance(actual, expected);
    assert!(error <= limit, "{what}: {error} is over {limit}");
}

#[derive(Default)]
struct Recorder(HashMap<String, Tensor>);

impl Observer for Recorder {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        self.0.insert(name.to_string(), tensor.clone());
    }
    fn wants(&self) -> bool {
        true
    }
}

fn no_text(_ids: &[u32]) -> String {
    String::new()
}

/// Compares what was recorded below `prefix`; gives how many tensors were compared.
fn compare_with_recorded(prefix: &str, recorded: &BufferedSafetensors, seen: &Recorder) -> usize {
    let mut compared = 0;
    for (name, _) in recorded.tensors() {
        let Some(short) = name.strip_prefix(prefix).filter(|short| short.starts_with("llm.")) else {
            continue;
        };
        let expected = recorded.load(&name, &Device::Cpu).unwrap();
        let logits = &seen.0["llm.logits"];
        match short {
            "llm.inputs_embeds" | "llm.attention_mask" | "llm.labels" => continue,
            "llm.logits_last" => {
                let last = logits.i((.., logits.dims()[1] - 1, ..)).unwrap();
                assert_close(&name, &last, &expected, 1e-4);
            }
            "llm.logits_logsumexp" => {
                assert_close(&name, &logits.log_sum_exp(D::Minus1).unwrap(), &expected, 1e-4);
            }
            "llm.logits_argmax" => {
                let argmax = logits.argmax(D::Minus1).unwrap().to_dtype(DType::I64).unwrap();
                let expected = expected.to_dtype(DType::I64).unwrap();
                assert_eq!(argmax.to_vec2::<i64>().unwrap(), expected.to_vec2::<i64>().unwrap(), "{name}");
            }
            _ => assert_close(&name, &seen.0[short], &expected, 1e-4),
        }
        compared += 1;
    }
    compared
}

/// Embeddings (1, S, D) and mask (1, S) of a case; text-only cases recorded ids only.
fn inputs(model: &LanguageModel, case: &Value, recorded: &BufferedSafetensors) -> (Tensor, Option<Tensor>) {
    let id = case["id"].as_str().unwrap();
    match recorded.load(&format!("{id}/llm.inputs_embeds"), &Device::Cpu) {
        Ok(embeds) => {
            let mask = recorded.load(&format!("{id}/llm.attention_mask"), &Device::Cpu).unwrap();
            (embeds, Some(mask.to_dtype(DType::U8).unwrap()))
        }
        Err(_) => (model.embed(&ids(&case["input_ids"])).unwrap().unsqueeze(0).unwrap(), None),
    }
}

/// The reference enforces no context, and one case (`image-224/multi-prompt`) goes beyond its own.
fn with_room(mut config: LanguageModelConfig, case: &Value) -> LanguageModelConfig {
    let needed = case["spliced_length"].as_u64().unwrap() as usize + 24;
    config.max_positions = config.max_positions.max(needed);
    config
}

#[test]
fn every_case_matches_the_reference() {
    for folder in CASES {
        let recorded = tensors(folder);
        for case in json(&format!("{folder}/cases.json"))["cases"].as_array().unwrap() {
            let id = case["id"].as_str().unwrap();
            let config = with_room(config(&format!("{folder}/model")), case);
            let model = load(&format!("{folder}/model"), &config, DType::F32);
            let (embeds, mask) = inputs(&model, case, &recorded);
            for cached in [false, true] {
                let mut seen = Recorder::default();
                let hidden = if cached {
                    model.forward(&embeds, &mut model.new_cache(64), mask.as_ref(), &mut seen).unwrap()
                } else {
                    model.forward_uncached(&embeds, mask.as_ref(), &mut seen).unwrap()
                };
                model.logits(&hidden, &mut seen).unwrap();
                let compared = compare_with_recorded(&format!("{id}/"), &recorded, &seen);
                assert!(compared >= 2, "{folder}/{id}: only {compared} tensors compared");
            }
        }
    }
}

#[test]
fn greedy_ids_match_the_reference() {
    for folder in CASES {
        let recorded = tensors(folder);
        for case in json(&format!("{folder}/cases.json"))["cases"].as_array().unwrap() {
            let id = case["id"].as_str().unwrap();
            let config = with_room(config(&format!("{folder}/model")), case);
            let model = Arc::new(load(&format!("{folder}/model"), &config, DType::F32));
            let (embeds, _) = inputs(&model, case, &recorded);
            let prompt = Prompt { embeds: embeds.squeeze(0).unwrap(), visual_tokens: 0 };
            let decode = decoder(&format!("{folder}/model"));
            let stop = StopRule::new(&config.eos_ids)
                .with_keywords(&[Keyword { text: case["stop"].as_str().unwrap().to_string(), ids: vec![2] }])
                .unwrap();
            let options = GenerationOptions::new(24, SamplingOptions::default());
            let mut generation = Generation::new(model, prompt, options, stop).unwrap();
            let finish = finish(&mut generation, &decode);
            let expected = ids(&case["greedy_ids"]);
            assert_eq!(generation.new_ids(), expected, "{folder}/{id}");
            let stopped = expected.last() == Some(&2);
            assert_eq!(finish == FinishReason::Stop, stopped, "{folder}/{id}");
        }
    }
}

fn finish(generation: &mut Generation, decode: &dyn Fn(&[u32]) -> String) -> FinishReason {
    while !generation.prefill_step().unwrap().is_complete() {}
    while generation.decode_step(decode).unwrap().is_some() {}
    generation.finish().unwrap()
}

/// Decodes ids without special tokens, well enough for stop rules.
fn decoder(folder: &str) -> impl Fn(&[u32]) -> String + use<> {
    let model = SentencePieceModel::from_file(oracle(folder).join("tokenizer.model")).unwrap();
    move |ids| {
        let mut bytes = Vec::new();
        for &id in ids {
            let Some(piece) = model.pieces().get(id as usize) else { continue };
            match piece.r#type() {
                Type::Control | Type::Unknown => {}
                Type::Byte => bytes.push(u8::from_str_radix(&piece.piece()[3..5], 16).unwrap()),
                _ => bytes.extend(piece.piece().replace('▁', " ").bytes()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Padded batches with masks, as training makes them, their loss and the decoder's gradients.
#[test]
fn training_batches_match_the_reference() {
    for (folder, stage, weights) in [
        ("image-grid4", "stage1", "llm"),
        ("image-grid4", "stage2", "llm"),
        ("video-mean", "stage1", "llm"),
        ("video-mean", "stage2", "llm"),
        ("long-video", "stage1", "llm"),
        ("long-video", "stage2", "llm"),
        ("long-video", "stage3", "model_stage2"),
    ] {
        let mut config = config(&format!("{folder}/{weights}"));
        if stage == "stage3" {
            config.rope_scaling = Some(RopeScaling::Linear { factor: 8.0 });
            config.max_positions *= 8;
        }
        let recorded = tensors(folder);
        let prefix = format!("train/{stage}/forward/");
        let get = |name: &str| recorded.load(&format!("{prefix}{name}"), &Device::Cpu).unwrap();
        let embeds = get("llm.inputs_embeds");
        let mask = get("llm.attention_mask").to_dtype(DType::U8).unwrap();

        let model = load(&format!("{folder}/{weights}"), &config, DType::F32);
        let mut seen = Recorder::default();
        let hidden = model.forward_uncached(&embeds, Some(&mask), &mut seen).unwrap();
        model.logits(&hidden, &mut seen).unwrap();
        assert!(compare_with_recorded(&prefix, &recorded, &seen) >= 3);

        let variables = variables(&format!("{folder}/{weights}"), &config);
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        let model = LanguageModel::new(&config, vb).unwrap();
        let hidden = model.forward_uncached(&embeds, Some(&mask), &mut Blind).unwrap();
        let logits = model.logits(&hidden, &mut Blind).unwrap();
        let loss = loss(&logits, &get("llm.labels"));
        let expected = json(&format!("{folder}/cases.json"))["training"][stage]["loss"].as_f64().unwrap();
        let found = loss.to_scalar::<f32>().unwrap() as f64;
        assert!((found - expected).abs() / expected < 1e-5, "{folder}/{stage}: loss {found}, not {expected}");

        let gradients = loss.backward().unwrap();
        let mut compared = 0;
        for (name, variable) in variables.data().lock().unwrap().iter() {
            // The table's gradient comes through the splice, which is not part of the decoder.
            let upstream = if name == "lm_head.weight" { name.clone() } else { format!("model.{name}") };
            let Ok(expected) = recorded.load(&format!("train/{stage}/grad/{upstream}"), &Device::Cpu) else {
                continue;
            };
            if name != "embed_tokens.weight" {
                assert_close(name, gradients.get(variable).unwrap(), &expected, 2e-3);
                compared += 1;
            }
        }
        // Stage 1 trains nothing of the decoder; larger tensors than 8000 numbers were not recorded.
        assert_eq!(compared, if stage == "stage1" { 0 } else { 2 * 9 + 1 }, "{folder}/{stage}");
    }
}

fn variables(folder: &str, config: &LanguageModelConfig) -> VarMap {
    let plain = load(folder, config, DType::F32);
    let mut variables = VarMap::new();
    LanguageModel::new(config, VarBuilder::from_varmap(&variables, DType::F32, plain.device())).unwrap();
    let mut weights = HashMap::new();
    for entry in std::fs::read_dir(oracle(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            weights.extend(candle_core::pickle::read_all(&path).unwrap());
        }
    }
    let names: Vec<String> = variables.data().lock().unwrap().keys().cloned().collect();
    for name in names {
        let upstream = if name == "lm_head.weight" { name.clone() } else { format!("model.{name}") };
        variables.set_one(&name, weights[&upstream].to_dtype(DType::F32).unwrap()).unwrap();
    }
    variables
}

/// Mean cross entropy of position t's logits against label t + 1, where that is not -100.
fn loss(logits: &Tensor, labels: &Tensor) -> Tensor {
    let labels = labels.to_vec2::<i64>().unwrap();
    let (length, width) = (logits.dims()[1], logits.dims()[2]);
    let flat = logits.reshape(((), width)).unwrap();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (sample, labels) in labels.iter().enumerate() {
        for (at, &label) in labels.iter().enumerate().skip(1).filter(|&(_, &label)| label != -100) {
            rows.push((sample * length + at - 1) as u32);
            targets.push(label as u32);
        }
    }
    let rows = Tensor::new(rows, logits.device()).unwrap();
    let targets = Tensor::new(targets, logits.device()).unwrap();
    candle_nn::loss::cross_entropy(&flat.index_select(&rows, 0).unwrap(), &targets).unwrap()
}

// Laws, on a random model with grouped heads.

fn small_config() -> LanguageModelConfig {
    LanguageModelConfig {
        vocab_size: 50,
        hidden_size: 24,
        intermediate_size: 40,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 4,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
        max_positions: 96,
        tie_word_embeddings: false,
        attention_bias: AttentionBias::None,
        bos_id: 1,
        eos_ids: vec![2],
        pad_id: Some(0),
    }
}

/// Numbers that look random and are the same everywhere.
fn noise(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (((i + 1) * (seed + 3)) as f32 * 0.7371).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn small_variables(config: &LanguageModelConfig) -> VarMap {
    let mut variables = VarMap::new();
    LanguageModel::new(config, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu)).unwrap();
    let mut shapes: Vec<_> = variables
        .data()
        .lock()
        .unwrap()
        .iter()
        .map(|(name, variable)| (name.clone(), variable.dims().to_vec()))
        .collect();
    shapes.sort();
    for (seed, (name, shape)) in shapes.into_iter().enumerate() {
        let value = noise(&shape, seed);
        let value = if shape.len() == 1 { value.affine(0.2, 1.0).unwrap() } else { (value * 0.4).unwrap() };
        variables.set_one(name, value).unwrap();
    }
    variables
}

/// Without variables, so that the fused operations of inference run.
fn small_model(config: &LanguageModelConfig, dtype: DType) -> LanguageModel {
    let weights: HashMap<_, _> = small_variables(config)
        .data()
        .lock()
        .unwrap()
        .iter()
        .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
        .collect();
    LanguageModel::new(config, VarBuilder::from_tensors(weights, dtype, &Device::Cpu)).unwrap()
}

#[test]
fn prefill_then_decode_equals_one_full_pass() {
    let model = small_model(&small_config(), DType::F32);
    let embeds = noise(&[1, 40, 24], 5);
    let full = model.forward_uncached(&embeds, None, &mut Blind).unwrap();
    // Room for 4: the cache grows on the way.
    for chunk in [1, 3, 7, 40] {
        let mut cache = model.new_cache(4);
        let parts: Vec<_> = (0..40)
            .step_by(chunk)
            .map(|at| {
                let part = embeds.narrow(1, at, chunk.min(40 - at)).unwrap();
                model.forward(&part, &mut cache, None, &mut Blind).unwrap()
            })
            .collect();
        assert_eq!(cache.len(), 40);
        assert!(cache.capacity() <= model.context_length());
        assert_close(&format!("chunks of {chunk}"), &Tensor::cat(&parts, 1).unwrap(), &full, 1e-5);
    }
}

#[test]
fn blocks_of_rows_equal_one_pass() {
    let mut config = small_config();
    config.max_positions = 2000;
    let model = small_model(&config, DType::F32);
    // More rows than one block of queries, padded.
    let embeds = noise(&[2, 700, 24], 7);
    let mask: Vec<u8> = (0..1400).map(|at| u8::from(at < 700 || at < 700 + 500)).collect();
    let mask = Tensor::from_vec(mask, (2, 700), &Device::Cpu).unwrap();
    let whole = model.forward_uncached(&embeds, Some(&mask), &mut Blind).unwrap();
    let blocks = model.forward(&embeds, &mut model.new_cache(700), Some(&mask), &mut Blind).unwrap();
    assert_close("blocks", &blocks, &whole, 1e-5);
}

#[test]
fn a_batch_equals_its_items() {
    let model = small_model(&small_config(), DType::F32);
    let (long, short) = (noise(&[1, 20, 24], 1), noise(&[1, 13, 24], 2));
    let padded = short.pad_with_zeros(1, 0, 7).unwrap();
    let batch = Tensor::cat(&[&long, &padded], 0).unwrap();
    let mask: Vec<u8> = (0..40).map(|at| u8::from(at < 33)).collect();
    let mask = Tensor::from_vec(mask, (2, 20), &Device::Cpu).unwrap();
    let uncached = model.forward_uncached(&batch, Some(&mask), &mut Blind).unwrap();
    let mut cache = model.new_cache(8);
    let first = model
        .forward(
            &batch.narrow(1, 0, 11).unwrap(),
            &mut cache,
            Some(&mask.narrow(1, 0, 11).unwrap()),
            &mut Blind,
        )
        .unwrap();
    let second =
        model.forward(&batch.narrow(1, 11, 9).unwrap(), &mut cache, Some(&mask), &mut Blind).unwrap();
    let cached = Tensor::cat(&[first, second], 1).unwrap();
    for result in [uncached, cached] {
        for (row, item) in [(0, &long), (1, &short)] {
            let alone = model.forward_uncached(item, None, &mut Blind).unwrap();
            let length = item.dims()[1];
            let ours = result.narrow(0, row, 1).unwrap().narrow(1, 0, length).unwrap();
            assert_close("item", &ours, &alone, 1e-5);
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for tied in [false, true] {
        let mut config = small_config();
        config.tie_word_embeddings = tied;
        let variables = small_variables(&config);
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        let model = LanguageModel::new(&config, vb).unwrap();
        let embeds = model.embed(&[1, 5, 9, 3, 7]).unwrap().unsqueeze(0).unwrap();
        let hidden = model.forward_uncached(&embeds, None, &mut Blind).unwrap();
        let logits = model.logits(&hidden, &mut Blind).unwrap();
        let labels = Tensor::new(&[[-100i64, 9, 3, 7, 4]], &Device::Cpu).unwrap();
        let gradients = loss(&logits, &labels).backward().unwrap();
        assert_eq!(variables.data().lock().unwrap().contains_key("lm_head.weight"), !tied);
        for (name, variable) in variables.data().lock().unwrap().iter() {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
            let largest = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(largest.is_finite() && largest > 0.0, "{name}: {largest}");
        }
    }
}

#[test]
fn grouped_heads_equal_repeated_heads() {
    let grouped = small_config();
    let mut full = grouped.clone();
    full.kv_heads = full.heads;
    let weights = small_variables(&grouped);
    let weights: HashMap<_, _> = weights
        .data()
        .lock()
        .unwrap()
        .iter()
        .map(|(name, variable)| {
            let weight = variable.as_detached_tensor();
            if !(name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight")) {
                return (name.clone(), weight);
            }
            // (2 heads, 4, D), each head three times in a row
            let weight = weight.reshape((2, 1, 4, 24)).unwrap().repeat((1, 3, 1, 1)).unwrap();
            (name.clone(), weight.reshape((24, 24)).unwrap())
        })
        .collect();
    let full =
        LanguageModel::new(&full, VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu)).unwrap();
    let embeds = noise(&[1, 12, 24], 3);
    let expected = full.forward_uncached(&embeds, None, &mut Blind).unwrap();
    let grouped = small_model(&grouped, DType::F32);
    let actual = grouped.forward(&embeds, &mut grouped.new_cache(4), None, &mut Blind).unwrap();
    assert_close("grouped", &actual, &expected, 1e-5);
}

#[test]
fn half_precision_stays_near_f32() {
    let config = small_config();
    let embeds = noise(&[1, 30, 24], 4);
    let exact = small_model(&config, DType::F32).forward_uncached(&embeds, None, &mut Blind).unwrap();
    for (dtype, limit) in [(DType::F16, 3e-2), (DType::BF16, 1e-1)] {
        let model = small_model(&config, dtype);
        let embeds = embeds.to_dtype(dtype).unwrap();
        let hidden = model.forward(&embeds, &mut model.new_cache(8), None, &mut Blind).unwrap();
        assert_eq!(hidden.dtype(), dtype);
        assert_eq!(model.logits(&hidden, &mut Blind).unwrap().dtype(), DType::F32);
        assert_close(&format!("{dtype:?}"), &hidden, &exact, limit);
    }
}

fn small_generation(model: &Arc<LanguageModel>, seed: usize, sampling: SamplingOptions) -> Generation {
    let prompt = Prompt { embeds: noise(&[17, 24], seed), visual_tokens: 4 };
    let options = GenerationOptions { prefill_chunk: 5, ..GenerationOptions::new(12, sampling) };
    Generation::new(model.clone(), prompt, options, StopRule::default()).unwrap()
}

#[test]
fn interleaved_generations_do_not_meet() {
    let model = Arc::new(small_model(&small_config(), DType::F32));
    let sampling = SamplingOptions { temperature: 1.5, seed: 7, ..SamplingOptions::default() };
    let alone: Vec<Vec<u32>> = [1, 2]
        .map(|seed| {
            let mut generation = small_generation(&model, seed, sampling.clone());
            finish(&mut generation, &no_text);
            generation.new_ids().to_vec()
        })
        .into();
    assert_ne!(alone[0], alone[1]);
    let mut first = small_generation(&model, 1, sampling.clone());
    let mut second = small_generation(&model, 2, sampling);
    while !first.prefill_step().unwrap().is_complete() {
        second.prefill_step().unwrap();
    }
    while !second.prefill_step().unwrap().is_complete() {}
    for _ in 0..12 {
        second.decode_step(&no_text).unwrap();
        first.decode_step(&no_text).unwrap();
    }
    assert_eq!(first.new_ids(), alone[0]);
    assert_eq!(second.new_ids(), alone[1]);
    assert_eq!(first.decode_step(&no_text).unwrap(), None);
}

#[test]
fn the_context_is_never_left_silently() {
    let model = Arc::new(small_model(&small_config(), DType::F32)); // 96 positions
    let make = |length: usize, new: usize| {
        let prompt = Prompt { embeds: noise(&[length, 24], 1), visual_tokens: 9 };
        let options = GenerationOptions::new(new, SamplingOptions::default());
        Generation::new(model.clone(), prompt, options, StopRule::default())
    };
    let error = make(96, 5).unwrap_err();
    assert!(
        matches!(error, Error::ContextOverflow { prompt: 96, visual: 9, new: 5, context: 96 }),
        "{error}"
    );
    let mut generation = make(93, 50).unwrap();
    assert_eq!(finish(&mut generation, &no_text), FinishReason::Length);
    assert_eq!(generation.new_ids().len(), 3);
    let embeds = noise(&[1, 97, 24], 1);
    for result in [
        model.forward(&embeds, &mut model.new_cache(1), None, &mut Blind),
        model.forward_uncached(&embeds, None, &mut Blind),
    ] {
        assert!(matches!(result, Err(Error::ContextOverflow { prompt: 97, context: 96, .. })));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let model = Arc::new(small_model(&small_config(), DType::F32));
    let named = |result: Result<Tensor>, word: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    named(model.embed(&[50]), "token id 50");
    assert_eq!(model.embed(&[]).unwrap().dims(), [0, 24]);
    named(model.forward_uncached(&noise(&[1, 3, 23], 1), None, &mut Blind), "23 wide");
    named(model.forward_uncached(&noise(&[1, 0, 24], 1), None, &mut Blind), "needs a position");
    let half = noise(&[1, 3, 24], 1).to_dtype(DType::F16).unwrap();
    named(model.forward_uncached(&half, None, &mut Blind), "F16");
    let mask = Tensor::ones((1, 4), DType::U8, &Device::Cpu).unwrap();
    named(model.forward_uncached(&noise(&[1, 3, 24], 1), Some(&mask), &mut Blind), "attention mask");
    let mut cache = model.new_cache(4);
    model.forward(&noise(&[1, 3, 24], 1), &mut cache, None, &mut Blind).unwrap();
    named(model.forward(&noise(&[2, 3, 24], 1), &mut cache, None, &mut Blind), "sequences");
    assert_eq!(cache.len(), 3);

    let new = |shape: &[usize], new: usize| {
        let prompt = Prompt { embeds: noise(shape, 1), visual_tokens: 0 };
        let options = GenerationOptions::new(new, SamplingOptions::default());
        Generation::new(model.clone(), prompt, options, StopRule::default())
    };
    assert!(new(&[0, 24], 1).unwrap_err().to_string().contains("no tokens"));
    assert!(new(&[3, 20], 1).unwrap_err().to_string().contains("20 wide"));
    assert!(new(&[3, 24], 0).unwrap_err().to_string().contains("new tokens is 0"));
    let early = new(&[3, 24], 1).unwrap().decode_step(&no_text).unwrap_err();
    assert!(early.to_string().contains("0 of 3 prompt tokens"), "{early}");
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let config = small_config();
    let variables = small_variables(&config);
    let broken = Tensor::full(f32::NAN, (50, 24), &Device::Cpu).unwrap();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let model = LanguageModel::new(&config, vb).unwrap();
    variables.data().lock().unwrap()["lm_head.weight"].set(&broken).unwrap();
    let mut generation = small_generation(&Arc::new(model), 1, SamplingOptions::default());
    while !generation.prefill_step().unwrap().is_complete() {}
    let error = generation.decode_step(&no_text).unwrap_err().to_string();
    assert!(error.contains("50 of 50 logits are not finite (id 0: NaN)"), "{error}");
    assert!(generation.decode_step(&no_text).unwrap_err().to_string().contains("failed"));
}

#[test]
fn a_truncated_cache_goes_on_from_there() {
    let model = small_model(&small_config(), DType::F32);
    let embeds = noise(&[1, 20, 24], 5);
    let mut cache = model.new_cache(4);
    let expected = model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
    cache.truncate(12);
    let again = model.forward(&embeds.narrow(1, 12, 8).unwrap(), &mut cache, None, &mut Blind).unwrap();
    assert_close("after truncation", &again, &expected.narrow(1, 12, 8).unwrap(), 1e-5);
}

// Sampling and stopping.

#[test]
fn probabilities_match_the_reference() {
    for case in json("text/decoding.json")["sampling"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let options = SamplingOptions {
            temperature: number("temperature"),
            top_k: Some(number("top_k") as usize),
            top_p: number("top_p"),
            ..SamplingOptions::default()
        };
        let logits: Vec<f32> =
            case["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap() as f32).collect();
        let found = Sampler::new(options).unwrap().probabilities(&logits).unwrap();
        let expected = case["probabilities"].as_object().unwrap();
        for (id, &probability) in found.iter().enumerate() {
            let expected = expected.get(&id.to_string()).map(|value| value.as_f64().unwrap());
            assert_eq!(probability > 0.0, expected.is_some(), "id {id}");
            let expected = expected.unwrap_or(0.0);
            assert!((probability as f64 - expected).abs() <= 1e-5 * expected.max(1e-12), "id {id}");
        }
    }
}

#[test]
fn drawn_ids_follow_the_probabilities_and_the_seed() {
    let logits = [1.0, 3.0, -2.0, 2.0, 0.5];
    let options = |seed| SamplingOptions { temperature: 1.3, top_p: 0.95, seed, ..Default::default() };
    let draw = |seed| {
        let mut sampler = Sampler::new(options(seed)).unwrap();
        (0..4000).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
    };
    let drawn = draw(3);
    assert_eq!(drawn, draw(3));
    assert_ne!(drawn, draw(4));
    let probabilities = Sampler::new(options(3)).unwrap().probabilities(&logits).unwrap();
    for (id, &probability) in probabilities.iter().enumerate() {
        let share = drawn.iter().filter(|&&other| other == id as u32).count() as f32 / 4000.0;
        assert!((share - probability).abs() < 0.03, "id {id}: {share}, not {probability}");
        assert_eq!(share > 0.0, probability > 0.0);
    }
}

#[test]
fn greedy_takes_the_first_of_equals_and_the_penalty_counts() {
    let mut greedy = Sampler::new(SamplingOptions::default()).unwrap();
    assert_eq!(greedy.sample(&[1.0, 2.0, 2.0, -1.0], &[1]).unwrap(), 1);
    let options = SamplingOptions { repetition_penalty: 2.0, ..SamplingOptions::default() };
    let mut penalised = Sampler::new(options).unwrap();
    assert_eq!(penalised.sample(&[1.0, 2.0, 1.5, -1.0], &[1, 1]).unwrap(), 2); // once, however often used
    assert_eq!(penalised.sample(&[-3.0, -2.0, -2.5], &[1]).unwrap(), 2); // a negative logit grows in size
    assert!(greedy.sample(&[0.0, f32::INFINITY], &[]).is_err());
    assert!(greedy.sample(&[], &[]).is_err());
    // A cold temperature does not overflow.
    let options = SamplingOptions { temperature: 1e-40, ..SamplingOptions::default() };
    assert_eq!(Sampler::new(options).unwrap().sample(&[30.0, 31.0], &[]).unwrap(), 1);
    // All ids stay without top-k; ties with the last kept id stay too.
    let options = SamplingOptions { temperature: 1.0, top_k: None, ..SamplingOptions::default() };
    let all = Sampler::new(options.clone()).unwrap().probabilities(&[0.0; 60]).unwrap();
    assert!(all.iter().all(|&probability| probability > 0.0));
    let options = SamplingOptions { top_k: Some(1), ..options };
    let tied = Sampler::new(options).unwrap().probabilities(&[1.0, 2.0, 2.0]).unwrap();
    assert_eq!(tied, [0.0, 0.5, 0.5]);
}

#[test]
fn sampling_options_outside_their_range_are_named() {
    let base = SamplingOptions::default;
    for (options, word) in [
        (SamplingOptions { temperature: -0.1, ..base() }, "temperature"),
        (SamplingOptions { temperature: f64::NAN, ..base() }, "temperature"),
        (SamplingOptions { temperature: f64::INFINITY, ..base() }, "temperature"),
        (SamplingOptions { top_k: Some(0), ..base() }, "top-k"),
        (SamplingOptions { top_p: 0.0, ..base() }, "top-p"),
        (SamplingOptions { top_p: 1.1, ..base() }, "top-p"),
        (SamplingOptions { top_p: f64::NAN, ..base() }, "top-p"),
        (SamplingOptions { repetition_penalty: 0.0, ..base() }, "repetition penalty"),
        (SamplingOptions { repetition_penalty: f64::NAN, ..base() }, "repetition penalty"),
    ] {
        let error = Sampler::new(options).unwrap_err();
        assert!(matches!(&error, Error::Argument(message) if message.contains(word)), "{error}");
    }
}

#[test]
fn the_keyword_rule_matches_the_reference() {
    let decode = decoder("text/tokenizer");
    for case in json("text/decoding.json")["stopping"].as_array().unwrap() {
        let text = case["keyword"].as_str().unwrap().to_string();
        let keyword = Keyword { text, ids: ids(&case["keyword_ids"]) };
        let rule = StopRule::default().with_keywords(&[keyword]).unwrap();
        let new_ids = &ids(&case["ids"])[case["prompt_length"].as_u64().unwrap() as usize..];
        let expected = case["stop"].as_bool().unwrap();
        assert_eq!(rule.ends(new_ids, &decode), expected, "{case}");
    }
}

#[test]
fn stop_strings_end_and_cut_the_answer() {
    let letters = |ids: &[u32]| ids.iter().map(|&id| char::from(id as u8)).collect::<String>();
    let of = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let rule = StopRule::new(&[2]).with_strings(&["END".to_string(), "\n\n".to_string()]).unwrap();
    assert!(!rule.ends(&[], &letters));
    assert!(!rule.ends(&of("a red EN"), &letters));
    assert!(rule.ends(&of("a red END"), &letters));
    assert!(rule.ends(&[65, 2], &letters));
    assert_eq!(rule.answer(" a red END of it"), "a red");
    assert_eq!(rule.settled("a red EN"), "a red ");
    assert_eq!(rule.settled("a red ENT"), "a red ENT");
    assert_eq!(rule.settled("a\nb\n"), "a\nb");
    assert_eq!(rule.settled("a END b"), "a ");
    let keyword = Keyword { text: "###".to_string(), ids: vec![9] };
    let rule = StopRule::new(&[2]).with_keywords(&[keyword]).unwrap();
    assert_eq!(rule.answer("yes ###\n"), "yes");
    assert_eq!(rule.answer("a ### b"), "a ### b"); // as the reference: only at the end
    assert_eq!(rule.settled("yes ##"), "yes ");
    assert_eq!(rule.settled("ééé"), "ééé");
    assert!(StopRule::default().with_strings(&[String::new()]).is_err());
    assert!(StopRule::default().with_keywords(&[Keyword { text: "x".into(), ids: vec![] }]).is_err());
}

// Configuration.

#[test]
fn the_context_includes_rope_scaling() {
    assert_eq!(config("image-224/model").max_positions, 512);
    let long = config("long-video/model");
    assert_eq!(long.rope_scaling, Some(RopeScaling::Linear { factor: 8.0 }));
    assert_eq!(long.max_positions, 2048);
    assert_eq!(LanguageModelConfig::context_length(4096, Some(RopeScaling::Linear { factor: 16.0 })), 65536);
}

#[test]
fn configurations_it_cannot_have_are_named() {
    let base: Value = json("image-224/model/config.json");
    let with = |key: &str, value: Value| {
        let mut config = base.clone();
        config[key] = value;
        LanguageModelConfig::from_json(config.to_string().as_bytes())
    };
    for (key, value, word) in [
        ("hidden_size", Value::Null, "hidden_size"),
        ("hidden_size", 0.into(), "hidden_size"),
        ("num_attention_heads", 0.into(), "num_attention_heads"),
        ("num_attention_heads", 7.into(), "num_attention_heads"),
        ("num_key_value_heads", 2.into(), "num_key_value_heads"),
        ("head_dim", 5.into(), "head_dim"),
        ("rope_theta", (-1.0).into(), "rope_theta"),
        ("eos_token_id", 384.into(), "eos_token_id"),
        ("rope_scaling", serde_json::json!({"type": "linear", "factor": 0.5}), "rope_scaling"),
        ("rope_scaling", serde_json::json!({"type": "linear"}), "factor"),
    ] {
        let error = with(key, value).unwrap_err();
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(word), "{error}");
    }
    for (key, value) in [
        ("hidden_act", "gelu".into()),
        ("mlp_bias", true.into()),
        ("rope_scaling", serde_json::json!({"rope_type": "yarn", "factor": 2.0})),
    ] {
        assert!(matches!(with(key, value).unwrap_err(), Error::Unsupported { .. }));
    }
    assert_eq!(with("eos_token_id", serde_json::json!([2, 7])).unwrap().eos_ids, [2, 7]);
    assert_eq!(with("pad_token_id", (-1).into()).unwrap().pad_id, None);
}
