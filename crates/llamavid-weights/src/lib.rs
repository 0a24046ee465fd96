//! Weight files read as data: torch's zip and older stream format, safetensors, shards with an index, GGUF.
//!
//! A [`Checkpoint`] is a set of named tensors over one or more files; a [`Loader`] builds a part of the model from it,
//! strictly. No file is trusted: pickles are read without running anything they name, every size is checked
//! against the file before memory is taken, and an index cannot lead out of its folder.

mod checkpoint;
mod elements;
mod error;
pub mod gguf;
mod index_file;
pub mod key_table;
mod loader;
mod mapped_file;
mod part;
pub mod pickle;
mod quantisation;
mod safetensors_file;
mod tensor_file;
mod torch;
pub mod writer;

pub use checkpoint::Checkpoint;
pub use error::{Error, ErrorKind, Result, shown};
pub use key_table::KeyTable;
pub use llamavid_kernels::{BlockFormat, interleaving_pays};
pub use loader::{Found, Loader};
pub use part::{Part, position_side};
pub use quantisation::Quantisation;
pub use torch::torch_numbers;
