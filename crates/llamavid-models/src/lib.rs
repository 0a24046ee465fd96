//! The LLaMA-VID model: the numbers and the text between pixels, a question and an answer.
//!
//! Paper: "LLaMA-VID: An Image is Worth 2 Tokens in Large Language Models" (arXiv 2311.17043).
//! Opens no file and starts no thread: weights come in through a [`WeightSource`], files as bytes.

pub mod config;
pub mod error;
pub mod language_model;
mod linear;
pub mod observer;
pub mod preprocess;
pub mod prompt;
pub mod token_generation;
pub mod tokenizer;
pub mod visual_encoder;
mod weight_source;

pub use error::{Error, Result};
pub use weight_source::WeightSource;
