//! The block formats of ggml, in which GGUF files hold weights in fewer bits: blocks of small integers with a scale
//! each.
//!
//! Blocks are made by [`crate::formats::quantiser`] or candle; they are read here, straight from bytes that may lie in a mapped file at any
//! address. A large block is what ggml calls a super-block: 256 numbers, whose eighths or sixteenths have a scale of their own and, in
//! Q4_K and Q5_K, a min, which is subtracted.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::formats::quantiser;
use crate::instructions::processor::{Processor, processor};
use crate::instructions::vector::{multiply_add, widest};
use crate::operations::rows::rows_of_a_task;

/// Numbers of the larger blocks.
pub(crate) const LARGE: usize = 256;
/// Numbers of the smaller blocks.
pub(crate) const SMALL: usize = 32;

/// How a row of numbers is stored. The numbers of a block share a scale; the first three formats have no blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// int8 in blocks of 32: 8.5 bits a number.
    Q8_0,
    /// 4 bits in blocks of 32, symmetric around 0: 4.5 bits a number.
    Q4_0,
    /// 4 bits in large blocks, with a scale and a min for each eighth: 4.5 bits a number.
    Q4K,
    /// 5 bits, else as [`Self::Q4K`]: 5.5 bits a number.
    Q5K,
    /// 6 bits in large blocks, with a scale for each sixteenth: 6.6 bits a number.
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
        let mut bytes = vec![0u8; values.len() / columns * row_bytes];
        if matches!(self, Self::Q8_0 | Self::Q4K | Self::Q5K) {
            quantiser::encode(self, values, &mut bytes);
            return Ok(bytes);
        }
        let part = rows_of_a_task(columns);
        let tasks = bytes.par_chunks_mut(part * row_bytes).zip(values.par_chunks(part * columns));
        tasks
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

    pub(crate) fn of_candle(self) -> GgmlDType {
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
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "one way to read them there"))]
pub(crate) fn decode(processor: Processor, format: BlockFormat, bytes: &[u8], values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::formats::dequantise::unpack(processor, format, bytes, values) {
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

/// The same for blocks of integers, which are scaled a block at a time.
macro_rules! each_integer {
    ($bytes:ident, $values:ident, $layout:expr, $numbers:literal, $read:ident) => {{
        const LAYOUT: IntegerLayout = $layout;
        const GROUPS: usize = $numbers / 16;
        let (blocks, _) = $bytes.as_chunks();
        let (values, _) = $values.as_chunks_mut::<$numbers>();
        let (mut numbers, mut scales, mut mins) = ([0u8; $numbers], [0f32; GROUPS], [0f32; GROUPS]);
        for (block, values) in blocks.iter().zip(values) {
            $read(block, &mut numbers, &mut scales, &mut mins);
            let offset = LAYOUT.offset as f32;
            for group in 0..$numbers / LAYOUT.group {
                let (scale, min) = (scales[group], mins[group]);
                let numbers = &numbers[group * LAYOUT.group..][..LAYOUT.group];
                for (value, number) in values[group * LAYOUT.group..].iter_mut().zip(numbers) {
                    *value = multiply_add::<FUSED>(f32::from(*number) - offset, scale, -min);
                }
            }
        }
    }};
}

#[inline(always)]
fn decode_inline<const FUSED: bool>(format: BlockFormat, bytes: &[u8], values: &mut [f32]) {
    match format {
        BlockFormat::F32 => each!(bytes, values, f32s),
        BlockFormat::F16 => each!(bytes, values, f16s),
        BlockFormat::BF16 => each!(bytes, values, bf16s),
        BlockFormat::Q8_0 => each_integer!(bytes, values, IntegerLayout::Q8_0, 32, q8_0),
        BlockFormat::Q4_0 => each_integer!(bytes, values, IntegerLayout::Q4_0, 32, q4_0),
        BlockFormat::Q4K => each_integer!(bytes, values, IntegerLayout::WITH_MINS, 256, q4_k),
        BlockFormat::Q5K => each_integer!(bytes, values, IntegerLayout::WITH_MINS, 256, q5_k),
        BlockFormat::Q6K => each_integer!(bytes, values, IntegerLayout::Q6_K, 256, q6_k),
    }
}

/// Up to 256 integers of whole blocks as they are stored, and the scale and the min of each group; what a format lacks stays as
/// it is.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn read_integers(
    format: BlockFormat,
    bytes: &[u8],
    numbers: &mut [u8; LARGE],
    scales: &mut [f32; LARGE / 16],
    mins: &mut [f32; LARGE / 16],
) {
    macro_rules! each {
        ($read:ident, $numbers:literal, $groups:literal) => {{
            let blocks = bytes.as_chunks().0.iter().zip(numbers.as_chunks_mut::<$numbers>().0);
            let groups = scales.as_chunks_mut::<$groups>().0.iter_mut().zip(mins.as_chunks_mut().0);
            for ((block, numbers), (scales, mins)) in blocks.zip(groups) {
                $read(block, numbers, scales, mins);
            }
        }};
    }
    match format {
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => {}
        BlockFormat::Q8_0 => each!(q8_0, 32, 1),
        BlockFormat::Q4_0 => each!(q4_0, 32, 1),
        BlockFormat::Q4K => each!(q4_k, 256, 8),
        BlockFormat::Q5K => each!(q5_k, 256, 8),
        BlockFormat::Q6K => each!(q6_k, 256, 16),
    }
}

/// How the integers of a block become numbers: less `offset`, times the scale of their group, less its min.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntegerLayout {
    /// Numbers that share a scale.
    pub(crate) group: usize,
    /// The zero point: what is subtracted from each integer, which are stored unsigned.
    pub(crate) offset: i32,
}

