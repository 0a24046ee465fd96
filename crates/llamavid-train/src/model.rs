//! The whole model in training: from pixels or features, questions and text to the loss.
//!
//! Reference: `LlavaLlamaAttForCausalLM.forward`. Letters: B samples, S sequence length, F frames, N labels,
//! D language width.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use llamavid_kernels::cross_entropy_sum;
use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::{LanguageModel, LanguageModelConfig, LoraConfig};
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::token_generation::TokenGenerator;
use llamavid_models::tokenizer::WordPieceTokenizer;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_weights::Part;

use crate::batch::{Batch, EmbeddingGradient};
use crate::data::Sample;
use crate::error::Result;
use crate::example::Example;
use crate::lora;
use crate::parameters::Parameters;
use crate::visual_tokens::VisualPath;

/// The reference has no limit on the length of a row: its rotary table grows.
const MOST_POSITIONS: usize = 1 << 24;

/// Everything about a model in training that is not a weight.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// Sizes and kinds of the parts.
    pub config: ModelConfig,
    /// What the modules compute in. Weights that train stay f32, and so do losses and gradients of weights.
    pub dtype: DType,
    /// The id that fills rows.
    pub pad_id: u32,
    /// Ids of a sample beyond this are cut.
    pub max_length: usize,
    /// Which input embeddings learn.
    pub embedding_gradient: EmbeddingGradient,
    /// Adapters of the language model.
    pub lora: Option<LoraConfig>,
}

/// What a training step drops at random, as the reference does. The same seed drops the same values.
#[derive(Debug, Clone, Copy)]
pub struct TrainingDropout {
    /// Share of the query model's values, whether it trains or not (SPEC quirk 14: 0.1).
    pub query: f32,
    /// Share of what adapters read.
    pub lora: f32,
    /// Decides which.
    pub seed: u64,
}

/// The parts of the model, and how a batch goes through them.
#[derive(Debug, Clone)]
pub struct Model {
    options: Arc<ModelOptions>,
    query_tokenizer: Arc<WordPieceTokenizer>,
    /// Absent where all features were computed before.
    encoder: Option<VisualEncoder>,
    token_generator: TokenGenerator,
    language_model: LanguageModel,
    /// Share that is dropped, and a seed from which each part of a batch makes its own.
    query_dropout: Option<(f32, u64)>,
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Sum of the cross entropies, a differentiable scalar in f32. Without labels a plain zero.
    pub sum: Tensor,
    /// Labels that were learned.
    pub labels: usize,
    /// How many of them the model would have said.
    pub correct: usize,
    /// Positions of all samples after splicing, without padding.
    pub tokens: usize,
}

impl Loss {
    /// The mean over the labels, as the reference's; zero without labels, where the reference's is no number.
    pub fn mean(&self) -> candle_core::Result<Tensor> {
        &self.sum / self.labels.max(1) as f64
    }
}

impl Model {
    /// Builds the parts on `parameters`, which read or create what is missing. Without `encode` there is no visual encoder,
    /// and examples must bring features.
    ///
    /// # Errors
    /// Sizes that contradict each other, and a weight that is missing or has another shape.
    pub fn new(
        parameters: &Parameters,
        options: Arc<ModelOptions>,
        query_tokenizer: Arc<WordPieceTokenizer>,
        encode: bool,
    ) -> Result<Self> {
        let builder = parameters.var_builder_as(options.dtype);
        let config = &options.config;
        let explain = |error| parameters.explain(error);
        let encoder = encode
            .then(|| VisualEncoder::new(&config.visual, builder.pp(Part::VisualEncoder.name())))
            .transpose()
            .map_err(explain)?;
        let token_generator = TokenGenerator::new(&config.tokens, builder.pp(Part::TokenGenerator.name()));
        let language = LanguageModelConfig { max_positions: MOST_POSITIONS, ..config.language.clone() };
        let language_model = LanguageModel::new(&language, builder.pp(Part::LanguageModel.name()));
        let mut language_model = language_model.map_err(explain)?;
        if let Some(lora) = &options.lora {
            language_model = language_model.with_lora(lora, builder.pp(lora::PREFIX)).map_err(explain)?;
        }
        Ok(Self {
            encoder,
            token_generator: token_generator.map_err(explain)?,
            language_model,
            options,
            query_tokenizer,
            query_dropout: None,
        })
    }

