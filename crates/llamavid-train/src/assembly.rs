//! A model at the beginning of a stage, put together from files as the reference does it.
//!
//! Reference: `train.py`, `initialize_vision_modules`, `initialize_attention_modules`, `initialize_vision_tokenizer`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use llamavid_models::config::{ModelConfig, Surroundings};
use llamavid_models::prompt::placeholders::{IMAGE_END, IMAGE_START};
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_weights::key_table::{CLIP, INSTRUCT_BLIP, VISION_TOWER, VISUAL};
use llamavid_weights::{Checkpoint, Part, position_side};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::freeze_plan::FreezePlan;
use crate::lora::LoraSettings;
use crate::model::{Model, ModelOptions};
use crate::output::StageOutput;
use crate::parameters::{Missing, Parameters};
use crate::stage::Stage;

/// A token that older models put into the text for each patch.
const IMAGE_PATCH: &str = "<im_patch>";
/// The input embeddings, by our name and by the published one.
const EMBEDDINGS: (&str, &str) = ("language_model.embed_tokens.weight", "model.embed_tokens.weight");
const HEAD: &str = "language_model.lm_head.weight";

/// Where the parts of a model are.
#[derive(Debug, Clone)]
pub struct StageFiles {
    /// The folder of the base language model, or of the model of the stage before.
    pub base: PathBuf,
    /// Where the visual encoder is.
    pub vision: VisionFiles,
    /// InstructBLIP's file with the Q-Former. Without it, stage 1 creates a query model.
    pub query_model: Option<PathBuf>,
    /// What stage 1 wrote (`mm_projector.bin`), for stage 2.
    pub adapter: Option<PathBuf>,
    /// The folder of the query model's `vocab.txt` and `config.json`.
    pub bert: PathBuf,
    /// The folder or file of the image processor.
    pub processor: Option<PathBuf>,
}

/// Where the visual encoder is.
#[derive(Debug, Clone)]
pub enum VisionFiles {
    /// A file of an EVA ViT.
    Eva(PathBuf),
    /// The folder of a CLIP model.
    Clip(PathBuf),
    /// The shards of the base folder, as stages 2 and 3 write them.
    Base,
}

/// What the reference's flags say of a model.
#[derive(Debug, Clone)]
pub struct StageSettings {
    /// The stage.
    pub stage: Stage,
    /// `bert_type`, that of the published recipe unless given: it also decides what trains, see
    /// [`FreezePlan::of_flags`].
    pub bert_type: Option<String>,
    /// `mm_projector_type`: `mlp2x_gelu` in all published recipes.
    pub projector: String,
    /// `compress_type`: absent, `mean` or `grid:N`.
    pub compression: Option<String>,
    /// `num_query`: 32.
    pub queries: usize,
    /// `mm_use_im_start_end`.
    pub image_start_end: bool,
    /// `mm_use_im_patch_token`.
    pub image_patch: bool,
    /// `image_aspect_ratio`: `square` or `pad`.
    pub image_aspect_ratio: String,
    /// `model_max_length`: ids of a sample beyond this are cut, and positions are scaled to reach it.
    pub max_length: usize,
    /// `mm_vision_tower`, as it will stand in the configuration.
    pub vision_name: String,
    /// `image_processor`, as it will stand in the configuration.
    pub processor_name: String,
    /// The block `llamavid` of the configuration: sizes that the reference has in its code.
    pub extension: Option<Value>,
    /// Adapters of the language model, which then does not train itself.
    pub lora: Option<LoraSettings>,
}

impl StageSettings {
    /// What trains.
    pub fn plan(&self) -> FreezePlan {
        let alignment = self.stage == Stage::Alignment;
        let plan = FreezePlan::of_flags(alignment, self.bert_type(), self.image_start_end);
        if self.lora.is_some() { plan.with_lora() } else { plan }
    }

