//! Pre-training of the Q-Former with the context attention and the projectors: where to look, and what to say of it.
//!
//! The published model starts from a Q-Former that was trained on captions. Here the world says where a question's
//! objects are and what symbols they have. Without this the language model's gradient hardly moves the attention from
//! its cold start.

use candle_core::{D, Device, Tensor};
use candle_nn::VarBuilder;
use llamavid_models::observer::Observer;
use llamavid_models::token_generation::{FeatureKind, Questions, TokenGenerator};
use llamavid_models::tokenizer::WordPieceTokenizer;
use llamavid_train::Parameters;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::course::{Lesson, Step};
use crate::exercise::{self, Mix};
use crate::language;
use crate::scenes::Studio;
use crate::sizes::{PATCH_SIDE, ROWS, tokens};
use crate::symbols::{self, Sum};

/// Share of steps without the class row, as features from a file are read.
const WITHOUT_CLASS_ROW: f64 = 0.3;
/// Frames of one video that a step looks at.
const FRAMES_OF_A_VIDEO: usize = 3;

/// The lesson of one step.
pub struct QueryLesson<'a> {
    /// What is filmed.
    pub studio: &'a Studio,
    /// Questions to word pieces.
    pub tokenizer: &'a WordPieceTokenizer,
    /// The symbols' vectors (symbols, D).
    pub symbols: Tensor,
    /// What is shown.
    pub mix: Mix,
    /// Frames of a step, each with a question.
    pub frames: usize,
}

/// The token generator as `vb` has it, below the name of its part.
pub fn generator(vb: &VarBuilder, tokenizer: &WordPieceTokenizer) -> Result<TokenGenerator> {
    Ok(TokenGenerator::new(&tokens(tokenizer.vocab_size() - 1), vb.pp("token_generator"))?)
}

/// One question for each frame, as word pieces: the text at `which[frame]` of `texts`.
pub fn questions(tokenizer: &WordPieceTokenizer, texts: &[String], which: &[u32]) -> Result<Questions> {
    let (ids, mask) = tokenizer.encode_batch(texts)?;
    let which = Tensor::new(which, &Device::Cpu)?;
    Ok(Questions {
        input_ids: Tensor::new(ids, &Device::Cpu)?.index_select(&which, 0)?,
        attention_mask: Tensor::new(mask, &Device::Cpu)?.index_select(&which, 0)?,
    })
}

/// Frames' features with or without their class row, and what the generator has to be told of them.
pub fn features(studio: &Studio, frames: &[u32], class_row: bool) -> Result<(Tensor, FeatureKind)> {
    let features = studio.features.index_select(&Tensor::new(frames, &Device::Cpu)?, 0)?;
    if class_row {
        return Ok((features, FeatureKind::Pixels));
    }
    Ok((features.narrow(1, 1, ROWS - 1)?.contiguous()?, FeatureKind::Precomputed))
}

/// Keeps the context attention's scores (F, Q, P).
#[derive(Default)]
struct Scores(Option<Tensor>);

impl Observer for Scores {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        if name == "tok.scores" {
            self.0 = Some(tensor.clone());
        }
    }

    fn wants(&self) -> bool {
        true
    }
}

impl Lesson for QueryLesson<'_> {
    fn loss(&mut self, parameters: &Parameters, step: Step) -> Result<(Tensor, Vec<(String, f64)>)> {
        let mut rng = ChaCha8Rng::seed_from_u64(step.seed());
        let mut texts = Vec::new();
        let (mut frames, mut which) = (Vec::new(), Vec::new());
        let (mut contexts, mut contents): (Vec<Sum>, Vec<Sum>) = (Vec::new(), Vec::new());
        let mut targets: Vec<f32> = Vec::new();
        while frames.len() < self.frames {
            let film =
                self.studio.film(self.mix.pick(&mut rng), self.mix.long.0..=self.mix.long.1, &mut rng)?;
            let asked = exercise::choose(&film.video, film.kind, self.mix, &mut rng);
            let Some(question) = asked.into_iter().next() else { continue };
            let mut order: Vec<usize> = (0..film.moments.len()).collect();
            order.shuffle(&mut rng);
            for index in order.into_iter().take(FRAMES_OF_A_VIDEO) {
                let (scene, progress) = film.moments[index];
                let scene = &film.video.scenes[scene];
                frames.push(film.frames[index]);
                which.push(texts.len() as u32);
                contexts.push(symbols::context(scene, &question.subject, progress));
                contents.push(symbols::content(scene, progress));
                let attended = symbols::attended(scene, &question.subject, progress);
                let patches = symbols::patches(scene, progress);
                // Where there is nothing that is asked about, the background says so.
                targets.extend(patches.into_iter().map(|object| {
                    let wanted = object.map_or(attended.is_empty(), |object| {
                        attended.iter().any(|one| std::ptr::eq(*one, object))
                    });
                    f32::from(u8::from(wanted))
                }));
            }
            texts.push(question.text);
        }
        let generator = generator(&parameters.var_builder(), self.tokenizer)?;
        let (features, kind) = features(self.studio, &frames, !rng.random_bool(WITHOUT_CLASS_ROW))?;
        let questions = questions(self.tokenizer, &texts, &which)?;
        let mut scores = Scores::default();
        let made = generator.generate_paired(&features, kind, &questions, &mut scores)?;
        let context = error(&made.narrow(1, 0, 1)?.squeeze(1)?, &self.targets(&contexts)?)?;
        let content = error(&made.narrow(1, 1, 1)?.squeeze(1)?, &self.targets(&contents)?)?;
        let scores = scores.0.ok_or("the context attention showed no scores")?;
        let targets = Tensor::from_vec(targets, (frames.len(), PATCH_SIDE * PATCH_SIDE), &Device::Cpu)?;
        // A tiny object may cover no patch enough: then nothing is asked of the attention.
        let asked = targets.sum(D::Minus1)?.gt(0f32)?.to_dtype(candle_core::DType::F32)?;
        let mass = scores.mean(1)?.mul(&targets)?.sum(D::Minus1)?; // (F)
        let lost = ((mass.clone() + 1e-4)?.log()?.neg()?.mul(&asked)?.sum_all()? / asked.sum_all()?)?;
        let told = vec![
            ("context error".to_owned(), f64::from(context.to_scalar::<f32>()?)),
            ("content error".to_owned(), f64::from(content.to_scalar::<f32>()?)),
            ("attention".to_owned(), f64::from((-lost.to_scalar::<f32>()?).exp())),
        ];
        // What to say of the objects is soon learned once it is clear where they are.
        Ok((((context + content)? + (lost * 3.)?)?, told))
    }
}

impl QueryLesson<'_> {
    fn targets(&self, sums: &[Sum]) -> Result<Tensor> {
        let sums: Vec<&Sum> = sums.iter().collect();
        language::sums(&self.symbols, &sums)
    }
}

/// The squared error as a share of what the targets vary.
fn error(made: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let varying = targets.broadcast_sub(&targets.mean_keepdim(0)?)?.sqr()?.mean_all()?;
    Ok((made - targets)?.sqr()?.mean_all()?.broadcast_div(&varying)?)
}
