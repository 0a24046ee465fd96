//! Products of a few rows with weights in f32, f16 or bf16, computed in f32: in AVX-512's vectors or in AVX2's.
//!
//! One row of `x` meets rows of weights one after the other: it is memory-bound. More rows are multiplied in tiles, whose sums stay in the
//! registers while a part of their columns goes by. What a tile of `x` has in such a part, and eight rows of weights, fit into the L1 cache
//! together: neither is read from further away than that more often than once in eight rows. The rest of the same rows, or the next ones,
//! are prefetched meanwhile, each row by itself: in the order of memory it takes longer.
//!
//! Attention of few queries over cached keys and values in these formats is the same: keys are the weights of the scores, and values are
//! rows that are added up, each times its probability.

use std::arch::x86_64::{
    __m256, __m512, _mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_load_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_store_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_store_ps, _mm512_storeu_ps,
};

use crate::formats::block_format::BlockFormat;
use crate::instructions::horizontal_sums::{horizontal_sums_256, horizontal_sums_512};
use crate::instructions::prefetch::{CACHE_LINE, PREFETCH_L2_DISTANCE, prefetch_l2};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::Output;

/// Numbers of a vector of AVX-512.
const LANES: usize = 16;
/// Rows are whole numbers of so many: whole cache lines in every format.
const WHOLE: usize = CACHE_LINE / 2;
/// Rows of weights that go by together.
const BLOCK: usize = 8;
/// Numbers of a row in a part of the columns.
const PART: usize = 512;
/// Rows of weights whose sums are made of vectors together.
const TOGETHER: usize = 4;
/// Rows of `x` of a tile at most: with their sums the registers are nearly full.
const X_ROWS: usize = 6;

/// Some numbers of rows of `x`, or sums, at the start of a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; LANES]);

const ZEROS: Vector = Vector([0.0; LANES]);

