//! Models on a CLIP visual encoder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llamavid_models::config::{ModelConfig, Surroundings};
use llamavid_models::observer::Blind;
use llamavid_runtime::ErrorCode;
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_weights::Checkpoint;
use llamavid_weights::writer::write_torch;
use serde_json::{Value, json};

use crate::answers::answer;
use crate::folders::{copy, names, options, oracle, random_model, refused, repository, run};
use crate::made;

const NAME: &str = "openai/clip-vit-large-patch14";

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The recorded CLIP tower as a whole CLIP model in the published layout: beside a text tower, in a file of torch's or in
/// safetensors, with an image processor.
fn clip(folder: &Path, torch: bool) {
    fs::create_dir_all(folder).unwrap();
    let tower = Checkpoint::open_file(&repository("fixtures/clip/weights.safetensors")).unwrap();
    let mut tensors: BTreeMap<String, Tensor> =
        tower.names().map(|name| (name.to_owned(), tower.read(name, &Device::Cpu).unwrap())).collect();
    let other = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    tensors.insert("logit_scale".into(), other(&[]));
    tensors.insert("text_model.encoder.layers.0.mlp.fc1.weight".into(), other(&[4, 8]));
    tensors.insert("text_model.embeddings.position_ids".into(), other(&[1, 7]));
    tensors.insert("text_projection.weight".into(), other(&[8, 8]));
    tensors.insert("visual_projection.weight".into(), other(&[8, 24]));
    tensors.insert("vision_model.embeddings.position_ids".into(), other(&[1, 17]));
    match torch {
        true => {
            write_torch(File::create(folder.join("pytorch_model.bin")).unwrap(), "pytorch_model", &tensors)
                .unwrap();
        }
        false => made::save(&folder.join("model.safetensors"), &tensors),
    }
    let vision = json_of(&repository("fixtures/clip/config.json"));
    let config =
        json!({ "model_type": "clip", "projection_dim": 8, "text_config": {}, "vision_config": vision });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("preprocessor_config.json"), r#"{"crop_size": 56, "size": 56, "resample": 3}"#)
        .unwrap();
}

/// What stage 1 leaves of a model on such an encoder, with random weights.
fn stage_one(folder: &Path, clip: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut config = json_of(&oracle("video-mean").join("mm_projector_config.json"));
    config["mm_hidden_size"] = 24.into();
    config["mm_vision_tower"] = NAME.into();
    config["llamavid"] = json!({ "query": { "width": 32, "layers": 4, "heads": 2, "mlpWidth": 64 } });
    let bytes = serde_json::to_vec(&config).unwrap();
    fs::write(folder.join("config.json"), &bytes).unwrap();
    let (bert, clip) = (
        fs::read(oracle("video-mean").join("bert/config.json")).unwrap(),
        fs::read(clip.join("config.json")).unwrap(),
    );
    let around = Surroundings { bert: Some(&bert), clip: Some(&clip), ..Default::default() };
    let config = ModelConfig::parse(&bytes, &around).unwrap();
    made::save(&folder.join("mm_projector.bin"), &made::trained(&config));
}

/// A CLIP model, what stage 1 made on it, and the other parts.
fn parts(place: &Path, torch: bool) -> [PathBuf; 4] {
    let [clip_folder, adapter] = [NAME, "stage1"].map(|name| place.join(name));
    clip(&clip_folder, torch);
    stage_one(&adapter, &clip_folder);
    [clip_folder, adapter, oracle("video-mean").join("llm"), oracle("video-mean").join("bert")]
}

/// Largest difference to what transformers computed of the recorded pixels: the patches behind the last layer but one.
fn distance(folder: &ModelFolder) -> f32 {
    let recorded = Checkpoint::open_file(&repository("fixtures/clip/tensors.safetensors")).unwrap();
    let read = |name: &str| recorded.read(name, &Device::Cpu).unwrap();
    let encoder = folder.visual_encoder(DType::F32, &Device::Cpu).unwrap();
    let features = encoder.forward(&read("pixel_values"), &mut Blind).unwrap();
    let expected = read("hidden_states.2").narrow(1, 1, 16).unwrap();
    let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest(&(features - &expected).unwrap()) / largest(&expected)
}

