//! Question-independent features of frames, in a device's memory or in a store.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Device as TensorDevice, Tensor};
use llamavid_models::token_generation::FeatureKind;
use llamavid_store::{Block, SHARD_FRAMES, StoredFeatures};

use crate::{Cancellation, Device, Error, Reply, Result};

/// Features (F, R, V) for a device, R rows a frame.
#[derive(Debug, Clone)]
pub struct VisualFeatures {
    numbers: Numbers,
    shape: [usize; 3],
    kind: FeatureKind,
    encoded_frames: usize,
    device: Arc<Device>,
}

/// Where the numbers are.
#[derive(Debug, Clone)]
enum Numbers {
    /// On the device.
    Held(Tensor),
    /// In mapped files, from this row of each frame on: only what is worked on comes into memory.
    Stored(Arc<StoredFeatures>, usize),
}

impl VisualFeatures {
    pub(crate) fn new(tensor: Tensor, kind: FeatureKind, device: Arc<Device>) -> Result<Self> {
        let shape = tensor.dims3()?.into();
        Ok(Self { numbers: Numbers::Held(tensor), shape, kind, encoded_frames: 0, device })
    }

    /// Those of a store, which the encoder made of pixels; as `Precomputed` ones without their class rows.
    pub(crate) fn stored(features: Arc<StoredFeatures>, kind: FeatureKind, device: Arc<Device>) -> Self {
        let [frames, rows, width] = features.shape();
        let first_row = usize::from(kind == FeatureKind::Precomputed);
        let shape = [frames, rows.saturating_sub(first_row), width];
        Self { numbers: Numbers::Stored(features, first_row), shape, kind, encoded_frames: 0, device }
    }

    /// The same, which the encoder ran for `frames` frames to make.
    pub(crate) fn encoded(self, frames: usize) -> Self {
        Self { encoded_frames: frames, ..self }
    }

    /// Takes values that were made before, row-major of `shape` (F, R, V).
    pub fn from_values(
        values: Vec<f32>,
        shape: [usize; 3],
        device: Arc<Device>,
        kind: FeatureKind,
    ) -> Result<Reply<Self>> {
        let count = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        if count != Some(values.len()) || values.is_empty() {
            let found = values.len();
            return Err(Error::argument(format!(
                "features of shape {shape:?} cannot be made of {found} values"
            )));
        }
        let owner = device.clone();
        Ok(device.run_once(&Cancellation::default(), move |on| {
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                let value = values[index];
                return Err(Error::argument(format!(
                    "value {index} of the features is {value}, not a finite number"
                )));
            }
            Self::new(Tensor::from_vec(values, &shape, on)?, kind, owner)
        }))
    }

    /// The frames of all parts, in their order. A part that nobody else holds is freed as soon as it is copied, so that
    /// features of hours never exist twice.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` without a part, or when kinds, devices or rows differ.
    pub fn concatenate(parts: Vec<Arc<Self>>) -> Result<Reply<Self>> {
        let Some(first) = parts.first() else {
            return Err(Error::argument("there are no features to concatenate"));
        };
        for (index, part) in parts.iter().enumerate() {
            let equal = part.shape[1..] == first.shape[1..]
                && part.kind == first.kind
                && part.dtype() == first.dtype()
                && Arc::ptr_eq(&part.device, &first.device);
            if !equal {
                return Err(Error::argument(format!(
                    "part {index} is {}, part 0 is {}: they cannot be concatenated",
                    part.facts(),
                    first.facts()
                )));
            }
        }
        let (kind, device, dtype) = (first.kind, first.device.clone(), first.dtype());
        let [_, rows, width] = first.shape;
        let frames = parts.iter().map(|part| part.frame_count()).sum::<usize>();
        let encoded_frames = parts.iter().map(|part| part.encoded_frames).sum();
        let owner = device.clone();
        Ok(device.run_once(&Cancellation::default(), move |on| {
            if let [only] = parts.as_slice() {
                return Ok(Self::clone(only));
            }
            let whole = Tensor::zeros((frames, rows, width), dtype, on)?;
            let mut end = frames;
            // The last one first: memory goes back to the system from where it was taken last.
            for part in parts.into_iter().rev() {
                end -= part.frame_count();
                whole.slice_set(&part.block(0, part.frame_count(), on)?.contiguous()?, 0, end)?;
            }
            Ok(Self::new(whole, kind, owner)?.encoded(encoded_frames))
        }))
    }

    /// F.
    pub fn frame_count(&self) -> usize {
        self.shape[0]
    }

    /// (F, R, V).
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Frames that the encoder ran for to make these: none for stored ones, and none for a frame that equals the one before it.
    pub fn encoded_frames(&self) -> usize {
        self.encoded_frames
    }

    /// Whether a frame's rows start with the class row.
    pub fn kind(&self) -> FeatureKind {
        self.kind
    }

    /// The device that holds them.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What the numbers are held in; stored ones are f32 once they are read, whatever they are in the file.
    pub(crate) fn dtype(&self) -> DType {
        match &self.numbers {
            Numbers::Held(tensor) => tensor.dtype(),
            Numbers::Stored(..) => DType::F32,
        }
    }

    /// `count` frames from `start` on, (count, R, V). For the device's thread: stored ones are read here.
    pub(crate) fn block(&self, start: usize, count: usize, on: &TensorDevice) -> Result<Tensor> {
        let [_, rows, width] = self.shape;
        let (stored, first_row) = match &self.numbers {
            Numbers::Held(tensor) => return Ok(tensor.narrow(0, start, count)?),
            Numbers::Stored(stored, first_row) => (stored.read(start, count)?, *first_row),
        };
        let shape = (count, first_row + rows, width);
        let block = match stored {
            // Half of the bytes go to a graphics processor.
            Block::Half(values) => Tensor::from_vec(values, shape, on)?.to_dtype(DType::F32)?,
            Block::Single(values) => Tensor::from_vec(values, shape, on)?,
        };
        Ok(block.narrow(1, first_row, rows)?)
    }

    /// A copy of the values, row-major of the shape.
    pub fn values(&self) -> Reply<Vec<f32>> {
        let features = self.clone();
        let mut values = Vec::new();
        let mut done = 0;
        self.device.run(&Cancellation::default(), move |on| {
            let count = SHARD_FRAMES.min(features.frame_count() - done);
            let block = features.block(done, count, on)?;
            values.extend(block.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
            done += count;
            Ok(match done < features.frame_count() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(std::mem::take(&mut values)),
            })
        })
    }

    fn facts(&self) -> String {
        format!("{:?} of {:?}, {:?}, on {}", self.shape, self.kind, self.dtype(), self.device.name())
    }
}

/// A copy of a tensor's values in main memory.
pub(crate) fn values_of(tensor: &Tensor, device: &Device) -> Reply<Vec<f32>> {
    let tensor = tensor.clone();
    device.run_once(&Cancellation::default(), move |_| {
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    })
}
