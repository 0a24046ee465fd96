//! Numbers on their way to a device.

use candle_core::{Device, Result, Shape, Tensor};

/// Memory that a CUDA device fetches numbers from while the host goes on. Other memory it would read only once it has done all that it was
/// given before.
#[derive(Debug, Default)]
pub struct Staging {
    #[cfg(feature = "cuda")]
    pinned: Option<crate::cuda::Pinned>,
}

impl Staging {
    /// `parts` one behind the other, as a tensor on `device`.
    ///
    /// # Errors
    /// Another number of numbers than `shape` has; no memory on the device, or none that it can fetch from.
    pub fn upload(&mut self, parts: &[&[f32]], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return crate::cuda::upload(&mut self.pinned, parts, shape.into(), device);
        }
        Tensor::from_vec(parts.concat(), shape.into(), device)
    }
}