/// A few rows that rows in these formats are multiplied with.
pub(crate) struct FloatRows {
    /// Whether vectors have sixteen numbers, and not eight.
    sixteen: bool,
    format: BlockFormat,
    columns: usize,
    count: usize,
    /// The vectors of the rows of each tile: the first of each row, then the next ones.
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
                Self::in_vectors(false, format, x, columns)
            }
            // A row alone is quicker with a prefetch only, which Zen 4 loses time with.
            Processor::Avx512(_, IntegerDot::Pairs | IntegerDot::Quads) if x.len() > columns => {
                Self::in_vectors(true, format, x, columns)
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
        if count > most(format) || !columns.is_multiple_of(WHOLE) {
            return None;
        }
        let vectors = columns / LANES;
        let mut laid_out = vec![ZEROS; count * vectors];
        for tile in 0..tiles(count) {
            let (first, rows) = rows_of_tile(count, tile);
            let laid_out = &mut laid_out[first * vectors..];
            for (index, row) in x.chunks_exact(columns).skip(first).take(rows).enumerate() {
                for (vector, numbers) in row.as_chunks().0.iter().enumerate() {
                    laid_out[vector * rows + index].0 = *numbers;
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
        let alone = self.sixteen && self.count == 1;
        let longest = if alone { self.columns } else { PART };
        let mut sums = vec![ZEROS; self.count * BLOCK];
        let mut totals = [[0.0; BLOCK]; X_ROWS];
        for (index, block) in rows.chunks(BLOCK * row_bytes).enumerate() {
            let found = block.len() / row_bytes;
            for from in (0..self.columns).step_by(longest) {
                let length = longest.min(self.columns - from);
                let weights = block[from * N::BYTES..].as_ptr();
                let next = match (alone, from + length == self.columns) {
                    (true, _) => weights.wrapping_add(PREFETCH_L2_DISTANCE),
                    (_, false) => weights.wrapping_add(length * N::BYTES),
                    (_, true) => block.as_ptr().wrapping_add(BLOCK * row_bytes),
                };
                for tile in 0..tiles(self.count) {
                    let (first, x_rows) = rows_of_tile(self.count, tile);
                    let part = Part {
                        weights,
                        rows: found,
                        row_bytes,
                        length,
                        x: self.x[first * self.columns / LANES + from / LANES * x_rows..].as_ptr(),
                        sums: sums[first * BLOCK..].as_mut_ptr().cast(),
                        begins: from == 0,
                        next,
                        tile: (tile, tiles(self.count)),
                    };
                    // SAFETY: the rows have the numbers of a row of `x`, and the caller promises the instructions.
                    unsafe {
                        match self.sixteen {
                            true => multiply_in_sixteens::<N>(part, x_rows),
                            false => multiply_in_eights::<N>(part, x_rows),
                        }
                    }
                }
            }
            for tile in 0..tiles(self.count) {
                let (first, x_rows) = rows_of_tile(self.count, tile);
                let totals = &mut totals[..x_rows];
                // SAFETY: there are sums of a whole block, and the caller promises the rest.
                unsafe {
                    let sums = sums[first * BLOCK..].as_ptr().cast();
                    match self.sixteen {
                        true => total_in_sixteens(sums, totals),
                        false => total_in_eights(sums, totals),
                    }
                    for (of_x, totals) in totals.iter().enumerate() {
                        output.add(first + of_x, column + index * BLOCK, &totals[..found]);
                    }
                }
            }
        }
    }

    /// Adds rows of the weights' format, each times its probability, to sums (count, columns): the probabilities of a row of sums are
    /// `stride` from those of the next one.
    pub(crate) fn add_weighted(
        &self,
        rows: &[u8],
        (probabilities, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        assert!(self.sixteen, "a processor without AVX-512");
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

/// Rows of `x` up to which this is quicker than tiles of AMX ([`crate::products::pieces`]), to which weights in bf16 are the least work.
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

/// A part of the columns of a block of rows of weights, and of a tile of rows of `x`.
#[derive(Clone, Copy)]
struct Part {
    /// The first row, at the first of these columns.
    weights: *const u8,
    /// [`BLOCK`] at most.
    rows: usize,
    /// From a row to the next one.
    row_bytes: usize,
    /// Numbers of each row, whole cache lines.
    length: usize,
    x: *const Vector,
    /// A vector for each row of weights and each row of `x`: those of a row of weights are one behind the other.
    sums: *mut f32,
    /// Whether nothing was added up before.
    begins: bool,
    /// What is to be prefetched while this goes by, laid out like it.
    next: *const u8,
    /// Which tile this is of how many: each prefetches one of as many cache lines as there are tiles, so that there is no break.
    tile: (usize, usize),
}

/// Adds the products of a part to its sums.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C, and all that the part names is there but for `next`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn multiply_in_sixteens<N: Numbers>(part: Part, x_rows: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        match x_rows {
            1 => multiply::<Sixteen, N, 1, 1>(part),
            2 => multiply::<Sixteen, N, 4, 2>(part),
            3 => multiply::<Sixteen, N, 4, 3>(part),
            4 => multiply::<Sixteen, N, 4, 4>(part),
            5 => multiply::<Sixteen, N, 4, 5>(part),
            _ => multiply::<Sixteen, N, 4, X_ROWS>(part),
        }
    }
}

/// The same, with as many rows of weights together as half the registers have room for, and enough sums that they need not wait for each other.
///
/// # Safety
/// As [`multiply_in_sixteens`], but for AVX-512.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_in_eights<N: Numbers>(part: Part, x_rows: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        match x_rows {
            1 => multiply::<Eight, N, 4, 1>(part),
            2 => multiply::<Eight, N, 4, 2>(part),
            3 => multiply::<Eight, N, 2, 3>(part),
            4 => multiply::<Eight, N, 2, 4>(part),
            5 => multiply::<Eight, N, 2, 5>(part),
            _ => multiply::<Eight, N, 2, X_ROWS>(part),
        }
    }
}

