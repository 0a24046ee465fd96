//! Weights of each format in pieces.

use std::arch::x86_64::{
    __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_and_si512, _mm512_castsi256_si512,
    _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtph_ps, _mm512_extracti64x4_epi64, _mm512_fmsub_ps,
    _mm512_loadu_si512, _mm512_mask_permutexvar_epi8, _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_test_epi32_mask,
};
use std::marker::PhantomData;

use super::TASK_PANELS;
use super::numbers::{Largest, Place, STEP, in_pieces, pairs, sixteen_bit, steps_of, two};
use crate::formats::block_types::{NUMBERS, each_eighth};
use crate::formats::integer_blocks::{IntegerBlock, Row, Scales};
use crate::instructions::amx::{Piece, RUN};
use crate::instructions::prefetch::CACHE_LINE;

/// How numbers of a row of weights become pieces.
pub(super) trait Source {
    /// Pieces of a weight.
    const LEFT: usize;
    /// Pieces of a number of `x`.
    const RIGHT: usize;
    /// What is multiplied, of each step the largest products last, and in an order in which most have an operand of those before.
    const PAIRS: &'static [[usize; 2]];
    /// The same where the last pieces of all weights are 0.
    const PAIRS_WITHOUT_LAST: &'static [[usize; 2]] = Self::PAIRS;
    /// Whether the sums of each part are added up by themselves.
    const AFRESH: bool = false;
    /// Cache lines of a part of `x` that are prefetched with each of the pairs that the part before is multiplied with, in all panels of
    /// a task.
    const LINES: usize = (Self::RIGHT * Self::PART / RUN * size_of::<Piece>() / CACHE_LINE)
        .div_ceil(TASK_PANELS * Self::PAIRS.len());
    /// Numbers of a row that are multiplied at a time, whole runs: the pieces of 32 rows of both operands and the sums stay in the L1
    /// cache.
    const PART: usize;

    /// Lays out up to [`super::LAID_OUT`] numbers of a row from a column on that is a multiple of it, with zeros up to a multiple of
    /// [`RUN`], and tells whether a last piece is needed; none if pieces cannot stand for them.
    ///
    /// # Safety
    /// The processor has the instructions, the row has these numbers, and there is room for them.
    unsafe fn lay_out(row: &[u8], from: usize, length: usize, place: Place) -> Option<bool>;
}

/// Weights in f32.
pub(super) struct InF32;

impl Source for InF32 {
    const LEFT: usize = 3;
    const RIGHT: usize = 3;
    const PAIRS: &'static [[usize; 2]] =
        &pairs::<24, 3, 3>(&[[0, 2], [0, 1], [1, 1], [1, 0], [2, 0], [0, 0]]);
    const PAIRS_WITHOUT_LAST: &'static [[usize; 2]] =
        &pairs::<20, 3, 3>(&[[0, 2], [0, 1], [1, 1], [1, 0], [0, 0]]);
    const AFRESH: bool = true;
    const PART: usize = 2 * RUN;

    #[inline(always)]
    unsafe fn lay_out(row: &[u8], from: usize, length: usize, place: Place) -> Option<bool> {
        // SAFETY: as the caller promises.
        unsafe {
            let values = row.as_ptr().cast::<f32>().add(from);
            let (mut largest, mut last) = (Largest::new(), _mm512_setzero_si512());
            for step in 0..steps_of(length) {
                let numbers = two(values.wrapping_add(step * STEP), length.saturating_sub(step * STEP));
                largest.note(numbers);
                let pieces = in_pieces::<3>(numbers);
                last = _mm512_or_si512(last, pieces[2]);
                place.write(step, pieces);
            }
            largest.possible(_mm512_test_epi32_mask(last, last) != 0)
        }
    }
}

/// Weights in half precision.
pub(super) struct InF16;

impl Source for InF16 {
    const LEFT: usize = 2;
    const RIGHT: usize = 2;
    const PAIRS: &'static [[usize; 2]] = &pairs::<12, 2, 2>(&[[0, 1], [0, 0], [1, 0]]);
    const PART: usize = 2 * RUN;

