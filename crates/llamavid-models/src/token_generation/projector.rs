//! Projectors from the visual width V to the language width D.

use candle_core::{Result, Tensor};
use llamavid_kernels::gelu;

use super::config::{Projector, TokenGenerationConfig};
use crate::linear::{Linear, linear};
use crate::weight_source::WeightSource;

/// Linear layers with an exact GELU between each two; none at all for `identity`.
#[derive(Debug, Clone)]
pub(super) struct ContentProjector {
    layers: Vec<Linear>,
}

impl ContentProjector {
    pub(super) fn new(config: &TokenGenerationConfig, vb: WeightSource) -> Result<Self> {
        let (from, to) = (config.visual_width, config.language_width);
        let layers = match config.projector {
            Projector::Identity => Vec::new(),
            Projector::Linear => vec![linear(from, to, vb)?],
            // The GELUs count too, so the linear layers have the keys 0, 2, 4, ….
            Projector::MlpGelu { layers } => (0..layers)
                .map(|index| linear(if index == 0 { from } else { to }, to, vb.pp(2 * index)))
                .collect::<Result<_>>()?,
        };
        Ok(Self { layers })
    }

    /// (…, V) gives (…, D).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                x = gelu(&x)?;
            }
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}
