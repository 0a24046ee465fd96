//! Encoder and decoder together.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::SpeechConfig;
use crate::decoder::Decoder;
pub use crate::decoder::DecoderCache;
use crate::encoder::Encoder;
use crate::names::Names;

/// A Whisper model's weights.
#[derive(Debug, Clone)]
pub struct Whisper {
    config: SpeechConfig,
    encoder: Encoder,
    decoder: Decoder,
}

impl Whisper {
    pub(crate) fn new(config: SpeechConfig, names: &Names, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            encoder: Encoder::new(&config, names, &vb.pp("encoder"))?,
            decoder: Decoder::new(&config, names, &vb.pp("decoder"))?,
            config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &SpeechConfig {
        &self.config
    }

    /// A window of the spectrogram (1, 3000, B) gives rows of sound (1, 1500, W).
    ///
    /// # Errors
    /// Those of the device, and a window of another shape.
    pub fn encode(&self, mel: &Tensor) -> Result<Tensor> {
        self.encoder.forward(&mel.to_dtype(self.encoder.dtype())?)
    }

    /// A cache of rows of sound without text.
    ///
    /// # Errors
    /// Those of the device.
    pub fn cache(&self, encoded: &Tensor) -> Result<DecoderCache> {
        self.decoder.cache(encoded)
    }

    /// Logits of the places `wanted` among `ids`, which follow the text of `cache`; one row each.
    ///
    /// # Errors
    /// More text than there are positions, and those of the device.
    pub fn logits(&self, ids: &[u32], wanted: &[usize], cache: &mut DecoderCache) -> Result<Vec<Vec<f32>>> {
        self.decoder.forward(ids, wanted, cache)
    }
}
