//! The weights that each part of a model asks for, learned by building it from nothing.
//!
//! The modules themselves say what they need, so there is no second list that could differ from them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_runtime::Result;
use llamavid_weights::KeyTable;
use llamavid_weights::key_table::{LANGUAGE, TOKENS, VISION_TOWER, VISUAL};

/// More weights than any part has: a hostile configuration must not fill the memory.
const MOST: usize = 1 << 20;

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Pixels to visual features.
    VisualEncoder,
    /// Visual features and questions to visual tokens.
    TokenGenerator,
    /// The decoder.
    LanguageModel,
}

impl Part {
    /// All of them, in the order of the data.
    pub const ALL: [Self; 3] = [Self::VisualEncoder, Self::TokenGenerator, Self::LanguageModel];

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::VisualEncoder => "visual encoder",
            Self::TokenGenerator => "token generator",
            Self::LanguageModel => "language model",
        }
    }

    /// How its weights are named in a checkpoint of the whole model, without what stands in front of them there.
    pub fn table(self) -> &'static KeyTable {
        match self {
            Self::VisualEncoder => &VISUAL,
            Self::TokenGenerator => &TOKENS,
            Self::LanguageModel => &LANGUAGE,
        }
    }

    /// The name of a weight in a published checkpoint of the whole model.
    pub fn published(self, ours: &str) -> String {
        let name = self.table().upstream(ours).unwrap_or_else(|| ours.to_owned());
        if self == Self::VisualEncoder { format!("{VISION_TOWER}{name}") } else { name }
    }
}

/// A weight that a part asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Our name for it.
    pub ours: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// The weights that a part of this configuration asks for, in the order in which it does.
///
/// # Errors
/// A configuration that the part refuses.
pub fn needed(part: Part, config: &ModelConfig) -> Result<Vec<Needed>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let backend = Listener { asked: asked.clone() };
    let vb = VarBuilder::from_backend(Box::new(backend), DType::F16, Device::Cpu);
    match part {
        Part::VisualEncoder => VisualEncoder::new(&config.visual, vb).map(drop)?,
        Part::TokenGenerator => TokenGenerator::new(&config.tokens, vb).map(drop)?,
        Part::LanguageModel => LanguageModel::new(&config.language, vb).map(drop)?,
    }
    let asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(asked)
}

/// Gives zeros that take no memory, and remembers what was asked for.
struct Listener {
    asked: Arc<Mutex<Vec<Needed>>>,
}

impl SimpleBackend for Listener {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let needed = Needed { ours: name.to_owned(), shape: shape.dims().to_vec() };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() == MOST {
            return Err(candle_core::Error::Msg(format!(
                "the configuration asks for more than {MOST} weights"
            )));
        }
        asked.push(needed);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!("the size of {name} is not known")))
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}
