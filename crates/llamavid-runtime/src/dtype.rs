//! What weights are computed in.

use candle_core::DType;

use crate::{Device, DeviceKind, Error, Result};

/// The caller's choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dtype {
    /// `f32` on the CPU, where it is both exact and fastest; `bf16` on a GPU, in which the models were trained.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
    /// 16 bits.
    F16,
}

impl Dtype {
    /// Parses `auto`, `f32`, `bf16` or `f16`; another text is `INVALID_ARGUMENT`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            other => Err(Error::argument(format!("the dtype {other:?} is none of auto, f32, bf16, f16"))),
        }
    }

    /// The choice for tensors on `device`.
    pub fn on(self, device: &Device) -> DType {
        self.for_kind(device.kind())
    }

    /// The choice for tensors on a device of this kind.
    pub fn for_kind(self, kind: DeviceKind) -> DType {
        match (self, kind) {
            (Self::F32, _) | (Self::Auto, DeviceKind::Cpu) => DType::F32,
            (Self::Bf16, _) | (Self::Auto, DeviceKind::Cuda) => DType::BF16,
            (Self::F16, _) => DType::F16,
        }
    }
}
