//! Products of a few rows with weights in f32, f16 or bf16, computed in f32 with AVX-512: for processors with AMX, which are memory-bound
//! here and stall without a prefetch. Those with AVX2 have the same in its vectors, and fewer rows of weights at a time.
//!
//! One row of `x` meets rows of weights one after the other, which are prefetched well ahead: it is memory-bound. More rows are multiplied
//! in tiles of four rows of weights, whose sums stay in the registers: each vector that is read then takes part in several products, and
//! reading four places at once leaves the processor more to do while one of them is waited for. The first rows of `x` bring the weights to
//! the L1 cache; while the others find them there, the next weights are prefetched. Dozens of rows of `x` take little longer than their
//! multiplications that way.
//!
//! Attention of few queries over cached keys and values in these formats is the same: keys are the weights of the scores, and values are
//! rows that are added up, each times its probability.

use std::arch::x86_64::{
    __m256, __m512, __mmask16, _mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_load_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskz_loadu_epi16,
    _mm256_setzero_ps, _mm256_slli_epi32, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use crate::formats::block_format::BlockFormat;
use crate::instructions::horizontal_sums::{horizontal_sums_256, horizontal_sums_512};
use crate::instructions::prefetch::{CACHE_LINE, PREFETCH_L2_DISTANCE, prefetch_l1, prefetch_l2};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::Output;

/// Numbers of a vector.
const LANES: usize = 16;
/// Rows of weights of a tile.
const ROWS: usize = 4;
/// Numbers of a vector of AVX2.
const EIGHT: usize = 8;
/// Numbers of a row that those are multiplied with at a time: what a tile has of `x` is in the L1 cache for all of its rows.
const PART: usize = 512;
/// Rows of `x` of a tile at most: their sums with all rows of weights, and a vector of each of those, are nearly all of 32 registers.
const X_ROWS: usize = 6;
/// How many bytes ahead each row of a tile is prefetched to the L1 cache: from there on the hardware prefetcher sees what comes
/// next.
const TILE_PREFETCH_DISTANCE: usize = 512;

/// Some numbers of rows of `x`, aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; LANES]);

/// A few rows that rows of f32, f16 or bf16 are multiplied with.
pub(crate) struct FloatRows {
    /// Whether vectors have sixteen numbers, and not eight.
    sixteen: bool,
    format: BlockFormat,
    columns: usize,
    count: usize,
    /// The vectors of the rows of each tile: the first of each row, then the next ones. Zeros are behind the last numbers of a row.
    x: Vec<Vector>,
}

impl FloatRows {
    /// `x` (count, columns) for weights in `format`; none where another way is quicker.
    pub(crate) fn of_weights(
        processor: Processor,
        format: BlockFormat,
        x: &[f32],
        columns: usize,
    ) -> Option<Self> {
        match processor {
            Processor::Avx2(_, IntegerDot::Pairs | IntegerDot::Quads) => {
                // Whole cache lines in every format.
                columns
                    .is_multiple_of(CACHE_LINE / 2)
                    .then(|| Self::in_vectors(false, format, x, columns))
                    .flatten()
            }
            _ => Self::new(processor, format, x, columns),
        }
    }

    /// The same for keys and values, which processors with AMX only are quicker with.
    pub(crate) fn new(processor: Processor, format: BlockFormat, x: &[f32], columns: usize) -> Option<Self> {
        match processor {
            Processor::Avx512(_, IntegerDot::Tiles) => Self::in_vectors(true, format, x, columns),
            _ => None,
        }
    }

    fn in_vectors(sixteen: bool, format: BlockFormat, x: &[f32], columns: usize) -> Option<Self> {
        let count = x.len() / columns;
        if count > most(format) {
            return None;
        }
        let vectors = columns.div_ceil(LANES);
        let mut laid_out = vec![Vector([0.0; LANES]); count * vectors];
        for tile in 0..tiles(count) {
            let (first, rows) = rows_of_tile(count, tile);
            let laid_out = &mut laid_out[first * vectors..];
            for (index, row) in x.chunks_exact(columns).skip(first).take(rows).enumerate() {
                for (vector, numbers) in row.chunks(LANES).enumerate() {
                    laid_out[vector * rows + index].0[..numbers.len()].copy_from_slice(numbers);
                }
            }
        }
        Some(Self { sixteen, format, columns, count, x: laid_out })
    }

    /// Adds the products with some rows, the bytes of which are `rows`; their results are the columns from `column` on.
    ///
    /// # Safety
    /// The result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add(&self, rows: &[u8], column: usize, output: Output) {
        // SAFETY: `new` has looked for the instructions, and the caller promises the rest.
        unsafe {
            match self.format {
                BlockFormat::F16 => self.add_as::<InF16>(rows, column, output),
                BlockFormat::BF16 => self.add_as::<InBf16>(rows, column, output),
                _ => self.add_as::<InF32>(rows, column, output),
            }
        }
    }

    /// # Safety
    /// As [`Self::add`], and the weights are numbers of this kind.
    unsafe fn add_as<N: Numbers>(&self, rows: &[u8], column: usize, output: Output) {
        let row_bytes = self.columns * N::BYTES;
        let vectors = self.columns.div_ceil(LANES);
        for (index, rows) in rows.chunks(ROWS * row_bytes).enumerate() {
            let found = rows.len() / row_bytes;
            let mut next = rows.as_ptr().wrapping_add(ROWS * row_bytes);
            for tile in 0..tiles(self.count) {
                let (first, x_rows) = rows_of_tile(self.count, tile);
                let x = &self.x[first * vectors..(first + x_rows) * vectors];
                // SAFETY: the rows have the numbers of a row of `x`, and the caller promises the instructions.
                let totals = unsafe {
                    match self.sixteen {
                        true => match (tile, x_rows) {
                            (0, 1) => totals::<N, 1, false>(rows, self.columns, x, next),
                            (0, 2) => totals::<N, 2, false>(rows, self.columns, x, next),
                            (0, 3) => totals::<N, 3, false>(rows, self.columns, x, next),
                            (0, 4) => totals::<N, 4, false>(rows, self.columns, x, next),
                            (0, 5) => totals::<N, 5, false>(rows, self.columns, x, next),
                            (0, _) => totals::<N, X_ROWS, false>(rows, self.columns, x, next),
                            (_, 3) => totals::<N, 3, true>(rows, self.columns, x, next),
                            (_, 4) => totals::<N, 4, true>(rows, self.columns, x, next),
                            (_, 5) => totals::<N, 5, true>(rows, self.columns, x, next),
                            (_, _) => totals::<N, X_ROWS, true>(rows, self.columns, x, next),
                        },
                        false => {
                            let prefetch = Prefetch { next, tile, tiles: tiles(self.count) };
                            match x_rows {
                                1 => totals_avx2::<N, 1>(rows, self.columns, x, prefetch),
                                2 => totals_avx2::<N, 2>(rows, self.columns, x, prefetch),
                                3 => totals_avx2::<N, 3>(rows, self.columns, x, prefetch),
                                4 => totals_avx2::<N, 4>(rows, self.columns, x, prefetch),
                                5 => totals_avx2::<N, 5>(rows, self.columns, x, prefetch),
                                _ => totals_avx2::<N, X_ROWS>(rows, self.columns, x, prefetch),
                            }
                        }
                    }
                };
                if self.sixteen && tile > 0 {
                    next = next.wrapping_add(row_bytes / ROWS);
                }
                for (of_x, totals) in totals.iter().enumerate().take(x_rows) {
                    // SAFETY: as the caller promises.
                    unsafe { output.add(first + of_x, column + index * ROWS, &totals[..found]) };
                }
            }
        }
    }

    /// Whether rows are whole vectors, which [`Self::add_weighted`] needs.
    pub(crate) fn of_whole_vectors(&self) -> bool {
        self.sixteen && self.columns.is_multiple_of(LANES)
    }

    /// Adds rows of the weights' format, each times its probability, to sums (count, columns): the probabilities of a row of sums are
    /// `stride` from those of the next one.
    pub(crate) fn add_weighted(
        &self,
        rows: &[u8],
        (probabilities, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        assert!(self.of_whole_vectors(), "rows that are no whole vectors");
        // SAFETY: `new` has looked for the instructions.
        unsafe {
            match self.format {
                BlockFormat::F16 => self.add_weighted_of::<InF16>(rows, (probabilities, stride), sums),
                BlockFormat::BF16 => self.add_weighted_of::<InBf16>(rows, (probabilities, stride), sums),
                _ => self.add_weighted_of::<InF32>(rows, (probabilities, stride), sums),
            }
        }
    }

    /// # Safety
    /// The rows have numbers of this kind, whole vectors of them, and the processor has AVX-512.
    unsafe fn add_weighted_of<N: Numbers>(
        &self,
        rows: &[u8],
        (probabilities, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        let width = self.columns;
        let found = rows.len() / (width * N::BYTES);
        assert_eq!(sums.len(), self.count * width, "sums of other rows");
        let last = (self.count - 1) * stride + found;
        assert!(found <= stride && probabilities.len() >= last, "too few probabilities");
        let mut row = 0;
        while row < self.count {
            let rows_of_sums = if self.count - row >= WEIGHTED { WEIGHTED } else { 1 };
            let (probabilities, sums) = (&probabilities[row * stride..], &mut sums[row * width..]);
            let mut first = 0;
            while first < width {
                let vectors = if width - first >= WEIGHTED * LANES { WEIGHTED } else { 1 };
                let rows = (rows, width, first);
                // SAFETY: all have these rows and columns, and the caller promises the instructions.
                unsafe {
                    match (rows_of_sums, vectors) {
                        (WEIGHTED, WEIGHTED) => {
                            add_to::<N, WEIGHTED, WEIGHTED>(rows, (probabilities, stride), sums)
                        }
                        (WEIGHTED, _) => add_to::<N, WEIGHTED, 1>(rows, (probabilities, stride), sums),
                        (_, WEIGHTED) => add_to::<N, 1, WEIGHTED>(rows, (probabilities, stride), sums),
                        _ => add_to::<N, 1, 1>(rows, (probabilities, stride), sums),
                    }
                }
                first += vectors * LANES;
            }
            row += rows_of_sums;
        }
    }
}

/// Rows of sums, and vectors of each of them, that rows times probabilities are added to at a time.
const WEIGHTED: usize = 4;

/// Rows of `x` up to which this is quicker than AMX tiles ([`crate::products::pieces`]), to which weights in bf16 are the least work.
pub(crate) fn most(format: BlockFormat) -> usize {
    match format {
        BlockFormat::F32 | BlockFormat::F16 => 48,
        BlockFormat::BF16 => 24,
        _ => 0,
    }
}

/// Tiles that rows of `x` are dealt out to.
fn tiles(count: usize) -> usize {
    count.div_ceil(X_ROWS)
}

/// The first row of a tile, and how many it has: one more than the others at most.
fn rows_of_tile(count: usize, tile: usize) -> (usize, usize) {
    let [first, last] = [tile, tile + 1].map(|tile| count * tile / tiles(count));
    (first, last - first)
}

/// The sums of the products of up to [`ROWS`] rows of weights with the `X` rows of `x` of a tile. With `NEXT`, the weights are in the
/// L1 cache, and rows from `next` on are prefetched.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C, and both have rows of `columns` numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn totals<N: Numbers, const X: usize, const NEXT: bool>(
    rows: &[u8],
    columns: usize,
    x: &[Vector],
    next: *const u8,
) -> [[f32; ROWS]; X_ROWS] {
    let row_bytes = columns * N::BYTES;
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); ROWS]; X];
        if X > 1 && rows.len() == ROWS * row_bytes {
            sums = products::<N, ROWS, X, NEXT>(rows.as_ptr(), columns, x.as_ptr(), next);
        } else {
            for (index, row) in rows.chunks_exact(row_bytes).enumerate().take(ROWS) {
                let of_row = products::<N, 1, X, NEXT>(row.as_ptr(), columns, x.as_ptr(), next);
                for (sums, of_row) in sums.iter_mut().zip(of_row) {
                    sums[index] = of_row[0];
                }
            }
        }
        let mut totals = [[0.0; ROWS]; X_ROWS];
        for (totals, sums) in totals.iter_mut().zip(sums) {
            *totals = horizontal_sums_512(sums);
        }
        totals
    }
}

