//! Rows between products, and places that tasks write.

use std::ops::Range;

use super::tasks::{ThreadScratch, share_rows};
#[cfg(target_arch = "x86_64")]
use super::tile_rows::TileRow;
use crate::instructions::prefetch::CACHE_LINE;
use crate::threads::shared_floats::SharedFloats;

/// Numbers of a row that lie together: those of a tile stay in the L1 cache, a panel's part of as many columns at least in the L2
/// cache, from where it comes quicker than it is multiplied.
pub(super) const PART: usize = 256;
/// Rows of weights of a panel: two vectors of the widest kind.
pub(crate) const PANEL: usize = 32;

/// A number of each row of a panel, or of each of its sums.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Step(pub(crate) [f32; PANEL]);

impl Step {
    pub(crate) const ZERO: Self = Self([0.0; PANEL]);

    /// Adds numbers, which may be fewer.
    #[inline(always)]
    pub(super) fn add(&mut self, numbers: &[f32]) {
        for (sum, number) in self.0.iter_mut().zip(numbers) {
            *sum += number;
        }
    }

    /// Two tile rows as a step of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of_tile_rows(lines: &mut [TileRow]) -> &mut Self {
        assert!(lines.len() >= 2, "tile rows of a step");
        // SAFETY: both are as many bytes, which may be any, and lie alike.
        unsafe { &mut *lines.as_mut_ptr().cast() }
    }

    /// The numbers of steps, one after the other.
    pub(super) fn numbers(steps: &mut [Self]) -> &mut [f32] {
        // SAFETY: a step is an array of numbers and nothing else.
        unsafe { std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast(), steps.len() * PANEL) }
    }
}

/// Bytes that are read next. They are prefetched to the L2 cache while something else is computed, some with each of its
/// rows.
#[derive(Debug)]
pub(super) struct PrefetchQueue<'a> {
    bytes: &'a [u8],
    /// For each row of the work in between.
    each: usize,
}

impl<'a> PrefetchQueue<'a> {
    /// None.
    pub(super) fn nothing() -> Self {
        Self { bytes: &[], each: 0 }
    }

    /// Numbers of any kind that has no places between them, spread over so many rows.
    pub(super) fn new<T>(numbers: &'a [T], rows: usize) -> Self {
        // SAFETY: the bytes are never looked at.
        let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) };
        Self { bytes, each: bytes.len().div_ceil(rows.max(1)) }
    }

    /// The part that belongs to some rows, for others to prefetch.
    #[inline(always)]
    pub(super) fn take(&mut self, rows: usize) -> &'a [u8] {
        let length = (rows * self.each).next_multiple_of(CACHE_LINE).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(length);
        self.bytes = later;
        now
    }

    /// Prefetches the part that belongs to some rows.
    #[inline(always)]
    pub(super) fn prefetch(&mut self, rows: usize) {
        let now = self.take(rows);
        #[cfg(target_arch = "x86_64")]
        for line in now.chunks(CACHE_LINE) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: every x86-64 has the instruction, and it changes nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = now;
    }
}

/// Rows of numbers: the first ones of each row, then the next ones. Rows as they are would lie a power of two apart, and push
/// each other out of the cache.
#[derive(Debug, Default)]
pub(super) struct Parts {
    values: Vec<[f32; PART]>,
    count: usize,
    columns: usize,
}

impl Parts {
    /// Makes room for other rows and writes them, each as `make` has it; on all threads.
    pub(super) fn fill(
        &mut self,
        count: usize,
        columns: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        scratches: &mut Vec<ThreadScratch>,
    ) {
        self.reshape(count, columns);
        let target = self.target();
        share_rows(count, columns, scratches, |row, index| {
            make(index, row);
            // SAFETY: the rows are borrowed for this, and each is written once.
            unsafe { target.write(index, 0, row) };
        });
    }

