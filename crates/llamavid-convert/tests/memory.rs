//! The memory of a conversion, in a program of its own so that no other test shows in it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llamavid_convert::{ConvertOptions, convert};
use llamavid_runtime::Cancellation;
use llamavid_weights::Checkpoint;
use llamavid_weights::Quantisation;
use llamavid_weights::writer::write_torch;
use serde_json::{Value, json};

const LAYERS: usize = 16;
const LAYERS_OF_A_SHARD: usize = 4;
const MLP_WIDTH: usize = 65_536;

/// The most memory that this process ever had since the last call, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    kilobytes * 1024
}

/// A model with a decoder of 300 MB in torch shards of 75 MB.
fn large_model(folder: &Path) -> u64 {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/random-model");
    for entry in fs::read_dir(&fixture).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            fs::create_dir_all(folder.join(&name)).unwrap();
            for file in fs::read_dir(entry.path()).unwrap().flatten() {
                fs::copy(file.path(), folder.join(&name).join(file.file_name())).unwrap();
            }
        } else if !name.starts_with("pytorch_model") {
            fs::copy(entry.path(), folder.join(&name)).unwrap();
        }
    }
    let mut config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(LAYERS);
    config["intermediate_size"] = json!(MLP_WIDTH);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let weights = Checkpoint::open_folder(&fixture).unwrap();
    let read = |name: &str| weights.read(name, &Device::Cpu).unwrap();
    let of_layer = |name: &&str| name.starts_with("model.layers.");
    let shared = weights.names().filter(|name| !of_layer(name)).map(|name| (name.to_owned(), read(name)));
    let mut places = BTreeMap::new();
    let mut write = |file: &str, tensors: &BTreeMap<String, Tensor>| {
        write_torch(File::create(folder.join(file)).unwrap(), "archive", tensors).unwrap();
        places.extend(tensors.keys().map(|name| (name.clone(), file.to_owned())));
        fs::metadata(folder.join(file)).unwrap().len()
    };
    let mut largest = write("pytorch_model-shared.bin", &shared.collect());
    for first in (0..LAYERS).step_by(LAYERS_OF_A_SHARD) {
        let mut shard = BTreeMap::new();
        for layer in first..first + LAYERS_OF_A_SHARD {
            for name in weights.names().filter(|name| name.starts_with("model.layers.0.")) {
                let tensor = read(name);
                let width = tensor.dims()[0].min(48);
                let shape = match name {
                    name if name.contains("down_proj") => (width, MLP_WIDTH),
                    name if name.contains("mlp.") => (MLP_WIDTH, tensor.dims()[1]),
                    _ => {
                        shard.insert(name.replace(".0.", &format!(".{layer}.")), tensor);
                        continue;
                    }
                };
                let tensor =
                    Tensor::full(0.01f32, shape, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
                shard.insert(name.replacen(".0.", &format!(".{layer}."), 1), tensor);
            }
        }
        largest = largest.max(write(&format!("pytorch_model-{first:05}.bin"), &shard));
    }
    let index = json!({ "metadata": {}, "weight_map": places });
    fs::write(folder.join("pytorch_model.bin.index.json"), index.to_string()).unwrap();
    largest
}

#[test]
fn it_is_that_of_some_weights_and_not_of_the_model() {
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("model");
    fs::create_dir(&model).unwrap();
    let largest_shard = large_model(&model);
    let eight = Some(Quantisation::Q8_0);
    for (name, input, quantize, interleave) in [
        ("plain", "model", None, false),
        ("blocks", "model", eight, false),
        ("interleaved", "model", eight, true),
        ("interleaved blocks", "blocks", None, true),
    ] {
        let options = ConvertOptions {
            inputs: vec![place.path().join(input)],
            output: place.path().join(name),
            quantize,
            interleave,
            ..ConvertOptions::default()
        };
        peak();
        let before = peak();
        let made = convert(&options, &Cancellation::default(), &|_| {}).unwrap();
        let grown = peak().saturating_sub(before);
        assert!(made.bytes > 2 * largest_shard);
        assert!(grown < largest_shard, "{name}: {grown} bytes for shards of {largest_shard}");
        println!(
            "{name}: {} MB written, the memory grew by {} MB",
            made.bytes / 1_000_000,
            grown / 1_000_000
        );
    }
}
