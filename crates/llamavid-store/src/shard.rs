//! A shard: features and times of some frames in a row, in one safetensors file.
//!
//! `features` (F, R, V) are of `F16`, `BF16`, `F32` or `I8`, the last with `scales` (F, R): a row is its bytes times its scale.
//! `times` (F) are seconds, `F64`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use memmap2::{Advice, Mmap};
use safetensors::{Dtype, SafeTensors, View};

use crate::error::{Error, Result};
use crate::{Precision, SHARD_FRAMES, VERSION, files};

/// The metadata's only field: several would come in any order.
const MARK: &str = "llamavid";

/// Features and times of frames in a row.
#[derive(Debug, Clone, Copy)]
pub struct Frames<'a> {
    /// F, R, V.
    pub shape: [usize; 3],
    /// Row-major.
    pub values: &'a [f32],
    /// Whether the values were computed in bf16, whose range f16 does not have.
    pub from_bf16: bool,
    /// Seconds, rising, one a frame.
    pub times: &'a [f64],
}

/// What a shard says of itself: whose it is, and which.
fn mark(key: &str, number: usize) -> String {
    format!("{VERSION} {key} {number}")
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The bytes of a shard's file.
pub(crate) fn encode(frames: Frames<'_>, precision: Precision, key: &str, number: usize) -> Result<Vec<u8>> {
    let Frames { shape, values, from_bf16, times } = frames;
    let [count, rows, width] = shape;
    let mut tensors = vec![(
        "times",
        Stored {
            dtype: Dtype::F64,
            shape: vec![count],
            bytes: times.iter().flat_map(|seconds| seconds.to_le_bytes()).collect(),
        },
    )];
    let (dtype, bytes) = match precision {
        Precision::Eight => {
            let mut scales = Vec::with_capacity(count * rows * 4);
            let mut bytes = Vec::with_capacity(values.len());
            for row in values.chunks_exact(width) {
                let scale = row.iter().fold(0f32, |largest, value| largest.max(value.abs())) / 127.;
                scales.extend(scale.to_le_bytes());
                // A row of zeros has no scale; anything else is at most 127 of it.
                let unit = if scale > 0. { scale.recip() } else { 0. };
                bytes.extend(row.iter().map(|value| (value * unit).round().clamp(-127., 127.) as i8 as u8));
            }
            tensors.push(("scales", Stored { dtype: Dtype::F32, shape: vec![count, rows], bytes: scales }));
            (Dtype::I8, bytes)
        }
        Precision::Sixteen if from_bf16 => {
            (Dtype::BF16, values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect())
        }
        // Beyond the range of f16 there is no rounding.
        Precision::Sixteen if values.iter().any(|value| f16::from_f32(*value).is_infinite()) => {
            (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        Precision::Sixteen => {
            (Dtype::F16, values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect())
        }
    };
    tensors.push(("features", Stored { dtype, shape: shape.to_vec(), bytes }));
    let metadata = HashMap::from([(MARK.to_owned(), mark(key, number))]);
    safetensors::serialize(tensors, Some(metadata))
        .map_err(|error| Error::Argument(format!("features of shape {shape:?} cannot be stored: {error}")))
}

/// A shard's file, mapped and understood.
#[derive(Debug)]
pub(crate) struct Shard {
    map: Mmap,
    dtype: Dtype,
    shape: [usize; 3],
    features: Range<usize>,
    scales: Range<usize>,
    pub(crate) times: Vec<f64>,
}

impl Shard {
    /// Opens shard `number` of the video `key`; none where there is no such file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a file that is cut, damaged, of another version or another video's.
    pub(crate) fn open(path: &Path, key: &str, number: usize) -> Result<Option<Self>> {
        let Some(map) = files::map(path)? else { return Ok(None) };
        let damaged = |problem: String| Error::invalid(path, problem);
        // The library checks that the ranges fit the shapes, do not overlap and fill the file.
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let told = metadata.metadata().as_ref().and_then(|fields| fields.get(MARK));
        if told != Some(&mark(key, number)) {
            let told = told.map_or("nobody's", String::as_str);
            return Err(damaged(format!("is {told:?}, expected {:?}", mark(key, number))));
        }
        let find = |name: &str| {
            let info = metadata.info(name).ok_or_else(|| damaged(format!("has no tensor `{name}`")))?;
            // The header's length, then the header.
            let start = 8 + header;
            Ok((info.dtype, info.shape.clone(), start + info.data_offsets.0..start + info.data_offsets.1))
        };
        let (dtype, shape, features) = find("features")?;
        let (times_dtype, times_shape, times) = find("times")?;
        let Ok(shape) = <[usize; 3]>::try_from(shape) else {
            return Err(damaged("its features are not (frames, rows, width)".to_owned()));
        };
        let [count, rows, width] = shape;
        let scales = match dtype {
            Dtype::I8 => {
                let (scales_dtype, scales_shape, scales) = find("scales")?;
                if (scales_dtype, scales_shape) != (Dtype::F32, vec![count, rows]) {
                    return Err(damaged("its scales are not one a row".to_owned()));
                }
                scales
            }
            Dtype::F16 | Dtype::BF16 | Dtype::F32 => 0..0,
            other => return Err(damaged(format!("its features are of type {other:?}"))),
        };
        if !(1..=SHARD_FRAMES).contains(&count) || rows == 0 || width == 0 {
            return Err(damaged(format!("its features have the shape {shape:?}")));
        }
        if (times_dtype, times_shape) != (Dtype::F64, vec![count]) {
            return Err(damaged("its times are not one a frame".to_owned()));
        }
        let times: Vec<f64> = map[times].as_chunks().0.iter().copied().map(f64::from_le_bytes).collect();
        if !times.iter().all(|seconds| seconds.is_finite()) || !times.is_sorted() {
            return Err(damaged("its times do not rise".to_owned()));
        }
        Ok(Some(Self { map, dtype, shape, features, scales, times }))
    }

    /// F.
    pub(crate) fn frames(&self) -> usize {
        self.shape[0]
    }

    /// R, V.
    pub(crate) fn frame_shape(&self) -> [usize; 2] {
        [self.shape[1], self.shape[2]]
    }

    /// Whether its numbers are f16's.
    pub(crate) fn is_half(&self) -> bool {
        self.dtype == Dtype::F16
    }

    /// Appends the f16 numbers of `count` frames from `start` on. For a shard of f16.
    pub(crate) fn read_half(&self, start: usize, count: usize, out: &mut Vec<f16>) {
        out.extend(self.bytes(start, count).as_chunks().0.iter().copied().map(f16::from_le_bytes));
    }

    /// Appends the numbers of `count` frames from `start` on.
    pub(crate) fn read(&self, start: usize, count: usize, out: &mut Vec<f32>) {
        let bytes = self.bytes(start, count);
        match self.dtype {
            Dtype::F16 => {
                out.extend(bytes.as_chunks().0.iter().copied().map(|two| f16::from_le_bytes(two).to_f32()));
            }
            Dtype::BF16 => {
                out.extend(bytes.as_chunks().0.iter().copied().map(|two| bf16::from_le_bytes(two).to_f32()));
            }
            Dtype::I8 => {
                let [rows, width] = self.frame_shape();
                let scales = self.map[self.scales.clone()].as_chunks().0;
                let scales = scales.iter().copied().map(f32::from_le_bytes).skip(start * rows);
                for (row, scale) in bytes.chunks_exact(width).zip(scales) {
                    out.extend(row.iter().map(|byte| f32::from(*byte as i8) * scale));
                }
            }
            // F32: `open` lets no other in.
            _ => out.extend(bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes)),
        }
    }

    /// Asks the system for the pages that will be read next.
    pub(crate) fn prefetch(&self) {
        // Where the system does not know how, they come when they are read.
        #[cfg(unix)]
        let _ = self.map.advise(Advice::WillNeed);
    }

    /// Gives the memory of its pages back to the system, which reads them from the file again when they are asked for.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the map is shared with an unchanged file and only read, so its pages come back as they were.
            let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    fn bytes(&self, start: usize, count: usize) -> &[u8] {
        let frame = self.features.len() / self.frames();
        let first = self.features.start + start * frame;
        &self.map[first..first + count * frame]
    }
}
