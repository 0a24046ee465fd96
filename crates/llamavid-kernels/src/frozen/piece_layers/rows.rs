//! Where the rows of sequences lie that layers read and write.

use std::ops::Range;

use crate::threads::shared_floats::SharedFloats;

/// Where some rows of each of some sequences lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection {
    /// Rows of a sequence, and the first of those that are meant, and their number.
    pub(super) all: usize,
    pub(super) first: usize,
    pub(super) some: usize,
}

impl Selection {
    /// All rows.
    pub(super) const ALL: Self = Self { all: 1, first: 0, some: 1 };

    #[inline(always)]
    fn place(self, row: usize) -> usize {
        row / self.some * self.all + self.first + row % self.some
    }
}

/// Rows that are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    values: &'a [f32],
    pub(super) width: usize,
    selection: Selection,
    pub(super) count: usize,
}

impl<'a> Rows<'a> {
    /// Those of a range of each sequence.
    pub(super) fn new(
        values: &'a [f32],
        (batch, all, width): (usize, usize, usize),
        range: &Range<usize>,
    ) -> Self {
        let selection = Selection { all, first: range.start, some: range.len() };
        Self { values, width, selection, count: batch * range.len() }
    }

    /// All rows of `width` numbers.
    pub(super) fn all(values: &'a [f32], width: usize) -> Self {
        Self { values, width, selection: Selection::ALL, count: values.len() / width }
    }

    #[inline(always)]
    pub(super) fn row(self, index: usize) -> &'a [f32] {
        &self.values[self.selection.place(index) * self.width..][..self.width]
    }
}

/// Rows that tasks write, each its own numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    numbers: SharedFloats,
    width: usize,
    selection: Selection,
}

impl Target {
    /// Rows of `width` in memory that has room for `length` numbers.
    pub(super) fn new(first: *mut f32, length: usize, width: usize, selection: Selection) -> Self {
        Self { numbers: SharedFloats::new(first, length), width, selection }
    }

    /// Where `length` numbers of a row are from a column on.
    #[inline(always)]
    pub(super) fn at(self, row: usize, column: usize, length: usize) -> *mut f32 {
        assert!(column + length <= self.width, "numbers beyond a row");
        self.numbers.at(self.selection.place(row) * self.width + column, length)
    }
}
