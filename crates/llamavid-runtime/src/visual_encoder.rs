//! The visual encoder on a device: pixels in, features out, a few frames a step.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use llamavid_models::observer::Blind;
use llamavid_models::preprocess::Preprocessing;
use llamavid_models::token_generation::FeatureKind;
use llamavid_models::visual_encoder::{VisualEncoder as Model, VisualEncoderConfig};

use crate::device::Weights;
use crate::model_folder::ModelFolder;
use crate::{Cancellation, Device, DeviceKind, Error, Pixels, Precision, Reply, VisualFeatures, run_aside};

/// Work of one step, in multiply-adds: a tenth of a second, so that other jobs and cancellations wait no longer.
const CPU_STEP: usize = 10_000_000_000;
/// The same for a GPU, where small batches leave it idle.
const CUDA_STEP: usize = 10_000_000_000_000;

/// The visual encoder of a model folder. Holds its weights' memory; clones of the handle share them.
#[derive(Debug)]
pub struct VisualEncoder {
    model: Weights<Model>,
    device: Arc<Device>,
    dtype: DType,
    preprocessing: Preprocessing,
    sizes: Sizes,
}

/// What callers ask of the encoder, whatever its kind.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    patch_count: usize,
    width: usize,
    frames_a_step: usize,
}

impl VisualEncoder {
    /// Loads it from `folder`, on a thread of its own.
    pub fn load(
        folder: PathBuf,
        device: Arc<Device>,
        precision: Precision,
        cancellation: Cancellation,
    ) -> Reply<Self> {
        run_aside("llamavid load", move || {
            cancellation.check()?;
            let dtype = precision.on(&device)?;
            let folder = ModelFolder::open(&folder)?.with_quantisation(precision.quantisation);
            cancellation.check()?;
            let model = folder.visual_encoder(dtype, device.tensors())?;
            cancellation.check()?;
            let sizes = Sizes::new(&folder.config().visual, device.kind());
            let preprocessing = folder.preprocessing().clone();
            Ok(Self { model: Weights::new(model, device.clone()), device, dtype, preprocessing, sizes })
        })
    }

    /// How frames become the pixels that this encoder reads.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// Patches of a frame, the class row not counted.
    pub fn patch_count(&self) -> usize {
        self.sizes.patch_count
    }

    /// Width of a feature row.
    pub fn width(&self) -> usize {
        self.sizes.width
    }

    /// What the weights are computed in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the weights.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Pixels (F, 3, S, S) give features (F, rows, V).
    pub fn encode(&self, pixels: Arc<Pixels>, cancellation: &Cancellation) -> Reply<VisualFeatures> {
        let (model, device, dtype) = (Arc::clone(&self.model), self.device.clone(), self.dtype);
        let (size, frames_a_step) = (self.preprocessing.size, self.sizes.frames_a_step);
        let mut parts = Vec::new();
        let mut done = 0;
        self.device.run(cancellation, move |on| {
            if pixels.size() != size {
                return Err(Error::argument(format!(
                    "the pixels are those of {} x {0} frames, this encoder reads {size} x {size}",
                    pixels.size()
                )));
            }
            let count = frames_a_step.min(pixels.frame_count() - done);
            let batch = Tensor::from_slice(pixels.frames(done, count), (count, 3, size, size), on)?;
            parts.push(model.forward(&batch.to_dtype(dtype)?, &mut Blind)?); // (count, rows, V)
            done += count;
            if done < pixels.frame_count() {
                return Ok(ControlFlow::Continue(()));
            }
            let features = match parts.as_slice() {
                [all] => all.clone(),
                parts => Tensor::cat(parts, 0)?,
            };
            Ok(ControlFlow::Break(VisualFeatures::new(features, FeatureKind::Pixels, device.clone())?))
        })
    }
}

impl Sizes {
    fn new(config: &VisualEncoderConfig, kind: DeviceKind) -> Self {
        Self {
            patch_count: config.patches(),
            width: config.width(),
            frames_a_step: frames_a_step(config, kind),
        }
    }
}

/// Frames that are encoded at once.
pub(crate) fn frames_a_step(config: &VisualEncoderConfig, kind: DeviceKind) -> usize {
    let (width, depth, mlp_width) = match config {
        VisualEncoderConfig::Eva(eva) => (eva.width, eva.depth, eva.mlp_width),
        VisualEncoderConfig::Clip(clip) => (clip.width, clip.depth, clip.mlp_width),
    };
    let patch_count = config.patches();
    let step = match kind {
        DeviceKind::Cpu => CPU_STEP,
        DeviceKind::Cuda => CUDA_STEP,
    };
    // Products with the weights, and of the attention, of each block.
    let a_row = width.saturating_mul(4 * width + 2 * mlp_width + 2 * patch_count);
    let a_frame = a_row.saturating_mul(patch_count).saturating_mul(depth).max(1);
    (step / a_frame).clamp(1, 64)
}
