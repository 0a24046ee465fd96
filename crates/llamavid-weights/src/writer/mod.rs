//! Weight files written: safetensors, GGUF, and torch's zip format, which the reference reads.
//!
//! A writer fills a stream and keeps no copy of the tensors.

mod gguf_writer;
mod interleaved_copy;
mod numbers;
mod safetensors_writer;
mod torch_writer;
mod whole_pages;

pub use gguf_writer::{GgufTensor, GgufValue, GgufWriter};
pub use interleaved_copy::InterleavedCopy;
pub use safetensors_writer::{SafetensorsWriter, TensorHeader, write_safetensors};
pub use torch_writer::{write_torch, write_torch_streamed};
pub use whole_pages::WholePages;
