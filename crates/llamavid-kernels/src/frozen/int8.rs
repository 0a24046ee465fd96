//! int8 products (W8A8): weights with a scale for each of their rows, `x` with a scale and a zero point for each of its own.
//!
//! `x` is unsigned and the weights are signed, as the instructions want it. Sums of whole rows are exact; only then they are
//! scaled. The few outliers of a row of `x`, far larger than its other numbers, as some channels of large encoders are, would
//! leave the others no steps: they are multiplied on their own, in f32. T. Dettmers et al., "LLM.int8()" (2022), does so with
//! whole channels.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::groups;
use super::parts::{PANEL, PART, PrefetchQueue, Step};
#[cfg(target_arch = "x86_64")]
use super::row_vectors;
use super::tasks::{ThreadScratch, share_rows};
#[cfg(target_arch = "x86_64")]
use super::tile_rows::{TileRow, TileRows};
use super::tiles::Rows;
#[cfg(target_arch = "x86_64")]
use crate::instructions::processor::IntegerDot;
use crate::instructions::processor::{Processor, processor};
use crate::instructions::vector::{NEAREST, multiply_add, widest};

/// Numbers that one instruction multiplies and adds up in a lane.
pub(super) const TOGETHER: usize = 4;
/// Numbers of a row that lie together: a panel's part of as many columns stays in the L1 cache, or comes from the L2 cache sooner than it
/// is multiplied. With fewer, sums are read and written more often.
pub(super) const BYTES: usize = 4 * PART;
/// Rows of weights are padded to multiples of a tile row.
const TILE_ROW: usize = 64;
/// Numbers of a row of `x` up to which it is not quantised: little is gained, and patches of small encoders would turn too
/// far.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 128;
/// The largest integer of a weight.
const LARGEST: f32 = 127.0;
/// The largest integer of `x`.
pub(super) const STEPS: f32 = 255.0;

/// Panels of weights: four numbers of each of [`PANEL`] rows, then the next four of each.
#[derive(Debug)]
pub(super) struct Int8Panels {
    numbers: Vec<Int8Step>,
    /// Of each panel: for each of its rows the scale, and the sum of its integers.
    scales: Vec<Step>,
    totals: Vec<Sums>,
    /// Steps of a panel.
    steps: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Int8Step(pub(super) [[i8; TOGETHER]; PANEL]);

/// A sum for each row of a panel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [i32; PANEL]);

impl Sums {
    pub(super) const ZERO: Self = Self([0; PANEL]);

    /// The same memory as f32 sums.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn as_numbers(sums: &mut [Self]) -> &mut [Step] {
        // SAFETY: both are as many numbers of 32 bits.
        unsafe { std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast(), sums.len()) }
    }
}

impl Int8Panels {
    /// Quantises and lays out weights (rows, columns).
    pub(super) fn new(values: &[f32], rows: usize, columns: usize) -> Self {
        let panels = rows.div_ceil(PANEL);
        let steps = columns.next_multiple_of(TILE_ROW).div_ceil(TOGETHER);
        let mut numbers = vec![Int8Step([[0; TOGETHER]; PANEL]); panels * steps];
        let mut scales = vec![Step::ZERO; panels];
        let mut totals = vec![Sums::ZERO; panels];
        let tasks = numbers.par_chunks_exact_mut(steps).zip(&mut scales).zip(&mut totals);
        tasks.zip(values.par_chunks(PANEL * columns)).for_each(|(((numbers, scales), totals), values)| {
            let mut integers = vec![0i8; columns];
            for (place, row) in values.chunks_exact(columns).enumerate() {
                scales.0[place] = quantise_weights(row, &mut integers);
                totals.0[place] = integers.iter().map(|number| i32::from(*number)).sum();
                for (four, step) in integers.chunks(TOGETHER).zip(&mut *numbers) {
                    step.0[place][..four.len()].copy_from_slice(four);
                }
            }
        });
        Self { numbers, scales, totals, steps }
    }

