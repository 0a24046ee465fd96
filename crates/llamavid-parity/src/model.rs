//! Runs a model's cases from the file to the text and compares every recorded tensor on the way.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use llamavid_models::language_model::{
    Generation, GenerationOptions, Keyword, LanguageModel, Prompt, SamplingOptions, StopRule,
};
use llamavid_models::observer::Observer;
use llamavid_models::preprocess::Preprocessing;
use llamavid_models::prompt::conversation::Template;
use llamavid_models::prompt::placeholders::tokenize_with_images;
use llamavid_models::prompt::sampling::frame_indices;
use llamavid_models::prompt::splice::{BatchRow, SpliceKind, splice_batch};
use llamavid_models::token_generation::{FeatureKind, Questions, TokenGenerator};
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer, strip};
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_runtime::model_folder::ModelFolder;

use crate::case::{Case, ModelCases, Recorded};
use crate::preprocess;
use crate::report::{FolderReport, PIXELS};
use crate::setting::Setting;
use crate::training;

/// Reasons that a case could not be run are told as text.
type Result<T> = std::result::Result<T, String>;

/// Compares all cases of a folder.
pub fn compare(
    folder: &Path,
    cases: &ModelCases,
    recorded: &Recorded,
    setting: &Setting,
    report: &mut FolderReport,
) {
    let parts = match Parts::load(folder, cases, setting) {
        Ok(parts) => parts,
        Err(problem) => return report.failed("model", problem),
    };
    // A case without frames of its own is about the same video as the one before.
    let mut frames = None;
    for case in &cases.cases {
        report.enter(&case.id);
        let mut seen = Seen::default();
        if let Err(problem) = run(folder, &parts, case, recorded, &mut frames, &mut seen, report) {
            report.failed("run", problem);
        }
        for name in &case.tensors {
            compare_one(name, case, recorded, &seen, setting, report);
        }
    }
    if setting.is_exact() {
        training::compare(folder, cases, recorded, setting, report);
    } else {
        report.left_out.push("training: it computes in 32-bit floats".to_owned());
        report.left_out.push("ids and texts of answers: rounding decides them in 16 bits".to_owned());
    }
}

/// A whole model and where it computes.
struct Parts<'a> {
    setting: &'a Setting,
    encoder: VisualEncoder,
    generator: TokenGenerator,
    language_model: Arc<LanguageModel>,
    llama: LlamaTokenizer,
    query: WordPieceTokenizer,
    preprocessing: Preprocessing,
    eos_ids: Vec<u32>,
}

impl<'a> Parts<'a> {
    fn load(folder: &Path, cases: &ModelCases, setting: &'a Setting) -> Result<Self> {
        let long_video = cases.cases.iter().any(|case| case.long_video);
        let sizes = cases.sizes.extension(long_video);
        let files = ModelFolder::open_with_sizes(&folder.join("model"), Some(&sizes)).map_err(text)?;
        let (device, dtype) = (setting.device(), setting.dtype);
        let mut language = files.config().language.clone();
        // The reference enforces no context length, and one of its records is longer than the config's.
        let longest = cases.cases.iter().filter_map(|case| case.spliced_length).max().unwrap_or(0);
        language.max_positions = language.max_positions.max(longest + 32);
        Ok(Self {
            setting,
            encoder: files.visual_encoder(dtype, device).map_err(text)?,
            generator: files.token_generator(dtype, device).map_err(text)?,
            language_model: Arc::new(files.language_model_as(&language, dtype, device).map_err(text)?),
            llama: files.llama_tokenizer().map_err(text)?,
            query: files.query_tokenizer().map_err(text)?,
            preprocessing: files.preprocessing().clone(),
            eos_ids: files.config().language.eos_ids.clone(),
        })
    }
}

/// Intermediate tensors by the names of the records.
#[derive(Default)]
struct Seen(HashMap<String, Tensor>);

impl Observer for Seen {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        self.0.insert(name.to_owned(), tensor.clone());
    }

    fn wants(&self) -> bool {
        true
    }
}

