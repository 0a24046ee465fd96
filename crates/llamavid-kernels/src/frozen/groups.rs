//! Register tiles of AVX-512 whose lanes multiply all that lies in 32 bits at once: four int8 (VNNI), or two bf16.

use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT,
    _mm512_abs_ps, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_extracti64x4_epi64, _mm512_fmadd_ps,
    _mm512_fmsub_ps, _mm512_fnmadd_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_max_ps, _mm512_mask_mov_ps, _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_maskz_scalef_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_mullo_epi32, _mm512_or_si512, _mm512_permutex2var_ps, _mm512_rcp14_ps, _mm512_reduce_add_ps,
    _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_sllv_epi32, _mm512_srai_epi32, _mm512_store_ps, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_epi32, _mm512_sub_ps,
};

use super::int8::{Int8Step, Outlier, QuantisedRow, Sums, TOGETHER};
use super::parts::{PANEL, PART, Parts, PrefetchQueue, Step, Strip};
use super::tile_rows::mask;
use super::tiles::{Rows, TILE_ROWS};
use crate::instructions::vector::with_rows;
use crate::operations::gelu::{P, Q};

/// Numbers of a vector.
const LANES: usize = 16;

/// A function that makes sums of rows of the products of groups of numbers, `$each` numbers of `x` in each, and adds them to those that are
/// there if it `$adds`.
macro_rules! tiles {
    ($(#[$meta:meta])* $name:ident, $tile:ident, $multiply:ident, $features:literal, [$each:expr; $X:ty], $Step:ty, $Sums:ty, $adds:literal) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(panel: &[$Step], x: Rows<$X>, sums: &mut [$Sums], queue: &mut PrefetchQueue) {
            for (index, sums) in sums.chunks_mut(TILE_ROWS).enumerate() {
                queue.prefetch(sums.len());
                let x = x.from(index * TILE_ROWS);
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe {
                    with_rows!(sums.len(), ROWS => $tile::<ROWS>(panel, x, sums))
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $tile<const X: usize>(panel: &[$Step], x: Rows<$X>, sums: &mut [$Sums]) {
            let Rows { values, stride } = x;
            assert!(sums.len() == X, "a tile of another size");
            assert!((X - 1) * stride + panel.len() * $each <= values.len(), "rows of another length");
            let x: *const $X = values.as_ptr();
            // SAFETY: the sums of a row are two vectors, and so is a step; each row has as many groups as the panel has steps.
            unsafe {
                let mut found = [[_mm512_set1_epi32(0); 2]; X];
                if $adds {
                    for (found, sums) in found.iter_mut().zip(&*sums) {
                        let sums: *const i32 = (&raw const *sums).cast();
                        *found = [_mm512_loadu_si512(sums.cast()), _mm512_loadu_si512(sums.add(LANES).cast())];
                    }
                }
                for (step, weights) in panel.iter().enumerate() {
                    let weights: *const i32 = (&raw const *weights).cast();
                    let weights =
                        [_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(LANES).cast())];
                    for (row, found) in found.iter_mut().enumerate() {
                        let group = x.add(row * stride + step * $each).cast::<i32>().read_unaligned();
                        let group = _mm512_set1_epi32(group);
                        found[0] = $multiply(found[0], group, weights[0]);
                        found[1] = $multiply(found[1], group, weights[1]);
                    }
                }
                for (sums, found) in sums.iter_mut().zip(found) {
                    let sums: *mut i32 = (&raw mut *sums).cast();
                    _mm512_storeu_si512(sums.cast(), found[0]);
                    _mm512_storeu_si512(sums.add(LANES).cast(), found[1]);
                }
            }
        }
    };
}

tiles!(
    /// Four unsigned integers of `x` meet four signed ones of each row of the panel.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI.
    quads, tile_of_quads, multiply_quads, "avx512f,avx512vnni", [TOGETHER; u8], Int8Step, Sums, true
);
tiles!(
    /// Two bf16, which lie in the room of an f32, meet two of each row of the panel. Sums begin anew.
    ///
    /// # Safety
    /// The processor has AVX-512 with BF16.
    pairs, tile_of_pairs, multiply_pairs, "avx512f,avx512bf16", [1; f32], Step, Step, false
);

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_quads(sum: __m512i, x: __m512i, weights: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, x, weights)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_pairs(sum: __m512i, x: __m512i, weights: __m512i) -> __m512i {
    // SAFETY: vectors of as many bits.
    let [x, weights] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([x, weights]) };
    _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), x, weights))
}