    /// Whether integers are multiplied; else weights are dequantised, and `x` is not quantised: where the processor has no int8
    /// products, and for short rows.
    pub(super) fn multiplies(&self, processor: Processor) -> bool {
        match processor {
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, dot) | Processor::Avx2(_, dot) => {
                self.steps * TOGETHER > SHORT && dot != IntegerDot::None
            }
            _ => false,
        }
    }

    /// Tile rows of a panel from a step of tiles on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn lines(&self, panel: usize, steps: Range<usize>) -> &[TileRow] {
        let [first, last] =
            [steps.start, steps.end].map(|step| panel * self.steps + step * (TILE_ROW / TOGETHER));
        let numbers = &self.numbers[first..last];
        // SAFETY: numbers are bytes, two tile rows of them a step of four.
        unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), 2 * numbers.len()) }
    }

    /// Columns of a panel in f32.
    pub(super) fn widen(&self, panel: usize, columns: Range<usize>, into: &mut [Step]) {
        let numbers = &self.numbers[panel * self.steps..][..self.steps];
        widen(numbers, &self.scales[panel], columns.start, into);
    }

    /// Numbers of a panel from a column on, the first of a step: those of some columns, or as many as there are.
    pub(super) fn steps(&self, panel: usize, columns: Range<usize>) -> &[Int8Step] {
        let first = panel * self.steps;
        let last = self.numbers.len().min(first + columns.end.div_ceil(TOGETHER));
        self.numbers.get(first + columns.start / TOGETHER..last).unwrap_or_default()
    }

    /// Turns int32 sums of rows with a panel into f32, with a bias and with the products of outliers.
    pub(super) fn scale(
        &self,
        processor: Processor,
        panel: usize,
        (integer_sums, x): (&[Sums], &[QuantisedRow]),
        bias: &Step,
        sums: &mut [Step],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Processor::Avx512(..) = processor {
            // SAFETY: the processor has AVX-512.
            return unsafe { self.scale_in_vectors(panel, integer_sums, x, bias, sums) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = processor;
        scale(integer_sums, x, (&self.scales[panel], &self.totals[panel]), bias, sums);
        if x.iter().any(|row| !row.large.is_empty()) {
            let numbers = &self.numbers[panel * self.steps..][..self.steps];
            add_outliers(numbers, &self.scales[panel], x, sums);
        }
    }

    /// The same in vectors.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn scale_in_vectors(
        &self,
        panel: usize,
        integer_sums: &[Sums],
        x: &[QuantisedRow],
        bias: &Step,
        sums: &mut [Step],
    ) {
        let numbers = &self.numbers[panel * self.steps..][..self.steps];
        // SAFETY: as the caller promises.
        unsafe {
            groups::scale(integer_sums, x, (&self.scales[panel], &self.totals[panel], bias), numbers, sums)
        };
    }
}

/// Adds the products of rows of `x` with steps of a panel.
pub(super) fn add_products(
    processor: Processor,
    panel: &[Int8Step],
    x: Rows<u8>,
    sums: &mut [Sums],
    queue: &mut PrefetchQueue,
) {
    match processor {
        // SAFETY: the processor has AVX-512 with VNNI.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(_, IntegerDot::Quads | IntegerDot::Tiles) => unsafe {
            groups::quads(panel, x, sums, queue)
        },
        // SAFETY: the processor has AVX2, which is a part of AVX-512.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) | Processor::Avx2(..) => unsafe { x86::pairs(panel, x, sums, queue) },
        _ => plain(panel, x, sums, queue),
    }
}

/// The same as it is meant.
fn plain(panel: &[Int8Step], x: Rows<u8>, sums: &mut [Sums], queue: &mut PrefetchQueue) {
    for (x, sums) in x.values.chunks(x.stride).zip(sums) {
        queue.prefetch(1);
        for (step, x) in panel.iter().zip(x.as_chunks::<TOGETHER>().0) {
            for (sum, weights) in sums.0.iter_mut().zip(&step.0) {
                for (weight, x) in weights.iter().zip(x) {
                    *sum += i32::from(*weight) * i32::from(*x);
                }
            }
        }
    }
}

