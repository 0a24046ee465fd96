//! Vectors of ARM.

use std::arch::aarch64::{
    float32x4_t, int32x4_t, uint16x4_t, vaddq_s32, vandq_s32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32,
    vfmaq_f32, vfmsq_f32, vld1_u16, vld1q_s32, vmulq_f32, vorrq_s32, vreinterpretq_s8_s32,
    vreinterpretq_s32_u32, vreinterpretq_u32_s32, vshlq_s32, vshlq_u32, vst1q_f32,
};
use std::arch::asm;

use super::WholeVectors;
use crate::neon_products::dot;

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

impl<const N: usize> WholeVectors for Neon<N> {
    type Whole = [int32x4_t; N];
    type Numbers = [float32x4_t; N];
    const LANES: usize = 4 * N;

    operation!(splat(value: f32) -> Self::Numbers, i => vdupq_n_f32(value));
    operation!(splat_whole(value: i32) -> Self::Whole, i => vdupq_n_s32(value));
    operation!(load_whole(at: *const u8) -> Self::Whole, i => vld1q_s32(at.add(16 * i).cast()));
    operation!(load_halves(at: *const u8) -> Self::Numbers, i => widened(vld1_u16(at.add(8 * i).cast())));
    operation!(dot(sums: Self::Whole, weights: Self::Whole, x: Self::Whole) -> Self::Whole,
        i => dot(sums[i], vreinterpretq_s8_s32(weights[i]), vreinterpretq_s8_s32(x[i])));
    operation!(add(a: Self::Whole, b: Self::Whole) -> Self::Whole, i => vaddq_s32(a[i], b[i]));
    operation!(and(a: Self::Whole, b: Self::Whole) -> Self::Whole, i => vandq_s32(a[i], b[i]));
    operation!(or(a: Self::Whole, b: Self::Whole) -> Self::Whole, i => vorrq_s32(a[i], b[i]));
    operation!(left(values: Self::Whole, places: i32) -> Self::Whole,
        i => vshlq_s32(values[i], vdupq_n_s32(places)));
    operation!(right_signed(values: Self::Whole, places: i32) -> Self::Whole,
        i => vshlq_s32(values[i], vdupq_n_s32(-places)));
    operation!(right(values: Self::Whole, places: i32) -> Self::Whole,
        i => vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(values[i]), vdupq_n_s32(-places))));
    operation!(converted(values: Self::Whole) -> Self::Numbers, i => vcvtq_f32_s32(values[i]));
    operation!(multiply(a: Self::Numbers, b: Self::Numbers) -> Self::Numbers, i => vmulq_f32(a[i], b[i]));
    operation!(multiply_add(a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers,
        i => vfmaq_f32(c[i], a[i], b[i]));
    operation!(multiply_subtract(a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers,
        i => vfmsq_f32(c[i], a[i], b[i]));

    #[inline(always)]
    unsafe fn store(at: *mut f32, values: Self::Numbers) {
        for (index, values) in values.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { vst1q_f32(at.add(4 * index), values) };
        }
    }

    /// Weights have a sign in these products anyway.
    #[inline(always)]
    unsafe fn dot_signed(sums: Self::Whole, weights: Self::Whole, x: Self::Whole) -> Self::Whole {
        // SAFETY: as the caller promises.
        unsafe { Self::dot(sums, weights, x) }
    }

    #[inline(always)]
    unsafe fn begin_signed(_offset: i32) -> Self::Whole {
        // SAFETY: as the caller promises.
        unsafe { Self::splat_whole(0) }
    }
}

/// Four numbers of 16 bits. The function of `std` is not stable.
#[inline(always)]
fn widened(halves: uint16x4_t) -> float32x4_t {
    let numbers;
    // SAFETY: every processor of the architecture has the instruction, and nothing but these registers is touched.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) numbers, in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    numbers
}
