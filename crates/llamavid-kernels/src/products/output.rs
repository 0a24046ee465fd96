//! The result of a product, of which tasks write their parts.

use rayon::prelude::*;

use crate::operations::rows::rows_of_a_task;
use crate::threads::shared_floats::SharedFloats;

/// A result (count, width) of which tasks write columns of their own.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    numbers: SharedFloats,
    width: usize,
}

impl Output {
    pub(crate) fn new(values: &mut [f32], width: usize) -> Self {
        Self::at(SharedFloats::new(values.as_mut_ptr(), values.len()), width)
    }

    /// In memory that need not be initialised.
    pub(super) fn at(numbers: SharedFloats, width: usize) -> Self {
        Self { numbers, width }
    }

    pub(super) fn length(self) -> usize {
        self.numbers.length()
    }

    /// The rows from a row on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn below(self, row: usize) -> Self {
        Self { numbers: self.numbers.behind(row * self.width), ..self }
    }

    /// The columns from a column on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn beside(self, column: usize) -> Self {
        Self { numbers: self.numbers.behind(column), ..self }
    }

    /// Writes `row` to all rows, zeros if there is none, or adds it to them.
    ///
    /// # Safety
    /// The result must live, and nobody else may use it.
    pub(super) unsafe fn begin(self, row: Option<&[f32]>, add: bool, parallel: bool) {
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
        let rows = 0..self.length() / self.width;
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
        let into = self.numbers.at(row * self.width + first, sums.len());
        // SAFETY: within the result, and the caller has these columns alone.
        unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), into, sums.len()) };
    }

    /// Adds `sums` to a row, from column `first` on.
    ///
    /// # Safety
    /// The result must live, and nobody else may use these columns.
    #[inline(always)]
    pub(crate) unsafe fn add(self, row: usize, first: usize, sums: &[f32]) {
        let into = self.numbers.at(row * self.width + first, sums.len());
        for (place, sum) in sums.iter().enumerate() {
            // SAFETY: within the result, and the caller has these columns alone.
            unsafe { *into.add(place) += sum };
        }
    }
}
