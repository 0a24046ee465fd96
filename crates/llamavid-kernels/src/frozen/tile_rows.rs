//! Numbers the way AMX tiles read them: 64 bytes of a row of `x`, a [`Line`], lie behind those of the row before.
//!
//! A f32 is the sum of three bf16, its pieces: what it is rounded to, what the rest is rounded to, and what is left, which bf16 holds
//! exactly (numbers less than 2^-110 aside). An f16 is the sum of two. The largest products of pieces, six or five, are as exact as
//! one in f32: G. Henry, P. Tang and A. Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations" (2019).

use std::arch::x86_64::{
    __m256i, __m512, _CMP_ORD_Q, _mm256_loadu_si256, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_mask_add_epi32,
    _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_srli_epi32,
    _mm512_store_si512, _mm512_sub_ps,
};

use super::matrices::{ROWS, STEP};
use super::parts::{PANEL, Step};
use super::tasks::{ThreadScratch, share_rows};
use super::tiles::HalfStep;

/// Numbers of a vector.
pub(crate) const LANES: usize = 16;
/// Numbers of a step in pieces. Those that are multiplied together are half as many apart: two vectors of a row lie that way.
pub(crate) const SPAN: usize = 2 * LANES;
/// Pieces of an f32.
pub(crate) const PIECES: usize = 3;

const _: () = assert!(PANEL == ROWS && STEP == ROWS, "a panel's rows are those of two tiles");

/// 64 bytes of a row of `x`, or 32 bits of each of 16 rows of weights.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileRow(pub(super) [u8; 64]);

impl TileRow {
    pub(crate) const ZERO: Self = Self([0; 64]);
}

/// Rows of `x`, [`ROWS`] after [`ROWS`]: of each step and each piece the tile rows of these rows.
#[derive(Debug, Default)]
pub(super) struct TileRows {
    lines: Vec<TileRow>,
    count: usize,
    columns: usize,
    steps: usize,
    pieces: usize,
}

/// Where tasks write tile rows of rows of their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    lines: *mut TileRow,
    steps: usize,
    pieces: usize,
}

// SAFETY: each task writes rows of its own.
unsafe impl Sync for Places {}

impl Places {
    /// The tile row of a row, a step and a piece. The next piece's is [`STEP`] tile rows further.
    #[inline(always)]
    pub(super) fn at(self, row: usize, step: usize, piece: usize) -> *mut TileRow {
        let index = ((row / ROWS * self.steps + step) * self.pieces + piece) * STEP + row % ROWS;
        self.lines.wrapping_add(index)
    }
}

impl TileRows {
    /// Makes room for other rows of `columns` numbers, of which a step has `of_a_step`, in pieces. They are any.
    pub(super) fn reshape(
        &mut self,
        count: usize,
        columns: usize,
        of_a_step: usize,
        pieces: usize,
    ) -> Places {
        (self.count, self.columns, self.pieces) = (count, columns, pieces);
        self.steps = columns.div_ceil(of_a_step);
        self.lines.resize(count.div_ceil(ROWS) * self.steps * pieces * STEP, TileRow::ZERO);
        Places { lines: self.lines.as_mut_ptr(), steps: self.steps, pieces }
    }

