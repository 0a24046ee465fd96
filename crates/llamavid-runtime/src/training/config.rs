//! What a run is told, as JSON: a recipe, what it reads and where it writes.
//!
//! `packages/train/recipe.schema.json` describes a recipe to people and checks it before it comes here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llamavid_models::language_model::LoraTarget;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorCode, Result};

/// All of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainingConfig {
    pub(crate) recipe: Recipe,
    pub(crate) inputs: Inputs,
    /// Absent when a run is only planned.
    pub(crate) output: Option<PathBuf>,
    #[serde(default)]
    pub(crate) resume: bool,
}

/// Files and folders.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Inputs {
    pub(crate) model: Option<PathBuf>,
    pub(crate) language_model: Option<PathBuf>,
    pub(crate) vision_tower: Option<PathBuf>,
    pub(crate) query_model: Option<PathBuf>,
    pub(crate) adapter: Option<PathBuf>,
    pub(crate) processor: Option<PathBuf>,
    pub(crate) query_tokenizer: Option<PathBuf>,
    pub(crate) data: PathBuf,
    pub(crate) images: Option<PathBuf>,
    pub(crate) videos: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Recipe {
    #[serde(rename = "$schema", default, skip_serializing)]
    _schema: Option<String>,
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) source: String,
    pub(crate) stage: u8,
    #[serde(default)]
    pub(crate) expects: BTreeMap<String, String>,
    pub(crate) model: ModelRecipe,
    pub(crate) data: DataRecipe,
    pub(crate) optimizer: OptimizerRecipe,
    pub(crate) batch: BatchRecipe,
    pub(crate) epochs: f64,
    #[serde(default)]
    pub(crate) max_steps: Option<u64>,
    pub(crate) compute: ComputeRecipe,
    #[serde(default)]
    pub(crate) lora: Option<LoraRecipe>,
    pub(crate) checkpoints: CheckpointRecipe,
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ModelRecipe {
    #[serde(default)]
    pub(crate) image_size: Option<usize>,
    /// The block `llamavid` of `config.json`.
    #[serde(default)]
    pub(crate) sizes: Option<serde_json::Value>,
    /// Absent, here and in the next two: what the base model's configuration says.
    pub(crate) projector: Option<String>,
    pub(crate) compression: Option<String>,
    pub(crate) query_count: Option<usize>,
    pub(crate) bert_type: String,
    pub(crate) image_start_end: bool,
    pub(crate) image_patch_token: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DataRecipe {
    pub(crate) template: String,
    pub(crate) max_length: usize,
    pub(crate) image_aspect_ratio: AspectRatio,
    pub(crate) video_fps: f64,
    pub(crate) video_token: usize,
    pub(crate) group_by_modality_length: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AspectRatio {
    Square,
    Pad,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OptimizerRecipe {
    pub(crate) kind: OptimizerKind,
    pub(crate) learning_rate: f64,
    #[serde(default)]
    pub(crate) muon_learning_rate: Option<f64>,
    #[serde(default)]
    pub(crate) learning_rate_multipliers: BTreeMap<String, f64>,
    pub(crate) betas: [f64; 2],
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
    pub(crate) schedule: ScheduleKind,
    pub(crate) warmup_ratio: f64,
    pub(crate) gradient_clip: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OptimizerKind {
    AdamW,
    Muon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScheduleKind {
    Cosine,
    Constant,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BatchRecipe {
    pub(crate) per_device: usize,
    pub(crate) accumulation: usize,
    pub(crate) devices: usize,
}

impl BatchRecipe {
    /// Batches of one step: those of other devices are computed here too.
    pub(crate) fn per_step(self) -> usize {
        self.accumulation.saturating_mul(self.devices)
    }

    /// Records of one step.
    pub(crate) fn records_per_step(self) -> usize {
        self.per_step().saturating_mul(self.per_device)
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ComputeRecipe {
    pub(crate) dtype: ComputeDtype,
    pub(crate) activation_checkpointing: bool,
    pub(crate) query_dropout: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ComputeDtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LoraRecipe {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) dropout: f64,
    pub(crate) targets: Vec<String>,
    /// Whether they are added to the language model that is written, or written by themselves.
    pub(crate) merge: bool,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CheckpointRecipe {
    pub(crate) every_steps: u64,
    pub(crate) keep: usize,
}

impl TrainingConfig {
    /// Reads and checks it.
    pub(crate) fn parse(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json)
            .map_err(|error| Error::argument(format!("the training configuration: {error}")))?;
        let Recipe { stage, epochs, optimizer, batch, .. } = &config.recipe;
        let wrong = |problem: String| Err(Error::argument(format!("the recipe: {problem}")));
        if !(1..=3).contains(stage) {
            return wrong(format!("stage {stage} is none of 1, 2, 3"));
        }
        if !(optimizer.learning_rate.is_finite() && optimizer.learning_rate > 0.0) {
            return wrong(format!("a learning rate of {} trains nothing", optimizer.learning_rate));
        }
        if !(epochs.is_finite() && *epochs > 0.0) {
            return wrong(format!("{epochs} epochs"));
        }
        if let Some(lora) = &config.recipe.lora
            && let Some(name) = lora.targets.iter().find(|name| LoraTarget::by_name(name).is_none())
        {
            let known: Vec<_> = LoraTarget::ALL.iter().map(|target| target.name()).collect();
            return wrong(format!("LoRA target `{name}` is none of {}", known.join(", ")));
        }
        if batch.per_device == 0 || batch.accumulation == 0 || batch.devices == 0 {
            return wrong("a batch without records".to_owned());
        }
        Ok(config)
    }

    /// The output folder of a run that is more than planned.
    pub(crate) fn output(&self) -> Result<&PathBuf> {
        self.output.as_ref().ok_or_else(|| Error::new(ErrorCode::InvalidArgument, "output is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every published recipe, as TypeScript passes it on.
    #[test]
    fn all_recipes_parse() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packages/train/recipes");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let recipe = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let json = format!(r#"{{"recipe": {recipe}, "inputs": {{"data": "list.json"}}}}"#);
            TrainingConfig::parse(&json).unwrap();
            count += 1;
        }
        assert!(count >= 20);
    }

    #[test]
    fn rates_that_train_nothing_are_refused() {
        let recipe = std::fs::read_to_string(
            std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../packages/train/recipes/tiny-stage1.json"),
        )
        .unwrap();
        for rate in ["0", "-0.1", "null", "1e999"] {
            let changed = recipe.replacen("\"learningRate\": 0.001", &format!("\"learningRate\": {rate}"), 1);
            assert_ne!(changed, recipe);
            let json = format!(r#"{{"recipe": {changed}, "inputs": {{"data": "list.json"}}}}"#);
            assert_eq!(TrainingConfig::parse(&json).unwrap_err().code, ErrorCode::InvalidArgument, "{rate}");
        }
    }
}
