//! A model's folder: what lies where, and each part built from it strictly.
//!
//! Reads the published layout as it is (docs/design/algorithm.md, section 10): `config.json`, sharded weights,
//! the visual encoder's own file, the image processor's folder and the query model's vocabulary.

use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_models::WeightSource;
use llamavid_models::config::{Extension, ModelConfig, Surroundings};
use llamavid_models::language_model::{LanguageModel, LanguageModelConfig, LoraConfig, Placement};
use llamavid_models::preprocess::{Fit, Preprocessing};
use llamavid_models::token_generation::{FeatureKind, QueryKind, QueryModelConfig, TokenGenerator};
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_models::visual_encoder::{VisualEncoder, VisualEncoderConfig};
use llamavid_weights::gguf::GgufFile;
use llamavid_weights::key_table::{CLIP, LANGUAGE, LORA, TOKENS, VISION_TOWER, VISUAL};
use llamavid_weights::{Checkpoint, KeyTable, Loader, Quantisation, position_side};
use serde::Deserialize;

use crate::gguf_model::expect_divisors;
use crate::layer_placement::place_layers;
use crate::manifest::Manifest;
use crate::split::{Split, shared_layers};
use crate::{Error, ErrorCode, Result, TokenizerFiles};

/// The visual encoder of a converted model in eight bits.
const VISION_FILE: &str = "visual-encoder.gguf";
/// The decoder in a file of llama.cpp's.
const LANGUAGE_FILE: &str = "language-model.gguf";
/// Side files are small; a larger one is not what its name says.
const LARGEST_SIDE_FILE: u64 = 64 << 20;

/// A folder with a model, opened and understood, nothing of its weights read yet.
#[derive(Debug)]
pub struct ModelFolder {
    root: PathBuf,
    config: ModelConfig,
    vision: VisionWeights,
    preprocessing: Preprocessing,
    /// The file that the preprocessing was read from.
    processor: Option<PathBuf>,
    query_folder: Option<PathBuf>,
    /// Adapters of the decoder.
    adapter: Option<Adapter>,
    /// Where the decoder is when it is not here.
    base: Option<PathBuf>,
    quantisation: Option<Quantisation>,
}

/// Adapters in the PEFT library's files.
#[derive(Debug)]
struct Adapter {
    config: LoraConfig,
    weights: PathBuf,
}

/// Where the visual encoder's weights are.
#[derive(Debug, Clone)]
pub enum VisionWeights {
    /// One file: EVA's, or what `llamavid convert` made of either kind.
    File(PathBuf),
    /// A folder of a CLIP model.
    ClipFolder(PathBuf),
    /// The checkpoint's own shards, as stages 2 and 3 write them.
    Shards,
}

/// What a checkpoint proposes for sampling where the caller is silent (`generation_config.json`).
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct GenerationDefaults {
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling's share of the probability.
    pub top_p: Option<f64>,
    /// Number of candidates.
    pub top_k: Option<usize>,
}

