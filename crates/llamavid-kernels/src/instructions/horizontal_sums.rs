//! Sums across the lanes of vectors, four vectors at a time.

use std::arch::x86_64::{
    __m256, __m512, _mm_add_ps, _mm_storeu_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps,
    _mm256_hadd_ps, _mm256_setzero_ps, _mm512_castps512_ps256, _mm512_extractf32x8_ps,
};

/// The horizontal sums of four vectors: a third of the steps that four by themselves take.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(crate) unsafe fn horizontal_sums_256(vectors: [__m256; 4]) -> [f32; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let [a, b, c, d] = vectors;
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        let mut totals = [0f32; 4];
        _mm_storeu_ps(totals.as_mut_ptr(), sums);
        totals
    }
}

/// The same of vectors of sixteen numbers.
///
/// # Safety
/// The processor has AVX-512 F and DQ.
#[inline(always)]
pub(crate) unsafe fn horizontal_sums_512(vectors: [__m512; 4]) -> [f32; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut halves = [_mm256_setzero_ps(); 4];
        for (half, vector) in halves.iter_mut().zip(vectors) {
            *half = _mm256_add_ps(_mm512_castps512_ps256(vector), _mm512_extractf32x8_ps(vector, 1));
        }
        horizontal_sums_256(halves)
    }
}
