//! From visual features and questions to the visual tokens that the language model reads.
//!
//! Paper: LLaMA-VID (arXiv 2311.17043), section 3: one context token a frame, made with the question, and
//! n content tokens, made without it.
//! Letters: P questions, F frames, R rows of a frame (patches, and the class row where there is one),
//! N patches, Q text queries, L word pieces, V visual width, D language width.

mod bert_layer;
mod block_observer;
mod config;
mod content_pooling;
mod context_attention;
mod dropout;
mod pairs;
mod projector;
mod q_former;
mod raw_bert;
mod word_embedding;

use candle_core::{DType, Tensor};

pub use self::config::{
    Compression, FeatureKind, Projector, QueryKind, QueryModelConfig, TokenGenerationConfig, TokenRows,
};

use self::bert_layer::LayerNorm;
use self::block_observer::BlockObserver;
use self::context_attention::ContextAttention;
use self::dropout::{DropoutPlan, Dropouts};
use self::projector::ContentProjector;
use self::q_former::QFormer;
use self::raw_bert::RawBert;
use crate::linear::{Linear, linear};
use crate::observer::{Blind, Observer};
use crate::weight_source::WeightSource;
use crate::{Error, Result};

/// Pairs of a question and a frame that are computed at once. Bounds memory; the numbers do not depend on it.
const PAIRS_IN_A_BLOCK: usize = 64;

/// Epsilon of the norm over visual features.
const VISUAL_NORM_EPSILON: f64 = 1e-5;

/// The word pieces of P questions, padded on the right to the longest.
#[derive(Debug, Clone)]
pub struct Questions {
    /// (P, L), `u32`.
    pub input_ids: Tensor,
    /// (P, L): 1 for a word piece, 0 for padding. Any number type.
    pub attention_mask: Tensor,
}

/// Makes context and content tokens.
#[derive(Debug, Clone)]
pub struct TokenGenerator {
    config: TokenGenerationConfig,
    query_model: QueryModel,
    context: ContextAttention,
    projector: ContentProjector,
    dtype: DType,
    dropout: Option<DropoutPlan>,
    /// Whether weights may be laid out in a way that only inference reads.
    frozen: bool,
}

#[derive(Debug, Clone)]
enum QueryModel {
    QFormer { bert_proj: Option<Linear>, visual_norm: Option<LayerNorm>, model: QFormer },
    RawBert { bert_proj: Linear, model: RawBert },
}

