//! Runs the recorded training steps: samples, batch, forward pass, loss, gradients, one step of AdamW, loss again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, IndexOp, Tensor};
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::preprocess::{Fit, Preprocessing};
use llamavid_models::token_generation::FeatureKind;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_train::data::{
    Media, Movie, RecordFile, Sample, SampleOptions, TrainingTemplate, movie_sample, sample,
};
use llamavid_train::{
    Example, FreezePlan, Optimizer, Parameters, Part, Stage, StageFiles, StageModel, StageSettings,
    VisionFiles, Visual, adamw_groups, gradients,
};
use llamavid_weights::Checkpoint;
use llamavid_weights::pickle::read_features;
use serde_json::{Map, Value};

use crate::case::{ModelCases, Recorded, StageCase};
use crate::model::picture;
use crate::preprocess;
use crate::report::{FolderReport, GRADIENT, LOSS};
use crate::setting::Setting;

type Result<T> = std::result::Result<T, String>;

/// Below this share of all gradients' norm a gradient is rounding: keys' biases, which softmax cancels, for instance.
const ROUNDING: f64 = 1e-6;
/// Where a gradient is smaller, rounding decides about the first step of AdamW, which is about its sign.
const DECIDED: f32 = 1e-5;
/// Share of the learning rate that an updated weight may be off.
const STEP: f64 = 0.02;
/// Keys of a written configuration that say who wrote it and not what the model is.
const WRITER: [&str; 4] = ["_name_or_path", "architectures", "transformers_version", "llamavid"];

/// Compares all training steps of a folder.
pub fn compare(
    folder: &Path,
    cases: &ModelCases,
    recorded: &Recorded,
    setting: &Setting,
    report: &mut FolderReport,
) {
    for (name, case) in &cases.training {
        report.enter(&format!("train/{name}"));
        let stage = name.strip_prefix("stage").and_then(|number| number.parse().ok());
        let Some(stage) = stage.and_then(Stage::from_number) else {
            report.failed("stage", format!("`{name}` is none of stage1, stage2, stage3"));
            continue;
        };
        let step = Step { folder, cases, case, recorded, setting, stage, prefix: format!("train/{name}") };
        if let Err(problem) = step.compare(report) {
            report.failed("run", problem);
        }
    }
}

/// One recorded step.
struct Step<'a> {
    folder: &'a Path,
    cases: &'a ModelCases,
    case: &'a StageCase,
    recorded: &'a Recorded,
    setting: &'a Setting,
    stage: Stage,
    prefix: String,
}

/// What the reference wrote after the step.
struct Written {
    weights: Checkpoint,
    config: Map<String, Value>,
}

