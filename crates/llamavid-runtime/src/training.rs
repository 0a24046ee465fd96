//! One stage's training on a device: batches out, pixels in, a report a step.
//!
//! The caller opens pictures and videos, because FFmpeg is on its side; everything else happens here. Batches are made
//! ready on a thread of their own while the device's thread computes the one before.

mod config;
mod feed;
mod output_folder;
mod plan;
mod start;
mod step_plan;
mod step_stream;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device as TensorDevice, Tensor};
use llamavid_models::preprocess::Preprocessing;
use llamavid_train::data::Folders;
use llamavid_train::{
    Activations, Example, LoraOutput, Optimizer, OutputOptions, ParameterGroup, Parameters, RateFactor,
    Schedule, Stage, StageModel, StageOutput, Trainer, TrainerOptions, Update, Visual, adamw_groups,
    copy_side_files,
};
use serde_json::json;

pub use feed::{MediaKind, TrainingBatch, TrainingFailure, TrainingSample};
pub use plan::plan_training;

use self::config::{ComputeDtype, OptimizerKind, OptimizerRecipe, Recipe, ScheduleKind, TrainingConfig};
use self::feed::{Feed, Prepared, PreparedSample};
use self::output_folder::OutputFolder;
use self::start::Start;
use self::step_plan::StepPlan;
use self::step_stream::{BatchSender, batch_stream};
use crate::data_check::open_list;
use crate::{Cancellation, Device, Error, ErrorCode, Pixels, Reply, Result, run_aside};

/// Where a run stands when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingFacts {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps that an earlier process did and a checkpoint holds.
    pub done_steps: u64,
    /// Whether the stage's files are written already.
    pub finished: bool,
    /// Records of the list.
    pub records: usize,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingStep {
    /// From 1.
    pub step: u64,
    /// Epochs done, in parts of one.
    pub epoch: f64,
    /// Mean cross entropy of the trained tokens; none when no record was left, and nothing was updated.
    pub loss: Option<f64>,
    /// The rate of this step.
    pub learning_rate: f64,
    /// Norm of all gradients together before clipping; none as `loss` is.
    pub gradient_norm: Option<f64>,
    /// Records that were trained on.
    pub samples: usize,
    /// Positions that the language model read.
    pub tokens: usize,
    /// Pictures and frames.
    pub frames: usize,
}

/// A stage's training. Holds weights, optimizer state and the output folder's lock.
#[derive(Debug)]
pub struct TrainingRun {
    facts: TrainingFacts,
    preprocessing: Preprocessing,
    device: Arc<Device>,
    plan: StepPlan,
    learning_rate: f64,
    feed: Arc<Mutex<Feed>>,
    /// Batches that were given out and not taken back yet, in order.
    given: Arc<Mutex<VecDeque<Prepared>>>,
    /// Used by jobs of the device's thread alone.
    course: Arc<Mutex<Option<Course>>>,
    /// The step that is computed.
    step: Mutex<Option<RunningStep>>,
}

#[derive(Debug)]
struct RunningStep {
    batches: BatchSender<TrainingStep>,
    /// Whether its last batch was sent.
    complete: bool,
    /// Kept until the next step begins: a job that nobody waits for is given up before it starts.
    _job: Reply<()>,
}

/// What the device's thread works on.
#[derive(Debug)]
struct Course {
    trainer: Trainer,
    folder: OutputFolder,
    records: usize,
    output: StageOutput,
    options: OutputOptions,
    /// The query model's vocabulary and the image processor, which the written model needs beside it.
    side_files: Option<(PathBuf, Option<PathBuf>)>,
}

impl TrainingRun {
    /// Opens data, model and output folder, on a thread of its own, and goes on from the last checkpoint when it is to
    /// resume. `config` is JSON: recipe, inputs, output, resume.
    pub fn open(config: String, device: Arc<Device>, cancellation: Cancellation) -> Reply<Self> {
        run_aside("llamavid train", move || Self::open_now(&config, device, &cancellation))
    }