impl ModelFolder {
    /// Opens `folder` and reads its small files.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` without such a folder, `MODEL_FILE_MISSING` for a file it must have, `MODEL_INVALID` and
    /// `MODEL_UNSUPPORTED` for what a file says.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with_sizes(folder, None)
    }

    /// The same, with `sizes` that win over those in the folder's files.
    pub fn open_with_sizes(folder: &Path, sizes: Option<&Extension>) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::new(
                ErrorCode::ModelNotFound,
                format!("{}: there is no such folder", folder.display()),
            )
            .with_hint("Give the folder that holds config.json and the weights."));
        }
        let root = folder.to_path_buf();
        let config_path = root.join("config.json");
        let config_bytes = read_required(&config_path, "the model's configuration")?;
        let in_config = |error| in_file(&config_path, error);
        let files = ModelConfig::side_files(&config_bytes).map_err(in_config)?;

        let manifest = Manifest::read(&root)?;
        // What `llamavid convert` made has all of its parts inside, whatever lies beside it.
        let whole = manifest.is_some();
        if let Some(manifest) = &manifest {
            manifest.check_sizes(&root)?;
        }
        let vision = match whole {
            true if root.join(VISION_FILE).is_file() => VisionWeights::File(root.join(VISION_FILE)),
            true => VisionWeights::Shards,
            false => find_vision(&root, files.vision.as_deref())?,
        };
        let clip = match &vision {
            VisionWeights::ClipFolder(folder) => {
                Some(read_required(&folder.join("config.json"), "the visual encoder's configuration")?)
            }
            _ => None,
        };
        let query_folder = match whole {
            true => Some(root.join("bert")),
            false => find_query_folder(&root, files.query_tokenizer.as_deref()),
        };
        let bert = match &query_folder {
            Some(folder) => read_optional(&folder.join("config.json"))?,
            None => None,
        };
        let processor = match whole {
            true => Some(root.join("processor/preprocessor_config.json")).filter(|file| file.is_file()),
            false => find_processor(&root, files.processor.as_deref(), clip.is_some().then_some(&vision)),
        };
        let processor_file = processor;
        let processor = match &processor_file {
            Some(path) => Some(read_processor(path)?),
            None => None,
        };
        let image_size = processor.as_ref().map(|processor| processor.size).or_else(|| {
            // The published processors are named after their size.
            files.processor.as_deref().filter(|name| name.contains("336")).map(|_| 336)
        });
        let config = ModelConfig::parse(
            &config_bytes,
            &Surroundings {
                bert: bert.as_deref(),
                clip: clip.as_deref(),
                image_size,
                position_side: match &vision {
                    VisionWeights::File(file) => position_side(&visual_weights(file)?)?,
                    _ => None,
                },
                projected_width: projected_width(&root)?,
                sizes,
            },
        )
        .map_err(in_config)?;
        let image_size = image_size_of(&config);
        let preprocessing = match processor {
            Some(processor) if processor.size != image_size => {
                return Err(Error::new(
                    ErrorCode::ModelInvalid,
                    format!(
                        "{}: the visual encoder reads pictures of {image_size} pixels, the image processor makes {}",
                        root.display(),
                        processor.size
                    ),
                )
                .with_hint("Put the image processor of this model beside it, or set llamavid.vision.imageSize."));
            }
            Some(processor) => processor,
            None => Preprocessing::clip(image_size, Fit::Crop),
        };
        let (adapter, base) = if whole { (None, None) } else { find_adapter(&root, &config_bytes)? };
        Ok(Self {
            root,
            config,
            vision,
            preprocessing,
            processor: processor_file,
            query_folder,
            adapter,
            base,
            quantisation: None,
        })
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The configuration of all parts.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How pictures become pixels. The chat crops and never pads (SPEC quirk 8).
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// What stands in a prompt for one picture.
    pub fn image_placeholder(&self) -> &'static str {
        if self.config.image_start_end { "<im_start><image><im_end>" } else { "<image>" }
    }

    /// Name of the conversation template that the model was trained with, where the configuration names one.
    pub fn conversation(&self) -> Option<&'static str> {
        self.config.conversation.map(|template| template.name.as_ref())
    }

    /// Visual tokens of a frame: the context token and the content tokens.
    pub fn tokens_per_frame(&self) -> usize {
        let class_row = match (&self.config.visual, self.config.features) {
            (VisualEncoderConfig::Clip(clip), _) => usize::from(clip.class_token),
            (VisualEncoderConfig::Eva(_), FeatureKind::Pixels) => 1,
            (VisualEncoderConfig::Eva(_), FeatureKind::Precomputed) => 0,
        };
        self.config.tokens.tokens_per_frame(self.config.visual.patches() + class_row)
    }

    /// Builds the visual encoder, for inference.
    pub fn visual_encoder(&self, dtype: DType, device: &Device) -> Result<VisualEncoder> {
        build(self.visual_loader(dtype, device)?, |vb| VisualEncoder::for_inference(&self.config.visual, vb))
    }

    /// What the visual encoder's weights are read by.
    pub(crate) fn visual_loader(&self, dtype: DType, device: &Device) -> Result<Loader> {
        let (checkpoint, table) = self.visual_weights()?;
        Ok(Loader::quantising(checkpoint, table, self.eight_bit(), dtype, device))
    }

    /// The visual encoder's weights and their names.
    pub fn visual_weights(&self) -> Result<(Checkpoint, &'static KeyTable)> {
        let weights = match &self.vision {
            VisionWeights::File(file) => visual_weights(file)?,
            VisionWeights::ClipFolder(folder) => Checkpoint::open_folder(folder)?,
            VisionWeights::Shards => Checkpoint::open_folder(&self.root)?.under(VISION_TOWER),
        };
        Ok((weights, vision_names(&self.config.visual)))
    }

    /// Builds the part that makes context and content tokens, for inference only.
    pub fn token_generator(&self, dtype: DType, device: &Device) -> Result<TokenGenerator> {
        build(self.token_loader(dtype, device)?, |vb| TokenGenerator::for_inference(&self.config.tokens, vb))
    }

    /// What that part's weights are read by.
    pub(crate) fn token_loader(&self, dtype: DType, device: &Device) -> Result<Loader> {
        let (checkpoint, table) = self.token_weights()?;
        Ok(Loader::quantising(checkpoint, table, self.eight_bit(), dtype, device))
    }

    /// The token generator's weights and their names.
    pub fn token_weights(&self) -> Result<(Checkpoint, &'static KeyTable)> {
        Ok((token_weights(&self.root)?, &TOKENS))
    }

    /// Builds the decoder.
    pub fn language_model(&self, dtype: DType, device: &Device) -> Result<LanguageModel> {
        self.language_model_as(&self.config.language, dtype, device)
    }

    /// Builds the decoder as `config` says, which must fit the weights.
    pub fn language_model_as(
        &self,
        config: &LanguageModelConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<LanguageModel> {
        let model = build(self.language_loader(dtype, device)?, |vb| LanguageModel::new(config, vb))?;
        self.with_adapter(model, dtype, device)
    }

    /// Builds the decoder on several devices, which take turns in their order or share each layer.
    pub(crate) fn placed_language_model(
        &self,
        dtype: DType,
        device: &crate::Device,
        split: Split,
    ) -> Result<LanguageModel> {
        let placement = match (split, device.stages()) {
            (Split::Tensor, _) => shared_layers(device, &self.config.language)?,
            (Split::Layers, [_only]) => return self.language_model(dtype, device.tensors()),
            (Split::Layers, stages) => Placement::in_stages(place_layers(self, dtype, stages)?)?,
        };
        let loader = self.language_loader(dtype, device.tensors())?;
        let model = build(loader, |vb| LanguageModel::placed(&self.config.language, vb, placement))?;
        self.with_adapter(model, dtype, device.tensors())
    }

    /// The same decoder with the folder's adapters.
    fn with_adapter(&self, model: LanguageModel, dtype: DType, device: &Device) -> Result<LanguageModel> {
        let Some(adapter) = &self.adapter else { return Ok(model) };
        let loader = Loader::new(Checkpoint::open_file(&adapter.weights)?, &LORA, dtype, device);
        let adapted = build(loader, |vb| model.with_lora(&adapter.config, vb))?;
        // Added once, so that answers take no longer than without an adapter.
        Ok(adapted.with_merged_lora()?)
    }

    /// What the decoder's weights are read by.
    pub(crate) fn language_loader(&self, dtype: DType, device: &Device) -> Result<Loader> {
        let (checkpoint, table) = self.language_weights()?;
        Ok(Loader::quantising(checkpoint, table, self.quantisation, dtype, device))
    }

    /// The decoder's weights and their names, without adapters beside them.
    pub fn language_weights(&self) -> Result<(Checkpoint, &'static KeyTable)> {
        let weights = language_weights(&self.language_folder())?;
        expect_divisors(&weights, &self.config.language)?;
        Ok((weights, &LANGUAGE))
    }

    /// The image processor's file and the folder of the query model's vocabulary, where they are.
    pub fn side_files(&self) -> (Option<&Path>, Option<&Path>) {
        (self.processor.as_deref(), self.query_folder.as_deref())
    }

    /// The same folder with the base language model of another one: what stage 1 and a training of adapters write has
    /// none of its own. Without this, the base model's name is looked for beside the folder.
    #[must_use]
    pub fn with_base(self, base: &Path) -> Self {
        Self { base: Some(base.to_path_buf()), ..self }
    }

    /// The same folder, whose matrices are stored in fewer bits as they are read. The language model has as many bits as asked
    /// for, the visual encoder and the query model eight, and what a file holds in blocks stays as it is there.
    #[must_use]
    pub fn with_quantisation(self, quantisation: Option<Quantisation>) -> Self {
        Self { quantisation, ..self }
    }

    pub(crate) fn quantisation(&self) -> Option<Quantisation> {
        self.quantisation
    }

    /// Of the parts that feel an error in every answer and are small beside the language model.
    fn eight_bit(&self) -> Option<Quantisation> {
        self.quantisation.map(|_| Quantisation::Q8_0)
    }

    /// The folder of the decoder's weights.
    fn language_folder(&self) -> PathBuf {
        match &self.base {
            Some(base) if language_weights(&self.root).is_err() => base.clone(),
            _ => self.root.clone(),
        }
    }

    /// Reads the decoder's tokenizer.
    pub fn llama_tokenizer(&self) -> Result<LlamaTokenizer> {
        let folder = self.language_folder();
        for folder in [&self.root, &folder] {
            if let Some(files) = TokenizerFiles::in_folder(folder)? {
                return files.read();
            }
        }
        let gguf = folder.join(LANGUAGE_FILE);
        match gguf.is_file() {
            true => TokenizerFiles::of_gguf(&GgufFile::open(&gguf)?)?.read(),
            false => Err(TokenizerFiles::missing(&self.root)),
        }
    }

    /// Reads the query model's tokenizer.
    pub fn query_tokenizer(&self) -> Result<WordPieceTokenizer> {
        let Some(folder) = &self.query_folder else {
            return Err(Error::new(
                ErrorCode::ModelFileMissing,
                format!(
                    "{}: the query model's vocabulary (vocab.txt of bert-base-uncased) is missing",
                    self.root.display()
                ),
            )
            .with_hint(
                "Put it into a folder `bert` in the model's folder, or set llamavid.files.queryTokenizer.",
            ));
        };
        read_query_tokenizer(folder, &self.config.tokens.query)
    }

    /// What the checkpoint proposes for sampling.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults> {
        let path = self.root.join("generation_config.json");
        match read_optional(&path)? {
            Some(bytes) => parse_json(&path, &bytes),
            None => Ok(GenerationDefaults::default()),
        }
    }

    /// Whether the query model is the Q-Former (else raw BERT).
    pub fn uses_q_former(&self) -> bool {
        matches!(self.config.tokens.query.kind, QueryKind::QFormer { .. })
    }
}

