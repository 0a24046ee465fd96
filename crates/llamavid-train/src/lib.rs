//! The three stages of LLaMA-VID training: samples, losses, freeze plans, optimisers, checkpoints.
//!
//! Paper: LLaMA-VID (arXiv 2311.17043), section 3.3. What is reproduced of the reference, and how exactly, stands
//! in `docs/design/algorithm.md`, section 9. Letters: B samples, S sequence length, F frames, D language width.

mod assembly;
mod backward;
mod batch;
mod checkpoints;
mod creation;
pub mod data;
mod error;
mod example;
mod files;
mod freeze_plan;
pub mod gradients;
mod lora;
mod model;
mod optimizer;
mod output;
mod parameters;
pub mod schedule;
mod stage;
mod trainer;
mod visual_tokens;

pub use assembly::{StageFiles, StageModel, StageSettings, VisionFiles, stage_tokenizer};
pub use backward::{Activations, loss_and_gradients};
pub use batch::{Batch, EmbeddingGradient};
pub use checkpoints::{Checkpoints, OutputLock};
pub use error::{Error, Result};
pub use example::{Example, Visual};
pub use freeze_plan::FreezePlan;
/// The parts whose weights train or not.
pub use llamavid_weights::Part;
pub use lora::LoraSettings;
pub use model::{Loss, Model, ModelOptions, TrainingDropout};
pub use optimizer::{Optimizer, ParameterGroup, Update};
pub use output::{ADAPTER, LoraOutput, OutputOptions, StageOutput, WeightFormat, copy_side_files};
pub use parameters::{Missing, Parameters};
pub use schedule::{Schedule, cosine_with_warmup};
pub use stage::{RateFactor, Stage, adamw_groups, decays};
pub use trainer::{Accumulation, StepReport, Trainer, TrainerOptions};