/// Sums of products, a vector of each: a row of `x` gives the same beside others, and a row of weights the same in a tile.
///
/// # Safety
/// As [`totals`].
#[inline(always)]
unsafe fn products<N: Numbers, const R: usize, const X: usize, const NEXT: bool>(
    weights: *const u8,
    columns: usize,
    x: *const Vector,
    next: *const u8,
) -> [[__m512; R]; X] {
    let row_bytes = columns * N::BYTES;
    let (lines, whole) = (row_bytes / CACHE_LINE, columns / LANES);
    // SAFETY: as the caller promises; an address that is prefetched need not be valid.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); R]; X];
        // No function: the sums would have to be in memory for it.
        macro_rules! add {
            ($vector:expr, $at:ident => $numbers:expr) => {
                let mut numbers = [_mm512_setzero_ps(); R];
                for row in 0..R {
                    let $at = weights.add(row * row_bytes + $vector * LANES * N::BYTES);
                    numbers[row] = $numbers;
                }
                for of_x in 0..X {
                    let x = _mm512_load_ps(x.add($vector * X + of_x).cast());
                    for row in 0..R {
                        sums[of_x][row] = _mm512_fmadd_ps(numbers[row], x, sums[of_x][row]);
                    }
                }
            };
        }
        let vectors_of_a_line = CACHE_LINE / (LANES * N::BYTES);
        for line in 0..lines {
            match (R, NEXT) {
                (1, _) => prefetch_l2(weights.wrapping_add(line * CACHE_LINE + PREFETCH_L2_DISTANCE)),
                (_, true) => prefetch_l2(next.wrapping_add(line % R * row_bytes + line / R * CACHE_LINE)),
                (_, false) => {
                    for row in 0..R {
                        prefetch_l1(
                            weights
                                .wrapping_add(row * row_bytes + line * CACHE_LINE + TILE_PREFETCH_DISTANCE),
                        );
                    }
                }
            }
            for vector in 0..vectors_of_a_line {
                add!(line * vectors_of_a_line + vector, at => N::read(at));
            }
        }
        for vector in lines * vectors_of_a_line..whole {
            add!(vector, at => N::read(at));
        }
        if !columns.is_multiple_of(LANES) {
            let last = (1 << (columns % LANES)) - 1;
            add!(whole, at => N::read_some(at, last));
        }
        sums
    }
}

