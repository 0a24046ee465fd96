//! From the texts of windows to pieces with times, and to the next window.
//!
//! Reference: `transcribe` in `whisper/transcribe.py`, with the defaults that the long-video script of LLaMA-VID uses.

use llamavid_runtime::Result;

use crate::decoding::Heard;
use crate::features::{HOP, SAMPLE_RATE, WINDOW_FRAMES};
use crate::{SpeechConfig, SpeechTokenizer};

/// Frames of a step of time: 0.02 s.
const FRAMES_OF_A_STEP: usize = 2;

/// When a text is not believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// One after the other, until a text is believed or none is left.
    pub temperatures: Vec<f64>,
    /// A text that compresses better repeats itself.
    pub compression_ratio: f64,
    /// The model is not sure of a text below it.
    pub log_probability: f64,
    /// Nobody speaks above it, unless the model is sure of the text.
    pub no_speech: f64,
    /// Whether a window is told what was said before it.
    pub with_previous_text: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            compression_ratio: 2.4,
            log_probability: -1.0,
            no_speech: 0.6,
            with_previous_text: true,
        }
    }
}

impl Thresholds {
    /// Whether the next temperature is to be tried.
    pub fn refuse(&self, heard: &Heard) -> bool {
        let unsure = heard.avg_logprob < self.log_probability;
        let silent = unsure && heard.no_speech_prob > self.no_speech;
        !silent && (unsure || heard.compression_ratio > self.compression_ratio)
    }

    /// Whether a window holds no speech.
    fn is_silence(&self, heard: &Heard) -> bool {
        heard.no_speech_prob > self.no_speech && heard.avg_logprob <= self.log_probability
    }
}

/// A piece of speech.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// The words, usually behind a space.
    pub text: String,
    /// Words and the times around them.
    pub tokens: Vec<u32>,
    /// Mean log probability of its window's tokens.
    pub avg_logprob: f64,
    /// Probability that nobody speaks in its window.
    pub no_speech_prob: f64,
    /// That of its window's text.
    pub compression_ratio: f64,
    /// The temperature at which its window was written.
    pub temperature: f64,
}

/// How far a sound is written down.
#[derive(Debug)]
pub struct Transcript {
    thresholds: Thresholds,
    /// Frames of the sound.
    frames: usize,
    /// The frame at which the next window begins.
    seek: usize,
    /// Tokens that the next window may be told, the last ones.
    before: Vec<u32>,
    kept: usize,
}

impl Transcript {
    /// Nothing of a sound of `samples` is written yet.
    pub fn new(samples: usize, thresholds: Thresholds, config: &SpeechConfig) -> Self {
        let kept = config.text_context / 2 - 1;
        Self { thresholds, frames: samples / HOP, seek: 0, before: Vec::new(), kept }
    }

    /// When a text is not believed.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// First frame and length of the next window; none behind the end.
    pub fn window(&self) -> Option<(usize, usize)> {
        let left = self.frames.checked_sub(self.seek).filter(|left| *left > 0)?;
        Some((self.seek, left.min(WINDOW_FRAMES)))
    }

    /// What was said before the next window.
    pub fn before(&self) -> &[u32] {
        &self.before
    }

    /// Seconds that are written down, and all of them.
    pub fn seconds(&self) -> (f64, f64) {
        (seconds(self.seek.min(self.frames)), seconds(self.frames))
    }

    /// Takes the text of the window, gives its pieces and goes on behind the last time that is sure.
    ///
    /// # Errors
    /// `INTERNAL` for tokens that the vocabulary has not.
    pub fn take(&mut self, heard: Heard, tokenizer: &SpeechTokenizer) -> Result<Vec<Segment>> {
        let Some((seek, length)) = self.window() else { return Ok(Vec::new()) };
        if self.thresholds.is_silence(&heard) {
            self.seek += length;
            return Ok(Vec::new());
        }
        let first_time = tokenizer.time(0);
        let offset = seconds(seek);
        let step = |token: u32| token.saturating_sub(first_time) as usize;
        let later = |token: u32| offset + step(token) as f64 * seconds(FRAMES_OF_A_STEP);
        let is_time = |token: &u32| *token >= first_time;
        let tokens = &heard.tokens;
        // Behind the first of two times in a row a piece ends.
        let mut ends: Vec<usize> =
            (1..tokens.len()).filter(|end| tokens[*end - 1..=*end].iter().all(is_time)).collect();
        let ends_with_one_time =
            matches!(tokens.as_slice(), [.., word, time] if !is_time(word) && is_time(time));

        let mut pieces = Vec::new();
        let mut skipped = length;
        if ends.is_empty() {
            let last = tokens.iter().rev().find(|token| is_time(token)).filter(|last| **last != first_time);
            let end = last.map_or(offset + seconds(length), |last| later(*last));
            pieces.push((offset, end, tokens.as_slice()));
        } else {
            if ends_with_one_time {
                ends.push(tokens.len());
            }
            let mut begin = 0;
            for end in ends {
                let piece = &tokens[begin..end];
                if let Some((first, last)) = piece.first().zip(piece.last()) {
                    pieces.push((later(*first), later(*last), piece));
                }
                begin = end;
            }
            // Behind a last time that stands alone nobody speaks; a piece without its end is heard again.
            if !ends_with_one_time {
                skipped = step(tokens[begin - 1]) * FRAMES_OF_A_STEP;
            }
        }
        // The rules leave no other text; yet a window that does not go on would come for ever.
        self.seek += if skipped == 0 { length } else { skipped };

        let mut segments = Vec::new();
        for (start, end, tokens) in pieces {
            let words: Vec<u32> = tokens.iter().copied().filter(|token| *token < tokenizer.end).collect();
            let text = tokenizer.decode(&words)?;
            if start == end || text.trim().is_empty() {
                continue;
            }
            self.before.extend_from_slice(tokens);
            segments.push(Segment {
                start,
                end,
                text,
                tokens: tokens.to_vec(),
                avg_logprob: heard.avg_logprob,
                no_speech_prob: heard.no_speech_prob,
                compression_ratio: heard.compression_ratio,
                temperature: heard.temperature,
            });
        }
        // What was drawn at a high temperature is no example to go on from.
        if !self.thresholds.with_previous_text || heard.temperature > 0.5 {
            self.before.clear();
        }
        self.before.drain(..self.before.len().saturating_sub(self.kept));
        Ok(segments)
    }
}

fn seconds(frames: usize) -> f64 {
    (frames * HOP) as f64 / SAMPLE_RATE as f64
}
