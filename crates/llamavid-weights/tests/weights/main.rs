//! Tests of the crate as its users see it, in one binary because linking candle is what takes time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod features;
mod formats;
mod gguf;
mod hostile;
mod loading;
mod oracle;
mod writer;
mod written;