/// What a tile of AVX2 prefetches: every so many cache lines as there are tiles, so that together they prefetch the four rows from `next`
/// on, without a gap.
#[derive(Clone, Copy)]
struct Prefetch {
    next: *const u8,
    tile: usize,
    tiles: usize,
}

/// [`totals`] in vectors of eight.
///
/// # Safety
/// The processor has AVX2, FMA and F16C, and both have rows of `columns` numbers, which are whole cache lines.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn totals_avx2<N: Numbers, const X: usize>(
    rows: &[u8],
    columns: usize,
    x: &[Vector],
    prefetch: Prefetch,
) -> [[f32; ROWS]; X_ROWS] {
    let row_bytes = columns * N::BYTES;
    let mut sums = [[_mm256_setzero_ps(); ROWS]; X];
    // As many rows together as there are registers for, and enough sums that they need not wait for each other.
    let together = match rows.len() == ROWS * row_bytes {
        true if X <= 2 => ROWS,
        true => 2,
        false => 1,
    };
    for from in (0..columns).step_by(PART) {
        let length = PART.min(columns - from);
        let x = x[from / LANES * X..].as_ptr();
        for (index, rows) in rows.chunks_exact(together * row_bytes).enumerate() {
            let first = index * together;
            let next = prefetch.next.wrapping_add(first * row_bytes + from * N::BYTES);
            let prefetch = Prefetch { next, ..prefetch };
            macro_rules! add {
                ($rows:expr) => {{
                    let mut of_rows = [[_mm256_setzero_ps(); $rows]; X];
                    for (of_rows, sums) in of_rows.iter_mut().zip(&sums) {
                        of_rows.copy_from_slice(&sums[first..first + $rows]);
                    }
                    let weights = (rows[from * N::BYTES..].as_ptr(), row_bytes);
                    // SAFETY: as the caller promises.
                    unsafe {
                        of_rows = added_avx2::<N, { $rows }, X>(weights, length, x, of_rows, prefetch);
                    }
                    for (sums, of_rows) in sums.iter_mut().zip(of_rows) {
                        sums[first..first + $rows].copy_from_slice(&of_rows);
                    }
                }};
            }
            match together {
                ROWS => add!(ROWS),
                2 => add!(2),
                _ => add!(1),
            }
        }
    }
    let mut totals = [[0.0; ROWS]; X_ROWS];
    for (totals, sums) in totals.iter_mut().zip(sums) {
        // SAFETY: the processor has AVX2.
        *totals = unsafe { horizontal_sums_256(sums) };
    }
    totals
}

