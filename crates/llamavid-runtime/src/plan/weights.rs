//! Bytes of a model's weights in each format, from their shapes.

use candle_core::{DType, Shape};
use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::VisualEncoder;
use serde::{Serialize, Serializer};

use crate::weight_shapes::weight_shapes;
use crate::{Error, Result};

/// How the language model's matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Load {
    /// As numbers, of the dtype that everything is computed in.
    #[serde(rename = "16bit")]
    Plain,
    /// 34 bytes for 32 weights.
    #[serde(rename = "8bit")]
    EightBit,
    /// 144 bytes for 256 weights, or 18 for 32.
    #[serde(rename = "4bit")]
    FourBit,
}

impl Load {
    /// Parses `16bit`, `8bit` or `4bit`; another text is `INVALID_ARGUMENT`.
    pub(super) fn parse(name: &str) -> Result<Self> {
        match name {
            "16bit" => Ok(Self::Plain),
            "8bit" => Ok(Self::EightBit),
            "4bit" => Ok(Self::FourBit),
            other => Err(Error::argument(format!("load {other:?} is none of 16bit, 8bit, 4bit"))),
        }
    }

    /// Bytes and weights of a block, if rows of `columns` weights fill blocks.
    fn block(self, columns: u64) -> Option<(u64, u64)> {
        let block = match self {
            Self::Plain => return None,
            Self::EightBit => (34, 32),
            Self::FourBit => (18, 32),
        };
        columns.is_multiple_of(block.1).then_some(block)
    }
}

/// A way to hold weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Format {
    #[serde(serialize_with = "dtype_name")]
    pub(super) dtype: DType,
    pub(super) load: Load,
}

fn dtype_name<S: Serializer>(dtype: &DType, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.as_str())
}

/// Bytes of each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PartBytes {
    pub(super) visual_encoder: u64,
    pub(super) token_generator: u64,
    pub(super) language_model: u64,
}

impl PartBytes {
    pub(super) fn total(&self) -> u64 {
        self.visual_encoder + self.token_generator + self.language_model
    }
}

/// Shapes of a model's weights.
#[derive(Debug)]
pub(super) struct Weights {
    visual_encoder: Vec<Shape>,
    token_generator: Vec<Shape>,
    language_model: Vec<(String, Shape)>,
}

impl Weights {
    /// Asks the modules what they would read.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub(super) fn of(config: &ModelConfig) -> Result<Self> {
        let visual_encoder = weight_shapes(|vb| VisualEncoder::new(&config.visual, vb))?;
        let token_generator = weight_shapes(|vb| TokenGenerator::new(&config.tokens, vb))?;
        let language_model = weight_shapes(|vb| LanguageModel::new(&config.language, vb))?;
        Ok(Self {
            visual_encoder: visual_encoder.into_values().collect(),
            token_generator: token_generator.into_values().collect(),
            language_model: language_model.into_iter().collect(),
        })
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self, format: Format) -> PartBytes {
        let element = format.dtype.size_in_bytes() as u64;
        let plain = |shapes: &[Shape]| shapes.iter().map(|shape| shape.elem_count() as u64 * element).sum();
        PartBytes {
            visual_encoder: plain(&self.visual_encoder),
            token_generator: plain(&self.token_generator),
            language_model: self.language_model.iter().map(|(name, shape)| held(name, shape, format)).sum(),
        }
    }

    /// What loading takes beside the weights: the largest one as it lies in the file, mapped, and copied where it is
    /// converted, and in f32 where it is put into blocks.
    pub(super) fn loading(&self, format: Format) -> u64 {
        // Published files are in half precision.
        const FILE: u64 = 2;
        let copies = if format.dtype == DType::F16 && format.load == Load::Plain { 1 } else { 2 };
        let count = |shape: &Shape| shape.elem_count() as u64;
        let all = self.visual_encoder.iter().chain(&self.token_generator);
        let largest = all.chain(self.language_model.iter().map(|(_, shape)| shape)).map(count).max();
        let unpacked = if format.load == Load::Plain { 0 } else { 4 };
        largest.unwrap_or(0) * (copies * FILE + unpacked)
    }
}

/// Bytes of a weight of the language model.
fn held(name: &str, shape: &Shape, format: Format) -> u64 {
    let count = shape.elem_count() as u64;
    let columns = shape.dims().last().copied().unwrap_or(1) as u64;
    match format.load.block(columns) {
        Some((bytes, weights)) if shape.rank() == 2 && !name.starts_with("embed_tokens") => {
            count / weights * bytes
        }
        _ => count * format.dtype.size_in_bytes() as u64,
    }
}
