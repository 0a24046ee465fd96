//! The decoder of a model folder with its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;
use llamavid_models::language_model::LanguageModel as Model;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_weights::Loader;
use llamavid_weights::key_table::LANGUAGE;
use tracing::info_span;

use crate::device::Weights;
use crate::gguf_model::GgufModel;
use crate::model_folder::{GenerationDefaults, ModelFolder, build};
use crate::session::prefill_chunk;
use crate::split::{Split, shared_layers};
use crate::{Cancellation, Device, Precision, Reply, Result, run_aside};

/// The language model of a folder. Sessions keep it alive.
#[derive(Debug)]
pub struct LanguageModel {
    model: Weights<Model>,
    tokenizer: LlamaTokenizer,
    defaults: GenerationDefaults,
    image_placeholder: &'static str,
    conversation: Option<&'static str>,
    device: Arc<Device>,
}

impl LanguageModel {
    /// Loads it from a model folder, or from a GGUF file of llama.cpp's, on a thread of its own.
    pub fn load(
        folder: PathBuf,
        device: Arc<Device>,
        precision: Precision,
        split: Split,
        cancellation: Cancellation,
    ) -> Reply<Self> {
        run_aside("llamavid load", move || {
            cancellation.check()?;
            let _span = info_span!("load language model").entered();
            if folder.extension().is_some_and(|extension| extension == "gguf") && folder.is_file() {
                return Self::from_gguf(&folder, device, precision, split, &cancellation);
            }
            let folder = ModelFolder::open(&folder)?.with_quantisation(precision.quantisation);
            let tokenizer = folder.llama_tokenizer()?;
            let defaults = folder.generation_defaults()?;
            cancellation.check()?;
            let model = folder.placed_language_model(precision.dtype.on(&device), &device, split)?;
            cancellation.check()?;
            let (image_placeholder, conversation) = (folder.image_placeholder(), folder.conversation());
            Ok(Self {
                model: Weights::new(model, device.clone()),
                tokenizer,
                defaults,
                image_placeholder,
                conversation,
                device,
            })
        })
    }

    fn from_gguf(
        file: &Path,
        device: Arc<Device>,
        precision: Precision,
        split: Split,
        cancellation: &Cancellation,
    ) -> Result<Self> {
        let GgufModel { config, tokenizer, checkpoint } = GgufModel::open(file)?;
        let dtype = precision.dtype.on(&device);
        let quantisation = precision.quantisation;
        let loader = Loader::quantising(checkpoint, &LANGUAGE, quantisation, dtype, device.tensors());
        let model = match split {
            Split::Layers => build(loader, |vb| Model::new(&config, vb)),
            Split::Tensor => {
                let placement = shared_layers(&device, &config)?;
                build(loader, |vb| Model::placed(&config, vb, placement))
            }
        }?;
        cancellation.check()?;
        Ok(Self {
            model: Weights::new(model, device.clone()),
            tokenizer,
            defaults: GenerationDefaults::default(),
            image_placeholder: "<image>",
            conversation: None,
            device,
        })
    }

    /// Positions that prompt and answer share.
    pub fn context_length(&self) -> usize {
        self.model.context_length()
    }

    /// What the weights are computed in.
    pub fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// How most of the weights are stored: the dtype's name (`f32`), or that of a format of blocks (`q4_k`).
    pub fn stored_as(&self) -> String {
        match self.model.block_format() {
            Some(format) => format.name().to_lowercase(),
            None => self.model.dtype().as_str().to_owned(),
        }
    }

    /// What the checkpoint proposes for sampling.
    pub fn generation_defaults(&self) -> GenerationDefaults {
        self.defaults
    }

    /// What stands in a prompt for one picture or video.
    pub fn image_placeholder(&self) -> &'static str {
        self.image_placeholder
    }

    /// The conversation template that it was trained with, where its configuration names one.
    pub fn conversation(&self) -> Option<&'static str> {
        self.conversation
    }

    /// Tokens of `text`, without the one that begins every prompt.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.encode(text, false).len()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &LlamaTokenizer {
        &self.tokenizer
    }

    /// The device of the weights.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The decoder itself, for programs that drive it without a session.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Positions of one prefill step.
    pub fn prefill_chunk(&self) -> usize {
        prefill_chunk(self.model.config(), self.device.kind())
    }
}
