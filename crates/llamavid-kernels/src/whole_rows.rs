//! Rows rounded to whole numbers of 8 bits, with a scale for as many as share one in the weights.

use rayon::prelude::*;

use crate::block_format::{BlockFormat, LARGE as NUMBERS, Whole};
use crate::vector::{NEAREST, multiply_add, widest};

/// Numbers that one task rounds at least.
const TASK_NUMBERS: usize = 1 << 13;

/// Rows that are missing from a whole number of times 16 at most.
const SPARE: usize = 15;

/// Rows of `x`, rounded, for weights in one format. Behind each row there are zeros up to a multiple of 256 numbers.
pub(crate) struct WholeRows {
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
    /// Of each group, what products with weights begin with for their offset.
    pub(crate) begins: Vec<i32>,
}

impl WholeRows {
    /// `x` (count, columns) for weights in `format`, in parts of `part` numbers, a multiple of 256, or in whole rows; none
    /// for a format without blocks.
    pub(crate) fn new(format: BlockFormat, x: &[f32], columns: usize, part: Option<usize>) -> Option<Self> {
        let Whole { group, offset, .. } = Whole::of(format)?;
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
                        group,
                        offset,
                        numbers,
                        (scales, sums, begins),
                    );
                });
        }
        Some(Self { format, count, row_bytes, columns: padded, group, numbers, scales, sums, begins })
    }
}

/// Rounds a row to whole numbers from -127 to 127. What is not finite makes the scale of its group not a number, and with it
/// all that is multiplied with it.
#[inline(always)]
fn round_inline<const FUSED: bool>(
    x: &[f32],
    group: usize,
    offset: i32,
    numbers: &mut [i8],
    (scales, sums, begins): (&mut [f32], &mut [f32], &mut [i32]),
) {
    let groups = x.chunks_exact(group).zip(numbers.chunks_exact_mut(group));
    for ((((x, numbers), scale), sum_of), begin) in groups.zip(scales).zip(sums).zip(begins) {
        // Bits of numbers without a sign are in the order of the numbers, and what is not finite comes last.
        let mut largest = 0;
        for value in x {
            largest = value.abs().to_bits().max(largest);
        }
        let largest = f32::from_bits(largest);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut sum = 0;
        for (number, value) in numbers.iter_mut().zip(x) {
            let rounded =
                multiply_add::<FUSED>(*value, inverse, NEAREST).to_bits() as i32 - NEAREST.to_bits() as i32;
            *number = rounded as i8;
            sum += i32::from(rounded as i8);
        }
        *scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
        *sum_of = sum as f32 * *scale;
        *begin = -offset * sum;
    }
}
widest!(fn round(
    x: &[f32],
    group: usize,
    offset: i32,
    numbers: &mut [i8],
    of_groups: (&mut [f32], &mut [f32], &mut [i32]),
) = round_inline);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_of_255_numbers_and_fills_up_with_zeros() {
        let x: Vec<f32> =
            (0..2 * 288).map(|place| (place as f32 * 0.37).sin() * (1 + place / 32) as f32).collect();
        for part in [None, Some(256)] {
            let rounded = WholeRows::new(BlockFormat::Q8_0, &x, 288, part).unwrap();
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
    fn what_is_not_finite_does_not_become_a_number() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1f32; 64];
            x[40] = wrong;
            let rounded = WholeRows::new(BlockFormat::Q4_0, &x, 64, None).unwrap();
            assert!(rounded.scales[0].is_finite() && rounded.sums[0].is_finite());
            assert!(rounded.scales[1].is_nan() && rounded.sums[1].is_nan(), "{wrong}");
        }
    }
}
