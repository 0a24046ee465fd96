//! How weights and caches are stored: ggml's block formats, how they are made and read, and matrices in them.
//!
//! `block_format` has them all in portable code, which is the reference; `dequantise` reads them in f32 vectors, `integer_blocks` and
//! `interleaved_blocks` as the integers that they hold. A format as a type (`block_types`) lets all of these be compiled for each of them.

pub(crate) mod block_format;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) mod block_types;
#[cfg(target_arch = "x86_64")]
pub(crate) mod dequantise;
#[cfg(target_arch = "x86_64")]
pub(crate) mod integer_blocks;
pub(crate) mod interleaved;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) mod interleaved_blocks;
pub(crate) mod quantised_matrix;
mod quantiser;