/// `R` rows of weights at a time, and `X` rows of `x`.
///
/// # Safety
/// The processor has the instructions of these vectors, and all that the part names is there but for `next`.
#[inline(always)]
unsafe fn multiply<L: Lanes, N: Numbers, const R: usize, const X: usize>(part: Part) {
    let mut row = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while row < part.rows {
            if part.rows - row >= R {
                multiply_rows::<L, N, R, X>(part, row);
                row += R;
            } else {
                multiply_rows::<L, N, 1, X>(part, row);
                row += 1;
            }
        }
    }
}

/// The rows from `row` on. A row of `x` gives the same beside others, and so does a row of weights.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "of several arrays")]
unsafe fn multiply_rows<L: Lanes, N: Numbers, const R: usize, const X: usize>(part: Part, row: usize) {
    let Part { row_bytes, length, x, begins, tile: (tile, tiles), .. } = part;
    let of_a_line = CACHE_LINE / N::BYTES;
    // SAFETY: as the caller promises; what is prefetched may be nobody's.
    unsafe {
        let weights = part.weights.add(row * row_bytes);
        let next = part.next.wrapping_add(row * row_bytes);
        let of_sums = part.sums.add(row * X * L::COUNT);
        let mut sums = [[L::zeros(); R]; X];
        if !begins {
            for of_x in 0..X {
                for row in 0..R {
                    sums[of_x][row] = L::load(of_sums.add((row * X + of_x) * L::COUNT));
                }
            }
        }
        let mut until_prefetch = tile;
        for line in 0..length / of_a_line {
            if until_prefetch == 0 {
                until_prefetch = tiles;
                for row in 0..R {
                    prefetch_l2(next.wrapping_add(row * row_bytes + line * CACHE_LINE));
                }
            }
            until_prefetch -= 1;
            let weights = weights.add(line * CACHE_LINE);
            let x = x.add(line * of_a_line / LANES * X).cast::<f32>();
            for vector in 0..of_a_line / L::COUNT {
                let place = vector * L::COUNT;
                let mut numbers = [L::zeros(); R];
                for row in 0..R {
                    numbers[row] = L::read::<N>(weights.add(row * row_bytes + place * N::BYTES));
                }
                for of_x in 0..X {
                    let x = L::load(x.add((place / LANES * X + of_x) * LANES + place % LANES));
                    for row in 0..R {
                        sums[of_x][row] = L::add_product(numbers[row], x, sums[of_x][row]);
                    }
                }
            }
        }
        for of_x in 0..X {
            for row in 0..R {
                L::store(of_sums.add((row * X + of_x) * L::COUNT), sums[of_x][row]);
            }
        }
    }
}

/// Makes the totals of a tile's sums: of each row of `x` those with all rows of a block.
///
/// # Safety
/// The processor has AVX-512 F and DQ, and AVX2, and there is a vector for each row of a block and of the tile.
#[target_feature(enable = "avx512f,avx512dq,avx2")]
unsafe fn total_in_sixteens(sums: *const f32, totals: &mut [[f32; BLOCK]]) {
    // SAFETY: as the caller promises.
    unsafe { total::<Sixteen>(sums, totals) }
}

/// The same of vectors of eight.
///
/// # Safety
/// As [`total_in_sixteens`], but for AVX-512.
#[target_feature(enable = "avx2")]
unsafe fn total_in_eights(sums: *const f32, totals: &mut [[f32; BLOCK]]) {
    // SAFETY: as the caller promises.
    unsafe { total::<Eight>(sums, totals) }
}

/// # Safety
/// The processor has the instructions of these vectors, and there is a vector for each row of a block and of the tile.
#[inline(always)]
unsafe fn total<L: Lanes>(sums: *const f32, totals: &mut [[f32; BLOCK]]) {
    let x_rows = totals.len();
    for (of_x, totals) in totals.iter_mut().enumerate() {
        for (four, totals) in totals.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                let mut vectors = [L::zeros(); TOGETHER];
                for (row, vector) in vectors.iter_mut().enumerate() {
                    *vector = L::load(sums.add(((four * TOGETHER + row) * x_rows + of_x) * L::COUNT));
                }
                *totals = L::totals(vectors);
            }
        }
    }
}

