//! Pre-training of the language model: frames as sums of symbols, questions, answers.
//!
//! The published language model has read the web; this one reads videos before there are any: the two tokens of a frame
//! are made of the symbols that the frame has (see [`crate::symbols`]), a little distorted.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use llamavid_models::language_model::LanguageModel;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_train::Parameters;
use llamavid_world::{QuestionType, Video, WorldOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Result;
use crate::course::{Blocks, Lesson, Step};
use crate::exercise::{self, Exercise, Mix};
use crate::rows::{self, Beside, Middle};
use crate::sizes::{LANGUAGE_WIDTH, language};
use crate::story::{self, Told};
use crate::symbols::{self, SYMBOLS, Sum};

/// An exercise with the symbols of its visual tokens.
pub struct Reading {
    exercise: Exercise,
    visual: Vec<Sum>,
    told: Vec<Told>,
}

/// How much the text that is no answer counts.
const TEXT: f64 = 0.05;
/// How much what it has to know on its way counts.
const STORY: f64 = 3.;

/// How often the system's sentences stand in front.
const WITH_SYSTEM: f64 = 0.15;

/// The lesson of one step.
pub struct LanguageLesson {
    /// Text to ids.
    pub tokenizer: LlamaTokenizer,
    /// The symbols' vectors (symbols, D).
    pub symbols: Tensor,
    /// What is shown at a share of the course.
    pub mix: fn(f64) -> Mix,
    /// Exercises of a step, on average.
    pub exercises: usize,
    /// What is read.
    pub readings: Blocks<Reading>,
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
    fn loss(&mut self, parameters: &Parameters, step: Step) -> Result<(Tensor, Vec<(String, f64)>)> {
        let Self { tokenizer, symbols, mix, exercises, readings } = self;
        let readings =
            readings.batch(step, |first| read(tokenizer, first.seed(), mix(first.share()), *exercises))?;
        let vb = parameters.var_builder();
        let model = model(&vb, tokenizer)?;
        let exercises: Vec<&Exercise> = readings.iter().map(|reading| &reading.exercise).collect();
        let visual: Vec<&Sum> = readings.iter().flat_map(|reading| &reading.visual).collect();
        let visual = blur(&sums(symbols, &visual)?, step.seed())?;
        let middle = |hidden: &Tensor, rows: usize| {
            let told = readings
                .iter()
                .enumerate()
                .flat_map(|(index, reading)| reading.told.iter().map(move |told| told.behind(index * rows)));
            Ok((story::loss(&vb, hidden, &told.collect::<Vec<_>>())? * STORY)?)
        };
        let beside = Beside { text: TEXT, middle: Some(Middle { layer: story::LAYER, loss: &middle }) };
        let answers = rows::answer(&model, &table(&vb, tokenizer)?, &visual, &exercises, &beside)?;
        Ok((answers.loss, tally(answers.right)))
    }
}

/// The share of right answers for each type of question, and in all.
pub fn tally(right: impl IntoIterator<Item = (QuestionType, bool)>) -> Vec<(String, f64)> {
    let mut by_type: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (kind, right) in right {
        for name in ["all", kind.name()] {
            let (sum, count) = by_type.entry(name).or_default();
            *sum += f64::from(u8::from(right));
            *count += 1.;
        }
    }
    by_type.into_iter().map(|(name, (sum, count))| (name.to_owned(), sum / count)).collect()
}

/// The batches of a block of steps.
fn read(tokenizer: &LlamaTokenizer, seed: u64, mix: Mix, exercises: usize) -> Result<Vec<Vec<Reading>>> {
    const STEPS: usize = Blocks::<Reading>::STEPS;
    let options = WorldOptions { long_scenes: mix.long.0..=mix.long.1, ..WorldOptions::default() };
    let readings: Vec<Reading> = (0..STEPS * exercises)
        .into_par_iter()
        .map(|index| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64);
            reading(tokenizer, mix, &options, &mut rng)
        })
        .collect::<Result<_>>()?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    Ok(rows::batches(readings, |reading| reading.exercise.ids.len(), STEPS, &mut rng))
}

fn reading(
    tokenizer: &LlamaTokenizer,
    mix: Mix,
    options: &WorldOptions,
    rng: &mut ChaCha8Rng,
) -> Result<Reading> {
    loop {
        let kind = mix.pick(rng);
        let video = Video::random(rng, kind, options);
        let phase = if rng.random_bool(0.5) { 0. } else { rng.random_range(0.0..1.0) };
        let moments = exercise::moments(&video, |_| phase);
        let (asked, moments) = exercise::conversation(&video, kind, moments, mix, rng);
        if asked.is_empty() {
            continue;
        }
        let exercise = exercise::exercise(&video, kind, &asked, moments, tokenizer, WITH_SYSTEM, rng)?;
        let subject = exercise.subject();
        let visual = exercise
            .moments
            .iter()
            .flat_map(|&(scene, progress)| {
                let scene = &video.scenes[scene];
                [symbols::context(scene, &subject, progress), symbols::content(scene, progress)]
            })
            .map(|sum| distort(sum, rng))
            .collect();
        let told = story::told(&video, &exercise, tokenizer);
        return Ok(Reading { exercise, visual, told });
    }
}

/// Adds noise to visual tokens (N, D): a seventh of their power, about what the Q-Former leaves unsaid.
fn blur(visual: &Tensor, seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // A uniform draw from -1 to 1 varies by a third.
    let reach = f64::from(visual.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt()) * (3f64 * 0.15).sqrt();
    let noise: Vec<f32> = (0..visual.elem_count()).map(|_| rng.random_range(-1f32..1.)).collect();
    Ok((visual + (Tensor::from_vec(noise, visual.shape(), &Device::Cpu)? * reach)?)?)
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
