//! Rows quantised to int8, with a scale for as many numbers as share one in the weights.

use rayon::prelude::*;

use crate::formats::block_format::{BlockFormat, IntegerLayout, LARGE as NUMBERS};
#[cfg(target_arch = "x86_64")]
use crate::instructions::processor::Processor;
use crate::instructions::processor::processor;
use crate::instructions::vector::{NEAREST, multiply_add, widest};

/// Numbers that one task quantises at least.
const TASK_NUMBERS: usize = 1 << 13;

/// Rows that are missing from a whole number of times 16 at most.
const SPARE: usize = 15;

/// Rows of `x`, quantised, for weights in one format. Behind each row there are zeros up to a multiple of 256 numbers.
pub(crate) struct QuantisedRows {
    pub(crate) format: BlockFormat,
    pub(crate) count: usize,
    /// Bytes of a row of the weights.
    pub(crate) row_bytes: usize,
    /// Numbers of a row, with the zeros.
    pub(crate) columns: usize,
    /// Numbers that share a scale.
    pub(crate) group: usize,
    /// In parts: the first numbers of each row, then the next ones. Behind the last part there is room for [`SPARE`] more rows of one, so
    /// that rows can be read 16 at a time.
    pub(crate) numbers: Vec<i8>,
    /// What the numbers of each group are to be multiplied with, in the same order.
    pub(crate) scales: Vec<f32>,
    /// Of each group, the sum of its numbers times its scale.
    pub(crate) sums: Vec<f32>,
    /// Of each group, what products with weights begin with for their zero point.
    pub(crate) begins: Vec<i32>,
}

impl QuantisedRows {
    /// `x` (count, columns) for weights in `format`, in parts of `part` numbers, a multiple of 256, or in whole rows; none
    /// for a format without blocks.
    pub(crate) fn new(format: BlockFormat, x: &[f32], columns: usize, part: Option<usize>) -> Option<Self> {
        Self::sharing(format, x, columns, part, 1)
    }

    /// The same with a scale that so many groups, of which 256 numbers are a multiple, have in common.
    pub(crate) fn sharing(
        format: BlockFormat,
        x: &[f32],
        columns: usize,
        part: Option<usize>,
        sharing: usize,
    ) -> Option<Self> {
        let IntegerLayout { group, offset, .. } = IntegerLayout::of(format)?;
        let row_bytes = format.row_bytes(columns)?;
        let count = x.len() / columns;
        let padded = columns.next_multiple_of(NUMBERS);
        let length = count * padded + part.map_or(0, |part| SPARE * part.min(padded));
        let part = part.unwrap_or(padded);
        let mut numbers = vec![0i8; length];
        let mut scales = vec![0f32; length / group];
        let (mut sums, mut begins) = (scales.clone(), vec![0i32; scales.len()]);
        for first in (0..padded).step_by(part) {
            let length = part.min(padded - first);
            let groups = length / group;
            let of_groups = first * count / group..(first + length) * count / group;
            numbers[first * count..(first + length) * count]
                .par_chunks_exact_mut(length)
                .zip(scales[of_groups.clone()].par_chunks_exact_mut(groups))
                .zip(sums[of_groups.clone()].par_chunks_exact_mut(groups))
                .zip(begins[of_groups].par_chunks_exact_mut(groups))
                .enumerate()
                .with_min_len(TASK_NUMBERS.div_ceil(length))
                .for_each(|(row, (((numbers, scales), sums), begins))| {
                    let x = &x[row * columns..(row + 1) * columns];
                    round(
                        &x[first..columns.min(first + length)],
                        [group, sharing],
                        offset,
                        numbers,
                        (scales, sums, begins),
                    );
                });
        }
        Some(Self { format, count, row_bytes, columns: padded, group, numbers, scales, sums, begins })
    }
}

