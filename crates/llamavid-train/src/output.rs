//! What a stage leaves behind, in the reference's layout, so that ours loads there and theirs here.
//!
//! Reference: `safe_save_model_for_hf_trainer`, `save_pretrained` of transformers 4.31.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llamavid_models::config::ModelConfig;
use llamavid_models::visual_encoder::VisualEncoderConfig;
use llamavid_weights::Part;
use llamavid_weights::key_table::{CLIP, VISION_TOWER};
use llamavid_weights::writer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::assembly::tokenizer_file;
use crate::error::{Error, Result};
use crate::files;
use crate::lora::{self, LoraSettings};
use crate::model::Model;
use crate::parameters::Parameters;
use crate::stage::Stage;

/// What stage 1 writes, and what `--pretrain_mm_mlp_adapter` of stage 2 reads.
pub const ADAPTER: &str = "mm_projector.bin";
/// The position table, whose rows depend on the size of the pictures.
const POSITIONS: &str = "visual_encoder.pos_embed";
const EMBEDDINGS: &str = "language_model.embed_tokens.weight";

/// The kind of weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WeightFormat {
    /// `pytorch_model-00001-of-0000N.bin` with an index: what the reference reads.
    #[default]
    Torch,
    /// `model-00001-of-0000N.safetensors` with an index.
    Safetensors,
}

/// How weights are written.
#[derive(Debug, Clone, Copy)]
pub struct OutputOptions {
    /// What they are rounded to.
    pub dtype: DType,
    /// The kind of files.
    pub format: WeightFormat,
    /// Bytes of a shard at most, unless one tensor is larger.
    pub shard_bytes: usize,
    /// What becomes of adapters.
    pub lora: LoraOutput,
}

impl Default for OutputOptions {
    fn default() -> Self {
        // transformers' usual size of a shard.
        Self {
            dtype: DType::F32,
            format: WeightFormat::default(),
            shard_bytes: 10_000_000_000,
            lora: LoraOutput::default(),
        }
    }
}

/// What a stage knows of its output before it trains.
#[derive(Debug, Clone)]
pub struct StageOutput {
    pub(crate) stage: Stage,
    /// `config.json`.
    pub config: Map<String, Value>,
    /// Tokens beyond the base vocabulary, with their ids.
    pub added_tokens: Map<String, Value>,
    /// The folder that the tokenizer's files are copied from.
    pub(crate) base: PathBuf,
    pub(crate) max_length: usize,
    pub(crate) lora: Option<LoraSettings>,
}

/// What becomes of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoraOutput {
    /// They are added to the language model, which is written as any.
    #[default]
    Merged,
    /// They are written by themselves in PEFT's format, beside what makes visual tokens ([`ADAPTER`]). The base language
    /// model is needed again to run them.
    Apart,
}

