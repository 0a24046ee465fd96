//! Rows that become columns: the right operand, and numbers as they are.

use std::arch::x86_64::{
    __m512i, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::ops::Range;

use rayon::prelude::*;

use super::numbers::{Largest, STEP, half_of_step, in_pieces, steps_of, two};
use super::sources::Source;
use crate::instructions::amx::{Piece, ROWS, RUN, SIDE};
use crate::products::panels::Panels;

/// Rows of `x` as the right operand: parts of all rows, 32 rows after the other.
pub(super) struct Right {
    pub(super) pieces: Vec<Piece>,
    /// Pieces of a part of 32 rows.
    pub(super) block: usize,
}

impl Right {
    /// None if pieces cannot stand for the rows.
    pub(super) fn new<S: Source>(panels: &Panels, parallel: bool) -> Option<Self> {
        let Panels { x, stride, count, .. } = *panels;
        let columns = panels.layer.columns;
        let block = S::RIGHT * (S::PART / RUN);
        let blocks = count.div_ceil(ROWS);
        let length = columns.div_ceil(S::PART) * blocks * block;
        let mut pieces = Vec::with_capacity(length);
        let fill = |(index, into): (usize, &mut [std::mem::MaybeUninit<Piece>])| {
            let (part, first) = (index / blocks * S::PART, index % blocks * ROWS);
            let rows = &x[first * stride..x.len().min((first + ROWS) * stride)];
            // SAFETY: the processor has the instructions, the rows have numbers from `part` on, and there is room for their pieces.
            unsafe {
                lay_out_right::<S>(rows, stride, part..columns.min(part + S::PART), into.as_mut_ptr().cast())
            }
            .then_some(())
        };
        let room = &mut pieces.spare_capacity_mut()[..length];
        match parallel {
            true => room.par_chunks_exact_mut(block).enumerate().try_for_each(fill),
            false => room.chunks_exact_mut(block).enumerate().try_for_each(fill),
        }?;
        // SAFETY: all that is read of them was written: the last part of a row may take fewer.
        unsafe { pieces.set_len(length) };
        Some(Self { pieces, block })
    }
}

/// Lays out a part of up to 32 rows, of which each starts `stride` numbers after the one before; false if pieces cannot stand for it.
///
/// # Safety
/// The processor has the instructions, the rows have these columns, and there is room for the part.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn lay_out_right<S: Source>(
    rows: &[f32],
    stride: usize,
    part: Range<usize>,
    into: *mut __m512i,
) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        match S::RIGHT {
            1 => lay_out_pieces::<1>(rows, stride, part, into),
            2 => lay_out_pieces::<2>(rows, stride, part, into),
            _ => lay_out_pieces::<3>(rows, stride, part, into),
        }
    }
}

/// The same in so many pieces, for weights.
///
/// # Safety
/// As [`lay_out_right`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
pub(crate) unsafe fn lay_out_columns<const N: usize>(
    rows: &[f32],
    stride: usize,
    part: Range<usize>,
    into: *mut __m512i,
) -> bool {
    // SAFETY: as the caller promises.
    unsafe { lay_out_pieces::<N>(rows, stride, part, into) }
}

/// # Safety
/// As [`lay_out_right`].
#[inline(always)]
unsafe fn lay_out_pieces<const N: usize>(
    rows: &[f32],
    stride: usize,
    part: Range<usize>,
    into: *mut __m512i,
) -> bool {
    let (from, length) = (part.start, part.len());
    let steps = steps_of(length);
    let count = rows.len().div_ceil(stride);
    let mut possible = true;
    // SAFETY: as the caller promises.
    unsafe {
        for half in 0..2 {
            for step in 0..steps {
                let mut pieces = [[_mm512_setzero_si512(); SIDE]; N];
                for (place, row) in (half * SIDE..count.min((half + 1) * SIDE)).enumerate() {
                    let at = rows.as_ptr().wrapping_add(row * stride + from + step * STEP);
                    let found = in_pieces::<N>(two(at, length.saturating_sub(step * STEP)));
                    for (pieces, found) in pieces.iter_mut().zip(found) {
                        pieces[place] = found;
                    }
                }
                for (piece, rows) in pieces.into_iter().enumerate() {
                    let tile = half_of_step::<N>(step, piece) * ROWS + half * SIDE;
                    for (place, pairs) in transposed(rows).into_iter().enumerate() {
                        _mm512_storeu_si512(into.add(tile + place), pairs);
                    }
                }
            }
        }
        if N > 1 {
            for row in rows.chunks(stride) {
                let mut largest = Largest::new();
                for step in 0..steps {
                    let at = row.as_ptr().wrapping_add(from + step * STEP);
                    largest.note(two(at, length.saturating_sub(step * STEP)));
                }
                possible &= largest.is_possible();
            }
        }
    }
    possible
}

/// Sixteen vectors of as many numbers: rows become columns.
#[inline(always)]
pub(super) unsafe fn transposed(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        let mut found = rows;
        // Of each four rows, a vector has the same place of every four numbers.
        let mut fours = [[_mm512_setzero_si512(); 4]; 4];
        for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
            let [a, b, c, d] = *rows;
            let (ab, ab_upper) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_upper) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            *four = [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_upper, cd_upper),
                _mm512_unpackhi_epi64(ab_upper, cd_upper),
            ];
        }
        for column in 0..4 {
            let [a, b, c, d] = [fours[0][column], fours[1][column], fours[2][column], fours[3][column]];
            let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (others, odd_others) =
                (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
            found[column] = _mm512_shuffle_i32x4::<0x88>(even, others);
            found[4 + column] = _mm512_shuffle_i32x4::<0x88>(odd, odd_others);
            found[8 + column] = _mm512_shuffle_i32x4::<0xdd>(even, others);
            found[12 + column] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_others);
        }
        found
    }
}

/// Writes rows of `columns` numbers as columns of rows that start `stride` numbers after one another.
///
/// # Safety
/// [`super::pay`] was true of the processor.
pub(crate) unsafe fn transpose(rows: &[f32], columns: usize, into: &mut [f32], stride: usize) {
    let count = rows.len() / columns;
    assert!(count <= stride && columns * stride <= into.len(), "room for columns");
    // SAFETY: what has tiles has AVX-512, and there is room for the columns.
    unsafe { transpose_vectors(rows, columns, into.as_mut_ptr(), stride) }
}

/// # Safety
/// The processor has AVX-512, and there is room for the columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
unsafe fn transpose_vectors(rows: &[f32], columns: usize, into: *mut f32, stride: usize) {
    let count = rows.len() / columns;
    let mask = |left: usize| if left >= SIDE { u16::MAX } else { (1 << left) - 1 };
    for row in (0..count).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            let mut found = [_mm512_setzero_si512(); SIDE];
            // SAFETY: as the caller promises; what is masked is neither read nor written.
            unsafe {
                for (place, found) in found.iter_mut().enumerate().take(count - row) {
                    let at = rows.as_ptr().add((row + place) * columns + column);
                    *found = _mm512_maskz_loadu_epi32(mask(columns - column), at.cast());
                }
                for (place, found) in transposed(found).into_iter().enumerate().take(columns - column) {
                    let at = into.add((column + place) * stride + row);
                    _mm512_mask_storeu_epi32(at.cast(), mask(count - row), found);
                }
            }
        }
    }
}
