//! Products of a few rows with weights in f32, f16 or bf16, computed in f32, in vectors of AVX-512 or AVX2.
//!
//! One row of `x` is memory-bound. With AMX it meets rows of weights one after the other, which are prefetched well ahead, since such
//! processors stall otherwise; others read four rows at once.
//!
//! More rows are multiplied a block of weights at a time, [`BLOCK`] rows by [`PART`] columns, which the first rows of `x` bring to the L1
//! cache and the others find there: up to dozens of rows of `x` are then bound by their multiplications. Tiles of four rows of weights by
//! up to six of `x` keep their sums in registers, so that each vector that is read takes part in several products (two by six in the
//! sixteen registers of AVX2). Between the blocks of a row the sums are in memory. While a block is multiplied, the next one is prefetched.
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
/// Numbers that are multiplied between two prefetches, a cache line or two: a row's last ones are filled up with zeros to as many.
const STEP: usize = 32;
/// Rows of weights of a block.
const BLOCK: usize = 8;
/// Columns of a block: in half precision it takes a quarter of an L1 cache, and what a tile has of `x` at most three eighths.
const PART: usize = 512;
/// Rows of weights of a tile, but for those that are left of a block.
const ROWS: usize = 4;
/// Rows of `x` of a tile at most: their sums with four rows of weights, and a vector of each of those, are nearly all of 32 registers.
const X_ROWS: usize = 6;

/// Some numbers of rows of `x`, aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; LANES]);

impl Vector {
    const ZERO: Self = Self([0.0; LANES]);
}

/// A few rows that rows of f32, f16 or bf16 are multiplied with.
pub(crate) struct FloatRows {
    lanes: Lanes,
    format: BlockFormat,
    columns: usize,
    count: usize,
    /// The vectors of the rows of each tile: the first of each row, then the next ones. Zeros are behind the last numbers of a row, up to
    /// whole [`STEP`]s.
    x: Vec<Vector>,
}

/// The vectors that products are added up in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lanes {
    Eight,
    Sixteen,
    /// A single row of `x` meets rows of weights one after the other, not four at once.
    SixteenInTurn,
}

impl FloatRows {
    /// `x` (count, columns) for weights in `format`; none where another way is quicker.
    pub(crate) fn of_weights(
        processor: Processor,
        format: BlockFormat,
        x: &[f32],
        columns: usize,
    ) -> Option<Self> {
        let lanes = match processor {
            Processor::Avx512(_, IntegerDot::Tiles) => Lanes::SixteenInTurn,
            Processor::Avx512(_, IntegerDot::Pairs | IntegerDot::Quads) => Lanes::Sixteen,
            Processor::Avx2(_, IntegerDot::Pairs | IntegerDot::Quads) => Lanes::Eight,
            _ => return None,
        };
        Self::in_vectors(lanes, format, x, columns)
    }

    /// The same for keys and values, which processors with AMX only are quicker with.
    pub(crate) fn of_keys(
        processor: Processor,
        format: BlockFormat,
        x: &[f32],
        columns: usize,
    ) -> Option<Self> {
        match processor {
            Processor::Avx512(_, IntegerDot::Tiles) => {
                Self::in_vectors(Lanes::SixteenInTurn, format, x, columns)
            }
            _ => None,
        }
    }

    fn in_vectors(lanes: Lanes, format: BlockFormat, x: &[f32], columns: usize) -> Option<Self> {
        let count = x.len() / columns;
        if count > most(format) {
            return None;
        }
        let vectors = vectors_of_row(columns);
        let mut laid_out = vec![Vector::ZERO; count * vectors];
        for tile in 0..tiles(count) {
            let (first, rows) = rows_of_tile(count, tile);
            let laid_out = &mut laid_out[first * vectors..];
            for (index, row) in x.chunks_exact(columns).skip(first).take(rows).enumerate() {
                for (vector, numbers) in row.chunks(LANES).enumerate() {
                    laid_out[vector * rows + index].0[..numbers.len()].copy_from_slice(numbers);
                }
            }
        }
        Some(Self { lanes, format, columns, count, x: laid_out })
    }