impl StageOutput {
    /// Writes what the reference's stage writes into `folder`: stage 1 [`ADAPTER`] and `config.json`, the others, and a
    /// stage 1 with adapters that are merged, a whole model. Each file is whole or not there, and the configuration comes
    /// last.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`].
    pub fn write(
        &self,
        folder: &Path,
        parameters: &Parameters,
        model: &Model,
        options: &OutputOptions,
    ) -> Result<()> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        if let (Some(lora), LoraOutput::Apart) = (&self.lora, options.lora) {
            if !self.added_tokens.is_empty() {
                let problem = "new tokens change the base model's tables: write the model merged".to_owned();
                return Err(Error::Setting { name: "lora", problem });
            }
            lora::write(folder, parameters, lora, &self.base_name(), options.dtype)?;
            self.write_tokenizer(folder)?;
            return self.write_adapter(folder, parameters, model, options.dtype);
        }
        match self.stage {
            // An adapter of stage 1 would be lost beside a file that holds no language model.
            Stage::Alignment if self.lora.is_some() => self.write_model(folder, parameters, model, options),
            Stage::Alignment => self.write_adapter(folder, parameters, model, options.dtype),
            Stage::Instruction | Stage::LongVideo => self.write_model(folder, parameters, model, options),
        }
    }

    /// What makes visual tokens, frozen or not; with `<im_start>` and `<im_end>` also the input embeddings.
    fn write_adapter(
        &self,
        folder: &Path,
        parameters: &Parameters,
        model: &Model,
        dtype: DType,
    ) -> Result<()> {
        let embeddings = model.options().config.image_start_end;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in parameters.tensors() {
            let kept = name.starts_with("token_generator.") || embeddings && name == EMBEDDINGS;
            if let Some(published) = Part::published(&name).filter(|_| kept) {
                tensors.insert(published, tensor.to_dtype(dtype)?);
            }
        }
        write_torch(&folder.join(ADAPTER), &tensors)?;
        self.write_config(folder, dtype)
    }

    fn write_model(
        &self,
        folder: &Path,
        parameters: &Parameters,
        model: &Model,
        options: &OutputOptions,
    ) -> Result<()> {
        let tensors = published(parameters, model)?;
        let bytes = |tensor: &Tensor| {
            let dtype = if tensor.dtype().is_float() { options.dtype } else { tensor.dtype() };
            tensor.elem_count() * dtype.size_in_bytes()
        };
        let shards = shards(&tensors, bytes, options.shard_bytes);
        let (stem, extension) = match options.format {
            WeightFormat::Torch => ("pytorch_model", "bin"),
            WeightFormat::Safetensors => ("model", "safetensors"),
        };
        let mut places = BTreeMap::new();
        for (index, names) in shards.iter().enumerate() {
            let file = format!("{stem}-{:05}-of-{:05}.{extension}", index + 1, shards.len());
            let mut shard = BTreeMap::new();
            for name in names {
                let Some(tensor) = tensors.get(name) else { continue };
                let float = tensor.dtype().is_float();
                let tensor = if float { tensor.to_dtype(options.dtype)? } else { tensor.clone() };
                shard.insert(name.clone(), tensor);
                places.insert(name.clone(), file.clone());
            }
            let path = folder.join(&file);
            match options.format {
                WeightFormat::Torch => write_torch(&path, &shard)?,
                WeightFormat::Safetensors => {
                    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
                    files::write_safetensors(&path, &shard, &metadata)?;
                }
            }
        }
        let total: usize = tensors.values().map(bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        // safetensors' index has no `.bin` in its name, torch's has.
        let index_file = match options.format {
            WeightFormat::Torch => "pytorch_model.bin.index.json",
            WeightFormat::Safetensors => "model.safetensors.index.json",
        };
        files::write_json(&folder.join(index_file), &index)?;
        self.write_tokenizer(folder)?;
        self.write_config(folder, options.dtype)
    }

    /// The base model's folder without the path to it, which is nobody else's.
    fn base_name(&self) -> String {
        self.base.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn write_config(&self, folder: &Path, dtype: DType) -> Result<()> {
        let mut sorted: BTreeMap<&String, &Value> = self.config.iter().collect();
        let (dtype_key, dtype) = ("torch_dtype".to_owned(), json!(torch_name(dtype)));
        let (base_key, base) = ("_name_or_path".to_owned(), json!(self.base_name()));
        sorted.insert(&dtype_key, &dtype);
        sorted.insert(&base_key, &base);
        files::write_json(&folder.join("config.json"), &sorted)
    }

    fn write_tokenizer(&self, folder: &Path) -> Result<()> {
        for name in [tokenizer_file(&self.base), "generation_config.json"] {
            copy_if_there(&self.base.join(name), &folder.join(name))?;
        }
        if !self.added_tokens.is_empty() {
            files::write_json(&folder.join("added_tokens.json"), &self.added_tokens)?;
        }
        let change = |name: &str, change: &dyn Fn(&mut Map<String, Value>)| {
            let (from, to) = (self.base.join(name), folder.join(name));
            if !from.is_file() {
                return Ok(());
            }
            let mut object: Map<String, Value> = files::read_json(&from)?;
            change(&mut object);
            files::write_json(&to, &object)
        };
        change("tokenizer_config.json", &|config| {
            config.insert("model_max_length".to_owned(), json!(self.max_length));
            config.insert("padding_side".to_owned(), json!("right"));
        })?;
        // The reference pads with the unknown token.
        change("special_tokens_map.json", &|map| {
            let unknown = match map.get("unk_token") {
                Some(Value::Object(token)) => token.get("content").cloned(),
                other => other.cloned(),
            };
            if let Some(unknown) = unknown
                && !map.contains_key("pad_token")
            {
                map.insert("pad_token".to_owned(), unknown);
            }
        })
    }
}

/// Copies what a model needs beside its weights, so that the folder can be used by itself: the query model's
/// vocabulary as `bert/`, the image processor as `processor/`.
///
/// # Errors
/// [`Error::Io`], [`Error::DiskFull`].
pub fn copy_side_files(bert: &Path, processor: Option<&Path>, folder: &Path) -> Result<()> {
    let make = |name: &str| {
        let made = folder.join(name);
        fs::create_dir_all(&made).map_err(|error| Error::io(&made, error)).map(|()| made)
    };
    let to = make("bert")?;
    for name in ["vocab.txt", "config.json", "tokenizer_config.json"] {
        copy_if_there(&bert.join(name), &to.join(name))?;
    }
    if let Some(processor) = processor {
        let name = "preprocessor_config.json";
        let from = if processor.is_dir() { processor.join(name) } else { processor.to_path_buf() };
        copy_if_there(&from, &make("processor")?.join(name))?;
    }
    Ok(())
}

/// All weights by the names of a published checkpoint, and the buffers that such a checkpoint has.
fn published(parameters: &Parameters, model: &Model) -> Result<BTreeMap<String, Tensor>> {
    let config = &model.options().config;
    let clip = matches!(config.visual, VisualEncoderConfig::Clip(_));
    let mut tensors = BTreeMap::new();
    let mut weights = parameters.tensors();
    if let Some(config) = &model.options().lora {
        weights.extend(lora::merged(parameters, config)?);
    }
    for (name, tensor) in weights {
        let published = match Part::split(&name) {
            Some((Part::VisualEncoder, rest)) if clip => {
                CLIP.upstream(rest).map(|rest| format!("{VISION_TOWER}{rest}"))
            }
            _ => Part::published(&name),
        };
        let Some(published) = published else { continue };
        let tensor = match model.encoder() {
            Some(encoder) if name == POSITIONS => encoder.positions().detach(),
            _ => tensor,
        };
        tensors.insert(published, tensor);
    }
    tensors.extend(buffers(config)?);
    Ok(tensors)
}

/// What torch keeps beside the weights, and can be worked out again.
fn buffers(config: &ModelConfig) -> Result<Vec<(String, Tensor)>> {
    let language = &config.language;
    // In f32 as in torch, whose last bits these are.
    let frequencies: Vec<f32> = (0..language.head_dim / 2)
        .map(|pair| (language.rope_theta as f32).powf((2 * pair) as f32 / language.head_dim as f32).recip())
        .collect();
    let frequencies = Tensor::new(frequencies, &Device::Cpu)?;
    let mut buffers: Vec<_> = (0..language.layers)
        .map(|layer| (format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq"), frequencies.clone()))
        .collect();
    let query = &config.tokens.query;
    let positions = Tensor::arange(0, query.max_positions as i64, &Device::Cpu)?.unsqueeze(0)?;
    buffers.push(("model.vlm_att_encoder.bert.embeddings.position_ids".to_owned(), positions));
    Ok(buffers)
}

/// Names of each shard, in order, none of more than `most` bytes unless by one tensor.
fn shards(
    tensors: &BTreeMap<String, Tensor>,
    bytes: impl Fn(&Tensor) -> usize,
    most: usize,
) -> Vec<Vec<String>> {
    let mut shards: Vec<Vec<String>> = Vec::new();
    let mut size = 0;
    for (name, tensor) in tensors {
        let own = bytes(tensor);
        match shards.last_mut() {
            Some(shard) if size + own <= most => {
                shard.push(name.clone());
                size += own;
            }
            _ => {
                shards.push(vec![name.clone()]);
                size = own;
            }
        }
    }
    shards
}

fn write_torch(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    // torch names the folder in the archive after the file.
    let archive = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("archive").to_owned();
    files::write_with(path, |out| writer::write_torch(out, &archive, tensors))
}

fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() || from == to {
        return Ok(());
    }
    files::write(to, &fs::read(from).map_err(|error| Error::io(from, error))?)
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    }
}