/// Sums with the products of some numbers of `R` rows of weights, `row_bytes` from each other, and `X` rows of `x` added to them.
///
/// # Safety
/// As [`totals_avx2`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "of several arrays")]
unsafe fn added_avx2<N: Numbers, const R: usize, const X: usize>(
    (weights, row_bytes): (*const u8, usize),
    length: usize,
    x: *const Vector,
    mut sums: [[__m256; R]; X],
    prefetch: Prefetch,
) -> [[__m256; R]; X] {
    // SAFETY: as the caller promises; an address that is prefetched need not be valid.
    unsafe {
        let of_a_line = CACHE_LINE / N::BYTES;
        let mut until_prefetch = prefetch.tile;
        for first in (0..length).step_by(of_a_line) {
            if until_prefetch == 0 {
                until_prefetch = prefetch.tiles;
                for row in 0..R {
                    prefetch_l2(prefetch.next.wrapping_add(row * row_bytes + first * N::BYTES));
                }
            }
            until_prefetch -= 1;
            for vector in 0..of_a_line / EIGHT {
                let place = first + vector * EIGHT;
                let mut numbers = [_mm256_setzero_ps(); R];
                for row in 0..R {
                    numbers[row] = N::read_eight(weights.add(row * row_bytes + place * N::BYTES));
                }
                for of_x in 0..X {
                    let x = x.add(place / LANES * X + of_x).cast::<f32>().add(place % LANES);
                    let x = _mm256_load_ps(x);
                    for row in 0..R {
                        sums[of_x][row] = _mm256_fmadd_ps(numbers[row], x, sums[of_x][row]);
                    }
                }
            }
        }
        sums
    }
}

