//! What a conversion will write, worked out before the first byte: every weight's place in the inputs and in the result.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_runtime::model_folder::{read_optional, read_query_tokenizer, read_required, vision_names};
use llamavid_runtime::{Error, ErrorCode, Result, TokenizerFiles, WeightShape, weight_shapes};
use llamavid_weights::gguf::GgufFile;
use llamavid_weights::key_table::{INSTRUCT_BLIP, ROPE_DIVISORS, VISION_TOWER};
use llamavid_weights::writer::{
    GgufTensor, GgufValue, GgufWriter, InterleavedCopy, SafetensorsWriter, TensorHeader,
};
use llamavid_weights::{BlockFormat, Checkpoint, Found, Loader, Part, Quantisation};
use serde_json::{Value, json};

use crate::adapter::Adapter;
use crate::configuration;
use crate::convert::ConvertOptions;
use crate::inputs::{Inputs, LanguageSource};
use crate::language_gguf;
use crate::layout::{self, CONFIG, INDEX, LANGUAGE_GGUF, SHARD_BYTES, TOKENS_GGUF, VISION_GGUF};

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
    Gguf {
        /// What the file says of itself.
        metadata: Vec<(String, GgufValue)>,
        /// Rows of numbers that are in no input, behind the weights.
        computed: Vec<(String, Vec<f32>)>,
    },
    /// Another file, as it is.
    Copy(PathBuf),
    /// Another file of blocks, with the rows of its matrices interleaved.
    Interleaved(InterleavedCopy),
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
    /// Whether it is a matrix that may be in blocks.
    is_matrix: bool,
    /// The format that is written.
    pub format: BlockFormat,
    /// Whether its rows are interleaved.
    pub interleaved: bool,
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
    adapter: Option<Adapter>,
}

