//! Products in f32, in the vectors of any processor: a few rows of weights at a time are dequantised in the L1 cache, and meet all rows
//! of `x`, some at a time.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Layer, Output, Weights, row_bytes};
use crate::formats::block_format::decode;
#[cfg(target_arch = "x86_64")]
use crate::instructions::horizontal_sums::{horizontal_sums_256, horizontal_sums_512};
use crate::instructions::prefetch::CACHE_LINE;
use crate::instructions::processor::Processor;
use crate::threads::tasks::in_tasks;

/// Rows of weights of which a tile has sums.
const TILE_ROWS: usize = 4;
/// Numbers of a row that are multiplied at a time: the rows of a tile stay in the L1 cache.
const PART: usize = 1024;

impl Layer<'_> {
    /// Adds what it makes of rows to the result, bias aside.
    ///
    /// # Safety
    /// Nobody else may use the result.
    pub(super) unsafe fn add_in_f32(self, processor: Processor, x: &[f32], output: Output, parallel: bool) {
        let Self { weights, rows, columns, .. } = self;
        let count = x.len() / columns;
        let unit = weights.format().block_length().max(16);
        let part = columns.div_ceil(columns.div_ceil(PART)).next_multiple_of(unit);
        let x = Rows::new(x, columns, part);
        let x = x.values();
        in_tasks(rows, TILE_ROWS.max(weights.unit()), parallel, |rows| {
            let mut room = Vec::new();
            let weights = weights.part(rows.clone(), columns).deinterleaved(columns, &mut room);
            processor.run(Tiles { processor, weights, rows, columns, part, x, count, output });
        });
    }
}

/// Rows of `x`, laid out for the products.
enum Rows<'a> {
    AsTheyAre(&'a [f32]),
    /// Cut into parts: the first numbers of each row, then the next ones. Parts of whole rows would lie a power of two
    /// apart, and push each other out of the cache.
    Parts {
        values: Vec<f32>,
        /// Where the first one is.
        start: usize,
    },
}

impl<'a> Rows<'a> {
    fn new(x: &'a [f32], columns: usize, part: usize) -> Self {
        // A vector that crosses two cache lines takes twice as long to read.
        if x.len() == columns {
            return Self::AsTheyAre(x);
        }
        let mut values: Vec<f32> = Vec::with_capacity(x.len() + CACHE_LINE);
        let start = values.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
        values.resize(start, 0.0);
        for first in (0..columns).step_by(part) {
            let length = part.min(columns - first);
            x.chunks_exact(columns).for_each(|row| values.extend_from_slice(&row[first..first + length]));
        }
        Self::Parts { values, start }
    }

    fn values(&self) -> &[f32] {
        match self {
            Self::AsTheyAre(x) => x,
            Self::Parts { values, start } => &values[*start..],
        }
    }
}

/// The products with some rows of the weights. Whoever makes one promises that nobody else uses their columns of the
/// result.
struct Tiles<'a> {
    processor: Processor,
    /// Those of the rows, none of them interleaved.
    weights: Weights<'a>,
    rows: Range<usize>,
    columns: usize,
    /// Numbers of a part.
    part: usize,
    /// In parts.
    x: &'a [f32],
    count: usize,
    output: Output,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { processor, columns, part, x, count, .. } = self;
        let mut unpacked = [Unpacked([0f32; PART]); TILE_ROWS];
        for from in (0..columns).step_by(part) {
            let length = part.min(columns - from);
            let x = &x[from * count..][..count * length];
            for row in (0..self.rows.len()).step_by(TILE_ROWS) {
                let found = TILE_ROWS.min(self.rows.len() - row);
                let tile_rows: [&[f32]; TILE_ROWS] = match self.weights {
                    // A tile always has all rows: the first stands in for those that are missing.
                    Weights::F32(values) => std::array::from_fn(|index| {
                        let row = row + if index < found { index } else { 0 };
                        &values[row * columns + from..][..length]
                    }),
                    Weights::Blocks(format, bytes) | Weights::Interleaved(format, bytes) => {
                        let [row_bytes, part_bytes] = [columns, from].map(|to| row_bytes(format, to));
                        for (index, values) in unpacked.iter_mut().take(found).enumerate() {
                            let bytes = &bytes[(row + index) * row_bytes + part_bytes..];
                            decode(processor, format, bytes, &mut values.0[..length]);
                        }
                        unpacked.each_ref().map(|row| &row.0[..length])
                    }
                };
                let column = self.rows.start + row;
                add_products(simd, tile_rows, x, Sums { output: self.output, column, found });
            }
        }
    }
}

/// A part of a row of weights, aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Unpacked([f32; PART]);

/// Where the sums of a tile go.
#[derive(Clone, Copy)]
struct Sums {
    output: Output,
    column: usize,
    /// Rows of weights that are ones.
    found: usize,
}

