//! Context attention: one token a frame that holds what the question asks of it.
//!
//! Paper: LLaMA-VID, section 3.2.
//! Letters: P questions, F frames, N patches, Q text queries, V visual width, D language width.

use candle_core::{DType, Tensor};
use llamavid_kernels::{mean_of_rows, softmax};

use super::block_observer::BlockObserver;
use super::config::TokenGenerationConfig;
use super::pairs;
use crate::Result;
use crate::linear::{Linear, linear};
use crate::weight_source::WeightSource;

/// Pools the patches that the text queries attend to into one context token a frame.
#[derive(Debug, Clone)]
pub(super) struct ContextAttention {
    query_proj: Linear,
    key_proj: Linear,
    value_proj: Linear,
}

impl ContextAttention {
    pub(super) fn new(config: &TokenGenerationConfig, vb: WeightSource) -> Result<Self> {
        let visual_width = config.visual_width;
        Ok(Self {
            query_proj: linear(config.query.width, visual_width, vb.pp("query_proj"))?,
            key_proj: linear(visual_width, visual_width, vb.pp("key_proj"))?,
            value_proj: linear(visual_width, config.language_width, vb.pp("value_proj"))?,
        })
    }

    /// Rows of the query model (P * F, Q, h) and patches (F, N, V) give (P * F, 1, D).
    pub(super) fn forward(
        &self,
        query_rows: &Tensor,
        patches: &Tensor,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let (pair_count, _queries, _width) = query_rows.dims3()?;
        let (frame_count, _patches, _width) = patches.dims3()?;
        let questions = pair_count / frame_count;

        let text_queries = self.text_queries(query_rows, patches, observer)?;
        let scores = match self.folding_key(&text_queries, patches)? {
            Some(weight) if !observer.wants() => {
                // q (W x + b) is (q W) x and q b, which is the same for all patches: a softmax does not see it.
                let folded = text_queries.flatten_to(1)?.matmul(weight)?.reshape(text_queries.shape())?;
                folded.matmul(&patches.t()?)?.to_dtype(DType::F32)?
            }
            _ => self.products(&text_queries, patches, observer)?,
        }; // (F, P * Q, N)
        let scores = softmax(&scores)?;
        if observer.wants() {
            observer.see("tok.scores", &pairs::rows_by_pair(&scores, questions)?);
        }
        // The values are the patches themselves: the projection comes after the mean over queries.
        let attended = pairs::rows_by_pair(&scores.to_dtype(patches.dtype())?.matmul(patches)?, questions)?;
        let pooled = mean_of_rows(&attended)?; // (P * F, 1, V)
        observer.see("tok.context_pooled", &pooled);
        let token = self.value_proj.forward(&pooled)?;
        observer.see("tok.context_token", &token);
        Ok(token)
    }

    /// How much each text query asks for each patch, before the softmax: (F, P * Q, N) in f32.
    pub(super) fn scores(
        &self,
        query_rows: &Tensor,
        patches: &Tensor,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let text_queries = self.text_queries(query_rows, patches, observer)?;
        self.products(&text_queries, patches, observer)
    }

    /// What the question looks for, (F, P * Q, V): scaled before the product, so that f16 does not overflow.
    fn text_queries(
        &self,
        query_rows: &Tensor,
        patches: &Tensor,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let (frame_count, _patches, visual_width) = patches.dims3()?;
        let text_queries = self.query_proj.forward(query_rows)?; // (P * F, Q, V)
        observer.see("tok.text_q", &text_queries);
        observer.see_frames("tok.vis", patches)?;
        Ok((pairs::rows_by_frame(&text_queries, frame_count)? / (visual_width as f64).sqrt())?)
    }

    fn products(
        &self,
        text_queries: &Tensor,
        patches: &Tensor,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let keys = self.key_proj.forward(patches)?;
        observer.see_frames("tok.key", &keys)?;
        Ok(text_queries.matmul(&keys.t()?)?.to_dtype(DType::F32)?)
    }

    /// The key projection's weight, where it is cheaper to multiply the queries (F, P * Q, V) with it than the patches
    /// (F, N, V). Not in training, where its bias has a gradient, if only of zero.
    fn folding_key(&self, text_queries: &Tensor, patches: &Tensor) -> Result<Option<&Tensor>> {
        let (_frames, query_count, _width) = text_queries.dims3()?;
        let (_frames, patch_count, _width) = patches.dims3()?;
        let cheaper = query_count < patch_count && !text_queries.track_op();
        Ok(self.key_proj.dense_weight().filter(|weight| cheaper && !weight.track_op()))
    }
}
