//! What an answer takes, told before a weight is read: memory of weights, cache and steps, and whether it is there.

mod available;
mod usage;
mod weights;

use std::collections::BTreeSet;

use candle_core::DType;
use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::CachePrecision;
use llamavid_weights::Quantisation;
use serde::{Deserialize, Serialize};

use self::available::Memory;
use self::usage::{Steps, Usage, Work, feature_bytes, tokens_per_frame};
use self::weights::{Format, Held, Weights};
use crate::gpus::{Gpu, gpus};
use crate::model_folder::ModelFolder;
use crate::split::{Split, expect_shares};
use crate::{DeviceKind, Dtype, Error, ErrorCode, Precision, Result};

/// What is asked for, and what the process has already.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    /// Frames of each video or picture.
    frames: Vec<usize>,
    /// Pixels of the largest picture of the sources.
    source_pixels: u64,
    /// Positions of the prompt, visual tokens included.
    prompt_tokens: usize,
    /// What the query model reads.
    question: String,
    /// The longest answer.
    max_new_tokens: usize,
    dtype: String,
    load: String,
    /// `16bit`, `8bit` or `4bit`.
    kv_cache: String,
    /// `cpu`, `cuda:N`, or several with commas between.
    device: String,
    /// How several devices share the language model.
    #[serde(default)]
    split: Split,
    /// Whether to tell what graphics processors there are, also for a run on the CPU.
    #[serde(default)]
    list_gpus: bool,
    /// What the process has in memory now.
    process_bytes: u64,
    /// Whether the weights are a part of that.
    #[serde(default)]
    loaded: bool,
    /// Frames whose features are a part of that.
    #[serde(default)]
    encoded_frames: usize,
    /// Whether features are read from a store a few frames at a time.
    #[serde(default)]
    stored: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    frames: usize,
    tokens_per_frame: u64,
    prompt_tokens: usize,
    visual_tokens: u64,
    max_new_tokens: usize,
    context_length: usize,
    steps: Steps,
    /// Features of all frames, by what a number takes.
    feature_bytes: FeatureBytes,
    process_bytes: u64,
    memory: Option<Memory>,
    gpus: Vec<Gpu>,
    options: Vec<Setting>,
    /// Number of the option that would be taken.
    chosen: usize,
    /// What fits where the chosen option does not.
    nearest: Option<Nearest>,
}

#[derive(Debug, Serialize)]
struct FeatureBytes {
    f32: u64,
    f16: u64,
}

/// A format and what it takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Setting {
    #[serde(flatten)]
    format: Format,
    #[serde(flatten)]
    usage: Usage,
    /// The process at its highest.
    peak_bytes: u64,
    /// Absent where free memory is not known.
    fits: Option<bool>,
}

/// A setting that fits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Nearest {
    #[serde(flatten)]
    format: Format,
    /// Fewer frames than wanted, where all are too many.
    frames: Option<usize>,
    peak_bytes: u64,
}

/// What `request` (JSON) takes with the model of `folder`, as JSON.
pub(crate) fn plan(folder: &ModelFolder, request: &str) -> Result<String> {
    let request: Request = serde_json::from_str(request)
        .map_err(|error| Error::new(ErrorCode::InvalidArgument, format!("what to plan: {error}")))?;
    let plan = Planner::new(folder, &request)?.plan();
    serde_json::to_string(&plan).map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))
}

/// How keys and values are held, by the option's name.
fn parse_cache_bits(name: &str) -> Result<CachePrecision> {
    match name {
        "16bit" => Ok(CachePrecision::Full),
        "8bit" => Ok(CachePrecision::EightBit),
        "4bit" => Ok(CachePrecision::FourBit),
        other => Err(Error::argument(format!("a cache of {other:?}: there are 16bit, 8bit and 4bit"))),
    }
}

