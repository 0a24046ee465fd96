//! Operations that the model shares, on any candle device, each with a backward pass.
//!
//! candle-nn's fused operations are fast and record no backward pass: the gradient stops without an error. Those
//! here are fused for f32 on a CPU, forwards and backwards. Elsewhere they are put together from candle's own
//! operations when a gradient can flow through them, and when none can they are kernels of this crate on a CUDA device and candle-nn's
//! in half precision on a CPU.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod block_format;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod block_products;
mod block_quantiser;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod block_types;
#[cfg(target_arch = "x86_64")]
mod block_vectors;
mod blocks;
mod cached_attention;
mod cross_entropy;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod device_rows;
mod dropout;
mod embedding;
#[cfg(target_arch = "x86_64")]
mod float_rows;
mod folded_attention;
mod frozen;
mod gelu;
#[cfg(target_arch = "x86_64")]
mod int16;
#[cfg(target_arch = "x86_64")]
mod integer_blocks;
#[cfg(target_arch = "x86_64")]
mod integer_panels;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod integer_products;
#[cfg(target_arch = "x86_64")]
mod integer_rows;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod integer_vectors;
mod interleaved;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod interleaved_blocks;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod interleaved_products;
#[cfg(target_arch = "x86_64")]
mod interleaved_tiles;
mod largest;
mod layer_norm;
mod linear;
mod many_inputs;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon_products;
#[cfg(test)]
mod noise;
mod panels;
#[cfg(target_arch = "x86_64")]
mod pieces;
mod processor;
mod products;
mod quantised_matrix;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod quantised_rows;
mod ranks;
mod rms_norm;
mod rotary;
mod rows;
mod shared_floats;
mod softmax;
mod spin;
mod staging;
mod swiglu;
mod vector;
mod weight;

#[cfg(target_arch = "x86_64")]
pub use amx::available as amx_available;
pub use attention::{Heads, Mask, attention, multi_head_attention, packed_attention};
pub use block_format::BlockFormat;
pub use blocks::{
    Norm, NormPlace, Projection, added_projection, attention_block, gelu_block, normed_projections,
    swiglu_block,
};
pub use cached_attention::{CachedRows, WIDEST_FUSED_HEAD, cached_attention, reads_cache, rotate_into};
pub use cross_entropy::{IGNORED, cross_entropy, cross_entropy_sum};
pub use device_rows::DeviceRows;
pub use dropout::Dropout;
pub use embedding::embedding;
pub use folded_attention::folded_attention;
pub use frozen::{
    Activation, FrozenAttention, FrozenFeedForward, FrozenGelu, FrozenProjection, FrozenScratch, SomeRows,
    frozen_gelu,
};
pub use gelu::{gelu, quick_gelu};
pub use interleaved::{INTERLEAVED_ROWS, interleaving_pays};
pub use largest::largest;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use processor::{PROCESSOR_VARIABLE, instruction_set};
pub use quantised_matrix::{QuantisedMatrix, SharedBytes, turned_row};
pub use ranks::Ranks;
pub use rms_norm::rms_norm;
pub use rotary::rotary_embedding;
pub use rows::mean_of_rows;
pub use softmax::softmax;
pub use staging::Staging;
pub use swiglu::swiglu;
pub use weight::Weight;
