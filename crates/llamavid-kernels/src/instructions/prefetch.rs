//! Software prefetches, and how far ahead they pay.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Bytes of a cache line.
pub(crate) const CACHE_LINE: usize = 64;
/// How many bytes ahead weights are prefetched that lie row after row: processors with AMX take two thirds of the time then, Zen 4 up to
/// a tenth less.
#[cfg(target_arch = "x86_64")]
pub(crate) const PREFETCH_DISTANCE: usize = 2048;
/// The same for weights of which every cache line is prefetched once: to the L1 cache, which Zen 4 wants beside several rows of `x`, or to
/// the L2 cache, as those with AMX do.
#[cfg(target_arch = "x86_64")]
const PREFETCH_L1_DISTANCE: usize = 4096;
#[cfg(target_arch = "x86_64")]
pub(crate) const PREFETCH_L2_DISTANCE: usize = 6144;

/// Prefetches to a level of the caches what lies ahead of a cache line, in memory that is read front to back; to none with 0. The address
/// need not be valid.
#[inline(always)]
pub(crate) fn prefetch_ahead<const LEVEL: usize>(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    match LEVEL {
        1 => prefetch_l1(line.wrapping_add(PREFETCH_L1_DISTANCE)),
        2 => prefetch_l2(line.wrapping_add(PREFETCH_L2_DISTANCE)),
        _ => {}
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

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
