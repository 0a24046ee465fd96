//! What a conversion will write, worked out before the first byte: every weight's place in the inputs and in the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};
use llamavid_models::config::ModelConfig;
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_runtime::model_folder::{in_file, read_optional, read_required};
use llamavid_runtime::{Error, ErrorCode, Result};
use llamavid_weights::key_table::INSTRUCT_BLIP;
use llamavid_weights::writer::{GgufTensor, GgufValue, GgufWriter, SafetensorsWriter, TensorHeader};
use llamavid_weights::{Checkpoint, Found, Loader};
use serde_json::{Value, json};

use crate::blueprint::{Needed, Part, needed};
use crate::configuration;
use crate::convert::ConvertOptions;
use crate::formats::{self, Quantisation};
use crate::inputs::{Inputs, LanguageSource};
use crate::language_gguf;
use crate::layout::{self, CONFIG, INDEX, LANGUAGE_GGUF, SHARD_BYTES, TOKENS_GGUF, VISION_GGUF};

const TOKENIZER: &str = "tokenizer.model";
const ADDED_TOKENS: &str = "added_tokens.json";
/// What lies beside a tokenizer and belongs to it.
const BESIDE_TOKENIZER: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", ADDED_TOKENS];
const GENERATION: &str = "generation_config.json";

/// Everything that will be written.
#[derive(Debug)]
pub struct Plan {
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Files of weights.
    pub files: Vec<PlannedFile>,
    /// All other files but the manifest, by name.
    pub small_files: BTreeMap<String, Vec<u8>>,
    sources: Sources,
}

/// A file of weights.
#[derive(Debug)]
pub struct PlannedFile {
    /// Its name in the result.
    pub name: String,
    /// Its format.
    pub body: Body,
    /// What it will hold, in order.
    pub weights: Vec<Weight>,
}

/// The format of a file of weights.
#[derive(Debug)]
pub enum Body {
    /// Numbers as they are or in another dtype.
    Safetensors,
    /// Numbers in blocks.
    Gguf(Vec<(String, GgufValue)>),
    /// Another file, as it is.
    Copy(PathBuf),
}

/// A weight on its way.
#[derive(Debug)]
pub struct Weight {
    /// Its published name, by which the manifest knows it.
    pub name: String,
    /// Its name in the file that is written.
    pub written_name: String,
    /// The part that it belongs to.
    pub part: Part,
    /// Our name for it.
    pub ours: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The format that is written.
    pub format: GgmlDType,
    /// Where it comes from.
    pub found: Found,
    /// Which of its part's sources that is.
    source: usize,
}

/// Where the weights of each part are read, the first that has one counts.
#[derive(Debug)]
struct Sources {
    vision: Vec<Loader>,
    tokens: Vec<Loader>,
    language: Vec<Loader>,
}

impl Sources {
    fn open(inputs: &Inputs) -> Self {
        let open =
            |weights: &Checkpoint, table| Loader::new(weights.clone(), table, DType::F32, &Device::Cpu);
        let mut tokens = vec![open(&inputs.trained, Part::TokenGenerator.table())];
        tokens.extend(inputs.query_model.as_ref().map(|weights| open(weights, &INSTRUCT_BLIP)));
        let (LanguageSource::Folder(_, language) | LanguageSource::Gguf(_, language)) = &inputs.language;
        Self {
            vision: vec![open(&inputs.vision, Part::VisualEncoder.table())],
            tokens,
            language: vec![open(language, Part::LanguageModel.table())],
        }
    }

    fn of(&self, part: Part) -> &[Loader] {
        match part {
            Part::VisualEncoder => &self.vision,
            Part::TokenGenerator => &self.tokens,
            Part::LanguageModel => &self.language,
        }
    }

    /// Finds a weight in the first source that has it; where none has, the first says so.
    fn find(&self, part: Part, needed: &Needed) -> Result<(usize, Found)> {
        let sources = self.of(part);
        let index = sources.iter().position(|source| source.contains(&needed.ours)).unwrap_or(0);
        match sources.get(index) {
            Some(source) => Ok((index, source.find(&needed.ours, &needed.shape)?)),
            None => Err(Error::new(ErrorCode::Internal, format!("the {} has no source", part.name()))),
        }
    }
}