    fn open_now(config: &str, device: Arc<Device>, cancellation: &Cancellation) -> Result<Self> {
        let config = TrainingConfig::parse(config)?;
        let recipe = &config.recipe;
        // First what is quick to find wrong.
        let start = Start::find(recipe, &config.inputs)?;
        let list = open_list(&config.inputs.data, cancellation)?;
        let plan = StepPlan::new(recipe, list.len())?;
        cancellation.check()?;
        let folder = OutputFolder::open(&config)?;

        let dtype = match recipe.compute.dtype {
            ComputeDtype::F32 => DType::F32,
            ComputeDtype::Bf16 => DType::BF16,
        };
        let stage =
            StageModel::assemble(&start.files, &start.settings, dtype, recipe.seed, device.tensors())?;
        cancellation.check()?;
        let preprocessing = start.preprocessing(stage.model.options().config.visual.image_size())?;
        let (tokenizer, output) = (stage.tokenizer.clone(), stage.output.clone());
        let mut trainer = trainer(&stage, recipe, &plan)?;
        let done_steps = resume(&mut trainer, &folder, list.len())?;
        let facts = TrainingFacts {
            steps: plan.steps(),
            done_steps: if folder.finished() { plan.steps() } else { done_steps },
            finished: folder.finished(),
            records: list.len(),
        };
        let folders = Folders { images: config.inputs.images.clone(), videos: config.inputs.videos.clone() };
        let records = list.len();
        // As the reference: what was computed in half precision is written in it.
        let lora = match &recipe.lora {
            Some(lora) if !lora.merge => LoraOutput::Apart,
            _ => LoraOutput::Merged,
        };
        let options = OutputOptions { dtype, lora, ..OutputOptions::default() };
        let side_files = (start.settings.stage != Stage::Alignment || recipe.lora.is_some())
            .then_some((start.files.bert, start.files.processor));
        let feed = Feed::new(recipe, list, folders, tokenizer, plan, facts.done_steps)?;
        Ok(Self {
            facts,
            preprocessing,
            device,
            plan,
            learning_rate: recipe.optimizer.learning_rate,
            feed: Arc::new(Mutex::new(feed)),
            given: Arc::default(),
            course: Arc::new(Mutex::new(Some(Course {
                trainer,
                folder,
                records,
                output,
                options,
                side_files,
            }))),
            step: Mutex::new(None),
        })
    }

    /// Where it stands.
    pub fn facts(&self) -> TrainingFacts {
        self.facts
    }

    /// How pictures become pixels, but for the padding that the recipe may ask for.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The next batch, made ready on a thread of its own; none behind the last.
    pub fn next_batch(&self) -> Reply<Option<TrainingBatch>> {
        let (feed, given) = (self.feed.clone(), self.given.clone());
        run_aside("llamavid data", move || {
            let Some((batch, prepared)) = lock(&feed).next()? else { return Ok(None) };
            lock(&given).push_back(prepared);
            Ok(Some(batch))
        })
    }

    /// Computes a batch, in the order of their numbers. `pixels` has an entry a sample: its frames' pixels in parts,
    /// none for text and features, and `None` where they could not be read. After the last batch of a step the
    /// weights are updated and the step's report comes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for another batch than the next one, `TRAINING_DIVERGED` when the loss is no number; the
    /// weights are then those before the step.
    pub fn step(
        &self,
        number: u64,
        pixels: Vec<Option<Vec<Arc<Pixels>>>>,
    ) -> Result<Reply<Option<TrainingStep>>> {
        let prepared = self.take(number, pixels.len())?;
        let (last, samples) = (prepared.place.last, prepared.samples);
        let (answer, reply) = Reply::channel();
        let device = self.device.tensors().clone();
        let size = self.preprocessing.size;
        let batch = Box::new(move || examples(samples, &pixels, size, &device));
        let mut step = lock(&self.step);
        let running = match step.take() {
            Some(running) if !running.complete => running,
            _ => self.begin(prepared.place.step),
        };
        running.batches.send(batch, last, answer);
        *step = Some(RunningStep { complete: last, ..running });
        Ok(reply)
    }

    /// Takes a batch back.
    fn take(&self, number: u64, pixels: usize) -> Result<Prepared> {
        let mut given = lock(&self.given);
        match given.front() {
            Some(next) if next.number == number && next.samples.len() == pixels => {}
            Some(next) => {
                return Err(Error::argument(format!(
                    "batch {number} with {pixels} samples: the next one is {} with {}",
                    next.number,
                    next.samples.len()
                )));
            }
            None => return Err(Error::argument(format!("batch {number} was not given out"))),
        }
        given.pop_front().ok_or_else(|| Error::argument(format!("batch {number} was not given out")))
    }