fn run(
    folder: &Path,
    parts: &Parts,
    case: &Case,
    recorded: &Recorded,
    frames: &mut Option<Tensor>,
    seen: &mut Seen,
    report: &mut FolderReport,
) -> Result<()> {
    if let Ok(template) = Template::by_name(&case.conversation) {
        report.equal("prompt", &template.render(&case.turns).map_err(text)?, &case.prompt);
    } else {
        report.failed("prompt", format!("no conversation template is named `{}`", case.conversation));
    }
    let ids = tokenize_with_images(&parts.llama, &case.prompt);
    report.equal("input_ids", &ids, &case.input_ids);

    let visual = match features(folder, parts, case, recorded, frames, seen, report)? {
        Some((features, kind)) => visual_tokens(parts, case, &features, kind, seen)?,
        None => Vec::new(),
    };
    let kind = if case.long_video { SpliceKind::PerToken } else { SpliceKind::PerPlaceholder };
    let row = BatchRow { ids: &ids, visual: &visual, kind };
    let spliced =
        splice_batch(&[row], parts.llama.pad_id(), |ids| parts.language_model.embed(ids)).map_err(text)?;
    seen.see("llm.inputs_embeds", &spliced.embeds);
    seen.see("llm.attention_mask", &spliced.attention_mask);
    let (_batch, length, _width) = spliced.embeds.dims3().map_err(text)?;
    if let Some(expected) = case.spliced_length {
        report.equal("spliced_length", &length, &expected);
    }

    let model = &parts.language_model;
    let embeds = spliced.embeds.to_dtype(parts.setting.dtype).map_err(text)?;
    let mut cache = model.new_cache(length);
    let hidden = model.forward(&embeds, &mut cache, None, seen).map_err(text)?;
    let logits = model.logits(&hidden, seen).map_err(text)?;
    summarise(&logits, seen).map_err(text)?;
    if parts.setting.is_exact() {
        generate(parts, case, embeds.squeeze(0).map_err(text)?, report)?;
    }
    Ok(())
}

/// The visual features of a case and whether the class row was cut off before.
fn features(
    folder: &Path,
    parts: &Parts,
    case: &Case,
    recorded: &Recorded,
    frames: &mut Option<Tensor>,
    seen: &mut Seen,
    report: &mut FolderReport,
) -> Result<Option<(Tensor, FeatureKind)>> {
    if let Some(name) = &case.feats_tensor {
        let stored = recorded.get(name).ok_or(format!("`{name}` was not recorded"))?;
        if let Some(file) = &case.feats_file {
            let read = llamavid_weights::pickle::read_features(&folder.join(file)).map_err(text)?;
            report.tensor("feats_file", &read.feats, stored, 0.0);
        }
        let (_frames, rows, _width) = stored.dims3().map_err(text)?;
        let without_class_row = stored
            .narrow(1, 1, rows - 1)
            .and_then(|rows| rows.to_dtype(DType::F32)?.to_device(parts.setting.device()));
        return Ok(Some((without_class_row.map_err(text)?, FeatureKind::Precomputed)));
    }
    let pictures = if let Some(file) = &case.file {
        Some(picture(&folder.join(file))?)
    } else if let (Some(fps), Some(expected)) = (case.fps, &case.frame_index) {
        if let Some(own) = recorded.get(&format!("{}/all_frames", case.id)) {
            *frames = Some(own.clone());
        }
        let all = frames.as_ref().ok_or("no frames were recorded for this video")?;
        let (count, ..) = all.dims4().map_err(text)?;
        let indices = frame_indices(fps, count, 1.0).map_err(text)?;
        report.equal("frame_index", &indices, expected);
        let picked: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
        let picked = Tensor::new(picked, &Device::Cpu).map_err(text)?;
        Some(all.index_select(&picked, 0).map_err(text)?)
    } else {
        None
    };
    let Some(pictures) = pictures else { return Ok(None) };
    seen.see("frames", &pictures);
    let fit = preprocess::fit(case.preprocess.as_deref().unwrap_or("crop"))?;
    let preprocessing = Preprocessing { fit, ..parts.preprocessing.clone() };
    let pixels = (0..pictures.dims()[0])
        .map(|index| Ok(preprocess::one(&preprocessing, &pictures.get(index).map_err(text)?)?.1))
        .collect::<Result<Vec<_>>>()?;
    let pixels = Tensor::stack(&pixels, 0).map_err(text)?;
    seen.see("pixel_values", &pixels);
    let pixels = pixels.to_device(parts.setting.device()).map_err(text)?;
    let features = parts.encoder.forward(&pixels, seen).map_err(text)?;
    Ok(Some((features, FeatureKind::Pixels)))
}

