//! Question-independent features of frames.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use llamavid_models::token_generation::FeatureKind;

use crate::{Cancellation, Device, Error, Reply, Result};

/// Features (F, R, V) on a device, R rows a frame.
#[derive(Debug, Clone)]
pub struct VisualFeatures {
    tensor: Tensor,
    kind: FeatureKind,
    device: Arc<Device>,
}

impl VisualFeatures {
    pub(crate) fn new(tensor: Tensor, kind: FeatureKind, device: Arc<Device>) -> Result<Self> {
        let (_frames, _rows, _width) = tensor.dims3()?;
        Ok(Self { tensor, kind, device })
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
            let (_, rows, width) = part.tensor.dims3()?;
            let (_, first_rows, first_width) = first.tensor.dims3()?;
            let equal = (rows, width) == (first_rows, first_width)
                && part.kind == first.kind
                && part.tensor.dtype() == first.tensor.dtype()
                && Arc::ptr_eq(&part.device, &first.device);
            if !equal {
                return Err(Error::argument(format!(
                    "part {index} is {}, part 0 is {}: they cannot be concatenated",
                    part.facts(),
                    first.facts()
                )));
            }
        }
        let (kind, device, dtype) = (first.kind, first.device.clone(), first.tensor.dtype());
        let (_, rows, width) = first.tensor.dims3()?;
        let frames = parts.iter().map(|part| part.frame_count()).sum::<usize>();
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
                whole.slice_set(&part.tensor.contiguous()?, 0, end)?;
            }
            Self::new(whole, kind, owner)
        }))
    }

    /// F.
    pub fn frame_count(&self) -> usize {
        self.tensor.dims()[0]
    }

    /// (F, R, V).
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Whether a frame's rows start with the class row.
    pub fn kind(&self) -> FeatureKind {
        self.kind
    }

    /// The device that holds them.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// A copy of the values, row-major of the shape.
    pub fn values(&self) -> Reply<Vec<f32>> {
        values_of(&self.tensor, &self.device)
    }

    fn facts(&self) -> String {
        format!("{:?} of {:?}, {:?}, on {}", self.shape(), self.kind, self.tensor.dtype(), self.device.name())
    }
}

/// A copy of a tensor's values in main memory.
pub(crate) fn values_of(tensor: &Tensor, device: &Device) -> Reply<Vec<f32>> {
    let tensor = tensor.clone();
    device.run_once(&Cancellation::default(), move |_| {
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    })
}