/// The ways to hold weights, from the most exact to the smallest.
fn formats(dtype: Dtype, kind: DeviceKind) -> [Format; 4] {
    let half = if dtype == Dtype::Bf16 { DType::BF16 } else { DType::F16 };
    let beside_blocks = match (dtype, kind) {
        (Dtype::F32, _) | (Dtype::Auto, DeviceKind::Cpu) => DType::F32,
        (Dtype::Auto, DeviceKind::Cuda) => DType::BF16,
        _ => half,
    };
    let [eight_bit, four_bit] = [Quantisation::Q8_0, Quantisation::Q4K].map(Some);
    [
        Format { dtype: DType::F32, quantisation: None },
        Format { dtype: half, quantisation: None },
        Format { dtype: beside_blocks, quantisation: eight_bit },
        Format { dtype: beside_blocks, quantisation: four_bit },
    ]
}

/// Bytes of the decoder's weights as they would be loaded.
pub(crate) fn language_bytes(folder: &ModelFolder, dtype: DType) -> Result<u64> {
    let format = Format { dtype, quantisation: folder.quantisation() };
    // The decoder's are the same on every device.
    let held = Weights::of(folder)?.held(format, DeviceKind::Cpu)?;
    Ok(held.bytes.language_model)
}

struct Planner<'a> {
    config: &'a ModelConfig,
    formats: Vec<(Format, Held)>,
    work: Work,
    kind: DeviceKind,
    memory: Option<Memory>,
    gpus: Vec<Gpu>,
    process_bytes: u64,
    dtype: Dtype,
    quantisation: Option<Quantisation>,
}

impl<'a> Planner<'a> {
    fn new(folder: &'a ModelFolder, request: &Request) -> Result<Self> {
        let config = folder.config();
        let listed: Vec<&str> = request.device.split(',').collect();
        let ranks = match request.split {
            Split::Layers => 1,
            Split::Tensor => {
                expect_shares(&listed, &config.language)?;
                listed.len()
            }
        };
        let names: BTreeSet<&str> = listed.into_iter().collect();
        let kind = if request.device.starts_with("cuda") { DeviceKind::Cuda } else { DeviceKind::Cpu };
        let any_gpu = names.iter().any(|name| name.starts_with("cuda"));
        let gpus = if request.list_gpus || any_gpu { gpus() } else { Vec::new() };
        let memories = names.iter().map(|name| match *name {
            "cpu" => available::memory(),
            name => {
                gpus.iter().find(|gpu| gpu.device == name).map(|gpu| Memory::of_gpu(gpu.total, gpu.available))
            }
        });
        // Several devices hold it together; when they share each layer, as much as the fullest of them has room for.
        let memory = memories.collect::<Option<Vec<_>>>().and_then(|mut memories| {
            if request.split == Split::Tensor {
                let least = *memories.iter().min_by_key(|memory| memory.available)?;
                memories.fill(least);
            }
            memories.into_iter().reduce(Memory::with)
        });
        let query_tokens = match request.frames.is_empty() {
            true => 0,
            false => {
                let question = std::slice::from_ref(&request.question);
                folder.query_tokenizer()?.encode_batch(question)?.0.first().map_or(0, Vec::len)
            }
        };
        let kv_cache = parse_cache_bits(&request.kv_cache)?;
        kv_cache.row_bytes(config.language.head_dim, DType::F32)?;
        let dtype = Dtype::parse(&request.dtype)?;
        let weights = Weights::of(folder)?;
        let formats = formats(dtype, kind).map(|format| Ok((format, weights.held(format, kind)?)));
        Ok(Self {
            config,
            formats: formats.into_iter().collect::<Result<_>>()?,
            work: Work {
                frames: request.frames.clone(),
                source_pixels: request.source_pixels,
                prompt_tokens: request.prompt_tokens,
                query_tokens,
                max_new_tokens: request.max_new_tokens,
                encoded_frames: request.encoded_frames,
                stored: request.stored,
                kv_cache,
                loaded: request.loaded,
                ranks,
            },
            kind,
            memory,
            gpus,
            process_bytes: request.process_bytes,
            dtype,
            quantisation: Precision::parse_bits(&request.load)?,
        })
    }