    /// The same with the weights of the moment, where modules hold copies of them: when the model computes in half
    /// precision, or when the visual encoder trains.
    ///
    /// # Errors
    /// A device without memory.
    pub fn refreshed(&self, parameters: &Parameters) -> Result<Self> {
        Self::new(parameters, self.options.clone(), self.query_tokenizer.clone(), self.encoder.is_some())
    }

    /// The same, which drops values as in training.
    pub fn with_dropout(&self, dropout: &TrainingDropout) -> Self {
        let mut changed = self.clone();
        changed.query_dropout = (dropout.query > 0.).then_some((dropout.query, dropout.seed));
        if self.options.lora.is_some() {
            changed.language_model = self.language_model.with_lora_dropout(dropout.lora, dropout.seed);
        }
        changed
    }

    /// What it was built with.
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// The decoder.
    pub fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }

    /// What makes visual tokens.
    pub fn token_generator(&self) -> &TokenGenerator {
        &self.token_generator
    }

    /// The visual encoder, where there is one.
    pub fn encoder(&self) -> Option<&VisualEncoder> {
        self.encoder.as_ref()
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// An example that does not fit the model or itself: see [`Batch::new`] and the parts.
    pub fn loss(&self, examples: &[Example]) -> Result<Loss> {
        self.loss_observed(examples, &mut Blind)
    }

    /// The same, shown to `observer` by the names of the parity cases; what is made for each sample has its number behind.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn loss_observed(&self, examples: &[Example], observer: &mut dyn Observer) -> Result<Loss> {
        let batch = self.batch(examples, observer)?;
        let hidden = self.language_model.forward_uncached(&batch.embeds, batch.padding()?, observer)?;
        if observer.wants() {
            self.language_model.logits(&hidden, observer)?;
        }
        self.loss_of_hidden(&hidden, &batch)
    }

    /// Embeddings, mask and labels of a batch for the decoder.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn batch(&self, examples: &[Example], observer: &mut dyn Observer) -> Result<Batch> {
        let path = VisualPath {
            encoder: self.encoder.as_ref(),
            generator: &self.token_generator,
            query_tokenizer: &self.query_tokenizer,
            dropout: self.query_dropout,
        };
        let visual = path.tokens(examples, observer)?;
        let samples: Vec<&Sample> = examples.iter().map(|example| &example.sample).collect();
        let options = &self.options;
        let batch = Batch::new(
            &samples,
            &visual,
            &self.language_model,
            options.pad_id,
            options.max_length,
            options.embedding_gradient,
        )?;
        observer.see("llm.inputs_embeds", &batch.embeds);
        observer.see("llm.attention_mask", &batch.attention_mask);
        Ok(batch)
    }

    /// Hidden states (B, S, D) after the last norm give the loss. Logits are made only where a label is learned.
    ///
    /// # Errors
    /// A device without memory.
    pub fn loss_of_hidden(&self, hidden: &Tensor, batch: &Batch) -> Result<Loss> {
        let (positions, labels) = batch.targets();
        let (rows, length, width) = hidden.dims3()?;
        let tokens = batch.tokens()?;
        if labels.is_empty() {
            let sum = Tensor::zeros((), DType::F32, hidden.device())?;
            return Ok(Loss { sum, labels: 0, correct: 0, tokens });
        }
        let vocabulary = self.options.config.language.vocab_size;
        if let Some(label) = labels.iter().find(|label| **label as usize >= vocabulary) {
            let problem = format!("label {label} is outside the vocabulary of {vocabulary}");
            return Err(llamavid_models::Error::Argument(problem).into());
        }
        let count = labels.len();
        let positions = Tensor::new(positions, hidden.device())?;
        let labels = Tensor::new(labels, hidden.device())?; // (N)
        let learned = hidden.reshape((rows * length, width))?.index_select(&positions, 0)?; // (N, D)
        let logits = self.language_model.logits(&learned, &mut Blind)?; // (N, vocabulary)
        let said = logits.detach().argmax(D::Minus1)?;
        let correct = said.eq(&labels)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?;
        let (sum, _) = cross_entropy_sum(&logits, &labels)?;
        Ok(Loss { sum, labels: count, correct: correct as usize, tokens })
    }
}
