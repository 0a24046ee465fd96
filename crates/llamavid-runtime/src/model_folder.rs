//! A model's folder: what lies where, and each part built from it strictly.
//!
//! Reads the published layout as it is (docs/design/algorithm.md, section 10): `config.json`, sharded weights,
//! the visual encoder's own file, the image processor's folder and the query model's vocabulary.

mod places;
mod side_files;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_models::WeightSource;
use llamavid_models::config::{Extension, ModelConfig, Surroundings};
use llamavid_models::language_model::{LanguageModel, LanguageModelConfig, Placement};
use llamavid_models::preprocess::{Fit, Preprocessing};
use llamavid_models::token_generation::{FeatureKind, QueryKind, TokenGenerator};
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_models::visual_encoder::{VisualEncoder, VisualEncoderConfig};
use llamavid_weights::gguf::GgufFile;
use llamavid_weights::key_table::{CLIP, LANGUAGE, LORA, TOKENS, VISION_TOWER, VISUAL};
use llamavid_weights::{Checkpoint, KeyTable, Loader, Quantisation, position_side};
use serde::Deserialize;

use self::places::{Adapter, find_adapter};
pub use self::places::{VisionWeights, find_processor, find_query_folder, find_vision};
pub use self::side_files::{
    in_file, parse_json, read_optional, read_processor, read_query_tokenizer, read_required,
};
use crate::gguf_model::expect_divisors;
use crate::layer_placement::place_layers;
use crate::manifest::Manifest;
use crate::split::{Split, shared_layers};
use crate::{Error, ErrorCode, Result, TokenizerFiles};

/// The visual encoder of a converted model in eight bits.
const VISION_FILE: &str = "visual-encoder.gguf";
/// The decoder in a file of llama.cpp's.
const LANGUAGE_FILE: &str = "language-model.gguf";

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
            false => find_processor(&root, files.processor.as_deref(), Some(&vision)),
        };
        let preprocessing = processor.as_deref().map(read_processor).transpose()?;
        let image_size = preprocessing.as_ref().map(|processor| processor.size).or_else(|| {
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
        let preprocessing = fitting(preprocessing, config.visual.image_size(), &root)?;
        let (adapter, base) = if whole { (None, None) } else { find_adapter(&root, &config_bytes)? };
        Ok(Self {
            root,
            config,
            vision,
            preprocessing,
            processor,
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

/// A model's preprocessing, as its image processor has it: for pictures of the size that its visual encoder reads.
fn fitting(processor: Option<Preprocessing>, image_size: usize, root: &Path) -> Result<Preprocessing> {
    match processor {
        Some(processor) if processor.size != image_size => Err(Error::new(
            ErrorCode::ModelInvalid,
            format!(
                "{}: the visual encoder reads pictures of {image_size} pixels, the image processor makes {}",
                root.display(),
                processor.size
            ),
        )
        .with_hint("Put the image processor of this model beside it, or set llamavid.vision.imageSize.")),
        Some(processor) => Ok(processor),
        None => Ok(Preprocessing::clip(image_size, Fit::Crop)),
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
