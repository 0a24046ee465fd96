//! Products of many rows with weights in AMX's tiles, of numbers in pieces of 16 bits (bf16): a number of 32 bits is the sum of up to
//! three, each what is nearest to what those before it leave.
//!
//! A piece has 8 bits of its number's significand and sums are f32, so that the number of pieces, and of their products, is how exact a
//! product is:
//!
//! - Weights in blocks stand for few bits. They and `x` are a piece each, and one product of them errs by up to 2^-7, 0.23 % in the mean of
//!   squares. Rows that are rounded to 8 bits, as elsewhere beside such weights, err by 0.4 to 0.6 %.
//! - Weights in 16 bits are exactly one piece (bf16) or two (f16). With `x` in two, and all products but that of both second ones, it is
//!   up to 2^-15, and 2^-18 in the mean of squares.
//! - Weights in f32 are three pieces, and so is `x`: exactly, but for numbers next to none. Six products of pieces are left when those are
//!   gone that are below the last bit of the number's product, and five where no weight needs its third piece, as of numbers that half
//!   precision holds. The largest of them is added last, and all afresh for every part of a row, so that sums err as those of f32 do:
//!   nothing that is computed in f32 elsewhere is rounded here.
//!
//! What several pieces cannot stand for, which is what is not finite or so large or small that their products leave f32's range, goes
//! to the panels in f32. Single pieces stand for whatever f32 does, but for what is less than 2^-126: tiles take that for 0.
//!
//! Rows of weights are the left operand as they lie, so that they only have to be converted. `x` is the right one, in pairs of
//! numbers of its rows, and is laid out once for all weights.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps,
    _mm512_and_si512, _mm512_castps_si512, _mm512_castsi256_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtph_ps,
    _mm512_extracti64x4_epi64, _mm512_fmsub_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_permutexvar_epi8, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi16,
    _mm512_maskz_loadu_epi32, _mm512_maskz_loadu_ps, _mm512_max_epu32, _mm512_or_si512,
    _mm512_reduce_max_epu32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
    _mm512_test_epi32_mask, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::marker::PhantomData;
use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

use crate::amx::{Asked, LONGEST, Piece, ROWS, RUN, SIDE, Sums, Tiles};
use crate::block_format::BlockFormat;
use crate::block_types::{NUMBERS, each_eighth, with_block};
use crate::block_vectors::{LINE, ask_second_cache};
use crate::integer_panels::into_cache;
use crate::interleaved::INTERLEAVED_ROWS;
use crate::panels::Panels;
use crate::plain_rows;
use crate::processor::{Processor, WholeNumbers};
use crate::products::{Output, row_bytes};
use crate::whole_blocks::{MOST_BYTES, Row, Scales, WholeBlock};

/// Numbers of a row that a tile takes.
pub(crate) const STEP: usize = 2 * SIDE;
/// Numbers of a row of weights that are laid out at a time, whole parts.
const LAID_OUT: usize = NUMBERS;
/// Panels of 32 rows of weights of a task at most: each part of `x` is read for all of them.
const TASK_PANELS: usize = 8;
/// Rows of `x` up to which reading the weights takes most of the time: panels are tasks of their own then, which are read in the order in
/// which they lie before all else.
const FEW: usize = 64;
/// Rows of `x` that are multiplied at a time at most: their sums with a task's panels stay in the second cache.
const X_ROWS: usize = 512;
/// Of the largest number of a row, without its sign: products of two, and of their last pieces, stay within f32.
const LARGEST: RangeInclusive<f32> = 3.552_713_7e-15..=2.814_749_8e14;

/// Whether so many rows are multiplied with weights of a format in pieces: where the processor has tiles, and what is won is worth the
/// conversion of the weights.
pub(crate) fn pay(processor: Processor, format: BlockFormat, count: usize) -> bool {
    let few = match format {
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => plain_rows::most(format),
        // Up to two tiles of whole numbers take no longer than the weights' way from memory.
        _ => 2 * SIDE,
    };
    matches!(processor, Processor::Avx512(_, WholeNumbers::Tiles)) && count > few
}