/// The decoder's weights in a folder: llama.cpp's file when it is there, else as published.
fn language_weights(folder: &Path) -> Result<Checkpoint> {
    let file = folder.join(LANGUAGE_FILE);
    match file.is_file() {
        true => Ok(Checkpoint::from_gguf(GgufFile::open(&file)?)?),
        false => Ok(Checkpoint::open_folder(folder)?),
    }
}

/// The weights of the parts between encoder and decoder: the folder's, and what lies beside them.
fn token_weights(folder: &Path) -> Result<Checkpoint> {
    // What stage 1 writes, alone; and a converted model's in eight bits.
    let beside = ["mm_projector.bin", "token-generator.gguf"].map(|name| folder.join(name));
    let mut weights = Checkpoint::open_folder(folder);
    for file in beside.iter().filter(|file| file.is_file()) {
        let later = Checkpoint::open_file(file)?;
        weights = Ok(match weights {
            Ok(weights) => weights.overlaid_with(later),
            Err(_) => later,
        });
    }
    Ok(weights?)
}

/// The visual encoder's own file, whose names may be those that they have among the others.
fn visual_weights(file: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open_file(file)?;
    let tower = checkpoint.under(VISION_TOWER);
    let own = tower.names().next().is_none();
    Ok(if own { checkpoint } else { tower })
}