/// Quantises a row of weights to signed integers, and gives their scale.
#[inline(always)]
fn quantise_weights_inline<const FUSED: bool>(row: &[f32], numbers: &mut [i8]) -> f32 {
    let mut max = 0f32;
    for value in row {
        max = if value.abs() > max { value.abs() } else { max };
    }
    let factor = if max > 0.0 { LARGEST / max } else { 0.0 };
    for (number, value) in numbers.iter_mut().zip(row) {
        let rounded = (value * factor + NEAREST).to_bits() as i32 - NEAREST.to_bits() as i32;
        *number = rounded.clamp(-127, 127) as i8;
    }
    max / LARGEST
}
widest!(fn quantise_weights(row: &[f32], numbers: &mut [i8]) -> f32 = quantise_weights_inline);

#[inline(always)]
fn widen_inline<const FUSED: bool>(numbers: &[Int8Step], scales: &Step, first: usize, into: &mut [Step]) {
    for (index, into) in into.iter_mut().enumerate() {
        let column = first + index;
        let numbers = &numbers[column / TOGETHER].0;
        for ((into, numbers), scale) in into.0.iter_mut().zip(numbers).zip(&scales.0) {
            *into = f32::from(numbers[column % TOGETHER]) * scale;
        }
    }
}
widest!(fn widen(numbers: &[Int8Step], scales: &Step, first: usize, into: &mut [Step]) = widen_inline);

#[inline(always)]
fn scale_inline<const FUSED: bool>(
    integer_sums: &[Sums],
    x: &[QuantisedRow],
    (scales, totals): (&Step, &Sums),
    bias: &Step,
    sums: &mut [Step],
) {
    for ((sums, integers), x) in sums.iter_mut().zip(integer_sums).zip(x) {
        for place in 0..PANEL {
            let sum = (integers.0[place] - x.zero * totals.0[place]) as f32;
            sums.0[place] = sum * (scales.0[place] * x.scale) + bias.0[place];
        }
    }
}
widest!(fn scale(
    integer_sums: &[Sums],
    x: &[QuantisedRow],
    of_weights: (&Step, &Sums),
    bias: &Step,
    sums: &mut [Step],
) = scale_inline);

#[inline(always)]
fn add_outliers_inline<const FUSED: bool>(
    numbers: &[Int8Step],
    scales: &Step,
    x: &[QuantisedRow],
    sums: &mut [Step],
) {
    for (x, sums) in x.iter().zip(sums) {
        for Outlier { column, value } in &x.large {
            let numbers = &numbers[column / TOGETHER].0;
            // The number at its place among four, as the upper bits.
            let shift = 8 * (TOGETHER - 1 - column % TOGETHER);
            for ((sum, four), scale) in sums.0.iter_mut().zip(numbers).zip(&scales.0) {
                let four = i32::from_le_bytes(four.map(|number| number as u8));
                *sum += (four << shift >> 24) as f32 * (scale * value);
            }
        }
    }
}
widest!(
    /// Adds the products of the outliers of each row to its sums.
    fn add_outliers(numbers: &[Int8Step], scales: &Step, x: &[QuantisedRow], sums: &mut [Step]) = add_outliers_inline
);

/// A number that is far larger than others of its row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outlier {
    pub(super) column: usize,
    pub(super) value: f32,
}

/// How a row was quantised.
#[derive(Debug, Default)]
pub(super) struct QuantisedRow {
    /// The scale.
    pub(super) scale: f32,
    /// The zero point.
    pub(super) zero: i32,
    /// Outliers, which were not quantised; the integers have 0 in their places.
    pub(super) large: Vec<Outlier>,
}

/// Rows in unsigned integers: the first ones of each row, then the next ones, up to whole steps of four.
#[derive(Debug, Default)]
pub(super) struct Int8Rows {
    numbers: Vec<[u8; BYTES]>,
    rows: Vec<QuantisedRow>,
    columns: usize,
    /// The same for tiles, which are written instead of the others.
    #[cfg(target_arch = "x86_64")]
    lines: TileRows,
}

/// Where tasks write what belongs to rows of their own.
struct Places<T>(*mut T);

