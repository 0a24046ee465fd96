//! The files of a Whisper model: a folder of the Hugging Face library, or a checkpoint of the public implementation with
//! its vocabulary beside it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_runtime::model_folder::{read_optional, read_required};
use llamavid_runtime::{Error, ErrorCode, Result};
use llamavid_weights::key_table::SPEECH;
use llamavid_weights::{Checkpoint, Loader, torch_numbers};

use crate::names::{HUGGING_FACE, Names, OPENAI};
use crate::{SpeechConfig, SpeechTokenizer, Whisper};

/// A model's small files, read, and its weights, found.
#[derive(Debug)]
pub struct ModelFiles {
    config: SpeechConfig,
    tokenizer: SpeechTokenizer,
    checkpoint: Checkpoint,
    names: &'static Names,
}

impl ModelFiles {
    /// Opens a folder, or a `.pt` file.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` where there is nothing, `MODEL_FILE_MISSING`, `MODEL_INVALID`, `MODEL_UNSUPPORTED`.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::open_checkpoint(path, path.parent().unwrap_or(Path::new(".")));
        }
        if !path.is_dir() {
            let message = format!("{}: there is no such folder or file", path.display());
            return Err(Error::new(ErrorCode::ModelNotFound, message)
                .with_hint("Give the folder of a Whisper model, or its .pt file."));
        }
        let config_file = path.join("config.json");
        let Some(config) = read_optional(&config_file)? else {
            return Self::open_checkpoint(&only_checkpoint(path)?, path);
        };
        let config = SpeechConfig::parse(&config, &config_file.display().to_string())?;
        let tokenizer = read_tokenizer(path, config.vocabulary)?;
        let checkpoint = Checkpoint::open_folder(path)?;
        let inner = checkpoint.under("model.");
        // A model saved without its head has no such prefix; the head itself is the table of tokens again.
        let checkpoint = if inner.names().next().is_some() { inner } else { checkpoint };
        Ok(Self { config, tokenizer, checkpoint, names: &HUGGING_FACE })
    }

    fn open_checkpoint(file: &Path, folder: &Path) -> Result<Self> {
        let dims = torch_numbers(file, "dims")?;
        let config = SpeechConfig::from_dims(|name| dims.get(name).copied(), &file.display().to_string())?;
        let tokenizer = read_tokenizer(folder, config.vocabulary)?;
        Ok(Self { config, tokenizer, checkpoint: Checkpoint::open_file(file)?, names: &OPENAI })
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a weight that is missing, has another shape, is not finite or has no place.
    pub fn load(self, dtype: DType, device: &Device) -> Result<(Whisper, SpeechTokenizer)> {
        let loader = Loader::new(self.checkpoint, &SPEECH, dtype, device);
        let built = Whisper::new(self.config, self.names, &loader.var_builder());
        let model = built.map_err(|error| loader.explain(error))?;
        loader.finish()?;
        Ok((model, self.tokenizer))
    }
}

/// The one `.pt` file of a folder.
fn only_checkpoint(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        let message = format!("{}: cannot be read: {error}", folder.display());
        Error::new(ErrorCode::ModelInvalid, message).with_hint("Check the permissions.")
    })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "pt"))
        .collect();
    match (found.pop(), found.len()) {
        (Some(file), 0) => Ok(file),
        (Some(_), others) => {
            let message = format!("{}: {} .pt files, one is a model", folder.display(), others + 1);
            Err(Error::new(ErrorCode::InvalidArgument, message).with_hint("Name the file."))
        }
        (None, _) => {
            let message = format!("{}: neither config.json nor a .pt file is there", folder.display());
            Err(Error::new(ErrorCode::ModelFileMissing, message)
                .with_hint("Give the folder of a Whisper model, such as openai/whisper-small."))
        }
    }
}

fn read_tokenizer(folder: &Path, vocabulary: usize) -> Result<SpeechTokenizer> {
    let file = folder.join("tokenizer.json");
    if let Some(bytes) = read_optional(&file)? {
        return SpeechTokenizer::from_hugging_face(&bytes, vocabulary, &file.display().to_string());
    }
    let file = folder.join(SpeechTokenizer::tiktoken_name(vocabulary));
    let bytes = read_required(&file, "the vocabulary").map_err(|error| {
        Error {
        hint: Some(
            "Put tokenizer.json of the model's folder there, or this file of the PyPI package openai-whisper \
             (whisper/assets)."
                .into(),
        ),
        ..error
    }
    })?;
    SpeechTokenizer::from_tiktoken(&bytes, vocabulary, &file.display().to_string())
}
