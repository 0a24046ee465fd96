//! Pictures, pixels and the channel between a worker thread and its owner.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, Fit, Reply, RgbImage, decode_picture, run_aside};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, Float32Array, Uint8Array};
use napi_derive::napi;

use crate::arguments::{size, whole, word};
use crate::handle::Handle;
use crate::promise::{call, promise};

const FITS: [(&str, Fit); 2] = [("crop", Fit::Crop), ("pad", Fit::Pad)];

/// How frames become pixels.
#[napi(object)]
pub struct Preprocessing {
    /// Side of the resulting square, in pixels.
    pub size: f64,
    /// Mean of red, green and blue, of values between 0 and 1.
    pub mean: Vec<f64>,
    /// Standard deviation of red, green and blue, of values between 0 and 1.
    pub std: Vec<f64>,
    /// What happens to the parts of a frame that do not fit a square.
    #[napi(ts_type = "'crop' | 'pad'")]
    pub fit: String,
}

impl Preprocessing {
    fn parse(&self) -> runtime::Result<runtime::Preprocessing> {
        let triple = |name: &str, values: &[f64]| {
            let [red, green, blue] = *values else {
                let message =
                    format!("{name} has {} values, but must have those of red, green and blue", values.len());
                return Err(runtime::Error::new(runtime::ErrorCode::InvalidArgument, message));
            };
            // They were f32 before they were JavaScript's.
            Ok([red as f32, green as f32, blue as f32])
        };
        Ok(runtime::Preprocessing {
            size: size("size", self.size)?,
            mean: triple("mean", &self.mean)?,
            std: triple("std", &self.std)?,
            fit: word("fit", &self.fit, &FITS)?,
        })
    }
}

impl From<&runtime::Preprocessing> for Preprocessing {
    fn from(preprocessing: &runtime::Preprocessing) -> Self {
        let fit = FITS.iter().find(|(_, fit)| *fit == preprocessing.fit).map_or("crop", |(name, _)| name);
        Self {
            size: preprocessing.size as f64,
            mean: preprocessing.mean.map(f64::from).to_vec(),
            std: preprocessing.std.map(f64::from).to_vec(),
            fit: fit.to_owned(),
        }
    }
}

/// A frame of 8-bit red, green and blue. Its bytes are read in place.
#[napi(object, object_to_js = false)]
pub struct RgbFrame {
    /// Rows from top to bottom, three bytes a pixel.
    pub data: Uint8Array,
    /// Pixels in a row.
    pub width: f64,
    /// Rows.
    pub height: f64,
    /// Bytes from one row to the next; default `3 * width`.
    pub stride: Option<f64>,
}

fn rgb(data: &[u8], width: f64, height: f64, stride: Option<f64>) -> runtime::Result<RgbImage<'_>> {
    let width = size("width", width)?;
    let stride = stride.map(|stride| size("stride", stride)).transpose()?;
    Ok(RgbImage {
        data,
        width,
        height: size("height", height)?,
        // Too wide a frame is refused with its width, not with an overflow.
        stride: stride.unwrap_or(width.saturating_mul(3)),
    })
}

/// A decoded picture: rows without gaps, three bytes a pixel.
#[napi(object, object_from_js = false)]
pub struct DecodedImage {
    /// Red, green and blue of each pixel.
    pub data: Uint8Array,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Decodes a JPEG, PNG, WebP or GIF (its first frame), turned as its EXIF orientation says.
#[napi]
pub fn decode_image(env: &Env, bytes: &[u8]) -> napi::Result<AsyncBlock<DecodedImage>> {
    // The file is copied, and it is small: JavaScript may change its bytes while another thread reads.
    let bytes = bytes.to_vec();
    promise(
        env,
        move || Ok(run_aside("llamavid picture", move || decode_picture(&bytes))),
        |picture| DecodedImage {
            width: picture.width as u32,
            height: picture.height as u32,
            data: picture.data.into(),
        },
    )
}

/// Pixels of frames, ready for the visual encoder. Holds main memory until `close`.
#[napi]
pub struct Pixels {
    handle: Handle<runtime::Pixels>,
}

#[napi]
impl Pixels {
    /// Resizes and normalises frames, in their order.
    #[napi(factory)]
    pub fn from_rgb(frames: Vec<RgbFrame>, p: Preprocessing) -> napi::Result<Self> {
        call(|| {
            let images: runtime::Result<Vec<_>> = frames
                .iter()
                .map(|frame| rgb(&frame.data, frame.width, frame.height, frame.stride))
                .collect();
            Ok(Self::new(runtime::Pixels::from_rgb(&images?, &p.parse()?)?))
        })
    }

