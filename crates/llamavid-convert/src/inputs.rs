//! What the given files and folders are, told by their content.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use llamavid_models::config::{Extension, ModelConfig, SideFiles, VisionKind};
use llamavid_models::language_model::LoraConfig;
use llamavid_runtime::model_folder::{
    VisionWeights, find_processor, find_query_folder, find_vision, in_file, parse_json, read_required,
};
use llamavid_runtime::{Error, ErrorCode, Result};
use llamavid_weights::Checkpoint;
use llamavid_weights::gguf::GgufFile;
use llamavid_weights::key_table::VISION_TOWER;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::layout::{TOKENS_GGUF, VISION_GGUF};

const ADAPTER: &str = "mm_projector.bin";
const LORA_CONFIG: &str = "adapter_config.json";
const PROCESSOR: &str = "preprocessor_config.json";
const VOCABULARY: &str = "vocab.txt";
/// Weights at the top of a folder, or the index that leads to them.
const WEIGHTS: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// Where each part of a model comes from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The folder whose `config.json` describes the model, and whose small files count before others.
    pub model: PathBuf,
    /// What that file says.
    pub config: Map<String, Value>,
    /// The decoder.
    pub language: LanguageSource,
    /// Adapters that are added to the decoder.
    pub lora: Option<(LoraConfig, Checkpoint)>,
    /// Projector, context attention and query model, as they were trained.
    pub trained: Checkpoint,
    /// InstructBLIP's file: the query model of training's start, for weights that `trained` has not.
    pub query_model: Option<Checkpoint>,
    /// The visual encoder.
    pub vision: Vision,
    /// The image processor's file.
    pub processor: Option<PathBuf>,
    /// The folder of the query model's vocabulary.
    pub vocabulary: PathBuf,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The visual encoder, below the names of its own file.
#[derive(Debug, Clone)]
pub struct Vision {
    /// Its weights.
    pub weights: Checkpoint,
    /// Whether they are a file of EVA's pre-training, with one block more than is used.
    pub is_pretraining: bool,
    /// The folder of a CLIP model, whose `config.json` has its sizes.
    pub clip: Option<PathBuf>,
}

/// Where the decoder comes from.
#[derive(Debug, Clone)]
pub enum LanguageSource {
    /// A folder in the published layout.
    Folder(PathBuf, Checkpoint),
    /// A GGUF file, taken over as it is.
    Gguf(PathBuf, Checkpoint),
}

/// Candidates of every part, before it is known whether there is one of each.
#[derive(Debug, Default)]
struct Candidates {
    /// Folders whose weights hold a decoder.
    language: Vec<PathBuf>,
    gguf: Vec<PathBuf>,
    /// Folders of adapters in the PEFT library's files.
    lora: Vec<PathBuf>,
    /// Folders whose weights hold the trained parts.
    models: Vec<PathBuf>,
    /// What stage 1 wrote.
    adapters: Vec<PathBuf>,
    eva: Vec<PathBuf>,
    /// Folders of CLIP models with their weights.
    clip: Vec<PathBuf>,
    query_model: Vec<PathBuf>,
    processor: Vec<PathBuf>,
    vocabulary: Vec<PathBuf>,
}

/// What a file of weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Eva,
    QueryModel,
    Adapter,
    Weights,
}

impl Inputs {
    /// Tells what each path is and puts them together.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` for a path that is not there, `MODEL_INVALID` for one that is no part of a model or two that are
    /// the same part, `MODEL_FILE_MISSING` for a part that none of them is, with where to get it.
    pub fn recognise(paths: &[PathBuf]) -> Result<Self> {
        let (mut seen, mut found) = (BTreeSet::new(), Candidates::default());
        for path in paths {
            let real = fs::canonicalize(path).map_err(|error| {
                Error::new(ErrorCode::ModelNotFound, format!("{}: {error}", path.display()))
                    .with_hint("Give files and folders that are there.")
            })?;
            if !seen.insert(real) {
                continue;
            }
            if path.is_dir() { found.look_into(path)? } else { found.look_at(path)? }
        }
        found.together()
    }
}

