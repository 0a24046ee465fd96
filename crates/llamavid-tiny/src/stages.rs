//! The paper's three stages on filmed scenes: alignment, instruction tuning, long video.
//!
//! What trains in each stage is [`llamavid_train::FreezePlan`]'s, what is shown is the toy world.

use candle_core::Tensor;
use llamavid_models::observer::Blind;
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_train::{FreezePlan, Parameters};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::course::{Blocks, Lesson, Step};
use crate::exercise::{self, Exercise, Mix};
use crate::rows::{Answers, Beside};
use crate::scenes::Studio;
use crate::{language, query, rows};

/// Share of batches whose features come without the class row, as from a file.
const WITHOUT_CLASS_ROW: f64 = 0.3;

/// Steps whose batches are made together.
const STEPS: usize = Blocks::<Shown>::STEPS;

/// The lesson of one step.
pub struct StageLesson<'a> {
    /// What is filmed.
    pub studio: &'a Studio,
    /// Questions to word pieces.
    pub query: &'a WordPieceTokenizer,
    /// Text to ids.
    pub tokenizer: &'a LlamaTokenizer,
    /// What is shown at a share of the stage.
    pub mix: fn(f64) -> Mix,
    /// Exercises of a step, on average.
    pub exercises: usize,
    /// What is shown.
    pub shown: Blocks<Shown>,
}

/// An exercise with the frames that it is about.
pub struct Shown {
    exercise: Exercise,
    frames: Vec<u32>,
}

impl Lesson for StageLesson<'_> {
    fn loss(&mut self, parameters: &Parameters, step: Step) -> Result<(Tensor, Vec<(String, f64)>)> {
        let Self { studio, query, tokenizer, mix, exercises, shown } = self;
        let batch = shown.batch(step, |first| {
            let mut rng = ChaCha8Rng::seed_from_u64(first.seed());
            let shown = several(studio, tokenizer, mix(first.share()), STEPS * *exercises, &mut rng)?;
            Ok(rows::batches(shown, |shown| shown.exercise.ids.len(), STEPS, &mut rng))
        })?;
        let class_row = !ChaCha8Rng::seed_from_u64(step.seed()).random_bool(WITHOUT_CLASS_ROW);
        let answers = answer(studio, query, tokenizer, parameters, batch, class_row)?;
        Ok((answers.loss, language::tally(answers.right)))
    }
}

/// As many films with a question as `count` says; a film about which nothing can be asked does not count.
fn several(
    studio: &Studio,
    tokenizer: &LlamaTokenizer,
    mix: Mix,
    count: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Shown>> {
    let mut shown = Vec::with_capacity(count);
    while shown.len() < count {
        let film = studio.film(mix.pick(rng), mix.long.0..=mix.long.1, rng)?;
        let (asked, moments) = exercise::conversation(&film.video, film.kind, film.moments, mix, rng);
        if asked.is_empty() {
            continue;
        }
        let frames = if moments.is_empty() { Vec::new() } else { film.frames };
        let exercise = exercise::exercise(&film.video, film.kind, &asked, moments, tokenizer, 1., rng)?;
        shown.push(Shown { exercise, frames });
    }
    Ok(shown)
}

fn answer(
    studio: &Studio,
    query: &WordPieceTokenizer,
    tokenizer: &LlamaTokenizer,
    parameters: &Parameters,
    batch: &[Shown],
    class_row: bool,
) -> Result<Answers> {
    let mut frames = Vec::new();
    let mut which = Vec::new();
    for (index, shown) in batch.iter().enumerate() {
        frames.extend(&shown.frames);
        which.resize(frames.len(), index as u32);
    }
    if frames.is_empty() {
        // Texts alone: one frame that nobody reads keeps what makes tokens among the weights that get a gradient.
        (frames, which) = (vec![0], vec![0]);
    }
    let texts: Vec<String> = batch.iter().map(|shown| shown.exercise.text.clone()).collect();
    let vb = parameters.var_builder();
    let (features, kind) = query::features(studio, &frames, class_row)?;
    let questions = query::questions(query, &texts, &which)?;
    let visual = query::generator(&vb, query)?.generate_paired(&features, kind, &questions, &mut Blind)?;
    let model = language::model(&vb, tokenizer)?;
    let exercises: Vec<&Exercise> = batch.iter().map(|shown| &shown.exercise).collect();
    rows::answer(
        &model,
        &language::table(&vb, tokenizer)?,
        &visual.flatten(0, 1)?,
        &exercises,
        &Beside::default(),
    )
}

/// The share of right answers for each type of question about unseen scenes.
pub fn measure(
    studio: &Studio,
    query: &WordPieceTokenizer,
    tokenizer: &LlamaTokenizer,
    parameters: &Parameters,
    mix: Mix,
    batches: u64,
) -> Result<Vec<(String, f64)>> {
    let frozen = parameters.with_plan(FreezePlan::nothing())?;
    let mut right = Vec::new();
    for seed in 0..batches {
        let mut rng = ChaCha8Rng::seed_from_u64(u64::MAX - seed);
        let batch = several(studio, tokenizer, mix, 64, &mut rng)?;
        right.extend(answer(studio, query, tokenizer, &frozen, &batch, true)?.right);
    }
    Ok(language::tally(right))
}