/// Writes what a layer makes of rows, all of it, or adds to it.
///
/// # Safety
/// [`pay`] was true of them. The result must live, and nobody else may use it.
pub(crate) unsafe fn multiply(panels: Panels, output: Output, parallel: bool) {
    let Panels { layer, x, stride, count, .. } = panels;
    let rows = count.div_ceil(count.div_ceil(X_ROWS)).next_multiple_of(ROWS);
    for (index, x) in x.chunks(rows * stride).enumerate() {
        let panels = Panels { x, count: rows.min(count - index * rows), ..panels };
        let output = output.below(index * rows);
        let format = layer.weights.format();
        // SAFETY: as the caller promises.
        unsafe {
            match format {
                BlockFormat::F32 => multiply_from::<Singles>(panels, output, parallel),
                BlockFormat::F16 => multiply_from::<InF16>(panels, output, parallel),
                BlockFormat::BF16 => multiply_from::<InBf16>(panels, output, parallel),
                _ => with_block!(format, B => multiply_from::<InBlocks<B>>(panels, output, parallel), ()),
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn multiply_from<S: Source>(panels: Panels, output: Output, parallel: bool) {
    let x = Right::new::<S>(&panels, parallel);
    panels.in_tasks(if panels.count <= FEW { 1 } else { TASK_PANELS }, output, parallel, |rows| {
        let Some(x) = &x else { return false };
        // SAFETY: the processor has the instructions; the columns of the result belong to the task, as the caller promises.
        unsafe { Task { panels, x, rows, output }.run::<S>() }
    });
}

/// How numbers of a row of weights become pieces.
trait Source {
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
    /// Lines of a part of `x` that are asked for with each of the pairs that the part before is multiplied with, in all panels of a task.
    const LINES: usize = (Self::RIGHT * Self::PART / RUN * size_of::<Piece>() / LINE)
        .div_ceil(TASK_PANELS * Self::PAIRS.len());
    /// Numbers of a row that are multiplied at a time, whole runs: the pieces of 32 rows of both operands and the sums stay in the first
    /// cache.
    const PART: usize;

    /// Lays out up to [`LAID_OUT`] numbers of a row from a column on that is a multiple of it, with zeros up to a multiple of [`RUN`], and
    /// tells whether a last piece is needed; none if pieces cannot stand for them.
    ///
    /// # Safety
    /// The processor has the instructions, the row has these numbers, and there is room for them.
    unsafe fn lay_out(row: &[u8], from: usize, length: usize, place: Place) -> Option<bool>;
}

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
const fn half_of_step<const N: usize>(step: usize, piece: usize) -> usize {
    const STEPS: usize = RUN / STEP;
    (step / STEPS * N + piece) * STEPS + step % STEPS
}

/// Steps that numbers of a part take with the zeros behind them.
#[inline(always)]
pub(crate) const fn steps_of(length: usize) -> usize {
    length.div_ceil(RUN) * (RUN / STEP)
}

/// The largest of some numbers, without signs.
struct Largest(__m512i);

impl Largest {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: whoever calls it has the instructions, here and below.
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    unsafe fn note(&mut self, numbers: [__m512; 2]) {
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
    unsafe fn possible<T>(&self, something: T) -> Option<T> {
        // SAFETY: as above.
        if unsafe { self.is_possible() } { Some(something) } else { None }
    }

    /// Whether several pieces can stand for them.
    #[inline(always)]
    unsafe fn is_possible(&self) -> bool {
        // SAFETY: as above.
        let largest = f32::from_bits(unsafe { _mm512_reduce_max_epu32(self.0) });
        largest == 0.0 || LARGEST.contains(&largest)
    }
}

/// Weights in f32.
struct Singles;

impl Source for Singles {
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
struct InF16;

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
                let bits = halves(values.wrapping_add(step * STEP), length.saturating_sub(step * STEP));
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
struct InBf16;

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
                let bits = halves(values.wrapping_add(step * STEP), length.saturating_sub(step * STEP));
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
struct InBlocks<B>(PhantomData<B>);

impl<B: WholeBlock> Source for InBlocks<B> {
    const LEFT: usize = 1;
    const RIGHT: usize = 1;
    const PAIRS: &'static [[usize; 2]] = &pairs::<8, 1, 1>(&[[0, 0]]);
    const PART: usize = NUMBERS;

    #[inline(always)]
    unsafe fn lay_out(row: &[u8], from: usize, _length: usize, place: Place) -> Option<bool> {
        let row = Row::new::<B>(row);
        // Whole numbers become the lower bits of numbers in f32 that begin with `one`, so that no instruction has to convert them.
        let (upper, one, byte) =
            if B::EIGHT_BITS { (0x4700_0000, 32768.0, 1) } else { (0x4300_0000, 128.0, 2) };
        let at = row.at::<B>(from / NUMBERS);
        // SAFETY: the row has this block, as the caller promises.
        unsafe {
            let Scales { scales, least } = B::scales(at);
            let (mut of_groups, mut less) = ([0f32; 16], [0f32; 16]);
            for vector in 0..B::VECTORS {
                // Exact for eight bits, whose scales have eleven and whose least values are a power of two times those.
                let less_and_one = _mm256_fmadd_ps(scales[vector], _mm256_set1_ps(one), least[vector]);
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

/// The same of numbers of 16 bits.
///
/// # Safety
/// As [`two`].
#[inline(always)]
unsafe fn halves(at: *const i16, left: usize) -> __m512i {
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

/// Sixteen vectors of as many numbers: rows become columns.
#[inline(always)]
unsafe fn transposed(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
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
/// [`pay`] was true of the processor.
pub(crate) unsafe fn turn(rows: &[f32], columns: usize, into: &mut [f32], stride: usize) {
    let count = rows.len() / columns;
    assert!(count <= stride && columns * stride <= into.len(), "room for columns");
    // SAFETY: what has tiles has AVX-512, and there is room for the columns.
    unsafe { turn_vectors(rows, columns, into.as_mut_ptr(), stride) }
}

/// # Safety
/// The processor has AVX-512, and there is room for the columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
unsafe fn turn_vectors(rows: &[f32], columns: usize, into: *mut f32, stride: usize) {
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

/// Rows of `x` as the right operand: parts of all rows, 32 rows after the other.
struct Right {
    pieces: Vec<Piece>,
    /// Pieces of a part of 32 rows.
    block: usize,
}

impl Right {
    /// None if pieces cannot stand for the rows.
    fn new<S: Source>(panels: &Panels, parallel: bool) -> Option<Self> {
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

/// The products with some rows of the weights. Whoever makes one promises that nobody else uses their columns of the result.
struct Task<'a> {
    panels: Panels<'a>,
    x: &'a Right,
    rows: Range<usize>,
    output: Output,
}

impl Task<'_> {
    /// False, and nothing is written, if pieces cannot stand for the weights.
    ///
    /// # Safety
    /// The processor has the instructions, and the process may use tiles; `x` was laid out for this source.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    unsafe fn run<S: Source>(self) -> bool {
        let Panels { layer, count, .. } = self.panels;
        let part = layer.weights.part(self.rows.clone(), layer.columns);
        let (format, unit, weights) = (part.format(), part.unit(), part.bytes());
        let row_bytes = row_bytes(format, layer.columns);
        let panels = self.rows.len().div_ceil(ROWS);
        let blocks = count.div_ceil(ROWS);
        // Pieces of 32 rows that are laid out.
        let block = S::LEFT * (LAID_OUT / RUN);
        let mut left: Vec<Piece> = Vec::with_capacity(panels * block);
        let mut sums: Vec<Sums> = Vec::with_capacity(blocks * panels);
        // Sums of a part, and those of the one before it, which are added to others only now: the tiles had not been done with them.
        let (mut of_parts, mut place) = ([Sums::ZERO; 2], 0);
        let mut late: Option<*mut Sums> = None;
        if count <= FEW {
            into_cache(weights);
        }
        let mut in_order = [0; INTERLEAVED_ROWS * MOST_BYTES];
        // SAFETY: whoever calls has no tiles of its own.
        let tiles = unsafe { Tiles::new(LONGEST) };
        for from in (0..layer.columns).step_by(LAID_OUT) {
            let length = LAID_OUT.min(layer.columns - from);
            let [begin, next, behind] = [0, 1, 2].map(|times| {
                let column = (from + times * LAID_OUT).min(layer.columns);
                column / format.block_length() * format.block_bytes()
            });
            let mut has_last = false;
            for (index, rows) in weights.chunks(INTERLEAVED_ROWS * row_bytes).enumerate() {
                let interleaved = unit > 1 && rows.len() == INTERLEAVED_ROWS * row_bytes;
                let (rows, row_bytes, from) = if interleaved {
                    let in_order = &mut in_order[..INTERLEAVED_ROWS * (next - begin)];
                    let blocks = &rows[INTERLEAVED_ROWS * begin..INTERLEAVED_ROWS * next];
                    format.put_in_order(blocks, next - begin, in_order);
                    (&*in_order, next - begin, 0)
                } else {
                    (rows, row_bytes, from)
                };
                for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                    let row = INTERLEAVED_ROWS * index + row;
                    // SAFETY: there is room for the numbers of all panels, and the row has them. Nobody reads the sums of rows that are
                    // missing.
                    let laid_out = unsafe {
                        let panel = left.as_mut_ptr().add(row / ROWS * block).cast::<__m512i>();
                        S::lay_out(bytes, from, length, Place { first: panel.add(row % ROWS) })
                    };
                    match laid_out {
                        Some(last) => has_last |= last,
                        None => return false,
                    }
                }
            }
            let pairs = if has_last { S::PAIRS } else { S::PAIRS_WITHOUT_LAST };
            let turns = length.div_ceil(S::PART) * blocks * panels;
            let mut turn = 0;
            for first in (0..length).step_by(S::PART) {
                let steps = S::PART.min(length - first).div_ceil(STEP);
                let pairs = &pairs[..pairs.len() * steps / (S::PART / STEP)];
                let x = &self.x.pieces[(from + first) / S::PART * blocks * self.x.block..];
                for (index, x) in x.chunks_exact(self.x.block).take(blocks).enumerate() {
                    for panel in 0..panels {
                        let rows = self.rows.len() * turn / turns..self.rows.len() * (turn + 1) / turns;
                        for row in rows {
                            let at =
                                (row - row % unit) * row_bytes + unit * next + row % unit * (behind - next);
                            ahead(weights.as_ptr().wrapping_add(at), behind - next);
                        }
                        turn += 1;
                        let share = size_of::<Piece>() * self.x.block / panels;
                        let next_x = x.as_ptr_range().end.cast::<u8>();
                        let asked = Asked { first: next_x.wrapping_add(panel * share), lines: S::LINES };
                        let begins = from + first == 0;
                        let by_themselves = S::AFRESH && !begins;
                        // SAFETY: both operands have these pieces, and there is room for the sums, which begin with the first part.
                        unsafe {
                            let left = left.as_ptr().add(panel * block + first / RUN * S::LEFT);
                            let sums = sums.as_mut_ptr().add(index * panels + panel);
                            let into = if by_themselves { &raw mut of_parts[place] } else { sums };
                            let anew = begins || by_themselves;
                            tiles.add_products_of_pieces([left, x.as_ptr()], pairs, anew, into, asked);
                            if by_themselves {
                                place = 1 - place;
                                if let Some(before) = late.replace(sums) {
                                    add(&of_parts[place], before);
                                }
                            }
                        }
                    }
                }
            }
        }
        if let Some(before) = late {
            // SAFETY: the sums are there, and the processor has AVX-512.
            unsafe { add(&of_parts[1 - place], before) };
        }
        // SAFETY: all sums were written.
        unsafe {
            sums.set_len(blocks * panels);
            self.write(&sums, panels);
        }
        true
    }

    /// Writes sums, of each 32 rows of `x` those with each panel, to the result.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn write(&self, sums: &[Sums], panels: usize) {
        let Panels { layer, count, add, .. } = self.panels;
        for (index, sums) in sums.chunks_exact(panels).enumerate() {
            for half in 0..2 {
                for (panel, sums) in sums.iter().enumerate() {
                    for upper in 0..2 {
                        let column = self.rows.start + panel * ROWS + upper * SIDE;
                        if column >= self.rows.end {
                            continue;
                        }
                        let columns = column..self.rows.end.min(column + SIDE);
                        let mut bias = [0f32; SIDE];
                        if let Some(numbers) = layer.bias {
                            bias[..columns.len()].copy_from_slice(&numbers[columns.clone()]);
                        }
                        // SAFETY: as many numbers are a vector; the columns are this task's, as whoever made it promised.
                        unsafe {
                            let bias = _mm512_loadu_ps(bias.as_ptr());
                            let mut rows = [_mm512_setzero_si512(); SIDE];
                            for (row, sums) in rows.iter_mut().zip(&sums.0[2 * upper + half]) {
                                *row = _mm512_loadu_si512(sums.as_ptr().cast());
                            }
                            let first = index * ROWS + half * SIDE;
                            for (row, found) in (first..count).zip(transposed(rows)) {
                                let mut sums = [0f32; SIDE];
                                _mm512_storeu_ps(
                                    sums.as_mut_ptr(),
                                    _mm512_add_ps(_mm512_castsi512_ps(found), bias),
                                );
                                match columns.len() {
                                    SIDE => self.output.write(row, column, &sums, add),
                                    length => self.output.write(row, column, &sums[..length], add),
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Brings bytes to the second cache, if they are there.
#[inline(always)]
fn ahead(at: *const u8, bytes: usize) {
    for byte in (0..bytes).step_by(LINE) {
        ask_second_cache(at.wrapping_add(byte));
    }
}

/// Adds sums to others.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses the others.
#[inline(always)]
unsafe fn add(sums: &Sums, to: *mut Sums) {
    let (from, to) = (std::ptr::from_ref(sums).cast::<f32>(), to.cast::<f32>());
    for place in (0..4 * SIDE * SIDE).step_by(SIDE) {
        // SAFETY: as the caller promises.
        unsafe {
            let sum = _mm512_add_ps(_mm512_loadu_ps(from.add(place)), _mm512_loadu_ps(to.add(place)));
            _mm512_storeu_ps(to.add(place), sum);
        }
    }
}
