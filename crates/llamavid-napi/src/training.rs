//! Training runs and the checking of their data.

use llamavid_runtime::{self as runtime, MediaKind, run_aside};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, ClassInstance};
use napi_derive::napi;

use crate::arguments::{size, whole};
use crate::device::{Cancellation, Device, flag};
use crate::handle::Handle;
use crate::pixels::{Pixels, Preprocessing};
use crate::promise::{call, promise};

/// Where a run stands when it is opened.
#[napi(object, object_from_js = false)]
pub struct TrainingFacts {
    /// Steps of the whole run.
    pub steps: u32,
    /// Steps that an earlier process did and a checkpoint holds.
    pub done_steps: u32,
    /// Whether the stage's files are written already: nothing is left to do.
    pub finished: bool,
    /// Records of the data list.
    pub records: f64,
}

/// A record that takes no part in a step.
#[napi(object)]
pub struct TrainingFailure {
    /// The record's id, or `#` and its place.
    pub id: String,
    /// In words, with a code in front.
    pub reason: String,
}

/// A record of a batch.
#[napi(object, object_from_js = false)]
pub struct TrainingSample {
    /// The record's id, or `#` and its place.
    pub id: String,
    /// What it shows. Features are read in Rust.
    #[napi(ts_type = "'none' | 'image' | 'video' | 'features'")]
    pub media: &'static str,
    /// The file of its picture or video.
    pub path: Option<String>,
}

/// Records that are computed together.
#[napi(object, object_from_js = false)]
pub struct TrainingBatch {
    /// Its number, by which `step` takes it.
    pub number: f64,
    /// In order.
    pub samples: Vec<TrainingSample>,
    /// Records of the batch that cannot be used, whatever their media are.
    pub failures: Vec<TrainingFailure>,
}

/// What an optimizer step did.
#[napi(object, object_from_js = false)]
pub struct TrainingStep {
    /// From 1.
    pub step: u32,
    /// Epochs done, in parts of one.
    pub epoch: f64,
    /// Mean cross entropy of the trained tokens; absent when no record was left and nothing was updated.
    pub loss: Option<f64>,
    /// The rate of this step.
    pub learning_rate: f64,
    /// Norm of all gradients together before clipping; absent as `loss` is.
    pub gradient_norm: Option<f64>,
    /// Records that were trained on.
    pub samples: u32,
    /// Positions that the language model read.
    pub tokens: f64,
    /// Pictures and frames.
    pub frames: f64,
}

/// One stage's training. Holds weights and optimizer state, and a lock on the output folder, until `close`.
#[napi]
pub struct TrainingRun {
    handle: Handle<runtime::TrainingRun>,
}

