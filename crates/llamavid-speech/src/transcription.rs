//! A model on a device, and a sound that it writes down, a window after the other.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Device as TensorDevice;
use llamavid_models::prompt::subtitles::{SpeechSegment, from_speech};
use llamavid_runtime::{
    Cancellation, Device, Dtype, Error, ErrorCode, Reply, Result, Subtitle, Weights, run_aside,
};

use crate::features::SILENCE;
use crate::model_files::ModelFiles;
use crate::{
    Attempt, DecoderCache, Heard, LogMel, Padding, Sampler, Segment, SpeechTokenizer, Thresholds, Transcript,
    WINDOW_FRAMES, Whisper, window,
};

/// A Whisper model on a device. Holds its weights' memory.
#[derive(Debug)]
pub struct SpeechModel {
    model: Weights<Whisper>,
    tokenizer: Arc<SpeechTokenizer>,
    device: Arc<Device>,
}

impl SpeechModel {
    /// Loads it from a folder or a `.pt` file, on a thread of its own.
    pub fn load(path: PathBuf, device: Arc<Device>, dtype: Dtype, cancellation: Cancellation) -> Reply<Self> {
        run_aside("llamavid load", move || {
            cancellation.check()?;
            let files = ModelFiles::open(&path)?;
            cancellation.check()?;
            let (model, tokenizer) = files.load(dtype.on(&device), device.tensors())?;
            cancellation.check()?;
            let model = Weights::new(model, device.clone());
            Ok(Self { model, tokenizer: Arc::new(tokenizer), device })
        })
    }

    /// The codes of the languages that it knows; none for a model of English.
    pub fn languages(&self) -> &[String] {
        if self.tokenizer.is_multilingual() { self.tokenizer.languages() } else { &[] }
    }
}

/// How a sound is written down.
#[derive(Debug, Clone, Default)]
pub struct TranscriptionOptions {
    /// The language's code, `en`; absent, it is told from the first 30 seconds.
    pub language: Option<String>,
    /// When a text is not believed.
    pub thresholds: Thresholds,
}

/// What a window gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Its pieces of speech.
    pub segments: Vec<Segment>,
    /// Those that are surer than a log probability of -2, as subtitles.
    pub subtitles: Vec<Subtitle>,
    /// The language's code, for a model that knows several.
    pub language: Option<String>,
    /// Seconds that are written down.
    pub done: f64,
    /// Seconds of the sound.
    pub total: f64,
}

/// A sound that is being written down. It is heard twice: the spectrogram's floor lies below its loudest point, wherever
/// that is, and hours of it are not kept. Memory is that of a window.
#[derive(Debug)]
pub struct Transcription {
    device: Arc<Device>,
    shared: Arc<Mutex<State>>,
}

impl Transcription {
    /// Nothing is heard yet. Tokens at temperatures above 0 are drawn by `sampler`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a language that the model does not know.
    pub fn new(
        model: &SpeechModel,
        options: TranscriptionOptions,
        sampler: Box<dyn Sampler>,
    ) -> Result<Self> {
        let tokenizer = model.tokenizer.clone();
        let language = match &options.language {
            None => None,
            Some(code) => {
                let place = model.languages().iter().position(|known| known == code);
                let english = code == "en" && !tokenizer.is_multilingual();
                if place.is_none() && !english {
                    return Err(unknown_language(code, model.languages()));
                }
                place
            }
        };
        if options.thresholds.temperatures.is_empty() {
            return Err(Error::new(ErrorCode::InvalidArgument, "no temperature to write at was given"));
        }
        let bins = model.model.config().mel_bins;
        let state = State {
            model: Arc::clone(&model.model),
            tokenizer,
            sampler,
            thresholds: options.thresholds,
            language,
            bins,
            peak: SILENCE,
            samples: 0,
            heard: 0,
            spectrogram: Spectrogram { mel: Some(LogMel::new(bins)?), frames: Vec::new(), first: 0 },
            transcript: None,
        };
        Ok(Self { device: model.device.clone(), shared: Arc::new(Mutex::new(state)) })
    }

    /// The first hearing: some samples of 16 kHz, one channel, from -1 to 1.
    pub fn measure(&self, samples: Vec<f32>) -> Reply<()> {
        self.run(move |state| state.measure(&samples))
    }

