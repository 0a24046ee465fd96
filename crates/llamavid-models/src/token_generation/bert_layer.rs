//! The parts of BERT that the Q-Former and the plain decoder share: post-norm attention and feed-forward.
//!
//! Letters: B pairs, R rows, F frames, N rows of a frame, h width of the query model.

use candle_core::{Result, Tensor};
use candle_nn::Init;
use llamavid_kernels::{
    Heads, Mask, Norm, NormPlace, attention_block, folded_attention, gelu_block, layer_norm,
    multi_head_attention,
};

use super::config::QueryModelConfig;
use super::dropout::Dropouts;
use super::pairs;
use crate::linear::{Linear, linear};
use crate::weight_source::WeightSource;

/// BERT's epsilon; in f32 it only keeps a row of equal numbers from a division by zero.
const EPSILON: f64 = 1e-12;

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
}