    /// Adds the products with some rows, the bytes of which are `rows`; their results are the columns from `column` on.
    ///
    /// # Safety
    /// The result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add(&self, rows: &[u8], column: usize, output: Output) {
        // SAFETY: `of_weights` has looked for the instructions, and the caller promises the rest.
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
        // SAFETY: as the caller promises.
        unsafe {
            match self.lanes {
                Lanes::Eight => self.add_in_eights::<N>(rows, column, output),
                _ => self.add_in_sixteens::<N>(rows, column, output),
            }
        }
    }

    /// # Safety
    /// As [`Self::add_as`], and the processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_in_eights<N: Numbers>(&self, rows: &[u8], column: usize, output: Output) {
        // SAFETY: as the caller promises.
        unsafe { self.add_blocks::<Eights, N>(rows, column, output) };
    }

    /// # Safety
    /// As [`Self::add_as`], and the processor has AVX-512 F, BW, DQ and VL as well.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn add_in_sixteens<N: Numbers>(&self, rows: &[u8], column: usize, output: Output) {
        // SAFETY: as the caller promises.
        unsafe { self.add_blocks::<Sixteens, N>(rows, column, output) };
    }

    /// # Safety
    /// As [`Self::add_as`], and the processor has the instructions of these vectors.
    #[inline(always)]
    unsafe fn add_blocks<V: Vectors, N: Numbers>(&self, rows: &[u8], column: usize, output: Output) {
        let row_bytes = self.columns * N::BYTES;
        let whole = self.columns / STEP * STEP;
        // A single row leaves nothing in the L1 cache that others would find.
        let columns_of_part = if self.count == 1 { self.columns } else { PART };
        let mut sums = vec![Vector::ZERO; self.count * BLOCK];
        for (index, rows) in rows.chunks(BLOCK * row_bytes).enumerate() {
            let found = rows.len() / row_bytes;
            sums.fill(Vector::ZERO);
            for from in (0..whole).step_by(columns_of_part) {
                let columns = columns_of_part.min(whole - from);
                let weights = rows.as_ptr().wrapping_add(from * N::BYTES);
                let next = match (self.count, self.lanes) {
                    (1, Lanes::SixteenInTurn) => weights.wrapping_add(PREFETCH_L2_DISTANCE),
                    (1, _) => weights.wrapping_add(ROWS * row_bytes),
                    _ if from + PART < whole => weights.wrapping_add(PART * N::BYTES),
                    _ => rows.as_ptr().wrapping_add(BLOCK * row_bytes),
                };
                let part = Part { weights, row_bytes, columns, next, rows: found };
                // SAFETY: the part is one of these rows, and the caller promises the instructions.
                unsafe { self.add_part::<V, N>(part, from, &mut sums) };
            }
            if whole < self.columns {
                let mut filled_up = [[0u8; STEP * 4]; BLOCK];
                for (filled_up, row) in filled_up.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                    let last = &row[whole * N::BYTES..];
                    filled_up[..last.len()].copy_from_slice(last);
                }
                let weights = filled_up.as_ptr().cast();
                let row_bytes = size_of_val(&filled_up[0]);
                let part = Part { weights, row_bytes, columns: STEP, next: weights, rows: found };
                // SAFETY: a step of each row is there, and the caller promises the instructions.
                unsafe { self.add_part::<V, N>(part, whole, &mut sums) };
            }
            for (row, sums) in sums.chunks_exact(BLOCK).enumerate() {
                let mut totals = [0.0; BLOCK];
                for (totals, [a, b, c, d]) in totals.as_chunks_mut().0.iter_mut().zip(sums.as_chunks().0) {
                    // SAFETY: these are vectors, and the caller promises the instructions.
                    *totals = unsafe {
                        V::horizontal_sums([
                            V::load(a.0.as_ptr()),
                            V::load(b.0.as_ptr()),
                            V::load(c.0.as_ptr()),
                            V::load(d.0.as_ptr()),
                        ])
                    };
                }
                // SAFETY: as the caller promises.
                unsafe { output.add(row, column + index * BLOCK, &totals[..found]) };
            }
        }
    }

    /// Adds the products of a part of a block, from column `from` on, with all rows of `x`.
    ///
    /// # Safety
    /// The rows have these columns of numbers of this kind, and the processor has the instructions of these vectors.
    #[inline(always)]
    unsafe fn add_part<V: Vectors, N: Numbers>(&self, part: Part, from: usize, sums: &mut [Vector]) {
        let vectors = vectors_of_row(self.columns);
        for tile in 0..tiles(self.count) {
            let (first, x_rows) = rows_of_tile(self.count, tile);
            let x = self.x[first * vectors + from / LANES * x_rows..].as_ptr();
            let sums = sums[first * BLOCK..].as_mut_ptr();
            let turn = Turn { tile, tiles: tiles(self.count) };
            // SAFETY: the rows of `x` are as long as those of weights, and the caller promises the rest.
            unsafe {
                match x_rows {
                    1 if self.lanes == Lanes::SixteenInTurn => {
                        for row in 0..part.rows {
                            multiply::<V, N, 1, 1>(part.behind(row), x, sums.add(row), turn);
                        }
                    }
                    1 => multiply_rows::<V, N, 1>(part, x, sums, turn),
                    2 => multiply_rows::<V, N, 2>(part, x, sums, turn),
                    3 => multiply_rows::<V, N, 3>(part, x, sums, turn),
                    4 => multiply_rows::<V, N, 4>(part, x, sums, turn),
                    5 => multiply_rows::<V, N, 5>(part, x, sums, turn),
                    _ => multiply_rows::<V, N, X_ROWS>(part, x, sums, turn),
                }
            }
        }
    }

    /// Whether rows are whole vectors, which [`Self::add_weighted`] needs.
    pub(crate) fn of_whole_vectors(&self) -> bool {
        self.lanes != Lanes::Eight && self.columns.is_multiple_of(LANES)
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

/// How many vectors a row of `x` takes.
fn vectors_of_row(columns: usize) -> usize {
    columns.next_multiple_of(STEP) / LANES
}

/// Some columns of a block of weights.
#[derive(Clone, Copy)]
struct Part {
    /// Those of the first row.
    weights: *const u8,
    /// From a row to the next one.
    row_bytes: usize,
    rows: usize,
    /// Whole [`STEP`]s.
    columns: usize,
    /// What is to be prefetched meanwhile beside the first row; beside the others it is as far from them. It need not be valid.
    next: *const u8,
}

impl Part {
    /// The same without the rows before one.
    #[inline(always)]
    fn behind(self, row: usize) -> Self {
        let [weights, next] = [self.weights, self.next].map(|at| at.wrapping_add(row * self.row_bytes));
        Self { weights, next, rows: self.rows - row, ..self }
    }
}

/// Which of the tiles of `x` this is: each prefetches every so many steps as there are tiles, so that together they prefetch all.
#[derive(Clone, Copy)]
struct Turn {
    tile: usize,
    tiles: usize,
}

/// [`multiply`] for all rows of a part, as many together as there are registers for.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_rows<V: Vectors, N: Numbers, const X: usize>(
    part: Part,
    x: *const Vector,
    sums: *mut Vector,
    turn: Turn,
) {
    let mut row = 0;
    // SAFETY: as the caller promises.
    unsafe {
        if V::COUNT == LANES || X <= 2 {
            while part.rows - row >= ROWS {
                multiply::<V, N, ROWS, X>(part.behind(row), x, sums.add(row), turn);
                row += ROWS;
            }
        } else {
            while part.rows - row >= 2 {
                multiply::<V, N, 2, X>(part.behind(row), x, sums.add(row), turn);
                row += 2;
            }
        }
        while row < part.rows {
            multiply::<V, N, 1, X>(part.behind(row), x, sums.add(row), turn);
            row += 1;
        }
    }
}