/// Builds a part of a model, strictly.
pub(crate) fn build<M>(
    loader: Loader,
    new: impl FnOnce(WeightSource<'static>) -> llamavid_models::Result<M>,
) -> Result<M> {
    match new(WeightSource::new(loader.var_builder(), loader.matrices())) {
        Ok(module) => {
            loader.finish()?;
            Ok(module)
        }
        Err(llamavid_models::Error::Tensor(error)) => Err(loader.explain(error).into()),
        Err(error) => Err(error.into()),
    }
}

/// The names of a visual encoder's weights.
pub fn vision_names(config: &VisualEncoderConfig) -> &'static KeyTable {
    match config {
        VisualEncoderConfig::Eva(_) => &VISUAL,
        VisualEncoderConfig::Clip(_) => &CLIP,
    }
}

fn image_size_of(config: &ModelConfig) -> usize {
    match &config.visual {
        VisualEncoderConfig::Eva(eva) => eva.image_size,
        VisualEncoderConfig::Clip(clip) => clip.image_size,
    }
}

/// The places where a path from `config.json` may be: never outside the model's folder and the one above it.
fn candidates(root: &Path, written: &str) -> Vec<PathBuf> {
    let path = Path::new(written);
    let plain: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let leaves = path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    let mut tails = Vec::new();
    if !leaves {
        tails.push(plain.clone());
    }
    if let Some(name) = plain.file_name() {
        tails.push(PathBuf::from(name));
    }
    let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
    let bases = [Some(absolute.as_path()), absolute.parent()];
    bases.into_iter().flatten().flat_map(|base| tails.iter().map(move |tail| base.join(tail))).collect()
}

