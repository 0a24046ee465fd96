//! Rotary position embedding and the ways to scale it.
//!
//! Reference: `LlamaLinearScalingRotaryEmbedding` and `LlamaDynamicNTKScalingRotaryEmbedding` of transformers 4.31,
//! `_compute_llama3_parameters` of later ones. The angles are computed in f32 in the reference's order of
//! operations: at position 60000 a differently rounded product would already turn a pair by a thousandth.

use std::f32::consts::TAU;

use candle_core::{DType, Device, Result, Tensor};

use super::config::{LanguageModelConfig, RopeScaling};

/// Makes the cosines and sines of a range of positions.
///
/// They are made on demand (a few hundred numbers a position for all layers together), so that a long context
/// costs no table.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    /// Of sequences that the base model knows.
    inverse_frequencies: Vec<f32>,
    width: usize,
    theta: f64,
    scaling: Option<RopeScaling>,
}

impl Rotary {
    pub(super) fn new(config: &LanguageModelConfig) -> Self {
        let (width, theta, scaling) = (config.head_dim, config.rope_theta, config.rope_scaling);
        let mut inverse_frequencies = inverse_frequencies(theta, width);
        if let Some(RopeScaling::Llama3 { factor, low, high, trained }) = scaling {
            let [factor, low, high, trained] = [factor, low, high, trained as f64].map(|value| value as f32);
            for frequency in &mut inverse_frequencies {
                let wave = TAU / *frequency;
                if wave > trained / low {
                    *frequency /= factor;
                } else if wave >= trained / high {
                    let share = (trained / wave - low) / (high - low);
                    *frequency = (1.0 - share) * *frequency / factor + share * *frequency;
                }
            }
        }
        Self { inverse_frequencies, width, theta, scaling }
    }

    /// Cosines and sines of positions `start..start + count`, each (count, head width / 2), of a sequence that will have
    /// `length` positions when they are read.
    pub(super) fn angles(
        &self,
        start: usize,
        count: usize,
        length: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let of_length;
        let inverse_frequencies = match self.scaling {
            Some(RopeScaling::Dynamic { factor, trained }) if length > trained => {
                let (width, over) = (self.width as f64, factor * length as f64 / trained as f64);
                let theta = self.theta * (over - (factor - 1.0)).powf(width / (width - 2.0));
                of_length = inverse_frequencies(theta, self.width);
                &of_length
            }
            _ => &self.inverse_frequencies,
        };
        let factor = match self.scaling {
            Some(RopeScaling::Linear { factor }) => factor as f32,
            _ => 1.0,
        };
        let mut cosines = Vec::with_capacity(count * inverse_frequencies.len());
        let mut sines = Vec::with_capacity(cosines.capacity());
        for position in start..start + count {
            let position = position as f32 / factor;
            for frequency in inverse_frequencies {
                let (sine, cosine) = (position * frequency).sin_cos();
                cosines.push(cosine);
                sines.push(sine);
            }
        }
        let shape = (count, inverse_frequencies.len());
        let cosines = Tensor::from_vec(cosines, shape, device)?.to_dtype(dtype)?;
        let sines = Tensor::from_vec(sines, shape, device)?.to_dtype(dtype)?;
        Ok((cosines, sines))
    }
}

impl LanguageModelConfig {
    /// What each rotary frequency of the base is divided by, in files that say it so; none where all are the same.
    pub fn frequency_divisors(&self) -> Option<Vec<f32>> {
        let Some(RopeScaling::Llama3 { .. }) = self.rope_scaling else { return None };
        let scaled = Rotary::new(self).inverse_frequencies;
        let plain = inverse_frequencies(self.rope_theta, self.head_dim);
        Some(plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect())
    }
}

fn inverse_frequencies(theta: f64, width: usize) -> Vec<f32> {
    (0..width / 2).map(|pair| (1.0 / theta.powf((2 * pair) as f64 / width as f64)) as f32).collect()
}
