//! Rows of heads: where they are, and how they are read and written.

use crate::instructions::vector::widest;
use crate::operations::rotary::rotate_row;
use crate::products::matrix::Matrix;
use crate::threads::shared_floats::SharedFloats;

/// Where the rows of each head are within a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) row: usize,
    pub(super) start: usize,
}

impl Places {
    pub(super) fn of(&self, batch: usize, head: usize, row: usize) -> usize {
        self.start + batch * self.batch + head * self.head + row * self.row
    }
}

/// Rows of heads that are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) values: &'a [f32],
    pub(super) places: Places,
}

/// Rows of heads that several threads write, each the rows of its own heads.
#[derive(Clone, Copy)]
pub(super) struct Output {
    numbers: SharedFloats,
    places: Places,
}

impl Output {
    pub(super) fn new(values: &mut [f32], places: Places) -> Self {
        Self { numbers: SharedFloats::new(values.as_mut_ptr(), values.len()), places }
    }

    /// The same memory with rows at other places.
    pub(super) fn at(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// # Safety
    /// The slice behind must live, and no other reference to this row may exist.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, batch: usize, head: usize, row: usize, width: usize) -> &mut [f32] {
        let first = self.numbers.at(self.places.of(batch, head, row), width);
        // SAFETY: within the slice, and the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(first, width) }
    }
}

/// The rows of a head as they lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadRows<'a> {
    values: &'a [f32],
    row: usize,
    width: usize,
}

impl<'a> Input<'a> {
    /// The first `rows` rows of a head, of `width` numbers.
    pub(super) fn head(&self, (batch, head): (usize, usize), rows: usize, width: usize) -> HeadRows<'a> {
        let start = if rows == 0 { 0 } else { self.places.of(batch, head, 0) };
        HeadRows { values: &self.values[start..], row: self.places.row, width }
    }
}

impl<'a> HeadRows<'a> {
    pub(super) fn rows(&self, rows: usize) -> Matrix<'a> {
        Matrix::strided(self.values, rows, self.width, self.row)
    }

    pub(super) fn part(&self, start: usize, rows: usize) -> Matrix<'a> {
        Matrix::strided(&self.values[start * self.row..], rows, self.width, self.row)
    }
}

#[inline(always)]
fn rotate_inline<const FUSED: bool>(
    row: &[f32],
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    scale: f32,
    result: &mut [f32],
) {
    rotate_row(row, cos, sin, direction, result);
    for value in result.iter_mut() {
        *value *= scale;
    }
}
widest!(pub(super) fn rotate(
    row: &[f32],
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    scale: f32,
    result: &mut [f32],
) = rotate_inline);

#[inline(always)]
fn gather_inline<const FUSED: bool>(
    values: &[f32],
    row_stride: usize,
    width: usize,
    angles: Option<(&[f32], &[f32])>,
    scale: f32,
    result: &mut [f32],
) {
    for (row, result) in result.chunks_exact_mut(width).enumerate() {
        let values = &values[row * row_stride..row * row_stride + width];
        match angles {
            Some((cos, sin)) => {
                let angles = row * width / 2..(row + 1) * width / 2;
                rotate_inline::<FUSED>(values, &cos[angles.clone()], &sin[angles], 1.0, scale, result);
            }
            None => copy_scaled(values, scale, result),
        }
    }
}
widest!(pub(super) fn gather(
    values: &[f32],
    row_stride: usize,
    width: usize,
    angles: Option<(&[f32], &[f32])>,
    scale: f32,
    result: &mut [f32],
) = gather_inline);

#[inline(always)]
pub(super) fn copy_scaled(row: &[f32], scale: f32, result: &mut [f32]) {
    for (result, value) in result.iter_mut().zip(row) {
        *result = value * scale;
    }
}