impl Plan {
    /// Finds every weight that the model needs and decides what becomes of it.
    ///
    /// # Errors
    /// `MODEL_INVALID` names the file and the weight that is missing, of another shape, no floating-point number, or not
    /// wanted; `MODEL_FILE_MISSING` for a tokenizer.
    pub fn new(inputs: &Inputs, options: &ConvertOptions) -> Result<Self> {
        if let (LanguageSource::Gguf(file, _), Some(_)) = (&inputs.language, options.quantize) {
            let message = format!("{}: is quantised already, as it says itself", file.display());
            return Err(Error::new(ErrorCode::InvalidArgument, message)
                .with_hint("Convert without --quantize, or give the language model's own folder."));
        }
        let config = configuration::understand(inputs)?;
        let sources = Sources::open(inputs);
        let mut weights = Vec::new();
        for part in Part::ALL {
            for needed in needed(part, &config)? {
                let (source, found) = sources.find(part, &needed)?;
                let name = part.published(&needed.ours);
                let format = stored(options.dtype.unwrap_or(found.dtype));
                let Needed { ours, shape } = needed;
                let written_name = name.clone();
                weights.push(Weight { name, written_name, part, ours, shape, format, found, source });
            }
        }
        // What no module asked for belongs to another model. The query model of training's start may have been replaced.
        let Sources { vision, mut tokens, language } = sources;
        tokens.truncate(1);
        for source in vision.into_iter().chain(tokens).chain(language) {
            source.finish()?;
        }

        let sources = Sources::open(inputs);
        let tokenizer = Tokenizer::read(inputs)?;
        let mut small_files = tokenizer.files.clone();
        small_files.extend(beside(inputs, &config)?);
        let (files, index) = files(weights, &config, inputs, options, &tokenizer)?;
        small_files.extend(index.map(|index| (INDEX.to_owned(), index)));
        let dtype = torch_name(&files, options.dtype);
        let written = configuration::write(inputs, &config, dtype)?;
        small_files.insert(CONFIG.to_owned(), json_bytes(&written)?);
        Ok(Self { config, files, small_files, sources })
    }

    /// Bytes of the result, but for its manifest.
    ///
    /// # Errors
    /// A weight that a format has no room for.
    pub fn bytes(&self) -> Result<u64> {
        let small: u64 = self.small_files.values().map(|bytes| bytes.len() as u64).sum();
        self.files.iter().try_fold(small, |sum, file| Ok(sum + file.bytes()?))
    }

    /// The source that a weight is read from.
    pub fn source(&self, weight: &Weight) -> Result<&Loader> {
        self.sources.of(weight.part).get(weight.source).ok_or_else(|| {
            Error::new(ErrorCode::Internal, format!("the {} has no source", weight.part.name()))
        })
    }
}

impl PlannedFile {
    /// The header's entries of a safetensors file.
    pub fn headers(&self) -> Vec<TensorHeader> {
        let header = |weight: &Weight| TensorHeader {
            name: weight.written_name.clone(),
            dtype: weight.dtype(),
            shape: weight.shape.clone(),
        };
        self.weights.iter().map(header).collect()
    }

    /// The header's entries of a GGUF file.
    pub fn blocks(&self) -> Vec<GgufTensor> {
        let blocks = |weight: &Weight| GgufTensor {
            name: weight.written_name.clone(),
            shape: weight.shape.clone(),
            format: weight.format,
        };
        self.weights.iter().map(blocks).collect()
    }

    /// Its size.
    ///
    /// # Errors
    /// A weight that the format has no room for.
    pub fn bytes(&self) -> Result<u64> {
        let length = match &self.body {
            Body::Copy(file) => std::fs::metadata(file).map(|facts| facts.len()),
            Body::Safetensors => {
                SafetensorsWriter::<Vec<u8>>::length(&self.headers(), &safetensors_metadata())
            }
            Body::Gguf(metadata) => GgufWriter::<Vec<u8>>::length(metadata, &self.blocks()),
        };
        length.map_err(|error| Error::new(ErrorCode::ModelUnsupported, format!("{}: {error}", self.name)))
    }
}

impl Weight {
    /// The dtype of its numbers in a safetensors file, or that in which it is read to be made blocks of.
    pub fn dtype(&self) -> DType {
        match self.format {
            GgmlDType::F16 => DType::F16,
            GgmlDType::BF16 => DType::BF16,
            GgmlDType::F32 => DType::F32,
            _ if self.found.dtype == DType::F64 => DType::F32,
            _ => self.found.dtype,
        }
    }
}

