//! The visual encoder on a device: pixels in, features out, a few frames a step.

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Device as TensorDevice, Tensor};
use llamavid_kernels::Staging;
use llamavid_models::observer::Blind;
use llamavid_models::preprocess::Preprocessing;
use llamavid_models::token_generation::FeatureKind;
use llamavid_models::visual_encoder::{VisualEncoder as Model, VisualEncoderConfig};
use sha2::{Digest, Sha256};
use tracing::info_span;

use crate::device::Weights;
use crate::manifest::hexadecimal;
use crate::model_folder::ModelFolder;
use crate::source_digest::{SourceState, remembered};
use crate::{
    Cancellation, Device, DeviceKind, Error, ErrorCode, Pixels, Precision, Reply, Result, VisualFeatures,
    run_aside,
};

/// Work of one step, in multiply-adds: a tenth of a second, so that other jobs and cancellations wait no longer.
const CPU_STEP: usize = 10_000_000_000;
/// The same for a GPU, where small batches leave it idle: 64 frames of ViT-g.
const CUDA_STEP: usize = 17_000_000_000_000;

/// The visual encoder of a model folder. Holds its weights' memory; clones of the handle share them.
#[derive(Debug)]
pub struct VisualEncoder {
    model: Weights<Model>,
    device: Arc<Device>,
    dtype: DType,
    preprocessing: Preprocessing,
    sizes: Sizes,
    /// Pixels on their way to the device.
    staging: Arc<Mutex<Staging>>,
    folder: ModelFolder,
    digest: OnceLock<String>,
    last: Arc<Mutex<Option<LastFrame>>>,
}

