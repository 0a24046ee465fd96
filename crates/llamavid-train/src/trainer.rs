//! The training step, and what has to be kept to go on after it.
//!
//! Knows nothing of data files: examples come from the caller, batch by batch.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use llamavid_weights::Checkpoint;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backward::{Activations, loss_and_gradients};
use crate::creation;
use crate::error::{Error, Result};
use crate::example::Example;
use crate::files;
use crate::gradients::{clip_factor, fill_with_zeros, global_norm};
use crate::model::{Model, TrainingDropout};
use crate::optimizer::Optimizer;
use crate::parameters::Parameters;
use crate::schedule::Schedule;

/// How the micro batches of a step weigh against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Accumulation {
    /// Every label counts the same, so that micro batches equal one large batch, however they are cut.
    #[default]
    EveryLabel,
    /// Every micro batch counts the same, as in the reference, where a label in a batch of short answers counts
    /// more than one in a batch of long ones.
    EveryBatch,
}

/// How a trainer steps.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Gradients of a larger norm are scaled down to it. The reference's published recipes do not clip.
    pub clip_norm: Option<f64>,
    /// How micro batches add up.
    pub accumulation: Accumulation,
    /// What is kept for the backward pass.
    pub activations: Activations,
    /// Share of the query model's values that is dropped. The reference drops 0.1 in all stages.
    pub query_dropout: f32,
    /// Share of what adapters read that is dropped.
    pub lora_dropout: f32,
    /// Decides what is dropped, together with the number of the step.
    pub seed: u64,
}

impl TrainerOptions {
    /// With a schedule, and otherwise as the published recipes.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            clip_norm: None,
            accumulation: Accumulation::default(),
            activations: Activations::default(),
            query_dropout: 0.1,
            lora_dropout: 0.,
            seed: 0,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// Number of the step, from 0.
    pub step: u64,
    /// Mean loss before the step, weighed as its gradients are.
    pub loss: f64,
    /// Factor of the learning rates in this step.
    pub rate_factor: f64,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Labels that were learned.
    pub labels: usize,
    /// How many of them the model would have said.
    pub correct: usize,
    /// Positions of all samples after splicing, without padding.
    pub tokens: usize,
    /// Pictures that were looked at.
    pub frames: usize,
    /// Samples.
    pub samples: usize,
}

/// Trains a model step by step.
#[derive(Debug)]
pub struct Trainer {
    parameters: Parameters,
    model: Model,
    optimizer: Optimizer,
    options: TrainerOptions,
    trainable: Vec<(String, Var)>,
    /// Whether modules hold copies of weights that an update does not reach.
    copies: bool,
    step: u64,
    cancelled: Arc<AtomicBool>,
}

/// Where a run stands, as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SavedState {
    format: u32,
    step: u64,
    /// Names of what trains, to notice another freeze plan.
    trainable: Vec<String>,
    /// What the caller wants back: the place in the data, for instance.
    progress: Value,
}

const FORMAT: u32 = 1;
const WEIGHTS: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

impl Trainer {
    /// A trainer before its first step. `model` was built on `parameters`, and `optimizer` updates what trains of them.
    ///
    /// # Errors
    /// [`Error::Setting`] when the optimiser lacks a weight that trains, and for settings outside their range.
    pub fn new(
        parameters: Parameters,
        model: Model,
        optimizer: Optimizer,
        options: TrainerOptions,
    ) -> Result<Self> {
        let trainable = parameters.trainable();
        let updated: std::collections::BTreeSet<&str> = optimizer.variables().map(|(name, _)| name).collect();
        if let Some((name, _)) = trainable.iter().find(|(name, _)| !updated.contains(name.as_str())) {
            let problem = format!("`{name}` trains and is in no group of the optimiser");
            return Err(Error::Setting { name: "optimizer", problem });
        }
        if let Some(norm) = options.clip_norm
            && !(norm.is_finite() && norm > 0.)
        {
            let problem = format!("{norm} is not a positive number");
            return Err(Error::Setting { name: "clip_norm", problem });
        }
        for (name, share) in
            [("query_dropout", options.query_dropout), ("lora_dropout", options.lora_dropout)]
        {
            if !(0. ..1.).contains(&share) {
                return Err(Error::Setting {
                    name,
                    problem: format!("{share} is not at least 0 and below 1"),
                });
            }
        }
        // The visual encoder prepares weights when it is built; casts copy them.
        let encoder_trains = trainable.iter().any(|(name, _)| name.starts_with("visual_encoder."));
        let copies = model.options().dtype != DType::F32 || encoder_trains;
        let cancelled = Arc::new(AtomicBool::new(false));
        Ok(Self { parameters, model, optimizer, options, trainable, copies, step: 0, cancelled })
    }

