//! What a model's small files say, without its weights: enough to write a prompt and count its tokens.

use std::path::PathBuf;

use llamavid_models::prompt::placeholders::{IMAGE_TOKEN, tokenize_with_images};
use llamavid_models::tokenizer::LlamaTokenizer;

use crate::model_folder::ModelFolder;
use crate::plan::plan;
use crate::{Preprocessing, Reply, Result, run_aside};

/// A model folder's configuration and tokenizer.
#[derive(Debug)]
pub struct ModelDescription {
    folder: ModelFolder,
    tokenizer: LlamaTokenizer,
}

impl ModelDescription {
    /// Reads it, on a thread of its own.
    pub fn read(folder: PathBuf) -> Reply<Self> {
        run_aside("llamavid describe", move || {
            let folder = ModelFolder::open(&folder)?;
            let tokenizer = folder.llama_tokenizer()?;
            Ok(Self { folder, tokenizer })
        })
    }

    /// Positions that prompt and answer share.
    pub fn context_length(&self) -> usize {
        self.folder.config().language.max_positions
    }

    /// Visual tokens of a frame: the context token and the content tokens.
    pub fn tokens_per_frame(&self) -> usize {
        self.folder.tokens_per_frame()
    }

    /// What stands in a prompt for one picture or video.
    pub fn image_placeholder(&self) -> &'static str {
        self.folder.image_placeholder()
    }

    /// The conversation template that the model was trained with, where its configuration names one.
    pub fn conversation(&self) -> Option<&'static str> {
        self.folder.conversation()
    }

    /// How pictures become pixels.
    pub fn preprocessing(&self) -> &Preprocessing {
        self.folder.preprocessing()
    }

    /// What an answer takes and whether it fits, as JSON. `request` is JSON too; `@llamavid/pipeline` writes it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a request that cannot be read, and those of the model's files.
    pub fn plan(&self, request: &str) -> Result<String> {
        plan(&self.folder, request)
    }

    /// Tokens of a prompt: all, and the places of visual tokens among them.
    pub fn count_prompt_tokens(&self, prompt: &str) -> (usize, usize) {
        let ids = tokenize_with_images(&self.tokenizer, prompt);
        (ids.len(), ids.iter().filter(|id| **id == IMAGE_TOKEN).count())
    }
}
