//! The visual encoders: EVA ViT, which every published model uses, and CLIP ViT.
//!
//! Letters: F frames, P patches, V visual width, S side of the picture in pixels.

mod blocks;
mod clip;
mod eva;
mod layer_norm;
mod patch_embedding;
mod position_table;

use candle_core::{DType, Tensor};

use crate::observer::Observer;
use crate::weight_source::WeightSource;
use crate::{Error, Result};
use clip::ClipTower;
use eva::EvaTower;

/// Which visual encoder, and its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VisualEncoderConfig {
    /// EVA ViT.
    Eva(EvaConfig),
    /// The vision part of CLIP.
    Clip(ClipConfig),
}

/// Sizes of an EVA ViT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaConfig {
    /// Side of the pictures in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width V of a patch's features.
    pub width: usize,
    /// Blocks that are computed. The published file has one more.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the hidden layer of each block's MLP.
    pub mlp_width: usize,
    /// Patches along each side of the file's position table, which is resized to fit the pictures.
    pub position_side: usize,
}

/// Sizes of a CLIP ViT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipConfig {
    /// Side of the pictures in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width V of a patch's features.
    pub width: usize,
    /// Layers in the file.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the hidden layer of each layer's MLP.
    pub mlp_width: usize,
    /// Which output is taken: 0 is the input of the first layer, 1 its output, -1 the output of the last layer.
    pub select_layer: i64,
    /// Whether the class row is kept (`cls_patch`) or not (`patch`).
    pub class_token: bool,
    /// Patches along each side of the file's position table, which must fit the pictures.
    pub position_side: usize,
}

/// Turns pixels into visual features. They do not depend on the question.
///
/// No published recipe trains it, so what can be prepared is prepared when it is built: a change of its weights
/// later on does not reach all of it. Gradients do flow through to the pixels.
#[derive(Debug, Clone)]
pub struct VisualEncoder {
    config: VisualEncoderConfig,
    dtype: DType,
    tower: Tower,
}

#[derive(Debug, Clone)]
enum Tower {
    Eva(EvaTower),
    Clip(ClipTower),
}

impl VisualEncoder {
    /// Reads the weights under their upstream names, in the dtype of `vb`.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not go together, [`Error::Tensor`] for a missing weight or a wrong shape.
    pub fn new<'a>(config: &VisualEncoderConfig, vb: impl Into<WeightSource<'a>>) -> Result<Self> {
        Self::build(config, vb.into(), false)
    }

    /// The same for inference only: where it is computed in f32 on a CPU, its weights are laid out for that as they are read, and
    /// no gradient flows through it. Weights in blocks have one scale for each output then, and what they are
    /// multiplied with is quantised to int8, row by row, where the processor has int8 dot products.
    ///
    /// # Errors
    /// As [`VisualEncoder::new`].
    pub fn for_inference<'a>(config: &VisualEncoderConfig, vb: impl Into<WeightSource<'a>>) -> Result<Self> {
        Self::build(config, vb.into(), true)
    }

    fn build(config: &VisualEncoderConfig, vb: WeightSource, frozen: bool) -> Result<Self> {
        config.check()?;
        let dtype = vb.dtype();
        let frozen = frozen && vb.device().is_cpu() && dtype == DType::F32;
        let tower = match config {
            VisualEncoderConfig::Eva(config) => Tower::Eva(EvaTower::new(config, vb, frozen)?),
            VisualEncoderConfig::Clip(config) => Tower::Clip(ClipTower::new(config, vb, frozen)?),
        };
        Ok(Self { config: config.clone(), dtype, tower })
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &VisualEncoderConfig {
        &self.config
    }

    /// The position table (1, P+1, V) as it is used, resized where the file's was for another grid; CLIP's is (P+1, V).
    pub fn positions(&self) -> &Tensor {
        match &self.tower {
            Tower::Eva(tower) => tower.positions(),
            Tower::Clip(tower) => tower.positions(),
        }
    }

    /// `pixels` (F, 3, S, S) of any float dtype give (F, P+1, V), class row first; CLIP without its class row (F, P, V).
    ///
    /// # Errors
    /// [`Error::Argument`] for pixels of another shape.
    pub fn forward(&self, pixels: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let size = self.config.image_size();
        match *pixels.dims() {
            [frames, 3, height, width] if frames > 0 && height == size && width == size => {}
            _ => {
                return Err(Error::Argument(format!(
                    "the visual encoder reads pixels of shape (frames, 3, {size}, {size}), not {:?}",
                    pixels.shape()
                )));
            }
        }
        let pixels = pixels.to_dtype(self.dtype)?;
        let features = match &self.tower {
            Tower::Eva(tower) => tower.forward(&pixels, observer)?,
            Tower::Clip(tower) => tower.forward(&pixels, observer)?,
        };
        observer.see("vit.out", &features);
        Ok(features)
    }
}

impl VisualEncoderConfig {
    /// Side S of the pictures in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Eva(config) => config.image_size,
            Self::Clip(config) => config.image_size,
        }
    }

    /// Width V of a patch's features.
    pub fn width(&self) -> usize {
        match self {
            Self::Eva(config) => config.width,
            Self::Clip(config) => config.width,
        }
    }

    /// Patches P of a frame.
    pub fn patches(&self) -> usize {
        let (image_size, patch_size) = match self {
            Self::Eva(config) => (config.image_size, config.patch_size),
            Self::Clip(config) => (config.image_size, config.patch_size),
        };
        let side = image_size.checked_div(patch_size).unwrap_or(0);
        side * side
    }

    fn check(&self) -> Result<()> {
        let (sizes, position_side, resizable) = match self {
            Self::Eva(c) => {
                ([c.image_size, c.patch_size, c.width, c.heads, c.mlp_width], c.position_side, true)
            }
            Self::Clip(c) => {
                ([c.image_size, c.patch_size, c.width, c.heads, c.mlp_width], c.position_side, false)
            }
        };
        let [image_size, patch_size, width, heads, mlp_width] = sizes;
        let wrong = |key: &str, problem: String| Err(Error::Config { key: key.into(), problem });
        let keys = ["image_size", "patch_size", "width", "heads", "mlp_width", "position_side"];
        let values = [image_size, patch_size, width, heads, mlp_width, position_side];
        if let Some((key, _)) = keys.iter().zip(values).find(|(_, value)| *value == 0) {
            return wrong(key, "must be at least 1".into());
        }
        if !image_size.is_multiple_of(patch_size) {
            return wrong(
                "image_size",
                format!("{image_size} is no multiple of the patch size {patch_size}"),
            );
        }
        if !width.is_multiple_of(heads) {
            return wrong("heads", format!("a width of {width} does not divide among {heads} heads"));
        }
        if !resizable && position_side != image_size / patch_size {
            return wrong(
                "position_side",
                format!(
                    "{position_side}, but a picture of {image_size} has {} patches a side, and CLIP's table is not resized",
                    image_size / patch_size
                ),
            );
        }
        Ok(())
    }
}
