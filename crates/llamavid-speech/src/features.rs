//! The log-mel spectrogram, made while the sound comes in.
//!
//! Reference: `log_mel_spectrogram` in `whisper/audio.py`, and librosa's `filters.mel` with Slaney's scale and norm, from
//! which its filters were taken: frames of 25 ms every 10 ms, reflected at the beginning, silence behind the end.
//! The reference floors at 80 dB below the loudest point of the whole sound, so that point is to be found first.

use std::f64::consts::PI;

use candle_core::{Device, Tensor};
use llamavid_kernels::linear;
use llamavid_runtime::Result;

/// Samples of a second.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples of a frame: 25 ms.
const FRAME: usize = 400;
/// Samples from frame to frame: 10 ms.
pub(crate) const HOP: usize = 160;
/// Frames of a window: 30 s.
pub const WINDOW_FRAMES: usize = 3000;
/// The logarithm of a frame without any sound.
pub(crate) const SILENCE: f32 = -10.0;
/// Below the loudest point by more than this (in tens of dB) nothing is told apart.
const RANGE: f32 = 8.0;

/// Frequencies of a frame.
const FREQUENCIES: usize = FRAME / 2 + 1;

/// Samples in, frames out. Memory is that of a frame.
///
/// The Fourier transform is the matrix product that it is: at 400 samples a fast one would save a few seconds of an hour
/// of sound.
#[derive(Debug)]
pub struct LogMel {
    /// (2 · FREQUENCIES, FRAME): cosines, then sines, each under the periodic Hann window.
    waves: Tensor,
    /// For each mel bin the first frequency that it weighs, and the weights from there on.
    filters: Vec<(usize, Vec<f32>)>,
    /// Samples that no frame has left behind yet.
    pending: Vec<f32>,
    reflected: bool,
}

impl LogMel {
    /// A spectrogram of `bins` mel bins.
    ///
    /// # Errors
    /// None but of a bug.
    pub fn new(bins: usize) -> Result<Self> {
        let turn = |share: f64| (2.0 * PI * share).sin_cos();
        let taper = |place: usize| 0.5 - 0.5 * turn(place as f64 / FRAME as f64).1;
        let wave = |row: usize, place: usize| {
            // Whole turns are left out, so that the angle is exact.
            let (sine, cosine) = turn((row % FREQUENCIES * place % FRAME) as f64 / FRAME as f64);
            (taper(place) * if row < FREQUENCIES { cosine } else { sine }) as f32
        };
        let rows = 2 * FREQUENCIES;
        let waves: Vec<f32> = (0..rows * FRAME).map(|index| wave(index / FRAME, index % FRAME)).collect();
        Ok(Self {
            waves: Tensor::from_vec(waves, (rows, FRAME), &Device::Cpu)?,
            filters: mel_filters(bins),
            pending: Vec::new(),
            reflected: false,
        })
    }

    /// Appends the frames that `samples`, which follow those before, complete to `frames`: of each bin the logarithm
    /// (base 10) of the power, at least [`SILENCE`].
    ///
    /// # Errors
    /// None but of a bug.
    pub fn push(&mut self, samples: &[f32], frames: &mut Vec<f32>) -> Result<()> {
        self.pending.extend_from_slice(samples);
        if !self.reflected {
            if self.pending.len() <= FRAME / 2 {
                return Ok(());
            }
            let reflection: Vec<f32> = self.pending[1..=FRAME / 2].iter().rev().copied().collect();
            self.pending.splice(0..0, reflection);
            self.reflected = true;
        }
        let windows: Vec<f32> = self.pending.windows(FRAME).step_by(HOP).flatten().copied().collect();
        let count = windows.len() / FRAME;
        if count == 0 {
            return Ok(());
        }
        let waves = linear(&Tensor::from_vec(windows, (count, FRAME), &Device::Cpu)?, &self.waves, None)?;
        for row in waves.to_vec2::<f32>()? {
            let (cosines, sines) = row.split_at(FREQUENCIES);
            let powers: Vec<f32> =
                cosines.iter().zip(sines).map(|(one, other)| one * one + other * other).collect();
            frames.extend(self.filters.iter().map(|(first, weights)| {
                let power: f32 =
                    weights.iter().zip(&powers[*first..]).map(|(weight, power)| weight * power).sum();
                // A sample may be no number, or infinite.
                let power = if power.is_nan() { 0.0 } else { power };
                power.clamp(1e-10, 1e10).log10()
            }));
        }
        self.pending.drain(..count * HOP);
        Ok(())
    }

    /// Appends the frames that still hold something of the sound.
    ///
    /// # Errors
    /// As [`LogMel::push`].
    pub fn finish(mut self, frames: &mut Vec<f32>) -> Result<()> {
        self.push(&[0.0; FRAME + HOP], frames)
    }
}

/// What the encoder reads: (1, WINDOW_FRAMES, B) of `frames`, row after row, behind whose end there is `silence`.
///
/// `peak` is the highest logarithm of the whole sound.
///
/// # Errors
/// Those of the device.
pub fn window(frames: &[f32], bins: usize, peak: f32, silence: Padding, device: &Device) -> Result<Tensor> {
    let floor = peak - RANGE;
    let scaled = |value: f32| (value.max(floor) + 4.0) / 4.0;
    let mut values: Vec<f32> = frames.iter().take(WINDOW_FRAMES * bins).map(|value| scaled(*value)).collect();
    let filling = match silence {
        Padding::Silence => scaled(SILENCE),
        Padding::Zero => 0.0,
    };
    values.resize(WINDOW_FRAMES * bins, filling);
    Ok(Tensor::from_vec(values, (1, WINDOW_FRAMES, bins), device)?)
}

/// What stands behind the end of the sound. The reference does both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Frames without sound, where the language is told.
    Silence,
    /// Zeros of the scaled logarithm, where text is written.
    Zero,
}

/// Slaney's mel scale: linear up to 1000 Hz, logarithmic above.
fn hertz(mel: f64) -> f64 {
    const LINEAR: f64 = 200.0 / 3.0;
    match mel - 15.0 {
        above if above >= 0.0 => 1000.0 * (above * 6.4f64.ln() / 27.0).exp(),
        _ => mel * LINEAR,
    }
}

fn mel(hertz: f64) -> f64 {
    match hertz / 1000.0 {
        above if above >= 1.0 => 15.0 + above.ln() * 27.0 / 6.4f64.ln(),
        below => below * 15.0,
    }
}

/// Triangles over the frequencies, of equal area.
fn mel_filters(bins: usize) -> Vec<(usize, Vec<f32>)> {
    let top = mel(SAMPLE_RATE as f64 / 2.0);
    let corner = |index: usize| hertz(top * index as f64 / (bins + 1) as f64);
    let frequency = |place: usize| (place * SAMPLE_RATE) as f64 / FRAME as f64;
    (0..bins)
        .map(|bin| {
            let [low, middle, high] = [corner(bin), corner(bin + 1), corner(bin + 2)];
            let weight = |place: usize| {
                let rising = (frequency(place) - low) / (middle - low);
                let falling = (high - frequency(place)) / (high - middle);
                (rising.min(falling).max(0.0) * 2.0 / (high - low)) as f32
            };
            let weights: Vec<f32> = (0..FREQUENCIES).map(weight).collect();
            let first = weights.iter().position(|weight| *weight > 0.0).unwrap_or(0);
            let end = weights.iter().rposition(|weight| *weight > 0.0).map_or(first, |last| last + 1);
            (first, weights[first..end].to_vec())
        })
        .collect()
}
