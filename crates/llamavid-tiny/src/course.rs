//! A course of steps: loss, gradients, update, a line in the log. Can be left at any step and gone on with later.
//!
//! Each step draws what it shows from the seed and the step's number alone, so that a course that was interrupted sees
//! what an uninterrupted one would.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use llamavid_train::{
    Checkpoints, FreezePlan, Optimizer, OutputLock, ParameterGroup, Parameters, Update, cosine_with_warmup,
    gradients,
};
use serde_json::{Map, json};

use crate::Result;

/// What one step learns from.
pub trait Lesson {
    /// The loss of a step, and what is worth a note.
    fn loss(&mut self, parameters: &Parameters, step: Step) -> Result<(Tensor, Vec<(String, f64)>)>;
}

/// A step of a course.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Seed of the course.
    pub course: u64,
    /// Its number, from 0.
    pub number: u64,
    /// Steps of the course.
    pub of: u64,
}

impl Step {
    /// A seed that no other step has.
    pub fn seed(&self) -> u64 {
        self.course << 32 | self.number
    }

    /// How much of the course is behind it, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.number as f64 / self.of as f64
    }
}

/// Batches that are made for several steps at once, so that each can hold rows of similar length.
pub struct Blocks<T> {
    first: Option<u64>,
    batches: Vec<Vec<T>>,
}

impl<T> Blocks<T> {
    /// Steps of a block.
    pub const STEPS: usize = 8;

    /// No batches yet.
    pub fn new() -> Self {
        Self { first: None, batches: Vec::new() }
    }

    /// The batch of `step`. `make` gives the batches of its block from the block's first step.
    pub fn batch(&mut self, step: Step, make: impl FnOnce(Step) -> Result<Vec<Vec<T>>>) -> Result<&[T]> {
        let place = step.number % Self::STEPS as u64;
        let first = Step { number: step.number - place, ..step };
        if self.first != Some(first.number) {
            self.batches = make(first)?;
            self.first = Some(first.number);
        }
        Ok(&self.batches[place as usize])
    }
}

/// A course of one part.
#[derive(Debug, Clone)]
pub struct Course {
    /// Names its folder.
    pub name: &'static str,
    /// Steps in all.
    pub steps: u64,
    /// Steps until the full rate.
    pub warmup: u64,
    /// Rate of Muon, for the matrices inside the network.
    pub matrices: f64,
    /// Rate of AdamW, for embeddings, heads and vectors.
    pub others: f64,
    /// Weight decay of matrices and tables, as a share of the rate.
    pub decay: f64,
    /// What trains.
    pub plan: FreezePlan,
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// The largest norm of all gradients together.
const CLIP: f64 = 1.;
/// The files of a checkpoint.
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Steps between two checkpoints.
const SAVE_EVERY: u64 = 200;

/// Weights that keep AdamW: tables, in which a row learns alone, and the layers next to them.
const NO_MATRICES: [&str; 8] =
    ["embed", "lm_head", "heads", "pos_embed", "cls_token", "query_tokens", "position", "patch_embed"];

impl Course {
    /// Whether its weights are in `folder` already.
    pub fn is_done(&self, folder: &Path) -> bool {
        self.done(folder).is_file()
    }

    /// Where its weights will be.
    pub fn done(&self, folder: &Path) -> PathBuf {
        folder.join(self.name).join("done.safetensors")
    }

