//! Rotary position embedding with linear scaling.
//!
//! Reference: `LlamaLinearScalingRotaryEmbedding`. The angles are computed in f32 in the reference's order of
//! operations: at position 60000 a differently rounded product would already turn a pair by a thousandth.

use candle_core::{DType, Device, Result, Tensor};

use super::config::{LanguageModelConfig, RopeScaling};

/// Makes the cosines and sines of a range of positions.
///
/// They are made on demand (a few hundred numbers a position for all layers together), so that a long context
/// costs no table.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    inverse_frequencies: Vec<f32>,
    factor: f32,
}

impl Rotary {
    pub(super) fn new(config: &LanguageModelConfig) -> Self {
        let width = config.head_dim;
        let inverse_frequencies = (0..width / 2)
            .map(|pair| (1.0 / config.rope_theta.powf((2 * pair) as f64 / width as f64)) as f32)
            .collect();
        let factor = match config.rope_scaling {
            Some(RopeScaling::Linear { factor }) => factor as f32,
            None => 1.0,
        };
        Self { inverse_frequencies, factor }
    }

    /// Cosines and sines of positions `start..start + count`, each (count, head width / 2).
    pub(super) fn angles(
        &self,
        start: usize,
        count: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let mut cosines = Vec::with_capacity(count * self.inverse_frequencies.len());
        let mut sines = Vec::with_capacity(cosines.capacity());
        for position in start..start + count {
            let position = position as f32 / self.factor;
            for frequency in &self.inverse_frequencies {
                let (sine, cosine) = (position * frequency).sin_cos();
                cosines.push(cosine);
                sines.push(sine);
            }
        }
        let shape = (count, self.inverse_frequencies.len());
        let cosines = Tensor::from_vec(cosines, shape, device)?.to_dtype(dtype)?;
        let sines = Tensor::from_vec(sines, shape, device)?.to_dtype(dtype)?;
        Ok((cosines, sines))
    }
}
