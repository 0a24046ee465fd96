//! Operations on an NVIDIA graphics processor: kernels in `kernels/`, what they are given, and their launch.
//!
//! The kernels are compiled to PTX when the crate is built with the feature `cuda`, and a driver makes them its own when the first
//! one is used. They have no backward pass: whatever has a gradient goes through candle's own operations.

#[cfg(any(feature = "cuda", test))]
mod arguments;
#[cfg(feature = "cuda")]
mod blocks;
#[cfg(feature = "cuda")]
mod device;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod emulation;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(feature = "cuda")]
mod operations;
#[cfg(feature = "cuda")]
mod row_products;
#[cfg(feature = "cuda")]
mod staging;
#[cfg(feature = "cuda")]
mod unpacked;

#[cfg(feature = "cuda")]
pub(crate) use self::blocks::{added_projection, attention_block, gelu_block, swiglu_block};
#[cfg(feature = "cuda")]
pub(crate) use self::device::takes;
#[cfg(feature = "cuda")]
pub(crate) use self::nccl::Communicators;
#[cfg(feature = "cuda")]
pub(crate) use self::operations::{
    attention, cached_attention, gelu, largest, multi_head_attention, norm, packed_attention, quick_gelu,
    read_rows, rotate_heads, rotate_into, store_rows, swiglu, takes_heads,
};
#[cfg(feature = "cuda")]
pub(crate) use self::row_products::row_products;
#[cfg(feature = "cuda")]
pub(crate) use self::staging::{Pinned, upload};
#[cfg(feature = "cuda")]
pub(crate) use self::unpacked::unpacked;

/// A source of kernels.
#[cfg(any(feature = "cuda", test))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Attention,
    AttentionRows,
    Rows,
    Cache,
    RowProducts,
    Unpack,
}

#[cfg(any(feature = "cuda", test))]
impl Source {
    #[cfg(test)]
    const ALL: [Self; 6] =
        [Self::Attention, Self::AttentionRows, Self::Rows, Self::Cache, Self::RowProducts, Self::Unpack];

    /// The file's, in `kernels/`.
    fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::AttentionRows => "attention_rows",
            Self::Rows => "rows",
            Self::Cache => "cache",
            Self::RowProducts => "row_products",
            Self::Unpack => "unpack",
        }
    }
}