    /// Runs the course on the weights in `start`, or where it was left, and gives the weights at its end.
    pub fn run(
        &self,
        folder: &Path,
        start: impl FnOnce() -> Result<Parameters>,
        lesson: &mut dyn Lesson,
    ) -> Result<Parameters> {
        let done = self.done(folder);
        if done.is_file() {
            return self.load(&done);
        }
        let folder = folder.join(self.name);
        let _lock = OutputLock::acquire(&folder)?;
        let checkpoints = Checkpoints::open(&folder, Some(1))?;
        let (parameters, mut step, state) = match checkpoints.list()?.pop() {
            Some((step, saved)) => {
                let state = candle_core::safetensors::load(saved.join(OPTIMIZER), &Device::Cpu)?;
                (self.load(&saved.join(WEIGHTS))?, step, Some(state))
            }
            None => (start()?.with_plan(self.plan.clone())?, 0, None),
        };
        // Makes every weight exist.
        lesson.loss(&parameters, self.step(step))?;
        let mut optimizer = self.optimizer(&parameters)?;
        if let Some(state) = state {
            optimizer.restore(&state.into_iter().collect())?;
        }
        let variables = parameters.trainable();
        let mut log = log_up_to(step, &folder.join("metrics.jsonl"))?;
        let mut recent = Recent::default();
        let begun = Instant::now();
        let first = step;
        while step < self.steps {
            let (loss, told) = lesson.loss(&parameters, self.step(step))?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(format!("{}: the loss of step {step} is {value}", self.name).into());
            }
            let gradients = loss.backward()?;
            let norm = gradients::global_norm(&gradients, &variables)?;
            let factor = cosine_with_warmup(step + 1, self.warmup, self.steps + 1);
            optimizer.step_scaled(&gradients, factor, gradients::clip_factor(norm, CLIP))?;
            step += 1;
            let mut line = Map::new();
            line.insert("step".into(), json!(step));
            line.insert("loss".into(), json!(value));
            line.insert("norm".into(), json!(norm));
            line.insert("seconds".into(), json!(begun.elapsed().as_secs_f64()));
            line.extend(told.iter().map(|(name, value)| (name.clone(), json!(value))));
            writeln!(log, "{}", serde_json::Value::from(line))?;
            recent.add(value, &told);
            if step % 25 == 0 || step == self.steps {
                let pace = begun.elapsed().as_secs_f64() / (step - first) as f64;
                eprintln!("{} {step}/{} {pace:.3} s/step {}", self.name, self.steps, recent.take());
            }
            if step % SAVE_EVERY == 0 && step < self.steps {
                checkpoints.save(step, |saved| {
                    let state: HashMap<String, Tensor> = optimizer.state()?.into_iter().collect();
                    candle_core::safetensors::save(&state, saved.join(OPTIMIZER))?;
                    parameters.save(&saved.join(WEIGHTS))
                })?;
            }
        }
        parameters.save(&done)?;
        for (_, saved) in checkpoints.list()? {
            fs::remove_dir_all(saved)?;
        }
        Ok(parameters)
    }

    fn step(&self, number: u64) -> Step {
        Step { course: self.seed, number, of: self.steps }
    }

    fn load(&self, weights: &Path) -> Result<Parameters> {
        Ok(Parameters::load(weights, self.plan.clone(), self.seed, &Device::Cpu)?)
    }

    fn optimizer(&self, parameters: &Parameters) -> Result<Optimizer> {
        let groups = parameters.trainable().into_iter().map(|(name, var)| {
            let matrix = var.rank() == 2 && !NO_MATRICES.iter().any(|part| name.contains(part));
            let (update, rate) = if matrix {
                (Update::muon(), self.matrices)
            } else {
                (Update::AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8 }, self.others)
            };
            let weight_decay = if var.rank() == 1 { 0. } else { self.decay };
            ParameterGroup { variables: vec![(name, var)], update, learning_rate: rate, weight_decay }
        });
        Ok(Optimizer::new(groups.collect())?)
    }
}

/// The log with one line for each of the first `steps` steps; what was computed after the last checkpoint is computed again.
fn log_up_to(steps: u64, path: &Path) -> Result<File> {
    let before = if path.is_file() { fs::read_to_string(path)? } else { String::new() };
    let kept: String = before.split_inclusive('\n').take(steps as usize).collect();
    fs::write(path, kept)?;
    Ok(OpenOptions::new().append(true).open(path)?)
}

/// Means since they were last told.
#[derive(Default)]
struct Recent {
    sums: BTreeMap<String, (f64, f64)>,
}

impl Recent {
    fn add(&mut self, loss: f64, told: &[(String, f64)]) {
        for (name, value) in std::iter::once(("loss", loss)).chain(told.iter().map(|(n, v)| (n.as_str(), *v)))
        {
            let (sum, count) = self.sums.entry(name.to_owned()).or_default();
            *sum += value;
            *count += 1.;
        }
    }

    fn take(&mut self) -> String {
        let sums = std::mem::take(&mut self.sums);
        sums.into_iter().map(|(name, (sum, count))| format!("{name} {:.3}  ", sum / count)).collect()
    }
}