impl Candidates {
    fn look_into(&mut self, folder: &Path) -> Result<()> {
        let before = self.count();
        if folder.join(LORA_CONFIG).is_file() {
            self.lora.push(folder.to_path_buf());
        }
        let kind = match WEIGHTS.iter().any(|name| folder.join(name).exists()) {
            true => Some(model_type(folder)?),
            false => None,
        };
        let is_clip = kind.as_ref().is_some_and(|kind| kind.starts_with("clip"));
        // Of BERT only the small files are wanted.
        if kind.is_some_and(|kind| kind != "bert") && !is_clip {
            let weights = Checkpoint::open_folder(folder)?;
            let holds = |family: &str| weights.names().any(|name| name.starts_with(family));
            let trained = holds("model.vlm_att_") || holds("model.mm_projector.");
            if holds("model.layers.") {
                self.language.push(folder.to_path_buf());
            }
            if trained {
                self.models.push(folder.to_path_buf());
            }
        }
        let adapter = folder.join(ADAPTER);
        if adapter.is_file() && self.models.last().map(PathBuf::as_path) != Some(folder) {
            self.adapters.push(adapter);
        }
        // Small files inside a model's folder are that model's, and give way to those that are named themselves.
        let is_side = self.count() == before;
        if is_side && folder.join(PROCESSOR).is_file() {
            self.processor.push(folder.join(PROCESSOR));
        }
        if is_side && folder.join(VOCABULARY).is_file() {
            self.vocabulary.push(folder.to_path_buf());
        }
        for path in files_with(folder, if is_side { &["pth", "gguf"] } else { &["gguf"] })? {
            self.look_at(&path)?;
        }
        // Last: the image processor in such a folder counts, whether its weights are wanted or not.
        if is_clip {
            self.clip.push(folder.to_path_buf());
        }
        if self.count() == before {
            return Err(Error::new(
                ErrorCode::ModelInvalid,
                format!("{}: nothing in this folder is a part of a model", folder.display()),
            )
            .with_hint(
                "A folder may hold a LLaMA-VID model, a language model, an image processor or a vocabulary.",
            ));
        }
        Ok(())
    }

    fn look_at(&mut self, file: &Path) -> Result<()> {
        let name = file.file_name().unwrap_or_default();
        if name == PROCESSOR {
            self.processor.push(file.to_path_buf());
            return Ok(());
        }
        if name == VOCABULARY {
            self.vocabulary.push(folder_of(file));
            return Ok(());
        }
        if name == VISION_GGUF || name == TOKENS_GGUF {
            let message = format!("{}: is quantised already", file.display());
            return Err(Error::new(ErrorCode::ModelUnsupported, message)
                .with_hint("Convert from the weights that this was made of: quantising twice loses more."));
        }
        if is_gguf(file)? {
            self.gguf.push(file.to_path_buf());
            return Ok(());
        }
        match kind(file, &Checkpoint::open_file(file)?)? {
            Kind::Eva => self.eva.push(file.to_path_buf()),
            Kind::QueryModel => self.query_model.push(file.to_path_buf()),
            Kind::Adapter => self.adapters.push(file.to_path_buf()),
            Kind::Weights => {
                return Err(invalid(file, "is one file of a model that comes in a folder")
                    .with_hint("Give the folder that holds it with its config.json and other small files."));
            }
        }
        Ok(())
    }

    fn count(&self) -> usize {
        [&self.language, &self.gguf, &self.models, &self.adapters, &self.eva, &self.query_model]
            .into_iter()
            .chain([&self.lora, &self.clip, &self.processor, &self.vocabulary])
            .map(Vec::len)
            .sum()
    }

    fn together(self) -> Result<Inputs> {
        let mut notes = Vec::new();
        let trained = [&self.models[..], &self.adapters[..]].concat();
        let Some(trained) = only("the trained parts (projector, context attention)", &trained)? else {
            return Err(missing(
                "the trained parts (projector, context attention, query model) are missing",
                "Give a LLaMA-VID folder (`llamavid pull YanweiLi/llama-vid-7b-full-224`), or the \
                 mm_projector.bin that stage 1 wrote, with its config.json beside it.",
            ));
        };
        let is_model = self.models.contains(&trained);
        let model = if is_model { trained.clone() } else { folder_of(&trained) };
        let config_path = model.join("config.json");
        let config_bytes = read_required(&config_path, "the model's configuration")?;
        let config: Map<String, Value> = parse_json(&config_path, &config_bytes)?;

        let languages = [&self.language[..], &self.gguf[..]].concat();
        let language = match only("the language model", &languages)? {
            Some(file) if self.gguf.contains(&file) => {
                let weights = Checkpoint::from_gguf(GgufFile::open(&file)?)?;
                LanguageSource::Gguf(file, weights)
            }
            Some(folder) => LanguageSource::Folder(folder.clone(), Checkpoint::open_folder(&folder)?),
            None => return Err(language_missing(&config)),
        };
        let lora = only("the adapters", &self.lora)?.map(|folder| lora(&folder)).transpose()?;
        if let (LanguageSource::Gguf(file, _), Some(_)) = (&language, &lora) {
            let message = format!("{}: adapters cannot be added to a GGUF file", file.display());
            return Err(Error::new(ErrorCode::InvalidArgument, message)
                .with_hint("Give the language model's own folder."));
        }
        let side = ModelConfig::side_files(&config_bytes).map_err(|error| in_file(&config_path, error))?;

        let adapter = model.join(ADAPTER);
        let weights = match is_model {
            true if adapter.is_file() => {
                Checkpoint::open_folder(&model)?.overlaid_with(Checkpoint::open_file(&adapter)?)
            }
            true => Checkpoint::open_folder(&model)?,
            false => Checkpoint::open_file(&trained)?,
        };
        if !is_model && weights.contains("model.embed_tokens.weight") {
            return Err(Error::new(
                ErrorCode::ModelUnsupported,
                format!(
                    "{}: stage 1 with <im_start> and <im_end> also trained embeddings of the language model",
                    trained.display()
                ),
            )
            .with_hint("Convert what stage 2 wrote: its folder holds the whole language model."));
        }

        let vision = self.vision(&model, &config, &side, is_model.then_some(&weights), &mut notes)?;
        let query_model = match only("the query model", &self.query_model)? {
            Some(file) => Some(Checkpoint::open_file(&file)?),
            None => None,
        };
        let processor = match only("the image processor", &self.processor)? {
            Some(file) => Some(file),
            None => {
                let clip = vision.clip.clone().map(VisionWeights::ClipFolder);
                find_processor(&model, side.processor.as_deref(), clip.as_ref())
            }
        };
        let vocabulary = only("the query model's vocabulary", &self.vocabulary)?
            .or_else(|| find_query_folder(&model, side.query_tokenizer.as_deref()));
        let Some(vocabulary) = vocabulary else {
            return Err(missing(
                "the query model's vocabulary (vocab.txt) is missing",
                "Give the folder of bert-base-uncased: `llamavid pull bert-base-uncased` gets it.",
            ));
        };
        Ok(Inputs {
            model,
            config,
            language,
            lora,
            trained: weights,
            query_model,
            vision,
            processor,
            vocabulary,
            notes,
        })
    }

