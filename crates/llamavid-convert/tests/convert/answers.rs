//! What a converted folder answers is what its inputs answered.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llamavid_models::config::Extension;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::observer::Blind;
use llamavid_models::token_generation::{FeatureKind, Questions};
use llamavid_runtime::model_folder::ModelFolder;

use crate::folders::{converted, options, oracle, random_model, run, stage_one, tiny_model};

/// New tokens of an answer.
const ANSWER: usize = 12;

/// The logits of every position of a greedy answer about two frames, and its tokens.
pub fn answer(folder: &ModelFolder) -> (Vec<Vec<f32>>, Vec<u32>) {
    let device = &Device::Cpu;
    let side = folder.preprocessing().size;
    let pixels: Vec<f32> =
        (0..2 * 3 * side * side).map(|index| ((index % 251) as f32 - 125.) / 60.).collect();
    let pixels = Tensor::from_vec(pixels, (2, 3, side, side), device).unwrap();
    let features = folder.visual_encoder(DType::F32, device).unwrap().forward(&pixels, &mut Blind).unwrap();
    let tokenizer = folder.query_tokenizer().unwrap();
    let (ids, mask) = tokenizer.encode_batch(&["what is shown?".to_owned()]).unwrap();
    let questions = Questions {
        input_ids: Tensor::new(ids, device).unwrap(),
        attention_mask: Tensor::new(mask, device).unwrap(),
    };
    let generator = folder.token_generator(DType::F32, device).unwrap();
    let tokens = generator.generate(&features, FeatureKind::Pixels, &questions, &mut Blind).unwrap();
    let model = folder.language_model(DType::F32, device).unwrap();
    let text = model.embed(&folder.llama_tokenizer().unwrap().encode("what is shown?", true)).unwrap();
    let prompt = Tensor::cat(&[&tokens.squeeze(0).unwrap(), &text], 0).unwrap().unsqueeze(0).unwrap();

    greedy(&model, prompt, ANSWER)
}

/// The logits and the likeliest token of each step behind a prompt (1, S, D).
pub fn greedy(model: &LanguageModel, prompt: Tensor, count: usize) -> (Vec<Vec<f32>>, Vec<u32>) {
    let (mut cache, mut embeds) = (model.new_cache(64), prompt);
    let (mut all, mut answer) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let hidden = model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
        let last = hidden.narrow(1, hidden.dims()[1] - 1, 1).unwrap();
        let logits: Vec<f32> =
            model.logits(&last, &mut Blind).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let best = logits.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1)).unwrap().0;
        answer.push(best as u32);
        all.push(logits);
        embeds = model.embed(&[best as u32]).unwrap().unsqueeze(0).unwrap();
    }
    (all, answer)
}

fn open(folder: &Path) -> ModelFolder {
    ModelFolder::open(folder).unwrap()
}

#[test]
fn a_published_folder_answers_the_same() {
    let (_place, output) = converted();
    assert_eq!(answer(&open(&output)), answer(&open(&random_model())));
}

#[test]
fn the_embedded_model_answers_the_same_in_shards() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("tiny");
    let mut options = options(&[tiny_model()], &output);
    options.shard_bytes = Some(1 << 20);
    run(&options).unwrap();
    assert!(output.join("model-00002-of-00006.safetensors").is_file());
    assert_eq!(answer(&open(&output)), answer(&open(&tiny_model())));
}

#[test]
fn parts_from_many_places_answer_as_they_do_together() {
    let place = tempfile::tempdir().unwrap();
    let (case, output) = (oracle("video-mean"), place.path().join("out"));
    // Sizes that the reference has in its code are in no file; the weights show all but the heads.
    let sizes: Extension = serde_json::from_str(r#"{"vision": {"heads": 2}}"#).unwrap();
    let adapter = place.path().join("stage1");
    stage_one("video-mean", &adapter);
    let inputs = ["instruct_blip_vicuna7b_trimmed.pth", "bert", "llm", "eva_vit_g.pth", "processor"];
    let mut inputs: Vec<_> = inputs.iter().map(|name| case.join(name)).collect();
    inputs.push(adapter.join("mm_projector.bin"));
    run(&options(&inputs, &output)).unwrap();

    // Put together by hand in the layout in which stage 1 leaves them.
    let manual = place.path().join("manual");
    crate::folders::copy(&adapter, &manual.join("model"));
    for name in ["llm", "bert", "processor"] {
        crate::folders::copy(&case.join(name), &manual.join(name));
    }
    std::fs::copy(case.join("eva_vit_g.pth"), manual.join("eva_vit_g.pth")).unwrap();
    let block = std::fs::read(output.join("config.json")).unwrap();
    let block: serde_json::Value = serde_json::from_slice(&block).unwrap();
    let mut all: Extension = serde_json::from_value(block["llamavid"].clone()).unwrap();
    all.vision.heads = sizes.vision.heads;
    let manual = ModelFolder::open_with_sizes(&manual.join("model"), Some(&all)).unwrap();
    let manual = manual.with_base(&case.join("llm"));
    let output = ModelFolder::open_with_sizes(&output, Some(&all)).unwrap();
    assert_eq!(answer(&output), answer(&manual));
}

#[test]
fn a_dtype_changes_the_numbers_and_is_said() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("half");
    let mut options = options(&[random_model()], &output);
    options.dtype = Some(DType::F16);
    run(&options).unwrap();
    let config = std::fs::read_to_string(output.join("config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"float16\""), "{config}");
    let ((half, _), (whole, _)) = (answer(&open(&output)), answer(&open(&random_model())));
    assert_ne!(half, whole);
    let distance = half[0].iter().zip(&whole[0]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let largest = whole[0].iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(distance / largest < 1e-2, "{distance} of {largest}");
}
