//! Operations that the model shares, on any candle device, each with a backward pass.
//!
//! candle-nn's fused operations are fast and record no backward pass: the gradient stops without an error. Those
//! here are fused for f32 on a CPU, forwards and backwards. Elsewhere they are put together from candle's own
//! operations when a gradient can flow through them, and when none can they are kernels of this crate on a CUDA device and candle-nn's
//! in half precision on a CPU.
//!
//! `instructions` are what a processor has, `formats` how weights are stored, `threads` how work is shared out,
//! `products` the linear layers of a CPU. `operations` are the operations one by one, `attention` those over keys and values, `sublayers`
//! several of them in one, and `frozen` the same for weights that never change. `cuda` has their kernels for graphics processors, `devices`
//! what lies there. `docs/design/cpu-kernels.md` and `docs/design/cuda-kernels.md` tell more.

mod attention;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod devices;
mod formats;
mod frozen;
mod instructions;
#[cfg(test)]
mod noise;
mod operations;
mod products;
mod sublayers;
mod threads;

pub use attention::cached::{CachedRows, WIDEST_FUSED_HEAD, cached_attention, reads_cache, rotate_into};
pub use attention::folded::folded_attention;
pub use attention::{Heads, Mask, attention, multi_head_attention, packed_attention};
pub use devices::device_rows::DeviceRows;
pub use devices::ranks::Ranks;
pub use devices::staging::Staging;
pub use formats::block_format::BlockFormat;
pub use formats::interleaved::{INTERLEAVED_ROWS, interleaving_pays};
pub use formats::quantised_matrix::{QuantisedMatrix, SharedBytes, turned_row};
pub use frozen::{
    Activation, FrozenAttention, FrozenFeedForward, FrozenGelu, FrozenProjection, FrozenScratch, SomeRows,
    frozen_gelu,
};
#[cfg(target_arch = "x86_64")]
pub use instructions::amx::available as amx_available;
pub use instructions::processor::{PROCESSOR_VARIABLE, instruction_set};
pub use operations::cross_entropy::{IGNORED, cross_entropy, cross_entropy_sum};
pub use operations::dropout::Dropout;
pub use operations::embedding::embedding;
pub use operations::gelu::{gelu, quick_gelu};
pub use operations::largest::largest;
pub use operations::layer_norm::layer_norm;
pub use operations::linear::linear;
pub use operations::rms_norm::rms_norm;
pub use operations::rotary::rotary_embedding;
pub use operations::rows::mean_of_rows;
pub use operations::softmax::softmax;
pub use operations::swiglu::swiglu;
pub use operations::weight::Weight;
pub use sublayers::{
    Norm, NormPlace, Projection, added_projection, attention_block, gelu_block, normed_projections,
    swiglu_block,
};