/// Where a model's visual encoder is; `written` is what its configuration says.
///
/// # Errors
/// `MODEL_FILE_MISSING` names the places that were looked at.
pub fn find_vision(root: &Path, written: Option<&str>) -> Result<VisionWeights> {
    let converted = root.join(VISION_FILE);
    if converted.is_file() {
        return Ok(VisionWeights::File(converted));
    }
    let written = written.unwrap_or("eva_vit_g.pth");
    let places = candidates(root, written);
    for place in &places {
        if place.is_file() {
            return Ok(VisionWeights::File(place.clone()));
        }
        if place.join("config.json").is_file() && place != root {
            return Ok(VisionWeights::ClipFolder(place.clone()));
        }
    }
    if let Ok(shards) = Checkpoint::open_folder(root)
        && shards.contains("model.vision_tower.vision_tower.patch_embed.proj.weight")
    {
        return Ok(VisionWeights::Shards);
    }
    let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    Err(Error::new(
        ErrorCode::ModelFileMissing,
        format!(
            "{}: the visual encoder's weights `{written}` are missing (looked for {})",
            root.display(),
            looked.join(", ")
        ),
    )
    .with_hint("Put the file (eva_vit_g.pth of LAVIS for the published models) beside config.json."))
}

/// Width behind the projection in front of a Q-Former, which only checkpoints with another visual encoder have.
fn projected_width(root: &Path) -> Result<Option<usize>> {
    const KEY: &str = "model.vlm_att_bert_proj.weight";
    // Weights that cannot be opened are reported by the part that needs them.
    let Ok(checkpoint) = token_weights(root) else { return Ok(None) };
    if !checkpoint.contains(KEY) {
        return Ok(None);
    }
    Ok(checkpoint.shape(KEY)?.first().copied())
}