#[napi]
impl TrainingRun {
    /// Opens the data and the model, and the last checkpoint when it goes on. `config` is JSON: recipe, inputs, output,
    /// resume.
    #[napi]
    pub fn open(
        env: &Env,
        config: String,
        device: ClassInstance<Device>,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<TrainingRun>> {
        promise(
            env,
            || Ok(runtime::TrainingRun::open(config, device.get()?, flag(c))),
            |run| Self { handle: Handle::new("training run", run) },
        )
    }

    /// Where it stands.
    #[napi(getter)]
    pub fn facts(&self) -> napi::Result<TrainingFacts> {
        call(|| {
            let facts = self.handle.open()?.facts();
            Ok(TrainingFacts {
                steps: facts.steps as u32,
                done_steps: facts.done_steps as u32,
                finished: facts.finished,
                records: facts.records as f64,
            })
        })
    }

    /// How pictures become pixels, but for the padding that the recipe may ask for.
    #[napi(getter)]
    pub fn preprocessing(&self) -> napi::Result<Preprocessing> {
        call(|| Ok(Preprocessing::from(self.handle.open()?.preprocessing())))
    }

    /// The next batch, made ready beside a step that runs; null behind the last one.
    #[napi(ts_return_type = "Promise<TrainingBatch | null>")]
    pub fn next_batch(&self, env: &Env) -> napi::Result<AsyncBlock<Option<TrainingBatch>>> {
        promise(
            env,
            || Ok(self.handle.open()?.next_batch()),
            |batch| {
                batch.map(|batch| TrainingBatch {
                    number: batch.number as f64,
                    samples: batch
                        .samples
                        .into_iter()
                        .map(|sample| TrainingSample {
                            id: sample.id,
                            media: match sample.media {
                                MediaKind::None => "none",
                                MediaKind::Image => "image",
                                MediaKind::Video => "video",
                                MediaKind::Features => "features",
                            },
                            path: sample.path.map(|path| path.to_string_lossy().into_owned()),
                        })
                        .collect(),
                    failures: batch
                        .failures
                        .into_iter()
                        .map(|failure| TrainingFailure { id: failure.id, reason: failure.reason })
                        .collect(),
                })
            },
        )
    }

    /// Computes a batch, in the order of their numbers. `pixels` has an entry a sample: its frames' pixels in parts, none
    /// for text and features, null where they could not be read. After the last batch of a step the weights are
    /// updated and the step's report comes; before it null.
    #[napi(ts_return_type = "Promise<TrainingStep | null>")]
    pub fn step(
        &self,
        env: &Env,
        batch: f64,
        pixels: Vec<Option<Vec<ClassInstance<Pixels>>>>,
    ) -> napi::Result<AsyncBlock<Option<TrainingStep>>> {
        promise(
            env,
            || {
                let pixels = pixels
                    .iter()
                    .map(|parts| {
                        parts.as_ref().map(|parts| parts.iter().map(|part| part.get()).collect()).transpose()
                    })
                    .collect::<runtime::Result<_>>()?;
                self.handle.open()?.step(whole("batch", batch)?, pixels)
            },
            |step| {
                step.map(|step| TrainingStep {
                    step: step.step as u32,
                    epoch: step.epoch,
                    loss: step.loss,
                    learning_rate: step.learning_rate,
                    gradient_norm: step.gradient_norm,
                    samples: step.samples as u32,
                    tokens: step.tokens as f64,
                    frames: step.frames as f64,
                })
            },
        )
    }

    /// Saves a checkpoint of the last step and gives its folder; older ones than are to be kept go.
    #[napi]
    pub fn save(&self, env: &Env) -> napi::Result<AsyncBlock<String>> {
        promise(env, || Ok(self.handle.open()?.save()), |folder| folder.to_string_lossy().into_owned())
    }

    /// Writes the stage's files in the reference's layout.
    #[napi]
    pub fn finish(&self, env: &Env) -> napi::Result<AsyncBlock<()>> {
        promise(env, || Ok(self.handle.open()?.finish()), |()| ())
    }

    /// Frees everything and unlocks the output folder, behind what still runs. Closing twice does nothing.
    #[napi]
    pub fn close(&self, env: &Env) -> napi::Result<AsyncBlock<()>> {
        promise(
            env,
            || match self.handle.close() {
                Some(run) => Ok(run.close()),
                None => Ok(run_aside("llamavid train", || Ok(()))),
            },
            |()| (),
        )
    }
}

/// What a run would do, as JSON, without reading weights. `config` is that of `TrainingRun.open`.
#[napi]
pub fn plan_training(env: &Env, config: String) -> napi::Result<AsyncBlock<String>> {
    promise(env, || Ok(runtime::plan_training(config)), |plan| plan)
}

/// Something wrong with a record.
#[napi(object, object_from_js = false)]
pub struct DataFinding {
    /// The record's place in the list, from 0.
    pub index: f64,
    /// Its id, or `#` and its place.
    pub id: String,
    /// Whether it cannot be trained on, or is so in part.
    #[napi(ts_type = "'error' | 'warning'")]
    pub severity: &'static str,
    /// What kind of fault it is.
    pub kind: &'static str,
    /// What is wrong and where.
    pub message: String,
}

/// A video that is there, for the caller to open.
#[napi(object, object_from_js = false)]
pub struct DataVideo {
    /// The record's place in the list, from 0.
    pub index: f64,
    /// Its id, or `#` and its place.
    pub id: String,
    /// The file.
    pub path: String,
}

/// Numbers of a list.
#[napi(object, object_from_js = false)]
pub struct DataTotals {
    /// Records.
    pub records: f64,
    /// Of them about a picture.
    pub images: f64,
    /// About a video file.
    pub videos: f64,
    /// About features.
    pub features: f64,
    /// Text alone.
    pub texts: f64,
    /// With an error.
    pub bad_records: f64,
    /// With warnings and no error.
    pub warned_records: f64,
}

/// What was seen of the next records.
#[napi(object, object_from_js = false)]
pub struct DataCheckPart {
    /// What is wrong, in the list's order.
    pub findings: Vec<DataFinding>,
    /// Videos that are there.
    pub videos: Vec<DataVideo>,
    /// Records so far.
    pub records: f64,
    /// Records of the list.
    pub total: f64,
    /// With the last part.
    pub totals: Option<DataTotals>,
}

/// As what samples records are looked at too.
#[napi(object, object_to_js = false)]
pub struct DataCheckSamples {
    /// The folder with the language model's tokenizer.
    pub language_model: String,
    /// Name of the stage's template.
    pub template: String,
    /// Most ids of a sample.
    pub max_length: f64,
    /// Whether `<im_start>` and `<im_end>` stand around a tag.
    pub image_start_end: bool,
    /// Visual tokens of a long video's frame.
    pub tokens_per_frame: f64,
}

impl DataCheckSamples {
    fn checked(self) -> runtime::Result<runtime::CheckedSamples> {
        Ok(runtime::CheckedSamples {
            language_model: self.language_model.into(),
            template: self.template,
            max_length: size("maxLength", self.max_length)?,
            image_start_end: self.image_start_end,
            tokens_per_frame: size("tokensPerFrame", self.tokens_per_frame)?,
        })
    }
}

/// The check of a data list, which goes on as far as its parts are asked for.
#[napi]
pub struct DataCheck {
    handle: Handle<runtime::DataCheck>,
}

#[napi]
impl DataCheck {
    /// Opens a list and begins.
    #[napi]
    pub fn open(
        env: &Env,
        list: String,
        images: Option<String>,
        videos: Option<String>,
        samples: Option<DataCheckSamples>,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<DataCheck>> {
        promise(
            env,
            || {
                let samples = samples.map(DataCheckSamples::checked).transpose()?;
                let (images, videos) = (images.map(Into::into), videos.map(Into::into));
                Ok(runtime::DataCheck::open(list.into(), images, videos, samples, flag(c)))
            },
            |check| Self { handle: Handle::new("data check", check) },
        )
    }

    /// The next part; null behind the last.
    #[napi(ts_return_type = "Promise<DataCheckPart | null>")]
    pub fn next(&self, env: &Env) -> napi::Result<AsyncBlock<Option<DataCheckPart>>> {
        promise(env, || Ok(self.handle.open()?.next()), |part| part.map(DataCheckPart::from))
    }

    /// Ends the check. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

impl From<runtime::CheckedPart> for DataCheckPart {
    fn from(part: runtime::CheckedPart) -> Self {
        Self {
            findings: part
                .findings
                .into_iter()
                .map(|finding| DataFinding {
                    index: finding.record as f64,
                    id: finding.id,
                    severity: finding.severity.name(),
                    kind: finding.fault.code.name(),
                    message: finding.fault.to_string(),
                })
                .collect(),
            videos: part
                .videos
                .into_iter()
                .map(|video| DataVideo {
                    index: video.record as f64,
                    id: video.id,
                    path: video.path.to_string_lossy().into_owned(),
                })
                .collect(),
            records: part.records as f64,
            total: part.total as f64,
            totals: part.totals.map(|totals| DataTotals {
                records: totals.records as f64,
                images: totals.images as f64,
                videos: totals.videos as f64,
                features: totals.features as f64,
                texts: totals.texts as f64,
                bad_records: totals.bad_records as f64,
                warned_records: totals.warned_records as f64,
            }),
        }
    }
}

/// The published lists and weights, and which of them are under `root`, as JSON.
#[napi]
pub fn published_data(env: &Env, root: String) -> napi::Result<AsyncBlock<String>> {
    promise(env, || Ok(runtime::published_data(root.into())), |found| found)
}
