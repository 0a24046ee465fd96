//! Word pieces of a question with their positions, before BERT's first norm.

use candle_core::{Result, Tensor};
use candle_nn::Init;
use llamavid_kernels::embedding;

use super::config::QueryModelConfig;
use crate::weight_source::WeightSource;

/// Standard deviation with which BERT creates embeddings.
pub(super) const INITIAL_DEVIATION: Init = Init::Randn { mean: 0., stdev: 0.02 };

/// The tables of word pieces and positions.
#[derive(Debug, Clone)]
pub(super) struct WordEmbedding {
    words: Tensor,
    positions: Tensor,
}

impl WordEmbedding {
    pub(super) fn new(config: &QueryModelConfig, vb: &WeightSource) -> Result<Self> {
        let table =
            |rows, name: &str| vb.pp(name).get_with_hints((rows, config.width), "weight", INITIAL_DEVIATION);
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_positions, "position_embeddings")?,
        })
    }

    /// Ids (P, L) give (P, L, h). The first word piece has position 0.
    pub(super) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (_questions, words) = ids.dims2()?;
        embedding(&self.words, ids)?.broadcast_add(&self.positions.narrow(0, 0, words)?)
    }
}
