//! The paper's three stages on filmed scenes: alignment, instruction tuning, long video.
//!
//! What trains in each stage is [`llamavid_train::FreezePlan`]'s, what is shown is the toy world.

use candle_core::Tensor;
use llamavid_models::observer::Blind;
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_train::Parameters;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::course::Lesson;
use crate::exercise::{self, Exercise, Mix};
use crate::scenes::Studio;
use crate::{language, query, rows};

/// Share of batches whose features come without the class row, as from a file.
const WITHOUT_CLASS_ROW: f64 = 0.3;
/// Steps whose exercises are made together, so that each batch holds rows of similar length.
const BLOCK: u64 = 8;

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
    /// Scenes of a long video.
    pub long: (usize, usize),
    /// Steps of the stage.
    pub steps: u64,
    /// Exercises of a step, on average.
    pub exercises: u64,
    /// The batches of a block of steps, and the seed that they were made with.
    pub block: (u64, Vec<Vec<Shown>>),
}

/// An exercise with the frames that it is about.
pub struct Shown {
    exercise: Exercise,
    frames: Vec<u32>,
}

impl Lesson for StageLesson<'_> {
    fn loss(&mut self, parameters: &Parameters, seed: u64) -> Result<(Tensor, Vec<(String, f64)>)> {
        let (first, place) = (seed - seed % BLOCK, (seed % BLOCK) as usize);
        if self.block.0 != first {
            let share = (first & 0xffff_ffff) as f64 / self.steps as f64;
            self.block = (first, self.show(first, (self.mix)(share))?);
        }
        let batch = &self.block.1[place];
        let class_row = !ChaCha8Rng::seed_from_u64(seed).random_bool(WITHOUT_CLASS_ROW);
        answer(self.studio, self.query, self.tokenizer, parameters, batch, class_row)
    }
}

impl StageLesson<'_> {
    fn show(&self, seed: u64, mix: Mix) -> Result<Vec<Vec<Shown>>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut shown = Vec::new();
        while (shown.len() as u64) < BLOCK * self.exercises {
            shown.extend(one(self.studio, self.tokenizer, mix, self.long, &mut rng)?);
        }
        Ok(rows::batches(shown, |shown| shown.exercise.ids.len(), BLOCK as usize, &mut rng))
    }
}

fn one(
    studio: &Studio,
    tokenizer: &LlamaTokenizer,
    mix: Mix,
    long: (usize, usize),
    rng: &mut ChaCha8Rng,
) -> Result<Option<Shown>> {
    let film = studio.film(mix.pick(rng), long.0..=long.1, rng)?;
    let Some(question) = exercise::choose(&film.video, film.kind, rng) else { return Ok(None) };
    let exercise = exercise::exercise(&film.video, film.kind, question, film.moments, tokenizer, rng)?;
    Ok(Some(Shown { exercise, frames: film.frames }))
}

fn answer(
    studio: &Studio,
    query: &WordPieceTokenizer,
    tokenizer: &LlamaTokenizer,
    parameters: &Parameters,
    batch: &[Shown],
    class_row: bool,
) -> Result<(Tensor, Vec<(String, f64)>)> {
    let mut frames = Vec::new();
    let mut which = Vec::new();
    for (index, shown) in batch.iter().enumerate() {
        frames.extend(&shown.frames);
        which.resize(frames.len(), index as u32);
    }
    let texts: Vec<String> = batch.iter().map(|shown| shown.exercise.text.clone()).collect();
    let vb = parameters.var_builder();
    let (features, kind) = query::features(studio, &frames, class_row)?;
    let questions = query::questions(query, &texts, &which)?;
    let visual = query::generator(&vb, query)?.generate_paired(&features, kind, &questions, &mut Blind)?;
    let model = language::model(&vb, tokenizer)?;
    let exercises: Vec<&Exercise> = batch.iter().map(|shown| &shown.exercise).collect();
    let answers =
        rows::answer(&model, &language::table(&vb, tokenizer)?, &visual.flatten(0, 1)?, &exercises)?;
    Ok((answers.loss, language::tally(&exercises, &answers.right)))
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
    let mut sums: std::collections::BTreeMap<String, (f64, f64)> = std::collections::BTreeMap::new();
    let frozen = parameters.with_plan(llamavid_train::FreezePlan::nothing())?;
    for seed in 0..batches {
        let mut rng = ChaCha8Rng::seed_from_u64(u64::MAX - seed);
        let mut batch = Vec::new();
        while batch.len() < 64 {
            batch.extend(one(studio, tokenizer, mix, (60, 100), &mut rng)?);
        }
        let (_, told) = answer(studio, query, tokenizer, &frozen, &batch, true)?;
        for (name, share) in told {
            let count =
                batch.iter().filter(|shown| name == "all" || shown.exercise.question.kind.name() == name);
            let count = count.count() as f64;
            let (sum, all) = sums.entry(name).or_default();
            *sum += share * count;
            *all += count;
        }
    }
    Ok(sums.into_iter().map(|(name, (sum, count))| (format!("{name} ({count})"), sum / count)).collect())
}