// SAFETY: each task writes what belongs to rows of its own.
unsafe impl<T: Send> Sync for Places<T> {}

impl<T> Places<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

impl Int8Rows {
    /// Rounds rows that `make` writes; on all threads.
    pub(super) fn fill(
        &mut self,
        count: usize,
        columns: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        scratches: &mut Vec<ThreadScratch>,
    ) {
        self.columns = columns;
        self.numbers.resize(columns.div_ceil(BYTES) * count, [0; BYTES]);
        self.rows.resize_with(count, QuantisedRow::default);
        let (places, rows) = (Places(self.numbers.as_mut_ptr()), Places(self.rows.as_mut_ptr()));
        share_rows(count, columns, scratches, |row, index| {
            make(index, row);
            // SAFETY: there are as many rows, and only this task writes this one.
            let rounded = unsafe { &mut *rows.at(index) };
            let statistics = take_outliers(row, &mut rounded.large);
            let steps;
            (steps, rounded.scale, rounded.zero) = statistics.steps(row);
            for (part, row) in row.chunks(BYTES).enumerate() {
                // SAFETY: there are as many parts of as many rows, and only this task writes this row.
                let into = unsafe { &mut *places.at(part * count + index) };
                round(row, steps, rounded.zero, &mut into[..row.len()]);
            }
        });
    }

    /// The same as tiles read them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn fill_tiles(
        &mut self,
        count: usize,
        columns: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        scratches: &mut Vec<ThreadScratch>,
    ) -> (&TileRows, &[QuantisedRow]) {
        let places = self.lines.reshape(count, columns, TILE_ROW, 1);
        self.rows.resize_with(count, QuantisedRow::default);
        let rows = Places(self.rows.as_mut_ptr());
        share_rows(count, columns, scratches, |row, index| {
            make(index, row);
            // SAFETY: there are as many rows, and only this task writes this one.
            let rounded = unsafe { &mut *rows.at(index) };
            let statistics = take_outliers(row, &mut rounded.large);
            let steps;
            (steps, rounded.scale, rounded.zero) = statistics.steps(row);
            // SAFETY: the processor has AVX-512, as all with tiles; only this task writes this row.
            unsafe { row_vectors::round(row, steps, rounded.zero, places, index) };
        });
        (&self.lines, &self.rows)
    }

    /// Room for rows in pieces.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn lines(&mut self) -> &mut TileRows {
        &mut self.lines
    }

    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Integers of rows from a column on, a multiple of [`BYTES`].
    pub(super) fn from(&self, column: usize, row: usize) -> Rows<'_, u8> {
        let part = &self.numbers[column / BYTES * self.count()..][..self.count()];
        Rows { values: part[row..].as_flattened(), stride: BYTES }
    }

    /// How rows were quantised.
    pub(super) fn rows(&self, rows: Range<usize>) -> &[QuantisedRow] {
        &self.rows[rows]
    }
}

/// Statistics of the numbers of a row that are not beyond a limit, before they are quantised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RowStatistics {
    /// The smallest of them and 0.
    pub(super) min: f32,
    /// The largest of them and 0.
    pub(super) max: f32,
    /// The sum of their squares. Not a finite number, where one of them is not one.
    pub(super) squares: f32,
    /// How many are beyond the limit.
    pub(super) beyond: f32,
}

impl RowStatistics {
    /// The factor that makes integers of a row, the scale, and the zero point. The scale of a row that is not finite is NaN.
    fn steps(self, row: &[f32]) -> (f32, f32, i32) {
        // In halves, so that no row of finite numbers is beyond them.
        let scale = (self.max / STEPS - self.min / STEPS).max(f32::MIN_POSITIVE);
        let factor = scale.recip();
        let zero = (-self.min * factor).round_ties_even();
        let finite = self.squares.is_finite() || row.iter().all(|value| value.is_finite());
        (factor, if finite { scale } else { f32::NAN }, zero as i32)
    }
}

/// Numbers of a row that are looked at side by side.
pub(super) const STATISTICS_BLOCK: usize = 64;

