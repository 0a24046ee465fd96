//! What training writes, loaded as a user's model is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "../../llamavid-train/tests/laws/model.rs"]
mod model;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::observer::Blind;
use llamavid_runtime::ErrorCode;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_train::{
    LoraOutput, LoraSettings, OutputOptions, Schedule, Stage, Trainer, TrainerOptions, WeightFormat,
};

/// A folder with everything that lies beside a trained model: base model, visual encoder, vocabulary, processor.
fn surroundings() -> tempfile::TempDir {
    let (folder, case) = (tempfile::tempdir().unwrap(), model::oracle("video-mean"));
    fs::copy(case.join("eva_vit_g.pth"), folder.path().join("eva_vit_g.pth")).unwrap();
    for name in ["llm", "bert", "processor"] {
        let to = folder.path().join(name);
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(case.join(name)).unwrap().flatten() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    folder
}

fn hidden(language_model: &LanguageModel) -> Vec<f32> {
    let embeds = language_model.embed(&[5, 6, 7, 8]).unwrap().unsqueeze(0).unwrap();
    let hidden: Tensor = language_model.forward_uncached(&embeds, None, &mut Blind).unwrap();
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

fn expect_near(left: &[f32], right: &[f32]) {
    for (left, right) in left.iter().zip(right) {
        assert!((left - right).abs() < 1e-4, "{left} {right}");
    }
}

fn load(folder: &Path) -> LanguageModel {
    let folder = ModelFolder::open(folder).unwrap();
    folder.visual_encoder(DType::F32, &Device::Cpu).unwrap();
    folder.token_generator(DType::F32, &Device::Cpu).unwrap();
    folder.llama_tokenizer().unwrap();
    folder.query_tokenizer().unwrap();
    folder.language_model(DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_trained_model_loads() {
    let beside = surroundings();
    let stage = model::at(Stage::Instruction, DType::F32);
    for (name, format) in [("torch", WeightFormat::Torch), ("safetensors", WeightFormat::Safetensors)] {
        let folder = beside.path().join(name);
        let options = OutputOptions { format, ..OutputOptions::default() };
        stage.output.write(&folder, &stage.parameters, &stage.model, &options).unwrap();
        assert_eq!(hidden(&load(&folder)), hidden(stage.model.language_model()));
    }
}

#[test]
fn what_stage_one_writes_loads_with_the_base_model_beside_it() {
    let beside = surroundings();
    let stage = model::at(Stage::Alignment, DType::F32);
    let folder = beside.path().join("stage1");
    stage.output.write(&folder, &stage.parameters, &stage.model, &OutputOptions::default()).unwrap();
    assert_eq!(hidden(&load(&folder)), hidden(stage.model.language_model()));

    // Elsewhere, the base model has to be named.
    fs::rename(beside.path().join("llm"), beside.path().join("base")).unwrap();
    let opened = ModelFolder::open(&folder).unwrap();
    let error = opened.language_model(DType::F32, &Device::Cpu).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelFileMissing);
    let opened = ModelFolder::open(&folder).unwrap().with_base(&beside.path().join("base"));
    let loaded = opened.language_model(DType::F32, &Device::Cpu).unwrap();
    assert_eq!(hidden(&loaded), hidden(stage.model.language_model()));
}

#[test]
fn adapters_load_with_the_base_model_beside_them() {
    let beside = surroundings();
    let adapted = model::at_with(Stage::Instruction, DType::F32, Some(LoraSettings::everywhere(4, 8., 0.)));
    let output = adapted.output.clone();
    let options = TrainerOptions::new(Schedule::Constant { warmup: 0 });
    let mut trainer: Trainer = model::trainer(adapted, 1e-2, options);
    (0..4).for_each(|step| assert!(trainer.step(&[model::examples(step)]).is_ok()));
    let folder = beside.path().join("adapter");
    let apart = OutputOptions { lora: LoraOutput::Apart, ..OutputOptions::default() };
    output.write(&folder, trainer.parameters(), trainer.model(), &apart).unwrap();
    let loaded = load(&folder);
    expect_near(&hidden(&loaded), &hidden(trainer.model().language_model()));
    assert_ne!(hidden(&loaded), hidden(model::at(Stage::Instruction, DType::F32).model.language_model()));

    fs::remove_file(folder.join("adapter_model.safetensors")).unwrap();
    let error = ModelFolder::open(&folder).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelFileMissing);
    assert!(error.message.contains("adapter_model.safetensors"));
}