    fn bert_type(&self) -> &str {
        self.bert_type.as_deref().unwrap_or(self.stage.bert_type())
    }
}

/// A model at the beginning of a stage.
#[derive(Debug)]
pub struct StageModel {
    /// All weights.
    pub parameters: Parameters,
    /// The modules.
    pub model: Model,
    /// What the stage will write.
    pub output: StageOutput,
    /// The decoder's tokenizer, with the added tokens.
    pub tokenizer: LlamaTokenizer,
    /// The query model's tokenizer.
    pub query_tokenizer: Arc<WordPieceTokenizer>,
}

impl StageModel {
    /// Reads and builds everything. `seed` is that of the weights that no file has.
    ///
    /// # Errors
    /// A file that is missing or damaged, sizes that contradict each other.
    pub fn assemble(
        files: &StageFiles,
        settings: &StageSettings,
        dtype: DType,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let parameters = Parameters::new(settings.plan(), seed, device).with_frozen_dtype(dtype);
        Self::assemble_with(parameters, files, settings, dtype)
    }

    /// Sizes and tokenizer of the model that [`StageModel::assemble`] would build; of the weights only shapes are read.
    ///
    /// # Errors
    /// As [`StageModel::assemble`], but for the weights.
    pub fn configure(files: &StageFiles, settings: &StageSettings) -> Result<(ModelConfig, LlamaTokenizer)> {
        Description::read(files, settings).map(|described| (described.model, described.tokenizer))
    }

    /// The same on parameters that may hold weights already, which count more than those of the files.
    ///
    /// # Errors
    /// As [`StageModel::assemble`].
    pub fn assemble_with(
        parameters: Parameters,
        files: &StageFiles,
        settings: &StageSettings,
        dtype: DType,
    ) -> Result<Self> {
        let Description { mut config, model, tokenizer, added_tokens, new } =
            Description::read(files, settings)?;
        config.insert("mm_hidden_size".into(), json!(model.visual.width()));
        let query_tokenizer = Arc::new(read_query_tokenizer(&files.bert)?);

        read_sources(&parameters, files, settings)?;
        grow_tables(&parameters, files, settings, tokenizer.vocab_size(), new)?;
        let options = ModelOptions {
            dtype,
            pad_id: tokenizer.pad_id(),
            max_length: settings.max_length,
            embedding_gradient: settings.stage.embedding_gradient(&model),
            lora: settings.lora.as_ref().map(|lora| lora.config.clone()),
            config: model,
        };
        let model = Model::new(&parameters, Arc::new(options), query_tokenizer.clone(), true)?;
        parameters.finish_reading()?;
        let output = StageOutput {
            stage: settings.stage,
            config,
            added_tokens,
            base: files.base.clone(),
            max_length: settings.max_length,
            lora: settings.lora.clone(),
        };
        Ok(Self { parameters, model, output, tokenizer, query_tokenizer })
    }
}

/// What a stage makes of the base model's files but for the weights.
struct Description {
    /// The configuration that will be written.
    config: Map<String, Value>,
    /// What it says.
    model: ModelConfig,
    tokenizer: LlamaTokenizer,
    /// All tokens behind the tokenizer's own, and their ids.
    added_tokens: Map<String, Value>,
    new: NewTokens,
}

impl Description {
    fn read(files: &StageFiles, settings: &StageSettings) -> Result<Self> {
        let mut config = configuration(read_object(&files.base.join("config.json"))?, settings);
        let (tokenizer, added_tokens, new) =
            extended_tokenizer(&files.base, settings.image_patch, settings.image_start_end)?;
        if new.count > 0 {
            config.insert("vocab_size".into(), json!(tokenizer.vocab_size()));
        }
        let bytes = serde_json::to_vec(&config).map_err(|error| json_error(&files.base, error))?;
        let model = parse_config(&bytes, files)?;
        Ok(Self { config, model, tokenizer, added_tokens, new })
    }
}

