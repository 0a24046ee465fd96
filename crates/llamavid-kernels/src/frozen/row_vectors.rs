//! Rows of f32 in vectors of AVX-512: their norm, and their quantisation. What a compiler makes of the same loops takes several times as
//! long, since it keeps sums of many lanes in memory or adds them up in pairs.

use std::arch::x86_64::{
    _CMP_GT_OQ, _mm_mask_storeu_epi8, _mm512_abs_ps, _mm512_add_ps, _mm512_castps_si512, _mm512_cmp_ps_mask,
    _mm512_cvtusepi32_epi8, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_add_ps, _mm512_mask_storeu_ps,
    _mm512_mask_sub_ps, _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_epi32, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_reduce_min_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_sub_epi32,
    _mm512_sub_ps,
};

use super::int8::{Outlier, RowStatistics, STATISTICS_BLOCK, STEPS};
use super::tile_rows::{LANES, Places, mask};
use crate::instructions::vector::NEAREST;

/// Bytes of a tile row.
const TILE_ROW: usize = 64;

/// [`crate::operations::layer_norm::normalise`] of a row.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn normalise(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, into: &mut [f32]) {
    let width = x.len();
    assert!(weight.len() == width && bias.len() == width && into.len() == width, "rows of one width");
    let (x, weight, bias, into) = (x.as_ptr(), weight.as_ptr(), bias.as_ptr(), into.as_mut_ptr());
    // SAFETY: vectors are read and written as far as there are numbers.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); 2];
        for first in (0..width).step_by(2 * LANES) {
            let numbers = two(x, first, width);
            sums = [_mm512_add_ps(sums[0], numbers[0]), _mm512_add_ps(sums[1], numbers[1])];
        }
        let mean = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / width as f32;
        let mean = _mm512_set1_ps(mean);
        let mut squares = [_mm512_setzero_ps(); 2];
        for first in (0..width).step_by(2 * LANES) {
            let [left, right] = two(x, first, width);
            // Behind the end there is nothing that is far from the mean.
            let left = _mm512_mask_sub_ps(left, mask(width - first), left, mean);
            let right = _mm512_mask_sub_ps(right, mask(width.saturating_sub(first + LANES)), right, mean);
            squares = [_mm512_fmadd_ps(left, left, squares[0]), _mm512_fmadd_ps(right, right, squares[1])];
        }
        let variance = _mm512_reduce_add_ps(_mm512_add_ps(squares[0], squares[1])) / width as f32;
        let scale = _mm512_set1_ps((variance + eps).sqrt().recip());
        for first in (0..width).step_by(LANES) {
            let used = mask(width - first);
            let far = _mm512_sub_ps(_mm512_maskz_loadu_ps(used, x.add(first)), mean);
            let weight = _mm512_maskz_loadu_ps(used, weight.add(first));
            let bias = _mm512_maskz_loadu_ps(used, bias.add(first));
            let found = _mm512_fmadd_ps(_mm512_mul_ps(far, scale), weight, bias);
            _mm512_mask_storeu_ps(into.add(first), used, found);
        }
    }
}

/// Two vectors of a row, 0 behind its end.
///
/// # Safety
/// The processor has AVX-512, and the row is as long as told.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn two(row: *const f32, first: usize, length: usize) -> [std::arch::x86_64::__m512; 2] {
    // SAFETY: vectors are read as far as there are numbers.
    unsafe {
        [
            _mm512_maskz_loadu_ps(mask(length - first), row.wrapping_add(first)),
            _mm512_maskz_loadu_ps(
                mask(length.saturating_sub(first + LANES)),
                row.wrapping_add(first + LANES),
            ),
        ]
    }
}

/// Statistics of the numbers of a row that are not beyond a limit, if it is `LIMITED`.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn statistics<const LIMITED: bool>(row: &[f32], limit: f32) -> RowStatistics {
    let (limit, one) = (_mm512_set1_ps(limit), _mm512_set1_ps(1.0));
    let nothing = [_mm512_setzero_ps(); STATISTICS_BLOCK / LANES];
    let (mut min, mut max, mut squares, mut beyond) = (nothing, nothing, nothing, nothing);
    let (blocks, rest) = row.as_chunks::<STATISTICS_BLOCK>();
    let mut last = [0f32; STATISTICS_BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    for index in 0..=blocks.len() {
        let block = blocks.get(index).unwrap_or(&last).as_ptr();
        for lane in 0..STATISTICS_BLOCK / LANES {
            // SAFETY: a block has as many vectors.
            let mut value = unsafe { _mm512_loadu_ps(block.add(lane * LANES)) };
            if LIMITED {
                let far = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(value), limit);
                beyond[lane] = _mm512_mask_add_ps(beyond[lane], far, beyond[lane], one);
                value = _mm512_maskz_mov_ps(!far, value);
            }
            // NaN is passed over.
            min[lane] = _mm512_min_ps(value, min[lane]);
            max[lane] = _mm512_max_ps(value, max[lane]);
            squares[lane] = _mm512_fmadd_ps(value, value, squares[lane]);
        }
    }
    let [a, b, c, d] = min;
    let min = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(a, c), _mm512_min_ps(b, d)));
    let [a, b, c, d] = max;
    let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, c), _mm512_max_ps(b, d)));
    let [a, b, c, d] = squares;
    let squares = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d)));
    let [a, b, c, d] = beyond;
    let beyond = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d)));
    RowStatistics { min, max, squares, beyond }
}