    /// Makes room for other rows, whose numbers are any.
    pub(super) fn reshape(&mut self, count: usize, columns: usize) {
        self.values.resize(columns.div_ceil(PART) * count, [0.0; PART]);
        (self.count, self.columns) = (count, columns);
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Numbers of each row from a column on, a multiple of [`PART`]: row after row, of which as many are ones as there are
    /// columns left.
    pub(super) fn from(&self, column: usize) -> &[[f32; PART]] {
        &self.values[column / PART * self.count..][..self.count]
    }

    /// Copies a row.
    pub(super) fn read(&self, row: usize, into: &mut [f32]) {
        for (into, first) in into.chunks_mut(PART).zip((0..self.columns).step_by(PART)) {
            into.copy_from_slice(&self.from(first)[row][..into.len()]);
        }
    }

    /// Where tasks write.
    pub(super) fn target(&mut self) -> Target {
        let values = self.values.as_flattened_mut();
        let numbers = SharedFloats::new(values.as_mut_ptr(), values.len());
        Target { numbers, count: self.count, part: PART }
    }
}

/// Rows that tasks write side by side, each its own places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    numbers: SharedFloats,
    count: usize,
    /// Numbers of a row that lie together.
    part: usize,
}

impl Target {
    /// Rows of `width`, one after the other: `length` numbers, which nobody has written yet or which are any.
    pub(super) fn rows(values: *mut f32, length: usize, width: usize) -> Self {
        let width = width.max(1);
        Self { numbers: SharedFloats::new(values, length), count: length / width, part: width }
    }

    /// Where numbers of a row lie from a column on, and how many of `length` lie there together.
    #[inline(always)]
    fn place(self, row: usize, column: usize, length: usize) -> (usize, usize) {
        let (part, within) = (column / self.part, column % self.part);
        let start = (part * self.count + row) * self.part + within;
        assert!(row < self.count, "a row beyond");
        (start, length.min(self.part - within))
    }

    /// Where some rows have `width` numbers from a column on, which lie together.
    pub(super) fn strip(self, rows: Range<usize>, column: usize, width: usize) -> Strip {
        let (start, together) = self.place(rows.start, column, width);
        let length = rows.len().saturating_sub(1) * self.part + width;
        assert!(together == width && rows.end <= self.count, "a strip beyond");
        Strip { values: self.numbers.at(start, length), stride: self.part, rows: rows.len(), width }
    }

    /// Writes numbers of a row from a column on.
    ///
    /// # Safety
    /// The rows live, and nobody else uses these places.
    #[inline(always)]
    pub(super) unsafe fn write(self, row: usize, mut column: usize, mut values: &[f32]) {
        while !values.is_empty() {
            let (start, together) = self.place(row, column, values.len());
            let (first, later) = values.split_at(together);
            let into = self.numbers.at(start, together);
            // SAFETY: within the rows, and the caller has these places alone.
            let into = unsafe { std::slice::from_raw_parts_mut(into, together) };
            copy(first, into);
            (column, values) = (column + together, later);
        }
    }
}

/// A few numbers of each of some rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strip {
    values: *mut f32,
    stride: usize,
    rows: usize,
    width: usize,
}

impl Strip {
    /// Numbers of a row.
    pub(super) fn width(self) -> usize {
        self.width
    }

    /// Where those of a row are.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn at(self, row: usize) -> *mut f32 {
        assert!(row < self.rows, "a row beyond");
        self.values.wrapping_add(row * self.stride)
    }

    /// Writes those of a row.
    ///
    /// # Safety
    /// The rows live, and nobody else uses these numbers.
    #[inline(always)]
    pub(super) unsafe fn write(self, row: usize, numbers: &[f32]) {
        assert!(row < self.rows && numbers.len() == self.width, "a row of another width");
        // SAFETY: within the rows, and the caller has these numbers alone.
        let into = unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride), self.width) };
        copy(numbers, into);
    }
}

/// Copies numbers, as many as a panel has rows or half of them as a rule: of a known length it is no call.
#[inline(always)]
fn copy(numbers: &[f32], into: &mut [f32]) {
    if !copy_all::<PANEL>(numbers, into) && !copy_all::<{ PANEL / 2 }>(numbers, into) {
        into.copy_from_slice(numbers);
    }
}

/// Copies numbers if they are `LENGTH`.
#[inline(always)]
fn copy_all<const LENGTH: usize>(numbers: &[f32], into: &mut [f32]) -> bool {
    match (<&mut [f32; LENGTH]>::try_from(into), <&[f32; LENGTH]>::try_from(numbers)) {
        (Ok(into), Ok(numbers)) => {
            *into = *numbers;
            true
        }
        _ => false,
    }
}
