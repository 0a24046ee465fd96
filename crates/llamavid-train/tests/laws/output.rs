use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llamavid_train::{
    LoraOutput, LoraSettings, OutputOptions, Schedule, Stage, StageFiles, StageModel, TrainerOptions,
    VisionFiles, WeightFormat,
};
use llamavid_weights::key_table::LORA;
use llamavid_weights::{Checkpoint, Loader};
use serde_json::Value;

use crate::model::{at, at_with, examples, files, oracle, settings, trainer};

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn described(checkpoint: &Checkpoint) -> BTreeMap<String, (Vec<usize>, DType)> {
    let one =
        |name: &str| (name.to_owned(), (checkpoint.shape(name).unwrap(), checkpoint.dtype(name).unwrap()));
    checkpoint.names().map(one).collect()
}

fn loss(model: &StageModel) -> f32 {
    model.model.loss(&examples(1)).unwrap().mean().unwrap().to_scalar().unwrap()
}

/// The model that was written, at the beginning of the last stage.
fn from_written(folder: &Path) -> StageModel {
    let files = StageFiles {
        base: folder.to_path_buf(),
        query_model: None,
        adapter: None,
        ..files(Stage::Instruction)
    };
    StageModel::assemble(&files, &settings(Stage::LongVideo), DType::F32, 1, &Device::Cpu).unwrap()
}

#[test]
fn a_model_is_written_as_the_reference_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = at(Stage::Instruction, DType::F32);
    model.output.write(folder.path(), &model.parameters, &model.model, &OutputOptions::default()).unwrap();

    let reference = oracle("video-mean/model");
    let (ours, theirs) =
        (Checkpoint::open_folder(folder.path()).unwrap(), Checkpoint::open_folder(&reference).unwrap());
    assert_eq!(described(&ours), described(&theirs));
    // What the recorded step did not train is equal to the last bit.
    let frozen = |name: &&str| {
        name.contains("vision_tower") || name.ends_with("inv_freq") || name.ends_with("position_ids")
    };
    let frozen: Vec<&str> = theirs.names().filter(frozen).collect();
    assert!(frozen.len() > 20);
    for name in frozen {
        let (ours, theirs) =
            (ours.read(name, &Device::Cpu).unwrap(), theirs.read(name, &Device::Cpu).unwrap());
        assert_eq!(numbers(&ours), numbers(&theirs), "{name}");
    }
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = "pytorch_model.bin.index.json";
    let total = |index: Value| index["metadata"]["total_size"].clone();
    assert_eq!(total(json(&folder.path().join(index))), total(json(&reference.join(index))));
    assert_eq!(json(&folder.path().join("config.json"))["torch_dtype"], "float32");
    for name in
        ["tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
    {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        assert_eq!(json(&folder.path().join(name)), json(&reference.join(name)), "{name}");
    }
}

