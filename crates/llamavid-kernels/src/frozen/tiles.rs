//! Sums of products of rows with a panel of weights, in f32: a tile of sums stays in the registers while a panel's part, which
//! stays in the L1 cache, goes by. K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008),
//! with the roles of the matrices exchanged.

use half::f16;
use half::slice::HalfFloatSliceExt;
use pulp::{Simd, WithSimd};

use super::parts::{PANEL, PrefetchQueue, Step};
use crate::instructions::processor::Processor;
use crate::instructions::vector::with_rows;

/// Vectors of a panel that are multiplied together.
const VECTORS: usize = 2;
/// Rows of a tile at most: their sums, two vectors of the panel and one number are nearly all of 32 registers.
pub(super) const TILE_ROWS: usize = 12;

/// Rows, of which each starts `stride` numbers after the one before.
#[derive(Debug)]
pub(super) struct Rows<'a, T = f32> {
    pub(super) values: &'a [T],
    pub(super) stride: usize,
}

impl<T> Clone for Rows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Rows<'_, T> {}

impl<T> Rows<'_, T> {
    /// Those from a row on.
    #[inline(always)]
    pub(super) fn from(self, row: usize) -> Self {
        Self { values: &self.values[row * self.stride..], ..self }
    }
}

/// The numbers of a [`Step`] in f16.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct HalfStep(pub(super) [f16; PANEL]);

/// Widens steps; there is a place for each.
pub(super) fn widen(processor: Processor, steps: &[HalfStep], into: &mut [Step]) {
    assert_eq!(steps.len(), into.len(), "as many places as steps");
    match processor {
        // SAFETY: the processor has AVX-512.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) => unsafe { widen_vectors(steps, into) },
        _ => {
            for (into, step) in into.iter_mut().zip(steps) {
                step.0.convert_to_f32_slice(&mut into.0);
            }
        }
    }
}

/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn widen_vectors(steps: &[HalfStep], into: &mut [Step]) {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
    for (step, into) in steps.iter().zip(into) {
        for lane in (0..PANEL).step_by(16) {
            // SAFETY: 16 numbers from `lane` on lie within a step.
            unsafe {
                let halves = _mm256_loadu_si256(step.0.as_ptr().add(lane).cast());
                _mm512_storeu_ps(into.0.as_mut_ptr().add(lane), _mm512_cvtph_ps(halves));
            }
        }
    }
}

/// Adds the products of rows `x` with a panel's steps to `sums`, one for each row.
pub(super) struct Tiles<'a, 'b> {
    pub(super) panel: &'a [Step],
    pub(super) x: Rows<'a>,
    pub(super) sums: &'a mut [Step],
    pub(super) queue: &'a mut PrefetchQueue<'b>,
}

impl WithSimd for Tiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panel, x, sums, queue } = self;
        let tile_rows = if S::REGISTER_COUNT >= 32 { TILE_ROWS } else { TILE_ROWS / 2 };
        for lane in (0..PANEL).step_by(VECTORS * S::F32_LANES) {
            for (index, sums) in sums.chunks_mut(tile_rows).enumerate() {
                queue.prefetch(sums.len());
                let x = x.from(index * tile_rows);
                with_rows!(sums.len(), ROWS => tile::<S, ROWS>(simd, panel, lane, x, sums))
            }
        }
    }
}

/// Adds the products of `X` rows with two vectors of each step, from `lane` on.
#[inline(always)]
fn tile<S: Simd, const X: usize>(simd: S, panel: &[Step], lane: usize, x: Rows, sums: &mut [Step]) {
    let Rows { values, stride } = x;
    assert!(sums.len() == X && lane + VECTORS * S::F32_LANES <= PANEL, "a tile of another size");
    assert!((X - 1) * stride + panel.len() <= values.len(), "rows of another length");
    let (weights, x): (*const Step, *const f32) = (panel.as_ptr(), values.as_ptr());
    let mut found = [[simd.splat_f32s(0.0); VECTORS]; X];
    for (found, sums) in found.iter_mut().zip(&*sums) {
        // SAFETY: two vectors from `lane` on lie within a step.
        *found = unsafe { two::<S>(&raw const *sums, lane) };
    }
    for step in 0..panel.len() {
        // SAFETY: the panel has this step, and two vectors from `lane` on lie within it.
        let weights = unsafe { two::<S>(weights.add(step), lane) };
        for (row, sums) in found.iter_mut().enumerate() {
            // SAFETY: as many numbers of this row are there as the panel has steps, see above.
            let x = simd.splat_f32s(unsafe { *x.add(row * stride + step) });
            sums[0] = simd.mul_add_e_f32s(weights[0], x, sums[0]);
            sums[1] = simd.mul_add_e_f32s(weights[1], x, sums[1]);
        }
    }
    for (sums, found) in sums.iter_mut().zip(found) {
        let into: *mut S::f32s = (&raw mut *sums).cast::<f32>().wrapping_add(lane).cast();
        // SAFETY: two vectors from `lane` on lie within a step.
        unsafe {
            into.write_unaligned(found[0]);
            into.add(1).write_unaligned(found[1]);
        }
    }
}

/// Two vectors of a step.
///
/// # Safety
/// The step can be read, and from `lane` on it holds as much.
#[inline(always)]
unsafe fn two<S: Simd>(step: *const Step, lane: usize) -> [S::f32s; VECTORS] {
    // SAFETY: as the caller promises.
    unsafe {
        let first: *const S::f32s = step.cast::<f32>().add(lane).cast();
        [first.read_unaligned(), first.add(1).read_unaligned()]
    }
}
