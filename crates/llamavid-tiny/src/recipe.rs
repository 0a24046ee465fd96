//! The recipes of the embedded model's stages, the same files that `llamavid train` knows by name.

use llamavid_train::Stage;
use serde::Deserialize;

use crate::Result;

/// What the courses of this program take from a recipe.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe {
    /// Rates of the optimiser.
    pub optimizer: Rates,
    /// Size of a step.
    pub batch: Batch,
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// Rates of the optimiser.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// AdamW's.
    pub learning_rate: f64,
    /// Muon's.
    pub muon_learning_rate: f64,
    /// Weight decay, as a share of the rate.
    pub weight_decay: f64,
    /// Share of the steps before the full rate.
    pub warmup_ratio: f64,
}

/// Size of a step.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Conversations of a step.
    pub per_device: usize,
}

impl Recipe {
    /// The recipe of a stage.
    pub fn of_stage(stage: Stage) -> Result<Self> {
        let text = match stage {
            Stage::Alignment => include_str!("../../../packages/train/recipes/tiny-stage1.json"),
            Stage::Instruction => include_str!("../../../packages/train/recipes/tiny-stage2.json"),
            Stage::LongVideo => include_str!("../../../packages/train/recipes/tiny-stage3.json"),
        };
        Ok(serde_json::from_str(text)?)
    }
}