impl TokenGenerator {
    /// Reads the weights `query_norm`, `query_tokens`, `query_model.bert.*`, `bert_proj`, `context.*` and
    /// `projector.*`, as many of them as the configuration needs.
    ///
    /// # Errors
    /// `Error::Config` for sizes that contradict each other; `Error::Tensor` names a missing weight.
    pub fn new<'a>(config: &TokenGenerationConfig, vb: impl Into<WeightSource<'a>>) -> Result<Self> {
        Self::build(config, vb.into(), false)
    }

    /// The same for inference only: weights of the Q-Former's layers are laid out as they are read where that is quicker, and no gradient
    /// flows through them.
    ///
    /// # Errors
    /// As [`TokenGenerator::new`].
    pub fn for_inference<'a>(
        config: &TokenGenerationConfig,
        vb: impl Into<WeightSource<'a>>,
    ) -> Result<Self> {
        Self::build(config, vb.into(), true)
    }

    fn build(config: &TokenGenerationConfig, vb: WeightSource, frozen: bool) -> Result<Self> {
        check(config)?;
        Ok(Self {
            query_model: QueryModel::new(config, &vb, frozen)?,
            context: ContextAttention::new(config, vb.pp("context"))?,
            projector: ContentProjector::new(config, vb.pp("projector"))?,
            dtype: vb.dtype(),
            dropout: None,
            frozen,
            config: config.clone(),
        })
    }

    /// The same generator, which drops a share `rate` of the query model's values, as BERT does in training: after its
    /// first norm, of the shares of attention, and of what each layer adds. A rate of 0 drops nothing.
    ///
    /// The same seed drops the same values in each call, so every step of a training needs its own.
    ///
    /// # Errors
    /// `Error::Argument` for a rate that is not from 0 up to less than 1, and for a generator that was built for inference.
    pub fn with_dropout(&self, rate: f32, seed: u64) -> Result<Self> {
        if self.frozen {
            return Err(Error::Argument("a generator built for inference drops nothing".into()));
        }
        if !(0.0..1.0).contains(&rate) {
            return Err(Error::Argument(format!("a dropout of {rate} is not from 0 up to less than 1")));
        }
        let dropout = (rate > 0.0).then_some(DropoutPlan { rate, seed });
        Ok(Self { dropout, ..self.clone() })
    }

    /// What this generator is made of.
    pub fn config(&self) -> &TokenGenerationConfig {
        &self.config
    }

    /// Features (F, R, V) of any float type and P questions give the tokens (P, F * (1 + n), D).
    ///
    /// A question's tokens are those of frame 0, of frame 1, …, each the context token first.
    ///
    /// # Errors
    /// `Error::Argument` when shapes do not fit the model: no frame, no question, too many word pieces,
    /// patches that the grid does not divide, a class row in precomputed features.
    pub fn generate(
        &self,
        features: &Tensor,
        kind: FeatureKind,
        questions: &Questions,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        self.check_questions(questions)?;
        self.check_features(features, kind)?;
        let (question_count, _words) = questions.input_ids.dims2()?;

        observer.see("qf.input_ids", &questions.input_ids);
        observer.see("qf.attention_mask", &questions.attention_mask);
        let mut blocks = BlockObserver::new(observer, question_count);
        let dropouts = Dropouts::new(self.dropout);
        let tokens = self.in_blocks(features, question_count, |frames, count| {
            self.generate_block(frames, questions, count, &dropouts, &mut blocks)
        })?;
        let tokens = tokens.flatten(1, 2)?; // (P, F * (1 + n), D)
        blocks.finish(&tokens)?;
        Ok(tokens)
    }

    /// How much each frame has to do with each question, (P, F) in f32, 0 or more.
    ///
    /// It is how far the attention to a frame's patches is from an even one: KL(even ‖ attention), the mean of the text queries,
    /// computed from the scores before the softmax as log-sum-exp − mean − log N. Their level by itself means nothing, because the
    /// softmax, and so training, does not see it; and the softmax's largest shares tell frames apart no more once they near 1.
    ///
    /// # Errors
    /// As [`TokenGenerator::generate`].
    pub fn relevance(&self, features: &Tensor, kind: FeatureKind, questions: &Questions) -> Result<Tensor> {
        self.check_questions(questions)?;
        self.check_features(features, kind)?;
        let (question_count, _words) = questions.input_ids.dims2()?;
        let mut blind = Blind;
        let mut observer = BlockObserver::new(&mut blind, question_count);
        let dropouts = Dropouts::new(None);
        self.in_blocks(features, question_count, |frames, count| {
            let patches = self.patches(frames)?;
            let query_rows =
                self.query_model.forward(frames, &patches, questions, count, &dropouts, &mut observer)?;
            let scores = self.context.scores(&query_rows, &patches, &mut observer)?;
            let scores = pairs::rows_by_pair(&scores, question_count)?; // (P * F, Q, N)
            let (_pairs, _queries, patch_count) = scores.dims3()?;
            let height = (scores.log_sum_exp(2)? - scores.mean(2)?)?; // (P * F, Q)
            let height = (height.mean(1)? - (patch_count as f64).ln())?;
            Ok(height.reshape((question_count, count))?)
        })
    }

    /// What `make` gives for some frames (F, R, V) at a time and how many they are, (P, F, …), put together again.
    fn in_blocks(
        &self,
        features: &Tensor,
        question_count: usize,
        mut make: impl FnMut(&Tensor, usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (frame_count, _rows, _visual_width) = features.dims3()?;
        let frames_in_a_block = (PAIRS_IN_A_BLOCK / question_count).max(1);
        let blocks = (0..frame_count).step_by(frames_in_a_block).map(|start| {
            let count = frames_in_a_block.min(frame_count - start);
            make(&features.narrow(0, start, count)?.contiguous()?.to_dtype(self.dtype)?, count)
        });
        Ok(Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// The rows of frames (F, R, V) that become tokens, (F, N, V), where they lie.
    fn patches(&self, frames: &Tensor) -> Result<Tensor> {
        let (_frames, rows, _visual_width) = frames.dims3()?;
        let cut = self.config.rows.cut(rows);
        Ok(frames.narrow(1, cut, rows - cut)?)
    }

    /// Features (F, R, V) and a question of its own for each frame give the tokens (F, 1 + n, D).
    ///
    /// What training needs: the frames of a whole batch of videos, each with its video's question, at once
    /// and not in blocks. The numbers are those of [`TokenGenerator::generate`], video by video.
    ///
    /// # Errors
    /// As [`TokenGenerator::generate`], and `Error::Argument` for another number of questions than of frames.
    pub fn generate_paired(
        &self,
        features: &Tensor,
        kind: FeatureKind,
        questions: &Questions,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        self.check_questions(questions)?;
        self.check_features(features, kind)?;
        let (frame_count, _rows, _visual_width) = features.dims3()?;
        let (question_count, _words) = questions.input_ids.dims2()?;
        if question_count != frame_count {
            return Err(Error::Argument(format!(
                "{frame_count} frames with {question_count} questions are no pairs"
            )));
        }
        let mut observer = BlockObserver::new(observer, 1);
        let dropouts = Dropouts::new(self.dropout);
        let frames = features.to_dtype(self.dtype)?;
        let tokens = self.generate_block(&frames, questions, 1, &dropouts, &mut observer)?;
        let tokens = tokens.flatten(0, 1)?;
        observer.finish(&tokens)?;
        Ok(tokens)
    }

    /// Frames (F, R, V) give (P, frames of each question, 1 + n, D): all F frames to each question, or one.
    fn generate_block(
        &self,
        frames: &Tensor,
        questions: &Questions,
        frames_each: usize,
        dropouts: &Dropouts,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        let (frame_count, _rows, _visual_width) = frames.dims3()?;
        let (question_count, _words) = questions.input_ids.dims2()?;
        let patches = self.patches(frames)?;

        let query_rows =
            self.query_model.forward(frames, &patches, questions, frames_each, dropouts, observer)?;
        observer.see("qf.out", &query_rows);
        let context = self.context.forward(&query_rows, &patches, observer)?; // (P * F, 1, D)

        let pooled = content_pooling::pool(&patches, self.config.compression)?; // (F, n, V)
        observer.see_frames("tok.content_pooled", &pooled)?;
        let content = self.projector.forward(&pooled)?; // (F, n, D)
        let content = pairs::repeat_frames(&content, question_count * frames_each / frame_count)?; // (P * F, n, D)
        observer.see("tok.content_token", &content);

        let tokens = Tensor::cat(&[&context, &content], 1)?;
        let (_pairs, count, width) = tokens.dims3()?;
        Ok(tokens.reshape((question_count, frames_each, count, width))?)
    }

    fn check_features(&self, features: &Tensor, kind: FeatureKind) -> Result<()> {
        let (frame_count, rows, visual_width) = features.dims3()?;
        if frame_count == 0 || rows < 2 || visual_width != self.config.visual_width {
            return Err(Error::Argument(format!(
                "features of shape {:?} do not fit: (frames, rows, {}) with a frame or more is wanted",
                features.dims(),
                self.config.visual_width
            )));
        }
        if kind == FeatureKind::Precomputed && (rows - 1).isqrt().pow(2) == rows - 1 {
            return Err(Error::Argument(format!(
                "precomputed features have {rows} rows a frame: {side} x {side} patches and the class row, \
                 which has to be cut off first",
                side = (rows - 1).isqrt()
            )));
        }
        Ok(())
    }

    fn check_questions(&self, questions: &Questions) -> Result<()> {
        let (ids, mask) = (questions.input_ids.dims(), questions.attention_mask.dims());
        let longest = self.config.query.max_positions;
        match *ids {
            [questions, words] if questions > 0 && (1..=longest).contains(&words) && ids == mask => Ok(()),
            _ => Err(Error::Argument(format!(
                "word pieces of shape {ids:?} with a mask of shape {mask:?} do not fit: both must be \
                 (questions, word pieces), a question or more, of at most {longest} word pieces"
            ))),
        }
    }
}

impl QueryModel {
    fn new(config: &TokenGenerationConfig, vb: &WeightSource, frozen: bool) -> Result<Self> {
        let query = &config.query;
        let model = vb.pp("query_model");
        match query.kind {
            QueryKind::QFormer { visual_norm } => {
                let width = query.projected_width.unwrap_or(config.visual_width);
                let bert_proj = query
                    .projected_width
                    .map(|width| linear(config.visual_width, width, vb.pp("bert_proj")))
                    .transpose()?;
                let visual_norm = visual_norm
                    .then(|| LayerNorm::new(width, VISUAL_NORM_EPSILON, vb.pp("query_norm")))
                    .transpose()?;
                let queries = QFormer::learned_queries(query, vb)?;
                Ok(Self::QFormer {
                    bert_proj,
                    visual_norm,
                    model: QFormer::new(query, width, queries, model, frozen)?,
                })
            }
            QueryKind::RawBert => Ok(Self::RawBert {
                bert_proj: linear(config.visual_width, query.width, vb.pp("bert_proj"))?,
                model: RawBert::new(query, model)?,
            }),
        }
    }

    /// The Q-Former sees all rows of `frames`, class row included; plain BERT sees `patches` only.
    fn forward(
        &self,
        frames: &Tensor,
        patches: &Tensor,
        questions: &Questions,
        frames_each: usize,
        dropouts: &Dropouts,
        observer: &mut BlockObserver,
    ) -> Result<Tensor> {
        match self {
            Self::QFormer { bert_proj, visual_norm, model } => {
                let mut rows = frames.clone();
                if let Some(bert_proj) = bert_proj {
                    rows = bert_proj.forward(&rows)?;
                    observer.see_frames("qf.bert_proj", &rows)?;
                }
                if let Some(visual_norm) = visual_norm {
                    rows = visual_norm.forward(&rows)?;
                    observer.see_frames("qf.ln_vision", &rows)?;
                }
                model.forward(questions, &rows, frames_each, dropouts, observer)
            }
            Self::RawBert { bert_proj, model } => {
                let rows = bert_proj.forward(patches)?;
                observer.see_frames("qf.bert_proj", &rows)?;
                model.forward(questions, &rows, frames_each, dropouts, observer)
            }
        }
    }
}

fn check(config: &TokenGenerationConfig) -> Result<()> {
    let wrong = |key: &str, problem: String| Err(Error::Config { key: key.into(), problem });
    let query = &config.query;
    if query.heads == 0 || !query.width.is_multiple_of(query.heads) {
        return wrong(
            "num_attention_heads",
            format!("{} heads do not divide the query model's width {}", query.heads, query.width),
        );
    }
    if query.layers == 0 {
        return wrong("num_hidden_layers", "the query model needs a layer or more".into());
    }
    if query.queries == 0 && query.kind != QueryKind::RawBert {
        return wrong("num_query", "the Q-Former needs a query or more".into());
    }
    if query.projected_width.is_some() && query.kind != (QueryKind::QFormer { visual_norm: true }) {
        return wrong(
            "bert_type",
            "only a pretrained Q-Former has features projected to its own width".into(),
        );
    }
    if config.projector == Projector::Identity && config.visual_width != config.language_width {
        return wrong(
            "mm_projector_type",
            format!(
                "`identity` needs equal widths, {} and {} differ",
                config.visual_width, config.language_width
            ),
        );
    }
    Ok(())
}
