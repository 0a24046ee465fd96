//! A window written as text at one temperature, a token a step.
//!
//! Reference: `DecodingTask` and `GreedyDecoder` in `whisper/decoding.py`.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use llamavid_runtime::{Error, ErrorCode, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::rules::{log_sum_exp, restrict};
use crate::{DecoderCache, SpeechTokenizer, Whisper};

/// Gives numbers from 0 up to 1, by which tokens are drawn.
pub trait Sampler: Send {
    /// The next one.
    fn draw(&mut self) -> f64;
}

/// Equal seeds give equal numbers.
#[derive(Debug)]
pub struct SeededSampler(ChaCha8Rng);

impl SeededSampler {
    /// Begins with `seed`.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }
}

impl Sampler for SeededSampler {
    fn draw(&mut self) -> f64 {
        self.0.random()
    }
}

/// What was written for a window, and how sure the model is.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// Words and times, without the beginning and the end.
    pub tokens: Vec<u32>,
    /// The words.
    pub text: String,
    /// Mean log probability of the tokens.
    pub avg_logprob: f64,
    /// Probability that nobody speaks.
    pub no_speech_prob: f64,
    /// Bytes of the text to a byte of it compressed: high for a text that repeats itself.
    pub compression_ratio: f64,
    /// The temperature that it was written at.
    pub temperature: f64,
}

/// A text that is being written.
#[derive(Debug)]
pub struct Attempt {
    cache: DecoderCache,
    /// The beginning and what was written.
    tokens: Vec<u32>,
    /// Where the beginning ends.
    begin: usize,
    /// Where the beginning's own first token is, behind what was said before.
    start: usize,
    temperature: f64,
    log_probability: f64,
    no_speech: f64,
}

impl Attempt {
    /// Begins with what was said before, of which the last part is kept, and `beginning`.
    pub fn new(
        model: &Whisper,
        tokenizer: &SpeechTokenizer,
        cache: DecoderCache,
        before: &[u32],
        beginning: &[u32],
        temperature: f64,
    ) -> Self {
        let mut tokens = Vec::new();
        if !before.is_empty() {
            let room = model.config().text_context / 2 - 1;
            tokens.push(tokenizer.previous);
            tokens.extend_from_slice(&before[before.len().saturating_sub(room)..]);
        }
        let start = tokens.len();
        tokens.extend_from_slice(beginning);
        let begin = tokens.len();
        Self { cache, tokens, begin, start, temperature, log_probability: 0.0, no_speech: 0.0 }
    }

    /// Writes a token; gives the text once it is at its end.
    ///
    /// # Errors
    /// `MODEL_INVALID` where the model's numbers overflow, and those of the device.
    pub fn step(
        &mut self,
        model: &Whisper,
        tokenizer: &SpeechTokenizer,
        sampler: &mut dyn Sampler,
    ) -> Result<Option<Heard>> {
        let written = self.tokens.len() - self.begin;
        let mut logits = if written == 0 {
            let rows = model.logits(&self.tokens, &[self.start, self.begin - 1], &mut self.cache)?;
            let [at_start, last] = <[Vec<f32>; 2]>::try_from(rows)
                .map_err(|rows| Error::new(ErrorCode::Internal, format!("{} rows of logits", rows.len())))?;
            let no_speech = at_start.get(tokenizer.no_speech as usize).copied().unwrap_or(f32::NEG_INFINITY);
            self.no_speech = (f64::from(no_speech) - log_sum_exp(&at_start)).exp();
            last
        } else {
            model.logits(&self.tokens[self.tokens.len() - 1..], &[0], &mut self.cache)?.swap_remove(0)
        };
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::new(ErrorCode::ModelInvalid, "the speech model computes no numbers")
                .with_hint("Load it as f32, or use another one."));
        }
        restrict(&mut logits, &self.tokens[self.begin..], tokenizer);
        let chosen = match self.temperature {
            0.0 => likeliest(&logits),
            temperature => drawn(&logits, temperature, sampler.draw()),
        };
        self.log_probability += f64::from(logits[chosen]) - log_sum_exp(&logits);
        let ended = chosen as u32 == tokenizer.end;
        if !ended {
            self.tokens.push(chosen as u32);
        }
        let context = model.config().text_context;
        if !ended && written + 1 < context / 2 && self.tokens.len() <= context {
            return Ok(None);
        }
        let tokens = self.tokens[self.begin..].to_vec();
        let text = tokenizer.decode(&tokens)?.trim().to_owned();
        Ok(Some(Heard {
            avg_logprob: self.log_probability / (tokens.len() + 1) as f64,
            no_speech_prob: self.no_speech,
            compression_ratio: compression_ratio(&text)?,
            temperature: self.temperature,
            tokens,
            text,
        }))
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

/// The token at the place `share` of all probability.
fn drawn(logits: &[f32], temperature: f64, share: f64) -> usize {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from(logit - largest) / temperature).exp();
    let mut left = share * logits.iter().map(|logit| weight(*logit)).sum::<f64>();
    let mut chosen = 0;
    for (index, logit) in logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY) {
        chosen = index;
        left -= weight(*logit);
        if left < 0.0 {
            break;
        }
    }
    chosen
}

/// Bytes of a text to a byte of it compressed. At its highest level only, this zlib finds matches of three bytes, as the
/// reference's does at its usual one; builds of zlib still differ by a few bytes.
fn compression_ratio(text: &str) -> Result<f64> {
    let failed = |error| Error::new(ErrorCode::Internal, format!("the text cannot be compressed: {error}"));
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).map_err(failed)?;
    Ok(text.len() as f64 / encoder.finish().map_err(failed)?.len() as f64)
}
