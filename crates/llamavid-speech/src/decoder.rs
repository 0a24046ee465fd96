//! The decoder: token ids and rows of sound become the logits of the next token.
//!
//! Reference: `TextDecoder` in `whisper/model.py`.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use llamavid_kernels::{embedding, linear};

use crate::SpeechConfig;
use crate::layer::{KeysValues, Layer, LayerNorm};
use crate::names::Names;

#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

/// Keys and values of a window's sound and of the text so far. A clone goes its own way.
#[derive(Debug, Clone)]
pub struct DecoderCache {
    /// Of each layer.
    sound: Vec<KeysValues>,
    text: Vec<Option<KeysValues>>,
    length: usize,
}

impl Decoder {
    pub fn new(config: &SpeechConfig, names: &Names, vb: &VarBuilder) -> Result<Self> {
        let layer = |index: usize| {
            let vb = vb.pp(names.layers).pp(index);
            Layer::new(config.width, config.text_mlp_width, config.text_heads, true, names, &vb)
        };
        Ok(Self {
            tokens: vb.pp(names.tokens).get((config.vocabulary, config.width), "weight")?,
            positions: vb.get((config.text_context, config.width), names.positions)?,
            layers: (0..config.text_layers).map(layer).collect::<Result<_>>()?,
            norm: LayerNorm::new(config.width, vb.pp(names.text_norm))?,
        })
    }

    /// A cache of what the encoder made, (1, T, W), without text.
    pub fn cache(&self, encoded: &Tensor) -> Result<DecoderCache> {
        let mut sound = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            sound.extend(layer.sound(encoded)?);
        }
        Ok(DecoderCache { sound, text: vec![None; self.layers.len()], length: 0 })
    }

    /// Logits (rows of `wanted`, vocabulary) of the places `wanted` among `ids`, which follow the text of `cache`.
    pub fn forward(&self, ids: &[u32], wanted: &[usize], cache: &mut DecoderCache) -> Result<Vec<Vec<f32>>> {
        let (room, _width) = self.positions.dims2()?;
        if cache.length + ids.len() > room {
            bail!("{} tokens behind {} do not fit {room} positions", ids.len(), cache.length);
        }
        let device = self.tokens.device();
        let positions = self.positions.narrow(0, cache.length, ids.len())?;
        let rows = embedding(&self.tokens, &Tensor::new(ids, device)?)?;
        let mut x = (rows + positions)?.unsqueeze(0)?; // (1, S, W)
        for ((layer, text), sound) in self.layers.iter().zip(&mut cache.text).zip(&cache.sound) {
            x = layer.decode(&x, text, sound)?;
        }
        cache.length += ids.len();
        let wanted: Vec<u32> = wanted.iter().map(|place| *place as u32).collect();
        let x = self.norm.forward(&x.index_select(&Tensor::new(wanted, device)?, 1)?)?;
        linear(&x, &self.tokens, None)?.to_dtype(DType::F32)?.squeeze(0)?.to_vec2()
    }
}