fn visual_tokens(
    parts: &Parts,
    case: &Case,
    features: &Tensor,
    kind: FeatureKind,
    seen: &mut Seen,
) -> Result<Vec<Tensor>> {
    let prompts = case.qformer_prompts.as_ref().and_then(|samples| samples.first());
    let prompts = prompts.ok_or("the case has a picture and no question for the query model")?;
    let (ids, mask) = parts.query.encode_batch(prompts).map_err(text)?;
    let device = parts.setting.device();
    let questions = Questions {
        input_ids: Tensor::new(ids, device).map_err(text)?,
        attention_mask: Tensor::new(mask, device).map_err(text)?,
    };
    let tokens = parts.generator.generate(features, kind, &questions, seen).map_err(text)?;
    seen.see("tok.features", &tokens);
    (0..prompts.len()).map(|index| tokens.get(index).map_err(text)).collect()
}

/// What is recorded of logits where all of them would be too many.
fn summarise(logits: &Tensor, seen: &mut Seen) -> candle_core::Result<()> {
    let (_batch, length, _vocabulary) = logits.dims3()?;
    seen.see("llm.logits_last", &logits.narrow(1, length - 1, 1)?);
    seen.see("llm.logits_argmax", &logits.argmax(D::Minus1)?);
    seen.see("llm.logits_logsumexp", &logits.log_sum_exp(D::Minus1)?);
    Ok(())
}

/// Decodes greedily through the KV cache and compares ids and text.
fn generate(parts: &Parts, case: &Case, embeds: Tensor, report: &mut FolderReport) -> Result<()> {
    let Some(expected) = &case.greedy_ids else { return Ok(()) };
    let greedy = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    // The records stop after at most 24 tokens; a shorter one stopped by itself.
    let options = GenerationOptions::new(expected.len().max(24), greedy);
    let mut rule = StopRule::new(&parts.eos_ids);
    if let Some(keyword) = &case.stop {
        let ids = parts.llama.encode(keyword, false);
        rule = rule.with_keywords(&[Keyword { text: keyword.clone(), ids }]).map_err(text)?;
    }
    let prompt = Prompt { embeds, visual_tokens: 0 };
    let mut generation =
        Generation::new(parts.language_model.clone(), prompt, options, rule).map_err(text)?;
    while !generation.prefill_step().map_err(text)?.is_complete() {}
    while generation.decode_step(&|ids| parts.llama.decode(ids, true)).map_err(text)?.is_some() {}
    let ids = generation.new_ids();
    report.equal("greedy_ids", &ids, &expected.as_slice());
    if let Some(wanted) = &case.text {
        report.equal("text", &final_text(&parts.llama.decode(ids, true), case.stop.as_deref()), wanted);
    }
    if let Some(wanted) = &case.text_cli {
        // The reference's chat keeps special tokens, the end of the answer among them.
        report.equal("text_cli", &strip(&parts.llama.decode(ids, false)).to_owned(), wanted);
    }
    Ok(())
}

/// Strips as Python does, cuts a final stop string off, and strips again.
fn final_text(answer: &str, stop: Option<&str>) -> String {
    let answer = strip(answer);
    strip(stop.and_then(|stop| answer.strip_suffix(stop)).unwrap_or(answer)).to_owned()
}

fn compare_one(
    name: &str,
    case: &Case,
    recorded: &Recorded,
    seen: &Seen,
    setting: &Setting,
    report: &mut FolderReport,
) {
    let Some(expected) = recorded.get(&format!("{}/{name}", case.id)) else {
        return report.failed(name, "is named by the case and was not recorded".to_owned());
    };
    if name == "all_frames" {
        return; // An input: what is picked of it was compared as `frame_index`.
    }
    let plain = name.strip_suffix(".0").unwrap_or(name);
    let Some(actual) = seen.0.get(plain) else {
        return report.failed(name, "was not computed".to_owned());
    };
    let tolerance = match plain {
        "llm.logits_argmax" if !setting.is_exact() => return,
        "frames" | "qf.input_ids" | "qf.attention_mask" | "llm.attention_mask" | "llm.logits_argmax" => 0.0,
        "pixel_values" => PIXELS,
        _ => setting.bound,
    };
    report.tensor(name, actual, expected, tolerance);
}

/// A picture's bytes (1, H, W, 3).
pub fn picture(path: &Path) -> Result<Tensor> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let image = llamavid_runtime::decode_picture(&bytes).map_err(text)?;
    Tensor::from_vec(image.data, (1, image.height, image.width, 3), &Device::Cpu).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