/// Quantises a row to integers from -127 to 127. What is not finite makes the scale of its group NaN, and with it all that
/// is multiplied with it.
#[inline(always)]
fn round_inline<const FUSED: bool>(
    x: &[f32],
    [group, sharing]: [usize; 2],
    offset: i32,
    numbers: &mut [i8],
    (scales, sums, begins): (&mut [f32], &mut [f32], &mut [i32]),
) {
    let of_groups = scales.chunks_mut(sharing).zip(sums.chunks_mut(sharing)).zip(begins.chunks_mut(sharing));
    let shares = x.chunks(group * sharing).zip(numbers.chunks_mut(group * sharing));
    for ((x, numbers), ((scales, sums), begins)) in shares.zip(of_groups) {
        // Bits of numbers without a sign are in the order of the numbers, and what is not finite comes last.
        let mut largest = 0;
        for value in x {
            largest = value.abs().to_bits().max(largest);
        }
        let largest = f32::from_bits(largest);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let scale_of = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
        scales.fill(scale_of);
        let groups = x.chunks_exact(group).zip(numbers.chunks_exact_mut(group));
        for (((x, numbers), sum_of), begin) in groups.zip(sums).zip(begins) {
            let mut sum = 0;
            for (number, value) in numbers.iter_mut().zip(x) {
                let rounded = multiply_add::<FUSED>(*value, inverse, NEAREST).to_bits() as i32
                    - NEAREST.to_bits() as i32;
                *number = rounded as i8;
                sum += i32::from(rounded as i8);
            }
            *sum_of = sum as f32 * scale_of;
            *begin = -offset * sum;
        }
    }
}
widest!(fn round_in_lanes(
    x: &[f32],
    groups: [usize; 2],
    offset: i32,
    numbers: &mut [i8],
    of_groups: (&mut [f32], &mut [f32], &mut [i32]),
) = round_inline);

fn round(
    x: &[f32],
    groups: [usize; 2],
    offset: i32,
    numbers: &mut [i8],
    of_groups: (&mut [f32], &mut [f32], &mut [i32]),
) {
    match processor() {
        // SAFETY: the processor has AVX-512.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) => unsafe { round_in_vectors(x, groups, offset, numbers, of_groups) },
        _ => round_in_lanes(x, groups, offset, numbers, of_groups),
    }
}