impl Sources {
    fn open(inputs: &Inputs, config: &ModelConfig) -> Self {
        let open =
            |weights: &Checkpoint, table| Loader::new(weights.clone(), table, DType::F32, &Device::Cpu);
        let mut tokens = vec![open(&inputs.trained, Part::TokenGenerator.table())];
        tokens.extend(inputs.query_model.as_ref().map(|weights| open(weights, &INSTRUCT_BLIP)));
        let (LanguageSource::Folder(_, language) | LanguageSource::Gguf(_, language)) = &inputs.language;
        Self {
            vision: vec![open(&inputs.vision.weights, vision_names(&config.visual))],
            tokens,
            language: vec![open(language, Part::LanguageModel.table())],
            adapter: inputs.lora.clone().map(|(config, weights)| Adapter::new(config, weights)),
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
    fn find(&self, part: Part, needed: &WeightShape) -> Result<(usize, Found)> {
        let sources = self.of(part);
        let index = sources.iter().position(|source| source.contains(&needed.name)).unwrap_or(0);
        match sources.get(index) {
            Some(source) => Ok((index, source.find(&needed.name, needed.shape.dims())?)),
            None => Err(Error::new(ErrorCode::Internal, format!("the {} has no source", part.title()))),
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
        if let (LanguageSource::Folder(..), None, true) =
            (&inputs.language, options.quantize, options.interleave)
        {
            return Err(nothing_to_interleave());
        }
        let config = configuration::understand(inputs)?;
        let sources = Sources::open(inputs, &config);
        let mut weights = Vec::new();
        for part in Part::ALL {
            for needed in needed(part, &config)? {
                let (source, found) = sources.find(part, &needed)?;
                if let (Part::LanguageModel, Some(adapter)) = (part, &sources.adapter) {
                    adapter.find(&needed.name, needed.shape.dims())?;
                }
                let WeightShape { name: ours, shape, is_matrix } = needed;
                let name = match part {
                    Part::VisualEncoder => vision_names(&config.visual)
                        .upstream(&ours)
                        .map(|name| format!("{VISION_TOWER}{name}")),
                    _ => part.upstream(&ours),
                };
                let name = name.unwrap_or_else(|| ours.clone());
                let format = stored(options.dtype.unwrap_or(found.dtype));
                let interleaved = false;
                let (written_name, shape) = (name.clone(), shape.into_dims());
                weights.push(Weight {
                    name,
                    written_name,
                    part,
                    ours,
                    shape,
                    is_matrix,
                    format,
                    interleaved,
                    found,
                    source,
                });
            }
        }
        // What no module asked for belongs to another model. The query model of training's start may have been replaced.
        let Sources { vision, mut tokens, language, adapter } = sources;
        tokens.truncate(1);
        for source in vision.into_iter().chain(tokens).chain(language) {
            source.finish()?;
        }
        adapter.map(Adapter::finish).transpose()?;

        let sources = Sources::open(inputs, &config);
        let tokenizer = tokenizer(inputs)?;
        // The one that will read them finds what is wrong with them.
        tokenizer.read()?;
        let mut small_files: BTreeMap<String, Vec<u8>> =
            tokenizer.files().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        small_files.extend(beside(inputs, &config)?);
        let (files, index) = files(weights, &config, inputs, options, &tokenizer)?;
        small_files.extend(index.map(|index| (INDEX.to_owned(), index)));
        let dtype = torch_name(&files, options.dtype);
        let written = configuration::write(inputs, &config, dtype);
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

    /// Reads a weight in the dtype that it is written in.
    ///
    /// # Errors
    /// `MODEL_INVALID` for numbers that are not finite.
    pub fn read(&self, weight: &Weight) -> Result<Tensor> {
        let source = self.sources.of(weight.part).get(weight.source).ok_or_else(|| {
            Error::new(ErrorCode::Internal, format!("the {} has no source", weight.part.title()))
        })?;
        let adapter = self.sources.adapter.as_ref().filter(|_| weight.part == Part::LanguageModel);
        match adapter.filter(|adapter| adapter.changes(&weight.ours)) {
            None => Ok(source.read(&weight.ours, weight.dtype())?),
            Some(adapter) => {
                let plain = source.read(&weight.ours, DType::F32)?;
                Ok(adapter.add(&weight.ours, plain)?.to_dtype(weight.dtype())?)
            }
        }
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
            interleaved: weight.interleaved,
            ..GgufTensor::new(weight.written_name.as_str(), weight.shape.as_slice(), weight.format)
        };
        let mut tensors: Vec<GgufTensor> = self.weights.iter().map(blocks).collect();
        if let Body::Gguf { computed, .. } = &self.body {
            let computed = computed.iter();
            tensors.extend(
                computed
                    .map(|(name, values)| GgufTensor::new(name.as_str(), [values.len()], BlockFormat::F32)),
            );
        }
        tensors
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
            Body::Gguf { metadata, .. } => GgufWriter::<Vec<u8>>::length(metadata, &self.blocks()),
            Body::Interleaved(copy) => copy.length(),
        };
        length.map_err(|error| Error::new(ErrorCode::ModelUnsupported, format!("{}: {error}", self.name)))
    }
}

impl Weight {
    /// The dtype of its numbers in a safetensors file, or that in which it is read to be made blocks of.
    pub fn dtype(&self) -> DType {
        match self.format {
            BlockFormat::F16 => DType::F16,
            BlockFormat::BF16 => DType::BF16,
            BlockFormat::F32 => DType::F32,
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

fn stored(dtype: DType) -> BlockFormat {
    match dtype {
        DType::F16 => BlockFormat::F16,
        DType::BF16 => BlockFormat::BF16,
        _ => BlockFormat::F32,
    }
}

/// The weights that a part of this configuration asks for.
///
/// # Errors
/// A configuration that the part refuses.
pub fn needed(part: Part, config: &ModelConfig) -> Result<Vec<WeightShape>> {
    match part {
        Part::VisualEncoder => weight_shapes(|source| VisualEncoder::new(&config.visual, source)),
        Part::TokenGenerator => weight_shapes(|source| TokenGenerator::new(&config.tokens, source)),
        Part::LanguageModel => weight_shapes(|source| LanguageModel::new(&config.language, source)),
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

/// The tokenizer of the language model: the files of the first folder that has one, or what a GGUF file says.
fn tokenizer(inputs: &Inputs) -> Result<TokenizerFiles> {
    let folders = folders(inputs);
    for folder in &folders {
        if let Some(files) = TokenizerFiles::in_folder(folder)? {
            return Ok(files);
        }
    }
    if let LanguageSource::Gguf(file, _) = &inputs.language {
        return TokenizerFiles::of_gguf(&GgufFile::open(file)?);
    }
    Err(TokenizerFiles::missing(folders.last().unwrap_or(&inputs.model)))
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
    // The one that will read it finds what is wrong with it.
    read_query_tokenizer(&inputs.vocabulary, &config.tokens.query)?;
    let vocabulary = read_required(&inputs.vocabulary.join("vocab.txt"), "the query model's vocabulary")?;
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
    tokenizer: &TokenizerFiles,
) -> Result<(Vec<PlannedFile>, Option<Vec<u8>>)> {
    let (mut rest, mut blocks) = (Vec::new(), BTreeMap::<Part, Vec<Weight>>::new());
    let mut copied = Vec::new();
    for mut weight in weights {
        if let (Part::LanguageModel, LanguageSource::Gguf(..)) = (weight.part, &inputs.language) {
            weight.interleaved = weight.found.interleaved;
            copied.push(weight);
            continue;
        }
        let quantisation = match weight.part {
            Part::LanguageModel => options.quantize,
            Part::VisualEncoder | Part::TokenGenerator => {
                options.quantize_vision.then_some(Quantisation::Q8_0)
            }
        };
        let Some(quantisation) = quantisation else {
            rest.push(weight);
            continue;
        };
        weight.format = in_blocks(&weight, quantisation);
        if weight.part == Part::LanguageModel {
            weight.written_name = language_gguf::name(&weight.ours).ok_or_else(|| {
                let message = format!("{}: llama.cpp has no name for this weight", weight.name);
                Error::new(ErrorCode::ModelUnsupported, message).with_hint("Convert without --quantize.")
            })?;
        }
        if options.interleave && weight.part == Part::LanguageModel {
            let written =
                GgufTensor::new(weight.written_name.as_str(), weight.shape.as_slice(), weight.format);
            weight.interleaved = written.interleaved().interleaved;
        }
        blocks.entry(weight.part).or_default().push(weight);
    }
    let (mut files, index) = shards(rest, options.shard_bytes.unwrap_or(SHARD_BYTES))?;
    if let LanguageSource::Gguf(file, _) = &inputs.language {
        let body = match options.interleave {
            true => Body::Interleaved(interleaved(file, &mut copied)?),
            false => Body::Copy(file.clone()),
        };
        files.push(PlannedFile { name: LANGUAGE_GGUF.to_owned(), body, weights: copied });
    }
    for (part, weights) in blocks {
        let language = options.quantize.filter(|_| part == Part::LanguageModel);
        let (name, body) = match language {
            Some(quantize) => {
                let name = model_name(inputs);
                let metadata = language_gguf::metadata(&config.language, &name, quantize, tokenizer)?;
                let divisors = config.language.frequency_divisors();
                let computed = divisors.map(|divisors| (ROPE_DIVISORS.to_owned(), divisors));
                (LANGUAGE_GGUF, Body::Gguf { metadata, computed: computed.into_iter().collect() })
            }
            None => {
                let name = if part == Part::VisualEncoder { VISION_GGUF } else { TOKENS_GGUF };
                (name, Body::Gguf { metadata: own_metadata(part), computed: Vec::new() })
            }
        };
        files.push(PlannedFile { name: name.to_owned(), body, weights });
    }
    Ok((files, index))
}

/// A copy of a GGUF file whose rows are interleaved; the weights that are taken over from it say so then.
fn interleaved(file: &Path, weights: &mut [Weight]) -> Result<InterleavedCopy> {
    const TABLE: &str = "token_embd.weight";
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::ModelUnsupported, format!("{}: {error}", file.display()))
    };
    // A table of embeddings is read a row at a time, unless it is the output's matrix too.
    let is_table_only = weights.iter().any(|weight| weight.ours == "lm_head.weight");
    let wanted = |name: &str| !(is_table_only && name == TABLE);
    let copy = InterleavedCopy::new(GgufFile::open(file)?, wanted).map_err(failed)?;
    let names: BTreeSet<&str> = copy
        .tensors()
        .iter()
        .filter(|tensor| tensor.interleaved)
        .map(|tensor| tensor.name.as_str())
        .collect();
    if names.is_empty() {
        return Err(nothing_to_interleave());
    }
    for weight in weights {
        weight.interleaved = names.contains(weight.found.key.as_str());
    }
    Ok(copy)
}

fn nothing_to_interleave() -> Error {
    let message = "the language model is not in blocks, whose rows could be interleaved";
    Error::new(ErrorCode::InvalidArgument, message)
        .with_hint("Give --quantize as well, or the language model as a GGUF file in blocks.")
}

/// The format of a weight in a GGUF file.
fn in_blocks(weight: &Weight, quantisation: Quantisation) -> BlockFormat {
    let columns = weight.shape.last().copied().unwrap_or(1);
    let wanted = if weight.is_matrix { quantisation.format(&weight.ours, columns) } else { None };
    match wanted {
        // Of either kind, as loading leaves them.
        Some(BlockFormat::F16) if weight.format == BlockFormat::BF16 => BlockFormat::BF16,
        Some(format) => format,
        // llama.cpp reads vectors in no other way.
        None if weight.part == Part::LanguageModel && weight.shape.len() < 2 => BlockFormat::F32,
        None => weight.format,
    }
}

/// What stands in the header of a file that only this project reads.
fn own_metadata(part: Part) -> Vec<(String, GgufValue)> {
    vec![
        ("general.architecture".to_owned(), GgufValue::Text("llamavid".into())),
        ("general.name".to_owned(), GgufValue::Text(part.title().into())),
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