    /// Begins a step, which waits for its batches on the device's thread.
    fn begin(&self, step: u64) -> RunningStep {
        let (batches, stream) = batch_stream(step);
        let waiting = stream.waiting();
        let course = self.course.clone();
        let (plan, learning_rate) = (self.plan, self.learning_rate);
        let job = self.device.run_once(&Cancellation::default(), move |_| {
            let mut stream = stream.peekable();
            let mut course = lock(&course);
            let Some(Course { trainer, .. }) = &mut *course else {
                waiting.answer(Err(closed()));
                return Ok(());
            };
            let result = if stream.peek().is_none() {
                let rate_factor = trainer.skip_step();
                Ok(TrainingStep {
                    step,
                    epoch: plan.epoch(step),
                    loss: None,
                    learning_rate: learning_rate * rate_factor,
                    gradient_norm: None,
                    samples: 0,
                    tokens: 0,
                    frames: 0,
                })
            } else {
                trainer.step_from(stream).map_err(Error::from).map(|done| TrainingStep {
                    step,
                    epoch: plan.epoch(step),
                    loss: Some(done.loss),
                    learning_rate: learning_rate * done.rate_factor,
                    gradient_norm: Some(done.gradient_norm),
                    samples: done.samples,
                    tokens: done.tokens,
                    frames: done.frames,
                })
            };
            waiting.answer(result.map(Some));
            Ok(())
        });
        RunningStep { batches, complete: false, _job: job }
    }

    /// Saves a checkpoint of the last step and gives its folder.
    pub fn save(&self) -> Reply<PathBuf> {
        let course = self.course.clone();
        self.device.run_once(&Cancellation::default(), move |_| {
            let course = lock(&course);
            let Some(Course { trainer, folder, records, .. }) = &*course else { return Err(closed()) };
            let progress = json!({ "records": records });
            Ok(folder.checkpoints().save(trainer.steps(), |to| trainer.write_state(to, &progress))?)
        })
    }

    /// Frees weights and optimizer state and unlocks the output folder, behind what still runs.
    pub fn close(&self) -> Reply<()> {
        // A step that waits for batches ends.
        lock(&self.step).take();
        let course = self.course.clone();
        self.device.run_once(&Cancellation::default(), move |_| {
            drop(lock(&course).take());
            Ok(())
        })
    }

    /// Writes the stage's files in the reference's layout.
    pub fn finish(&self) -> Reply<()> {
        let course = self.course.clone();
        self.device.run_once(&Cancellation::default(), move |_| {
            let mut course = lock(&course);
            let Some(course) = &mut *course else { return Err(closed()) };
            let Course { trainer, folder, output, options, side_files, .. } = course;
            if let Some((bert, processor)) = side_files {
                copy_side_files(bert, processor.as_deref(), folder.path())?;
            }
            output.write(folder.path(), trainer.parameters(), trainer.model(), options)?;
            folder.set_finished()
        })
    }
}

impl Drop for TrainingRun {
    fn drop(&mut self) {
        // Ends a step that waits for batches, and frees the weights behind it.
        lock(&self.step).take();
        self.device.discard(self.course.clone());
    }
}

fn closed() -> Error {
    Error::new(ErrorCode::HandleClosed, "this training run is closed")
}

/// Lets `trainer` go on from the last checkpoint, if there is one: the steps that are done.
fn resume(trainer: &mut Trainer, folder: &OutputFolder, records: usize) -> Result<u64> {
    let Some(checkpoint) = folder.checkpoints().latest()? else { return Ok(0) };
    let progress = trainer.read_state(&checkpoint)?;
    if progress.get("records") != Some(&json!(records)) {
        return Err(Error::argument(format!(
            "{}: the run was begun with {} records, the list has {records} now",
            checkpoint.display(),
            progress.get("records").unwrap_or(&serde_json::Value::Null),
        ))
        .with_hint("Resume with the list that it was begun with."));
    }
    Ok(trainer.steps())
}

