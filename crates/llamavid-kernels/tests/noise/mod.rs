//! Numbers for tests.

use candle_core::{Device, Tensor};

/// Those of the unit tests.
#[path = "../../src/noise.rs"]
mod numbers;

/// Numbers between -1 and 1 that follow no pattern.
pub fn noise(shape: &[usize], seed: u32) -> Tensor {
    Tensor::from_vec(numbers::noise(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}