/// Adds rows, each times its probability, to `S` rows of sums, in columns `first` and on of `width`: `V` vectors. The probabilities of a
/// row of sums are `stride` from those of the next one.
///
/// # Safety
/// As [`totals`]; there is a probability of each row for each row of sums, and all have these columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn add_to<N: Numbers, const S: usize, const V: usize>(
    (rows, width, first): (&[u8], usize, usize),
    (probabilities, stride): (&[f32], usize),
    sums: &mut [f32],
) {
    let row_bytes = width * N::BYTES;
    // SAFETY: as the caller promises.
    unsafe {
        let mut registers = [[_mm512_setzero_ps(); V]; S];
        for (row, registers) in registers.iter_mut().enumerate() {
            for (vector, register) in registers.iter_mut().enumerate() {
                *register = _mm512_loadu_ps(sums.as_ptr().add(row * width + first + vector * LANES));
            }
        }
        for (index, numbers) in rows.chunks_exact(row_bytes).enumerate() {
            let numbers = numbers.as_ptr().add(first * N::BYTES);
            for line in (0..V * LANES * N::BYTES).step_by(CACHE_LINE) {
                prefetch_l2(numbers.wrapping_add(PREFETCH_L2_DISTANCE + line));
            }
            let mut vectors = [_mm512_setzero_ps(); V];
            for (vector, read) in vectors.iter_mut().enumerate() {
                *read = N::read(numbers.add(vector * LANES * N::BYTES));
            }
            for (row, registers) in registers.iter_mut().enumerate() {
                let probability = _mm512_set1_ps(*probabilities.as_ptr().add(row * stride + index));
                for (register, numbers) in registers.iter_mut().zip(vectors) {
                    *register = _mm512_fmadd_ps(numbers, probability, *register);
                }
            }
        }
        for (row, registers) in registers.iter().enumerate() {
            for (vector, register) in registers.iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(row * width + first + vector * LANES), *register);
            }
        }
    }
}

/// The formats f32, f16 and bf16.
trait Numbers {
    /// Bytes of a number.
    const BYTES: usize;

    /// Eight numbers.
    unsafe fn read_eight(at: *const u8) -> __m256;
    /// A vector of numbers.
    unsafe fn read(at: *const u8) -> __m512;
    /// Those of `some`, and zeros for the others, which are not read.
    unsafe fn read_some(at: *const u8, some: __mmask16) -> __m512;
}

struct InF32;

impl Numbers for InF32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn read_eight(at: *const u8) -> __m256 {
        // SAFETY: whoever calls it has the numbers and the instructions, here and below.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn read(at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn read_some(at: *const u8, some: __mmask16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_ps(some, at.cast()) }
    }
}

struct InF16;

impl Numbers for InF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn read_eight(at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn read(at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn read_some(at: *const u8, some: __mmask16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, at.cast())) }
    }
}

struct InBf16;