/// Rounds numbers to bf16, two of them in the room of an f32. One that has no other is with 0.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn narrow(numbers: &[f32], into: &mut [f32]) {
    assert_eq!(into.len(), numbers.len().div_ceil(2), "room for as many pairs");
    for first in (0..numbers.len()).step_by(2 * LANES) {
        let left = numbers.len() - first;
        // SAFETY: vectors are read and written as far as there are numbers and places.
        unsafe {
            let low = load(numbers.as_ptr().add(first), left);
            let high = load(numbers.as_ptr().wrapping_add(first + LANES), left.saturating_sub(LANES));
            let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            let place = into.as_mut_ptr().add(first / 2);
            _mm512_mask_storeu_epi32(place.cast(), mask(left.div_ceil(2)), pairs);
        }
    }
}

/// Converts a row that [`narrow`] wrote to f32.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn read_pairs(x: &Parts, row: usize, into: &mut [f32]) {
    /// Of numbers of two vectors, those of one and the other by turns.
    const TURNS: [[i32; LANES]; 2] = [
        [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23],
        [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31],
    ];
    assert!(x.columns() == into.len().div_ceil(2), "a row of other numbers");
    for (into, first) in into.chunks_mut(2 * PART).zip((0..x.columns()).step_by(PART)) {
        let pairs = x.from(first)[row].as_ptr();
        for place in (0..into.len()).step_by(2 * LANES) {
            let left = into.len() - place;
            // SAFETY: vectors are read and written as far as there are pairs and numbers; indices are vectors.
            unsafe {
                let pairs = _mm512_castps_si512(load(pairs.add(place / 2), left.div_ceil(2)));
                let lower = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                let upper = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(!0 << 16)));
                let turns = [
                    _mm512_loadu_si512(TURNS[0].as_ptr().cast()),
                    _mm512_loadu_si512(TURNS[1].as_ptr().cast()),
                ];
                let into = into.as_mut_ptr().add(place);
                _mm512_mask_storeu_ps(into, mask(left), _mm512_permutex2var_ps(lower, turns[0], upper));
                let (into, left) = (into.wrapping_add(LANES), left.saturating_sub(LANES));
                _mm512_mask_storeu_ps(into, mask(left), _mm512_permutex2var_ps(lower, turns[1], upper));
            }
        }
    }
}

/// The GELU of each number to 3e-7 of its size, or of 1 where that is less: [`crate::operations::gelu::activate`] without a division.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn activate(sums: &mut [Step]) {
    for vector in Step::numbers(sums).as_chunks_mut::<LANES>().0 {
        // SAFETY: each is a vector.
        unsafe {
            let value = _mm512_loadu_ps(vector.as_ptr());
            _mm512_storeu_ps(vector.as_mut_ptr(), gelu(value));
        }
    }
}

/// Turns int32 sums of rows with a panel into f32, by the scales of both, zero points and biases, with the products of outliers: the same
/// to the last bit as the functions of [`super::int8`].
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn scale(
    integer_sums: &[Sums],
    x: &[QuantisedRow],
    (scales, totals, bias): (&Step, &Sums, &Step),
    numbers: &[Int8Step],
    into: &mut [Step],
) {
    for half in 0..2 {
        let lane = half * LANES;
        // SAFETY: each of these is two vectors.
        unsafe {
            let scales = _mm512_loadu_ps(scales.0.as_ptr().add(lane));
            let totals = _mm512_loadu_si512(totals.0.as_ptr().add(lane).cast());
            let bias = _mm512_loadu_ps(bias.0.as_ptr().add(lane));
            for ((integers, x), into) in integer_sums.iter().zip(x).zip(&mut *into) {
                let sums = _mm512_loadu_si512(integers.0.as_ptr().add(lane).cast());
                let sums = _mm512_sub_epi32(sums, _mm512_mullo_epi32(totals, _mm512_set1_epi32(x.zero)));
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scale));
                let mut found = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale), bias);
                for Outlier { column, value } in &x.large {
                    let quads = numbers[column / TOGETHER].0[lane..].as_ptr();
                    // The number at its place among four, as the upper bits, and then alone.
                    let shift = _mm512_set1_epi32((8 * (TOGETHER - 1 - column % TOGETHER)) as i32);
                    let number = _mm512_sllv_epi32(_mm512_loadu_si512(quads.cast()), shift);
                    let number = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(number));
                    let product = _mm512_mul_ps(number, _mm512_mul_ps(scales, _mm512_set1_ps(*value)));
                    found = _mm512_add_ps(found, product);
                }
                _mm512_storeu_ps(into.0.as_mut_ptr().add(lane), found);
            }
        }
    }
}