    /// The visual encoder: one that was given, else one that lies beside the model, else that among the weights of a `whole`
    /// model. Which kind it is the configuration says.
    fn vision(
        &self,
        model: &Path,
        config: &Map<String, Value>,
        side: &SideFiles,
        whole: Option<&Checkpoint>,
        notes: &mut Vec<String>,
    ) -> Result<Vision> {
        const PART: &str = "the visual encoder";
        let sizes = clip_sizes(model, config)?;
        let is_clip = sizes || names_clip(side);
        match only(PART, &self.eva)? {
            Some(file) if is_clip => {
                return Err(invalid(&file, "is an EVA ViT, and the model's configuration names a CLIP one")
                    .with_hint("Give the folder of that CLIP model, or leave the file out."));
            }
            Some(file) => return Vision::of_file(&file),
            None => {}
        }
        if is_clip && let Some(folder) = only(PART, &self.clip)? {
            return Vision::of_clip(folder);
        }
        if sizes && let Some(weights) = whole {
            return Ok(Vision::of_shards(weights));
        }
        match (find_vision(model, side.vision.as_deref()), whole) {
            (Ok(VisionWeights::File(file)), _) => {
                notes.push(format!("the visual encoder is {}", file.display()));
                Vision::of_file(&file)
            }
            (Ok(VisionWeights::ClipFolder(folder)), _) => {
                notes.push(format!("the visual encoder is {}", folder.display()));
                Vision::of_clip(folder)
            }
            (Ok(VisionWeights::Shards), Some(weights)) if !is_clip => Ok(Vision::of_shards(weights)),
            // Its name need not say that it is a CLIP model.
            _ => match only(PART, &self.clip)? {
                Some(folder) => Vision::of_clip(folder),
                None => Err(missing(
                    "the visual encoder is missing",
                    match is_clip {
                        true => "Give the folder of the CLIP model that config.json names, with its weights.",
                        false => {
                            "Give LAVIS's eva_vit_g.pth, which `llamavid pull` of any published model brings."
                        }
                    },
                )),
            },
        }
    }
}

impl Vision {
    /// A file. One of EVA's pre-training has a head and a block more.
    fn of_file(file: &Path) -> Result<Self> {
        let weights = Checkpoint::open_file(file)?;
        if weights.names().any(|name| name.starts_with(VISION_TOWER)) {
            return Ok(Self::of_shards(&weights));
        }
        let keys = ["norm.weight", "fc_norm.weight", "head.weight"];
        let is_pretraining = keys.iter().any(|key| weights.contains(key));
        Ok(Self { weights, is_pretraining, clip: None })
    }

    /// A CLIP model, of which only the vision part is taken.
    fn of_clip(folder: PathBuf) -> Result<Self> {
        Ok(Self { weights: Checkpoint::open_folder(&folder)?, is_pretraining: false, clip: Some(folder) })
    }

    /// The one among the weights of a whole model.
    fn of_shards(weights: &Checkpoint) -> Self {
        Self { weights: weights.under(VISION_TOWER), is_pretraining: false, clip: None }
    }
}

