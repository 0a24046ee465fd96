//! The parts of BERT that the Q-Former and the plain decoder share: post-norm attention and feed-forward.
//!
//! Letters: B pairs, R rows, F frames, N rows of a frame, h width of the query model.

use std::ops::Range;

use candle_core::{Result, Tensor};
use candle_nn::Init;
use llamavid_kernels::{
    FrozenGelu, FrozenProjection, Heads, Mask, Norm, NormPlace, SomeRows, attention_block, folded_attention,
    gelu_block, layer_norm, multi_head_attention,
};

use super::config::QueryModelConfig;
use super::dropout::Dropouts;
use super::pairs;
use crate::linear::{Linear, linear};
use crate::weight_source::WeightSource;

/// BERT's epsilon; in f32 it only keeps a row of equal numbers from a division by zero.
const EPSILON: f64 = 1e-12;

/// Frames whose keys and values are there at once: the same memory serves the next ones.
const FRAMES_AT_ONCE: usize = 16;

/// Layer normalisation that lets gradients through.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    pub(super) fn new(width: usize, epsilon: f64, vb: WeightSource) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(width, "weight", Init::Const(1.))?,
            bias: vb.get_with_hints(width, "bias", Init::Const(0.))?,
            epsilon,
        })
    }

    pub(super) fn bert(width: usize, vb: WeightSource) -> Result<Self> {
        Self::new(width, EPSILON, vb)
    }

    fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: Some(&self.bias), eps: self.epsilon }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

/// Attention, dense output, residual and norm.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: usize,
    head_width: usize,
}

impl Attention {
    /// `source_width` is the width of the rows that keys and values are made of.
    pub(super) fn new(config: &QueryModelConfig, source_width: usize, vb: WeightSource) -> Result<Self> {
        let width = config.width;
        let (inner, output) = (vb.pp("self"), vb.pp("output"));
        Ok(Self {
            query: linear(width, width, inner.pp("query"))?,
            key: linear(source_width, width, inner.pp("key"))?,
            value: linear(source_width, width, inner.pp("value"))?,
            dense: linear(width, width, output.pp("dense"))?,
            norm: LayerNorm::bert(width, output.pp("LayerNorm"))?,
            heads: config.heads,
            head_width: width / config.heads,
        })
    }

    /// Rows (B, R, h) see each other, with `bias` added to the scores; gives (B, R, h).
    pub(super) fn attend_rows(&self, rows: &Tensor, bias: &Tensor, dropouts: &Dropouts) -> Result<Tensor> {
        let heads = Heads { mask: Mask::Bias(bias), ..self.heads(dropouts) };
        let sources = [&self.query, &self.key, &self.value].map(|layer| layer.projection());
        let norm = (self.norm.norm(), NormPlace::After(dropouts.next()));
        attention_block(rows, norm, &sources, self.dense.projection(), &heads)
    }

    /// The first `count` of rows (B, R, h) see all of them, as in [`Attention::attend_rows`]; gives (B, count, h).
    pub(super) fn attend_first_rows(&self, rows: &Tensor, count: usize, bias: &Tensor) -> Result<Tensor> {
        let first = rows.narrow(1, 0, count)?.contiguous()?;
        let attended = multi_head_attention(
            &self.query.forward(&first)?,
            &self.key.forward(rows)?,
            &self.value.forward(rows)?,
            &Heads { mask: Mask::Bias(bias), ..Heads::new(self.heads, self.head_width) },
        )?;
        self.norm.forward(&(self.dense.forward(&attended)? + first)?)
    }

    /// Rows of pairs (P * F, R, h) see all rows of their frame (F, N, V); gives (P * F, R, h).
    pub(super) fn attend_frames(
        &self,
        rows: &Tensor,
        frames: &Tensor,
        dropouts: &Dropouts,
    ) -> Result<Tensor> {
        let (pair_count, _rows, _width) = rows.dims3()?;
        let (frame_count, _frame_rows, _visual_width) = frames.dims3()?;
        let queries = pairs::rows_by_frame(&self.query.forward(rows)?, frame_count)?; // (F, P * R, h)
        let attended = match self.folding_weights(&queries, frames, dropouts)? {
            Some((key, value)) => {
                folded_attention(&queries, frames, key, value, self.value.bias(), self.heads)?
            }
            None => multi_head_attention(
                &queries,
                &self.key.forward(frames)?,
                &self.value.forward(frames)?,
                &self.heads(dropouts),
            )?,
        };
        let attended = pairs::rows_by_pair(&attended, pair_count / frame_count)?;
        self.norm.forward(&(dropouts.apply(self.dense.forward(&attended)?)? + rows)?)
    }

    /// The same for inference; none where that is not quicker.
    pub(super) fn frozen(&self) -> Result<Option<FrozenAttention>> {
        let layers = [&self.query, &self.key, &self.value, &self.dense];
        let [query, key, value, dense] = layers.map(|layer| FrozenProjection::new(layer.projection()));
        let (Some(query), Some(key), Some(value), Some(dense)) = (query?, key?, value?, dense?) else {
            return Ok(None);
        };
        let (norm, heads) = (self.norm.clone(), Heads::new(self.heads, self.head_width));
        Ok(Some(FrozenAttention { query, key, value, dense, norm, heads }))
    }

