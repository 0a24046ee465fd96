//! The most likely of many.

use candle_core::{Result, Tensor};

/// The place of the largest number of each row of `x` (N, width), f32; the first of equal ones. None for a row with a number that is not
/// finite, or without any. Of a device's numbers only the places are copied.
pub fn largest(x: &Tensor) -> Result<Vec<Option<u32>>> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[x]) {
        return crate::cuda::largest(x);
    }
    Ok(x.to_vec2::<f32>()?.iter().map(|row| largest_of(row)).collect())
}

fn largest_of(row: &[f32]) -> Option<u32> {
    let mut best = None;
    for (place, value) in row.iter().enumerate() {
        if !value.is_finite() {
            return None;
        }
        if best.is_none_or(|best: usize| *value > row[best]) {
            best = Some(place);
        }
    }
    best.map(|place| place as u32)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_first_of_equal_ones_and_none_beside_what_is_not_finite() {
        let rows = [
            [1f32, 3.0, 3.0, -4.0],
            [-2.0, -1.0, -3.0, -1.5],
            [0.0, f32::NAN, 5.0, 1.0],
            [f32::NEG_INFINITY, 1.0, 2.0, 3.0],
        ];
        let rows = Tensor::new(&rows, &Device::Cpu).unwrap();
        assert_eq!(largest(&rows).unwrap(), [Some(1), Some(1), None, None]);
    }
}
