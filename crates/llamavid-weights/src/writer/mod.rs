//! Weight files written: safetensors, and torch's zip format, which the reference reads.
//!
//! A writer fills a stream and keeps no copy of the tensors.

mod numbers;
mod safetensors_writer;
mod torch_writer;

pub use safetensors_writer::write_safetensors;
pub use torch_writer::{write_torch, write_torch_streamed};
