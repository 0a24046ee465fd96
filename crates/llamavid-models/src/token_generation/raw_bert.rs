//! Plain BERT as a causal decoder with cross-attention to the frame in each layer.
//!
//! An early form of the text-guided query; the reference can train it, no released model uses it.
//! All word rows, padding too, become text queries.
//! Letters: P questions, F frames, L word pieces, N rows of a frame, h width of the query model.

use candle_core::{DType, Tensor};

use super::bert_layer::{Attention, FeedForward, LayerNorm};
use super::block_observer::BlockObserver;
use super::config::QueryModelConfig;
use super::dropout::Dropouts;
use super::word_embedding::{INITIAL_DEVIATION, WordEmbedding};
use super::{Questions, pairs};
use crate::Result;
use crate::weight_source::WeightSource;

/// The decoder.
#[derive(Debug, Clone)]
pub(super) struct RawBert {
    words: WordEmbedding,
    /// (1, h): all word pieces are of type 0.
    token_type: Tensor,
    norm: LayerNorm,
    layers: Vec<RawBertLayer>,
}

impl RawBert {
    pub(super) fn new(config: &QueryModelConfig, vb: WeightSource) -> Result<Self> {
        let (embeddings, encoder) = (vb.pp("bert.embeddings"), vb.pp("bert.encoder.layer"));
        let token_types = embeddings.pp("token_type_embeddings").get_with_hints(
            (config.type_vocab_size, config.width),
            "weight",
            INITIAL_DEVIATION,
        )?;
        let layers = (0..config.layers)
            .map(|index| RawBertLayer::new(config, encoder.pp(index)))
            .collect::<Result<_>>()?;
        Ok(Self {
            words: WordEmbedding::new(config, &embeddings)?,
            token_type: token_types.narrow(0, 0, 1)?,
            norm: LayerNorm::bert(config.width, embeddings.pp("LayerNorm"))?,
            layers,
        })
    }

    /// P questions, each with `frames_each` of the frames (F, N, h), all of them or one, give (P * frames_each, L, h).
    pub(super) fn forward(
        &self,
        questions: &Questions,
        frames: &Tensor,
        frames_each: usize,
        dropouts: &Dropouts,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let words = self.words.forward(&questions.input_ids)?.broadcast_add(&self.token_type)?;
        let rows = pairs::repeat_questions(&self.norm.forward(&words)?, frames_each)?; // (P * F, L, h)
        let mut rows = dropouts.apply(rows)?;
        observer.see("qf.embeddings", &rows);

        let bias = pairs::repeat_questions(&causal_bias(&questions.attention_mask)?, frames_each)?;
        for (index, layer) in self.layers.iter().enumerate() {
            rows = layer.forward(&rows, frames, &bias, dropouts)?;
            observer.see(&format!("qf.layer{index}"), &rows);
        }
        Ok(rows)
    }
}

/// A mask (P, L) gives (P, 1, L, L), which hides padding and what comes later.
fn causal_bias(attention_mask: &Tensor) -> Result<Tensor> {
    let (_questions, words) = attention_mask.dims2()?;
    let device = attention_mask.device();
    let order = Tensor::arange(0u32, words as u32, device)?;
    let earlier = order.unsqueeze(1)?.broadcast_ge(&order.unsqueeze(0)?)?.to_dtype(DType::F32)?; // (L, L)
    let real = attention_mask.to_dtype(DType::F32)?.unsqueeze(1)?; // (P, 1, L)
    let visible = real.broadcast_mul(&earlier)?.unsqueeze(1)?;
    // The smallest f32 and not minus infinity, as in the reference: 0 times infinity would be no number.
    Ok(((visible - 1.)? * -f64::from(f32::MIN))?)
}

#[derive(Debug, Clone)]
struct RawBertLayer {
    attention: Attention,
    cross_attention: Attention,
    feed_forward: FeedForward,
}

impl RawBertLayer {
    fn new(config: &QueryModelConfig, vb: WeightSource) -> Result<Self> {
        Ok(Self {
            attention: Attention::new(config, config.width, vb.pp("attention"))?,
            cross_attention: Attention::new(config, config.width, vb.pp("crossattention"))?,
            feed_forward: FeedForward::new(config, "", vb)?,
        })
    }

    fn forward(&self, rows: &Tensor, frames: &Tensor, bias: &Tensor, dropouts: &Dropouts) -> Result<Tensor> {
        let rows = self.attention.attend_rows(rows, bias, dropouts)?;
        let rows = self.cross_attention.attend_frames(&rows, frames, dropouts)?;
        Ok(self.feed_forward.forward(&rows, dropouts)?)
    }
}
