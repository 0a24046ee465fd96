//! Bytes of a model's weights in each format, from their shapes and from how their files hold them.

use candle_core::{DType, Device};
use llamavid_kernels::BlockFormat;
use llamavid_models::WeightSource;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_weights::{Loader, Quantisation};
use serde::{Serialize, Serializer};

use crate::model_folder::ModelFolder;
use crate::weight_shapes::{WeightShape, weight_shapes};
use crate::{DeviceKind, Result};

/// A way to hold weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Format {
    #[serde(serialize_with = "dtype_name")]
    pub(super) dtype: DType,
    /// How matrices are rounded. None leaves those of a file as they are there.
    #[serde(rename = "load", serialize_with = "bits")]
    pub(super) quantisation: Option<Quantisation>,
}

fn dtype_name<S: Serializer>(dtype: &DType, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.as_str())
}

fn bits<S: Serializer>(
    quantisation: &Option<Quantisation>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(match quantisation {
        None => "16bit",
        Some(Quantisation::Q8_0) => "8bit",
        // The only other one that `Precision::parse_bits` gives.
        Some(_) => "4bit",
    })
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

/// The weights of all parts.
#[derive(Debug)]
pub(super) struct Weights {
    visual_encoder: Part,
    token_generator: Part,
    language_model: Part,
}

/// What weights in a format take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) bytes: PartBytes,
    /// What loading takes beside them at its end.
    pub(super) loading: u64,
    /// Whether the visual encoder's matrices are in blocks.
    pub(super) encoder_in_blocks: bool,
    /// Whether the language model's are.
    pub(super) language_in_blocks: bool,
}

impl Weights {
    /// Asks the modules what they would read.
    ///
    /// # Errors
    /// Sizes that do not go together, and files that cannot be opened.
    pub(super) fn of(folder: &ModelFolder) -> Result<Self> {
        // Neither decides where a weight is.
        let (config, dtype, device) = (folder.config(), DType::F32, &Device::Cpu);
        Ok(Self {
            visual_encoder: Part::of(folder.visual_loader(dtype, device)?, |source| {
                VisualEncoder::new(&config.visual, source)
            })?,
            token_generator: Part::of(folder.token_loader(dtype, device)?, |source| {
                TokenGenerator::new(&config.tokens, source)
            })?,
            language_model: Part::of(folder.language_loader(dtype, device)?, |source| {
                LanguageModel::new(&config.language, source)
            })?,
        })
    }

    /// What they take in the memory of a device of this kind.
    ///
    /// # Errors
    /// Weights of a kind that is not read.
    pub(super) fn held(&self, format: Format, kind: DeviceKind) -> Result<Held> {
        // As `ModelFolder` has it: the small parts feel an error in every answer.
        let small = Format { quantisation: format.quantisation.map(|_| Quantisation::Q8_0), ..format };
        let parts = [
            match (kind, format.dtype) {
                (DeviceKind::Cpu, DType::F32) => self.visual_encoder.laid_out(small)?,
                _ => self.visual_encoder.held(small)?,
            },
            self.token_generator.held(small)?,
            self.language_model.held(format)?,
        ];
        let [visual_encoder, token_generator, language_model] = parts.map(|part| part.bytes);
        Ok(Held {
            bytes: PartBytes { visual_encoder, token_generator, language_model },
            loading: parts.iter().map(|part| part.loading).max().unwrap_or(0),
            encoder_in_blocks: parts[0].in_blocks,
            language_in_blocks: parts[2].in_blocks,
        })
    }
}

/// Bytes of a number in a file: published ones are in half precision.
const FILE: u64 = 2;

/// The weights of a part.
#[derive(Debug)]
struct Part {
    loader: Loader,
    weights: Vec<WeightShape>,
}

#[derive(Debug, Clone, Copy, Default)]
struct HeldPart {
    bytes: u64,
    loading: u64,
    in_blocks: bool,
}

impl Part {
    fn of<M>(
        loader: Loader,
        build: impl FnOnce(WeightSource<'static>) -> llamavid_models::Result<M>,
    ) -> Result<Self> {
        Ok(Self { loader, weights: weight_shapes(build)? })
    }

    fn held(&self, format: Format) -> Result<HeldPart> {
        let mut held = HeldPart::default();
        for weight in &self.weights {
            let (bytes, loading) = match self.blocks(format, weight)? {
                Some((blocks, bytes)) => {
                    held.in_blocks |= blocks.block_length() > 1;
                    // Widened to f32 from the mapped file and then rounded; else mapped only.
                    let rounded = weight.numbers() * (FILE + 4);
                    (bytes, if format.quantisation.is_some() { rounded } else { 0 })
                }
                None => {
                    // From the mapped file; bf16 by way of a copy.
                    let copies = if format.dtype == DType::BF16 { 2 } else { 1 };
                    let bytes = weight.numbers() * format.dtype.size_in_bytes() as u64;
                    (bytes, weight.numbers() * copies * FILE)
                }
            };
            held.bytes += bytes;
            held.loading = held.loading.max(loading);
        }
        Ok(held)
    }

    /// The same where the matrices of blocks are laid out for inference, as `llamavid_kernels::FrozenAttention` has them.
    fn laid_out(&self, format: Format) -> Result<HeldPart> {
        let mut held = self.held(format)?;
        let mut largest = 0;
        for weight in self.weights.iter().filter(|weight| weight.is_matrix) {
            let numbers = weight.numbers();
            let (read, number) = match self.blocks(format, weight)? {
                Some((blocks, read)) if blocks.block_length() > 1 => (read, 1),
                Some((blocks, read)) => (read, if blocks == BlockFormat::F16 { 2 } else { 4 }),
                // A weight that is missing is told of when it is loaded.
                None => match self.loader.find(&weight.name, weight.shape.dims()) {
                    Ok(found) if found.dtype == DType::F16 => (4 * numbers, 2),
                    _ => (4 * numbers, 4),
                },
            };
            held.bytes = held.bytes - read + number * numbers;
            largest = largest.max(read + 4 * numbers);
        }
        // A block is there as it was read until it is laid out: its largest matrices are two, and one of them as numbers.
        held.loading = held.loading.max(2 * largest);
        Ok(held)
    }

    /// How a weight is held in blocks, and in how many bytes.
    fn blocks(&self, format: Format, weight: &WeightShape) -> Result<Option<(BlockFormat, u64)>> {
        if !weight.is_matrix {
            return Ok(None);
        }
        let columns = weight.shape.dims().last().copied().unwrap_or(1);
        let blocks = self.loader.format(format.quantisation, &weight.name, columns)?;
        Ok(blocks.and_then(|blocks| {
            let row_bytes = blocks.row_bytes(columns)? as u64;
            Some((blocks, weight.numbers() / columns.max(1) as u64 * row_bytes))
        }))
    }
}
