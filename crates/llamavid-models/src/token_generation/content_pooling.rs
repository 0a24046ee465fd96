//! Content pooling: how many tokens a frame's patches become, whatever the question.
//!
//! Paper: LLaMA-VID, section 3.2. Letters: F frames, N patches, V visual width.

use candle_core::{DType, Tensor};
use llamavid_kernels::mean_of_rows;

use super::config::Compression;
use crate::{Error, Result};

/// Patches (F, N, V) give (F, n, V) with n = N, 1 or the grid's cells, row by row.
pub(super) fn pool(patches: &Tensor, compression: Compression) -> Result<Tensor> {
    match compression {
        Compression::None => Ok(patches.clone()),
        // In f32: a sum of hundreds of patches has no digits left in half precision.
        Compression::Mean => Ok(mean_of_rows(patches)?),
        Compression::Grid(cells) => pool_grid(patches, cells),
    }
}

/// Average pooling with kernel and stride `side / cells`. Patches that are left over on the right and at
/// the bottom are not used, as in torch's `avg_pool2d`.
fn pool_grid(patches: &Tensor, cells: usize) -> Result<Tensor> {
    let (frames, count, width) = patches.dims3()?;
    let side = count.isqrt();
    if side * side != count {
        return Err(Error::Argument(format!(
            "`grid:{cells}` needs a square of patches, a frame has {count} rows without its class row"
        )));
    }
    let stride = side / cells;
    if stride == 0 || side / stride != cells {
        return Err(Error::Argument(format!(
            "`grid:{cells}` cannot be laid over {side} x {side} patches: cells of {stride} x {stride} \
             give another number of tokens than {cells} x {cells}"
        )));
    }
    let used = cells * stride;
    let pooled = patches
        .reshape((frames, side, side, width))?
        .narrow(1, 0, used)?
        .narrow(2, 0, used)?
        .to_dtype(DType::F32)?
        .contiguous()?
        .reshape((frames * cells, stride, cells, stride * width))?
        .mean(1)? // (F * cells, cells, stride * V)
        .reshape((frames, cells * cells, stride, width))?
        .mean(2)?;
    Ok(pooled.to_dtype(patches.dtype())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(frames: usize, side: usize, width: usize) -> Tensor {
        let count = (frames * side * side * width) as u32;
        let numbers: Vec<f32> = (0..count).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / 1e7).collect();
        Tensor::from_vec(numbers, (frames, side * side, width), &Device::Cpu).unwrap()
    }

    /// Mean of each cell, patch by patch.
    fn by_hand(patches: &Tensor, cells: usize) -> Vec<f32> {
        let (_frames, count, width) = patches.dims3().unwrap();
        let rows = patches.to_vec3::<f32>().unwrap();
        let (side, mut out) = (count.isqrt(), Vec::new());
        let stride = side / cells;
        for frame in &rows {
            for (row, column, channel) in
                (0..cells).flat_map(|r| (0..cells).flat_map(move |c| (0..width).map(move |w| (r, c, w))))
            {
                let cell = (0..stride * stride).map(|i| {
                    let (y, x) = (row * stride + i / stride, column * stride + i % stride);
                    frame[y * side + x][channel] as f64
                });
                out.push((cell.sum::<f64>() / (stride * stride) as f64) as f32);
            }
        }
        out
    }

    #[test]
    fn grid_is_the_mean_of_each_cell() {
        // 5 over 16: three patches a cell, the sixteenth row and column are left over.
        for (side, cells) in [(6, 2), (8, 4), (8, 8), (4, 1), (16, 5), (7, 3)] {
            let patches = numbers(3, side, 5);
            let pooled = pool(&patches, Compression::Grid(cells)).unwrap();
            assert_eq!(pooled.dims(), [3, cells * cells, 5]);
            let pooled = pooled.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (got, wanted) in pooled.iter().zip(by_hand(&patches, cells)) {
                assert!(
                    (got - wanted).abs() <= 1e-5 * wanted.abs().max(1.),
                    "{side} {cells}: {got} {wanted}"
                );
            }
        }
    }

    #[test]
    fn grid_of_one_is_the_mean() {
        let patches = numbers(2, 6, 4);
        let grid = pool(&patches, Compression::Grid(1)).unwrap();
        let mean = pool(&patches, Compression::Mean).unwrap();
        let gap = (grid - mean).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap < 1e-4, "{gap}");
    }

    #[test]
    fn half_precision_keeps_its_digits() {
        for dtype in [DType::F16, DType::BF16] {
            let patches = Tensor::ones((1, 576, 3), dtype, &Device::Cpu).unwrap();
            for compression in [Compression::Mean, Compression::Grid(2)] {
                let pooled = pool(&patches, compression).unwrap();
                assert_eq!(pooled.dtype(), dtype);
                let pooled = pooled.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                assert!(pooled.to_vec1::<f32>().unwrap().iter().all(|x| *x == 1.), "{dtype:?}");
            }
        }
    }

    #[test]
    fn grids_that_do_not_fit_are_refused() {
        for (side, cells) in [(4, 5), (16, 6), (24, 5)] {
            let error = pool(&numbers(1, side, 2), Compression::Grid(cells)).unwrap_err();
            assert!(matches!(error, Error::Argument(_)), "{error}");
            assert!(error.to_string().contains(&format!("{side} x {side} patches")), "{error}");
        }
        let odd_side_with_class_row = Tensor::zeros((1, 26, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(
            pool(&odd_side_with_class_row, Compression::Grid(5)).unwrap_err().to_string().contains("26 rows")
        );
    }
}
