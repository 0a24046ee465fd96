//! Quantisation to int8 blocks (Q8_0), vectorised: KV caches are written in them, pass by pass. And to Q4_K and Q5_K: the scale and the
//! min of each eighth that leave the smallest error.
//!
//! candle's own quantisation to the latter leaves up to twice the squared error of ggml's, where sizes differ widely. Here some scales
//! are tried for each eighth: numbers are rounded with each, scale and min are fitted to the rounded ones by least squares, and the best
//! fit is taken.

use rayon::prelude::*;

use crate::formats::block_format::{BlockFormat, LARGE, SMALL};
use crate::instructions::vector::{multiply_add, widest};
use crate::operations::rows::rows_of_a_task;

/// Numbers that share a scale and a min.
const GROUP: usize = 32;
/// Scales that are tried, a tenth of the largest number apart, around the one that reaches from the smallest number to
/// the largest.
const TRIED: usize = 20;
/// The largest integer of 6 bits, in which scales and mins are stored.
const SIX_BITS: f32 = 63.0;

/// Rounds whole blocks of finite numbers; `bytes` has room for exactly those.
pub(crate) fn encode(format: BlockFormat, values: &[f32], bytes: &mut [u8]) {
    let room = format.block_bytes();
    if format == BlockFormat::Q8_0 {
        let part = rows_of_a_task(SMALL);
        let tasks = bytes.par_chunks_mut(part * room).zip(values.par_chunks(part * SMALL));
        return tasks.for_each(|(bytes, values)| encode_bytes(values, bytes));
    }
    let blocks = bytes.par_chunks_exact_mut(room).zip(values.as_chunks().0).with_min_len(64);
    blocks.for_each(|(bytes, values)| encode_block(format == BlockFormat::Q5K, values, bytes));
}

/// Quantises to int8 blocks as ggml does; `bytes` has room for exactly those.
#[inline(always)]
fn encode_bytes_inline<const FUSED: bool>(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.as_chunks::<SMALL>().0.iter().zip(bytes.as_chunks_mut::<34>().0) {
        let mut largest = 0f32;
        for value in values {
            let size = value.abs();
            // NaN counts as 0.
            largest = if size > largest { size } else { largest };
        }
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        for (number, value) in block[2..].iter_mut().zip(values) {
            *number = (value * inverse).round() as i8 as u8;
        }
    }
}
widest!(fn encode_bytes(values: &[f32], bytes: &mut [u8]) = encode_bytes_inline);

fn encode_block(five_bits: bool, values: &[f32; LARGE], bytes: &mut [u8]) {
    let most = if five_bits { 31.0 } else { 15.0 };
    let mut fits = [Fit::default(); LARGE / GROUP];
    for (fit_of, group) in fits.iter_mut().zip(values.as_chunks().0) {
        *fit_of = fit(group, most);
    }
    // Scales, and mins, are multiples of an f16 each.
    let largest = |of: fn(&Fit) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let [scale, min] =
        [largest(|fit| fit.scale), largest(|fit| fit.min)].map(|largest| half(largest / SIX_BITS));
    let in_six_bits = |value: f32, unit: f32| match unit > 0.0 {
        true => (value / unit).round().clamp(0.0, SIX_BITS),
        false => 0.0,
    };
    bytes.fill(0);
    bytes[..2].copy_from_slice(&half_bits(scale).to_le_bytes());
    bytes[2..4].copy_from_slice(&half_bits(min).to_le_bytes());
    let numbers_at = if five_bits { 48 } else { 16 };
    for (eighth, (fit, group)) in fits.iter().zip(values.as_chunks().0).enumerate() {
        let (of_scale, of_min) = (in_six_bits(fit.scale, scale), in_six_bits(fit.min, min));
        pack_six_bits(&mut bytes[4..16], eighth, of_scale as u8, of_min as u8);
        let mut numbers = [0u8; GROUP];
        round(group, scale * of_scale, min * of_min, most, &mut numbers);
        // Of each 64 numbers, the first half is in the lower nibbles of 32 bytes, the second in the upper.
        let pairs = numbers_at + GROUP * (eighth / 2);
        for (place, number) in numbers.iter().enumerate() {
            bytes[pairs + place] |= (number & 15) << (4 * (eighth % 2));
            if five_bits {
                bytes[16 + place] |= (number >> 4) << eighth;
            }
        }
    }
}