#[test]
fn its_vision_part_becomes_a_part_of_the_folder() {
    for torch in [true, false] {
        let (inputs, result) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let output = result.path().join("out");
        let parts = parts(inputs.path(), torch);
        run(&options(&parts, &output)).unwrap();
        // By hand, in the layout that loads without conversion.
        copy(&parts[3], &inputs.path().join("bert"));
        let by_hand = ModelFolder::open(&parts[1]).unwrap().with_base(&parts[2]);
        let expected = answer(&by_hand);
        drop(inputs);

        let folder = ModelFolder::open(&output).unwrap();
        assert!(distance(&folder) < 1e-5, "{}", distance(&folder));
        assert_eq!(answer(&folder), expected);
        let manifest = Manifest::read(&output).unwrap().unwrap();
        let origin =
            &manifest.tensors["model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"];
        assert_eq!(origin.key, "vision_model.embeddings.class_embedding");
        let unwanted = ["text_model", "projection.weight", "logit_scale", "layers.2.mlp.fc1"];
        for name in manifest.tensors.keys().filter(|name| name.contains("vision_tower")) {
            assert!(!unwanted.iter().any(|part| name.contains(part)), "{name}");
        }
        let config = json_of(&output.join("config.json"));
        assert_eq!(config["llamavid"]["vision"]["kind"], "clip");
        assert_eq!(folder.preprocessing().size, 56);

        // The folder is an input too, and so is its part in eight bits.
        let again = result.path().join("again");
        run(&options(std::slice::from_ref(&output), &again)).unwrap();
        let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(weights(&again), weights(&output));
        let mut rounded = options(std::slice::from_ref(&output), &result.path().join("rounded"));
        rounded.quantize_vision = true;
        run(&rounded).unwrap();
        // Rows of 24 numbers fill no blocks, and stay exact.
        let folder = ModelFolder::open(&rounded.output).unwrap();
        assert!(rounded.output.join("visual-encoder.gguf").is_file() && distance(&folder) < 1e-5);
    }
}

#[test]
fn it_is_found_beside_the_model_and_missed_by_name() {
    let place = tempfile::tempdir().unwrap();
    let [clip_folder, adapter, llm, bert] = parts(place.path(), false);
    let inputs = [adapter, llm, bert];
    let output = place.path().join("out");
    let made = run(&options(&inputs, &output)).unwrap();
    assert!(made.notes.iter().any(|note| note.contains("clip-vit-large-patch14")), "{:?}", made.notes);
    // With the image processor that lies in its folder.
    assert!(distance(&ModelFolder::open(&output).unwrap()) < 1e-5);
    assert!(output.join("processor/preprocessor_config.json").is_file());

    fs::remove_dir_all(clip_folder).unwrap();
    let error = run(&options(&inputs, &place.path().join("other"))).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelFileMissing, "{error}");
    assert!(error.message.contains("visual encoder") && error.hint.unwrap().contains("CLIP"));

    // The published encoder is another one.
    let eva = random_model().join("eva_vit_g.pth");
    let inputs = [&inputs[..], &[eva]].concat();
    let result = run(&options(&inputs, &place.path().join("other")));
    refused(result, ErrorCode::ModelInvalid, &["eva_vit_g.pth", "EVA", "CLIP"]);
    assert_eq!(names(place.path()), ["openai", "out", "stage1"]);
}

#[test]
fn beside_a_model_on_eva_its_image_processor_counts_alone() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("clip-patch14");
    clip(&folder, false);
    // Pictures of the size that the model reads.
    let processor = random_model().join("processor/preprocessor_config.json");
    fs::copy(&processor, folder.join("preprocessor_config.json")).unwrap();
    let output = place.path().join("out");
    run(&options(&[random_model(), folder.clone()], &output)).unwrap();
    assert_eq!(
        answer(&ModelFolder::open(&output).unwrap()),
        answer(&ModelFolder::open(&random_model()).unwrap())
    );

    let file = folder.join("model.safetensors");
    let result = run(&options(&[random_model(), file], &place.path().join("other")));
    refused(result, ErrorCode::ModelInvalid, &["model.safetensors", "folder"]);
}