/// The trainer at the beginning of a run.
fn trainer(stage: &StageModel, recipe: &Recipe, plan: &StepPlan) -> Result<Trainer> {
    let optimizer = Optimizer::new(groups(&stage.parameters, &recipe.optimizer))?;
    let total = plan.steps();
    let warmup = plan.warmup_steps(recipe.optimizer.warmup_ratio);
    let schedule = match recipe.optimizer.schedule {
        ScheduleKind::Cosine => Schedule::Cosine { warmup, total },
        ScheduleKind::Constant => Schedule::Constant { warmup },
    };
    let options = TrainerOptions {
        clip_norm: recipe.optimizer.gradient_clip,
        activations: match recipe.compute.activation_checkpointing {
            true => Activations::Recomputed,
            false => Activations::Kept,
        },
        query_dropout: recipe.compute.query_dropout as f32,
        lora_dropout: recipe.lora.as_ref().map_or(0., |lora| lora.dropout as f32),
        seed: recipe.seed,
        ..TrainerOptions::new(schedule)
    };
    Ok(Trainer::new(stage.parameters.clone(), stage.model.clone(), optimizer, options)?)
}

/// The reference's groups; with Muon, hidden matrices are groups of their own.
fn groups(parameters: &Parameters, recipe: &OptimizerRecipe) -> Vec<ParameterGroup> {
    let factors: Vec<RateFactor> = recipe
        .learning_rate_multipliers
        .iter()
        .map(|(name, factor)| RateFactor { name: name.clone(), factor: *factor })
        .collect();
    let [beta1, beta2] = recipe.betas;
    let adamw = Update::AdamW { beta1, beta2, epsilon: recipe.epsilon };
    let muon_rate = recipe.muon_learning_rate.unwrap_or(recipe.learning_rate) / recipe.learning_rate;
    let groups = adamw_groups(parameters, recipe.learning_rate, recipe.weight_decay, &factors);
    let split = groups.into_iter().flat_map(|group| {
        let (matrices, others): (Vec<_>, Vec<_>) = match recipe.kind {
            OptimizerKind::AdamW => (Vec::new(), group.variables),
            OptimizerKind::Muon => {
                group.variables.into_iter().partition(|(name, var)| var.rank() == 2 && is_hidden(name))
            }
        };
        let (learning_rate, weight_decay) = (group.learning_rate, group.weight_decay);
        [
            ParameterGroup { variables: others, update: adamw, learning_rate, weight_decay },
            ParameterGroup {
                variables: matrices,
                update: Update::muon(),
                learning_rate: learning_rate * muon_rate,
                weight_decay,
            },
        ]
    });
    split.filter(|group| !group.variables.is_empty()).collect()
}

/// Whether a matrix lies between hidden states: not a table of rows, not the head, not half of an adapter.
fn is_hidden(name: &str) -> bool {
    !["embed", "lm_head", "query_tokens", "lora_"].iter().any(|table| name.contains(table))
}

/// A batch as the trainer takes it. Samples whose pixels are missing are left out.
fn examples(
    samples: Vec<PreparedSample>,
    pixels: &[Option<Vec<Arc<Pixels>>>],
    size: usize,
    device: &TensorDevice,
) -> Result<Vec<Example>> {
    let mut examples = Vec::with_capacity(samples.len());
    for (PreparedSample { sample, visual }, pixels) in samples.into_iter().zip(pixels) {
        let visual = match (visual, pixels) {
            (_, None) => continue,
            (Some(Visual::Features(features, kind)), Some(_)) => {
                Visual::Features(features.to_device(device)?.to_dtype(DType::F32)?, kind)
            }
            (Some(visual), Some(_)) => visual,
            (None, Some(parts)) => Visual::Pixels(pixel_tensor(&sample.id, parts, size, device)?),
        };
        examples.push(Example { sample, visual });
    }
    Ok(examples)
}

/// All frames of a sample, (F, 3, S, S).
fn pixel_tensor(id: &str, parts: &[Arc<Pixels>], size: usize, device: &TensorDevice) -> Result<Tensor> {
    let mut tensors = Vec::with_capacity(parts.len());
    for part in parts {
        if part.size() != size {
            return Err(Error::argument(format!(
                "record {id}: the pixels are those of {} x {0} frames, the model reads {size} x {size}",
                part.size()
            )));
        }
        tensors.push(Tensor::from_slice(part.values(), (part.frame_count(), 3, size, size), device)?);
    }
    match tensors.as_slice() {
        [] => Err(Error::argument(format!("record {id}: there are no pixels"))),
        [one] => Ok(one.clone()),
        parts => Ok(Tensor::cat(parts, 0)?),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves behind is whole: queues and the weights between two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
