//! Products of matrices in any layout, into memory that is there already.

use gemm::Parallelism;

/// A matrix inside a slice: the element of row r and column c is at `r * row + c * column`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after the other.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, row: columns, column: 1 }
    }

    /// Rows that start `row` values after each other.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row: usize) -> Self {
        Self { values, rows, columns, row, column: 1 }
    }

    /// Rows and columns change places.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }

    /// All values of the slice, which of [`Matrix::new`] are the rows one after the other.
    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether each element lies within the slice.
    fn fits(&self) -> bool {
        let last = (self.rows.max(1) - 1) * self.row + (self.columns.max(1) - 1) * self.column;
        self.rows * self.columns == 0 || last < self.values.len()
    }
}

/// Writes `left · right` to `result`, rows one after the other, or adds it to what is there.
///
/// Runs on all threads when `parallel`. The order of the sums does not depend on the values.
pub(crate) fn multiply(left: Matrix, right: Matrix, result: &mut [f32], add: bool, parallel: bool) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "matrices that do not go together");
    assert_eq!(result.len(), rows * columns, "a result of another size");
    assert!(left.fits() && right.fits(), "a matrix beyond its values");
    if inner == 0 {
        if !add {
            result.fill(0.0);
        }
        return;
    }
    let parallelism = match rayon::current_num_threads() {
        threads if parallel && threads > 1 => Parallelism::Rayon(threads),
        _ => Parallelism::None,
    };
    // SAFETY: all elements lie within their slices, and `result` overlaps neither matrix.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            result.as_mut_ptr(),
            1,
            columns as isize,
            add,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_layouts_give_the_product() {
        let (rows, inner, columns) = (5, 7, 3);
        let number = |seed: usize, place: usize| ((seed + place * place) % 11) as f32 - 5.0;
        let left: Vec<f32> = (0..rows * inner).map(|place| number(1, place)).collect();
        let right: Vec<f32> = (0..inner * columns).map(|place| number(2, place)).collect();
        let transpose = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|place| values[place % rows * columns + place / rows]).collect()
        };
        let (left_t, right_t) = (transpose(&left, rows, inner), transpose(&right, inner, columns));
        let expected: Vec<f32> = (0..rows * columns)
            .map(|place| {
                let (row, column) = (place / columns, place % columns);
                (0..inner).map(|i| left[row * inner + i] * right[i * columns + column]).sum()
            })
            .collect();
        for left in [Matrix::new(&left, rows, inner), Matrix::new(&left_t, inner, rows).transposed()] {
            for right in
                [Matrix::new(&right, inner, columns), Matrix::new(&right_t, columns, inner).transposed()]
            {
                for parallel in [false, true] {
                    let mut result = vec![f32::NAN; rows * columns];
                    multiply(left, right, &mut result, false, parallel);
                    assert_eq!(result, expected);
                    multiply(left, right, &mut result, true, parallel);
                    assert_eq!(result, expected.iter().map(|value| 2.0 * value).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn no_inner_dimension_gives_zeros() {
        let mut result = vec![1f32; 6];
        multiply(Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 3), &mut result, true, false);
        assert_eq!(result, [1.0; 6]);
        multiply(Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 3), &mut result, false, false);
        assert_eq!(result, [0.0; 6]);
    }
}