    /// Weights of key and value, where few queries (F, R, h) look at many rows (F, N, V): then it is cheaper to multiply the queries,
    /// and what they saw, with the weights than all rows. Never in training.
    fn folding_weights(
        &self,
        queries: &Tensor,
        frames: &Tensor,
        dropouts: &Dropouts,
    ) -> Result<Option<(&Tensor, &Tensor)>> {
        let (_frames, query_count, width) = queries.dims3()?;
        let (_frames, row_count, visual_width) = frames.dims3()?;
        // Multiply-adds of a frame.
        let plain = 2 * row_count * width * (visual_width + query_count);
        let folded = 2 * query_count * visual_width * (width + self.heads * row_count);
        let weights = self.key.dense_weight().zip(self.value.dense_weight());
        let trains = dropouts.are_wanted()
            || queries.track_op()
            || weights.is_some_and(|(key, value)| key.track_op() || value.track_op());
        Ok(weights.filter(|_| folded < plain && !trains))
    }

    fn heads(&self, dropouts: &Dropouts) -> Heads<'static> {
        Heads { dropout: dropouts.next(), ..Heads::new(self.heads, self.head_width) }
    }
}

/// [`Attention`] whose weights are laid out for inference. Keys and values are quicker made of all rows of a frame then than folded.
#[derive(Debug)]
pub(super) struct FrozenAttention {
    query: FrozenProjection,
    key: FrozenProjection,
    value: FrozenProjection,
    dense: FrozenProjection,
    norm: LayerNorm,
    heads: Heads<'static>,
}

impl FrozenAttention {
    /// The first `count` of rows (B, R, h) see all of them, with `bias` added to the scores; gives (B, count, h).
    pub(super) fn attend_first_rows(&self, rows: &Tensor, count: usize, bias: &Tensor) -> Result<Tensor> {
        let (_batch, row_count, _width) = rows.dims3()?;
        let [all, first] = [row_count, count].map(|count| SomeRows { of: rows, range: 0..count });
        let Self { query, key, value, .. } = self;
        let [query, key, value] = match count == row_count {
            true => FrozenProjection::project([query, key, value], &all)?,
            false => {
                let [query] = FrozenProjection::project([query], &first)?;
                let [key, value] = FrozenProjection::project([key, value], &all)?;
                [query, key, value]
            }
        };
        let heads = Heads { mask: Mask::Bias(bias), ..self.heads };
        let attended = multi_head_attention(&query, &key, &value, &heads)?;
        self.dense.add_and_norm(&attended, &first, self.norm.norm())
    }

    /// The first `count` of the rows of pairs (P * F, R, h) see all rows of their frame (F, N, V); gives (P * F, count, h).
    pub(super) fn attend_frames(&self, rows: &Tensor, count: usize, frames: &Tensor) -> Result<Tensor> {
        let (pair_count, _rows, _width) = rows.dims3()?;
        let (frame_count, frame_rows, _visual_width) = frames.dims3()?;
        let first = SomeRows { of: rows, range: 0..count };
        let [queries] = FrozenProjection::project([&self.query], &first)?;
        let queries = pairs::rows_by_frame(&queries, frame_count)?; // (F, P * count, h)
        let attended = (0..frame_count).step_by(FRAMES_AT_ONCE).map(|start| {
            let count = FRAMES_AT_ONCE.min(frame_count - start);
            let (queries, frames) = (queries.narrow(0, start, count)?, frames.narrow(0, start, count)?);
            let frames = SomeRows { of: &frames, range: 0..frame_rows };
            let [key, value] = FrozenProjection::project([&self.key, &self.value], &frames)?;
            multi_head_attention(&queries, &key, &value, &self.heads)
        });
        let attended = Tensor::cat(&attended.collect::<Result<Vec<_>>>()?, 0)?;
        let attended = pairs::rows_by_pair(&attended, pair_count / frame_count)?;
        self.dense.add_and_norm(&attended, &first, self.norm.norm())
    }
}

/// Feed-forward with exact GELU, residual and norm.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

impl FeedForward {
    /// `suffix` is empty for words and `_query` for the Q-Former's queries.
    pub(super) fn new(config: &QueryModelConfig, suffix: &str, vb: WeightSource) -> Result<Self> {
        let output = vb.pp(format!("output{suffix}"));
        let intermediate = vb.pp(format!("intermediate{suffix}")).pp("dense");
        Ok(Self {
            intermediate: linear(config.width, config.mlp_width, intermediate)?,
            output: linear(config.mlp_width, config.width, output.pp("dense"))?,
            norm: LayerNorm::bert(config.width, output.pp("LayerNorm"))?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, dropouts: &Dropouts) -> Result<Tensor> {
        let norm = (self.norm.norm(), NormPlace::After(dropouts.next()));
        gelu_block(x, norm, self.intermediate.projection(), self.output.projection())
    }

    /// The same for inference; none where that is not quicker.
    pub(super) fn frozen(&self) -> Result<Option<FrozenFeedForward>> {
        let [intermediate, output] =
            [&self.intermediate, &self.output].map(|layer| FrozenProjection::new(layer.projection()));
        let (Some(intermediate), Some(output)) = (intermediate?, output?) else { return Ok(None) };
        Ok(Some(FrozenFeedForward { intermediate, output, norm: self.norm.clone() }))
    }
}

/// [`FeedForward`] whose weights are laid out for inference.
#[derive(Debug)]
pub(super) struct FrozenFeedForward {
    intermediate: FrozenProjection,
    output: FrozenProjection,
    norm: LayerNorm,
}

impl FrozenFeedForward {
    /// Itself and some rows of each sequence of `of` (B, R, h), for [`llamavid_kernels::frozen_gelu`].
    pub(super) fn reading<'a>(&'a self, of: &'a Tensor, range: Range<usize>) -> FrozenGelu<'a> {
        let Self { intermediate: first, output: second, norm } = self;
        FrozenGelu { first, second, norm: norm.norm(), x: SomeRows { of, range } }
    }
}
