//! A small model with everything in it, put together from recorded files, and examples for it.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use llamavid_models::prompt::placeholders::IMAGE_TOKEN;
use llamavid_models::prompt::splice::SpliceKind;
use llamavid_models::token_generation::FeatureKind;
use llamavid_train::data::Sample;
use llamavid_train::{
    Example, LoraSettings, Optimizer, Stage, StageFiles, StageModel, StageSettings, Trainer, TrainerOptions,
    VisionFiles, Visual, adamw_groups,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub fn oracle(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/oracle").join(folder)
}

/// The recorded model `video-mean` at the beginning of a stage. Stage 3 starts from what stage 2 wrote.
pub fn at(stage: Stage, dtype: DType) -> StageModel {
    at_with(stage, dtype, None)
}

/// The same with adapters.
pub fn at_with(stage: Stage, dtype: DType, lora: Option<LoraSettings>) -> StageModel {
    let settings = StageSettings { lora, ..settings(stage) };
    StageModel::assemble(&files(stage), &settings, dtype, 1, &Device::Cpu).unwrap()
}

pub fn files(stage: Stage) -> StageFiles {
    let folder = oracle("video-mean");
    StageFiles {
        base: folder.join(if stage == Stage::LongVideo { "model" } else { "llm" }),
        vision: VisionFiles::Eva(folder.join("eva_vit_g.pth")),
        query_model: Some(folder.join("instruct_blip_vicuna7b_trimmed.pth")),
        adapter: (stage == Stage::Instruction).then(|| folder.join("mm_projector.bin")),
        bert: folder.join("bert"),
        processor: Some(folder.join("processor")),
    }
}

pub fn settings(stage: Stage) -> StageSettings {
    StageSettings {
        stage,
        projector: "mlp2x_gelu".into(),
        compression: Some("mean".into()),
        queries: 8,
        image_start_end: false,
        image_patch: false,
        image_aspect_ratio: "square".into(),
        max_length: 512,
        vision_name: "./eva_vit_g.pth".into(),
        processor_name: "./processor".into(),
        extension: Some(serde_json::json!({
            "vision": { "imageSize": 84, "width": 32, "depth": 2, "heads": 2, "mlpWidth": 139 },
        })),
        lora: None,
    }
}

/// Pictures, a video, features and text alone, of different lengths; always the same for a seed.
pub fn examples(seed: u64) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut example = |index: usize, frames: usize, prompts: usize| {
        let mut ids = vec![1i64];
        let mut labels = vec![-100i64];
        for _ in 0..prompts.min(frames) {
            ids.push(IMAGE_TOKEN);
            labels.push(-100);
            for place in 0..5 + index {
                let id = rng.random_range(3..384);
                ids.push(id);
                labels.push(if place < 2 { -100 } else { id });
            }
        }
        if frames == 0 {
            ids.extend([17, 18, 19, 2]);
            labels.extend([-100, 18, 19, 2]);
        }
        let sample = Sample {
            id: format!("sample-{seed}-{index}"),
            ids,
            labels,
            prompts: (0..prompts).map(|prompt| format!("What is it, number {prompt}?")).collect(),
            splice: SpliceKind::PerPlaceholder,
        };
        let mut values = |count| (0..count).map(|_| rng.random_range(-1f32..1.)).collect::<Vec<_>>();
        let visual = match (frames, index) {
            (0, _) => Visual::None,
            (frames, 3) => {
                let rows =
                    Tensor::from_vec(values(frames * 36 * 32), (frames, 36, 32), &Device::Cpu).unwrap();
                Visual::Features(rows, FeatureKind::Precomputed)
            }
            (frames, _) => {
                let pixels = values(frames * 3 * 84 * 84);
                Visual::Pixels(Tensor::from_vec(pixels, (frames, 3, 84, 84), &Device::Cpu).unwrap())
            }
        };
        Example { sample, visual }
    };
    vec![example(0, 1, 1), example(1, 3, 1), example(2, 1, 2), example(3, 2, 1), example(4, 0, 1)]
}

pub fn trainer(model: StageModel, rate: f64, options: TrainerOptions) -> Trainer {
    let optimizer = Optimizer::new(adamw_groups(&model.parameters, rate, 0.01, &[])).unwrap();
    Trainer::new(model.parameters, model.model, optimizer, options).unwrap()
}