/// What other readers look for in a header.
pub fn safetensors_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// JSON as it is written to a file.
///
/// # Errors
/// None for values that JSON can hold.
pub fn json_bytes(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("JSON cannot be written: {error}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn stored(dtype: DType) -> GgmlDType {
    match dtype {
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        _ => GgmlDType::F32,
    }
}

/// `torch_dtype`: what was asked for, or that of the language model's matrices, or of what stands for them.
fn torch_name(files: &[PlannedFile], asked: Option<DType>) -> &'static str {
    let of_language = |weight: &&Weight| weight.part == Part::LanguageModel && weight.shape.len() == 2;
    let weights = || files.iter().flat_map(|file| &file.weights);
    let found = weights().find(of_language).or_else(|| weights().next()).map(|weight| weight.found.dtype);
    match asked.or(found) {
        Some(DType::F16) | None => "float16",
        Some(DType::BF16) => "bfloat16",
        Some(_) => "float32",
    }
}

/// The tokenizer of the language model, and where it was found.
struct Tokenizer {
    files: BTreeMap<String, Vec<u8>>,
    described: language_gguf::Tokenizer,
}

impl Tokenizer {
    fn read(inputs: &Inputs) -> Result<Self> {
        let folders = folders(inputs);
        let Some(folder) = folders.iter().find(|folder| folder.join(TOKENIZER).is_file()) else {
            let path = folders.last().map(|folder| folder.join(TOKENIZER)).unwrap_or_default();
            let message = format!("{}: the language model's tokenizer is missing", path.display());
            return Err(Error::new(ErrorCode::ModelFileMissing, message)
                .with_hint("Put the tokenizer.model of the language model there: Vicuna's folder has it."));
        };
        let path = folder.join(TOKENIZER);
        let model = read_required(&path, "the language model's tokenizer")?;
        let mut files = BTreeMap::new();
        for name in BESIDE_TOKENIZER {
            files.extend(read_optional(&folder.join(name))?.map(|bytes| (name.to_owned(), bytes)));
        }
        let beside = |name: &str| files.get(name).map(Vec::as_slice);
        let [config, map, added] = BESIDE_TOKENIZER.map(beside);
        // The one that will read them finds what is wrong with them.
        LlamaTokenizer::from_bytes(&model, config, added, map).map_err(|error| in_file(&path, error))?;
        let described = language_gguf::Tokenizer::read(&model, added)?;
        files.insert(TOKENIZER.to_owned(), model);
        Ok(Self { files, described })
    }
}

/// Folders whose small files belong to the language model, the first counts.
fn folders(inputs: &Inputs) -> Vec<PathBuf> {
    let language = match &inputs.language {
        LanguageSource::Folder(folder, _) => folder.clone(),
        LanguageSource::Gguf(file, _) => file.parent().map(Path::to_path_buf).unwrap_or_default(),
    };
    vec![inputs.model.clone(), language]
}

/// The small files of the other parts.
fn beside(inputs: &Inputs, config: &ModelConfig) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let path = inputs.vocabulary.join("vocab.txt");
    let vocabulary = read_required(&path, "the query model's vocabulary")?;
    // Its other settings do not matter here.
    WordPieceTokenizer::from_vocab(&vocabulary, true).map_err(|error| in_file(&path, error))?;
    let lines = vocabulary.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    let rows = config.tokens.query.vocab_size;
    if lines > rows {
        let message = format!("{}: {lines} words, the query model knows {rows}", path.display());
        return Err(Error::new(ErrorCode::ModelInvalid, message)
            .with_hint("Give the vocabulary that belongs to this query model."));
    }
    files.push(("bert/vocab.txt".to_owned(), vocabulary));
    let settings = read_optional(&inputs.vocabulary.join("tokenizer_config.json"))?;
    files.extend(settings.map(|bytes| ("bert/tokenizer_config.json".to_owned(), bytes)));
    if let Some(processor) = &inputs.processor {
        let bytes = read_required(processor, "the image processor")?;
        files.push(("processor/preprocessor_config.json".to_owned(), bytes));
    }
    for folder in folders(inputs) {
        if let Some(bytes) = read_optional(&folder.join(GENERATION))? {
            files.push((GENERATION.to_owned(), bytes));
            break;
        }
    }
    Ok(files)
}

