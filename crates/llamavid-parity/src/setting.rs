//! What the cases are computed on and in, and how near the records that has to come.

use std::sync::Arc;

use candle_core::{DType, Device as TensorDevice};
use llamavid_runtime::{Device, DeviceKind};

use crate::report::TENSOR;

/// What rounding to 11 bits at every step comes to; on a CPU the furthest tensor of all records is 0.012 off.
const F16: f64 = 0.02;
/// To 8 bits, eight times as coarse.
const BF16: f64 = 8. * F16;

/// A device and a dtype.
pub struct Setting {
    /// What the weights and the steps are held in.
    pub dtype: DType,
    /// Largest difference of a tensor, by its largest magnitude.
    pub bound: f64,
    /// Keeps the device open.
    device: Arc<Device>,
}

impl Setting {
    /// Opens a device by its name for a dtype by its name.
    ///
    /// # Errors
    /// A text for people.
    pub fn open(device: &str, dtype: &str) -> Result<Self, String> {
        let device = Device::open(device).map_err(|error| match &error.hint {
            Some(hint) => format!("{error}\nhint: {hint}"),
            None => error.to_string(),
        })?;
        let (dtype, bound) = match (dtype, device.kind()) {
            // What the records' own README allows.
            ("f32", DeviceKind::Cpu) => (DType::F32, TENSOR),
            // Sums in another order.
            ("f32", DeviceKind::Cuda) => (DType::F32, 1e-3),
            ("f16", _) => (DType::F16, F16),
            ("bf16", _) => (DType::BF16, BF16),
            _ => return Err(format!("there are no bounds for {dtype}")),
        };
        Ok(Self { dtype, bound, device })
    }

    /// Where tensors are made.
    pub fn device(&self) -> &TensorDevice {
        self.device.tensors()
    }

    /// Whether ids and texts must be equal too: in fewer bits rounding decides between words that are nearly as likely.
    pub fn is_exact(&self) -> bool {
        self.dtype == DType::F32
    }

    /// What a tolerance of the CPU's 32-bit floats is here.
    pub fn loosened(&self, tolerance: f64) -> f64 {
        tolerance * self.bound / TENSOR
    }
}