/// Adds the products of each row of `x` with a tile's rows, all of one length.
#[inline(always)]
fn add_products<S: Simd>(simd: S, rows: [&[f32]; TILE_ROWS], x: &[f32], sums: Sums) {
    // Sums, a vector of each row of `x`, and one of the weights are all the registers there are.
    let most = if S::REGISTER_COUNT >= 32 { 6 } else { 3 };
    let mut x = x.chunks_exact(rows[0].len());
    let mut at = 0;
    while x.len() > 0 {
        let width = x.len().min(most);
        match width {
            1 => add_tile::<S, 1>(simd, rows, &mut x, at, sums),
            2 => add_tile::<S, 2>(simd, rows, &mut x, at, sums),
            3 => add_tile::<S, 3>(simd, rows, &mut x, at, sums),
            4 => add_tile::<S, 4>(simd, rows, &mut x, at, sums),
            5 => add_tile::<S, 5>(simd, rows, &mut x, at, sums),
            _ => add_tile::<S, 6>(simd, rows, &mut x, at, sums),
        }
        at += width;
    }
}

#[inline(always)]
fn add_tile<S: Simd, const X: usize>(
    simd: S,
    rows: [&[f32]; TILE_ROWS],
    x: &mut std::slice::ChunksExact<f32>,
    at: usize,
    Sums { output, column, found }: Sums,
) {
    let x: [&[f32]; X] = std::array::from_fn(|_| x.next().unwrap_or_default());
    for (row, sums) in tile(simd, rows, x).iter().enumerate() {
        // SAFETY: the columns belong to this task, as whoever made its `Tiles` promised.
        unsafe { output.add(at + row, column, &sums[..found]) };
    }
}

/// The products of each of `X` rows with each of a tile's, all of one length.
#[inline(always)]
fn tile<S: Simd, const X: usize>(
    simd: S,
    rows: [&[f32]; TILE_ROWS],
    x: [&[f32]; X],
) -> [[f32; TILE_ROWS]; X] {
    let (row_vectors, row_rests) = split::<S, TILE_ROWS>(rows);
    let (x_vectors, x_rests) = split::<S, X>(x);
    let length = row_vectors[0].len();
    let whole = |vectors: &&[S::f32s]| vectors.len() == length;
    assert!(row_vectors.iter().all(whole) && x_vectors.iter().all(whole), "rows of several lengths");
    let mut sums = [[simd.splat_f32s(0.0); TILE_ROWS]; X];
    for place in 0..length {
        // SAFETY: all have this length.
        let x: [S::f32s; X] = std::array::from_fn(|row| unsafe { *x_vectors[row].get_unchecked(place) });
        for (index, row) in row_vectors.iter().enumerate() {
            // SAFETY: as above.
            let weights = unsafe { *row.get_unchecked(place) };
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[index] = simd.mul_add_e_f32s(weights, x, sums[index]);
            }
        }
    }
    let mut results = [[0f32; TILE_ROWS]; X];
    for ((results, sums), x) in results.iter_mut().zip(sums).zip(x_rests) {
        *results = totals(simd, sums);
        for (result, row) in results.iter_mut().zip(row_rests) {
            // What is left over of rows that are no whole number of vectors.
            for (x, weight) in x.iter().zip(row) {
                *result += x * weight;
            }
        }
    }
    results
}

/// The sum of each vector.
#[inline(always)]
fn totals<S: Simd>(simd: S, vectors: [S::f32s; TILE_ROWS]) -> [f32; TILE_ROWS] {
    #[cfg(target_arch = "x86_64")]
    match S::F32_LANES {
        // SAFETY: vectors of sixteen numbers are those of AVX-512, and of eight those of AVX2.
        16 => return unsafe { horizontal_sums_512(std::mem::transmute_copy(&vectors)) },
        // SAFETY: as above.
        8 => return unsafe { horizontal_sums_256(std::mem::transmute_copy(&vectors)) },
        _ => {}
    }
    let mut totals = [0f32; TILE_ROWS];
    for (total, vector) in totals.iter_mut().zip(vectors) {
        *total = simd.reduce_sum_f32s(vector);
    }
    totals
}

/// Whole vectors of each row, and the numbers behind them.
#[inline(always)]
fn split<S: Simd, const N: usize>(rows: [&[f32]; N]) -> ([&[S::f32s]; N], [&[f32]; N]) {
    let (mut vectors, mut rests): ([&[S::f32s]; N], [&[f32]; N]) = ([&[]; N], [&[]; N]);
    for ((row, vectors), rest) in rows.iter().zip(&mut vectors).zip(&mut rests) {
        (*vectors, *rest) = S::as_simd_f32s(row);
    }
    (vectors, rests)
}
