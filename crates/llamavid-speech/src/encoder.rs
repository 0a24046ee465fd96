//! The encoder: a window of the spectrogram becomes rows of time.
//!
//! Reference: `AudioEncoder` in `whisper/model.py`.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use llamavid_kernels::gelu;

use crate::SpeechConfig;
use crate::config::AUDIO_ROWS;
use crate::layer::{Convolution, Layer, LayerNorm};
use crate::names::Names;

#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    first: Convolution,
    second: Convolution,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

impl Encoder {
    pub fn new(config: &SpeechConfig, names: &Names, vb: &VarBuilder) -> Result<Self> {
        let layer = |index: usize| {
            let vb = vb.pp(names.layers).pp(index);
            Layer::new(config.width, config.audio_mlp_width, config.audio_heads, false, names, &vb)
        };
        Ok(Self {
            first: Convolution::new(config.mel_bins, config.width, 1, vb.pp("conv1"))?,
            second: Convolution::new(config.width, config.width, 2, vb.pp("conv2"))?,
            positions: vb.get((AUDIO_ROWS, config.width), names.positions)?,
            layers: (0..config.audio_layers).map(layer).collect::<Result<_>>()?,
            norm: LayerNorm::new(config.width, vb.pp(names.audio_norm))?,
        })
    }

    pub fn dtype(&self) -> DType {
        self.positions.dtype()
    }

    /// `mel` (1, 2 · T, B) gives (1, T, W).
    pub fn forward(&self, mel: &Tensor) -> Result<Tensor> {
        let x = gelu(&self.first.forward(mel)?)?;
        let x = gelu(&self.second.forward(&x)?)?;
        let mut x = x.broadcast_add(&self.positions)?;
        for layer in &self.layers {
            x = layer.encode(&x)?;
        }
        self.norm.forward(&x)
    }
}