/// Adapters in the folder, and the folder of the base model that it names, if it is beside it.
fn find_adapter(root: &Path, config: &[u8]) -> Result<(Option<Adapter>, Option<PathBuf>)> {
    #[derive(Default, Deserialize)]
    struct Named {
        #[serde(alias = "_name_or_path")]
        base_model_name_or_path: Option<String>,
    }
    let name =
        |bytes: &[u8]| serde_json::from_slice::<Named>(bytes).unwrap_or_default().base_model_name_or_path;
    let path = root.join("adapter_config.json");
    let described = read_optional(&path)?;
    let adapter = match &described {
        None => None,
        Some(bytes) => {
            let files = ["adapter_model.safetensors", "adapter_model.bin"].map(|file| root.join(file));
            let Some(weights) = files.iter().find(|file| file.is_file()).cloned() else {
                let message = format!("{}: adapter_model.safetensors is missing", root.display());
                return Err(Error::new(ErrorCode::ModelFileMissing, message)
                    .with_hint("Copy the whole folder of the adapter."));
            };
            let config = LoraConfig::from_json(bytes).map_err(|error| in_file(&path, error))?;
            Some(Adapter { config, weights })
        }
    };
    let names = [described.as_deref().and_then(name), name(config)];
    let mut places = names.into_iter().flatten().flat_map(|name| candidates(root, &name));
    let base = places.find(|place| place != root && language_weights(place).is_ok());
    Ok((adapter, base))
}

/// The folder of the query model's vocabulary.
pub fn find_query_folder(root: &Path, written: Option<&str>) -> Option<PathBuf> {
    let names = [written, Some("bert"), Some("bert-base-uncased")];
    let mut places: Vec<PathBuf> =
        names.into_iter().flatten().flat_map(|name| candidates(root, name)).collect();
    places.push(root.to_path_buf());
    places.into_iter().find(|place| place.join("vocab.txt").is_file())
}

/// The image processor's file.
pub fn find_processor(root: &Path, written: Option<&str>, vision: Option<&VisionWeights>) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> =
        [written, Some("processor")].into_iter().flatten().flat_map(|name| candidates(root, name)).collect();
    places.push(root.to_path_buf());
    if let Some(VisionWeights::ClipFolder(folder)) = vision {
        places.push(folder.clone());
    }
    places.into_iter().map(|place| place.join("preprocessor_config.json")).find(|file| file.is_file())
}

/// Reads a CLIP image processor's file; only what the reference's settings can express is accepted.
pub fn read_processor(path: &Path) -> Result<Preprocessing> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Side(usize),
        Shortest { shortest_edge: usize },
        Both { height: usize, width: usize },
    }
    #[derive(Deserialize)]
    struct Processor {
        crop_size: Option<Size>,
        size: Option<Size>,
        image_mean: Option<[f32; 3]>,
        image_std: Option<[f32; 3]>,
        resample: Option<u32>,
    }
    let bytes = read_required(path, "the image processor's configuration")?;
    let processor: Processor = parse_json(path, &bytes)?;
    let invalid =
        |problem: String| Error::new(ErrorCode::ModelInvalid, format!("{}: {problem}", path.display()));
    let side = |size: &Size| match *size {
        Size::Side(side) | Size::Shortest { shortest_edge: side } => Ok(side),
        Size::Both { height, width } if height == width => Ok(height),
        Size::Both { height, width } => Err(invalid(format!("{height} x {width} is not a square"))),
    };
    let crop = processor.crop_size.as_ref().map(side).transpose()?;
    let size = processor.size.as_ref().map(side).transpose()?;
    let size = match (crop, size) {
        (Some(crop), Some(size)) if crop != size => {
            return Err(invalid(format!(
                "crop_size {crop} and size {size} differ; the reference has them equal"
            )));
        }
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => 224,
    };
    if size == 0 || size > 8192 {
        return Err(invalid(format!("a picture of {size} pixels is not between 1 and 8192")));
    }
    if processor.resample.is_some_and(|filter| filter != 3) {
        return Err(invalid(
            "resample is not 3 (bicubic), the only filter that the reference uses".to_owned(),
        ));
    }
    let usual = Preprocessing::clip(size, Fit::Crop);
    let (mean, std) = (processor.image_mean.unwrap_or(usual.mean), processor.image_std.unwrap_or(usual.std));
    if !mean.iter().all(|value| value.is_finite())
        || !std.iter().all(|value| value.is_finite() && *value > 0.0)
    {
        return Err(invalid("image_mean and image_std must be finite, and image_std above 0".to_owned()));
    }
    Ok(Preprocessing { size, mean, std, fit: Fit::Crop })
}