/// Whether the configuration has the sizes of a CLIP visual encoder, as `llamavid convert` writes it.
fn clip_sizes(model: &Path, config: &Map<String, Value>) -> Result<bool> {
    let Some(block) = config.get("llamavid") else { return Ok(false) };
    let block = Extension::deserialize(block)
        .map_err(|error| invalid(&model.join("config.json"), &error.to_string()))?;
    Ok(block.vision.kind == Some(VisionKind::Clip))
}

/// Whether the visual encoder's name is one that the reference's `build_vision_tower` takes for a CLIP model's.
fn names_clip(side: &SideFiles) -> bool {
    let name = side.vision.as_deref().unwrap_or_default().to_lowercase();
    name.contains("openai") || name.contains("laion")
}

/// Which kind of model a folder says that it holds.
fn model_type(folder: &Path) -> Result<String> {
    let path = folder.join("config.json");
    let config: Map<String, Value> = parse_json(&path, &read_required(&path, "the model's configuration")?)?;
    Ok(config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn kind(file: &Path, weights: &Checkpoint) -> Result<Kind> {
    let holds = |family: &str| weights.names().any(|name| name.starts_with(family));
    // A decoder first: the shards of a whole model have everything in them.
    if holds("vision_model.")
        || holds("model.layers.")
        || holds("model.embed_tokens.") && !holds("model.mm_projector")
    {
        return Ok(Kind::Weights);
    }
    if holds("model.mm_projector.") || holds("model.vlm_att_") {
        return Ok(Kind::Adapter);
    }
    if holds("Qformer.") {
        return Ok(Kind::QueryModel);
    }
    if holds("blocks.0.attn.") || holds(&format!("{VISION_TOWER}blocks.0.attn.")) {
        return Ok(Kind::Eva);
    }
    let first: Vec<&str> = weights.names().take(3).collect();
    Err(invalid(
        file,
        &format!("is no part of a model that is known; its first weights are {}", first.join(", ")),
    )
    .with_hint(
        "Parts are eva_vit_g.pth, instruct_blip_vicuna7b_trimmed.pth, mm_projector.bin and GGUF files.",
    ))
}

/// Adapters in a folder.
fn lora(folder: &Path) -> Result<(LoraConfig, Checkpoint)> {
    let path = folder.join(LORA_CONFIG);
    let config = LoraConfig::from_json(&read_required(&path, "the adapters' configuration")?)
        .map_err(|error| in_file(&path, error))?;
    let files = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| folder.join(name));
    let file = files.iter().find(|file| file.is_file()).unwrap_or(&files[0]);
    Ok((config, Checkpoint::open_file(file)?))
}

fn is_gguf(file: &Path) -> Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    let read = fs::File::open(file).and_then(|opened| opened.take(4).read_to_end(&mut start));
    match read {
        Ok(_) => Ok(start == b"GGUF"),
        Err(error) => Err(invalid(file, &format!("cannot be read: {error}"))),
    }
}

/// Files directly in a folder whose names end so, sorted.
fn files_with(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).map_err(|error| invalid(folder, &format!("cannot be read: {error}")))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.is_file() && path.extension().is_some_and(|end| extensions.iter().any(|e| end == *e))
        })
        .collect();
    files.sort();
    Ok(files)
}

/// The one candidate, if there is any. Two paths to one file count once.
fn only(part: &str, candidates: &[PathBuf]) -> Result<Option<PathBuf>> {
    let mut distinct: Vec<&PathBuf> = Vec::new();
    for candidate in candidates {
        let real = |path: &PathBuf| fs::canonicalize(path).ok();
        if !distinct.iter().any(|known| real(known) == real(candidate)) {
            distinct.push(candidate);
        }
    }
    match distinct[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, second, ..] => Err(Error::new(
            ErrorCode::ModelInvalid,
            format!("{} and {} both give {part}", first.display(), second.display()),
        )
        .with_hint("Leave one of them out.")),
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn language_missing(config: &Map<String, Value>) -> Error {
    let hint = match config.get("hidden_size").and_then(Value::as_u64) {
        Some(4096) => "Give the folder of Vicuna 7B v1.5: `llamavid pull lmsys/vicuna-7b-v1.5` gets it.",
        Some(5120) => "Give the folder of Vicuna 13B v1.5: `llamavid pull lmsys/vicuna-13b-v1.5` gets it.",
        _ => "Give the folder, or a GGUF file, of the language model that the trained parts belong to.",
    };
    missing("the language model is missing", hint)
}

fn missing(what: &str, hint: &str) -> Error {
    Error::new(ErrorCode::ModelFileMissing, what).with_hint(hint)
}

fn invalid(path: &Path, problem: &str) -> Error {
    Error::new(ErrorCode::ModelInvalid, format!("{}: {problem}", path.display()))
}