/// Takes numbers beyond a limit out of a row.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn take(row: &mut [f32], limit: f32, large: &mut Vec<Outlier>) {
    let limit = _mm512_set1_ps(limit);
    for first in (0..row.len()).step_by(LANES) {
        // SAFETY: vectors are read as far as there are numbers.
        let numbers = unsafe { _mm512_maskz_loadu_ps(mask(row.len() - first), row.as_ptr().add(first)) };
        let mut far = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(numbers), limit);
        while far != 0 {
            let column = first + far.trailing_zeros() as usize;
            large.push(Outlier { column, value: std::mem::take(&mut row[column]) });
            far &= far - 1;
        }
    }
}

/// Writes integers of a row to its tile rows. Behind its end there are any, which meet no weights.
///
/// # Safety
/// The processor has AVX-512 with BW and VL, there are as many tile rows of this row, and nobody else uses them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn round(row: &[f32], factor: f32, zero: i32, places: Places, index: usize) {
    let factor = _mm512_set1_ps(factor);
    let nearest = _mm512_set1_ps(NEAREST);
    let zero = _mm512_set1_epi32(NEAREST.to_bits() as i32 - zero);
    for (step, numbers) in row.chunks(TILE_ROW).enumerate() {
        let line: *mut i8 = places.at(index, step, 0).cast();
        for first in (0..numbers.len()).step_by(LANES) {
            // SAFETY: vectors are read as far as there are numbers, and a tile row has room for as many.
            unsafe {
                let numbers = _mm512_maskz_loadu_ps(mask(numbers.len() - first), numbers.as_ptr().add(first));
                let rounded = _mm512_castps_si512(_mm512_fmadd_ps(numbers, factor, nearest));
                let rounded = _mm512_max_epi32(_mm512_sub_epi32(rounded, zero), _mm512_setzero_si512());
                const _: () = assert!(STEPS == 255.0, "the largest that a byte holds");
                _mm_mask_storeu_epi8(line.add(first), u16::MAX, _mm512_cvtusepi32_epi8(rounded));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frozen::tile_rows::TileRows;
    use crate::instructions::processor::Processor;

    /// Numbers without a pattern around 0, some of them far larger than others; none without AVX-512.
    fn noise(count: usize) -> Option<Vec<f32>> {
        if !Processor::tested().into_iter().any(|processor| matches!(processor, Processor::Avx512(..))) {
            return None;
        }
        let mut state = 5u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        Some((0..count).map(|_| next() * (4.0 * next()).exp2()).collect())
    }

    const LENGTHS: [usize; 7] = [1, 15, 16, 33, 64, 100, 704];

    #[test]
    fn a_norm_leaves_no_mean_and_a_variance_of_one() {
        for length in LENGTHS {
            let Some(row) = noise(length) else { return };
            let (weight, bias) = (vec![2.0; length], vec![0.5; length]);
            let (mut found, mut expected) = (vec![0.0; length], vec![0.0; length]);
            // SAFETY: the processor has AVX-512.
            unsafe { normalise(&row, &weight, &bias, 1e-6, &mut found) };
            crate::operations::layer_norm::normalise(&row, &weight, &bias, 1e-6, &mut expected);
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 2e-6 * expected.abs().max(1.0),
                    "{length}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn integers_are_those_of_other_processors() {
        for length in LENGTHS {
            let Some(row) = noise(length) else { return };
            for limit in [f32::INFINITY, 2.0] {
                let expected = super::super::int8::statistics_in_lanes(&row, limit);
                // SAFETY: the processor has AVX-512.
                let found = unsafe {
                    if limit.is_finite() {
                        statistics::<true>(&row, limit)
                    } else {
                        statistics::<false>(&row, limit)
                    }
                };
                assert_eq!(found, expected, "{length} {limit}");
            }
            let (mut lines, mut expected) = (TileRows::default(), vec![0u8; length]);
            let places = lines.reshape(1, length, TILE_ROW, 1);
            // SAFETY: as above, and there are tile rows of a row.
            unsafe { round(&row, 20.0, 100, places, 0) };
            super::super::int8::round(&row, 20.0, 100, &mut expected);
            for (column, expected) in expected.iter().enumerate() {
                assert_eq!(
                    lines.from(0, column / TILE_ROW)[0].0[column % TILE_ROW],
                    *expected,
                    "{length} {column}"
                );
            }
        }
    }
}