    /// The second hearing, of the same samples. Gives whether the next window is complete.
    pub fn hear(&self, samples: Vec<f32>) -> Reply<bool> {
        self.run(move |state| state.hear(&samples))
    }

    /// Writes the next window down; none behind the end. What was not heard of it is taken for silence.
    pub fn next(&self, cancellation: &Cancellation) -> Reply<Option<Progress>> {
        let shared = self.shared.clone();
        let mut writing = None;
        self.device.run(cancellation, move |device| lock(&shared).write(&mut writing, device))
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Reply<T> {
        let shared = self.shared.clone();
        // On the device's thread, where nobody else waits for the state.
        self.device.run_once(&Cancellation::default(), move |_| work(&mut lock(&shared)))
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    // A step that panicked has failed its caller; what it left is a sound that is written in part.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown_language(code: &str, known: &[String]) -> Error {
    let message = format!("the language {code:?} is not one that the model knows");
    let hint = match known {
        [] => "It knows English only: en.".to_owned(),
        known => format!("It knows {}.", known.join(", ")),
    };
    Error::new(ErrorCode::InvalidArgument, message).with_hint(hint)
}

struct State {
    model: Arc<Whisper>,
    tokenizer: Arc<SpeechTokenizer>,
    sampler: Box<dyn Sampler>,
    thresholds: Thresholds,
    language: Option<usize>,
    bins: usize,
    /// The highest logarithm of the first hearing.
    peak: f32,
    /// Samples of the first hearing.
    samples: usize,
    /// Samples of the second.
    heard: usize,
    spectrogram: Spectrogram,
    /// Begun by the second hearing.
    transcript: Option<Transcript>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("transcript", &self.transcript).finish_non_exhaustive()
    }
}

/// The frames of one hearing that are still needed.
struct Spectrogram {
    mel: Option<LogMel>,
    frames: Vec<f32>,
    /// The place of the first of them.
    first: usize,
}

/// Where the work on a window is.
enum Writing {
    /// The rows of sound are there and the language is not.
    Encoded(DecoderCache),
    /// A text is being written at the temperature of this place.
    Attempt { empty: DecoderCache, attempt: Box<Attempt>, temperature: usize },
}

impl State {
    fn measure(&mut self, samples: &[f32]) -> Result<()> {
        if self.transcript.is_some() {
            return Err(Error::new(ErrorCode::InvalidArgument, "the second hearing has begun"));
        }
        self.samples += samples.len();
        if let Some(mel) = &mut self.spectrogram.mel {
            mel.push(samples, &mut self.spectrogram.frames)?;
        }
        self.raise_peak();
        Ok(())
    }

    fn raise_peak(&mut self) {
        self.peak = self.spectrogram.frames.drain(..).fold(self.peak, f32::max);
    }

    /// Ends the first hearing, if it has not.
    fn transcript(&mut self) -> Result<&mut Transcript> {
        if self.transcript.is_none() {
            if let Some(mel) = self.spectrogram.mel.take() {
                mel.finish(&mut self.spectrogram.frames)?;
            }
            self.raise_peak();
            self.spectrogram.mel = Some(LogMel::new(self.bins)?);
        }
        let (samples, thresholds, config) = (self.samples, self.thresholds.clone(), self.model.config());
        Ok(self.transcript.get_or_insert_with(|| Transcript::new(samples, thresholds, config)))
    }

    fn hear(&mut self, samples: &[f32]) -> Result<bool> {
        let window = self.transcript()?.window();
        self.heard += samples.len();
        let spectrogram = &mut self.spectrogram;
        if let Some(mel) = &mut spectrogram.mel {
            mel.push(samples, &mut spectrogram.frames)?;
        }
        let frames = spectrogram.first + spectrogram.frames.len() / self.bins;
        Ok(self.heard >= self.samples
            || window.is_none_or(|(seek, length)| length == WINDOW_FRAMES && frames >= seek + length))
    }