/// Reads the query model's tokenizer.
///
/// # Errors
/// `MODEL_FILE_MISSING` without a `vocab.txt`, `MODEL_INVALID` for one that is cut or another model's.
pub fn read_query_tokenizer(folder: &Path, query: &QueryModelConfig) -> Result<WordPieceTokenizer> {
    let path = folder.join("vocab.txt");
    let vocabulary = read_required(&path, "the query model's vocabulary")?;
    #[derive(Default, Deserialize)]
    struct TokenizerConfig {
        do_lower_case: Option<bool>,
    }
    let config: TokenizerConfig = match read_optional(&folder.join("tokenizer_config.json"))? {
        Some(bytes) => parse_json(&folder.join("tokenizer_config.json"), &bytes)?,
        None => TokenizerConfig::default(),
    };
    let tokenizer = WordPieceTokenizer::from_vocab(&vocabulary, config.do_lower_case.unwrap_or(true))
        .map_err(|error| in_file(&path, error))?;
    // The Q-Former has a row for `[DEC]`, which the tokenizer adds; raw BERT has none.
    let (words, rows) = (tokenizer.vocab_size(), query.vocab_size);
    if rows != words && rows + 1 != words {
        let message = format!("{}: {words} words with [DEC], the query model knows {rows}", path.display());
        return Err(Error::new(ErrorCode::ModelInvalid, message)
            .with_hint("Take the vocabulary that belongs to this query model: it may be cut."));
    }
    Ok(tokenizer.within(query.max_positions))
}

/// Reads a small file that must be there; `what` says what it is.
///
/// # Errors
/// `MODEL_FILE_MISSING`, and `MODEL_INVALID` for one that cannot be read or is no small file.
pub fn read_required(path: &Path, what: &str) -> Result<Vec<u8>> {
    read_optional(path)?.ok_or_else(|| {
        Error::new(ErrorCode::ModelFileMissing, format!("{}: {what} is missing", path.display()))
            .with_hint("Download the whole model again, or give another folder.")
    })
}

/// Reads a small file, if it is there.
///
/// # Errors
/// `MODEL_INVALID` for one that cannot be read or is no small file.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::ModelInvalid, format!("{}: cannot be read: {error}", path.display()))
    };
    let length = match std::fs::metadata(path) {
        Ok(facts) if facts.is_file() => facts.len(),
        Ok(_) => {
            return Err(Error::new(ErrorCode::ModelInvalid, format!("{}: is not a file", path.display())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if length > LARGEST_SIDE_FILE {
        let problem =
            format!("{}: {length} bytes; such a file has at most {LARGEST_SIDE_FILE}", path.display());
        return Err(Error::new(ErrorCode::ModelInvalid, problem));
    }
    std::fs::read(path).map(Some).map_err(failed)
}

/// Parses a file's JSON.
///
/// # Errors
/// `MODEL_INVALID` names the file.
pub fn parse_json<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(ErrorCode::ModelInvalid, format!("{}: {error}", path.display())))
}

/// An error of the models about a file's content.
pub fn in_file(path: &Path, error: llamavid_models::Error) -> Error {
    let error = Error::from(error);
    Error { message: format!("{}: {}", path.display(), error.message), ..error }
}
