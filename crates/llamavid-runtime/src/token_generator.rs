//! Token generation on a device: features and questions in, visual tokens out, a block of frames a step.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device as TensorDevice, Tensor};
use llamavid_models::observer::Blind;
use llamavid_models::token_generation::{FeatureKind, Questions, TokenGenerator as Model};
use llamavid_models::tokenizer::WordPieceTokenizer;
use tracing::info_span;

use crate::device::Weights;
use crate::model_folder::ModelFolder;
use crate::{Cancellation, Device, Error, Precision, Reply, Result, VisualFeatures, VisualTokens, run_aside};

/// Pairs of a frame and a question of one step. The numbers do not depend on it.
pub(crate) const PAIRS_A_STEP: usize = 64;

/// A token of each frame that is taken away, to measure what it is worth. For evaluations, never for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ablation {
    /// The context token becomes zero: what the question asks of a frame is lost.
    Context,
    /// The content tokens become zero: what a frame shows apart from the question is lost.
    Content,
}

impl Ablation {
    /// (F, 1 + n, D) with the tokens set to zero.
    fn of(self, tokens: &Tensor) -> Result<Tensor> {
        let (_frames, count, _width) = tokens.dims3()?;
        let context = tokens.narrow(1, 0, 1)?;
        let content = tokens.narrow(1, 1, count - 1)?;
        Ok(match self {
            Self::Context => Tensor::cat(&[&context.zeros_like()?, &content], 1)?,
            Self::Content => Tensor::cat(&[&context, &content.zeros_like()?], 1)?,
        })
    }
}

/// The query model, context attention and projector of a model folder. Holds their weights' memory.
#[derive(Debug)]
pub struct TokenGenerator {
    model: Weights<Model>,
    tokenizer: Arc<WordPieceTokenizer>,
    /// What the model was trained on.
    expects: FeatureKind,
    device: Arc<Device>,
}

impl TokenGenerator {
    /// Loads it from `folder`, on a thread of its own.
    pub fn load(
        folder: PathBuf,
        device: Arc<Device>,
        precision: Precision,
        cancellation: Cancellation,
    ) -> Reply<Self> {
        run_aside("llamavid load", move || {
            cancellation.check()?;
            let _span = info_span!("load token generator").entered();
            let folder = ModelFolder::open(&folder)?.with_quantisation(precision.quantisation);
            let tokenizer = Arc::new(folder.query_tokenizer()?);
            cancellation.check()?;
            let model = folder.token_generator(precision.dtype.on(&device), device.tensors())?;
            cancellation.check()?;
            let expects = folder.config().features;
            Ok(Self { model: Weights::new(model, device.clone()), tokenizer, expects, device })
        })
    }

    /// Width of a token: the language model's.
    pub fn width(&self) -> usize {
        self.model.config().language_width
    }

    /// The device of the weights.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Visual tokens of the same frames for each question, in the questions' order.
    ///
    /// A model that expects precomputed features gets those of pixels without their class row.
    pub fn generate(
        &self,
        features: Arc<VisualFeatures>,
        questions: Vec<String>,
        ablation: Option<Ablation>,
        cancellation: &Cancellation,
    ) -> Reply<Vec<VisualTokens>> {
        let device = self.device.clone();
        let question_count = questions.len();
        let frame_count = features.frame_count();
        let generate = |model: &Model, block: &Tensor, kind, questions: &Questions| {
            Ok(model.generate(block, kind, questions, &mut Blind)?) // (P, F * (1 + n), D)
        };
        self.by_blocks(features, questions, cancellation, generate, move |all| {
            let tokens = (0..question_count).map(|index| {
                // A copy, so that closing one question's tokens frees their memory.
                let mut tokens = if question_count == 1 { all.get(0)? } else { all.get(index)?.copy()? };
                if let Some(ablation) = ablation {
                    let (rows, width) = tokens.dims2()?;
                    let frames = tokens.reshape((frame_count, rows / frame_count, width))?;
                    tokens = ablation.of(&frames)?.flatten(0, 1)?;
                }
                VisualTokens::new(tokens, frame_count, device.clone())
            });
            tokens.collect()
        })
    }

