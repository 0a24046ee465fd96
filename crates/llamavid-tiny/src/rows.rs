//! A batch of exercises for the language model: embeddings put together, loss and accuracy of the answers.

use candle_core::{D, Device, Tensor};
use llamavid_kernels::{cross_entropy, embedding};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::prompt::placeholders::IMAGE_TOKEN;

use llamavid_world::QuestionType;
use rand::Rng;
use rand::seq::SliceRandom;

use crate::Result;
use crate::exercise::Exercise;

/// What the language model made of a batch.
pub struct Answers {
    /// Mean cross entropy of the answers' ids, and a share of that of the other text.
    pub loss: Tensor,
    /// For each question what was asked, and whether every id of its answer is the likeliest.
    pub right: Vec<(QuestionType, bool)>,
}

/// Splits what has `length` rows each into `count` batches of about as many rows, each of similar lengths, in random
/// order.
pub fn batches<T>(
    mut items: Vec<T>,
    length: impl Fn(&T) -> usize,
    count: usize,
    rng: &mut impl Rng,
) -> Vec<Vec<T>> {
    items.sort_by_key(&length);
    let total: usize = items.iter().map(&length).sum();
    let mut batches: Vec<Vec<T>> = std::iter::repeat_with(Vec::new).take(count).collect();
    let mut before = 0;
    for item in items {
        let place = (before * count / total.max(1)).min(count - 1);
        before += length(&item);
        batches[place].push(item);
    }
    batches.shuffle(rng);
    batches
}

/// What is asked beside the answers.
#[derive(Default)]
pub struct Beside<'a> {
    /// How much the loss of the text that is no answer counts.
    pub text: f64,
    /// A further loss.
    pub middle: Option<Middle<'a>>,
}

/// A loss of what a layer gives, (rows, D), and of how many rows each conversation has.
#[derive(Clone, Copy)]
pub struct Middle<'a> {
    /// The layer's name.
    pub layer: &'static str,
    /// The loss.
    pub loss: &'a dyn Fn(&Tensor, usize) -> Result<Tensor>,
}

/// Keeps what one layer gives.
struct Layer<'a>(&'a str, Option<Tensor>);

impl Observer for Layer<'_> {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        if name == self.0 {
            self.1 = Some(tensor.clone());
        }
    }

    fn wants(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The language model's loss on `exercises`, whose visual tokens, one after the other, are `visual` (N, D).
pub fn answer(
    model: &LanguageModel,
    table: &Tensor,
    visual: &Tensor,
    exercises: &[&Exercise],
    beside: &Beside,
) -> Result<Answers> {
    let longest = exercises.iter().map(|exercise| exercise.ids.len()).max().unwrap_or(0);
    let (vocabulary, width) = table.dims2()?;
    let mut next_visual = vocabulary as u32;
    let mut rows: Vec<u32> = Vec::with_capacity(exercises.len() * longest);
    let mut positions: Vec<u32> = Vec::new();
    let mut targets: Vec<i64> = Vec::new();
    let (mut text_positions, mut text_targets): (Vec<u32>, Vec<i64>) = (Vec::new(), Vec::new());
    for (index, exercise) in exercises.iter().enumerate() {
        for id in &exercise.ids {
            rows.push(if *id == IMAGE_TOKEN {
                next_visual += 1;
                next_visual - 1
            } else {
                *id as u32
            });
        }
        // Behind the end nothing is asked, and nothing looks there.
        rows.resize((index + 1) * longest, 0);
        for (position, label) in exercise.labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
            positions.push((index * longest + position - 1) as u32);
            targets.push(*label);
        }
        let words = exercise.ids.iter().zip(&exercise.labels).enumerate().skip(1);
        for (position, (id, _)) in
            words.filter(|(_, (id, label))| beside.text > 0. && **id >= 0 && **label < 0)
        {
            text_positions.push((index * longest + position - 1) as u32);
            text_targets.push(*id);
        }
    }
    let both = Tensor::cat(&[table, visual], 0)?;
    let embeds = embedding(&both, &Tensor::new(rows, &Device::Cpu)?)?;
    let embeds = embeds.reshape((exercises.len(), longest, width))?;
    let mut layer = Layer(beside.middle.map_or("", |middle| middle.layer), None);
    let all = model.forward_uncached(&embeds, None, &mut layer)?.flatten(0, 1)?;
    let logits_at = |positions: Vec<u32>| -> Result<Tensor> {
        let hidden = embedding(&all, &Tensor::new(positions, &Device::Cpu)?)?;
        Ok(model.logits(&hidden, &mut Blind)?)
    };
    let logits = logits_at(positions)?;
    let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    let mut hits = best.iter().zip(&targets).map(|(best, target)| i64::from(*best) == *target);
    let right = exercises
        .iter()
        .flat_map(|exercise| &exercise.asked)
        .map(|asked| {
            // All of them are taken, right or not: the next answer's follow.
            let wrong = hits.by_ref().take(asked.labels).filter(|hit| !hit).count();
            (asked.kind, wrong == 0)
        })
        .collect();
    let mut loss = cross_entropy(&logits, &Tensor::new(targets, &Device::Cpu)?)?;
    if !text_targets.is_empty() {
        let logits = logits_at(text_positions)?;
        loss = (loss + (cross_entropy(&logits, &Tensor::new(text_targets, &Device::Cpu)?)? * beside.text)?)?;
    }
    if let (Some(middle), Some(hidden)) = (beside.middle, layer.1) {
        loss = (loss + (middle.loss)(&hidden.flatten(0, 1)?, longest)?)?;
    }
    Ok(Answers { loss, right })
}
