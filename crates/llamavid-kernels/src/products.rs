//! Products of rows with the transpose of a matrix of weights, as linear layers compute them.
//!
//! Weights and rows lie with the numbers of a sum one after the other, so that nothing has to be laid out anew: a tile of
//! sums stays in the registers while its rows go by. Weights in blocks are unpacked a few rows at a time into the first
//! cache, or, for few rows, as in decoding, multiplied as they are read: that is all the time it takes.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::awake::stay_awake;
use crate::block_format::{BlockFormat, decode};
use crate::interleaved::INTERLEAVED_ROWS;
use crate::panels::Panels;
use crate::processor::{Processor, processor};
use crate::rows::rows_of_a_task;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::block_products::{BlockProduct, few_rows_of_each};
#[cfg(target_arch = "x86_64")]
use crate::block_vectors::{totals_of_eight, totals_of_sixteen};

/// Rows of weights of which a tile has sums.
const TILE_ROWS: usize = 4;
/// Numbers of a row that are multiplied at a time: the rows of a tile stay in the first cache.
const PART: usize = 1024;
/// Rows of weights of a task at most.
const TASK_ROWS: usize = 64;
/// Multiplications below which a product is not worth a second thread.
pub(crate) const PARALLEL: usize = 1 << 17;

/// The weights of a linear layer, row after row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weights<'a> {
    Numbers(&'a [f32]),
    Blocks(BlockFormat, &'a [u8]),
    /// The blocks of each sixteen rows are interleaved, see [`crate::interleaved`].
    Interleaved(BlockFormat, &'a [u8]),
}

impl<'a> Weights<'a> {
    /// How their numbers are stored.
    pub(crate) fn format(self) -> BlockFormat {
        match self {
            Self::Numbers(_) => BlockFormat::F32,
            Self::Blocks(format, _) | Self::Interleaved(format, _) => format,
        }
    }

    /// Whether `other` are stored in the same way.
    pub(crate) fn is_like(self, other: Self) -> bool {
        (self.format(), self.unit()) == (other.format(), other.unit())
    }

    /// Rows of which a part is to begin with a whole number of times as many.
    pub(crate) fn unit(self) -> usize {
        match self {
            Self::Interleaved(..) => INTERLEAVED_ROWS,
            Self::Numbers(_) | Self::Blocks(..) => 1,
        }
    }

    /// Some rows of `columns` numbers. Those of a unit stay together: the last ones may be fewer, where all rows end.
    pub(crate) fn part(self, rows: Range<usize>, columns: usize) -> Self {
        assert!(rows.start.is_multiple_of(self.unit()), "rows from the middle of interleaved ones on");
        let of = |bytes: &'a [u8], row_bytes: usize| &bytes[rows.start * row_bytes..rows.end * row_bytes];
        match self {
            Self::Numbers(values) => Self::Numbers(&values[rows.start * columns..rows.end * columns]),
            Self::Blocks(format, bytes) => Self::Blocks(format, of(bytes, row_bytes(format, columns))),
            Self::Interleaved(format, bytes) => {
                assert!(
                    rows.len().is_multiple_of(INTERLEAVED_ROWS)
                        || rows.end * row_bytes(format, columns) == bytes.len(),
                    "rows up to the middle of interleaved ones"
                );
                Self::Interleaved(format, of(bytes, row_bytes(format, columns)))
            }
        }
    }

    /// The same row after row: a copy, which `room` has, where they are interleaved.
    pub(crate) fn in_order<'b>(self, columns: usize, room: &'b mut Vec<u8>) -> Weights<'b>
    where
        'a: 'b,
    {
        match self {
            Self::Numbers(_) | Self::Blocks(..) => self,
            Self::Interleaved(format, bytes) => {
                room.resize(bytes.len(), 0);
                format.put_in_order(bytes, row_bytes(format, columns), room);
                Weights::Blocks(format, room)
            }
        }
    }

    /// The bytes of whole interleaved groups of rows of `row_bytes`, and those of the rows that lie one after the other.
    pub(crate) fn groups(self, row_bytes: usize) -> (&'a [u8], &'a [u8]) {
        let bytes = self.bytes();
        match self {
            Self::Interleaved(..) => {
                bytes.split_at(bytes.len() - bytes.len() % (INTERLEAVED_ROWS * row_bytes))
            }
            Self::Numbers(_) | Self::Blocks(..) => bytes.split_at(0),
        }
    }

    /// Their bytes as they lie.
    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Numbers(values) => pulp::bytemuck::cast_slice(values),
            Self::Blocks(_, bytes) | Self::Interleaved(_, bytes) => bytes,
        }
    }
}

