//! Q-Former: learned queries that read the question and look at the frame.
//!
//! Paper: InstructBLIP (arXiv 2305.06500); in LLaMA-VID, section 3.1, the text-guided query.
//! Letters: P questions, F frames, Q queries, L word pieces, N rows of a frame, V visual width,
//! h width of the query model.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use llamavid_kernels::frozen_gelu;

use super::bert_layer::{Attention, FeedForward, FrozenAttention, FrozenFeedForward, LayerNorm};
use super::block_observer::BlockObserver;
use super::config::QueryModelConfig;
use super::dropout::Dropouts;
use super::word_embedding::{INITIAL_DEVIATION, WordEmbedding};
use super::{Questions, pairs};
use crate::Result;
use crate::weight_source::WeightSource;

/// Queries see the frame in every second layer.
const CROSS_ATTENTION_EVERY: usize = 2;

/// Added to the scores of padding; the reference's number, far but not infinitely far away.
const MASKED: f64 = -10000.;

/// Learned queries and the transformer that fills them.
#[derive(Debug, Clone)]
pub(super) struct QFormer {
    queries: Tensor,
    words: WordEmbedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl QFormer {
    /// `visual_width` is the width of the rows that cross-attention reads. `vb` holds the query model;
    /// the learned `queries` (1, Q, h) lie next to it. `frozen` for inference only.
    pub(super) fn new(
        config: &QueryModelConfig,
        visual_width: usize,
        queries: Tensor,
        vb: WeightSource,
        frozen: bool,
    ) -> Result<Self> {
        let (embeddings, encoder) = (vb.pp("bert.embeddings"), vb.pp("bert.encoder.layer"));
        // One after the other, so that weights are in memory once.
        let layer = |index| -> Result<Layer> {
            let layer = QFormerLayer::new(config, visual_width, index, encoder.pp(index))?;
            let laid_out = if frozen { layer.frozen()? } else { None };
            Ok(match laid_out {
                Some(layer) => Layer::Frozen(Arc::new(layer)),
                None => Layer::AsRead(Box::new(layer)),
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self {
            queries,
            words: WordEmbedding::new(config, &embeddings)?,
            norm: LayerNorm::bert(config.width, embeddings.pp("LayerNorm"))?,
            layers,
        })
    }

    /// The learned queries, as created or read.
    pub(super) fn learned_queries(config: &QueryModelConfig, vb: &WeightSource) -> Result<Tensor> {
        Ok(vb.get_with_hints((1, config.queries, config.width), "query_tokens", INITIAL_DEVIATION)?)
    }

    /// P questions, each with `frames_each` of the frames (F, N, V), all of them or one, give (P * frames_each, Q, h).
    pub(super) fn forward(
        &self,
        questions: &Questions,
        frames: &Tensor,
        frames_each: usize,
        dropouts: &Dropouts,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let words = self.words.forward(&questions.input_ids)?;
        let (question_count, _words, width) = words.dims3()?;
        let (_one, query_count, _width) = self.queries.dims3()?;

        let queries = self.queries.broadcast_as((question_count, query_count, width))?;
        let mut rows = self.norm.forward(&Tensor::cat(&[&queries, &words], 1)?)?; // (P, Q + L, h)
        let mut bias = self.bias(&questions.attention_mask)?;
        // Until the first cross-attention nothing depends on the frame, so it is computed once a question; but each pair drops
        // values of its own.
        let mut frames_left = frames_each;
        if dropouts.are_wanted() {
            rows = dropouts.apply(pairs::repeat_questions(&rows, frames_each)?)?;
            bias = pairs::repeat_questions(&bias, frames_each)?;
            frames_left = 1;
        }
        if observer.wants() {
            observer.see("qf.embeddings", &pairs::repeat_questions(&rows, frames_left)?);
        }

        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            // Nothing reads the words of the last layer. In training they are still computed, as in the
            // reference, so that its word weights have a gradient (of zero) like all others.
            let with_words = index < last || rows.track_op() || observer.wants();
            rows = match layer {
                Layer::AsRead(layer) => {
                    layer.forward(&rows, query_count, (frames, frames_left), &bias, with_words, dropouts)?
                }
                Layer::Frozen(layer) => {
                    layer.forward(&rows, query_count, (frames, frames_left), &bias, with_words)?
                }
            };
            bias = pairs::repeat_questions(&bias, frames_left)?;
            frames_left = 1;
            observer.see(&format!("qf.layer{index}"), &rows); // (P * F, Q + L, h)
        }
        Ok(rows.narrow(1, 0, query_count)?.contiguous()?)
    }

    /// A mask (P, L) of words gives what is added to scores, (P, 1, 1, Q + L).
    fn bias(&self, attention_mask: &Tensor) -> Result<Tensor> {
        let (question_count, _words) = attention_mask.dims2()?;
        let (_one, query_count, _width) = self.queries.dims3()?;
        let words = ((attention_mask.to_dtype(DType::F32)? - 1.)? * -MASKED)?;
        let queries = Tensor::zeros((question_count, query_count), DType::F32, words.device())?;
        Ok(Tensor::cat(&[&queries, &words], 1)?.unsqueeze(1)?.unsqueeze(1)?)
    }
}

#[derive(Debug, Clone)]
enum Layer {
    AsRead(Box<QFormerLayer>),
    Frozen(Arc<FrozenLayer>),
}

#[derive(Debug, Clone)]
struct QFormerLayer {
    attention: Attention,
    cross_attention: Option<Attention>,
    words: FeedForward,
    queries: FeedForward,
}

impl QFormerLayer {
    fn new(config: &QueryModelConfig, visual_width: usize, index: usize, vb: WeightSource) -> Result<Self> {
        let cross_attention = index
            .is_multiple_of(CROSS_ATTENTION_EVERY)
            .then(|| Attention::new(config, visual_width, vb.pp("crossattention")))
            .transpose()?;
        Ok(Self {
            attention: Attention::new(config, config.width, vb.pp("attention"))?,
            cross_attention,
            words: FeedForward::new(config, "", vb.clone())?,
            queries: FeedForward::new(config, "_query", vb)?,
        })
    }

    /// Rows (P * F, Q + L, h), or (P, Q + L, h) with as many frames for each, give (P * F, Q + L, h), or without words (P * F, Q, h).
    fn forward(
        &self,
        rows: &Tensor,
        query_count: usize,
        (frames, frames_each): (&Tensor, usize),
        bias: &Tensor,
        with_words: bool,
        dropouts: &Dropouts,
    ) -> Result<Tensor> {
        let rows = match with_words {
            true => self.attention.attend_rows(rows, bias, dropouts)?,
            false => self.attention.attend_first_rows(rows, query_count, bias)?,
        };
        let (_pairs, row_count, _width) = rows.dims3()?;
        let mut queries = rows.narrow(1, 0, query_count)?.contiguous()?;
        queries = pairs::repeat_questions(&queries, frames_each)?;
        if let Some(cross_attention) = &self.cross_attention {
            queries = cross_attention.attend_frames(&queries, frames, dropouts)?;
        }
        let queries = self.queries.forward(&queries, dropouts)?;
        if !with_words {
            return Ok(queries);
        }
        let words = rows.narrow(1, query_count, row_count - query_count)?.contiguous()?;
        let words = pairs::repeat_questions(&self.words.forward(&words, dropouts)?, frames_each)?;
        Ok(Tensor::cat(&[&queries, &words], 1)?)
    }

    /// The same for inference; none where that is not quicker.
    fn frozen(&self) -> Result<Option<FrozenLayer>> {
        let cross_attention = self.cross_attention.as_ref().map(Attention::frozen).transpose()?;
        let (Some(attention), Some(words), Some(queries)) =
            (self.attention.frozen()?, self.words.frozen()?, self.queries.frozen()?)
        else {
            return Ok(None);
        };
        let cross_attention = match cross_attention {
            Some(None) => return Ok(None),
            found => found.flatten(),
        };
        Ok(Some(FrozenLayer { attention, cross_attention, words, queries }))
    }
}

/// [`QFormerLayer`] whose weights are laid out for inference.
#[derive(Debug)]
struct FrozenLayer {
    attention: FrozenAttention,
    cross_attention: Option<FrozenAttention>,
    words: FrozenFeedForward,
    queries: FrozenFeedForward,
}

impl FrozenLayer {
    /// As [`QFormerLayer::forward`]: queries and words are read and written where they lie.
    fn forward(
        &self,
        rows: &Tensor,
        query_count: usize,
        (frames, frames_each): (&Tensor, usize),
        bias: &Tensor,
        with_words: bool,
    ) -> Result<Tensor> {
        let (_pairs, row_count, _width) = rows.dims3()?;
        let count = if with_words { row_count } else { query_count };
        let rows = self.attention.attend_first_rows(rows, count, bias)?;
        let mut queries = match frames_each {
            1 => rows.clone(),
            frames => pairs::repeat_questions(&rows.narrow(1, 0, query_count)?.contiguous()?, frames)?,
        };
        if let Some(cross_attention) = &self.cross_attention {
            queries = cross_attention.attend_frames(&queries, query_count, frames)?;
        }
        let queries = self.queries.reading(&queries, 0..query_count);
        if !with_words {
            return Ok(frozen_gelu(&[queries])?);
        }
        let words = self.words.reading(&rows, query_count..row_count);
        if frames_each == 1 {
            return Ok(frozen_gelu(&[queries, words])?);
        }
        let words = pairs::repeat_questions(&frozen_gelu(&[words])?, frames_each)?;
        Ok(Tensor::cat(&[&frozen_gelu(&[queries])?, &words], 1)?)
    }
}