/// Adds the products of the first `R` rows of a part with the `X` rows of `x` of a tile to sums, of which those of a row of `x` are
/// [`BLOCK`] from those of the next one. Each is the same whatever it is computed beside.
///
/// # Safety
/// There are `R` rows of these columns, of numbers of this kind, as many vectors of each row of `x`, and these sums; the processor has
/// the instructions.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "of several arrays")]
unsafe fn multiply<V: Vectors, N: Numbers, const R: usize, const X: usize>(
    part: Part,
    x: *const Vector,
    sums: *mut Vector,
    turn: Turn,
) {
    let Part { weights, row_bytes, columns, next, .. } = part;
    let mut until_prefetch = turn.tile;
    // SAFETY: as the caller promises; an address that is prefetched need not be valid.
    unsafe {
        let mut registers = [[V::zero(); R]; X];
        for of_x in 0..X {
            for row in 0..R {
                registers[of_x][row] = V::load(sums.add(of_x * BLOCK + row).cast());
            }
        }
        for first in (0..columns).step_by(STEP) {
            if until_prefetch == 0 {
                until_prefetch = turn.tiles;
                for line in (0..STEP * N::BYTES).step_by(CACHE_LINE) {
                    for row in 0..R {
                        prefetch_l2(next.wrapping_add(row * row_bytes + first * N::BYTES + line));
                    }
                }
            }
            until_prefetch -= 1;
            for place in (first..first + STEP).step_by(V::COUNT) {
                let mut numbers = [V::zero(); R];
                for row in 0..R {
                    numbers[row] = V::read::<N>(weights.add(row * row_bytes + place * N::BYTES));
                }
                for of_x in 0..X {
                    let x = x.add(place / LANES * X + of_x).cast::<f32>().add(place % LANES);
                    let x = V::load(x);
                    for row in 0..R {
                        registers[of_x][row] = V::multiply_add(numbers[row], x, registers[of_x][row]);
                    }
                }
            }
        }
        for of_x in 0..X {
            for row in 0..R {
                V::store(sums.add(of_x * BLOCK + row).cast(), registers[of_x][row]);
            }
        }
    }
}

