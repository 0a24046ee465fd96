//! How rows of numbers are stored in fewer bits: blocks of whole numbers with a scale each, as GGUF files hold them.
//!
//! Reference: the block formats of ggml. candle makes the blocks; they are read here, straight from bytes that may lie
//! in a mapped file at any address.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::processor::{Processor, processor};
use crate::rows::rows_of_a_task;
use crate::vector::{multiply_add, widest};

/// Numbers of the larger blocks.
const LARGE: usize = 256;
/// Numbers of the smaller blocks.
const SMALL: usize = 32;

/// A way to store a row of numbers. The numbers of a block share a scale; the first three have no blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 bits a number, as they are.
    F32,
    /// 16 bits a number.
    F16,
    /// 16 bits a number, with the range of 32.
    BF16,
    /// 8.5 bits a number.
    Q8_0,
    /// 4.5 bits a number, symmetric around 0.
    Q4_0,
    /// 4.5 bits a number, in large blocks with a smallest value for each eighth.
    Q4K,
    /// 5.5 bits a number, the same.
    Q5K,
    /// 6.6 bits a number, in large blocks with a scale for each sixteenth.
    Q6K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// The name that is in use for it: `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Numbers of a block.
    pub fn block_length(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 => SMALL,
            Self::Q4K | Self::Q5K | Self::Q6K => LARGE,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `columns` numbers; none when they do not fill its blocks.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let whole = columns.is_multiple_of(self.block_length());
        whole.then(|| (columns / self.block_length()).checked_mul(self.block_bytes())).flatten()
    }

    /// Stores rows of `columns` finite numbers, one after the other.
    ///
    /// # Errors
    /// Rows that do not fill the format's blocks.
    pub fn encode(self, values: &[f32], columns: usize) -> Result<Vec<u8>> {
        let Some(row_bytes) = self.row_bytes(columns).filter(|_| columns > 0) else {
            bail!(
                "rows of {columns} numbers do not fill blocks of {} ({})",
                self.block_length(),
                self.name()
            );
        };
        let part = rows_of_a_task(columns);
        let mut bytes = vec![0u8; values.len() / columns * row_bytes];
        bytes
            .par_chunks_mut(part * row_bytes)
            .zip(values.par_chunks(part * columns))
            .try_for_each(|(bytes, values)| {
                let rows = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                bytes.copy_from_slice(&QTensor::quantize(&rows, self.of_candle())?.data()?);
                Ok(())
            })
            .map(|()| bytes)
    }

    /// Reads whole blocks; `values` has room for exactly their numbers, or what is left over of either stays as it is.
    pub fn decode(self, bytes: &[u8], values: &mut [f32]) {
        decode(processor(), self, bytes, values);
    }

    fn of_candle(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

/// Reads the numbers of whole blocks; `values` has room for exactly those.
pub(crate) fn decode(processor: Processor, format: BlockFormat, bytes: &[u8], values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::block_vectors::unpack(processor, format, bytes, values) {
        return;
    }
    decode_portable(format, bytes, values);
}

widest!(fn decode_portable(format: BlockFormat, bytes: &[u8], values: &mut [f32]) = decode_inline);

/// Reads block after block with `$read`. No function that takes another: what is called through a parameter is compiled
/// without the vectors of the function around it, 6 times as slow.
macro_rules! each {
    ($bytes:ident, $values:ident, $read:expr) => {{
        let (blocks, _) = $bytes.as_chunks();
        let (values, _) = $values.as_chunks_mut();
        for (block, values) in blocks.iter().zip(values) {
            $read(block, values);
        }
    }};
}

#[inline(always)]
fn decode_inline<const FUSED: bool>(format: BlockFormat, bytes: &[u8], values: &mut [f32]) {
    match format {
        BlockFormat::F32 => each!(bytes, values, f32s),
        BlockFormat::F16 => each!(bytes, values, f16s),
        BlockFormat::BF16 => each!(bytes, values, bf16s),
        BlockFormat::Q8_0 => each!(bytes, values, q8_0),
        BlockFormat::Q4_0 => each!(bytes, values, q4_0),
        BlockFormat::Q4K => each!(bytes, values, q4_k::<FUSED>),
        BlockFormat::Q5K => each!(bytes, values, q5_k::<FUSED>),
        BlockFormat::Q6K => each!(bytes, values, q6_k),
    }
}

#[inline(always)]
fn f32s(bytes: &[u8; 4], value: &mut [f32; 1]) {
    value[0] = f32::from_le_bytes(*bytes);
}

#[inline(always)]
fn f16s(bytes: &[u8; 2], value: &mut [f32; 1]) {
    value[0] = from_half(u16::from_le_bytes(*bytes));
}

#[inline(always)]
fn bf16s(bytes: &[u8; 2], value: &mut [f32; 1]) {
    value[0] = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
}

/// A 16-bit number, without a table or a call, so that it runs in vectors.
#[inline(always)]
fn from_half(bits: u16) -> f32 {
    let (sign, exponent) = (u32::from(bits & 0x8000) << 16, bits & 0x7c00);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Exponents of the two kinds differ by 112. One of 0 has no leading 1: it is given one, which is taken off again.
    let normal = magnitude + (112 << 23);
    let small = (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let special = magnitude | 0x7f80_0000;
    let value = if exponent == 0 { small } else { normal };
    let value = if exponent == 0x7c00 { special } else { value };
    f32::from_bits(value | sign)
}

#[inline(always)]
fn half_at<const BYTES: usize>(block: &[u8; BYTES], place: usize) -> f32 {
    from_half(u16::from_le_bytes([block[place], block[place + 1]]))
}

/// A scale, then 32 whole numbers from -128 to 127.
#[inline(always)]
fn q8_0(block: &[u8; 34], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    for (place, value) in values.iter_mut().enumerate() {
        *value = f32::from(block[2 + place] as i8) * scale;
    }
}

/// A scale, then 32 whole numbers from -8 to 7: the first half in the lower bits of 16 bytes, the second in the upper.
#[inline(always)]
fn q4_0(block: &[u8; 18], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    for place in 0..SMALL / 2 {
        let pair = block[2 + place];
        values[place] = f32::from((pair & 15) as i8 - 8) * scale;
        values[place + SMALL / 2] = f32::from((pair >> 4) as i8 - 8) * scale;
    }
}

/// Scale and least value of an eighth of a large block, 6 bits each in 12 bytes.
#[inline(always)]
fn scale_and_least(packed: &[u8], eighth: usize) -> (f32, f32) {
    let (scale, least) = if eighth < 4 {
        (packed[eighth] & 63, packed[eighth + 4] & 63)
    } else {
        let both = packed[eighth + 4];
        ((both & 15) | (packed[eighth - 4] >> 6 << 4), (both >> 4) | (packed[eighth] >> 6 << 4))
    };
    (f32::from(scale), f32::from(least))
}

/// Two scales, 12 bytes of scales and least values, then 256 whole numbers from 0 to 15: of each 64, the first half in
/// the lower bits of 32 bytes, the second in the upper.
#[inline(always)]
fn q4_k<const FUSED: bool>(block: &[u8; 144], values: &mut [f32; LARGE]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for quarter in 0..4 {
        let packed = &block[16 + 32 * quarter..][..32];
        for upper in 0..2 {
            let (factor, base) = scale_and_least(&block[4..16], 2 * quarter + upper);
            let (factor, base) = (scale * factor, least * base);
            let values = &mut values[64 * quarter + 32 * upper..][..32];
            for (value, packed) in values.iter_mut().zip(packed) {
                *value = multiply_add::<FUSED>(factor, f32::from(packed >> (4 * upper) & 15), -base);
            }
        }
    }
}

/// As [`q4_k`], with a fifth bit of each number in 32 bytes more: a bit for each eighth.
#[inline(always)]
fn q5_k<const FUSED: bool>(block: &[u8; 176], values: &mut [f32; LARGE]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let fifth = &block[16..48];
    for eighth in 0..8 {
        let packed = &block[48 + 32 * (eighth / 2)..][..32];
        let (factor, base) = scale_and_least(&block[4..16], eighth);
        let (factor, base) = (scale * factor, least * base);
        let values = &mut values[32 * eighth..][..32];
        for ((value, packed), fifth) in values.iter_mut().zip(packed).zip(fifth) {
            let number = (packed >> (4 * (eighth % 2)) & 15) | ((fifth >> eighth & 1) << 4);
            *value = multiply_add::<FUSED>(factor, f32::from(number), -base);
        }
    }
}

/// Four bits of each of 256 numbers from -32 to 31, the two above them, 16 scales, and a scale of these.
#[inline(always)]
fn q6_k(block: &[u8; 210], values: &mut [f32; LARGE]) {
    let scale = half_at(block, 208);
    for half in 0..2 {
        let (lower, upper) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        for quarter in 0..4 {
            for sixteenth in 0..2 {
                let factor = f32::from(block[192 + 8 * half + 2 * quarter + sixteenth] as i8) * scale;
                let first = 16 * sixteenth;
                let lower = &lower[32 * (quarter % 2) + first..][..16];
                let upper = &upper[first..][..16];
                let values = &mut values[128 * half + 32 * quarter + first..][..16];
                for ((value, lower), upper) in values.iter_mut().zip(lower).zip(upper) {
                    let number = (lower >> (4 * (quarter / 2)) & 15) | ((upper >> (2 * quarter) & 3) << 4);
                    *value = f32::from(number as i8 - 32) * factor;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern, of sizes that differ from block to block.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 7u32;
        (0..count)
            .map(|place| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let size = 1.0 + (place / 300) as f32;
                size * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
            })
            .collect()
    }

    #[test]
    fn reads_what_candle_reads() {
        for format in BlockFormat::ALL {
            let values = numbers(7 * 512);
            let bytes = format.encode(&values, 512).unwrap();
            assert_eq!(bytes.len(), 7 * format.row_bytes(512).unwrap());
            let tensor = Tensor::from_slice(&values, (7, 512), &Device::Cpu).unwrap();
            let expected = QTensor::quantize(&tensor, format.of_candle()).unwrap();
            assert_eq!(bytes, *expected.data().unwrap(), "{}", format.name());
            let expected = expected.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let mut actual = vec![f32::NAN; values.len()];
            decode(processor(), format, &bytes, &mut actual);
            let mut plain = vec![f32::NAN; values.len()];
            decode_inline::<false>(format, &bytes, &mut plain);
            for ((actual, plain), expected) in
                actual.iter().zip(&plain).zip(expected.to_vec1::<f32>().unwrap())
            {
                assert!((actual - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{}", format.name());
                assert!((plain - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{}", format.name());
            }
        }
    }

    #[test]
    fn half_precision_is_exact() {
        for bits in 0..=u16::MAX {
            let (actual, expected) = (from_half(bits), half::f16::from_bits(bits).to_f32());
            assert!(actual == expected || (actual.is_nan() && expected.is_nan()), "{bits:#x}: {actual}");
        }
    }

    #[test]
    fn rows_that_do_not_fill_blocks_are_refused() {
        assert!(BlockFormat::Q4K.encode(&[0.0; 384], 384).is_err());
        assert!(BlockFormat::Q8_0.encode(&[0.0; 40], 40).is_err());
        assert!(BlockFormat::Q8_0.encode(&[], 0).is_err());
    }
}
