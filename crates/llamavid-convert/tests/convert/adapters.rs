//! Adapters that were trained beside the language model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llamavid_models::language_model::{LoraConfig, LoraTarget};
use llamavid_runtime::ErrorCode;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_weights::Quantisation;
use llamavid_weights::writer::write_safetensors;

use crate::answers::answer;
use crate::folders::{copy, options, random_model, refused, run};

/// Adapters of the random model's two layers; `change` may replace them.
fn adapters(folder: &Path, change: impl Fn(&mut BTreeMap<String, Tensor>)) {
    let config =
        LoraConfig { rank: 2, alpha: 6., targets: vec![LoraTarget::QueryProj, LoraTarget::DownProj] };
    let mut tensors = BTreeMap::new();
    for layer in 0..2 {
        for (module, output, input) in [("self_attn.q_proj", 48, 48), ("mlp.down_proj", 48, 96)] {
            for (side, shape) in [("A", (2, input)), ("B", (output, 2))] {
                let values: Vec<f32> = (0..shape.0 * shape.1)
                    .map(|place| ((place * 31 + layer * 7) % 17) as f32 / 40. - 0.2)
                    .collect();
                let name = format!("base_model.model.model.layers.{layer}.{module}.lora_{side}.weight");
                tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
            }
        }
    }
    change(&mut tensors);
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_json("./llm", 0.).to_string()).unwrap();
    let mut file = File::create(folder.join("adapter_model.safetensors")).unwrap();
    write_safetensors(&mut file, &tensors, &Default::default()).unwrap();
}

#[test]
fn they_become_part_of_the_weights() {
    let place = tempfile::tempdir().unwrap();
    let (beside, lora, output) =
        (place.path().join("beside"), place.path().join("lora"), place.path().join("out"));
    copy(&random_model(), &beside);
    adapters(&beside, |_| {});
    adapters(&lora, |_| {});
    let expected = answer(&ModelFolder::open(&beside).unwrap());
    assert_ne!(expected, answer(&ModelFolder::open(&random_model()).unwrap()));
    let inputs = [random_model(), lora];
    run(&options(&inputs, &output)).unwrap();
    assert_eq!(answer(&ModelFolder::open(&output).unwrap()), expected);

    // Added first and rounded then.
    let mut quantised = options(&inputs, &place.path().join("quantised"));
    quantised.quantize = Some(Quantisation::Q8_0);
    run(&quantised).unwrap();
    let folder = ModelFolder::open(&quantised.output).unwrap();
    let whole = ModelFolder::open(&output).unwrap().with_quantisation(Some(Quantisation::Q8_0));
    let weights = |folder: &ModelFolder| {
        let model = folder.language_model(DType::F32, &Device::Cpu).unwrap();
        let embeds = model.embed(&[5, 6, 7]).unwrap().unsqueeze(0).unwrap();
        let hidden = model.forward_uncached(&embeds, None, &mut llamavid_models::observer::Blind).unwrap();
        hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    // Rounded while it is loaded, rows may be interleaved: sums come in another order then, and a number between the layers may be
    // rounded to its other neighbour of 8 bits.
    for (converted, loaded) in weights(&folder).iter().zip(weights(&whole)) {
        assert!((converted - loaded).abs() < 5e-3, "{converted} instead of {loaded}");
    }
}

#[test]
fn adapters_of_another_model_are_named() {
    const NAME: &str = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight";
    type Change = fn(&mut BTreeMap<String, Tensor>);
    let changes: [(Change, &str); 3] = [
        (|tensors| drop(tensors.remove(NAME)), "needed"),
        (
            |tensors| {
                drop(tensors.insert(NAME.into(), Tensor::zeros((2, 48), DType::F32, &Device::Cpu).unwrap()))
            },
            "shape",
        ),
        (
            |tensors| {
                let extra = tensors[NAME].clone();
                tensors.insert(NAME.replace("layers.1", "layers.2"), extra);
            },
            "no place for",
        ),
    ];
    for (change, told) in changes {
        let place = tempfile::tempdir().unwrap();
        let lora = place.path().join("lora");
        adapters(&lora, change);
        let result = run(&options(&[random_model(), lora], &place.path().join("out")));
        refused(result, ErrorCode::ModelInvalid, &["adapter_model.safetensors", told]);
        assert!(!place.path().join("out").exists());
    }
}
