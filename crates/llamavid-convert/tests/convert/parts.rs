//! Inputs that are missing, twice there, damaged, or of another model.

use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use llamavid_runtime::{Cancellation, ErrorCode};
use llamavid_weights::Checkpoint;
use llamavid_weights::key_table::VISION_TOWER;
use llamavid_weights::writer::write_safetensors;

use crate::folders::{copy, names, options, oracle, random_model, refused, run, stage_one, tiny_model};

#[test]
fn each_missing_part_is_named_with_where_to_get_it() {
    let place = tempfile::tempdir().unwrap();
    let (case, adapter) = (oracle("video-mean"), place.path().join("stage1"));
    stage_one("video-mean", &adapter);
    let all = [case.join("llm"), adapter, case.join("eva_vit_g.pth"), case.join("bert")];
    let missing = ["language model", "trained parts", "visual encoder", "vocabulary"];
    for (left_out, word) in missing.iter().enumerate() {
        let inputs: Vec<PathBuf> = all
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != left_out)
            .map(|(_, path)| path.clone())
            .collect();
        let error = run(&options(&inputs, &place.path().join("out"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::ModelFileMissing, "{error}");
        assert!(error.message.contains(word), "{word}: {}", error.message);
        assert!(error.hint.is_some());
    }
    assert_eq!(names(place.path()), ["stage1"]);
}

#[test]
fn two_of_a_part_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let other = place.path().join("other.pth");
    fs::copy(oracle("video-mean").join("eva_vit_g.pth"), &other).unwrap();
    let eva = random_model().join("eva_vit_g.pth");
    for (inputs, word) in [
        (vec![random_model(), eva.clone(), other], "visual encoder"),
        (vec![random_model(), oracle("video-mean").join("llm")], "language model"),
    ] {
        let result = run(&options(&inputs, &place.path().join("out")));
        refused(result, ErrorCode::ModelInvalid, &[word, "both"]);
    }
    // The same file by two paths is one.
    run(&options(&[random_model(), eva.clone(), eva], &place.path().join("out"))).unwrap();
}

#[test]
fn weights_of_another_model_are_named() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    let vision = Checkpoint::open_folder(&tiny_model()).unwrap().under(VISION_TOWER);
    let read = |name: &str| (name.to_owned(), vision.read(name, &Device::Cpu).unwrap());
    let file = place.path().join("wider.safetensors");
    let mut out = fs::File::create(&file).unwrap();
    write_safetensors(&mut out, &vision.names().map(read).collect(), &Default::default()).unwrap();
    let result = run(&options(&[random_model(), file], &output));
    refused(result, ErrorCode::ModelInvalid, &["wider.safetensors", "`pos_embed`", "expected shape"]);
    assert_eq!(names(place.path()), ["wider.safetensors"]);
}

/// The random model as one safetensors file whose tensors `change` may replace.
fn changed(folder: &std::path::Path, change: impl Fn(&str, Tensor) -> Option<Tensor>) {
    copy(&random_model(), folder);
    let weights = Checkpoint::open_folder(folder).unwrap();
    let tensors = weights
        .names()
        .filter_map(|name| Some((name.to_owned(), change(name, weights.read(name, &Device::Cpu).unwrap())?)))
        .collect();
    let mut file = fs::File::create(folder.join("model.safetensors")).unwrap();
    write_safetensors(&mut file, &tensors, &Default::default()).unwrap();
}

#[test]
fn a_wrong_weight_is_named_before_anything_is_written() {
    const KEY: &str = "model.layers.1.mlp.up_proj.weight";
    type Change = fn(Tensor) -> Option<Tensor>;
    let changes: [(Change, &str); 3] = [
        (|_| None, "needed"),
        (|tensor| tensor.narrow(0, 0, 8).ok(), "expected shape"),
        (|tensor| tensor.to_dtype(DType::U8).ok(), "floating-point"),
    ];
    for (change, word) in changes {
        let place = tempfile::tempdir().unwrap();
        let (folder, output) = (place.path().join("model"), place.path().join("out"));
        changed(&folder, |name, tensor| if name == KEY { change(tensor) } else { Some(tensor) });
        let result = run(&options(&[folder], &output));
        refused(result, ErrorCode::ModelInvalid, &[KEY, word]);
        assert_eq!(names(place.path()), ["model"]);
    }
}

#[test]
fn a_weight_that_nobody_wants_and_one_that_is_no_number_are_named() {
    let place = tempfile::tempdir().unwrap();
    let (folder, output) = (place.path().join("model"), place.path().join("out"));
    changed(
        &folder,
        |name, tensor| {
            if name == "model.norm.weight" { (tensor * f64::NAN).ok() } else { Some(tensor) }
        },
    );
    refused(
        run(&options(std::slice::from_ref(&folder), &output)),
        ErrorCode::ModelInvalid,
        &["model.norm.weight", "finite"],
    );
    fs::remove_dir_all(&folder).unwrap();
    copy(&random_model(), &folder);
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let fewer = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert_ne!(fewer, config);
    fs::write(folder.join("config.json"), fewer).unwrap();
    refused(run(&options(&[folder], &output)), ErrorCode::ModelInvalid, &["no place for", "model.layers.1"]);
    assert_eq!(names(place.path()), ["model"]);
}

#[test]
fn damaged_inputs_are_named() {
    let index = "pytorch_model.bin.index.json";
    let shard = "pytorch_model-00002-of-00003.bin";
    type Damage = fn(&std::path::Path);
    let damages: [(Damage, ErrorCode, &str); 5] = [
        (|folder| cut(&folder.join("pytorch_model-00002-of-00003.bin")), ErrorCode::ModelInvalid, shard),
        (
            |folder| fs::remove_file(folder.join("pytorch_model-00002-of-00003.bin")).unwrap(),
            ErrorCode::ModelFileMissing,
            shard,
        ),
        (
            |folder| {
                let path = folder.join("pytorch_model.bin.index.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, text.replace("00001-of", "00002-of")).unwrap();
            },
            ErrorCode::ModelInvalid,
            index,
        ),
        (|folder| cut(&folder.join("eva_vit_g.pth")), ErrorCode::ModelInvalid, "eva_vit_g.pth"),
        (|folder| cut(&folder.join("tokenizer.model")), ErrorCode::ModelInvalid, "tokenizer.model"),
    ];
    for (damage, code, word) in damages {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model");
        copy(&random_model(), &folder);
        damage(&folder);
        refused(run(&options(&[folder], &place.path().join("out"))), code, &[word]);
        assert_eq!(names(place.path()), ["model"]);
    }
}

fn cut(path: &std::path::Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn what_is_no_part_of_a_model_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (output, empty) = (place.path().join("out"), place.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    fs::write(place.path().join("text.txt"), "hello, this is a text").unwrap();
    refused(run(&options(&[empty], &output)), ErrorCode::ModelInvalid, &["nothing in this folder"]);
    refused(run(&options(&[place.path().join("text.txt")], &output)), ErrorCode::ModelInvalid, &["text.txt"]);
    refused(run(&options(&[place.path().join("none")], &output)), ErrorCode::ModelNotFound, &["none"]);
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let cancellation = Cancellation::default();
    let options = options(&[random_model()], &place.path().join("out"));
    let on_progress = |_| cancellation.cancel();
    let result = llamavid_convert::convert(&options, &cancellation, &on_progress);
    refused(result, ErrorCode::Aborted, &[]);
    assert_eq!(names(place.path()), Vec::<String>::new());
}
