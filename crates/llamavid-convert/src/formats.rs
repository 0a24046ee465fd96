//! Formats of numbers: what can be asked for, and what a matrix gets.

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use llamavid_runtime::{Error, ErrorCode, Result};

/// Block formats of the language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantisation {
    /// 8 bits and a scale for 32 numbers.
    Q8_0,
    /// 4 bits and a scale for 32 numbers.
    Q4_0,
    /// 4 bits, scales in two steps for 256 numbers; some matrices in 6 bits.
    Q4K,
    /// 5 bits, otherwise the same.
    Q5K,
    /// 6 bits.
    Q6K,
}

impl Quantisation {
    /// By the names of the command line.
    pub const ALL: [(&str, Self); 5] = [
        ("q8_0", Self::Q8_0),
        ("q4_0", Self::Q4_0),
        ("q4_k", Self::Q4K),
        ("q5_k", Self::Q5K),
        ("q6_k", Self::Q6K),
    ];

    /// Parses one of those names.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for another one.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
            let known = Self::ALL.map(|(name, _)| name).join(", ");
            Error::new(ErrorCode::InvalidArgument, format!("the format {name:?} is none of {known}"))
        })
    }

    /// The format of most matrices.
    pub fn format(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// llama.cpp's number of the usual mix.
    pub fn file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4K => 15,
            Self::Q5K => 17,
            Self::Q6K => 18,
        }
    }
}

/// `format` where its blocks divide the columns, else the next finer one whose blocks do.
pub fn fitting(format: GgmlDType, columns: usize) -> GgmlDType {
    [format, GgmlDType::Q8_0]
        .into_iter()
        .find(|format| columns.is_multiple_of(format.block_size()))
        .unwrap_or(GgmlDType::F16)
}

/// The format of a weight of the visual encoder or the token generator in 8 bits: matrices only, no tables.
pub fn eight_bit(ours: &str, shape: &[usize], stored: DType) -> GgmlDType {
    let is_table = ours.contains("embeddings.");
    match shape {
        [_rows, columns] if !is_table => fitting(GgmlDType::Q8_0, *columns),
        _ => match stored {
            DType::F16 => GgmlDType::F16,
            _ => GgmlDType::F32,
        },
    }
}

/// How a format is named in a manifest.
pub fn name(format: GgmlDType) -> &'static str {
    match format {
        GgmlDType::F32 => "F32",
        GgmlDType::F16 => "F16",
        GgmlDType::BF16 => "BF16",
        GgmlDType::Q4_0 => "Q4_0",
        GgmlDType::Q8_0 => "Q8_0",
        GgmlDType::Q4K => "Q4_K",
        GgmlDType::Q5K => "Q5_K",
        GgmlDType::Q6K => "Q6_K",
        _ => "other",
    }
}
