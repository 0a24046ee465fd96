//! Products of many rows with a matrix in blocks: it is unpacked, and cuBLAS multiplies.

use candle_core::{D, DType, Result, Tensor};

use super::arguments::{UnpackArguments, unpack};
use super::device::{device_of, run, unwritten, with_pointers};
use crate::QuantisedMatrix;

/// Rows from which on unpacking pays. Of fewer, candle's kernels for blocks read the matrix and multiply in less time than it takes to
/// unpack it and read it again.
const MANY_ROWS: usize = 96;

/// A matrix in blocks as numbers of the dtype of `x`, (rows, columns), where rows `x` (…, columns) are multiplied with those: there are
/// many of them, or they have a gradient, which candle's products with blocks lose. None elsewhere.
pub(crate) fn unpacked(matrix: &QuantisedMatrix, x: &Tensor) -> Result<Option<Tensor>> {
    let (columns, dtype) = (x.dim(D::Minus1)?, x.dtype());
    let halves = matches!(dtype, DType::F16 | DType::BF16);
    // In f32 there are no tensor cores that would make up for it.
    let many = halves && x.elem_count() >= MANY_ROWS * columns;
    let numbers = halves || dtype == DType::F32;
    if !numbers || !(many || x.track_op()) || matrix.shape().1 != columns || !x.device().is_cuda() {
        return Ok(None);
    }
    let Some(blocks) = matrix.address(x.device())? else { return Ok(None) };
    let (rows, columns) = matrix.shape();
    let device = device_of(x)?;
    let result = unwritten(&device, dtype, (rows, columns))?;
    let launched = with_pointers(&device, [Some(&result)], |[result]| {
        let arguments = UnpackArguments { blocks, result, count: (rows * columns) as i64 };
        match unpack(dtype, matrix.format(), &arguments)? {
            Some(launch) => run(&device, &launch, &arguments).map(|()| true),
            None => Ok(false),
        }
    })?;
    Ok(launched.then_some(result))
}