/// The base model's configuration with what the stage says; keys that it does not name stay.
fn configuration(mut config: Map<String, Value>, settings: &StageSettings) -> Map<String, Value> {
    let stage = settings.stage;
    let values = [
        ("architectures", json!(["LlavaLlamaAttForCausalLM"])),
        ("bert_type", json!(settings.bert_type())),
        ("compress_type", json!(settings.compression)),
        ("freeze_mm_mlp_adapter", json!(false)),
        ("image_aspect_ratio", json!(settings.image_aspect_ratio)),
        ("image_grid_pinpoints", Value::Null),
        ("image_processor", json!(settings.processor_name)),
        ("max_token", json!(settings.max_length)),
        ("mm_projector_type", json!(settings.projector)),
        ("mm_use_im_patch_token", json!(settings.image_patch)),
        ("mm_use_im_start_end", json!(settings.image_start_end)),
        ("mm_vision_select_feature", json!("patch")),
        ("mm_vision_select_layer", json!(-2)),
        ("mm_vision_tower", json!(settings.vision_name)),
        ("num_query", json!(settings.queries)),
        ("tune_mm_mlp_adapter", json!(stage == Stage::Alignment)),
        ("use_mm_proj", json!(true)),
    ];
    for (key, value) in values {
        config.insert(key.to_owned(), value);
    }
    if let Some(extension) = &settings.extension {
        config.insert("llamavid".to_owned(), extension.clone());
    }
    if let Some(factor) = rope_factor(&config, settings.max_length) {
        config.insert("rope_scaling".to_owned(), json!({ "factor": factor, "type": "linear" }));
    }
    config
}

/// The factor that brings the base model's positions to `max_length`, when they do not reach so far.
///
/// The reference divides by the positions that the base reaches with its own factor, and replaces that factor.
fn rope_factor(config: &Map<String, Value>, max_length: usize) -> Option<f64> {
    let positions = config.get("max_position_embeddings")?.as_f64()?;
    let factor = config.get("rope_scaling").and_then(|scaling| scaling.get("factor")).and_then(Value::as_f64);
    let reached = positions * factor.unwrap_or(1.);
    (max_length as f64 > reached).then(|| (max_length as f64 / reached).ceil())
}

/// The tokenizer of a base language model's folder, with the tokens that a stage adds to it.
///
/// # Errors
/// A file that is missing or damaged.
pub fn stage_tokenizer(base: &Path, image_patch: bool, image_start_end: bool) -> Result<LlamaTokenizer> {
    extended_tokenizer(base, image_patch, image_start_end).map(|(tokenizer, ..)| tokenizer)
}

/// The file of a folder's tokenizer: SentencePiece's pieces, else byte pairs.
pub(crate) fn tokenizer_file(folder: &Path) -> &'static str {
    let names = ["tokenizer.model", "tokenizer.json"];
    names.into_iter().find(|name| folder.join(name).is_file()).unwrap_or(names[0])
}

/// Tokens that a stage adds.
#[derive(Debug, Clone, Copy)]
struct NewTokens {
    /// All of them.
    count: usize,
    /// `<im_start>` and `<im_end>`, the last ones, where they are new.
    averaged: usize,
}