    fn plan(&self) -> Plan {
        let options = self.options();
        let chosen = self.chosen(&options);
        let frames = self.work.frames.iter().sum();
        let nearest = match options[chosen].fits {
            Some(false) => self.nearest(&options, chosen),
            _ => None,
        };
        Plan {
            frames,
            tokens_per_frame: tokens_per_frame(self.config),
            prompt_tokens: self.work.prompt_tokens,
            visual_tokens: frames as u64 * tokens_per_frame(self.config),
            max_new_tokens: self.work.max_new_tokens,
            context_length: self.config.language.max_positions,
            steps: usage::steps(self.config, &self.work, self.kind),
            feature_bytes: FeatureBytes {
                f32: feature_bytes(self.config, frames, 4),
                f16: feature_bytes(self.config, frames, 2),
            },
            process_bytes: self.process_bytes,
            memory: self.memory,
            gpus: self.gpus.clone(),
            options,
            chosen,
            nearest,
        }
    }

    fn options(&self) -> Vec<Setting> {
        self.formats.iter().map(|format| self.setting(format, &self.work)).collect()
    }

    fn setting(&self, (format, held): &(Format, Held), work: &Work) -> Setting {
        let format = *format;
        let usage = usage::usage(self.config, held, format, work, self.kind);
        let fits = self.memory.map(|memory| usage.needed <= memory.available);
        Setting { format, peak_bytes: self.process_bytes + usage.needed, usage, fits }
    }

    /// What was asked for. Where the dtype is left open on a CPU, f32 if it fits, and half precision if only that fits.
    fn chosen(&self, options: &[Setting]) -> usize {
        match (self.quantisation, self.dtype, self.kind) {
            (Some(Quantisation::Q8_0), _, _) => 2,
            (Some(_), _, _) => 3,
            (None, Dtype::F32, _) => 0,
            (None, Dtype::Auto, DeviceKind::Cpu) => {
                usize::from(options[0].fits == Some(false) && options[1].fits == Some(true))
            }
            (None, _, _) => 1,
        }
    }

