//! Speech to text.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, Dtype};
use llamavid_speech as speech;
use napi::Env;
use napi::bindgen_prelude::AsyncBlock;
use napi_derive::napi;

use crate::arguments::whole;
use crate::device::{Cancellation, Device, flag};
use crate::handle::Handle;
use crate::promise::{call, promise};
use crate::subtitles::Subtitle;

/// A Whisper model. Holds its weights until `close`.
#[napi]
pub struct SpeechModel {
    handle: Handle<speech::SpeechModel>,
}

#[napi]
impl SpeechModel {
    /// Loads it from a folder or a `.pt` file.
    #[napi]
    pub fn load(
        env: &Env,
        path: String,
        device: &Device,
        #[napi(ts_arg_type = "'auto' | 'f32' | 'bf16' | 'f16'")] dtype: String,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<SpeechModel>> {
        promise(
            env,
            || Ok(speech::SpeechModel::load(path.into(), device.get()?, Dtype::parse(&dtype)?, flag(c))),
            |model| Self { handle: Handle::new("speech model", model) },
        )
    }

    /// The codes of the languages that it knows; none for a model of English.
    #[napi(getter)]
    pub fn languages(&self) -> napi::Result<Vec<String>> {
        call(|| Ok(self.handle.open()?.languages().to_vec()))
    }

    /// Frees the weights, behind what still runs. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

/// A piece of speech.
#[napi(object, object_from_js = false)]
pub struct SpeechSegment {
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
    /// Bytes of its window's text to a byte of it compressed.
    pub compression_ratio: f64,
    /// The temperature at which its window was written.
    pub temperature: f64,
}

/// What a window gave.
#[napi(object, object_from_js = false)]
pub struct SpeechProgress {
    /// Its pieces of speech.
    pub segments: Vec<SpeechSegment>,
    /// Those that the model is sure enough of, for a prompt.
    pub subtitles: Vec<Subtitle>,
    /// The language's code, for a model that knows several.
    pub language: Option<String>,
    /// Seconds that are written down.
    pub done: f64,
    /// Seconds of the sound.
    pub total: f64,
}

/// How a sound is written down; what is absent is as in the reference.
#[napi(object, object_to_js = false)]
pub struct TranscriptionOptions {
    /// The language's code; absent, it is told from the first 30 seconds.
    pub language: Option<String>,
    /// One after the other, until a text is believed.
    pub temperatures: Option<Vec<f64>>,
    /// A text that compresses better is not believed.
    pub compression_ratio: Option<f64>,
    /// The model is not sure of a text below it.
    pub log_probability: Option<f64>,
    /// Nobody speaks above it, unless the model is sure of the text.
    pub no_speech: Option<f64>,
    /// Whether a window is told what was said before it.
    pub with_previous_text: Option<bool>,
    /// Equal seeds give equal draws.
    pub seed: Option<f64>,
}

/// A sound that is being written down: heard twice, window after window.
#[napi]
pub struct Transcription {
    handle: Handle<speech::Transcription>,
}

#[napi]
impl Transcription {
    /// Nothing is heard yet.
    #[napi(factory)]
    pub fn start(model: &SpeechModel, o: TranscriptionOptions) -> napi::Result<Self> {
        call(|| {
            let usual = speech::Thresholds::default();
            let thresholds = speech::Thresholds {
                temperatures: o.temperatures.unwrap_or(usual.temperatures),
                compression_ratio: o.compression_ratio.unwrap_or(usual.compression_ratio),
                log_probability: o.log_probability.unwrap_or(usual.log_probability),
                no_speech: o.no_speech.unwrap_or(usual.no_speech),
                with_previous_text: o.with_previous_text.unwrap_or(usual.with_previous_text),
            };
            let options = speech::TranscriptionOptions { language: o.language, thresholds };
            let sampler = speech::SeededSampler::new(whole("seed", o.seed.unwrap_or(0.0))?);
            let model = model.handle.open()?;
            let transcription = speech::Transcription::new(&model, options, Box::new(sampler))?;
            Ok(Self { handle: Handle::new("transcription", transcription) })
        })
    }

    /// The first hearing: samples of 16 kHz, one channel.
    #[napi]
    pub fn measure(&self, env: &Env, samples: &[f32]) -> napi::Result<AsyncBlock<()>> {
        promise(env, || Ok(self.open()?.measure(samples.to_vec())), |()| ())
    }

    /// The second hearing, of the same samples; gives whether the next window is complete.
    #[napi]
    pub fn hear(&self, env: &Env, samples: &[f32]) -> napi::Result<AsyncBlock<bool>> {
        promise(env, || Ok(self.open()?.hear(samples.to_vec())), |complete| complete)
    }

    /// Writes the next window down; null behind the end.
    #[napi(ts_return_type = "Promise<SpeechProgress | null>")]
    pub fn next(
        &self,
        env: &Env,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<Option<SpeechProgress>>> {
        promise(env, || Ok(self.open()?.next(&flag(c))), |part| part.map(SpeechProgress::from))
    }

    /// Ends it. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }

    fn open(&self) -> runtime::Result<Arc<speech::Transcription>> {
        self.handle.open()
    }
}

impl From<speech::Progress> for SpeechProgress {
    fn from(part: speech::Progress) -> Self {
        let segments = part.segments.into_iter().map(|segment| SpeechSegment {
            start: segment.start,
            end: segment.end,
            text: segment.text,
            tokens: segment.tokens,
            avg_logprob: segment.avg_logprob,
            no_speech_prob: segment.no_speech_prob,
            compression_ratio: segment.compression_ratio,
            temperature: segment.temperature,
        });
        let subtitles = part.subtitles.into_iter();
        let subtitles =
            subtitles.map(|each| Subtitle { start: each.start_time, end: each.end_time, text: each.text });
        Self {
            segments: segments.collect(),
            subtitles: subtitles.collect(),
            language: part.language,
            done: part.done,
            total: part.total,
        }
    }
}
