//! Vectors of ARM.

use std::arch::aarch64::{
    float32x4_t, int32x4_t, uint16x4_t, vaddq_s32, vandq_s32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32,
    vfmaq_f32, vfmsq_f32, vld1_u16, vld1q_s32, vmulq_f32, vorrq_s32, vreinterpretq_s8_s32,
    vreinterpretq_s32_u32, vreinterpretq_u32_s32, vshlq_s32, vshlq_u32, vst1q_f32,
};
use std::arch::asm;

use super::IntegerVectors;
use crate::instructions::neon_dot::dot;

/// NEON with dot products: `N` vectors of four lanes are one.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const N: usize>;

/// A function that gives `N` vectors, each of its `$index`.
macro_rules! operation {
    ($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $index:ident => $vector:expr) => {
        #[inline(always)]
        unsafe fn $name($($argument: $type),*) -> $result {
            // SAFETY: as the caller promises; zeros are a vector.
            unsafe {
                let mut vectors = [std::mem::zeroed(); N];
                for $index in 0..N {
                    vectors[$index] = $vector;
                }
                vectors
            }
        }
    };
}

impl<const N: usize> IntegerVectors for Neon<N> {
    type Integers = [int32x4_t; N];
    type Floats = [float32x4_t; N];
    const LANES: usize = 4 * N;

    operation!(splat(value: f32) -> Self::Floats, i => vdupq_n_f32(value));
    operation!(splat_integers(value: i32) -> Self::Integers, i => vdupq_n_s32(value));
    operation!(load_integers(at: *const u8) -> Self::Integers, i => vld1q_s32(at.add(16 * i).cast()));
    operation!(load_f16(at: *const u8) -> Self::Floats, i => widened(vld1_u16(at.add(8 * i).cast())));
    operation!(dot(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers,
        i => dot(sums[i], vreinterpretq_s8_s32(weights[i]), vreinterpretq_s8_s32(x[i])));
    operation!(add(a: Self::Integers, b: Self::Integers) -> Self::Integers, i => vaddq_s32(a[i], b[i]));
    operation!(and(a: Self::Integers, b: Self::Integers) -> Self::Integers, i => vandq_s32(a[i], b[i]));
    operation!(or(a: Self::Integers, b: Self::Integers) -> Self::Integers, i => vorrq_s32(a[i], b[i]));
    operation!(left(values: Self::Integers, places: i32) -> Self::Integers,
        i => vshlq_s32(values[i], vdupq_n_s32(places)));
    operation!(right_signed(values: Self::Integers, places: i32) -> Self::Integers,
        i => vshlq_s32(values[i], vdupq_n_s32(-places)));
    operation!(right(values: Self::Integers, places: i32) -> Self::Integers,
        i => vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(values[i]), vdupq_n_s32(-places))));
    operation!(converted(values: Self::Integers) -> Self::Floats, i => vcvtq_f32_s32(values[i]));
    operation!(multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats, i => vmulq_f32(a[i], b[i]));
    operation!(multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats,
        i => vfmaq_f32(c[i], a[i], b[i]));
    operation!(multiply_subtract(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats,
        i => vfmsq_f32(c[i], a[i], b[i]));

    #[inline(always)]
    unsafe fn store(at: *mut f32, values: Self::Floats) {
        for (index, values) in values.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { vst1q_f32(at.add(4 * index), values) };
        }
    }

    /// Weights have a sign in these products anyway.
    #[inline(always)]
    unsafe fn dot_signed(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers {
        // SAFETY: as the caller promises.
        unsafe { Self::dot(sums, weights, x) }
    }

    #[inline(always)]
    unsafe fn begin_signed(_offset: i32) -> Self::Integers {
        // SAFETY: as the caller promises.
        unsafe { Self::splat_integers(0) }
    }
}

/// Four f16 to f32. The function of `std` is not stable.
#[inline(always)]
fn widened(f16s: uint16x4_t) -> float32x4_t {
    let numbers;
    // SAFETY: every processor of the architecture has the instruction, and nothing but these registers is touched.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) numbers, in(vreg) f16s,
            options(pure, nomem, nostack, preserves_flags));
    }
    numbers
}