/// The last frame that was encoded: the next batch may begin with an equal one.
#[derive(Debug)]
struct LastFrame {
    pixels: Vec<f32>,
    /// (1, rows, V).
    features: Tensor,
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
            let dtype = precision.dtype.on(&device);
            let _span = info_span!("load visual encoder").entered();
            let folder = ModelFolder::open(&folder)?.with_quantisation(precision.quantisation);
            cancellation.check()?;
            let model = folder.visual_encoder(dtype, device.tensors())?;
            cancellation.check()?;
            let sizes = Sizes::new(&folder.config().visual, device.kind());
            let preprocessing = folder.preprocessing().clone();
            let model = Weights::new(model, device.clone());
            let (staging, last, digest) = (Arc::default(), Arc::default(), OnceLock::new());
            Ok(Self { model, device, dtype, preprocessing, sizes, staging, folder, digest, last })
        })
    }

    /// Hash of everything that its features depend on besides pixels: weights, sizes, and what they are computed in. Not the
    /// device, though the last digits may differ from one to another. Hashes of weights are remembered in the folder `memory`.
    pub(crate) fn digest(&self, memory: Option<&Path>, cancellation: &Cancellation) -> Result<String> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest.clone());
        }
        let (checkpoint, _) = self.folder.visual_weights()?;
        let files = checkpoint.names().map(|name| checkpoint.place(name).0).collect();
        let weights = remembered(memory, &SourceState::of_files(files)?, "visual encoder", || {
            let mut hash = Sha256::new();
            for name in checkpoint.names() {
                cancellation.check()?;
                let tensor = checkpoint.read(name, &TensorDevice::Cpu)?;
                hash.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.dims()));
                // It writes number by number.
                let mut numbers = BufWriter::with_capacity(1 << 20, &mut hash);
                tensor.write_bytes(&mut numbers)?;
                numbers.flush().map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?;
                drop(numbers);
                checkpoint.release(name);
            }
            Ok(hexadecimal(hash))
        })?;
        let (sizes, quantisation) = (&self.folder.config().visual, self.folder.quantisation());
        let all = format!("{weights} {sizes:?} {:?} {quantisation:?}", self.dtype);
        Ok(self.digest.get_or_init(|| hexadecimal(Sha256::new_with_prefix(all))).clone())
    }

    /// Hash of how frames become pixels.
    pub(crate) fn preprocessing_digest(&self) -> String {
        hexadecimal(Sha256::new_with_prefix(format!("{:?}", self.preprocessing)))
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

    /// Pixels (F, 3, S, S) give features (F, rows, V). A frame that equals the one before it bit for bit shares its features, also
    /// where that was the last one of an earlier call: the encoder runs once for both.
    pub fn encode(&self, pixels: Arc<Pixels>, cancellation: &Cancellation) -> Reply<VisualFeatures> {
        let (model, device, dtype) = (Arc::clone(&self.model), self.device.clone(), self.dtype);
        let (size, frames_a_step) = (self.preprocessing.size, self.sizes.frames_a_step);
        let (staging, last) = (Arc::clone(&self.staging), Arc::clone(&self.last));
        let mut parts = Vec::new();
        let (mut begun, mut known, mut done) = (false, 0, 0);
        let (distinct, places) = distinct_frames(&pixels);
        // As many in each step, so that none is a small one.
        let steps = distinct.len().div_ceil(frames_a_step).max(1);
        let frames_a_step = distinct.len().div_ceil(steps).max(1);
        self.device.run(cancellation, move |on| {
            if pixels.size() != size {
                return Err(Error::argument(format!(
                    "the pixels are those of {} x {0} frames, this encoder reads {size} x {size}",
                    pixels.size()
                )));
            }
            // Now and not when it was asked for: the call before may not have ended then.
            if !std::mem::replace(&mut begun, true)
                && let Some(last) = last.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
                && are_equal(pixels.frames(0, 1), &last.pixels)
            {
                parts.push(last.features.clone());
                (known, done) = (1, 1);
            }
            let step = &distinct[done..distinct.len().min(done + frames_a_step)];
            if !step.is_empty() {
                let _span = info_span!("encode", frames = step.len()).entered();
                let frames: Vec<_> = step.iter().map(|frame| pixels.frames(*frame, 1)).collect();
                let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
                let batch = staging.upload(&frames, (step.len(), 3, size, size), on)?;
                drop(staging);
                // (frames of the step, rows, V)
                parts.push(model.forward(&batch.to_dtype(dtype)?, &mut Blind)?);
                done += step.len();
            }
            if done < distinct.len() {
                return Ok(ControlFlow::Continue(()));
            }
            let mut features = match parts.as_slice() {
                [all] => all.clone(),
                parts => Tensor::cat(parts, 0)?,
            };
            let frame = LastFrame {
                pixels: pixels.frames(pixels.frame_count() - 1, 1).to_vec(),
                // A copy, which does not hold the others.
                features: features.narrow(0, distinct.len() - 1, 1)?.force_contiguous()?,
            };
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
            if distinct.len() < places.len() {
                features = features.index_select(&Tensor::new(places.as_slice(), on)?, 0)?;
            }
            let features = VisualFeatures::new(features, FeatureKind::Pixels, device.clone())?;
            Ok(ControlFlow::Break(features.encoded(distinct.len() - known)))
        })
    }
}

/// The frames that differ from the one before them, and for each frame the place of its equal among those.
fn distinct_frames(pixels: &Pixels) -> (Vec<usize>, Vec<u32>) {
    let (mut distinct, mut places) = (Vec::new(), Vec::new());
    for frame in 0..pixels.frame_count() {
        if frame == 0 || !are_equal(pixels.frames(frame, 1), pixels.frames(frame - 1, 1)) {
            distinct.push(frame);
        }
        places.push(distinct.len() as u32 - 1);
    }
    (distinct, places)
}

/// Whether numbers are equal bit for bit.
fn are_equal(these: &[f32], those: &[f32]) -> bool {
    these.len() == those.len() && these.iter().zip(those).all(|(a, b)| a.to_bits() == b.to_bits())
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