/// Vectors that products are added up in. Whoever calls a function has its instructions, and the numbers at the places that it names.
trait Lanes {
    type Numbers: Copy;
    /// Numbers of a vector.
    const COUNT: usize;

    unsafe fn zeros() -> Self::Numbers;
    /// Numbers at a place that is a multiple of their size.
    unsafe fn load(at: *const f32) -> Self::Numbers;
    unsafe fn store(at: *mut f32, numbers: Self::Numbers);
    /// Numbers as they are stored in weights.
    unsafe fn read<N: Numbers>(at: *const u8) -> Self::Numbers;
    unsafe fn add_product(a: Self::Numbers, b: Self::Numbers, sum: Self::Numbers) -> Self::Numbers;
    unsafe fn totals(vectors: [Self::Numbers; TOGETHER]) -> [f32; TOGETHER];
}

struct Sixteen;

impl Lanes for Sixteen {
    type Numbers = __m512;
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn zeros() -> __m512 {
        // SAFETY: see the trait, here and below.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_load_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, numbers: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(at, numbers) }
    }

    #[inline(always)]
    unsafe fn read<N: Numbers>(at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { N::read(at) }
    }

    #[inline(always)]
    unsafe fn add_product(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn totals(vectors: [__m512; TOGETHER]) -> [f32; TOGETHER] {
        // SAFETY: as above.
        unsafe { horizontal_sums_512(vectors) }
    }
}

struct Eight;

impl Lanes for Eight {
    type Numbers = __m256;
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn zeros() -> __m256 {
        // SAFETY: see the trait, here and below.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_load_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, numbers: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_store_ps(at, numbers) }
    }

    #[inline(always)]
    unsafe fn read<N: Numbers>(at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { N::read_eight(at) }
    }

    #[inline(always)]
    unsafe fn add_product(a: __m256, b: __m256, sum: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn totals(vectors: [__m256; TOGETHER]) -> [f32; TOGETHER] {
        // SAFETY: as above.
        unsafe { horizontal_sums_256(vectors) }
    }
}

/// Adds rows, each times its probability, to `S` rows of sums, in columns `first` and on of `width`: `V` vectors. The probabilities of a
/// row of sums are `stride` from those of the next one.
///
/// # Safety
/// As [`multiply_in_sixteens`]; there is a probability of each row for each row of sums, and all have these columns.
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
    fn rows_of_many_lengths_and_numbers_give_their_sums() {
        for (rows, columns) in
            [(1, 32), (5, 64), (16, 96), (23, 256), (3, 288), (11, 608), (18, 1184), (37, 512), (6, 2080)]
        {
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
                            // Written so that not-a-number fails.
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
        let (rows, count) = (43, 17);
        for (columns, format) in
            [224, 608].into_iter().flat_map(|columns| FORMATS.map(|format| (columns, format)))
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
                    for split in [0, 1, 4, 6, 16, 33] {
                        let together = products(&plain, &bytes, split, 0.0);
                        assert_eq!(together, alone[..count * rows], "{}, {count}, {split}", format.name());
                    }
                }
            }
        }
    }

    #[test]
    fn many_rows_and_rows_of_other_lengths_and_in_blocks_are_for_others() {
        for processor in Processor::tested() {
            let many = vec![1.0; (most(BlockFormat::F16) + 1) * 32];
            assert!(FloatRows::of_weights(processor, BlockFormat::F16, &many, 32).is_none());
            assert!(FloatRows::of_weights(processor, BlockFormat::F16, &many[..80], 80).is_none());
            assert!(FloatRows::of_weights(processor, BlockFormat::Q8_0, &many[..32], 32).is_none());
            assert!(
                FloatRows::of_weights(processor.without_integer_dot(), BlockFormat::F16, &many[..32], 32)
                    .is_none()
            );
        }
    }
}