/// The base's tokenizer with the tokens that the settings ask for, all its added tokens, and how many are new.
fn extended_tokenizer(
    base: &Path,
    patch: bool,
    start_end: bool,
) -> Result<(LlamaTokenizer, Map<String, Value>, NewTokens)> {
    let added_file = base.join("added_tokens.json");
    let mut added = if added_file.is_file() { read_object(&added_file)? } else { Map::new() };
    let read = |added: &Map<String, Value>| -> Result<LlamaTokenizer> {
        let model = read_file(&base.join(tokenizer_file(base)))?;
        let beside = |name: &str| {
            let path = base.join(name);
            if path.is_file() { read_file(&path).map(Some) } else { Ok(None) }
        };
        let added = serde_json::to_vec(added).map_err(|error| json_error(&added_file, error))?;
        let (config, map) = (beside("tokenizer_config.json")?, beside("special_tokens_map.json")?);
        Ok(LlamaTokenizer::from_bytes(&model, config.as_deref(), Some(&added), map.as_deref())?)
    };
    let mut tokenizer = read(&added)?;
    let wanted = [(patch, IMAGE_PATCH), (start_end, IMAGE_START), (start_end, IMAGE_END)];
    let mut new = NewTokens { count: 0, averaged: 0 };
    for (_, token) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        if tokenizer.token_to_id(token).is_none() {
            added.insert(token.to_owned(), json!(tokenizer.vocab_size()));
            tokenizer = read(&added)?;
            new.count += 1;
            new.averaged += usize::from(token != IMAGE_PATCH);
        }
    }
    Ok((tokenizer, added, new))
}

/// Gives the embedding tables the rows of new tokens: `<im_start>` and `<im_end>` the mean of all others, in stage 2 what
/// stage 1 learned; `<im_patch>` a created row.
fn grow_tables(
    parameters: &Parameters,
    files: &StageFiles,
    settings: &StageSettings,
    rows: usize,
    new: NewTokens,
) -> Result<()> {
    if new.count == 0 {
        return Ok(());
    }
    let builder = parameters.var_builder();
    for name in [EMBEDDINGS.0, HEAD] {
        let old = match builder.get_unchecked(name) {
            Ok(old) => old.detach().to_dtype(DType::F32)?,
            // Tied to the embeddings.
            Err(_) if name == HEAD => continue,
            Err(error) => return Err(parameters.explain(error.into())),
        };
        let (count, width) = old.dims2()?;
        let created = rows.saturating_sub(new.averaged).saturating_sub(count);
        let mut grown = vec![old];
        if created > 0 {
            grown.push(parameters.create(&format!("{name}.added"), (created, width), Init::Const(0.))?);
        }
        let table = Tensor::cat(&grown, 0)?;
        let mean = table.mean_keepdim(0)?.broadcast_as((new.averaged, width))?;
        let mut table = Tensor::cat(&[&table, &mean], 0)?;
        if name == EMBEDDINGS.0
            && settings.stage == Stage::Instruction
            && new.averaged == 2
            && let Some(adapter) = &files.adapter
        {
            table = with_learned_rows(&table, &Checkpoint::open_file(adapter)?)?;
        }
        parameters.set(name, &table)?;
    }
    Ok(())
}

/// Puts the two rows that stage 1 learned, the last of its file's table, at the end of `table`.
fn with_learned_rows(table: &Tensor, adapter: &Checkpoint) -> Result<Tensor> {
    if !adapter.contains(EMBEDDINGS.1) {
        return Ok(table.clone());
    }
    let learned = adapter.read(EMBEDDINGS.1, table.device())?.to_dtype(DType::F32)?;
    let (rows, _width) = table.dims2()?;
    let (learned_rows, _width) = learned.dims2()?;
    if learned_rows != rows && learned_rows != 2 {
        let problem = format!("`{}` has {learned_rows} rows, expected {rows} or 2", EMBEDDINGS.1);
        return Err(Error::State { file: adapter.origin().to_path_buf(), problem });
    }
    Ok(Tensor::cat(&[&table.narrow(0, 0, rows - 2)?, &learned.narrow(0, learned_rows - 2, 2)?], 0)?)
}

