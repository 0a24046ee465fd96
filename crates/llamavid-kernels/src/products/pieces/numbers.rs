//! Numbers in pieces: how many there are of each, and where tiles read them.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64,
    _mm512_loadu_ps, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_max_epu32,
    _mm512_reduce_max_epu32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_si512,
    _mm512_sub_ps,
};
use std::ops::RangeInclusive;

use crate::instructions::amx::{ROWS, RUN, SIDE};
use crate::instructions::vector::widest;

/// Numbers of a row that a tile takes.
pub(crate) const STEP: usize = 2 * SIDE;
/// Of the largest number of a row, without its sign: products of two, and of their last pieces, stay within f32.
const LARGEST: RangeInclusive<f32> = 3.552_713_7e-15..=2.814_749_8e14;

/// The pairs of halves of pieces of each step of a part: `ALL` in all. Numbers have so many pieces on the left and on the right.
pub(crate) const fn pairs<const ALL: usize, const LEFT: usize, const RIGHT: usize>(
    of_step: &[[usize; 2]],
) -> [[usize; 2]; ALL] {
    let mut pairs = [[0; 2]; ALL];
    let mut index = 0;
    while index < ALL {
        let (step, [left, right]) = (index / of_step.len(), of_step[index % of_step.len()]);
        pairs[index] = [half_of_step::<LEFT>(step, left), half_of_step::<RIGHT>(step, right)];
        index += 1;
    }
    pairs
}

/// Where the pieces of a part of a row go: those of its first [`RUN`] numbers, all of the first ones before the second ones, then those
/// of the next.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Those of its first numbers.
    pub(crate) first: *mut __m512i,
}

impl Place {
    /// Writes the pieces of a step.
    ///
    /// # Safety
    /// There is room for them, and the processor has AVX-512.
    #[inline(always)]
    pub(crate) unsafe fn write<const N: usize>(self, step: usize, pieces: [__m512i; N]) {
        for (piece, vector) in pieces.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { _mm512_storeu_si512(self.first.add(half_of_step::<N>(step, piece) * ROWS), vector) };
        }
    }
}

/// The half of a piece that a step of a part has of one of `N` pieces, by its number.
#[inline(always)]
pub(super) const fn half_of_step<const N: usize>(step: usize, piece: usize) -> usize {
    const STEPS: usize = RUN / STEP;
    (step / STEPS * N + piece) * STEPS + step % STEPS
}

/// Steps that numbers of a part take with the zeros behind them.
#[inline(always)]
pub(crate) const fn steps_of(length: usize) -> usize {
    length.div_ceil(RUN) * (RUN / STEP)
}

/// The largest of some numbers, without signs.
pub(super) struct Largest(__m512i);

impl Largest {
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        // SAFETY: whoever calls it has the instructions, here and below.
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    pub(super) unsafe fn note(&mut self, numbers: [__m512; 2]) {
        for numbers in numbers {
            // SAFETY: as above. Without signs, bits are in the order of the numbers, and what is not finite comes last.
            unsafe {
                let bits = _mm512_and_si512(_mm512_castps_si512(numbers), _mm512_set1_epi32(i32::MAX));
                self.0 = _mm512_max_epu32(self.0, bits);
            }
        }
    }

    /// Something, if several pieces can stand for them.
    #[inline(always)]
    pub(super) unsafe fn possible<T>(&self, something: T) -> Option<T> {
        // SAFETY: as above.
        if unsafe { self.is_possible() } { Some(something) } else { None }
    }

    /// Whether several pieces can stand for them.
    #[inline(always)]
    pub(super) unsafe fn is_possible(&self) -> bool {
        // SAFETY: as above.
        let largest = f32::from_bits(unsafe { _mm512_reduce_max_epu32(self.0) });
        largest == 0.0 || LARGEST.contains(&largest)
    }
}

/// Up to 32 numbers from an address on, `left` of them, and zeros.
///
/// # Safety
/// The processor has AVX-512, and they can be read.
#[inline(always)]
pub(crate) unsafe fn two(at: *const f32, left: usize) -> [__m512; 2] {
    // SAFETY: as the caller promises; what is masked is not read.
    unsafe {
        if left >= STEP {
            return [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(SIDE))];
        }
        let mask = (1u32 << left) - 1;
        [
            _mm512_maskz_loadu_ps(mask as u16, at),
            _mm512_maskz_loadu_ps((mask >> SIDE) as u16, at.wrapping_add(SIDE)),
        ]
    }
}

/// The same of 16-bit numbers.
///
/// # Safety
/// As [`two`].
#[inline(always)]
pub(super) unsafe fn sixteen_bit(at: *const i16, left: usize) -> __m512i {
    let mask = if left >= STEP { u32::MAX } else { (1u32 << left) - 1 };
    // SAFETY: as the caller promises; what is masked is not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, at) }
}

/// The pieces of 32 numbers.
#[inline(always)]
pub(crate) unsafe fn in_pieces<const N: usize>(numbers: [__m512; 2]) -> [__m512i; N] {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        let mut pieces = [_mm512_setzero_si512(); N];
        let [mut first, mut second] = numbers;
        for (index, piece) in pieces.iter_mut().enumerate() {
            let nearest = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            *piece = nearest;
            if index + 1 < N {
                let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(nearest));
                let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(nearest));
                first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(low)));
                second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(high)));
            }
        }
        pieces
    }
}

#[inline(always)]
fn pieces_of_inline<const FUSED: bool>(values: &[f32]) -> usize {
    let rounded = |value: f32| {
        let bits = value.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    };
    let (mut one, mut two) = (true, true);
    for value in values {
        let rest = value - rounded(*value);
        one &= rest == 0.0;
        // Pieces of less are too small for tiles.
        two &= value.abs() <= f32::MAX / 4.0 && (rest == 0.0 || rest.abs() >= f32::MIN_POSITIVE);
        two &= rest == rounded(rest);
    }
    match (one && two, two) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}
widest!(
    /// Pieces that numbers need, 3 where two do not stand for all of them exactly.
    pub(crate) fn pieces_of(values: &[f32]) -> usize = pieces_of_inline
);
