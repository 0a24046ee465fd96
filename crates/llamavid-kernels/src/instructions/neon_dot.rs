//! Integer dot products of NEON (dotprod, i8mm) in assembly: the functions of `std` are not stable.

use std::arch::aarch64::{int8x16_t, int32x4_t};
use std::arch::asm;

/// SDOT: adds the products of four int8 to each of four sums.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(crate) fn dot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: nothing but these registers is touched.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// The same with the numbers `LANE` four times four of `b` for all sums.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(crate) fn dot_lane<const LANE: usize>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) sums, in(vreg) a, in(vreg) b, const LANE,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// SMMLA: adds the products of two rows of eight numbers with two others: first with first, first with second, and so on.
#[target_feature(enable = "neon,i8mm")]
#[inline]
pub(crate) fn square(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}
