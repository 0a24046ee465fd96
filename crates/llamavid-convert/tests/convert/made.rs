//! Whole models of random weights, of any sizes and with any tokenizer; the same in every run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::{Device, Tensor};
use llamavid_models::config::{ModelConfig, Surroundings};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_runtime::model_folder::vision_names;
use llamavid_runtime::{WeightShape, weight_shapes};
use llamavid_weights::Part;
use llamavid_weights::writer::write_safetensors;
use serde_json::Value;

use crate::folders::{copy, random_model, repository};

/// Makes a model in `folder`: the configuration of the random model with `changes`, weights of the sizes that it then has, and
/// the tokenizer in the folder `tokenizer` of the repository.
pub fn make(folder: &Path, changes: &Value, tokenizer: &str) {
    fs::create_dir_all(folder).unwrap();
    for name in ["bert", "processor"] {
        copy(&random_model().join(name), &folder.join(name));
    }
    for entry in fs::read_dir(repository(tokenizer)).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("tokenizer") || name == "special_tokens_map.json" {
            fs::copy(entry.path(), folder.join(name)).unwrap();
        }
    }
    let mut config: Value =
        serde_json::from_slice(&fs::read(random_model().join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let bytes = serde_json::to_vec(&config).unwrap();
    fs::write(folder.join("config.json"), &bytes).unwrap();
    let bert = fs::read(folder.join("bert/config.json")).unwrap();
    let config =
        ModelConfig::parse(&bytes, &Surroundings { bert: Some(&bert), ..Default::default() }).unwrap();
    let mut all = trained(&config);
    all.extend(named(
        Part::LanguageModel,
        weight_shapes(|vb| LanguageModel::new(&config.language, vb)).unwrap(),
    ));
    let vision = weight_shapes(|vb| VisualEncoder::new(&config.visual, vb)).unwrap();
    let prefix = llamavid_weights::key_table::VISION_TOWER;
    all.extend(numbers(vision, |ours| {
        format!("{prefix}{}", vision_names(&config.visual).upstream(ours).unwrap())
    }));
    save(&folder.join("model.safetensors"), &all);
}

/// Weights of the parts between encoder and decoder.
pub fn trained(config: &ModelConfig) -> BTreeMap<String, Tensor> {
    named(Part::TokenGenerator, weight_shapes(|vb| TokenGenerator::new(&config.tokens, vb)).unwrap())
}

/// Writes weights to a file.
pub fn save(path: &Path, weights: &BTreeMap<String, Tensor>) {
    write_safetensors(&mut File::create(path).unwrap(), weights, &Default::default()).unwrap();
}

fn named(part: Part, shapes: Vec<WeightShape>) -> BTreeMap<String, Tensor> {
    numbers(shapes, |ours| part.upstream(ours).unwrap())
}

/// Numbers without a pattern, so large that attention is no mean and that choices are seldom close.
fn numbers(shapes: Vec<WeightShape>, name: impl Fn(&str) -> String) -> BTreeMap<String, Tensor> {
    let mut state = 11u32;
    let weight = |WeightShape { name: ours, shape, .. }: WeightShape| {
        let norm = ours.ends_with("norm.weight") || ours.ends_with("LayerNorm.weight");
        let words = ours == "lm_head.weight" || ours == "embed_tokens.weight";
        let size = match shape.dims() {
            [.., columns] if shape.rank() > 1 => (if words { 8. } else { 2.5 }) / (*columns as f32).sqrt(),
            _ => 0.3,
        };
        let values: Vec<f32> = (0..shape.elem_count())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                f32::from(u8::from(norm)) + size * value
            })
            .collect();
        (name(&ours), Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    shapes.into_iter().map(weight).collect()
}
