//! Turns a picture into the pixels that the visual encoder reads.
//!
//! Reference: the CLIP image processor (transformers 4.31), which resizes with Pillow. Every byte equals
//! Pillow's, because the model saw Pillow's pictures in training.

mod resample;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use resample::{Axis, resample};

/// What happens to the parts of a picture that do not fit a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The shorter side fills the square, what sticks out is cut off. Video always does this.
    Crop,
    /// The longer side fills the square, the rest takes the colour of `mean`.
    Pad,
}

/// How pictures become pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Side of the resulting square.
    pub size: usize,
    /// Mean of red, green and blue, of values between 0 and 1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, of values between 0 and 1.
    pub std: [f32; 3],
    /// Crop or pad.
    pub fit: Fit,
}

/// A borrowed picture of 8-bit red, green and blue.
#[derive(Debug, Clone, Copy)]
pub struct RgbImage<'a> {
    /// Rows from top to bottom, three bytes a pixel. The last row may end with its last pixel.
    pub data: &'a [u8],
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from the start of one row to the start of the next, at least `3 * width`.
    pub stride: usize,
}

impl Preprocessing {
    /// Mean and standard deviation of CLIP, which every published model uses.
    #[allow(clippy::excessive_precision, reason = "written as in the published configuration")]
    pub fn clip(size: usize, fit: Fit) -> Self {
        Self {
            size,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.261_302_6, 0.275_777_1],
            fit,
        }
    }

    /// Gives `size` rows of `size` pixels of red, green and blue, as Pillow's bicubic resize makes them.
    ///
    /// Computes what the square shows and nothing else, so that memory stays bounded for a picture of any shape.
    ///
    /// # Errors
    /// [`Error::Argument`] when `size` or a side of the picture is 0, or its bytes do not fit its sides.
    pub fn resize(&self, image: &RgbImage) -> Result<Vec<u8>> {
        let size = self.size;
        if size == 0 {
            return Err(Error::Argument("pixels need a size of at least 1, not 0".into()));
        }
        image.check()?;
        let [across, down] = self.axes(image.width, image.height)?;
        Ok(resample(image, &across, &down, size, self.padding_colour()))
    }

    /// How a picture is resized from left to right and from top to bottom.
    fn axes(&self, width: usize, height: usize) -> Result<[Axis; 2]> {
        let size = self.size;
        let (short, long) = (width.min(height), width.max(height));
        match self.fit {
            Fit::Crop => {
                // Equals the reference's int(size * long / short): the quotient is never so close to the next
                // integer that a double would reach it.
                let scaled = size.checked_mul(long).map(|product| product / short).ok_or_else(|| {
                    Error::Argument(format!("a picture of {width}x{height} is too large to be resized"))
                })?;
                Ok([width, height].map(|length| {
                    let resized = if length == short { size } else { scaled };
                    Axis { length, padding: 0, padded: length, resized, first: (resized - size) / 2 }
                }))
            }
            Fit::Pad => Ok([width, height].map(|length| {
                let padding = (long - length) / 2;
                Axis { length, padding, padded: long, resized: size, first: 0 }
            })),
        }
    }

    /// Writes the picture as normalised red, green and blue planes, `3 * size * size` values.
    ///
    /// # Errors
    /// [`Error::Argument`] as for [`Preprocessing::resize`], or when `out` has another length.
    pub fn pixels(&self, image: &RgbImage, out: &mut [f32]) -> Result<()> {
        let expected = self.size.checked_mul(self.size).and_then(|plane| plane.checked_mul(3));
        if expected != Some(out.len()) {
            return Err(Error::Argument(format!(
                "pixels of size {size} are 3 x {size} x {size} values, the destination has {}",
                out.len(),
                size = self.size
            )));
        }
        let resized = self.resize(image)?;
        let plane = self.size * self.size;
        for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
            let table = self.normalised(channel);
            for (value, pixel) in out.iter_mut().zip(resized.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
        Ok(())
    }

    /// The normalised value of each byte, in the reference's steps: double to float before the mean is taken.
    fn normalised(&self, channel: usize) -> [f32; 256] {
        std::array::from_fn(|byte| {
            let value = (byte as f64 * (1.0 / 255.0)) as f32;
            (value - self.mean[channel]) / self.std[channel]
        })
    }

    fn padding_colour(&self) -> [u8; 3] {
        self.mean.map(|mean| (255.0 * f64::from(mean)) as u8)
    }
}

impl RgbImage<'_> {
    fn check(&self) -> Result<()> {
        let Self { data, width, height, stride } = *self;
        if width == 0 || height == 0 {
            return Err(Error::Argument(format!("a picture of {width}x{height} has no pixels")));
        }
        let row = width.checked_mul(3).filter(|row| *row <= stride).ok_or_else(|| {
            Error::Argument(format!("a row of {width} pixels does not fit a stride of {stride} bytes"))
        })?;
        let needed = stride.checked_mul(height - 1).and_then(|rows| rows.checked_add(row));
        match needed {
            Some(needed) if needed <= data.len() => Ok(()),
            _ => Err(Error::Argument(format!(
                "a picture of {width}x{height} with a stride of {stride} bytes does not fit {} bytes",
                data.len()
            ))),
        }
    }

    /// The bytes of one row, without what the stride adds.
    fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.stride..][..3 * self.width]
    }
}