    /// The most exact option that fits, else the smallest with as many frames as fit.
    fn nearest(&self, options: &[Setting], chosen: usize) -> Option<Nearest> {
        let smaller = || options.iter().filter(|option| option.peak_bytes < options[chosen].peak_bytes);
        if let Some(option) = smaller().find(|option| option.fits == Some(true)) {
            return Some(Nearest { format: option.format, frames: None, peak_bytes: option.peak_bytes });
        }
        let [all] = self.work.frames.as_slice() else { return None };
        let smallest = smaller().next_back().unwrap_or(&options[chosen]).format;
        let smallest = self.formats.iter().find(|(format, _)| *format == smallest)?;
        let with = |frames: usize| {
            let fewer = (*all - frames) * tokens_per_frame(self.config) as usize;
            let prompt_tokens = self.work.prompt_tokens.saturating_sub(fewer);
            self.setting(smallest, &Work { frames: vec![frames], prompt_tokens, ..self.work.clone() })
        };
        // The most frames that fit: what is taken grows with their number.
        let (mut fitting, mut too_many) = (0, *all);
        while fitting + 1 < too_many {
            let middle = fitting.midpoint(too_many);
            match with(middle).fits {
                Some(true) => fitting = middle,
                _ => too_many = middle,
            }
        }
        (fitting > 0).then(|| Nearest {
            format: smallest.0,
            frames: Some(fitting),
            peak_bytes: with(fitting).peak_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use llamavid_weights::Checkpoint;
    use serde_json::{Value, json};

    use super::*;

    fn model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/random-model")
    }

    /// Some frames, with the changes.
    fn request(changes: Value) -> Value {
        let mut request = json!({
            "frames": [30], "sourcePixels": 1280 * 720, "promptTokens": 100, "question": "what is it", "maxNewTokens": 20,
            "dtype": "auto", "load": "16bit", "kvCache": "16bit", "device": "cpu", "processBytes": 100_000_000,
        });
        for (key, value) in changes.as_object().unwrap() {
            request[key] = value.clone();
        }
        request
    }

    fn planned(changes: Value) -> Value {
        let request = request(changes);
        let folder = ModelFolder::open(&model()).unwrap();
        serde_json::from_str(&plan(&folder, &request.to_string()).unwrap()).unwrap()
    }

    fn bytes(value: &Value) -> u64 {
        value.as_u64().unwrap()
    }

    #[test]
    fn weights_are_as_large_as_those_in_the_files() {
        let checkpoint = Checkpoint::open_folder(&model()).unwrap();
        let buffers = ["rotary_emb.inv_freq", "position_ids"];
        let stored: usize = checkpoint
            .names()
            .filter(|name| !buffers.iter().any(|buffer| name.ends_with(buffer)))
            .map(|name| checkpoint.shape(name).unwrap().iter().product::<usize>())
            .sum();
        let plan = planned(json!({}));
        let of = |option: usize| {
            let weights = &plan["options"][option]["weights"];
            ["visualEncoder", "tokenGenerator", "languageModel"]
                .map(|part| bytes(&weights[part]))
                .iter()
                .sum::<u64>()
        };
        // Matrices of the encoder's two blocks stay in the 16 bits of their file.
        let (square, hidden) = (32 * 32, 32 * 139);
        assert_eq!(of(0), 4 * stored as u64 - 2 * 2 * (4 * square + 2 * hidden));
        assert_eq!(of(1), 2 * stored as u64);
        assert!(of(2) < of(0));
    }

    #[test]
    fn weights_in_blocks_take_what_loading_makes_of_them() {
        let plan = planned(json!({}));
        let language = |option: usize| bytes(&plan["options"][option]["weights"]["languageModel"]);
        // The table in 16 bits; rows of 96 numbers, of the two layers' last matrices, in blocks of 32; rows of 48 fill none.
        let (table, blocks) = (384 * 48, 2 * 48 * 96);
        assert_eq!(language(2), language(0) - 4 * (table + blocks) + 2 * table + blocks / 32 * 34);
        assert_eq!(language(3), language(2), "large blocks do not fill rows of 96 either");
    }

    #[test]
    fn the_encoders_rounded_weights_take_a_byte() {
        let plan = planned(json!({}));
        let encoder = |option: usize| bytes(&plan["options"][option]["weights"]["visualEncoder"]);
        // Of two blocks; rows of 139 fill no blocks and stay as they are.
        assert_eq!(encoder(2), encoder(0) - 2 * (4 * 32 * 32 + 32 * 139));
    }

    #[test]
    fn a_cache_that_cannot_be_in_blocks_is_refused_before_it_is_filled() {
        // Heads of 16 numbers fill no block.
        for (device, bits) in [("cpu", "8bit"), ("cpu", "4bit"), ("cuda:0", "8bit")] {
            let folder = ModelFolder::open(&model()).unwrap();
            let request = request(json!({ "kvCache": bits, "device": device }));
            let error = plan(&folder, &request.to_string()).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
            assert!(error.message.contains("8 or 4 bits"), "{error}");
        }
    }

    #[test]
    fn what_is_in_memory_already_is_not_needed_again() {
        let all = planned(json!({}));
        let rest = planned(json!({ "loaded": true, "encodedFrames": 30 }));
        let (all, rest) = (&all["options"][0], &rest["options"][0]);
        assert!(bytes(&rest["needed"]) < bytes(&all["needed"]));
        assert_eq!(rest["activations"]["media"], 0);
        assert_eq!(rest["weights"], all["weights"]);
    }

    #[test]
    fn longer_videos_and_answers_take_more() {
        let (short, long) = (planned(json!({})), planned(json!({ "frames": [3000], "promptTokens": 400 })));
        for key in ["features", "kvCache", "prompt", "needed"] {
            assert!(bytes(&long["options"][0][key]) > bytes(&short["options"][0][key]), "{key}");
        }
        // Rows (36 patches and the class row) of 32 numbers.
        assert_eq!(bytes(&long["options"][0]["features"]), 3000 * 37 * 32 * 4);
        // Two layers, keys and values of 48 numbers, 400 + 20 positions.
        assert_eq!(bytes(&long["options"][0]["kvCache"]), 2 * 2 * 48 * 420 * 4);
    }

    /// A planner that has as much memory as it is told.
    fn with_memory<T>(available: u64, frames: usize, prompt: usize, read: impl FnOnce(Plan) -> T) -> T {
        let folder = ModelFolder::open(&model()).unwrap();
        let request: Request = serde_json::from_value(json!({
            "frames": [frames], "sourcePixels": 0, "promptTokens": prompt, "question": "what is it",
            "maxNewTokens": 20, "dtype": "auto", "load": "16bit", "kvCache": "16bit", "device": "cpu", "processBytes": 0,
        }))
        .unwrap();
        let mut planner = Planner::new(&folder, &request).unwrap();
        planner.memory = Some(Memory::of_gpu(available, available));
        read(planner.plan())
    }

    #[test]
    fn half_precision_is_taken_where_only_that_fits() {
        let [single, half] =
            with_memory(u64::MAX, 40_000, 100, |plan| [0, 1].map(|option| plan.options[option].usage.needed));
        assert!(half < single);
        assert_eq!(with_memory(single, 40_000, 100, |plan| plan.chosen), 0);
        assert_eq!(with_memory(half, 40_000, 100, |plan| (plan.chosen, plan.nearest.is_none())), (1, true));
    }

    #[test]
    fn the_nearest_setting_fits_and_one_frame_more_does_not() {
        let few = with_memory(u64::MAX, 10, 60, |plan| plan.options[3].usage.needed);
        let available = few + (1 << 20);
        let frames = with_memory(available, 4000, 8040, |plan| {
            assert_eq!(plan.options[plan.chosen].fits, Some(false));
            plan.nearest.unwrap().frames.unwrap()
        });
        assert!((11..4000).contains(&frames), "{frames}");
        assert!(with_memory(available, frames, 2 * frames + 40, |plan| plan
            .options
            .iter()
            .any(|option| option.fits == Some(true))));
        assert!(with_memory(1 << 20, 4000, 8040, |plan| plan.nearest.is_none()));
    }

    #[test]
    fn devices_that_share_layers_have_what_cannot_be_shared_each() {
        let alone = planned(json!({ "device": "cpu,cpu,cpu" }));
        let shared = planned(json!({ "device": "cpu,cpu,cpu", "split": "tensor" }));
        let of = |plan: &Value, key: &str| plan["options"][0][key].clone();
        assert_eq!(of(&shared, "weights"), of(&alone, "weights"));
        // Three heads of keys are one each.
        assert_eq!(of(&shared, "kvCache"), of(&alone, "kvCache"));
        let prefill = |plan: &Value| bytes(&plan["options"][0]["activations"]["prefill"]);
        assert!(prefill(&shared) > prefill(&alone));
    }

    #[test]
    fn layers_that_cannot_be_shared_are_refused_before_they_are_read() {
        let folder = ModelFolder::open(&model()).unwrap();
        for (device, problem) in [
            ("cpu", "nothing to share"),
            ("cpu,cpu", "3 heads"),
            ("cuda:0,cpu,cpu", "side by side"),
            ("cuda:0,cuda:1,cuda:0", "one share"),
        ] {
            let request = request(json!({ "device": device, "split": "tensor" }));
            let error = plan(&folder, &request.to_string()).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
            assert!(error.message.contains(problem) && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused() {
        let folder = ModelFolder::open(&model()).unwrap();
        assert_eq!(plan(&folder, "{").unwrap_err().code, ErrorCode::InvalidArgument);
        for (key, wrong) in [("load", "3bit"), ("kvCache", "2bit"), ("dtype", "f8"), ("split", "rows")] {
            let mut request = request(json!({}));
            request[key] = wrong.into();
            assert_eq!(
                plan(&folder, &request.to_string()).unwrap_err().code,
                ErrorCode::InvalidArgument,
                "{key}"
            );
        }
    }
}
