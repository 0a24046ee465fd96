//! The visual encoder and its features.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, FeatureKind};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, ClassInstance, Float32Array};
use napi_derive::napi;

use crate::arguments::{size, word};
use crate::device::{Cancellation, Device, LoadOptions, flag};
use crate::handle::Handle;
use crate::pixels::{Pixels, Preprocessing, float32_array};
use crate::promise::{call, promise};

/// Whether a frame's rows start with the class row.
pub const FEATURE_KINDS: [(&str, FeatureKind); 2] =
    [("pixels", FeatureKind::Pixels), ("precomputed", FeatureKind::Precomputed)];

/// The visual encoder of a model folder. Holds its weights until `close`.
#[napi]
pub struct VisualEncoder {
    handle: Handle<runtime::VisualEncoder>,
}

#[napi]
impl VisualEncoder {
    /// Loads the encoder of a folder, and nothing else of it.
    #[napi]
    pub fn load(env: &Env, folder: String, o: LoadOptions) -> napi::Result<AsyncBlock<VisualEncoder>> {
        promise(
            env,
            || {
                let (device, precision, cancellation) = o.parts()?;
                Ok(runtime::VisualEncoder::load(folder.into(), device, precision, cancellation))
            },
            |encoder| Self { handle: Handle::new("visual encoder", encoder) },
        )
    }

    /// How frames become the pixels that it reads.
    #[napi(getter)]
    pub fn preprocessing(&self) -> napi::Result<Preprocessing> {
        call(|| Ok(self.handle.open()?.preprocessing().into()))
    }

    /// Patches of a frame, the class row not counted.
    #[napi(getter)]
    pub fn patch_count(&self) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.patch_count() as u32))
    }

    /// Width of a feature row.
    #[napi(getter)]
    pub fn width(&self) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.width() as u32))
    }

    /// What the weights are computed in.
    #[napi(getter)]
    pub fn dtype(&self) -> napi::Result<&'static str> {
        call(|| Ok(self.handle.open()?.dtype().as_str()))
    }

    /// Pixels of F frames give their features. The pixels stay open.
    #[napi]
    pub fn encode(
        &self,
        env: &Env,
        pixels: &Pixels,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<VisualFeatures>> {
        promise(env, || Ok(self.handle.open()?.encode(pixels.get()?, &flag(c))), VisualFeatures::new)
    }

    /// Frees the weights, behind what still runs. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }

    pub(crate) fn get(&self) -> runtime::Result<Arc<runtime::VisualEncoder>> {
        self.handle.open()
    }
}

/// Features of frames, which do not depend on a question. Holds device memory until `close`.
#[napi]
pub struct VisualFeatures {
    handle: Handle<runtime::VisualFeatures>,
}

#[napi]
impl VisualFeatures {
    /// Takes features that were made before: `data` is row-major of `shape` (frames, rows of a frame, width).
    #[napi]
    pub fn from_float32_array(
        env: &Env,
        data: &[f32],
        shape: Vec<f64>,
        device: &Device,
        #[napi(ts_arg_type = "'pixels' | 'precomputed'")] kind: String,
    ) -> napi::Result<AsyncBlock<VisualFeatures>> {
        promise(
            env,
            || {
                let shape: Vec<usize> = shape
                    .iter()
                    .map(|length| size("a length of shape", *length))
                    .collect::<runtime::Result<_>>()?;
                let shape = <[usize; 3]>::try_from(shape).map_err(|shape| {
                    let message = format!("the shape {shape:?} is not (frames, rows of a frame, width)");
                    runtime::Error::new(runtime::ErrorCode::InvalidArgument, message)
                })?;
                let kind = word("kind", &kind, &FEATURE_KINDS)?;
                runtime::VisualFeatures::from_values(data.to_vec(), shape, device.get()?, kind)
            },
            Self::new,
        )
    }

    /// The frames of all parts, in their order. The parts stay open.
    #[napi]
    pub fn concatenate(
        env: &Env,
        parts: Vec<ClassInstance<VisualFeatures>>,
    ) -> napi::Result<AsyncBlock<VisualFeatures>> {
        promise(
            env,
            || {
                let parts: Vec<_> = parts.iter().map(|part| part.get()).collect::<runtime::Result<_>>()?;
                runtime::VisualFeatures::concatenate(parts)
            },
            Self::new,
        )
    }

    /// Frames.
    #[napi(getter)]
    pub fn frame_count(&self) -> napi::Result<u32> {
        call(|| Ok(self.get()?.frame_count() as u32))
    }

    /// Frames, rows of a frame, width.
    #[napi(getter)]
    pub fn shape(&self) -> napi::Result<Vec<u32>> {
        call(|| Ok(self.get()?.shape().iter().map(|length| *length as u32).collect()))
    }

    /// Frames that the encoder ran for to make these.
    #[napi(getter)]
    pub fn encoded_frame_count(&self) -> napi::Result<u32> {
        call(|| Ok(self.get()?.encoded_frames() as u32))
    }

    /// A copy of the values, row-major of `shape`.
    #[napi]
    pub fn to_float32_array(&self, env: &Env) -> napi::Result<AsyncBlock<Float32Array>> {
        float32_array(env, || Ok(self.get()?.values()))
    }

    /// Frees the memory. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

impl VisualFeatures {
    pub(crate) fn new(features: runtime::VisualFeatures) -> Self {
        Self { handle: Handle::new("VisualFeatures", features) }
    }

    pub(crate) fn get(&self) -> runtime::Result<Arc<runtime::VisualFeatures>> {
        self.handle.open()
    }
}