/// Bytes of a row of whole blocks.
pub(crate) fn row_bytes(format: BlockFormat, columns: usize) -> usize {
    columns / format.block_length() * format.block_bytes()
}

/// A linear layer: rows `x` (count, columns) give (count, rows), `x` times the transpose of the weights plus the bias.
///
/// The order of a sum depends on the shapes and the processor only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'a> {
    /// (rows, columns).
    pub(crate) weights: Weights<'a>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// (rows).
    pub(crate) bias: Option<&'a [f32]>,
}

impl Layer<'_> {
    /// What it makes of `count` rows. Runs on all threads when `parallel`.
    pub(crate) fn forward(self, x: &[f32], count: usize, parallel: bool) -> Vec<f32> {
        self.forward_on(processor(), x, count, parallel)
    }

    /// What it makes of `count` rows that are never rounded, on all threads.
    pub(crate) fn forward_exactly(self, x: &[f32], count: usize) -> Vec<f32> {
        self.forward_on(processor().without_whole_numbers(), x, count, true)
    }

    fn forward_on(self, processor: Processor, x: &[f32], count: usize, parallel: bool) -> Vec<f32> {
        let length = count * self.rows;
        let mut result = Vec::with_capacity(length);
        let output = Output { values: result.as_mut_ptr(), length, width: self.rows };
        // SAFETY: the vector has room for the result, all of which is written.
        unsafe {
            self.compute(processor, x, count, output, false, parallel);
            result.set_len(length);
        }
        result
    }

    /// What each of some layers makes of the same rows.
    pub(crate) fn forward_each<const N: usize>(
        layers: [Self; N],
        x: &[f32],
        count: usize,
        parallel: bool,
    ) -> [Vec<f32>; N] {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if parallel && let Some(results) = few_rows_of_each(layers, x, count) {
            return results;
        }
        layers.map(|layer| layer.forward(x, count, parallel))
    }

    /// Adds what it makes of rows to `result`. Runs on all threads when `parallel`.
    pub(crate) fn add_to(self, x: &[f32], result: &mut [f32], parallel: bool) {
        let count = result.len() / self.rows.max(1);
        let output = Output::new(result, self.rows);
        // SAFETY: nobody else has the result.
        unsafe { self.compute(processor(), x, count, output, true, parallel) };
    }

    /// Writes what it makes of rows to `result`, on this thread, with rows of `x` that are never rounded.
    pub(crate) fn write_exactly(self, x: &[f32], result: &mut [f32]) {
        let count = result.len() / self.rows.max(1);
        let output = Output::new(result, self.rows);
        // SAFETY: nobody else has the result.
        unsafe { self.compute(processor().without_whole_numbers(), x, count, output, false, false) };
    }

    /// Writes the result, all of it, or adds to it.
    ///
    /// # Safety
    /// Nobody else may use the result, which need not be initialised where it is not added to.
    unsafe fn compute(
        self,
        processor: Processor,
        x: &[f32],
        count: usize,
        output: Output,
        add: bool,
        parallel: bool,
    ) {
        let Self { weights, rows, columns, bias } = self;
        assert_eq!(x.len(), count * columns, "rows that do not go with the weights");
        assert_eq!(output.length, count * rows, "a result of another size");
        assert!(bias.is_none_or(|bias| bias.len() == rows), "a bias of another size");
        if output.length == 0 {
            return;
        }
        let parallel = parallel && rows * columns * count >= PARALLEL;
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if columns > 0
            && let Some(product) = BlockProduct::new(processor, weights, x, columns)
        {
            // SAFETY: as the caller promises.
            unsafe { output.begin(bias, add, parallel) };
            return in_tasks(rows, product.unit().max(weights.unit()), parallel, |task| {
                // SAFETY: each task has columns of its own.
                unsafe { product.add(weights.part(task.clone(), columns), task.start, output) };
            });
        }
        let panels = Panels { processor, layer: self, x, stride: columns, count, add };
        if columns > 0 && panels.pay() {
            // SAFETY: nobody else has the result.
            return unsafe { panels.multiply(output, parallel) };
        }
        // SAFETY: as the caller promises.
        unsafe { output.begin(bias, add, parallel) };
        if columns == 0 {
            return;
        }
        let unit = weights.format().block_length().max(16);
        let part = columns.div_ceil(columns.div_ceil(PART)).next_multiple_of(unit);
        let x = Rows::new(x, columns, part);
        let x = x.values();
        let product = Product { processor, weights, columns, part, x, count };
        in_tasks(rows, TILE_ROWS.max(weights.unit()), parallel, |task| {
            // SAFETY: each task has columns of its own.
            unsafe { product.rows(task, output) };
        });
    }
}

