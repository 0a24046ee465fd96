//! What weights are computed in, and how many bits they are held in.

use candle_core::DType;
use llamavid_weights::Quantisation;

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

/// Parses the name of a block format, `q4_k`; another text is `INVALID_ARGUMENT`.
pub fn parse_quantisation(name: &str) -> Result<Quantisation> {
    Quantisation::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
        let known = Quantisation::ALL.map(Quantisation::name).join(", ");
        Error::argument(format!("the format {name:?} is none of {known}"))
    })
}

/// What weights are computed in, and whether matrices are held in fewer bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Precision {
    /// What they are computed in.
    pub dtype: Dtype,
    /// How matrices are stored as they are read. None leaves those of a file as they are there.
    pub quantisation: Option<Quantisation>,
}

impl Precision {
    /// Parses `16bit`, `8bit` or `4bit`; another text is `INVALID_ARGUMENT`.
    pub fn parse_bits(name: &str) -> Result<Option<Quantisation>> {
        match name {
            "16bit" => Ok(None),
            "8bit" => Ok(Some(Quantisation::Q8_0)),
            "4bit" => Ok(Some(Quantisation::Q4K)),
            other => Err(Error::argument(format!("weights of {other:?}: there are 16bit, 8bit and 4bit"))),
        }
    }
}
