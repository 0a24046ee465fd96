//! Software prefetches, and how far ahead they pay.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Bytes of a cache line.
pub(crate) const CACHE_LINE: usize = 64;
/// How many bytes ahead weights are prefetched, on processors that stall on memory otherwise: those with AMX take two thirds of the
/// time then, Zen 4 takes longer.
#[cfg(target_arch = "x86_64")]
pub(crate) const PREFETCH_DISTANCE: usize = 2048;
/// The same to the L2 cache, for weights of which every cache line is prefetched once.
#[cfg(target_arch = "x86_64")]
pub(crate) const PREFETCH_L2_DISTANCE: usize = 6144;

/// Prefetches a cache line to the L1 cache. The address need not be valid.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_l1(line: *const u8) {
    // SAFETY: every x86-64 has the instruction, and it changes nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// The same to the L2 cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_l2(line: *const u8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}