/// A number rounded to f16.
fn half(value: f32) -> f32 {
    half::f16::from_f32(value).to_f32()
}

fn half_bits(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

/// Six bits of a scale and of a min: those of the second half of a block lend the upper bits of the first half's.
fn pack_six_bits(packed: &mut [u8], eighth: usize, scale: u8, min: u8) {
    if eighth < 4 {
        packed[eighth] |= scale;
        packed[eighth + 4] |= min;
    } else {
        packed[eighth + 4] |= (scale & 15) | (min & 15) << 4;
        packed[eighth - 4] |= (scale >> 4) << 6;
        packed[eighth] |= (min >> 4) << 6;
    }
}

/// Numbers are about `scale` times an integer, less `min`, which is not negative.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Fit {
    scale: f32,
    min: f32,
}

#[inline(always)]
fn fit_inline<const FUSED: bool>(values: &[f32; GROUP], most: f32) -> Fit {
    let (mut low, mut high) = (0f32, f32::MIN);
    for value in values {
        low = if *value < low { *value } else { low };
        high = if *value > high { *value } else { high };
    }
    if high <= low {
        return Fit { scale: 0.0, min: -low };
    }
    let mut best = (f32::INFINITY, Fit::default());
    for tried in 0..=TRIED {
        let inverse = (most + 0.1 * tried as f32 - 0.1 * (TRIED / 2) as f32) / (high - low);
        // Sums over the numbers that they are rounded to, their squares, and those times the values.
        let mut sums = [[0f32; 8]; 5];
        for values in values.as_chunks::<8>().0 {
            for (lane, value) in values.iter().enumerate() {
                let number = rounded((value - low) * inverse, most);
                sums[0][lane] += number;
                sums[1][lane] = multiply_add::<FUSED>(number, number, sums[1][lane]);
                sums[2][lane] += value;
                sums[3][lane] = multiply_add::<FUSED>(number, *value, sums[3][lane]);
                sums[4][lane] = multiply_add::<FUSED>(*value, *value, sums[4][lane]);
            }
        }
        let mut all = [0f32; 5];
        for (all, lanes) in all.iter_mut().zip(sums) {
            for lane in lanes {
                *all += lane;
            }
        }
        let [number, squared, value, mixed, of_values] = all;
        let count = GROUP as f32;
        let spread = count * squared - number * number;
        let mut scale = (count * mixed - value * number) / spread;
        let mut base = (squared * value - number * mixed) / spread;
        // Numbers that are all the same have no slope, and a min is not negative.
        if spread <= 0.0 || base > 0.0 {
            (scale, base) = (mixed / squared, 0.0);
        }
        // The squared error, multiplied out.
        let error = of_values + scale * scale * squared + count * base * base
            - 2.0 * (scale * mixed + base * value - scale * base * number);
        if error < best.0 && scale > 0.0 {
            best = (error, Fit { scale, min: -base });
        }
    }
    best.1
}
widest!(
    /// The scale and the min of a group whose integers go up to `most`.
    fn fit(values: &[f32; GROUP], most: f32) -> Fit = fit_inline
);

#[inline(always)]
fn round_inline<const FUSED: bool>(
    values: &[f32; GROUP],
    scale: f32,
    min: f32,
    most: f32,
    numbers: &mut [u8; GROUP],
) {
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (number, value) in numbers.iter_mut().zip(values) {
        *number = rounded((value + min) * inverse, most) as u8;
    }
}
widest!(
    /// The integers from 0 to `most` that are closest.
    fn round(values: &[f32; GROUP], scale: f32, min: f32, most: f32, numbers: &mut [u8; GROUP]) = round_inline
);