/// Runs `task` on all rows of the weights, a multiple of `unit` each time: on all threads when `parallel`.
///
/// Each thread has a share of the rows that it reads from the front to the back, which is how memory is quickest; when it is
/// done it takes from the others' backs, so that nobody waits for a thread that came late.
pub(crate) fn in_tasks(rows: usize, unit: usize, parallel: bool, task: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if !parallel || threads < 2 {
        return task(0..rows);
    }
    let length = rows.div_ceil(8 * threads).min(TASK_ROWS).next_multiple_of(unit);
    let tasks = rows.div_ceil(length);
    let shares: Vec<_> = (0..threads)
        .map(|thread| Mutex::new(tasks * thread / threads..tasks * (thread + 1) / threads))
        .collect();
    let caller = rayon::current_thread_index();
    (0..threads).into_par_iter().with_max_len(1).for_each(|own| {
        for turn in 0..threads {
            let share = &shares[(own + turn) % threads];
            let next = || {
                let mut left = share.lock().unwrap_or_else(PoisonError::into_inner);
                if turn == 0 { left.next() } else { left.next_back() }
            };
            while let Some(index) = next() {
                task(index * length..rows.min((index + 1) * length));
            }
        }
        if rayon::current_thread_index() != caller {
            stay_awake();
        }
    });
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
        /// Bytes of a line of the caches: a vector that reaches over two takes twice as long to read.
        const LINE: usize = 64;
        if x.len() == columns {
            return Self::AsTheyAre(x);
        }
        let mut values: Vec<f32> = Vec::with_capacity(x.len() + LINE);
        let start = values.as_ptr().align_offset(LINE).min(LINE);
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

/// A result (count, width) of which tasks write columns of their own.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    values: *mut f32,
    length: usize,
    width: usize,
}

// SAFETY: tasks write disjoint columns, see `add`.
unsafe impl Sync for Output {}
// SAFETY: as above.
unsafe impl Send for Output {}

impl Output {
    pub(crate) fn new(values: &mut [f32], width: usize) -> Self {
        Self { values: values.as_mut_ptr(), length: values.len(), width }
    }

