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

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch 2.7.1 makes of one column, `expected` row by row.
    fn check(values: &[f32], side: usize, new_side: usize, expected: &[f32]) {
        // The class row holds a number that would show if it took part.
        let table = [&[1000.0], values].concat();
        let table = Tensor::from_vec(table, (1, side * side + 1, 1), &Device::Cpu).unwrap();
        let resized: Vec<f32> =
            resize(&table, side, new_side).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(resized[0], 1000.0);
        assert_eq!(resized.len(), expected.len() + 1);
        for (actual, expected) in resized[1..].iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-4, "{resized:?}");
        }
    }

    #[test]
    fn grows_as_torch_does() {
        let values: Vec<f32> = (0..9).map(|value| (value * value) as f32).collect();
        #[rustfmt::skip]
        let expected = [
            -0.904704, -0.874015, -0.439999, 1.074018, 2.216708, 1.269984, 2.319134, 4.443999, 7.648863, 9.810017,
            8.328003, 11.067997, 16.0, 22.012003, 25.864008, 25.106028, 29.536858, 37.276001, 46.095146, 51.638008,
            37.288731, 42.738022, 52.168023, 62.67802, 69.23934,
        ];
        check(&values, 3, 5, &expected);
    }

    #[test]
    fn shrinks_as_torch_does_without_antialiasing() {
        let values: Vec<f32> = (0..16).map(|value| (value * 7 % 11) as f32).collect();
        check(&values, 4, 2, &[3.465_820_3, 7.456_054_7, 4.752_929_7, 4.575_195_3]);
    }

    #[test]
    fn same_side_changes_nothing() {
        let values: Vec<f32> = (0..4).map(|value| value as f32).collect();
        check(&values, 2, 2, &values);
    }
}