/// The nearest integer from 0 to `most`, without a call.
#[inline(always)]
fn rounded(value: f32, most: f32) -> f32 {
    /// 2^23: added to a smaller number that is not negative, it leaves no room for what is behind the point.
    const ROUND: f32 = 8_388_608.0;
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < most { value } else { most };
    (value + ROUND) - ROUND
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::noise::noise;

    /// Sums of some numbers, which are spread as weights are, of sizes that differ from block to block.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let threes = noise(3 * count, seed);
        let sums = threes.chunks(3).map(|three| three.iter().sum::<f32>());
        sums.enumerate().map(|(place, sum)| sum * (1 + place / 300) as f32).collect()
    }

    fn squared_error(format: BlockFormat, values: &[f32]) -> f64 {
        let mut bytes = vec![0xffu8; values.len() / LARGE * format.block_bytes()];
        encode(format, values, &mut bytes);
        let mut read = vec![f32::NAN; values.len()];
        format.decode(&bytes, &mut read);
        read.iter().zip(values).map(|(read, value)| f64::from(read - value).powi(2)).sum()
    }

    #[test]
    fn bytes_are_those_that_candle_makes() {
        let mut values = numbers(40 * SMALL, 7);
        values[SMALL..2 * SMALL].fill(0.0);
        // Halves of what a number stands for, away from zero.
        for (place, value) in values[2 * SMALL..3 * SMALL].iter_mut().enumerate() {
            *value = if place == 0 { 127.0 } else { place as f32 - 15.5 };
        }
        values[4 * SMALL + 3] = f32::NAN;
        values[5 * SMALL + 9] = f32::NEG_INFINITY;
        values[6 * SMALL..7 * SMALL].fill(1e-42);
        let tensor = Tensor::from_slice(&values, values.len(), &Device::Cpu).unwrap();
        let expected = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
        let expected = expected.data().unwrap();
        let encoded = BlockFormat::Q8_0.encode(&values, values.len()).unwrap();
        let blocks = encoded.as_chunks::<34>().0.iter().zip(expected.as_chunks::<34>().0);
        for (index, (block, expected)) in blocks.enumerate() {
            // candle's NEON code lets NaN count, and nothing else does.
            if cfg!(target_arch = "aarch64") && index == 4 {
                continue;
            }
            assert_eq!(block, expected, "{index}");
        }
        let mut plain = vec![0; encoded.len()];
        encode_bytes_inline::<false>(&values, &mut plain);
        assert_eq!(plain, encoded);
    }

    #[test]
    fn errors_are_small_for_their_bits() {
        let values = numbers(64 * LARGE, 1);
        let all: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        for (format, most) in [(BlockFormat::Q4K, 0.0055), (BlockFormat::Q5K, 0.0014)] {
            let error = squared_error(format, &values) / all;
            assert!(error < most, "{}: {error}", format.name());
        }
    }

    #[test]
    fn odd_blocks_stay_numbers() {
        for format in [BlockFormat::Q4K, BlockFormat::Q5K] {
            let step = if format == BlockFormat::Q4K { 15 } else { 31 };
            let exact: Vec<f32> = (0..LARGE).map(|place| (place % (step + 1)) as f32 - 3.0).collect();
            for (values, most) in [
                (vec![0.0; LARGE], 0.0),
                (vec![2.5; LARGE], 1e-2),
                (vec![-2.5; LARGE], 1e-2),
                (exact, 1e-2),
                (vec![1e-7; LARGE], 1e-10),
                ([vec![0.0; LARGE - 1], vec![100.0]].concat(), 1.0),
                ([vec![1000.0], vec![-1e-3; LARGE - 1]].concat(), 100.0),
            ] {
                let error = squared_error(format, &values);
                assert!(error <= most, "{}: {:?}: {error}", format.name(), &values[..4]);
            }
        }
    }
}