/// The files of weights, and the index of those that are several.
fn files(
    weights: Vec<Weight>,
    config: &ModelConfig,
    inputs: &Inputs,
    options: &ConvertOptions,
    tokenizer: &Tokenizer,
) -> Result<(Vec<PlannedFile>, Option<Vec<u8>>)> {
    let (mut rest, mut blocks) = (Vec::new(), BTreeMap::<Part, Vec<Weight>>::new());
    let mut copied = Vec::new();
    for mut weight in weights {
        if let (Part::LanguageModel, LanguageSource::Gguf(..)) = (weight.part, &inputs.language) {
            copied.push(weight);
            continue;
        }
        match (weight.part, options.quantize) {
            (Part::LanguageModel, Some(quantize)) => {
                weight.format = language_format(&weight, config, quantize);
                weight.written_name = language_gguf::name(&weight.ours).ok_or_else(|| {
                    let message = format!("{}: llama.cpp has no name for this weight", weight.name);
                    Error::new(ErrorCode::ModelUnsupported, message).with_hint("Convert without --quantize.")
                })?;
                blocks.entry(weight.part).or_default().push(weight);
            }
            (Part::VisualEncoder | Part::TokenGenerator, _) if options.quantize_vision => {
                weight.format = formats::eight_bit(&weight.ours, &weight.shape, weight.dtype());
                blocks.entry(weight.part).or_default().push(weight);
            }
            _ => rest.push(weight),
        }
    }
    let (mut files, index) = shards(rest, options.shard_bytes.unwrap_or(SHARD_BYTES))?;
    if let LanguageSource::Gguf(file, _) = &inputs.language {
        let body = Body::Copy(file.clone());
        files.push(PlannedFile { name: LANGUAGE_GGUF.to_owned(), body, weights: copied });
    }
    for (part, weights) in blocks {
        let (name, metadata) = match (part, options.quantize) {
            (Part::LanguageModel, Some(quantize)) => {
                let name = model_name(inputs);
                let tokenizer = &tokenizer.described;
                (LANGUAGE_GGUF, language_gguf::metadata(&config.language, &name, quantize, tokenizer)?)
            }
            (Part::VisualEncoder, _) => (VISION_GGUF, own_metadata(part)),
            _ => (TOKENS_GGUF, own_metadata(part)),
        };
        files.push(PlannedFile { name: name.to_owned(), body: Body::Gguf(metadata), weights });
    }
    Ok((files, index))
}

fn language_format(weight: &Weight, config: &ModelConfig, quantize: Quantisation) -> GgmlDType {
    let language = &config.language;
    let is_output = weight.ours == "embed_tokens.weight" && language.tie_word_embeddings;
    let as_ = if is_output { "lm_head.weight" } else { &weight.ours };
    language_gguf::format(as_, &weight.shape, language.layers, quantize)
}

/// What stands in the header of a file that only this project reads.
fn own_metadata(part: Part) -> Vec<(String, GgufValue)> {
    vec![
        ("general.architecture".to_owned(), GgufValue::Text("llamavid".into())),
        ("general.name".to_owned(), GgufValue::Text(part.name().into())),
        ("general.quantization_version".to_owned(), GgufValue::U32(language_gguf::QUANTISATION_VERSION)),
    ]
}

fn model_name(inputs: &Inputs) -> String {
    let path = std::path::absolute(&inputs.model).unwrap_or_else(|_| inputs.model.clone());
    path.file_name().map_or_else(|| "LLaMA-VID".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Weights by name in files of at most `most` bytes, unless one weight is larger.
fn shards(mut weights: Vec<Weight>, most: u64) -> Result<(Vec<PlannedFile>, Option<Vec<u8>>)> {
    weights.sort_by(|left, right| left.name.cmp(&right.name));
    let mut shards: Vec<Vec<Weight>> = Vec::new();
    let (mut size, mut total) = (0, 0);
    for weight in weights {
        let own = (weight.shape.iter().product::<usize>() * weight.dtype().size_in_bytes()) as u64;
        total += own;
        match shards.last_mut() {
            Some(shard) if size + own <= most => {
                shard.push(weight);
                size += own;
            }
            _ => {
                shards.push(vec![weight]);
                size = own;
            }
        }
    }
    let count = shards.len();
    let files: Vec<PlannedFile> = shards
        .into_iter()
        .enumerate()
        .map(|(index, weights)| PlannedFile {
            name: layout::shard(index, count),
            body: Body::Safetensors,
            weights,
        })
        .collect();
    if count < 2 {
        return Ok((files, None));
    }
    let places: BTreeMap<&str, &str> = files
        .iter()
        .flat_map(|file| file.weights.iter().map(|weight| (weight.name.as_str(), file.name.as_str())))
        .collect();
    let index: Value = json!({ "metadata": { "total_size": total }, "weight_map": places });
    let index = json_bytes(&index)?;
    Ok((files, Some(index)))
}