    /// The rows from a row on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn below(self, row: usize) -> Self {
        let start = row * self.width;
        assert!(start <= self.length, "rows beyond the result");
        Self { values: self.values.wrapping_add(start), length: self.length - start, ..self }
    }

    /// The columns from a column on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn beside(self, column: usize) -> Self {
        assert!(column <= self.length, "columns beyond the result");
        Self { values: self.values.wrapping_add(column), length: self.length - column, ..self }
    }

    /// Writes `row` to all rows, zeros if there is none, or adds it to them.
    ///
    /// # Safety
    /// The result must live, and nobody else may use it.
    unsafe fn begin(self, row: Option<&[f32]>, add: bool, parallel: bool) {
        let zeros;
        let row = match row {
            Some(row) => row,
            None if add => return,
            None => {
                zeros = vec![0f32; self.width];
                &zeros
            }
        };
        // SAFETY: the caller has the result alone, and each call another row.
        let begin = |index| unsafe { self.write(index, 0, row, add) };
        let rows = 0..self.length / self.width;
        match parallel {
            true => rows.into_par_iter().with_min_len(rows_of_a_task(self.width)).for_each(begin),
            false => rows.for_each(begin),
        }
    }

    /// Writes `sums` to a row, from column `first` on, or adds them to what is there.
    ///
    /// # Safety
    /// The result must live, and nobody else may use these columns, which need not be initialised where nothing is added.
    #[inline(always)]
    pub(crate) unsafe fn write(self, row: usize, first: usize, sums: &[f32], add: bool) {
        if add {
            // SAFETY: as the caller promises.
            return unsafe { self.add(row, first, sums) };
        }
        let start = row * self.width + first;
        assert!(start + sums.len() <= self.length, "a sum beyond the result");
        // SAFETY: within the result, and the caller has these columns alone.
        unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), self.values.add(start), sums.len()) };
    }

    /// Adds `sums` to a row, from column `first` on.
    ///
    /// # Safety
    /// The result must live, and nobody else may use these columns.
    #[inline(always)]
    pub(crate) unsafe fn add(self, row: usize, first: usize, sums: &[f32]) {
        let start = row * self.width + first;
        assert!(start + sums.len() <= self.length, "a sum beyond the result");
        for (place, sum) in sums.iter().enumerate() {
            // SAFETY: within the result, and the caller has these columns alone.
            unsafe { *self.values.add(start + place) += sum };
        }
    }
}

/// A product as its tasks see it.
struct Product<'a> {
    processor: Processor,
    weights: Weights<'a>,
    columns: usize,
    /// Numbers of a part.
    part: usize,
    /// In parts.
    x: &'a [f32],
    count: usize,
}

impl Product<'_> {
    /// Adds the products with some rows of the weights.
    ///
    /// # Safety
    /// The result must live, and nobody else may use the columns of these rows.
    unsafe fn rows(&self, rows: Range<usize>, output: Output) {
        let mut room = Vec::new();
        let weights = self.weights.part(rows.clone(), self.columns).in_order(self.columns, &mut room);
        // SAFETY: as the caller promises.
        self.processor.run(Tiles { product: self, weights, rows, output });
    }
}

