//! The folder that is made: whole or not there, and every change of it noticed.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{DType, Device};
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{Cancellation, Error, ErrorCode};

use crate::folders::{converted, copy, names, options, oracle, random_model, refused, run, tiny_model};

fn load(folder: &Path) -> Result<(), Error> {
    let folder = ModelFolder::open(folder)?;
    folder.visual_encoder(DType::F32, &Device::Cpu)?;
    folder.token_generator(DType::F32, &Device::Cpu)?;
    folder.language_model(DType::F32, &Device::Cpu)?;
    folder.llama_tokenizer()?;
    folder.query_tokenizer()?;
    folder.generation_defaults().map(drop)
}

#[test]
fn it_has_the_promised_layout() {
    let (place, output) = converted();
    assert_eq!(names(place.path()), ["converted"]);
    assert_eq!(
        names(&output),
        [
            "bert",
            "config.json",
            "generation_config.json",
            "manifest.json",
            "model.safetensors",
            "processor",
            "special_tokens_map.json",
            "tokenizer.model",
            "tokenizer_config.json"
        ]
    );
    let manifest = Manifest::read(&output).unwrap().unwrap();
    assert!(manifest.files.contains_key("bert/vocab.txt"));
    manifest.verify(&output, &Cancellation::default(), |_| {}).unwrap();
    let origin = &manifest.tensors["model.vision_tower.vision_tower.blocks.0.attn.qkv.weight"];
    assert_eq!((origin.source.as_str(), origin.key.as_str()), ("eva_vit_g.pth", "blocks.0.attn.qkv.weight"));
    assert_eq!(origin.file, "model.safetensors");
}

#[test]
fn it_does_not_look_beside_itself() {
    let (place, output) = converted();
    let alone = ModelFolder::open(&output).unwrap();
    // A visual encoder and a processor of another model, where a published folder would look for its own.
    let other = oracle("image-336");
    fs::copy(other.join("eva_vit_g.pth"), place.path().join("eva_vit_g.pth")).unwrap();
    copy(&other.join("processor"), &place.path().join("processor"));
    copy(&other.join("bert"), &place.path().join("bert"));
    load(&output).unwrap();
    let beside = ModelFolder::open(&output).unwrap();
    assert_eq!(beside.config().visual, alone.config().visual);
}

#[test]
fn it_converts_again_to_the_same() {
    let (place, output) = converted();
    let again = place.path().join("again");
    run(&options(std::slice::from_ref(&output), &again)).unwrap();
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights(&again), weights(&output));
}

#[test]
fn every_damage_to_a_file_is_noticed() {
    let (_place, output) = converted();
    let manifest = Manifest::read(&output).unwrap().unwrap();
    let other = tempfile::tempdir().unwrap();
    let other = other.path().join("tiny");
    run(&options(&[tiny_model()], &other)).unwrap();
    for name in manifest.files.keys() {
        let path = output.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        refused(load(&output), ErrorCode::ModelInvalid, &[name]);

        fs::remove_file(&path).unwrap();
        let code = if name == "config.json" { ErrorCode::ModelFileMissing } else { ErrorCode::ModelInvalid };
        refused(load(&output), code, &[name]);

        if other.join(name).is_file() && fs::read(other.join(name)).unwrap() != whole {
            fs::copy(other.join(name), &path).unwrap();
            let error = load(&output).unwrap_err();
            assert_eq!(error.code, ErrorCode::ModelInvalid, "{name}: {error}");
        }
        // As long as before, but other bytes: that shows in the checksum.
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(&path, &changed).unwrap();
        refused(
            manifest.verify(&output, &Cancellation::default(), |_| {}),
            ErrorCode::ModelInvalid,
            &[name, "sha256"],
        );
        fs::write(&path, &whole).unwrap();
    }
    load(&output).unwrap();
}

#[test]
fn a_damaged_manifest_is_noticed() {
    let (_place, output) = converted();
    let path = output.join("manifest.json");
    let whole = fs::read_to_string(&path).unwrap();
    let outside = whole.replacen("\"bert/vocab.txt\"", "\"../vocab.txt\"", 1);
    for (text, code) in [
        (&whole[..whole.len() / 2], ErrorCode::ModelInvalid),
        ("{}", ErrorCode::ModelInvalid),
        (outside.as_str(), ErrorCode::ModelInvalid),
        (&whole.replacen("\"version\": 1", "\"version\": 9", 1), ErrorCode::ModelUnsupported),
    ] {
        fs::write(&path, text).unwrap();
        refused(load(&output), code, &["manifest.json"]);
    }
}

#[test]
fn an_output_that_is_there_stays_as_it_is() {
    let (_place, output) = converted();
    let before = fs::read(output.join("manifest.json")).unwrap();
    let result = run(&options(&[tiny_model()], &output));
    refused(result, ErrorCode::InvalidArgument, &["is there already"]);
    assert_eq!(fs::read(output.join("manifest.json")).unwrap(), before);
    // An empty folder is as good as none.
    let place = tempfile::tempdir().unwrap();
    run(&options(&[random_model()], place.path())).unwrap();
    load(place.path()).unwrap();
}

#[test]
fn two_conversions_to_one_folder_do_not_meet() {
    let place = tempfile::tempdir().unwrap();
    let options = options(&[random_model()], &place.path().join("out"));
    let second = Mutex::new(None);
    let on_progress = |_| {
        second.lock().unwrap().get_or_insert_with(|| run(&options));
    };
    llamavid_convert::convert(&options, &Cancellation::default(), &on_progress).unwrap();
    let second = second.into_inner().unwrap().unwrap();
    refused(second, ErrorCode::StoreLocked, &["another process"]);
    load(&options.output).unwrap();
    assert_eq!(names(place.path()), ["out"]);
}

#[test]
fn what_a_killed_process_left_goes() {
    let place = tempfile::tempdir().unwrap();
    let left = place.path().join(".out.converting");
    fs::create_dir_all(left.join("bert")).unwrap();
    fs::write(left.join("model.safetensors"), "half").unwrap();
    fs::write(left.join("lock"), "").unwrap();
    assert!(ModelFolder::open(&left).is_err());
    let output = place.path().join("out");
    run(&options(&[random_model()], &output)).unwrap();
    load(&output).unwrap();
    assert_eq!(names(place.path()), ["out"]);
}