#[inline(always)]
fn statistics_inline<const FUSED: bool>(row: &[f32], limit: f32) -> RowStatistics {
    const LANES: usize = STATISTICS_BLOCK;
    let (mut min, mut max) = ([0f32; LANES], [0f32; LANES]);
    let (mut squares, mut beyond) = ([0f32; LANES], [0f32; LANES]);
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut last = [0f32; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for index in 0..=blocks.len() {
        let block = blocks.get(index).unwrap_or(&last);
        for lane in 0..LANES {
            let is_beyond = block[lane].abs() > limit;
            let value = if is_beyond { 0.0 } else { block[lane] };
            min[lane] = if value < min[lane] { value } else { min[lane] };
            max[lane] = if value > max[lane] { value } else { max[lane] };
            squares[lane] = multiply_add::<FUSED>(value, value, squares[lane]);
            beyond[lane] += if is_beyond { 1.0 } else { 0.0 };
        }
    }
    // Pairwise, as vectors of AVX-512 do it.
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lane + width;
            min[lane] = if min[other] < min[lane] { min[other] } else { min[lane] };
            max[lane] = if max[other] > max[lane] { max[other] } else { max[lane] };
            squares[lane] += squares[other];
            beyond[lane] += beyond[other];
        }
        width /= 2;
    }
    RowStatistics { min: min[0], max: max[0], squares: squares[0], beyond: beyond[0] }
}
widest!(pub(super) fn statistics_in_lanes(row: &[f32], limit: f32) -> RowStatistics = statistics_inline);

fn statistics(row: &[f32], limit: f32) -> RowStatistics {
    match processor() {
        // SAFETY: the processor has AVX-512.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) => unsafe {
            match limit == f32::INFINITY {
                true => row_vectors::statistics::<false>(row, limit),
                false => row_vectors::statistics::<true>(row, limit),
            }
        },
        _ => statistics_in_lanes(row, limit),
    }
}

/// How large a number of a row may be before it counts as an outlier, by the root of the mean square of them all.
const LARGE: f32 = 5.0;

/// Takes the outliers out of a row, if there are a few, and gives the statistics of the others.
fn take_outliers(row: &mut [f32], large: &mut Vec<Outlier>) -> RowStatistics {
    /// Numbers of which one may be an outlier.
    const AMONG: usize = 16;
    large.clear();
    let max = (row.len() / AMONG) as f32;
    let all = statistics(row, f32::INFINITY);
    let mut limit = LARGE * (all.squares / row.len() as f32).sqrt();
    // As good as no number of a normal distribution is that far from its mean: then nothing is counted.
    if all.max <= limit && -all.min <= limit {
        return all;
    }
    let mut others = statistics(row, limit);
    if others.beyond == 0.0 || others.beyond > max {
        return all;
    }
    // Outliers raise the limit themselves.
    let limit_of_others = LARGE * (others.squares / (row.len() as f32 - others.beyond)).sqrt();
    let further = statistics(row, limit_of_others);
    if further.beyond <= max {
        (limit, others) = (limit_of_others, further);
    }
    take(row, limit, large);
    others
}

#[inline(always)]
fn take_inline<const FUSED: bool>(row: &mut [f32], limit: f32, large: &mut Vec<Outlier>) {
    /// Numbers that are looked at together: few of them are large.
    const BLOCK: usize = 64;
    for (index, block) in row.chunks_mut(BLOCK).enumerate() {
        let mut beyond = 0;
        for value in &*block {
            beyond += u32::from(value.abs() > limit);
        }
        if beyond > 0 {
            for (place, value) in block.iter_mut().enumerate().filter(|(_, value)| value.abs() > limit) {
                large.push(Outlier { column: index * BLOCK + place, value: std::mem::take(value) });
            }
        }
    }
}
widest!(fn take_in_blocks(row: &mut [f32], limit: f32, large: &mut Vec<Outlier>) = take_inline);

/// Takes numbers beyond a limit out of a row.
fn take(row: &mut [f32], limit: f32, large: &mut Vec<Outlier>) {
    match processor() {
        // SAFETY: the processor has AVX-512.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) => unsafe { row_vectors::take(row, limit, large) },
        _ => take_in_blocks(row, limit, large),
    }
}