    /// Steps made, which is the number of the next one.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The model with the weights of the moment.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Set it to stop before the next micro batch; the step that was begun is dropped.
    pub fn cancellation(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// One step of the optimiser on several micro batches.
    ///
    /// # Errors
    /// [`Error::NotFinite`] before anything is changed; [`Error::Cancelled`]; those of [`Model::loss`].
    pub fn step(&mut self, micro_batches: &[Vec<Example>]) -> Result<StepReport> {
        self.step_from(micro_batches.iter().map(|batch| Ok(batch.as_slice())))
    }

    /// The same with micro batches that are made, and may fail, one after the other.
    ///
    /// # Errors
    /// As [`Trainer::step`], and those of `micro_batches`.
    pub fn step_from<B: AsRef<[Example]>>(
        &mut self,
        micro_batches: impl IntoIterator<Item = Result<B>>,
    ) -> Result<StepReport> {
        let rate_factor = self.options.schedule.factor(self.step);
        let mut report = StepReport {
            step: self.step,
            loss: 0.,
            rate_factor,
            gradient_norm: 0.,
            labels: 0,
            correct: 0,
            tokens: 0,
            frames: 0,
            samples: 0,
        };
        let mut sum = GradStore::default();
        let mut ids = Vec::new();
        // What the summed losses and gradients are divided by.
        let mut divisor = 0.;
        for (number, batch) in micro_batches.into_iter().enumerate() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Error::Cancelled { step: self.step });
            }
            let batch = batch?;
            let examples = batch.as_ref();
            ids.extend(examples.iter().map(|example| example.sample.id.clone()));
            let model = self.model.with_dropout(&TrainingDropout {
                query: self.options.query_dropout,
                lora: self.options.lora_dropout,
                seed: self.seed_of(number),
            });
            let loss = loss_and_gradients(
                &model,
                examples,
                &self.trainable,
                self.options.activations,
                |labels| self.weight(labels),
                &mut sum,
            )?;
            let value = f64::from(loss.sum.to_scalar::<f32>()?);
            if !value.is_finite() {
                let ids = examples.iter().map(|example| example.sample.id.clone()).collect();
                return Err(Error::NotFinite { step: self.step, quantity: "loss", value, ids });
            }
            report.loss += value * self.weight(loss.labels);
            divisor += match self.options.accumulation {
                Accumulation::EveryLabel => loss.labels as f64,
                Accumulation::EveryBatch => 1.,
            };
            report.labels += loss.labels;
            report.correct += loss.correct;
            report.tokens += loss.tokens;
            report.frames += examples.iter().map(|example| example.visual.frames()).sum::<usize>();
            report.samples += examples.len();
        }
        let divisor = divisor.max(1.);
        report.loss /= divisor;
        fill_with_zeros(&mut sum, &self.trainable)?;
        let norm = global_norm(&sum, &self.trainable)? / divisor;
        if !norm.is_finite() {
            return Err(Error::NotFinite { step: self.step, quantity: "gradient norm", value: norm, ids });
        }
        report.gradient_norm = norm;
        let clip = self.options.clip_norm.map_or(1., |largest| clip_factor(norm, largest));
        self.optimizer.step_scaled(&sum, rate_factor, clip / divisor)?;
        self.step += 1;
        if self.copies {
            self.model = self.model.refreshed(&self.parameters)?;
        }
        Ok(report)
    }

    /// Counts a step that had no examples: the schedule goes on, the weights stay. Gives the step's factor of the rates.
    pub fn skip_step(&mut self) -> f64 {
        let factor = self.options.schedule.factor(self.step);
        self.step += 1;
        factor
    }

    /// A seed for a micro batch of this step, whatever was drawn before: a resumed run draws the same.
    fn seed_of(&self, micro_batch: usize) -> u64 {
        let place = (self.step << 16).wrapping_add(micro_batch as u64);
        creation::stream(self.options.seed, &format!("dropout {place}")).next_u64()
    }

    /// What a summed loss of so many labels counts before the step's division.
    fn weight(&self, labels: usize) -> f64 {
        match self.options.accumulation {
            Accumulation::EveryLabel => 1.,
            Accumulation::EveryBatch => (labels.max(1) as f64).recip(),
        }
    }

    /// Writes into `folder` what [`Trainer::read_state`] needs to go on bit for bit: weights that train, optimiser, step,
    /// and `progress` of the caller. Use [`crate::Checkpoints`] for folders that are whole or not there.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`].
    pub fn write_state(&self, folder: &Path, progress: &Value) -> Result<()> {
        let weights: BTreeMap<String, Tensor> =
            self.trainable.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        files::write_safetensors(&folder.join(WEIGHTS), &weights, &BTreeMap::new())?;
        files::write_safetensors(&folder.join(OPTIMIZER), &self.optimizer.state()?, &BTreeMap::new())?;
        let state = SavedState {
            format: FORMAT,
            step: self.step,
            trainable: weights.into_keys().collect(),
            progress: progress.clone(),
        };
        files::write_json(&folder.join(STATE), &state)
    }

    /// Goes on where [`Trainer::write_state`] was called, and gives the caller's `progress` back.
    ///
    /// # Errors
    /// [`Error::State`] when the files are damaged or those of another run; nothing is changed then.
    pub fn read_state(&mut self, folder: &Path) -> Result<Value> {
        let file = folder.join(STATE);
        let saved: SavedState = files::read_json(&file)?;
        let wrong = |file: &Path, problem: String| Error::State { file: file.to_path_buf(), problem };
        if saved.format != FORMAT {
            let problem = format!("is of format {}, this program reads {FORMAT}", saved.format);
            return Err(wrong(&file, problem));
        }
        if !saved.trainable.iter().eq(self.trainable.iter().map(|(name, _)| name)) {
            let ours: std::collections::BTreeSet<_> = self.trainable.iter().map(|(name, _)| name).collect();
            let theirs: std::collections::BTreeSet<_> = saved.trainable.iter().collect();
            let other = ours.symmetric_difference(&theirs).next().map_or("", |name| name);
            return Err(wrong(&file, format!("other weights train in it, `{other}` for instance")));
        }
        let weights_file = folder.join(WEIGHTS);
        let weights = Checkpoint::open_file(&weights_file)?;
        let mut values = Vec::with_capacity(self.trainable.len());
        for (name, var) in &self.trainable {
            let value = weights.read(name, var.device())?;
            if value.shape() != var.shape() || value.dtype() != DType::F32 {
                let problem = format!("`{name}` has shape {:?} instead of {:?}", value.shape(), var.shape());
                return Err(wrong(&weights_file, problem));
            }
            values.push(value);
        }
        let optimizer_file = folder.join(OPTIMIZER);
        let stored = Checkpoint::open_file(&optimizer_file)?;
        let mut state = BTreeMap::new();
        for name in stored.names() {
            state.insert(name.to_owned(), stored.read(name, &Device::Cpu)?);
        }
        self.optimizer.restore(&state).map_err(|problem| wrong(&optimizer_file, problem))?;
        for ((_, var), value) in self.trainable.iter().zip(&values) {
            var.set(value)?;
        }
        self.step = saved.step;
        if self.copies {
            self.model = self.model.refreshed(&self.parameters)?;
        }
        Ok(saved.progress)
    }
}