    /// A step of the next window's work.
    fn write(
        &mut self,
        writing: &mut Option<Writing>,
        device: &TensorDevice,
    ) -> Result<ControlFlow<Option<Progress>>> {
        let Some((seek, length)) = self.transcript()?.window() else { return Ok(ControlFlow::Break(None)) };
        let model = Arc::clone(&self.model);
        match writing.take() {
            None => {
                let needs_language = self.language.is_none() && self.tokenizer.is_multilingual();
                self.spectrogram.advance(seek, length, self.bins)?;
                let frames = &self.spectrogram.frames;
                if needs_language {
                    // The frames behind the sound are told from zeros here, as in the reference.
                    let mel = window(frames, self.bins, self.peak, Padding::Silence, device)?;
                    let mut cache = model.cache(&model.encode(&mel)?)?;
                    self.language = Some(self.tell_language(&mut cache)?);
                }
                let frames =
                    &self.spectrogram.frames[..(length * self.bins).min(self.spectrogram.frames.len())];
                let mel = window(frames, self.bins, self.peak, Padding::Zero, device)?;
                *writing = Some(Writing::Encoded(model.cache(&model.encode(&mel)?)?));
                Ok(ControlFlow::Continue(()))
            }
            Some(Writing::Encoded(empty)) => {
                *writing = Some(self.attempt(empty, 0)?);
                Ok(ControlFlow::Continue(()))
            }
            Some(Writing::Attempt { empty, mut attempt, temperature }) => {
                let Some(heard) = attempt.step(&model, &self.tokenizer, self.sampler.as_mut())? else {
                    *writing = Some(Writing::Attempt { empty, attempt, temperature });
                    return Ok(ControlFlow::Continue(()));
                };
                let more = temperature + 1 < self.thresholds.temperatures.len();
                if more && self.thresholds.refuse(&heard) {
                    *writing = Some(self.attempt(empty, temperature + 1)?);
                    return Ok(ControlFlow::Continue(()));
                }
                self.progress(heard).map(|progress| ControlFlow::Break(Some(progress)))
            }
        }
    }

    fn tell_language(&self, cache: &mut DecoderCache) -> Result<usize> {
        let logits = self.model.logits(&[self.tokenizer.start], &[0], cache)?;
        let logit = |place: usize| {
            let id = self.tokenizer.language(place) as usize;
            logits.first().and_then(|row| row.get(id)).copied().unwrap_or(f32::NEG_INFINITY)
        };
        let places = 0..self.tokenizer.languages().len();
        // The first of the largest.
        Ok(places.rev().max_by(|one, other| logit(*one).total_cmp(&logit(*other))).unwrap_or(0))
    }

    fn attempt(&mut self, empty: DecoderCache, temperature: usize) -> Result<Writing> {
        let value = self.thresholds.temperatures[temperature];
        let beginning = self.tokenizer.beginning(self.language);
        let (model, tokenizer) = (Arc::clone(&self.model), self.tokenizer.clone());
        let before = self.transcript()?.before();
        let attempt = Attempt::new(&model, &tokenizer, empty.clone(), before, &beginning, value);
        Ok(Writing::Attempt { empty, attempt: Box::new(attempt), temperature })
    }

    fn progress(&mut self, heard: Heard) -> Result<Progress> {
        let tokenizer = self.tokenizer.clone();
        let language = self.language.and_then(|place| tokenizer.languages().get(place).cloned());
        let transcript = self.transcript()?;
        let segments = transcript.take(heard, &tokenizer)?;
        let (done, total) = transcript.seconds();
        let speech = segments.iter().map(|segment| SpeechSegment {
            start: segment.start,
            end: segment.end,
            text: segment.text.clone(),
            avg_logprob: segment.avg_logprob,
        });
        let subtitles = from_speech(&speech.collect::<Vec<_>>());
        Ok(Progress { segments, subtitles, language, done, total })
    }
}

impl Spectrogram {
    /// Forgets the frames in front of `seek`; at the end of the sound, makes its last ones.
    fn advance(&mut self, seek: usize, length: usize, bins: usize) -> Result<()> {
        let heard = self.first + self.frames.len() / bins;
        if (heard < seek + length || length < WINDOW_FRAMES)
            && let Some(mel) = self.mel.take()
        {
            mel.finish(&mut self.frames)?;
        }
        let old = (seek - self.first).min(self.frames.len() / bins);
        self.frames.drain(..old * bins);
        self.first += old;
        Ok(())
    }
}