    /// Writes rows that `make` has, in three pieces; on all threads.
    ///
    /// # Safety
    /// The processor has AVX-512.
    pub(super) unsafe fn fill(
        &mut self,
        count: usize,
        columns: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        scratches: &mut Vec<ThreadScratch>,
    ) {
        let places = self.reshape(count, columns, SPAN, PIECES);
        share_rows(count, self.steps * SPAN, scratches, |row, index| {
            make(index, &mut row[..columns]);
            row[columns..].fill(0.0);
            // SAFETY: the processor has the instructions, as the caller promises, and only this task writes this row.
            unsafe { split_row(row, places, index) };
        });
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Lines of [`ROWS`] rows from a step on.
    pub(super) fn from(&self, rows: usize, step: usize) -> &[TileRow] {
        let of_rows = self.steps * self.pieces * STEP;
        &self.lines[rows * of_rows..][..of_rows][step * self.pieces * STEP..]
    }
}

/// Writes a row of whole steps in three pieces.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses this row's tile rows.
#[target_feature(enable = "avx512f")]
unsafe fn split_row(row: &[f32], places: Places, index: usize) {
    for (step, numbers) in row.as_chunks::<SPAN>().0.iter().enumerate() {
        // SAFETY: two vectors are a step; there is a tile row for each piece, as the caller promises.
        unsafe {
            let numbers = numbers.as_ptr();
            let numbers = [_mm512_loadu_ps(numbers), _mm512_loadu_ps(numbers.add(LANES))];
            split::<PIECES>(numbers, places.at(index, step, 0), STEP);
        }
    }
}

/// Writes as many steps of a row as there are, in pieces. Numbers that it lacks are 0.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn split_numbers<const COUNT: usize>(row: &[f32], into: &mut [TileRow], steps: usize) {
    assert!(row.len() <= steps * SPAN && steps * COUNT * STEP < into.len() + STEP, "lines for a row");
    for step in 0..steps {
        let numbers = row.as_ptr().wrapping_add(step * SPAN);
        let left = row.len().saturating_sub(step * SPAN);
        // SAFETY: vectors are read as far as there are numbers, and there is a tile row for each piece of each step.
        unsafe {
            let numbers = [
                _mm512_maskz_loadu_ps(mask(left), numbers),
                _mm512_maskz_loadu_ps(mask(left.saturating_sub(LANES)), numbers.wrapping_add(LANES)),
            ];
            split::<COUNT>(numbers, into.as_mut_ptr().add(step * COUNT * STEP), STEP);
        }
    }
}

/// Writes as many steps of a row as there are, whose numbers are bf16, as they are. Numbers that it lacks are 0.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy_pairs(row: &[f32], into: &mut [TileRow], steps: usize) {
    assert!(row.len() <= steps * LANES && steps * STEP < into.len() + STEP, "lines for a row");
    for step in 0..steps {
        let left = row.len().saturating_sub(step * LANES);
        // SAFETY: vectors are read as far as there are pairs, and there is a tile row for each step.
        unsafe {
            let pairs = _mm512_maskz_loadu_ps(mask(left), row.as_ptr().wrapping_add(step * LANES));
            _mm512_store_si512(into.as_mut_ptr().add(step * STEP).cast(), _mm512_castps_si512(pairs));
        }
    }
}

/// Writes numbers of two rows in pieces side by side, those of a panel at most, as two tile rows of weights. Numbers that they lack
/// are 0.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn split_rows<const COUNT: usize>(rows: [&[f32]; 2], into: &mut [TileRow]) {
    assert!((COUNT - 1) * STEP + 2 <= into.len(), "lines for two rows");
    for half in 0..2 {
        let first = half * LANES;
        // SAFETY: vectors are read as far as there are numbers, and there are two tile rows of each piece.
        unsafe {
            let numbers = [
                _mm512_maskz_loadu_ps(
                    mask(rows[0].len().saturating_sub(first)),
                    rows[0].as_ptr().wrapping_add(first),
                ),
                _mm512_maskz_loadu_ps(
                    mask(rows[1].len().saturating_sub(first)),
                    rows[1].as_ptr().wrapping_add(first),
                ),
            ];
            split::<COUNT>(numbers, into.as_mut_ptr().add(half), STEP);
        }
    }
}

/// The first lanes of a vector, as many as are wanted and as there are.
#[inline]
pub(super) fn mask(lanes: usize) -> u16 {
    if lanes >= LANES { u16::MAX } else { (1 << lanes) - 1 }
}

/// Writes pieces of numbers of two vectors, those of the first beside those of the second, `apart` tile rows from one
/// another.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses these tile rows.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn split<const COUNT: usize>(
    [mut first, mut second]: [__m512; 2],
    into: *mut TileRow,
    apart: usize,
) {
    let (half, upper) = (_mm512_set1_epi32(1 << 15), _mm512_set1_epi32(!0 << 16));
    for piece in 0..COUNT {
        let (mut bits, mut others) = (_mm512_castps_si512(first), _mm512_castps_si512(second));
        // Nothing is left behind the last of three. NaN stays NaN, which rounding might turn into 0.
        if piece + 1 < PIECES {
            let numbers = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(first, first);
            bits = _mm512_mask_add_epi32(bits, numbers, bits, half);
            let numbers = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(second, second);
            others = _mm512_mask_add_epi32(others, numbers, others, half);
        }
        others = _mm512_and_si512(others, upper);
        let both = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), others);
        // SAFETY: as the caller promises.
        unsafe { _mm512_store_si512(into.add(piece * apart).cast(), both) };
        if piece + 1 < COUNT {
            first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_and_si512(bits, upper)));
            second = _mm512_sub_ps(second, _mm512_castsi512_ps(others));
        }
    }
}

