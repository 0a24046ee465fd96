//! A learned position table, resized to another number of patches.

use candle_core::{Device, Result, Tensor};

/// Resizes `table` (1, side² + 1, V) in f32 to `new_side`; its first row, the class row, stays as it is.
///
/// Cubic convolution with a = -0.75, pixel centres aligned, borders repeated and no antialiasing: what
/// `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` does.
pub(super) fn resize(table: &Tensor, side: usize, new_side: usize) -> Result<Tensor> {
    if side == new_side {
        return Ok(table.clone());
    }
    let (_one, rows, width) = table.dims3()?;
    let class_row = table.narrow(1, 0, 1)?;
    let weights = weights(side, new_side, table.device())?; // (new, old)
    let grid = table.narrow(1, 1, rows - 1)?.reshape((side, side * width))?;
    let grid = weights.matmul(&grid)?.reshape((new_side, side, width))?;
    let grid = weights.broadcast_left(new_side)?.matmul(&grid)?; // (new, new, V)
    Tensor::cat(&[&class_row, &grid.reshape((1, new_side * new_side, width))?], 1)
}

/// The share of each old position in each new one, along one side.
fn weights(side: usize, new_side: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; new_side * side];
    let scale = side as f32 / new_side as f32;
    for (index, weights) in weights.chunks_exact_mut(side).enumerate() {
        let centre = scale * (index as f32 + 0.5) - 0.5;
        let first = centre.floor();
        for offset in -1..=2 {
            let source = first + offset as f32;
            // Beyond a border its own position counts again.
            let position = source.clamp(0.0, (side - 1) as f32) as usize;
            weights[position] += kernel(source - centre);
        }
    }
    Tensor::from_vec(weights, (new_side, side), device)
}

/// Cubic convolution with a = -0.75.
fn kernel(x: f32) -> f32 {
    const A: f32 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    }
}