impl Numbers for InBf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn read_eight(at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())), 16))
        }
    }

    #[inline(always)]
    unsafe fn read(at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())), 16))
        }
    }

    #[inline(always)]
    unsafe fn read_some(at: *const u8, some: __mmask16) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::F32, BlockFormat::F16, BlockFormat::BF16];

    /// The processors that multiply rows of so many numbers this way.
    fn processors(columns: usize) -> impl Iterator<Item = Processor> {
        let x = vec![1.0; columns];
        let takes = move |processor: &Processor| {
            FloatRows::of_weights(*processor, BlockFormat::F32, &x, columns).is_some()
        };
        Processor::tested().into_iter().filter(takes)
    }

    /// The products of all rows with those of `bytes`, of which `split` belong to a first task.
    fn products(plain: &FloatRows, bytes: &[u8], split: usize, already: f32) -> Vec<f32> {
        let row_bytes = plain.format.row_bytes(plain.columns).unwrap();
        let width = bytes.len() / row_bytes;
        let mut result = vec![already; plain.count * width];
        let output = Output::new(&mut result, width);
        let (first, others) = bytes.split_at(split.min(width) * row_bytes);
        // SAFETY: nobody else has the result.
        unsafe {
            plain.add(first, 0, output);
            plain.add(others, split.min(width), output);
        }
        result
    }

    #[test]
    fn rows_of_any_length_and_number_give_their_sums() {
        for (rows, columns) in [
            (1, 1),
            (9, 15),
            (4, 16),
            (1, 32),
            (7, 33),
            (5, 64),
            (6, 129),
            (3, 512),
            (11, 608),
            (13, 1100),
            (18, 1184),
        ] {
            for processor in processors(columns) {
                for format in FORMATS {
                    let bytes = format.encode(&noise(rows * columns, 41), columns).unwrap();
                    let mut numbers = vec![0f32; rows * columns];
                    crate::formats::block_format::decode(Processor::Portable, format, &bytes, &mut numbers);
                    for count in (1..=2 * X_ROWS + 5).chain([most(format)]) {
                        let x = noise(count * columns, 42);
                        let plain = FloatRows::of_weights(processor, format, &x, columns).unwrap();
                        let result = products(&plain, &bytes, rows, 2.0);
                        let pairs = x
                            .chunks_exact(columns)
                            .flat_map(|x| numbers.chunks_exact(columns).map(move |row| (x, row)));
                        for (value, (x, row)) in result.iter().zip(pairs) {
                            let products =
                                x.iter().zip(row).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
                            let (sum, all) = products
                                .fold((2.0, 2.0), |(sum, all), product| (sum + product, all + product.abs()));
                            // Written so that NaN fails.
                            let close = (f64::from(*value) - sum).abs() <= 1e-6 * all;
                            assert!(
                                close,
                                "{} {rows} x {columns}, {count}: {value}, not {sum}",
                                format.name()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_beside_others_and_in_any_task() {
        let (rows, count) = (11, 17);
        for (columns, format) in
            [200, 608].into_iter().flat_map(|columns| FORMATS.map(|format| (columns, format)))
        {
            let x = noise(count * columns, 43);
            for processor in processors(columns) {
                let bytes = format.encode(&noise(rows * columns, 44), columns).unwrap();
                let alone: Vec<f32> = x
                    .chunks_exact(columns)
                    .flat_map(|x| {
                        products(
                            &FloatRows::of_weights(processor, format, x, columns).unwrap(),
                            &bytes,
                            rows,
                            0.0,
                        )
                    })
                    .collect();
                for count in [2, 4, 7, 12, count] {
                    let x = &x[..count * columns];
                    let plain = FloatRows::of_weights(processor, format, x, columns).unwrap();
                    for split in [0, 1, 4, 6] {
                        let together = products(&plain, &bytes, split, 0.0);
                        assert_eq!(together, alone[..count * rows], "{}, {count}, {split}", format.name());
                    }
                }
            }
        }
    }

    #[test]
    fn many_rows_and_rows_in_blocks_are_for_others() {
        for processor in Processor::tested() {
            let many = vec![1.0; (most(BlockFormat::F16) + 1) * 32];
            assert!(FloatRows::of_weights(processor, BlockFormat::F16, &many, 32).is_none());
            assert!(FloatRows::of_weights(processor, BlockFormat::Q8_0, &many[..32], 32).is_none());
            assert!(
                FloatRows::of_weights(processor.without_integer_dot(), BlockFormat::F16, &many[..32], 32)
                    .is_none()
            );
        }
    }
}