    /// Frames.
    #[napi(getter)]
    pub fn frame_count(&self) -> napi::Result<u32> {
        call(|| Ok(self.get()?.frame_count() as u32))
    }

    /// Side of a frame in pixels.
    #[napi(getter)]
    pub fn size(&self) -> napi::Result<u32> {
        call(|| Ok(self.get()?.size() as u32))
    }

    /// A copy of the values: frames, then red, green and blue, then rows, then columns.
    #[napi]
    pub fn to_float32_array(&self) -> napi::Result<Float32Array> {
        call(|| Ok(Float32Array::new(self.get()?.values().to_vec())))
    }

    /// Frees the memory. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

impl Pixels {
    fn new(pixels: runtime::Pixels) -> Self {
        Self { handle: Handle::new("Pixels", pixels) }
    }

    pub(crate) fn get(&self) -> runtime::Result<Arc<runtime::Pixels>> {
        self.handle.open()
    }
}

/// Frames made ready on one thread and taken on another.
#[napi]
pub struct PixelChannel {
    handle: Handle<runtime::PixelChannel>,
    /// Whether closing this object closes the channel.
    owner: bool,
}

#[napi]
impl PixelChannel {
    /// A new channel, which closes with this object.
    #[napi(constructor)]
    pub fn new(p: Preprocessing) -> napi::Result<Self> {
        call(|| {
            let channel = runtime::PixelChannel::new(p.parse()?)?;
            Ok(Self { handle: Handle::new("pixel channel", channel), owner: true })
        })
    }

    /// Another thread's channel by its number.
    #[napi(factory)]
    pub fn open(id: f64) -> napi::Result<Self> {
        call(|| {
            let number = u32::try_from(whole("id", id)?).unwrap_or(u32::MAX);
            let channel = runtime::PixelChannel::open(number)?;
            Ok(Self { handle: Handle::new("pixel channel", channel), owner: false })
        })
    }

    /// Its number.
    #[napi(getter)]
    pub fn id(&self) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.id()))
    }

    /// Makes a frame's pixels in the calling thread and appends them. The bytes are read in place.
    #[napi]
    pub fn push(&self, data: &[u8], width: f64, height: f64, stride: f64) -> napi::Result<()> {
        call(|| self.handle.open()?.push(&rgb(data, width, height, Some(stride))?))
    }

    /// Frames that wait.
    #[napi(getter)]
    pub fn length(&self) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.len()? as u32))
    }

    /// Takes the first frames.
    #[napi]
    pub fn take(&self, count: f64) -> napi::Result<Pixels> {
        call(|| Ok(Pixels::new(self.handle.open()?.take(size("count", count)?)?)))
    }

    /// Ends the channel for both threads when its maker calls it, else this thread's use of it.
    #[napi]
    pub fn close(&self) {
        if let Some(channel) = self.handle.close()
            && self.owner
        {
            channel.close();
        }
    }
}

impl Drop for PixelChannel {
    fn drop(&mut self) {
        self.close();
    }
}

/// A copy of a tensor's values as a promise.
pub(crate) fn float32_array(
    env: &Env,
    values: impl FnOnce() -> runtime::Result<Reply<Vec<f32>>>,
) -> napi::Result<AsyncBlock<Float32Array>> {
    promise(env, values, Float32Array::new)
}
