//! A batch of exercises for the language model: embeddings put together, loss and accuracy of the answers.

use candle_core::{D, Device, Tensor};
use llamavid_kernels::{cross_entropy, embedding};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::observer::Blind;
use llamavid_models::prompt::placeholders::IMAGE_TOKEN;

use llamavid_world::QuestionType;
use rand::Rng;
use rand::seq::SliceRandom;

use crate::Result;
use crate::exercise::Exercise;

/// What the language model made of a batch.
pub struct Answers {
    /// Mean cross entropy of the answers' ids.
    pub loss: Tensor,
    /// For each exercise what was asked, and whether every id of its answer is the likeliest.
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

/// The language model's loss on `exercises`, whose visual tokens, one after the other, are `visual` (N, D).
pub fn answer(
    model: &LanguageModel,
    table: &Tensor,
    visual: &Tensor,
    exercises: &[&Exercise],
) -> Result<Answers> {
    let longest = exercises.iter().map(|exercise| exercise.ids.len()).max().unwrap_or(0);
    let (vocabulary, width) = table.dims2()?;
    let mut next_visual = vocabulary as u32;
    let mut rows: Vec<u32> = Vec::with_capacity(exercises.len() * longest);
    let mut positions: Vec<u32> = Vec::new();
    let mut targets: Vec<i64> = Vec::new();
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
    }
    let both = Tensor::cat(&[table, visual], 0)?;
    let embeds = embedding(&both, &Tensor::new(rows, &Device::Cpu)?)?;
    let embeds = embeds.reshape((exercises.len(), longest, width))?;
    let hidden = model.forward_uncached(&embeds, None, &mut Blind)?.flatten(0, 1)?;
    let hidden = embedding(&hidden, &Tensor::new(positions, &Device::Cpu)?)?;
    let logits = model.logits(&hidden, &mut Blind)?;
    let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    let mut hits = best.iter().zip(&targets).map(|(best, target)| i64::from(*best) == *target);
    let right = exercises
        .iter()
        .map(|exercise| {
            let count = exercise.labels.iter().filter(|label| **label >= 0).count();
            // All of them are taken, right or not: the next exercise's follow.
            let wrong = hits.by_ref().take(count).filter(|hit| !hit).count();
            (exercise.question.kind, wrong == 0)
        })
        .collect();
    let loss = cross_entropy(&logits, &Tensor::new(targets, &Device::Cpu)?)?;
    Ok(Answers { loss, right })
}
