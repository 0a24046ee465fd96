//! Patches of a picture as rows of features.

use candle_core::{Result, Tensor};

use crate::linear::{Linear, Matrix};
use crate::weight_source::WeightSource;

/// Rows that are multiplied at least. With fewer of them it depends on their number how a product's sums are added up
/// (llamavid-kernels), and the last digits of a frame must not depend on the frames beside it.
const LEAST_ROWS: usize = 64;

/// A convolution whose stride is its kernel, written as the matrix product that it is.
#[derive(Debug, Clone)]
pub(super) struct PatchEmbedding {
    proj: Linear,
    patch_size: usize,
}

impl PatchEmbedding {
    /// Reads `weight` (V, 3, p, p) and, where the tower has one, `bias` (V).
    pub fn new(width: usize, patch_size: usize, bias: bool, vb: WeightSource) -> Result<Self> {
        let weight = vb.get((width, 3, patch_size, patch_size), "weight")?;
        let bias = if bias { Some(vb.get(width, "bias")?) } else { None };
        Ok(Self { proj: Linear::new(Matrix::Dense(weight.flatten_from(1)?), bias), patch_size })
    }

    /// `pixels` (F, 3, S, S) give (F, P, V), patches row by row.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (frames, channels, height, width) = pixels.dims4()?;
        let size = self.patch_size;
        let (rows, columns) = (height / size, width / size);
        let count = frames * rows * columns;
        let patches = pixels
            .reshape(&[frames, channels, rows, size, columns, size])?
            .permute([0, 2, 4, 1, 3, 5])? // (F, rows, columns, 3, p, p)
            .reshape((count, channels * size * size))?
            .pad_with_zeros(0, 0, LEAST_ROWS.saturating_sub(count))?;
        self.proj.forward(&patches)?.narrow(0, 0, count)?.reshape((frames, rows * columns, ()))
    }
}