    /// How much each frame has to do with a question, by frame; see [`Model::relevance`].
    pub fn relevance(
        &self,
        features: Arc<VisualFeatures>,
        question: String,
        cancellation: &Cancellation,
    ) -> Reply<Vec<f32>> {
        let relevance = |model: &Model, block: &Tensor, kind, questions: &Questions| {
            Ok(model.relevance(block, kind, questions)?) // (1, F)
        };
        self.by_blocks(features, vec![question], cancellation, relevance, |all| Ok(all.get(0)?.to_vec1()?))
    }

    /// Does `work` with blocks of frames, a step each, and `finish` with what came of all: results follow each other in the
    /// second dimension, as many for each frame.
    fn by_blocks<T: Send + 'static>(
        &self,
        features: Arc<VisualFeatures>,
        questions: Vec<String>,
        cancellation: &Cancellation,
        work: impl Fn(&Model, &Tensor, FeatureKind, &Questions) -> Result<Tensor> + Send + 'static,
        finish: impl Fn(&Tensor) -> Result<T> + Send + 'static,
    ) -> Reply<T> {
        let (model, tokenizer, expects) = (Arc::clone(&self.model), self.tokenizer.clone(), self.expects);
        let device = self.device.clone();
        let mut encoded: Option<Questions> = None;
        // Filled block by block, so that nothing exists twice.
        let mut all: Option<Tensor> = None;
        let mut done = 0;
        self.device.run(cancellation, move |on| {
            let encoded = match &mut encoded {
                Some(encoded) => encoded,
                none => {
                    if !Arc::ptr_eq(features.device(), &device) {
                        return Err(Error::argument(format!(
                            "the features are on {}, the token generator is on {}",
                            features.device().name(),
                            device.name()
                        )));
                    }
                    none.insert(encode(&tokenizer, &questions, on)?)
                }
            };
            let frame_count = features.frame_count();
            let count = (PAIRS_A_STEP / questions.len()).max(1).min(frame_count - done);
            let _span = info_span!("make tokens", frames = count).entered();
            let (block, kind) = as_expected(features.block(done, count, on)?, features.kind(), expects)?;
            let part = work(&model, &block, kind, encoded)?;
            let a_frame = part.dim(1)? / count;
            let all = match &mut all {
                Some(all) => all,
                none => {
                    let mut shape = part.dims().to_vec();
                    shape[1] = frame_count * a_frame;
                    none.insert(Tensor::zeros(shape, part.dtype(), on)?)
                }
            };
            all.slice_set(&part.contiguous()?, 1, done * a_frame)?;
            done += count;
            if done < frame_count {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(ControlFlow::Break(finish(all)?))
        })
    }
}

/// The word pieces of questions, on a device.
fn encode(tokenizer: &WordPieceTokenizer, questions: &[String], on: &TensorDevice) -> Result<Questions> {
    if questions.is_empty() {
        return Err(Error::argument("visual tokens need a question or more"));
    }
    let (ids, mask) = tokenizer.encode_batch(questions)?;
    Ok(Questions { input_ids: Tensor::new(ids, on)?, attention_mask: Tensor::new(mask, on)? })
}

/// Features (F, R, V) of a kind for a model that expects one: without their class row where that is precomputed ones.
fn as_expected(features: Tensor, kind: FeatureKind, expects: FeatureKind) -> Result<(Tensor, FeatureKind)> {
    match (expects, kind) {
        (FeatureKind::Precomputed, FeatureKind::Pixels) => {
            let (_frames, rows, _width) = features.dims3()?;
            Ok((features.narrow(1, 1, rows.saturating_sub(1))?, FeatureKind::Precomputed))
        }
        (_, kind) => Ok((features, kind)),
    }
}
