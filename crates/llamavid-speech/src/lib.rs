//! Whisper: what is said in a video, with its times.
//!
//! Paper: "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356). Reference: the public
//! implementation, `openai-whisper` 20250625, whose defaults the long-video script of LLaMA-VID uses; what each file here
//! takes from it is named there. Letters: T rows of time, S text positions, W width, B mel bins.
//!
//! The modules are our own and not candle-transformers': its decoder has neither fallback nor seeking, its mel spectrogram
//! wants the whole sound at once, and the products and norms of `llamavid-kernels`, which the tests hold, serve this model too.

mod config;
mod decoder;
mod decoding;
mod encoder;
mod features;
mod layer;
mod model;
mod model_files;
mod names;
mod rules;
mod tokenizer;
mod transcript;
mod transcription;

pub use config::SpeechConfig;
pub use decoding::{Attempt, Heard, Sampler, SeededSampler};
pub use features::{LogMel, Padding, SAMPLE_RATE, WINDOW_FRAMES, window};
pub use model::{DecoderCache, Whisper};
pub use model_files::ModelFiles;
pub use tokenizer::SpeechTokenizer;
pub use transcript::{Segment, Thresholds, Transcript};
pub use transcription::{Progress, SpeechModel, Transcription, TranscriptionOptions};