impl IntegerLayout {
    pub(crate) const Q8_0: Self = Self { group: 32, offset: 128 };
    pub(crate) const Q4_0: Self = Self { group: 32, offset: 8 };
    const WITH_MINS: Self = Self { group: 32, offset: 0 };
    const Q6_K: Self = Self { group: 16, offset: 32 };

    /// None for a format without blocks.
    pub(crate) fn of(format: BlockFormat) -> Option<Self> {
        match format {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => None,
            BlockFormat::Q8_0 => Some(Self::Q8_0),
            BlockFormat::Q4_0 => Some(Self::Q4_0),
            BlockFormat::Q4K | BlockFormat::Q5K => Some(Self::WITH_MINS),
            BlockFormat::Q6K => Some(Self::Q6_K),
        }
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

/// f16 to f32, without a table or a call, so that it is vectorised.
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

/// A scale, then 32 integers from -128 to 127.
#[inline(always)]
fn q8_0<const N: usize>(
    block: &[u8; 34],
    numbers: &mut [u8; SMALL],
    scales: &mut [f32; N],
    _mins: &mut [f32; N],
) {
    scales[0] = half_at(block, 0);
    for (number, byte) in numbers.iter_mut().zip(&block[2..]) {
        *number = byte ^ 128;
    }
}

/// The lower and the upper nibbles of `N` bytes. Copies, so that nothing written may be what is read next: only then it
/// is vectorised.
#[inline(always)]
fn nibbles<const N: usize>(pairs: &[u8]) -> ([u8; N], [u8; N]) {
    let (mut lower, mut upper) = ([0; N], [0; N]);
    for place in 0..N {
        (lower[place], upper[place]) = (pairs[place] & 15, pairs[place] >> 4);
    }
    (lower, upper)
}

/// A scale, then 32 integers from -8 to 7: the first half in the lower nibbles of 16 bytes, the second in the upper.
#[inline(always)]
fn q4_0<const N: usize>(
    block: &[u8; 18],
    numbers: &mut [u8; SMALL],
    scales: &mut [f32; N],
    _mins: &mut [f32; N],
) {
    scales[0] = half_at(block, 0);
    let (lower, upper) = nibbles::<{ SMALL / 2 }>(&block[2..]);
    numbers[..SMALL / 2].copy_from_slice(&lower);
    numbers[SMALL / 2..].copy_from_slice(&upper);
}

/// The scales and mins of the eighths of a block: an f16 for each kind, and 6 bits of each in 12 bytes.
#[inline(always)]
fn eighths<const N: usize>(block: &[u8], scales: &mut [f32; N], mins: &mut [f32; N]) {
    let half = |place: usize| from_half(u16::from_le_bytes([block[place], block[place + 1]]));
    let (scale, base) = (half(0), half(2));
    let packed = &block[4..16];
    for eighth in 0..8 {
        let (of_scale, of_min) = if eighth < 4 {
            (packed[eighth] & 63, packed[eighth + 4] & 63)
        } else {
            let both = packed[eighth + 4];
            ((both & 15) | (packed[eighth - 4] >> 6 << 4), (both >> 4) | (packed[eighth] >> 6 << 4))
        };
        scales[eighth] = scale * f32::from(of_scale);
        mins[eighth] = base * f32::from(of_min);
    }
}

/// [`eighths`], then 256 integers from 0 to 15: of each 64, the first half in the lower nibbles of 32 bytes, the second in
/// the upper.
#[inline(always)]
fn q4_k<const N: usize>(
    block: &[u8; 144],
    numbers: &mut [u8; LARGE],
    scales: &mut [f32; N],
    mins: &mut [f32; N],
) {
    eighths(block, scales, mins);
    for quarter in 0..4 {
        let (lower, upper) = nibbles::<32>(&block[16 + 32 * quarter..]);
        let (first, second) = numbers[64 * quarter..][..64].split_at_mut(32);
        first.copy_from_slice(&lower);
        second.copy_from_slice(&upper);
    }
}

/// The same with a fifth bit of each number: bit e of 32 bytes between is that of the numbers of eighth e.
#[inline(always)]
fn q5_k<const N: usize>(
    block: &[u8; 176],
    numbers: &mut [u8; LARGE],
    scales: &mut [f32; N],
    mins: &mut [f32; N],
) {
    eighths(block, scales, mins);
    for quarter in 0..4 {
        let (mut lower, mut upper) = nibbles::<32>(&block[48 + 32 * quarter..]);
        for place in 0..32 {
            let bits = block[16 + place] >> (2 * quarter);
            lower[place] |= (bits & 1) << 4;
            upper[place] |= (bits & 2) << 3;
        }
        let (first, second) = numbers[64 * quarter..][..64].split_at_mut(32);
        first.copy_from_slice(&lower);
        second.copy_from_slice(&upper);
    }
}

/// 256 integers from -32 to 31: of each half, the lower 4 bits of its quarters in 64 bytes (two quarters to the lower
/// nibbles, two to the upper), and two bits of each of them in 32 bytes. Then 16 scales of a byte each, and one of all.
#[inline(always)]
fn q6_k<const N: usize>(
    block: &[u8; 210],
    numbers: &mut [u8; LARGE],
    scales: &mut [f32; N],
    _mins: &mut [f32; N],
) {
    let all = half_at(block, 208);
    for (scale, byte) in scales.iter_mut().zip(&block[192..208]) {
        *scale = f32::from(*byte as i8) * all;
    }
    for half in 0..2 {
        let (first, second) = block[64 * half..][..64].split_at(32);
        let upper = &block[128 + 32 * half..][..32];
        let numbers = &mut numbers[128 * half..][..128];
        for place in 0..32 {
            let (first, second, upper) = (first[place], second[place], upper[place]);
            numbers[place] = (first & 15) | (upper & 3) << 4;
            numbers[32 + place] = (second & 15) | (upper >> 2 & 3) << 4;
            numbers[64 + place] = (first >> 4) | (upper >> 4 & 3) << 4;
            numbers[96 + place] = (second >> 4) | (upper >> 6) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    #[test]
    fn reads_what_candle_reads() {
        for format in BlockFormat::ALL {
            // Of sizes that differ from block to block.
            let values = noise(7 * 512, 7).into_iter().enumerate();
            let values: Vec<f32> = values.map(|(place, value)| value * (1 + place / 300) as f32).collect();
            let tensor = Tensor::from_slice(&values, (7, 512), &Device::Cpu).unwrap();
            let expected = QTensor::quantize(&tensor, format.of_candle()).unwrap();
            let bytes = expected.data().unwrap();
            assert_eq!(bytes.len(), 7 * format.row_bytes(512).unwrap());
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