/// A number of each row of a panel in vectors.
pub(super) trait Number: Copy {
    /// # Safety
    /// The processor has AVX-512.
    unsafe fn vectors(&self) -> [__m512; 2];
}

impl Number for Step {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn vectors(&self) -> [__m512; 2] {
        // SAFETY: a step is two vectors.
        unsafe { [_mm512_loadu_ps(self.0.as_ptr()), _mm512_loadu_ps(self.0.as_ptr().add(LANES))] }
    }
}

impl Number for HalfStep {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn vectors(&self) -> [__m512; 2] {
        let halves: *const __m256i = self.0.as_ptr().cast();
        // SAFETY: a step is two vectors of f16.
        unsafe {
            [_mm512_cvtph_ps(_mm256_loadu_si256(halves)), _mm512_cvtph_ps(_mm256_loadu_si256(halves.add(1)))]
        }
    }
}

/// Lays out a part of a panel in pieces, as weights of [`super::matrices::multiply`]. Numbers that a last step lacks are 0.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn split_panel<const COUNT: usize, N: Number>(panel: &[N], into: &mut [TileRow]) {
    let (into, _) = into.as_chunks_mut::<STEP>();
    let (steps, _) = into.as_chunks_mut::<COUNT>();
    assert!(steps.len() * SPAN >= panel.len(), "room for a part of a panel");
    for (numbers, into) in panel.chunks(SPAN).zip(steps) {
        let into: *mut TileRow = into.as_mut_ptr().cast();
        for place in 0..LANES {
            // SAFETY: the processor has the instructions, and two tile rows of each piece are there for each place.
            unsafe {
                let nothing = [_mm512_setzero_ps(); 2];
                let first = if place < numbers.len() { numbers[place].vectors() } else { nothing };
                let other = place + LANES;
                let second = if other < numbers.len() { numbers[other].vectors() } else { nothing };
                split::<COUNT>([first[0], second[0]], into.add(2 * place), STEP);
                split::<COUNT>([first[1], second[1]], into.add(2 * place + 1), STEP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::frozen::layers_in_tiles::pay;
    use crate::instructions::processor::Processor;

    /// Pieces of a number, from the largest on; none without AVX-512.
    fn pieces<const COUNT: usize>(value: f32) -> Option<[f32; COUNT]> {
        if !Processor::tested().into_iter().any(|processor| pay(processor, 1 << 10)) {
            return None;
        }
        let mut lines = vec![TileRow::ZERO; COUNT * STEP];
        // SAFETY: the processor has AVX-512, and there is a tile row for each piece.
        unsafe { split_numbers::<COUNT>(&[0.0, value], &mut lines, 1) };
        Some(std::array::from_fn(|piece| {
            let TileRow(bytes) = lines[piece * STEP];
            assert_eq!(bytes[..4], [0; 4], "beside 0, with which it is multiplied later");
            bf16::from_le_bytes([bytes[4], bytes[5]]).to_f32()
        }))
    }

    #[test]
    fn pieces_sum_up_to_their_number() {
        let mut state = 1u32;
        for _ in 0..10_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(state);
            // Pieces of smaller ones are too small for bf16, and larger ones are rounded to what is not finite.
            if !(1e-32..3e38).contains(&value.abs()) {
                continue;
            }
            let Some([first, second, third]) = pieces::<3>(value) else { return };
            assert_eq!(first + (second + third), value, "{value:e}");
            assert!(
                second.abs() <= value.abs() * 2f32.powi(-8) && third.abs() <= value.abs() * 2f32.powi(-16)
            );
            let half = half::f16::from_f32(value.abs().ln()).to_f32();
            assert_eq!(pieces::<2>(half).unwrap().iter().sum::<f32>(), half);
        }
    }

    #[test]
    fn nan_stays_nan_in_pieces() {
        for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7fc0_0000, 0xffff_8000] {
            let value = f32::from_bits(bits);
            let Some(three) = pieces::<3>(value) else { return };
            assert!(three.iter().sum::<f32>().is_nan());
            assert!(!pieces::<1>(value).unwrap()[0].is_finite());
        }
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            let Some(three) = pieces::<3>(value) else { return };
            assert!(!three.iter().sum::<f32>().is_finite());
            assert_eq!(pieces::<1>(value), Some([value]));
        }
    }
}