/// Writes numbers of rows, which others are added to.
///
/// # Safety
/// The processor has AVX-512, and whoever calls has these places of `target` alone.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write(numbers: &[Step], others: Option<Rows>, target: Strip) {
    let masks = [mask(target.width()), mask(target.width().saturating_sub(LANES))];
    for (row, numbers) in numbers.iter().enumerate() {
        let mut added: *const f32 = std::ptr::null();
        if let Some(others) = others {
            let others = others.from(row).values;
            assert!(others.len() >= target.width(), "others of as many");
            added = others.as_ptr();
        }
        for (half, mask) in masks.into_iter().enumerate() {
            let lane = half * LANES;
            // SAFETY: a step is two vectors; others are read and written as far as the strip is wide.
            unsafe {
                let mut found = _mm512_loadu_ps(numbers.0.as_ptr().add(lane));
                if !added.is_null() {
                    found = _mm512_add_ps(found, _mm512_maskz_loadu_ps(mask, added.wrapping_add(lane)));
                }
                _mm512_mask_storeu_ps(target.at(row).wrapping_add(lane), mask, found);
            }
        }
    }
}

/// Writes numbers of rows in bf16, or their GELU, as exact as it is then.
///
/// # Safety
/// The processor has AVX-512 with BF16, and whoever calls has these places of `target` alone.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn write_narrow<const ACTIVATED: bool>(numbers: &[Step], target: Strip) {
    let used = mask(target.width());
    for (row, numbers) in numbers.iter().enumerate() {
        // SAFETY: a step is two vectors; bf16 are written as far as the strip is wide.
        unsafe {
            let mut low = _mm512_loadu_ps(numbers.0.as_ptr());
            let mut high = _mm512_loadu_ps(numbers.0.as_ptr().add(LANES));
            if ACTIVATED {
                (low, high) = (rough_gelu(low), rough_gelu(high));
            }
            let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(target.at(row).cast(), used, pairs);
        }
    }
}

/// The GELU to 1.3e-4: a polynomial of the normal distribution function of `value`, fitted so that it is 0 and 1 at its ends.
#[inline]
#[target_feature(enable = "avx512f")]
fn rough_gelu(value: __m512) -> __m512 {
    /// By the square of the value, from the highest power on.
    const TERMS: [f32; 8] = [
        -4.824_972e-10,
        5.341_667_6e-8,
        -2.386_121e-6,
        5.844_021_3e-5,
        -8.906_411e-4,
        9.071_31e-3,
        -6.512_415e-2,
        3.982_249_8e-1,
    ];
    // NaN stays NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(-4.0), _mm512_min_ps(_mm512_set1_ps(4.0), value));
    let square = _mm512_mul_ps(x, x);
    let mut sum = _mm512_set1_ps(TERMS[0]);
    for term in &TERMS[1..] {
        sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(*term));
    }
    _mm512_mul_ps(value, _mm512_fmadd_ps(sum, x, _mm512_set1_ps(0.5)))
}