    #[inline(always)]
    unsafe fn lay_out(row: &[u8], from: usize, length: usize, place: Place) -> Option<bool> {
        // SAFETY: as the caller promises.
        unsafe {
            let values = row.as_ptr().cast::<i16>().add(from);
            let mut largest = Largest::new();
            for step in 0..steps_of(length) {
                let bits = sixteen_bit(values.wrapping_add(step * STEP), length.saturating_sub(step * STEP));
                let numbers = [
                    _mm512_cvtph_ps(_mm512_castsi512_si256(bits)),
                    _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(bits)),
                ];
                largest.note(numbers);
                place.write(step, in_pieces::<2>(numbers));
            }
            largest.possible(true)
        }
    }
}

/// Weights that are pieces as they are.
pub(super) struct InBf16;

impl Source for InBf16 {
    const LEFT: usize = 1;
    const RIGHT: usize = 2;
    const PAIRS: &'static [[usize; 2]] = &pairs::<8, 1, 2>(&[[0, 1], [0, 0]]);
    const PART: usize = 2 * RUN;

    #[inline(always)]
    unsafe fn lay_out(row: &[u8], from: usize, length: usize, place: Place) -> Option<bool> {
        // SAFETY: as the caller promises.
        unsafe {
            let values = row.as_ptr().cast::<i16>().add(from);
            let mut largest = Largest::new();
            for step in 0..steps_of(length) {
                let bits = sixteen_bit(values.wrapping_add(step * STEP), length.saturating_sub(step * STEP));
                let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits));
                let second = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(!0xffff)));
                largest.note([first, second]);
                place.write(step, [bits]);
            }
            largest.possible(true)
        }
    }
}

/// Weights in blocks.
pub(super) struct InBlocks<B>(PhantomData<B>);

impl<B: IntegerBlock> Source for InBlocks<B> {
    const LEFT: usize = 1;
    const RIGHT: usize = 1;
    const PAIRS: &'static [[usize; 2]] = &pairs::<8, 1, 1>(&[[0, 0]]);
    const PART: usize = NUMBERS;

    #[inline(always)]
    unsafe fn lay_out(row: &[u8], from: usize, _length: usize, place: Place) -> Option<bool> {
        let row = Row::new::<B>(row);
        // Integers become the lower bits of f32 that begin with `one`, so that no instruction has to convert them.
        let (upper, one, byte) =
            if B::EIGHT_BITS { (0x4700_0000, 32768.0, 1) } else { (0x4300_0000, 128.0, 2) };
        let at = row.at::<B>(from / NUMBERS);
        // SAFETY: the row has this block, as the caller promises.
        unsafe {
            let Scales { scales, mins } = B::scales(at);
            let (mut of_groups, mut less) = ([0f32; 16], [0f32; 16]);
            for vector in 0..B::VECTORS {
                // Exact for eight bits, whose scales have eleven and whose mins are a power of two times those.
                let less_and_one = _mm256_fmadd_ps(scales[vector], _mm256_set1_ps(one), mins[vector]);
                _mm256_storeu_ps(of_groups.as_mut_ptr().add(8 * vector), scales[vector]);
                _mm256_storeu_ps(less.as_mut_ptr().add(8 * vector), less_and_one);
            }
            let places = [place_of_bytes(byte, 0), place_of_bytes(byte, 16)];
            each_eighth!(eighth => {
                let whole = _mm512_castsi256_si512(B::numbers(at, eighth));
                let mut numbers = [_mm512_setzero_ps(); 2];
                for half in 0..2 {
                    let group = (2 * eighth + half) * B::VECTORS / 2;
                    let upper = _mm512_set1_epi32(upper);
                    let bits = _mm512_mask_permutexvar_epi8(upper, 0x1111_1111_1111_1111 << byte, places[half], whole);
                    let (scale, less) = (_mm512_set1_ps(of_groups[group]), _mm512_set1_ps(less[group]));
                    numbers[half] = _mm512_fmsub_ps(_mm512_castsi512_ps(bits), scale, less);
                }
                place.write(eighth, in_pieces::<1>(numbers));
            });
        }
        Some(true)
    }
}

/// For each of 16 numbers of 32 bits the place among bytes from `first` on that its byte comes from.
#[inline(always)]
unsafe fn place_of_bytes(byte: usize, first: u8) -> __m512i {
    let mut places = [[0u8; 4]; 16];
    for (number, places) in (first..).zip(&mut places) {
        places[byte] = number;
    }
    // SAFETY: as many bytes are a vector; whoever calls it has the instructions.
    unsafe { _mm512_loadu_si512(places.as_ptr().cast()) }
}
