//! What the processor has, and vectors of it: nothing here knows a layer or a format.
//!
//! `processor` chooses once per process; `vector` compiles a loop for each width and picks one when it runs; `integer_vectors` are the
//! integer instructions of each set behind one trait; `amx` and `neon_dot` are instructions that Rust has no stable functions for.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod horizontal_sums;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) mod integer_vectors;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_dot;
pub(crate) mod prefetch;
pub(crate) mod processor;
pub(crate) mod vector;