/// The same as [`round_in_lanes`], to the last bit. A compiler adds up int8 in so many steps that rows of a prompt take a tenth of the
/// time of their products.
///
/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn round_in_vectors(
    x: &[f32],
    [group, sharing]: [usize; 2],
    offset: i32,
    numbers: &mut [i8],
    (scales, sums, begins): (&mut [f32], &mut [f32], &mut [i32]),
) {
    use std::arch::x86_64::{
        _mm_storeu_si128, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_cvtepi32_epi8,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_epu32, _mm512_reduce_add_epi32, _mm512_reduce_max_epu32,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srai_epi32,
        _mm512_sub_epi32,
    };
    /// Numbers of a vector.
    const LANES: usize = 16;
    let count = x.len() / group;
    assert!(group.is_multiple_of(LANES) && count * group == x.len(), "groups of whole vectors");
    assert!(x.len() <= numbers.len() && count <= scales.len(), "room for all numbers");
    assert!(scales.len() == sums.len() && scales.len() == begins.len(), "as many of each");
    let (nearest, without_sign) = (_mm512_set1_ps(NEAREST), _mm512_set1_epi32(i32::MAX));
    for first in (0..count).step_by(sharing) {
        let groups = first..count.min(first + sharing);
        let mut largest = _mm512_setzero_si512();
        for place in (groups.start * group..groups.end * group).step_by(LANES) {
            // SAFETY: a vector of the row, whose groups are whole ones.
            let bits = unsafe { _mm512_castps_si512(_mm512_loadu_ps(x.as_ptr().add(place))) };
            largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, without_sign));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
        let inverse = _mm512_set1_ps(inverse);
        for index in groups {
            let mut sum = _mm512_setzero_si512();
            for place in (index * group..(index + 1) * group).step_by(LANES) {
                // SAFETY: as above, and there is room for as many bytes.
                unsafe {
                    let value = _mm512_loadu_ps(x.as_ptr().add(place));
                    let rounded = _mm512_castps_si512(_mm512_fmadd_ps(value, inverse, nearest));
                    let rounded = _mm512_sub_epi32(rounded, _mm512_castps_si512(nearest));
                    let bytes = _mm512_cvtepi32_epi8(rounded);
                    _mm_storeu_si128(numbers.as_mut_ptr().add(place).cast(), bytes);
                    // What is not finite may have more bits, of which a byte has the lowest.
                    let byte = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(rounded));
                    sum = _mm512_add_epi32(sum, byte);
                }
            }
            let sum = _mm512_reduce_add_epi32(sum);
            (scales[index], sums[index], begins[index]) = (scale, sum as f32 * scale, -offset * sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_of_255_numbers_and_fills_up_with_zeros() {
        let x: Vec<f32> =
            (0..2 * 288).map(|place| (place as f32 * 0.37).sin() * (1 + place / 32) as f32).collect();
        for part in [None, Some(256)] {
            let rounded = QuantisedRows::new(BlockFormat::Q8_0, &x, 288, part).unwrap();
            assert_eq!((rounded.count, rounded.columns, rounded.group), (2, 512, 32));
            for row in 0..2 {
                for place in 0..512 {
                    let at = match part {
                        None => row * 512 + place,
                        Some(part) => place / part * part * 2 + row * part + place % part,
                    };
                    let value = f32::from(rounded.numbers[at]) * rounded.scales[at / 32];
                    let expected = if place < 288 { x[row * 288 + place] } else { 0.0 };
                    assert!(
                        (value - expected).abs() <= 0.501 * rounded.scales[at / 32],
                        "{value} for {expected}"
                    );
                    let numbers = &rounded.numbers[at / 32 * 32..][..32];
                    let sum: i32 = numbers.iter().map(|number| i32::from(*number)).sum();
                    assert_eq!(rounded.begins[at / 32], -128 * sum);
                    assert_eq!(rounded.sums[at / 32], sum as f32 * rounded.scales[at / 32]);
                }
            }
        }
    }

    #[test]
    fn vectors_round_to_the_same_numbers() {
        let mut x = crate::noise::noise(3 * 512, 5);
        (x[40], x[70], x[100], x[300]) = (f32::NAN, f32::INFINITY, -0.0, -2e38);
        x[512..768].fill(0.0);
        for groups in [[16, 1], [16, 8], [32, 1], [32, 4]] {
            let made = |in_lanes: bool| {
                let count = x.len() / groups[0] + 1;
                let (mut numbers, mut begins) = (vec![0; x.len() + groups[0]], vec![0; count]);
                let (mut scales, mut sums) = (vec![0.0; count], vec![0.0; count]);
                let of_groups = (&mut scales[..], &mut sums[..], &mut begins[..]);
                match in_lanes {
                    true => round_in_lanes(&x, groups, 8, &mut numbers, of_groups),
                    false => round(&x, groups, 8, &mut numbers, of_groups),
                }
                let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                (numbers, bits(scales), bits(sums), begins)
            };
            assert_eq!(made(false), made(true), "{groups:?}");
        }
    }

    #[test]
    fn groups_that_share_a_scale_have_that_of_their_largest_number() {
        let x = crate::noise::noise(2 * 512, 6);
        let alone = QuantisedRows::new(BlockFormat::Q6K, &x, 512, Some(256)).unwrap();
        let shared = QuantisedRows::sharing(BlockFormat::Q6K, &x, 512, Some(256), 8).unwrap();
        for (alone, shared) in alone.scales[..64].chunks(8).zip(shared.scales.chunks(8)) {
            let largest = alone.iter().fold(0f32, |largest, scale| largest.max(*scale));
            assert!(shared.iter().all(|scale| *scale == largest));
        }
        for (group, numbers) in shared.numbers[..1024].chunks(16).enumerate() {
            let sum: i32 = numbers.iter().map(|number| i32::from(*number)).sum();
            assert_eq!(shared.begins[group], -32 * sum);
        }
    }

    #[test]
    fn what_is_not_finite_becomes_nan() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1f32; 64];
            x[40] = wrong;
            let rounded = QuantisedRows::new(BlockFormat::Q4_0, &x, 64, None).unwrap();
            assert!(rounded.scales[0].is_finite() && rounded.sums[0].is_finite());
            assert!(rounded.scales[1].is_nan() && rounded.sums[1].is_nan(), "{wrong}");
        }
    }
}