/// Vectors of f32.
trait Vectors {
    /// Numbers of a vector.
    const COUNT: usize;
    type Vector: Copy;

    unsafe fn zero() -> Self::Vector;
    /// A vector that is aligned.
    unsafe fn load(at: *const f32) -> Self::Vector;
    unsafe fn store(at: *mut f32, vector: Self::Vector);
    /// a · b + c.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// A vector of weights.
    unsafe fn read<N: Numbers>(at: *const u8) -> Self::Vector;
    unsafe fn horizontal_sums(vectors: [Self::Vector; 4]) -> [f32; 4];
}

struct Eights;

impl Vectors for Eights {
    const COUNT: usize = 8;
    type Vector = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: whoever calls these has the numbers and the instructions, here and below.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_load_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, vector: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_store_ps(at, vector) };
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn read<N: Numbers>(at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { N::read_eight(at) }
    }

    #[inline(always)]
    unsafe fn horizontal_sums(vectors: [__m256; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { horizontal_sums_256(vectors) }
    }
}

struct Sixteens;

impl Vectors for Sixteens {
    const COUNT: usize = LANES;
    type Vector = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_load_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, vector: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(at, vector) };
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn read<N: Numbers>(at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { N::read(at) }
    }

    #[inline(always)]
    unsafe fn horizontal_sums(vectors: [__m512; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { horizontal_sums_512(vectors) }
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

    /// The processors that multiply this way.
    fn processors() -> Vec<Processor> {
        let takes =
            |processor: &Processor| FloatRows::of_weights(*processor, BlockFormat::F32, &[1.0], 1).is_some();
        Processor::tested().into_iter().filter(takes).collect()
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
            for processor in processors() {
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
            for processor in processors() {
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
