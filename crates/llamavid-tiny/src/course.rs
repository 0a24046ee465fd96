//! A course of steps: loss, gradients, update, a line in the log. Can be left at any step and gone on with later.
//!
//! Each step draws what it shows from the seed and the step's number alone, so that a course that was interrupted sees
//! what an uninterrupted one would.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use llamavid_train::{
    FreezePlan, Optimizer, ParameterGroup, Parameters, Update, cosine_with_warmup, gradients,
};
use serde_json::{Map, json};

use crate::Result;

/// What one step learns from.
pub trait Lesson {
    /// The loss of the step with this number of the course with this seed, and what is worth a note.
    fn loss(&mut self, parameters: &Parameters, seed: u64) -> Result<(Tensor, Vec<(String, f64)>)>;
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
    /// What trains.
    pub plan: FreezePlan,
    /// Names of weights that learn at a share of the rate.
    pub slower: &'static [(&'static str, f64)],
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// The largest norm of all gradients together.
const CLIP: f64 = 1.;
/// Steps between two savings.
const SAVE_EVERY: u64 = 200;

/// Weights that keep AdamW: tables, in which a row learns alone, and the layers next to them.
const NO_MATRICES: [&str; 9] = [
    "embed",
    "lm_head",
    "heads",
    "symbols",
    "pos_embed",
    "cls_token",
    "query_tokens",
    "position",
    "patch_embed",
];

impl Course {
    /// Runs the course on the weights in `start`, or where it was left, and gives the weights at its end.
    ///
    /// `build` must make all modules once, so that their weights exist before the optimiser is made.
    pub fn run(
        &self,
        folder: &Path,
        start: impl FnOnce() -> Result<Parameters>,
        lesson: &mut dyn Lesson,
    ) -> Result<Parameters> {
        let folder = folder.join(self.name);
        fs::create_dir_all(&folder)?;
        let done = folder.join("done.safetensors");
        if done.is_file() {
            return Ok(Parameters::load(&done, self.plan.clone(), self.seed, &Device::Cpu)?);
        }
        let (parameters, mut step, state) = match Saved::newest(&folder)? {
            Some(saved) => {
                let parameters =
                    Parameters::load(&saved.weights, self.plan.clone(), self.seed, &Device::Cpu)?;
                (
                    parameters,
                    saved.step,
                    Some(candle_core::safetensors::load(&saved.optimizer, &Device::Cpu)?),
                )
            }
            None => (start()?.with_plan(self.plan.clone())?, 0, None),
        };
        // Makes every weight exist.
        lesson.loss(&parameters, self.seed_of(step))?;
        let mut optimizer = self.optimizer(&parameters)?;
        if let Some(state) = state {
            optimizer.restore(&state.into_iter().collect())?;
        }
        let variables = parameters.trainable();
        let mut log = OpenOptions::new().create(true).append(true).open(folder.join("metrics.jsonl"))?;
        let mut recent = Recent::default();
        let begun = Instant::now();
        let first = step;
        while step < self.steps {
            let (loss, told) = lesson.loss(&parameters, self.seed_of(step))?;
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
                Saved::write(&folder, step, &parameters, &optimizer)?;
            }
        }
        parameters.save(&done)?;
        Saved::remove_all(&folder)?;
        Ok(parameters)
    }

    fn seed_of(&self, step: u64) -> u64 {
        self.seed << 32 | step
    }

    fn optimizer(&self, parameters: &Parameters) -> Result<Optimizer> {
        let share = |name: &str| {
            self.slower.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(1., |(_, share)| *share)
        };
        let groups = parameters.trainable().into_iter().map(|(name, var)| {
            let matrix = var.rank() == 2 && !NO_MATRICES.iter().any(|part| name.contains(part));
            let share = share(&name);
            let (update, rate) = if matrix {
                (Update::muon(), self.matrices)
            } else {
                (Update::AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8 }, self.others)
            };
            ParameterGroup {
                variables: vec![(name, var)],
                update,
                learning_rate: rate * share,
                weight_decay: 0.,
            }
        });
        Ok(Optimizer::new(groups.collect())?)
    }
}

/// Means since they were last told.
#[derive(Default)]
struct Recent {
    sums: std::collections::BTreeMap<String, (f64, f64)>,
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

/// A state to go on from.
struct Saved {
    step: u64,
    weights: PathBuf,
    optimizer: PathBuf,
}

impl Saved {
    fn at(folder: &Path, step: u64) -> Self {
        Self {
            step,
            weights: folder.join(format!("step-{step:06}.safetensors")),
            optimizer: folder.join(format!("step-{step:06}.optimizer.safetensors")),
        }
    }

    /// The newest whose two files are there: the weights are written last.
    fn newest(folder: &Path) -> Result<Option<Self>> {
        Ok(Self::all(folder)?
            .into_iter()
            .filter(|saved| saved.weights.is_file())
            .max_by_key(|saved| saved.step))
    }

    fn all(folder: &Path) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.get(..6)?.parse().ok());
            all.extend(step.map(|step| Self::at(folder, step)));
        }
        Ok(all)
    }

    fn write(folder: &Path, step: u64, parameters: &Parameters, optimizer: &Optimizer) -> Result<()> {
        let earlier = Self::all(folder)?;
        let saved = Self::at(folder, step);
        let state: std::collections::HashMap<String, Tensor> = optimizer.state()?.into_iter().collect();
        candle_core::safetensors::save(&state, &saved.optimizer)?;
        parameters.save(&saved.weights)?;
        for saved in earlier {
            saved.remove()?;
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        for file in [&self.weights, &self.optimizer] {
            if file.is_file() {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }

    fn remove_all(folder: &Path) -> Result<()> {
        Self::all(folder)?.iter().try_for_each(Self::remove)
    }
}