/// The products with some rows of the weights. Whoever makes one promises that nobody else uses their columns of the
/// result.
struct Tiles<'a> {
    product: &'a Product<'a>,
    /// Those of the rows, none of them interleaved.
    weights: Weights<'a>,
    rows: Range<usize>,
    output: Output,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product { processor, columns, part, x, count, .. } = *self.product;
        let mut unpacked = [Unpacked([0f32; PART]); TILE_ROWS];
        for from in (0..columns).step_by(part) {
            let length = part.min(columns - from);
            let x = &x[from * count..][..count * length];
            for row in (0..self.rows.len()).step_by(TILE_ROWS) {
                let found = TILE_ROWS.min(self.rows.len() - row);
                let tile_rows: [&[f32]; TILE_ROWS] = match self.weights {
                    // A tile always has all rows: the first stands in for those that are missing.
                    Weights::Numbers(values) => std::array::from_fn(|index| {
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

/// A part of a row of weights, at the start of a line.
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
        16 => return unsafe { totals_of_sixteen(std::mem::transmute_copy(&vectors)) },
        // SAFETY: as above.
        8 => return unsafe { totals_of_eight(std::mem::transmute_copy(&vectors)) },
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that follow no pattern.
    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// How what is multiplied is rounded.
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "pieces are those of AMX"))]
    enum Rounding {
        None,
        /// To whole numbers of 16 bits, both.
        SixteenBits,
        /// To pieces: how far a product may be from what it is.
        Pieces(f64),
    }

    /// Sums in f64, and how far from them a result may be: rounding errors grow with the products without signs. Rows that are
    /// rounded to 16 bits err by up to half of what a whole number stands for.
    fn exactly(numbers: &[f32], columns: usize, x: &[f32], rounding: Rounding) -> Vec<(f64, f64)> {
        let size = |part: &[f32]| part.iter().map(|value| f64::from(value.abs())).sum::<f64>();
        let half = |part: &[f32]| {
            let squares: f64 = part.iter().map(|value| f64::from(*value).powi(2)).sum();
            let largest = part.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            0.5 * (squares.sqrt() / 46334.0).max(f64::from(largest) / 32767.0)
        };
        let of = |x: &[f32], row: &[f32]| {
            let products = x.iter().zip(row).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
            let (sum, all) =
                products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
            let parts = x
                .chunks(128)
                .zip(row.chunks(128))
                .map(|(x, row)| half(x) * size(row) + half(row) * size(x) + 128.0 * half(x) * half(row));
            let rounded = match rounding {
                Rounding::None => 0.0,
                Rounding::SixteenBits => parts.sum(),
                Rounding::Pieces(relative) => relative * all,
            };
            (sum, 1e-6 * all + rounded)
        };
        x.chunks_exact(columns)
            .flat_map(|x| numbers.chunks_exact(columns).map(move |row| of(x, row)))
            .collect()
    }

    /// How rows and weights are rounded.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "none are there"))]
    fn rounding(processor: Processor, layer: Layer, x: &[f32]) -> Rounding {
        #[cfg(target_arch = "x86_64")]
        {
            let (stride, count) = (layer.columns, x.len() / layer.columns);
            let panels = Panels { processor, layer, x, stride, count, add: false };
            let format = layer.weights.format();
            if BlockProduct::new(processor, layer.weights, x, layer.columns).is_some() || !panels.pay() {
                return Rounding::None;
            }
            match format {
                BlockFormat::F32 => Rounding::None,
                BlockFormat::F16 | BlockFormat::BF16 if panels.in_pieces() => {
                    Rounding::Pieces(2f64.powi(-15))
                }
                _ if panels.in_pieces() => Rounding::Pieces(2f64.powi(-7)),
                _ if panels.rounds() => Rounding::SixteenBits,
                _ => Rounding::None,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Rounding::None
    }

    /// What a layer makes of rows on a processor.
    fn computed(processor: Processor, layer: Layer, x: &[f32]) -> Vec<f32> {
        layer.forward_on(processor, x, x.len() / layer.columns, true)
    }

    #[track_caller]
    fn assert_close(result: &[f32], exact: &[(f64, f64)], already: f32, what: &str) {
        for (value, (sum, allowed)) in result.iter().zip(exact) {
            // Written so that not-a-number fails.
            let error = (f64::from(value - already) - sum).abs();
            assert!(error <= allowed + 1e-6 * f64::from(already), "{what}: {value} instead of {sum}");
        }
    }

    #[test]
    fn every_processor_gives_the_sums_in_every_format() {
        for processor in Processor::tested() {
            for format in BlockFormat::ALL {
                for (rows, blocks, count) in [
                    (1, 1, 1),
                    (3, 1, 2),
                    (5, 3, 7),
                    (67, 5, 1),
                    (64, 9, 4),
                    (32, 9, 11),
                    (19, 16, 18),
                    (48, 3, 16),
                    (16, 5, 31),
                    (13, 7, 101),
                    (67, 3, 53),
                    (70, 5, 60),
                    (130, 17, 13),
                ] {
                    // Without blocks: any number of columns, also a long one.
                    let columns = match format.block_length() {
                        1 => [7, 16, 37, 130, 515, 1100, 2049][blocks % 7],
                        length => blocks * length,
                    };
                    let what = format!("{processor:?} {} {rows} x {columns}, {count}", format.name());
                    let bytes = format.encode(&noise(rows * columns, 3), columns).unwrap();
                    let interleaved = format.interleave(&bytes, columns).ok();
                    let mut numbers = vec![0f32; rows * columns];
                    decode(Processor::Portable, format, &bytes, &mut numbers);
                    // Whole numbers, the largest in every group, times a power of two: what rounds rows to those
                    // changes nothing.
                    let mut x: Vec<f32> =
                        noise(count * columns, 4).iter().map(|x| (x * 126.0).round()).collect();
                    x.iter_mut().step_by(16).for_each(|x| *x = 127.0);
                    let places = x.iter_mut().enumerate();
                    places.for_each(|(place, x)| *x *= [1.0, 0.25, 8.0][place / 32 % 3]);
                    let bias = noise(rows, 5);
                    for (add, parallel, bias) in [
                        (false, true, None),
                        (true, false, Some(bias.as_slice())),
                        (false, false, Some(&bias)),
                        (true, true, None),
                    ] {
                        let already = if add { 2.0 } else { 0.0 };
                        let weights = [Weights::Blocks(format, &bytes), Weights::Numbers(&numbers)];
                        let interleaved =
                            interleaved.as_ref().map(|bytes| Weights::Interleaved(format, bytes));
                        for weights in weights.into_iter().chain(interleaved) {
                            let layer = Layer { weights, rows, columns, bias };
                            let mut exact = exactly(&numbers, columns, &x, rounding(processor, layer, &x));
                            let biases = bias.unwrap_or(&[]).iter().cycle();
                            for ((sum, allowed), bias) in exact.iter_mut().zip(biases) {
                                *sum += f64::from(*bias);
                                *allowed += 1e-6 * f64::from(bias.abs());
                            }
                            // What is not added to does not count.
                            let mut result = vec![if add { already } else { f32::NAN }; rows * count];
                            let output = Output::new(&mut result, rows);
                            // SAFETY: nobody else has the result.
                            unsafe { layer.compute(processor, &x, count, output, add, parallel) };
                            assert_close(&result, &exact, already, &what);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_rounded_err_as_little_as_eight_bits_do() {
        let (rows, columns) = (40, 1024);
        for processor in Processor::tested() {
            for format in BlockFormat::ALL.into_iter().filter(|format| format.block_length() > 1) {
                let bytes = format.encode(&noise(rows * columns, 5), columns).unwrap();
                let mut numbers = vec![0f32; rows * columns];
                decode(Processor::Portable, format, &bytes, &mut numbers);
                for count in [1, 6, 63] {
                    let x = noise(count * columns, 6);
                    let exact = exactly(&numbers, columns, &x, Rounding::None);
                    let layer = Layer { weights: Weights::Blocks(format, &bytes), rows, columns, bias: None };
                    let relative = error(&computed(processor, layer, &x), &exact);
                    // Pieces err half as much.
                    let most = if rounding(processor, layer, &x) == Rounding::None { 6e-3 } else { 3e-3 };
                    assert!(relative < most, "{processor:?} {} {count}: {relative}", format.name());
                }
            }
        }
    }

    /// The root of the mean square of errors, against that of the sums.
    fn error(result: &[f32], exact: &[(f64, f64)]) -> f64 {
        let (mut error, mut all) = (0.0, 0.0);
        for (value, (sum, _)) in result.iter().zip(exact) {
            error += (f64::from(*value) - sum).powi(2);
            all += sum.powi(2);
        }
        (error / all).sqrt()
    }

    /// Makes one number of each part far larger than the others.
    fn with_large(mut values: Vec<f32>, times: f32) -> Vec<f32> {
        values.iter_mut().skip(77).step_by(128).for_each(|value| *value *= times);
        values
    }

    #[test]
    fn rows_that_are_rounded_to_sixteen_bits_err_less_than_in_half_precision() {
        let (rows, columns, count) = (70, 1024, 61);
        // A bell curve: sums of noise.
        let bell = |count: usize, seed: u32| -> Vec<f32> {
            noise(8 * count, seed).chunks(8).map(|numbers| numbers.iter().sum()).collect()
        };
        for (what, weights, x) in [
            ("noise", noise(rows * columns, 11), noise(count * columns, 12)),
            ("bell curves", bell(rows * columns, 13), bell(count * columns, 14)),
            ("large numbers", bell(rows * columns, 15), with_large(bell(count * columns, 16), 1000.0)),
            ("very large numbers", bell(rows * columns, 17), with_large(bell(count * columns, 18), 1e4)),
            ("large weights", with_large(bell(rows * columns, 19), 20.0), bell(count * columns, 20)),
        ] {
            for format in [BlockFormat::F16, BlockFormat::BF16] {
                let bytes = format.encode(&weights, columns).unwrap();
                let mut numbers = vec![0f32; rows * columns];
                decode(Processor::Portable, format, &bytes, &mut numbers);
                let exact = exactly(&numbers, columns, &x, Rounding::SixteenBits);
                let mut halves = vec![0f32; x.len()];
                let bytes_of_x = BlockFormat::F16.encode(&x, columns).unwrap();
                decode(Processor::Portable, BlockFormat::F16, &bytes_of_x, &mut halves);
                let layer = Layer { weights: Weights::Numbers(&numbers), rows, columns, bias: None };
                let in_halves = error(&computed(Processor::Portable, layer, &halves), &exact);
                for processor in Processor::tested() {
                    let layer = Layer { weights: Weights::Blocks(format, &bytes), ..layer };
                    let result = computed(processor, layer, &x);
                    let what = format!("{processor:?} {} {what}", format.name());
                    assert_close(&result, &exact, 0.0, &what);
                    let relative = error(&result, &exact);
                    assert!(relative < 0.7 * in_halves, "{what}: {relative}, in half precision {in_halves}");
                }
            }
        }
    }

    #[test]
    fn many_rows_beside_weights_in_f32_err_no_more_than_sums_in_f32() {
        let (rows, columns, count) = (33, 1500, 50);
        for (what, weights, x) in [
            ("noise", noise(rows * columns, 31), noise(count * columns, 32)),
            ("no signs", noise(rows * columns, 33).iter().map(|value| value.abs()).collect(), {
                noise(count * columns, 34).iter().map(|value| value.abs()).collect()
            }),
            ("large numbers", with_large(noise(rows * columns, 35), 1e4), noise(count * columns, 36)),
        ] {
            let layer = Layer { weights: Weights::Numbers(&weights), rows, columns, bias: None };
            let exact = exactly(&weights, columns, &x, Rounding::None);
            for processor in Processor::tested() {
                let found = error(&computed(processor, layer, &x), &exact);
                let plain = error(&computed(processor.without_whole_numbers(), layer, &x), &exact);
                assert!(found <= 1.2 * plain, "{processor:?} {what}: {found}, in f32 {plain}");
            }
        }
    }

    #[test]
    fn what_cannot_be_rounded_to_sixteen_bits_is_multiplied_as_it_is() {
        let (rows, columns, count) = (300, 300, 50);
        let bf16 = |mut values: Vec<f32>, changes: &[(usize, f32)]| {
            changes.iter().for_each(|(place, value)| values[*place] = *value);
            values
                .iter()
                .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let of = |row: usize, column: usize| row * columns + column;
        let plain = bf16(noise(rows * columns, 21), &[]);
        let mut zeros = plain.clone();
        zeros[2 * of(4, 128)..2 * of(5, 0)].fill(0);
        let all: Vec<usize> = (0..rows).collect();
        for (what, as_they_are, bytes, x) in [
            (
                "weights that are not finite",
                vec![3, 9, 299],
                bf16(
                    noise(rows * columns, 22),
                    &[(of(3, 5), f32::INFINITY), (of(9, 299), f32::NEG_INFINITY), (of(299, 130), f32::NAN)],
                ),
                noise(count * columns, 23),
            ),
            (
                "weights beyond what is squared",
                vec![0, 250],
                bf16(noise(rows * columns, 24), &[(of(0, 0), 3e38), (of(250, 200), -1e30)]),
                noise(count * columns, 25),
            ),
            (
                "subnormal weights",
                all.clone(),
                bf16(vec![1e-40; rows * columns], &[]),
                noise(count * columns, 26),
            ),
            ("subnormal rows", all.clone(), plain.clone(), vec![1e-40; count * columns]),
            ("large rows", all.clone(), plain, vec![1e30; count * columns]),
            ("weights that are zeros", Vec::new(), zeros.clone(), noise(count * columns, 27)),
            ("rows that are zeros", all, zeros, vec![0.0; count * columns]),
        ] {
            let layer =
                Layer { weights: Weights::Blocks(BlockFormat::BF16, &bytes), rows, columns, bias: None };
            let mut numbers = vec![0f32; rows * columns];
            decode(Processor::Portable, BlockFormat::BF16, &bytes, &mut numbers);
            let exact = exactly(&numbers, columns, &x, Rounding::SixteenBits);
            for processor in Processor::tested() {
                let result = computed(processor, layer, &x);
                let plain = computed(processor.without_whole_numbers(), layer, &x);
                for (index, (value, expected)) in result.iter().zip(plain).enumerate() {
                    let (sum, allowed) = exact[index];
                    let same = *value == expected || value.is_nan() && expected.is_nan();
                    let close =
                        !as_they_are.contains(&(index % rows)) && (f64::from(*value) - sum).abs() <= allowed;
                    assert!(same || close, "{processor:?} {what} {index}: {value} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_gives_nothing_that_is() {
        let (rows, columns) = (5, 512);
        for processor in Processor::tested() {
            for format in BlockFormat::ALL {
                let bytes = format.encode(&noise(rows * columns, 7), columns).unwrap();
                for (count, wrong) in [(1, f32::NAN), (3, f32::INFINITY), (70, f32::NEG_INFINITY)] {
                    let mut x = noise(count * columns, 8);
                    x[columns / 2 + 3] = wrong;
                    let layer = Layer { weights: Weights::Blocks(format, &bytes), rows, columns, bias: None };
                    let result = computed(processor, layer, &x);
                    let (first, others) = result.split_at(rows);
                    let what = format!("{processor:?} {} {wrong}", format.name());
                    assert!(first.iter().all(|value| !value.is_finite()), "{what}: {first:?}");
                    assert!(others.iter().all(|value| value.is_finite()), "{what}");
                }
            }
        }
    }

    #[test]
    fn nothing_gives_nothing() {
        let layer = |rows, columns, bias| Layer { weights: Weights::Numbers(&[]), rows, columns, bias };
        assert_eq!(layer(3, 0, None).forward(&[], 2, true), [0.0; 6]);
        assert_eq!(layer(3, 0, Some(&[1.0, 2.0, 3.0])).forward(&[], 1, false), [1.0, 2.0, 3.0]);
        assert_eq!(layer(0, 4, None).forward(&[0.0; 8], 2, true), [0.0; 0]);
        assert_eq!(layer(2, 4, None).forward(&[], 0, true), [0.0; 0]);
    }
}
