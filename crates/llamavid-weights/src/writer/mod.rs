//! Weight files written: safetensors, and torch's zip format, which the reference reads.
//!
//! A writer fills any stream and keeps one tensor in memory at a time beside those it is given.

mod numbers;
mod safetensors_writer;

pub use safetensors_writer::write_safetensors;
