//! Pre-training of the language model: frames as sums of symbols, questions, answers.
//!
//! The published language model has read the web; this one reads videos before there are any: the two tokens of a frame
//! are made of the symbols that the frame has (see [`crate::symbols`]), a little distorted.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_train::Parameters;
use llamavid_world::{Video, WorldOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Result;
use crate::course::Lesson;
use crate::exercise::{self, Exercise, Mix};
use crate::rows;
use crate::sizes::{LANGUAGE_WIDTH, language};
use crate::symbols::{self, SYMBOLS, Sum};

/// An exercise with the symbols of its visual tokens.
pub struct Reading {
    exercise: Exercise,
    visual: Vec<Sum>,
}

/// Steps whose exercises are made together, so that each batch holds rows of similar length.
const BLOCK: u64 = 8;
/// Exercises of a step, on average.
const EXERCISES: u64 = 64;

/// The lesson of one step.
pub struct LanguageLesson {
    /// Text to ids.
    pub tokenizer: LlamaTokenizer,
    /// What is shown at a share of the course.
    pub mix: fn(f64) -> Mix,
    /// Steps of the course.
    pub steps: u64,
    /// The batches of a block of steps, and the seed that they were made with.
    pub block: (u64, Vec<Vec<Reading>>),
}

/// The language model as `vb` has it, below the name of its part.
pub fn model(vb: &VarBuilder, tokenizer: &LlamaTokenizer) -> Result<LanguageModel> {
    Ok(LanguageModel::new(&language(tokenizer.vocab_size()), vb.pp("language_model"))?)
}

/// The input embeddings (vocabulary, D).
pub fn table(vb: &VarBuilder, tokenizer: &LlamaTokenizer) -> Result<Tensor> {
    let shape = (tokenizer.vocab_size(), LANGUAGE_WIDTH);
    Ok(vb.pp("language_model.embed_tokens").get(shape, "weight")?)
}

/// The vectors of the symbols (symbols, D).
pub fn symbol_table(vb: &VarBuilder) -> Result<Tensor> {
    let init = Init::Randn { mean: 0., stdev: 0.02 };
    Ok(vb.get_with_hints((SYMBOLS, LANGUAGE_WIDTH), "symbols.weight", init)?)
}

/// Sums of rows of `table` (symbols, D): (sums, D).
pub fn sums(table: &Tensor, sums: &[&Sum]) -> Result<Tensor> {
    let mut weights = vec![0f32; sums.len() * SYMBOLS];
    for (row, sum) in weights.chunks_exact_mut(SYMBOLS).zip(sums) {
        for (symbol, weight) in sum.iter() {
            row[usize::from(*symbol)] += weight;
        }
    }
    Ok(Tensor::from_vec(weights, (sums.len(), SYMBOLS), &Device::Cpu)?.matmul(table)?)
}

impl Lesson for LanguageLesson {
    fn loss(&mut self, parameters: &Parameters, seed: u64) -> Result<(Tensor, Vec<(String, f64)>)> {
        let (first, place) = (seed - seed % BLOCK, (seed % BLOCK) as usize);
        if self.block.0 != first {
            let share = (first & 0xffff_ffff) as f64 / self.steps as f64;
            self.block = (first, self.read(first, (self.mix)(share))?);
        }
        let readings = &self.block.1[place];
        let vb = parameters.var_builder();
        let model = model(&vb, &self.tokenizer)?;
        let exercises: Vec<&Exercise> = readings.iter().map(|reading| &reading.exercise).collect();
        let visual: Vec<&Sum> = readings.iter().flat_map(|reading| &reading.visual).collect();
        let visual = sums(&symbol_table(&vb)?, &visual)?;
        let answers = rows::answer(&model, &table(&vb, &self.tokenizer)?, &visual, &exercises)?;
        Ok((answers.loss, tally(&exercises, &answers.right)))
    }
}

/// The share of right answers for each type of question, and in all.
pub fn tally(exercises: &[&Exercise], right: &[bool]) -> Vec<(String, f64)> {
    let mut by_type: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (exercise, right) in exercises.iter().zip(right) {
        for name in ["all", exercise.question.kind.name()] {
            let (sum, count) = by_type.entry(name).or_default();
            *sum += f64::from(u8::from(*right));
            *count += 1.;
        }
    }
    by_type.into_iter().map(|(name, (sum, count))| (name.to_owned(), sum / count)).collect()
}

impl LanguageLesson {
    /// The batches of a block of steps.
    fn read(&self, seed: u64, mix: Mix) -> Result<Vec<Vec<Reading>>> {
        let readings: Vec<Reading> = (0..BLOCK * EXERCISES)
            .into_par_iter()
            .map(|index| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(index);
                reading(&self.tokenizer, mix, &mut rng)
            })
            .collect::<Result<_>>()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        Ok(rows::batches(readings, |reading| reading.exercise.ids.len(), BLOCK as usize, &mut rng))
    }
}

fn reading(tokenizer: &LlamaTokenizer, mix: Mix, rng: &mut ChaCha8Rng) -> Result<Reading> {
    loop {
        let kind = mix.pick(rng);
        let options = WorldOptions { long_scenes: 8..=40, ..WorldOptions::default() };
        let video = Video::random(rng, kind, &options);
        let Some(question) = exercise::choose(&video, kind, rng) else { continue };
        let phase = if rng.random_bool(0.5) { 0. } else { rng.random_range(0.0..1.0) };
        let moments = exercise::moments(&video, |_| phase);
        let exercise = exercise::exercise(&video, kind, question, moments, tokenizer, rng)?;
        let visual = exercise
            .moments
            .iter()
            .flat_map(|&(scene, progress)| {
                let scene = &video.scenes[scene];
                [
                    symbols::context(scene, &exercise.question.subject, progress),
                    symbols::content(scene, progress),
                ]
            })
            .map(|sum| distort(sum, rng))
            .collect();
        return Ok(Reading { exercise, visual });
    }
}

/// Real tokens will be read with errors: each symbol is a little weaker or stronger, some are missing.
fn distort(sum: Sum, rng: &mut impl Rng) -> Sum {
    let mut distorted = Vec::with_capacity(sum.len());
    for (symbol, weight) in sum {
        if !rng.random_bool(0.02) {
            distorted.push((symbol, weight * rng.random_range(0.75..1.25f32)));
        }
    }
    distorted
}