/// The GELU of each number, see [`activate`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn gelu(value: __m512) -> __m512 {
    let x = _mm512_mul_ps(value, _mm512_set1_ps(std::f32::consts::FRAC_1_SQRT_2));
    let square = _mm512_mul_ps(x, x);
    let (mut above, mut below) = (_mm512_set1_ps(P[6] as f32), _mm512_set1_ps(Q[6] as f32));
    for power in (0..6).rev() {
        above = _mm512_fmadd_ps(above, square, _mm512_set1_ps(P[power] as f32));
        below = _mm512_fmadd_ps(below, square, _mm512_set1_ps(Q[power] as f32));
    }
    // 14 bits of 1 / below, and twice as many.
    let part = _mm512_rcp14_ps(below);
    let part = _mm512_fmadd_ps(_mm512_fnmadd_ps(below, part, _mm512_set1_ps(1.0)), part, part);
    let inside = _mm512_mul_ps(_mm512_mul_ps(x, above), part);
    let is_inside = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(4.0));
    let (one, sign) = (_mm512_set1_epi32(1f32.to_bits() as i32), _mm512_set1_epi32(i32::MIN));
    let outside = _mm512_or_si512(_mm512_and_si512(_mm512_castps_si512(x), sign), one);
    let error = _mm512_mask_mov_ps(_mm512_castsi512_ps(outside), is_inside, inside);
    let half = _mm512_mul_ps(value, _mm512_set1_ps(0.5));
    _mm512_fmadd_ps(half, error, half)
}

/// Makes of each score of a row e to its power, times `scale` and less the largest, and 0 behind its end; gives 1 by their sum. Each panel's
/// scores are `apart` steps behind those of the one before.
///
/// e^x is 2^x to 2e-7 of its value, to 5e-5 where it is to be `ROUGH`; less than 2^-1000 counts as that.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn exponentials<const ROUGH: bool>(
    sums: &mut [Step],
    apart: usize,
    length: usize,
    scale: f32,
) -> f32 {
    /// ln 2 to the power of each place, by its factorial, from the last one on.
    const TERMS: [f32; 8] = [
        1.525_273_4e-5,
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265_1e-1,
        std::f32::consts::LN_2,
        1.0,
    ];
    let panels = length.div_ceil(PANEL);
    assert!((panels - 1) * apart < sums.len(), "scores of a row");
    let sums: *mut f32 = sums.as_mut_ptr().cast();
    let place = |vector: usize| vector / 2 * apart * PANEL + vector % 2 * LANES;
    let vectors = length.div_ceil(LANES);
    // SAFETY: there are scores in each panel, and two vectors of them in a step.
    unsafe {
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for vector in 0..vectors {
            let used = mask(length - vector * LANES);
            let scores = _mm512_load_ps(sums.add(place(vector)));
            // NaN is passed over.
            largest = _mm512_mask_max_ps(largest, used, scores, largest);
        }
        let factor = scale * std::f32::consts::LOG2_E;
        let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest) * factor);
        let mut total = _mm512_setzero_ps();
        for vector in 0..2 * panels {
            let used = mask(length.saturating_sub(vector * LANES));
            let at = sums.add(place(vector));
            let x = _mm512_fmsub_ps(_mm512_load_ps(at), _mm512_set1_ps(factor), largest);
            // NaN stays NaN.
            let x = _mm512_max_ps(_mm512_set1_ps(-1000.0), x);
            let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let rest = _mm512_sub_ps(x, whole);
            let terms = if ROUGH { &TERMS[3..] } else { &TERMS[..] };
            let mut power = _mm512_set1_ps(terms[0]);
            for term in &terms[1..] {
                power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(*term));
            }
            let power = _mm512_maskz_scalef_ps(used, power, whole);
            total = _mm512_add_ps(total, power);
            _mm512_store_ps(at, power);
        }
        _mm512_reduce_add_ps(total).recip()
    }
}

/// Writes the softmax of a row of scores times `scale` in bf16. Each panel's scores, which do not stay, are `apart` steps behind those of
/// the one before.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn write_softmax(
    sums: &mut [Step],
    apart: usize,
    length: usize,
    scale: f32,
    into: &mut [f32],
) {
    assert_eq!(into.len(), length.div_ceil(2), "room for as many pairs");
    // SAFETY: the processor has AVX-512.
    let part = _mm512_set1_ps(unsafe { exponentials::<true>(sums, apart, length, scale) });
    for (panel, into) in into.chunks_mut(LANES).enumerate() {
        let scores = &sums[panel * apart].0;
        // SAFETY: a step is two vectors; pairs are written as far as there are places.
        unsafe {
            let low = _mm512_mul_ps(_mm512_load_ps(scores.as_ptr()), part);
            let high = _mm512_mul_ps(_mm512_load_ps(scores.as_ptr().add(LANES)), part);
            let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(into.as_mut_ptr().cast(), mask(into.len()), pairs);
        }
    }
}