/// Says where each part's weights are.
fn read_sources(parameters: &Parameters, files: &StageFiles, settings: &StageSettings) -> Result<()> {
    const NEW_LAYERS: Missing = Missing::CreateBelow(&["projector", "context"]);
    const ALL_CREATED: Missing = Missing::CreateBelow(&[
        "projector",
        "context",
        "query_model",
        "query_tokens",
        "query_norm",
        "bert_proj",
    ]);
    let base = Checkpoint::open_folder(&files.base)?;
    let vision = Part::VisualEncoder.name();
    match &files.vision {
        VisionFiles::Eva(file) => {
            parameters.read_from(vision, Checkpoint::open_file(file)?, &VISUAL, Missing::Fail);
        }
        VisionFiles::Clip(folder) => {
            parameters.read_from(vision, Checkpoint::open_folder(folder)?, &CLIP, Missing::Fail);
        }
        VisionFiles::Base => parameters.read_from(vision, base.under(VISION_TOWER), &VISUAL, Missing::Fail),
    }
    let tokens = Part::TokenGenerator;
    match (settings.stage, &files.query_model, &files.adapter) {
        (Stage::Alignment, Some(file), _) => {
            parameters.read_from(tokens.name(), Checkpoint::open_file(file)?, &INSTRUCT_BLIP, NEW_LAYERS);
        }
        (Stage::Alignment, None, _) => parameters.read_part(tokens, base.clone(), ALL_CREATED),
        (_, _, Some(adapter)) => {
            parameters.read_part(tokens, Checkpoint::open_file(adapter)?, Missing::Fail);
        }
        (_, _, None) => parameters.read_part(tokens, base.clone(), Missing::Fail),
    }
    parameters.read_part(Part::LanguageModel, base, Missing::Fail);
    Ok(())
}

fn parse_config(config: &[u8], files: &StageFiles) -> Result<ModelConfig> {
    let bert = files.bert.join("config.json");
    let bert = if bert.is_file() { Some(read_file(&bert)?) } else { None };
    let clip = match &files.vision {
        VisionFiles::Clip(folder) => Some(read_file(&folder.join("config.json"))?),
        VisionFiles::Eva(_) | VisionFiles::Base => None,
    };
    let position_side = match &files.vision {
        VisionFiles::Eva(file) => position_side(&Checkpoint::open_file(file)?)?,
        VisionFiles::Base => position_side(&Checkpoint::open_folder(&files.base)?.under(VISION_TOWER))?,
        VisionFiles::Clip(_) => None,
    };
    let image_size = files.processor.as_deref().map(image_size).transpose()?.flatten();
    let around = Surroundings {
        bert: bert.as_deref(),
        clip: clip.as_deref(),
        image_size,
        position_side,
        projected_width: None,
        sizes: None,
    };
    Ok(ModelConfig::parse(config, &around)?)
}

/// Side of the pictures that an image processor makes.
fn image_size(processor: &Path) -> Result<Option<usize>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Side(usize),
        Shortest { shortest_edge: usize },
        Height { height: usize },
    }
    #[derive(Deserialize)]
    struct Processor {
        crop_size: Option<Size>,
        size: Option<Size>,
    }
    let path =
        if processor.is_dir() { processor.join("preprocessor_config.json") } else { processor.to_path_buf() };
    let parsed: Processor =
        serde_json::from_slice(&read_file(&path)?).map_err(|error| json_error(&path, error))?;
    Ok(parsed.crop_size.or(parsed.size).map(|size| match size {
        Size::Side(side) | Size::Shortest { shortest_edge: side } | Size::Height { height: side } => side,
    }))
}

fn read_query_tokenizer(folder: &Path) -> Result<WordPieceTokenizer> {
    let config = folder.join("tokenizer_config.json");
    let config = if config.is_file() { read_object(&config)? } else { Map::new() };
    let lower_case = config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(true);
    Ok(WordPieceTokenizer::from_vocab(&read_file(&folder.join("vocab.txt"))?, lower_case)?)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(&read_file(path)?).map_err(|error| json_error(path, error))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::io(path, error))
}

fn json_error(path: &Path, error: serde_json::Error) -> Error {
    Error::State { file: path.to_path_buf(), problem: format!("is not the JSON that is expected: {error}") }
}
