//! From logits to the next id.
//!
//! Reference: transformers 4.31 `generate`. Its order: repetition penalty (a processor) first, then the warpers
//! temperature, top-k and top-p.

use candle_core::Error as TensorError;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::{Error, Result};

/// How the next id is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits. 0 takes the best id always (greedy) and leaves `top_k`, `top_p` and `seed` without effect.
    pub temperature: f64,
    /// Only the best `top_k` ids stay, and those that tie with the last of them. `None` keeps all.
    pub top_k: Option<usize>,
    /// Only the most likely ids stay that reach this probability together; above 0, at most 1.
    pub top_p: f64,
    /// Divides positive logits of earlier ids and multiplies negative ones. 1 changes nothing.
    pub repetition_penalty: f64,
    /// Start of the random numbers: the same seed gives the same ids.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// Greedy. The reference samples with top-k 50 whenever it samples, so that is the default here too.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: Some(50), top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingOptions {
    /// [`Error::Argument`] for the first value outside its range.
    pub fn validate(&self) -> Result<()> {
        let Self { temperature, top_k, top_p, repetition_penalty, seed: _ } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::Argument(format!("temperature is {temperature}, it must be 0 or more")));
        }
        if top_k == Some(0) {
            return Err(Error::Argument("top-k is 0, it must be at least 1".to_string()));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Argument(format!("top-p is {top_p}, it must be above 0 and at most 1")));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Err(Error::Argument(format!(
                "repetition penalty is {repetition_penalty}, it must be above 0"
            )));
        }
        Ok(())
    }
}

/// Chooses ids, one after the other. Holds the state of the random numbers.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    random: ChaCha12Rng,
}

impl Sampler {
    /// Checks the options, see [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions) -> Result<Self> {
        options.validate()?;
        let random = ChaCha12Rng::seed_from_u64(options.seed);
        Ok(Self { options, random })
    }

    /// Whether the next id is that of the largest logit, whatever came before.
    pub(super) fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0 && self.options.repetition_penalty == 1.0
    }

    /// The next id. `previous` are the ids that the repetition penalty counts as used.
    ///
    /// Fails when a logit is NaN or infinite. Of equal best logits the first id wins.
    pub fn sample(&mut self, logits: &[f32], previous: &[u32]) -> Result<u32> {
        let logits = self.penalised(logits, previous)?;
        if self.options.temperature == 0.0 {
            return Ok(best(&logits));
        }
        let probabilities = self.warped(&logits);
        let mut left = self.random.random::<f64>();
        let mut chosen = 0;
        for (id, &probability) in probabilities.iter().enumerate() {
            if probability > 0.0 {
                chosen = id;
                left -= probability;
                if left < 0.0 {
                    break;
                }
            }
        }
        Ok(chosen as u32)
    }

    /// The probability of each id without a history; all of it on the best id when greedy. Sums to 1.
    pub fn probabilities(&self, logits: &[f32]) -> Result<Vec<f32>> {
        let logits = self.penalised(logits, &[])?;
        if self.options.temperature == 0.0 {
            let mut probabilities = vec![0.0; logits.len()];
            probabilities[best(&logits) as usize] = 1.0;
            return Ok(probabilities);
        }
        Ok(self.warped(&logits).into_iter().map(|probability| probability as f32).collect())
    }

    fn penalised(&self, logits: &[f32], previous: &[u32]) -> Result<Vec<f32>> {
        if logits.is_empty() {
            return Err(Error::Argument("there are no logits to sample from".to_string()));
        }
        let mut bad = logits.iter().enumerate().filter(|(_, logit)| !logit.is_finite());
        if let Some((id, logit)) = bad.next() {
            return Err(Error::Tensor(TensorError::Msg(format!(
                "{} of {} logits are not finite (id {id}: {logit}): weights are damaged, or the dtype is too \
                 narrow for this model, which f32 would show",
                1 + bad.count(),
                logits.len()
            ))));
        }
        let mut logits = logits.to_vec();
        let penalty = self.options.repetition_penalty as f32;
        if penalty != 1.0 {
            let mut used = previous.to_vec();
            used.sort_unstable();
            used.dedup();
            for id in used {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                }
            }
        }
        Ok(logits)
    }

    /// Probabilities after temperature, top-k and top-p. In f64, so that they do not depend on the order of sums.
    fn warped(&self, logits: &[f32]) -> Vec<f64> {
        let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        // Best first; among equals the first id first.
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let best_first = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if let Some(top_k) = self.options.top_k.filter(|&top_k| top_k < order.len()) {
            let (_, &mut last, _) = order.select_nth_unstable_by(top_k - 1, best_first);
            let threshold = logits[last];
            order.retain(|&id| logits[id] >= threshold);
        }
        let mut weights = vec![0.0; logits.len()];
        for &id in &order {
            weights[id] = ((logits[id] as f64 - maximum) / self.options.temperature).exp();
        }
        if self.options.top_p < 1.0 {
            order.sort_unstable_by(best_first);
            let total: f64 = order.iter().map(|&id| weights[id]).sum();
            let mut reached = 0.0;
            for &id in &order {
                // The id that crosses the line stays; ids behind it go. The best one always stays.
                if reached >= self.options.top_p * total {
                    weights[id] = 0.0;
                } else {
                    reached += weights[id];
                }
            }
        }
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
        weights
    }
}

fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}