/// Puts the bf16 of two rows side by side, those of a panel at most, and 0 where a row has none.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pair(rows: [&[f32]; 2], into: &mut Step) {
    // SAFETY: vectors are read as far as there are numbers, and a step is two vectors.
    unsafe {
        let first = _mm512_castps_si512(load(rows[0].as_ptr(), rows[0].len()));
        let second = _mm512_castps_si512(load(rows[1].as_ptr(), rows[1].len()));
        let into: *mut i32 = into.0.as_mut_ptr().cast();
        let low = both(_mm512_castsi512_si256(first), _mm512_castsi512_si256(second));
        _mm512_storeu_si512(into.cast(), low);
        let high = both(_mm512_extracti64x4_epi64::<1>(first), _mm512_extracti64x4_epi64::<1>(second));
        _mm512_storeu_si512(into.add(LANES).cast(), high);
    }
}

/// bf16 numbers, each beside one of the others.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(lower: __m256i, upper: __m256i) -> __m512i {
    _mm512_or_si512(_mm512_cvtepu16_epi32(lower), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(upper)))
}

/// A vector of as many numbers, and 0 in other places.
///
/// # Safety
/// The processor has AVX-512, and as many numbers are there, or those of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(numbers: *const f32, count: usize) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_maskz_loadu_ps(mask(count), numbers) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frozen::layers_in_tiles::pay;
    use crate::frozen::parts::Target;
    use crate::instructions::processor::{IntegerDot, Processor};

    #[test]
    fn bf16_probabilities_are_a_softmax() {
        let quads = |processor| matches!(processor, Processor::Avx512(_, IntegerDot::Quads));
        if !Processor::tested().into_iter().any(quads) || !is_x86_feature_detected!("avx512bf16") {
            return;
        }
        for (length, apart, scale) in [(1, 1, 1.0), (16, 3, 0.5), (33, 2, 2.0), (64, 1, 0.1), (257, 5, 0.3)] {
            let row =
                crate::noise::noise(length, 3).into_iter().map(|score| 20.0 * score).collect::<Vec<_>>();
            let mut sums = vec![Step([1e3; PANEL]); length.div_ceil(PANEL) * apart];
            for (panel, scores) in row.chunks(PANEL).enumerate() {
                sums[panel * apart].0[..scores.len()].copy_from_slice(scores);
            }
            let mut probabilities = Parts::default();
            probabilities.reshape(1, length.div_ceil(2));
            let mut found = vec![0f32; length];
            // SAFETY: the processor has AVX-512 with BF16.
            unsafe {
                let mut pairs = vec![f32::NAN; length.div_ceil(2)];
                write_softmax(&mut sums, apart, length, scale, &mut pairs);
                probabilities.target().write(0, 0, &pairs);
                read_pairs(&probabilities, 0, &mut found);
            }
            let mut expected: Vec<f32> = row.iter().map(|score| scale * score).collect();
            crate::operations::softmax::normalise(length, length, &mut expected);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= expected / 250.0 + 1e-30, "{length}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_narrow_gelu_is_as_exact_as_it_is_narrow() {
        if !Processor::tested().into_iter().any(|processor| pay(processor, 1 << 10)) {
            return;
        }
        for first in -300..300 {
            let numbers = Step(std::array::from_fn(|place| (first * 32 + place as i32) as f32 / 1024.0));
            let mut parts = Parts::default();
            parts.reshape(1, 16);
            let target: Target = parts.target();
            let mut found = [0f32; 32];
            // SAFETY: the processor has what tiles go with, and nobody else uses the row.
            unsafe {
                write_narrow::<true>(&[numbers], target.strip(0..1, 0, 16));
                read_pairs(&parts, 0, &mut found);
            }
            let mut exact = numbers.0;
            crate::operations::gelu::activate::<false>(&mut exact);
            for (found, exact) in found.iter().zip(exact) {
                assert!((found - exact).abs() <= 1.5e-4 + exact.abs() / 256.0, "{found} is not {exact}");
            }
        }
    }
}