#[inline(always)]
fn round_inline<const FUSED: bool>(row: &[f32], factor: f32, zero: i32, numbers: &mut [u8]) {
    for (number, value) in numbers.iter_mut().zip(row) {
        let rounded =
            multiply_add::<FUSED>(*value, factor, NEAREST).to_bits() as i32 - NEAREST.to_bits() as i32 + zero;
        *number = rounded.clamp(0, STEPS as i32) as u8;
    }
}
widest!(
    /// Makes integers of a row.
    pub(super) fn round(row: &[f32], factor: f32, zero: i32, numbers: &mut [u8]) = round_inline
);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32, _mm256_cvtepi8_epi16,
        _mm256_cvtepu8_epi16, _mm256_hadd_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_permute4x64_epi64, _mm256_setzero_si256, _mm256_storeu_si256,
    };

    use super::{Int8Step, PrefetchQueue, Rows, Sums, TOGETHER};

    /// Rows of a tile of pairs: their sums of half a panel, and what is multiplied, are nearly all of 16 registers.
    const PAIR_ROWS: usize = 3;
    /// Vectors of a tile of pairs, each of the sums of pairs of four rows of weights.
    const PAIR_VECTORS: usize = 4;

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn pairs(
        panel: &[Int8Step],
        x: Rows<u8>,
        sums: &mut [Sums],
        queue: &mut PrefetchQueue,
    ) {
        for half in 0..2 {
            for (index, sums) in sums.chunks_mut(PAIR_ROWS).enumerate() {
                queue.prefetch(sums.len());
                let x = x.from(index * PAIR_ROWS);
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe {
                    match sums.len() {
                        1 => tile_of_pairs::<1>(panel, half, x, sums),
                        2 => tile_of_pairs::<2>(panel, half, x, sums),
                        _ => tile_of_pairs::<3>(panel, half, x, sums),
                    }
                }
            }
        }
    }

    /// In int16, the products of which never overflow when two are added.
    ///
    /// # Safety
    /// As [`pairs`].
    #[target_feature(enable = "avx2")]
    unsafe fn tile_of_pairs<const X: usize>(panel: &[Int8Step], half: usize, x: Rows<u8>, sums: &mut [Sums]) {
        let Rows { values, stride } = x;
        assert!(sums.len() == X && half < 2, "a tile of another size");
        assert!((X - 1) * stride + panel.len() * TOGETHER <= values.len(), "rows of another length");
        let x: *const u8 = values.as_ptr();
        // SAFETY: half a step's numbers are four times 16 bytes, and half the sums two vectors; a row has as many numbers as the
        // panel.
        unsafe {
            let mut found = [[_mm256_setzero_si256(); PAIR_VECTORS]; X];
            for (step, weights) in panel.iter().enumerate() {
                let weights: *const i8 = weights.0.as_flattened().as_ptr().add(64 * half);
                let mut wide = [_mm256_setzero_si256(); X];
                for (row, wide) in wide.iter_mut().enumerate() {
                    let four = x.add(row * stride + step * TOGETHER).cast::<i32>().read_unaligned();
                    *wide = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
                }
                for vector in 0..PAIR_VECTORS {
                    let weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(16 * vector).cast()));
                    for (found, wide) in found.iter_mut().zip(wide) {
                        let products = _mm256_madd_epi16(weights, wide);
                        found[vector] = _mm256_add_epi32(found[vector], products);
                    }
                }
            }
            for (sums, found) in sums.iter_mut().zip(found) {
                let sums: *mut __m256i = sums.0.as_mut_ptr().add(16 * half).cast();
                for pair in 0..2 {
                    // Sums of two vectors, whose quarters change places.
                    let both = _mm256_hadd_epi32(found[2 * pair], found[2 * pair + 1]);
                    let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                    let into = sums.add(pair);
                    _mm256_storeu_si256(into, _mm256_add_epi32(_mm256_loadu_si256(into), both));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers without a pattern, the outermost ones among them.
    fn random(count: usize) -> impl Iterator<Item = u8> {
        let mut state = 9u32;
        (0..count).map(move |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match state >> 29 {
                0 => u8::MAX,
                1 => 0,
                _ => (state >> 16) as u8,
            }
        })
    }

    #[test]
    fn every_path_gives_the_same_integers() {
        for (steps, count) in [(1, 1), (3, 2), (BYTES / TOGETHER, 5), (100, 12), (77, 13), (9, 40)] {
            let numbers: Vec<u8> = random(steps * PANEL * TOGETHER).collect();
            let numbers = numbers.as_chunks::<TOGETHER>().0.as_chunks::<PANEL>().0.iter();
            let panel: Vec<Int8Step> = numbers
                .map(|step| Int8Step(step.map(|four| four.map(|number| (number as i8).max(-127)))))
                .collect();
            let x: Vec<u8> = random(count * BYTES).collect();
            let x = Rows { values: x.as_slice(), stride: BYTES };
            let mut expected = vec![Sums([7; PANEL]); count];
            plain(&panel, x, &mut expected, &mut PrefetchQueue::nothing());
            for processor in Processor::tested() {
                let mut sums = vec![Sums([7; PANEL]); count];
                add_products(processor, &panel, x, &mut sums, &mut PrefetchQueue::new(&panel, count));
                for (sums, expected) in sums.iter().zip(&expected) {
                    assert_eq!(sums.0, expected.0, "{processor:?} {steps} {count}");
                }
            }
        }
    }

    #[test]
    fn rounded_rows_stand_for_what_they_were() {
        for columns in [1, 4, 31, 33, 100, 1500] {
            for (min, max) in [(-1.0, 1.0), (-0.1, 9.0), (2.0, 3.0), (-3.0, -2.0), (0.0, 0.0), (-3e38, 3e38)]
            {
                let row: Vec<f32> = random(columns)
                    .map(|step| min / 255.0 * (255.0 - f32::from(step)) + max / 255.0 * f32::from(step))
                    .collect();
                let mut numbers = vec![0; columns];
                let (factor, scale, zero) = statistics(&row, f32::INFINITY).steps(&row);
                round(&row, factor, zero, &mut numbers);
                for (value, number) in row.iter().zip(&numbers) {
                    let told = (i32::from(*number) - zero) as f32 * scale;
                    assert!((told - value).abs() <= 1.01 * scale, "{value} is {told}, steps of {scale}");
                }
            }
        }
    }

    #[test]
    fn few_outliers_are_taken_out_and_many_are_not() {
        let mut row: Vec<f32> = random(640).map(|number| f32::from(number) - 128.0).collect();
        let mut large = vec![Outlier { column: 1, value: 2.0 }];
        let before = row.clone();
        take_outliers(&mut row, &mut large);
        assert!(large.is_empty() && row == before);
        (row[7], row[100], row[639]) = (3e3, -2e4, 900.0);
        take_outliers(&mut row, &mut large);
        let taken = [(7, 3e3), (100, -2e4), (639, 900.0)];
        assert_eq!(large, taken.map(|(column, value)| Outlier { column, value }));
        assert!(large.iter().all(|large| row[large.column] == 0.0));
        row.iter_mut().step_by(10).for_each(|value| *value = 1e5);
        take_outliers(&mut row, &mut large);
        assert!(large.is_empty());
        row[3] = f32::NAN;
        take_outliers(&mut row, &mut large);
        assert!(large.is_empty());
    }

    #[test]
    fn weights_come_back_to_a_part_of_their_rows_largest() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = random(rows * columns)
            .enumerate()
            .map(|(place, number)| (f32::from(number) - 128.0) * (1 + place / columns) as f32)
            .collect();
        let panels = Int8Panels::new(&values, rows, columns);
        let mut widened = vec![Step::ZERO; 30];
        for (row, values) in values.chunks_exact(columns).enumerate() {
            panels.widen(row / PANEL, 33..63, &mut widened);
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (widened, value) in widened.iter().zip(&values[33..]) {
                let error = (widened.0[row % PANEL] - value).abs();
                assert!(error <= 0.501 * largest / LARGEST, "{value}: {error}");
            }
        }
    }
}
