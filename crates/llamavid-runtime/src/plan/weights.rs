//! Bytes of a model's weights in each format, from their shapes and from how their files hold them.

use candle_core::{DType, Device};
use llamavid_models::WeightSource;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_weights::{Loader, Quantisation};
use serde::{Serialize, Serializer};

use crate::Result;
use crate::model_folder::ModelFolder;
use crate::weight_shapes::{WeightShape, weight_shapes};

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

    /// What they take in memory.
    ///
    /// # Errors
    /// Weights of a kind that is not read.
    pub(super) fn held(&self, format: Format) -> Result<Held> {
        // As `ModelFolder` has it: the small parts feel an error in every answer.
        let small = Format { quantisation: format.quantisation.map(|_| Quantisation::Q8_0), ..format };
        let parts = [
            self.visual_encoder.held(small)?,
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
        // Published files are in half precision.
        const FILE: u64 = 2;
        let mut held = HeldPart::default();
        for WeightShape { name, shape, is_matrix } in &self.weights {
            let count = shape.elem_count() as u64;
            let columns = shape.dims().last().copied().unwrap_or(1);
            let blocks = match is_matrix {
                true => self.loader.format(format.quantisation, name, columns)?,
                false => None,
            };
            let (bytes, loading) = match blocks.and_then(|blocks| Some((blocks, blocks.row_bytes(columns)?)))
            {
                Some((blocks, row_bytes)) => {
                    held.in_blocks |= blocks.block_length() > 1;
                    // Widened to f32 from the mapped file and then rounded; else mapped only.
                    let rounded = if format.quantisation.is_some() { count * (FILE + 4) } else { 0 };
                    (count / columns.max(1) as u64 * row_bytes as u64, rounded)
                }
                None => {
                    // From the mapped file; bf16 by way of a copy.
                    let copies = if format.dtype == DType::BF16 { 2 } else { 1 };
                    (count * format.dtype.size_in_bytes() as u64, count * copies * FILE)
                }
            };
            held.bytes += bytes;
            held.loading = held.loading.max(loading);
        }
        Ok(held)
    }
}