#[test]
fn a_resized_position_table_is_written_as_it_is_used() {
    // Recorded with a file for 4 x 4 patches and pictures of 8 x 8.
    let case = oracle("image-grid4");
    let files = StageFiles {
        base: case.join("llm"),
        vision: VisionFiles::Eva(case.join("eva_vit_g.pth")),
        query_model: None,
        adapter: Some(case.join("mm_projector.bin")),
        bert: case.join("bert"),
        processor: Some(case.join("processor")),
    };
    let mut settings = settings(Stage::Instruction);
    settings.compression = Some("grid:4".into());
    settings.queries = 6;
    settings.extension = Some(serde_json::json!({
        "vision": { "imageSize": 112, "width": 32, "depth": 2, "heads": 2, "mlpWidth": 139 },
    }));
    let model = StageModel::assemble(&files, &settings, DType::F32, 1, &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.output.write(folder.path(), &model.parameters, &model.model, &OutputOptions::default()).unwrap();
    let name = "model.vision_tower.vision_tower.pos_embed";
    let read = |folder: &Path| Checkpoint::open_folder(folder).unwrap().read(name, &Device::Cpu).unwrap();
    let (ours, theirs) = (read(folder.path()), read(&case.join("model")));
    assert_eq!(ours.dims(), theirs.dims());
    for (ours, theirs) in numbers(&ours).iter().zip(numbers(&theirs)) {
        assert!((ours - theirs).abs() < 1e-6);
    }
}

#[test]
fn an_adapter_is_written_as_the_reference_writes_it() {
    for start_end in [false, true] {
        let case = oracle(if start_end { "start-end" } else { "video-mean" });
        let mut settings = settings(Stage::Alignment);
        settings.image_start_end = start_end;
        settings.queries = if start_end { 4 } else { 8 };
        let files = StageFiles {
            base: case.join("llm"),
            vision: VisionFiles::Eva(case.join("eva_vit_g.pth")),
            query_model: Some(case.join("instruct_blip_vicuna7b_trimmed.pth")),
            adapter: None,
            bert: case.join("bert"),
            processor: Some(case.join("processor")),
        };
        if start_end {
            settings.extension = Some(serde_json::json!({
                "vision": { "imageSize": 56, "width": 32, "depth": 2, "heads": 2, "mlpWidth": 139 },
            }));
        }
        let model = StageModel::assemble(&files, &settings, DType::F32, 1, &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model
            .output
            .write(folder.path(), &model.parameters, &model.model, &OutputOptions::default())
            .unwrap();
        let described =
            |path: &Path| described(&Checkpoint::open_file(&path.join("mm_projector.bin")).unwrap());
        assert_eq!(described(folder.path()), described(&case));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

#[test]
fn what_a_stage_writes_begins_the_next() {
    let model = at(Stage::Instruction, DType::F32);
    let expected = loss(&model);
    for (dtype, format, tolerance) in [
        (DType::F32, WeightFormat::Torch, 0.),
        (DType::F32, WeightFormat::Safetensors, 0.),
        (DType::BF16, WeightFormat::Torch, 0.05),
        (DType::F16, WeightFormat::Safetensors, 0.01),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = OutputOptions { dtype, format, shard_bytes: 100_000, ..OutputOptions::default() };
        model.output.write(folder.path(), &model.parameters, &model.model, &options).unwrap();
        let again = from_written(folder.path());
        assert!(
            (loss(&again) - expected).abs() <= tolerance,
            "{dtype:?} {format:?}: {} {expected}",
            loss(&again)
        );
        let shards = fs::read_dir(folder.path()).unwrap().flatten().filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.contains("-of-")
                && name.ends_with(if format == WeightFormat::Torch { ".bin" } else { ".safetensors" })
        });
        assert!(shards.count() > 3);
    }
}

#[test]
fn adapters_are_written_merged_or_apart() {
    let model = at_with(Stage::Instruction, DType::F32, Some(LoraSettings::everywhere(4, 8., 0.1)));
    let (output, folder) = (model.output.clone(), tempfile::tempdir().unwrap());
    let mut trainer = trainer(model, 1e-2, TrainerOptions::new(Schedule::Constant { warmup: 0 }));
    (0..3).for_each(|step| assert!(trainer.step(&[examples(step)]).is_ok()));
    let expected = trainer.model().loss(&examples(1)).unwrap().mean().unwrap().to_scalar::<f32>().unwrap();

    let merged = folder.path().join("merged");
    output.write(&merged, trainer.parameters(), trainer.model(), &OutputOptions::default()).unwrap();
    assert!((loss(&from_written(&merged)) - expected).abs() < 1e-4);

    let apart = folder.path().join("apart");
    let options = OutputOptions { lora: LoraOutput::Apart, ..OutputOptions::default() };
    output.write(&apart, trainer.parameters(), trainer.model(), &options).unwrap();
    assert!(apart.join("mm_projector.bin").is_file() && apart.join("config.json").is_file());
    // Beside the base model again.
    let lora = llamavid_models::language_model::LoraConfig::from_json(
        &fs::read(apart.join("adapter_config.json")).unwrap(),
    )
    .unwrap();
    let adapters = Checkpoint::open_file(&apart.join("adapter_model.safetensors")).unwrap();
    assert!(adapters.contains("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"));
    let base = at(Stage::Instruction, DType::F32);
    let loader = Loader::new(adapters, &LORA, DType::F32, &Device::Cpu);
    let adapted = base.model.language_model().with_lora(&lora, loader.var_builder()).unwrap();
    loader.finish().unwrap();
    let embeds = adapted.embed(&[7, 8, 9]).unwrap().unsqueeze(0).unwrap();
    let hidden = |model: &llamavid_models::language_model::LanguageModel| {
        numbers(&model.forward_uncached(&embeds, None, &mut llamavid_models::observer::Blind).unwrap())
    };
    assert_eq!(hidden(&adapted), hidden(trainer.model().language_model()));
}