impl Step<'_> {
    fn compare(&self, report: &mut FolderReport) -> Result<()> {
        let written = self.written()?;
        let settings = self.settings(&written)?;
        let assembled = self.assemble(&settings)?;
        self.compare_config(&assembled.output.config, &written.config, report);
        self.compare_trainable(&assembled.parameters, report);

        let examples = self.examples(&settings, &assembled, report)?;
        let mut seen = Seen::default();
        let observed = assembled.model.loss_observed(&examples, &mut seen).map_err(text)?;
        self.compare_batch(&examples, &assembled, &mut seen, report)?;
        for name in self.case.tensors.iter().filter(|name| name.starts_with("forward/")) {
            self.compare_forward(name, &seen, report);
        }
        let loss = number(&observed.mean().map_err(text)?)?;
        let loss_bound = self.setting.loosened(LOSS);
        report.number("loss", loss, self.case.loss, loss_bound, 0.);

        // As training runs: frames of several samples together, logits only where something is learned.
        let loss = assembled.model.loss(&examples).map_err(text)?.mean().map_err(text)?;
        report.number("loss, in one batch", number(&loss)?, self.case.loss, loss_bound, 0.);
        let store = loss.backward().map_err(text)?;
        self.compare_gradients(&assembled.parameters, &store, report)?;

        let rate = self.case.lr_of_the_recorded_step;
        let mut optimizer =
            Optimizer::new(adamw_groups(&assembled.parameters, rate, 0., &[])).map_err(text)?;
        optimizer.step(&store, 1.).map_err(text)?;
        self.compare_updated(&assembled.parameters, &store, &written.weights, report)?;
        let after = assembled.model.loss(&examples).map_err(text)?.mean().map_err(text)?;
        report.number("loss_after_step", number(&after)?, self.case.loss_after_step, loss_bound, 0.);
        Ok(())
    }

    /// The file or folder that the stage wrote.
    fn written(&self) -> Result<Written> {
        let (weights, config) = match self.stage {
            Stage::Alignment => (
                Checkpoint::open_file(&self.folder.join("mm_projector.bin")),
                self.folder.join("mm_projector_config.json"),
            ),
            Stage::Instruction | Stage::LongVideo => {
                let folder = self.folder.join(self.argument("output_dir").unwrap_or("model"));
                (Checkpoint::open_folder(&folder), folder.join("config.json"))
            }
        };
        let config = std::fs::read(&config).map_err(|error| format!("{}: {error}", config.display()))?;
        Ok(Written {
            weights: weights.map_err(text)?,
            config: serde_json::from_slice(&config).map_err(text)?,
        })
    }

    /// What follows a flag of the reference.
    fn argument(&self, name: &str) -> Option<&str> {
        let flag = format!("--{name}");
        let place = self.case.argv.iter().position(|argument| *argument == flag)?;
        self.case.argv.get(place + 1).map(String::as_str)
    }

    fn flag(&self, name: &str) -> bool {
        self.argument(name) == Some("True")
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.argument(name).map(|path| self.folder.join(path.strip_prefix("./").unwrap_or(path)))
    }

    fn settings(&self, written: &Written) -> Result<StageSettings> {
        let max_length = written.config.get("max_token").and_then(Value::as_u64).ok_or("no max_token")?;
        let text = |name: &str, usual: &str| self.argument(name).unwrap_or(usual).to_owned();
        Ok(StageSettings {
            stage: self.stage,
            bert_type: self.argument("bert_type").map(str::to_owned),
            projector: text("mm_projector_type", "linear"),
            compression: self.argument("compress_type").map(str::to_owned),
            queries: text("num_query", "32").parse().map_err(|_| "num_query is no number")?,
            image_start_end: self.flag("mm_use_im_start_end"),
            image_patch: self.flag("mm_use_im_patch_token"),
            image_aspect_ratio: text("image_aspect_ratio", "square"),
            max_length: max_length as usize,
            vision_name: text("vision_tower", ""),
            processor_name: text("image_processor", ""),
            extension: Some(self.cases.sizes.extension_block()),
            lora: None,
        })
    }

    fn assemble(&self, settings: &StageSettings) -> Result<StageModel> {
        let needed = |name: &str| self.path(name).ok_or(format!("no --{name}"));
        let files = StageFiles {
            base: needed("model_name_or_path")?,
            vision: VisionFiles::Eva(needed("vision_tower")?),
            query_model: self.path("pretrain_qformer"),
            adapter: self.path("pretrain_mm_mlp_adapter"),
            bert: self.folder.join("bert"),
            processor: self.path("image_processor"),
        };
        let parameters = Parameters::new(settings.plan(), 0, self.setting.device());
        if self.stage == Stage::Alignment {
            let initial =
                Checkpoint::open_file(&self.folder.join("stage1_initial.safetensors")).map_err(text)?;
            for name in initial.names() {
                let ours = Part::ours(name).ok_or(format!("`{name}` is no weight of ours"))?;
                let tensor = initial.read(name, &Device::Cpu).map_err(text)?;
                parameters.set(&ours, &tensor).map_err(text)?;
            }
        }
        StageModel::assemble_with(parameters, &files, settings, DType::F32).map_err(text)
    }

    fn compare_config(
        &self,
        ours: &Map<String, Value>,
        reference: &Map<String, Value>,
        report: &mut FolderReport,
    ) {
        let told = |config: &Map<String, Value>| {
            let mut told = BTreeMap::new();
            for (key, value) in config.iter().filter(|(key, _)| !WRITER.contains(&key.as_str())) {
                told.insert(key.clone(), value.clone());
            }
            told
        };
        let (ours, reference) = (told(ours), told(reference));
        let keys: BTreeSet<&String> = ours.keys().chain(reference.keys()).collect();
        for key in keys {
            report.equal(&format!("config/{key}"), &ours.get(key), &reference.get(key));
        }
    }

    fn compare_trainable(&self, parameters: &Parameters, report: &mut FolderReport) {
        let published = |name: &String| Part::published(name).unwrap_or_else(|| name.clone());
        let names: BTreeSet<_> = parameters.trainable().iter().map(|(name, _)| published(name)).collect();
        report.equal("trainable", &names, &self.case.trainable.iter().cloned().collect());
        let frozen = parameters.names().into_iter().filter(|name| !parameters.plan().trains(name));
        let frozen: Vec<_> = frozen.map(|name| published(&name)).collect();
        let plan = FreezePlan::only(self.case.frozen_prefixes.iter());
        let unknown: Vec<_> = frozen.iter().filter(|name| !plan.trains(name)).collect();
        report.equal("frozen", &unknown, &Vec::new());

        let groups = adamw_groups(parameters, self.case.lr_of_the_recorded_step, 0., &[]);
        let ours: Vec<(f64, BTreeSet<String>)> = groups
            .iter()
            .map(|group| {
                let names = group.variables.iter().map(|(name, _)| published(name));
                (group.learning_rate, names.collect())
            })
            .collect();
        let reference: Vec<(f64, BTreeSet<String>)> = self
            .case
            .optimizer
            .groups
            .iter()
            .map(|group| (group.lr, group.params.iter().cloned().collect()))
            .collect();
        report.equal("optimizer groups", &ours, &reference);
    }

    fn examples(
        &self,
        settings: &StageSettings,
        assembled: &StageModel,
        report: &mut FolderReport,
    ) -> Result<Vec<Example>> {
        let records =
            RecordFile::open(&self.folder.join(self.argument("data_path").unwrap_or(""))).map_err(text)?;
        let samples = self.samples(&records, settings, &assembled.tokenizer, report)?;
        let fit = if settings.image_aspect_ratio == "pad" { Fit::Pad } else { Fit::Crop };
        let size = assembled.model.options().config.visual.image_size();
        let mut examples = Vec::with_capacity(records.len());
        for (index, sample) in samples.into_iter().enumerate() {
            let visual = match records.record(index).map_err(text)?.media {
                Media::Image(image) => {
                    let path = self.folder.join(self.argument("image_folder").unwrap_or("")).join(image);
                    pixels(&picture(&path)?, &Preprocessing::clip(size, fit))?
                }
                Media::Video(video) => self.video(&video, size)?,
                Media::Features(file) => {
                    let feats = read_features(&self.video_path(&file)).map_err(text)?.feats;
                    let rows = feats.dims3().map_err(text)?.1;
                    let feats = feats.narrow(1, 1, rows - 1).and_then(|feats| feats.to_dtype(DType::F32));
                    Visual::Features(feats.map_err(text)?, FeatureKind::Precomputed)
                }
                // The reference shows a black picture to samples of text alone, and records what it becomes.
                Media::None => {
                    let black = Tensor::zeros((1, 3, size, size), DType::F32, &Device::Cpu).map_err(text)?;
                    Visual::Pixels(black)
                }
            };
            let visual = match visual {
                Visual::Pixels(pixels) => Visual::Pixels(self.placed(&pixels)?),
                Visual::Features(features, kind) => Visual::Features(self.placed(&features)?, kind),
                visual @ Visual::None => visual,
            };
            examples.push(Example { sample, visual });
        }
        Ok(examples)
    }

    fn placed(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_device(self.setting.device()).map_err(text)
    }

    /// The samples of the list, made as training makes them, against the recorded ones.
    fn samples(
        &self,
        records: &RecordFile,
        settings: &StageSettings,
        tokenizer: &LlamaTokenizer,
        report: &mut FolderReport,
    ) -> Result<Vec<Sample>> {
        let template = self.argument("version").unwrap_or_default();
        let template = TrainingTemplate::by_name(template).map_err(text)?;
        let options =
            SampleOptions { max_length: settings.max_length, image_start_end: settings.image_start_end };
        let mut coins = self.case.randint_draws.iter();
        let mut coin = || coins.next() == Some(&1);
        let mut samples = Vec::with_capacity(records.len());
        for index in 0..records.len() {
            let record = records.record(index).map_err(text)?;
            let made = match &record.media {
                Media::Features(file) => {
                    let features = read_features(&self.video_path(file)).map_err(text)?;
                    let tokens: usize = self.argument("video_token").unwrap_or("2").parse().unwrap_or(2);
                    let movie = Movie {
                        inputs: &features.inputs,
                        frames: features.feats.dims3().map_err(text)?.0,
                        tokens_per_frame: tokens,
                    };
                    movie_sample(&record, &movie, &template, tokenizer, &options)
                }
                _ => sample(&record, &template, tokenizer, &options, &mut coin),
            };
            let sample = made.map_err(text)?;
            for (what, ours) in [("input_ids", &sample.ids), ("labels", &sample.labels)] {
                let name = format!("sample{index}/{what}");
                match self.recorded.get(&format!("{}/{name}", self.prefix)) {
                    Some(expected) => report.equal(&name, ours, &expected.to_vec1().map_err(text)?),
                    None => report.failed(&name, "was not recorded".to_owned()),
                }
            }
            report.equal(
                &format!("sample{index}/prompts"),
                &Some(&sample.prompts),
                &self.case.prompts.get(index),
            );
            samples.push(sample);
        }
        Ok(samples)
    }

    fn video_path(&self, file: &str) -> PathBuf {
        self.folder.join(self.argument("video_folder").unwrap_or("")).join(file)
    }

    /// The recorded frames of a short video: those of case `videoN` are `clipN.mp4`.
    fn video(&self, file: &str, size: usize) -> Result<Visual> {
        let id = file.replace("clip", "video").replace(".mp4", "");
        let case = self.cases.cases.iter().find(|case| case.id == id).ok_or(format!("no case `{id}`"))?;
        let frames = self.recorded.get(&format!("{id}/all_frames")).ok_or("no recorded frames")?;
        let picked = case.frame_index.as_ref().ok_or("no frame_index")?;
        let picked: Vec<u32> = picked.iter().map(|&index| index as u32).collect();
        let picked = Tensor::new(picked, &Device::Cpu).and_then(|picked| frames.index_select(&picked, 0));
        pixels(&picked.map_err(text)?, &Preprocessing::clip(size, Fit::Crop))
    }

    fn compare_batch(
        &self,
        examples: &[Example],
        assembled: &StageModel,
        seen: &mut Seen,
        report: &mut FolderReport,
    ) -> Result<()> {
        let pad = i64::from(assembled.model.options().pad_id);
        let longest = examples.iter().map(|example| example.sample.ids.len()).max().unwrap_or(0);
        let rows = |of: &dyn Fn(&Sample) -> Vec<i64>, fill: i64| {
            let rows: Vec<Vec<i64>> = examples
                .iter()
                .map(|example| {
                    let mut row = of(&example.sample);
                    row.resize(longest, fill);
                    row
                })
                .collect();
            Tensor::new(rows, &Device::Cpu).map_err(text)
        };
        let ids = rows(&|sample| sample.ids.clone(), pad)?;
        let labels = rows(&|sample| sample.labels.clone(), -100)?;
        let mask = ids.ne(pad).map_err(text)?;
        for (name, tensor) in [("input_ids", ids), ("labels", labels), ("attention_mask", mask)] {
            let name = format!("batch/{name}");
            if let Some(expected) = self.recorded.get(&format!("{}/{name}", self.prefix)) {
                report.tensor(&name, &tensor, expected, 0.);
            }
        }
        let batch = assembled.model.batch(examples, &mut Blind).map_err(text)?;
        seen.see("llm.labels", &Tensor::new(batch.labels, &Device::Cpu).map_err(text)?);
        Ok(())
    }

    fn compare_forward(&self, name: &str, seen: &Seen, report: &mut FolderReport) {
        let Some(expected) = self.recorded.get(&format!("{}/{name}", self.prefix)) else {
            return report.failed(name, "is named by the case and was not recorded".to_owned());
        };
        let plain = name.trim_start_matches("forward/");
        let Some(actual) = seen.get(plain) else {
            return report.failed(name, "was not computed".to_owned());
        };
        let whole = ["ids", "mask", "labels", "argmax"].iter().any(|word| plain.contains(word));
        report.tensor(name, &actual, expected, if whole { 0. } else { self.setting.bound });
    }

    fn compare_gradients(
        &self,
        parameters: &Parameters,
        store: &GradStore,
        report: &mut FolderReport,
    ) -> Result<()> {
        let trainable = parameters.trainable();
        let total = gradients::global_norm(store, &trainable).map_err(text)?;
        report.number("grad_norm_total", total, self.case.grad_norm_total, GRADIENT, 0.);
        let floor = ROUNDING * self.case.grad_norm_total;
        let mut none = Vec::new();
        for (name, var) in &trainable {
            let published = Part::published(name).unwrap_or_else(|| name.clone());
            let Some(gradient) = store.get(var.as_tensor()) else {
                none.push(published);
                continue;
            };
            let Some(expected) = self.case.grad_norms.get(&published) else {
                report.failed(&format!("grad_norm/{published}"), "was not recorded".to_owned());
                continue;
            };
            let norm = gradients::norm(gradient).map_err(text)?;
            report.number(&format!("grad_norm/{published}"), norm, *expected, GRADIENT, floor);
            if let Some(expected) = self.recorded.get(&format!("{}/grad/{published}", self.prefix)) {
                report.tensor_above(&format!("grad/{published}"), gradient, expected, GRADIENT, floor);
            }
        }
        report.equal("grad_none", &none, &self.case.grad_none);
        Ok(())
    }

    fn compare_updated(
        &self,
        parameters: &Parameters,
        store: &GradStore,
        written: &Checkpoint,
        report: &mut FolderReport,
    ) -> Result<()> {
        let allowed = STEP * self.case.lr_of_the_recorded_step;
        for (name, var) in &parameters.trainable() {
            let published = Part::published(name).unwrap_or_else(|| name.clone());
            let Some(gradient) = store.get(var.as_tensor()) else { continue };
            let expected = written.read(&published, &Device::Cpu).map_err(text)?;
            let flat = |tensor: &Tensor| -> Result<Vec<f32>> {
                tensor.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1()).map_err(text)
            };
            let (gradient, actual, expected) = (flat(gradient)?, flat(var)?, flat(&expected)?);
            let apart = gradient
                .iter()
                .zip(actual.iter().zip(&expected))
                .filter(|(gradient, _)| gradient.abs() > DECIDED)
                .map(|(_, (actual, expected))| f64::from((actual - expected).abs()))
                .fold(0., f64::max);
            report.within(&format!("updated/{published}"), apart, allowed);
        }
        Ok(())
    }
}

/// Pictures (F, H, W, 3) as the encoder reads them.
fn pixels(pictures: &Tensor, preprocessing: &Preprocessing) -> Result<Visual> {
    let count = pictures.dims4().map_err(text)?.0;
    let pixels = (0..count)
        .map(|index| Ok(preprocess::one(preprocessing, &pictures.i(index).map_err(text)?)?.1))
        .collect::<Result<Vec<_>>>()?;
    Ok(Visual::Pixels(Tensor::stack(&pixels, 0).map_err(text)?))
}

/// Tensors of the forward pass by the names of the records.
#[derive(Default)]
struct Seen(HashMap<String, Tensor>);

impl Seen {
    fn get(&self, name: &str) -> Option<Tensor> {
        let logits = self.0.get("llm.logits");
        match name {
            "llm.logits_last" => {
                let logits = logits?;
                logits.narrow(1, logits.dims().get(1)? - 1, 1).ok()
            }
            "llm.logits_argmax" => logits?.argmax(D::Minus1).ok(),
            "llm.logits_logsumexp" => logits?.log_sum_exp(D::Minus1).ok(),
            name => self.0.get(name).cloned(),
        }
    }
}

impl Observer for Seen {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        self.0.insert(name.to_owned(), tensor.clone());
    }

    fn wants(&self) -> bool {
        true
    }
}

fn number(tensor: &Tensor) -> Result<f64> {
    tensor.to_dtype(DType::F64).and_then(|tensor| tensor.to_scalar()).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
