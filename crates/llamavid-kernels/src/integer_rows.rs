//! Products of a few rows with weights in blocks, in whole numbers: the weights are read once, as they lie in memory, which is
//! all the time that it takes for one row.

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_abs_epi8, _mm256_add_ps, _mm256_cvtepi32_ps,
    _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_permutevar8x32_ps,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_sign_epi8, _mm256_xor_si256,
};

use crate::block_vectors::{AHEAD, totals_of_eight};
use crate::processor::{Processor, WholeNumbers};
use crate::products::Output;
use crate::whole_blocks::{NUMBERS, Row, WholeBlock, each_eighth, with_block};
use crate::whole_rows::WholeRows;

/// Rows of `x` of which there are sums at a time.
const X_ROWS: usize = 4;
/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Adds the products of all rows of `x`, which are not in parts, with some rows of weights, the bytes of which are `rows`;
/// their results are the columns from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_rows(
    processor: Processor,
    x: &WholeRows,
    rows: &[u8],
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match processor {
            Processor::Avx512(_, WholeNumbers::Fours) => in_fours(x, rows, column, output),
            Processor::Avx2(_, WholeNumbers::Fours) => in_fours_of_avx(x, rows, column, output),
            _ => in_pairs(x, rows, column, output),
        }
    }
}

/// # Safety
/// As [`add_rows`], and the processor has AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn in_fours(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { with_block!(x.format, B => add::<B, Fours>(x, rows, column, output), ()) }
}

/// # Safety
/// As [`add_rows`], and the processor has AVX2, FMA, F16C and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn in_fours_of_avx(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { with_block!(x.format, B => add::<B, FoursOfAvx>(x, rows, column, output), ()) }
}

/// # Safety
/// As [`add_rows`], and the processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn in_pairs(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { with_block!(x.format, B => add::<B, Pairs>(x, rows, column, output), ()) }
}

/// How products of whole numbers are added up: each sum is one of four.
trait Products {
    /// Whether weights may have all eight bits.
    const EIGHT_BITS: bool;

    /// The weights have no sign.
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i;
}

struct Fours;

impl Products for Fours {
    const EIGHT_BITS: bool = true;

    #[inline(always)]
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: whoever calls it has the instructions.
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), weights, x) }
    }
}

/// The same without AVX-512: another encoding of the instruction.
struct FoursOfAvx;

impl Products for FoursOfAvx {
    const EIGHT_BITS: bool = true;

    #[inline(always)]
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: whoever calls it has the instructions.
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), weights, x) }
    }
}

struct Pairs;

impl Products for Pairs {
    /// Sums of two products have 16 bits with a sign.
    const EIGHT_BITS: bool = false;

    #[inline(always)]
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: whoever calls it has the instructions.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)) }
    }
}

#[inline(always)]
unsafe fn add<B: WholeBlock, P: Products>(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    let row_bytes = x.row_bytes;
    for first in (0..x.count).step_by(X_ROWS) {
        for (index, bytes) in rows.chunks_exact(row_bytes).enumerate() {
            let row = Row::new::<B>(bytes);
            // SAFETY: as the caller of `add_rows` promises.
            unsafe {
                match x.count - first {
                    1 => add_row::<B, P, 1>(x, first, &row, column + index, output),
                    2 => add_row::<B, P, 2>(x, first, &row, column + index, output),
                    3 => add_row::<B, P, 3>(x, first, &row, column + index, output),
                    _ => add_row::<B, P, X_ROWS>(x, first, &row, column + index, output),
                }
            }
        }
    }
}

/// The products of `X` rows of `x` from `first` on with a row of weights.
///
/// # Safety
/// As [`add_rows`].
#[inline(always)]
unsafe fn add_row<B: WholeBlock, P: Products, const X: usize>(
    x: &WholeRows,
    first: usize,
    row: &Row,
    column: usize,
    output: Output,
) {
    let groups = x.columns / x.group;
    let numbers = &x.numbers[first * x.columns..(first + X) * x.columns];
    let scales = &x.scales[first * groups..(first + X) * groups];
    let of_groups = &x.sums[first * groups..(first + X) * groups];
    assert_eq!(NUMBERS * groups, 8 * B::VECTORS * x.columns, "rows that are rounded for another format");
    // Numbers of eight bits get a sign, and their offset is gone, where they have too many without one.
    let signed = B::EIGHT_BITS && !P::EIGHT_BITS;
    // SAFETY: `X` rows have as many numbers and groups, and a row of weights as many blocks.
    unsafe {
        // Two sums of each row that do not wait for each other.
        let mut sums = [[_mm256_setzero_ps(); 2]; X];
        for block in 0..x.columns / NUMBERS {
            let at = row.at::<B>(block);
            for line in 0..B::BYTES.div_ceil(LINE) {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + LINE * line).cast());
            }
            let of_block = B::scales(at);
            let mut factors = [[_mm256_setzero_ps(); 2]; X];
            for index in 0..X {
                for vector in 0..B::VECTORS {
                    let place = index * groups + 8 * (block * B::VECTORS + vector);
                    let of_x = _mm256_loadu_ps(scales.as_ptr().add(place));
                    factors[index][vector] = _mm256_mul_ps(of_block.scales[vector], of_x);
                    if !signed {
                        let of_x = _mm256_loadu_ps(of_groups.as_ptr().add(place));
                        sums[index][vector] =
                            _mm256_fnmadd_ps(of_block.least[vector], of_x, sums[index][vector]);
                    }
                }
            }
            each_eighth!(eighth => {
                let mut weights = B::numbers(at, eighth);
                if signed {
                    weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
                }
                for index in 0..X {
                    let place = index * x.columns + NUMBERS * block + NUMBERS / 8 * eighth;
                    let of_x = _mm256_loadu_si256(numbers.as_ptr().add(place).cast());
                    let products = match signed {
                        true => P::sums(_mm256_abs_epi8(weights), _mm256_sign_epi8(of_x, weights)),
                        false => P::sums(weights, of_x),
                    };
                    let factor = factor::<B>(factors[index], eighth);
                    let sum = &mut sums[index][eighth % 2];
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factor, *sum);
                }
            });
        }
        let mut vectors = [_mm256_setzero_ps(); X_ROWS];
        for index in 0..X {
            vectors[index] = _mm256_add_ps(sums[index][0], sums[index][1]);
        }
        for (index, sum) in totals_of_eight(vectors).iter().enumerate().take(X) {
            output.add(first + index, column, &[*sum]);
        }
    }
}

/// What each of an eighth's eight sums is multiplied with: they are of one group, or the halves are of two.
#[inline(always)]
unsafe fn factor<B: WholeBlock>(factors: [__m256; 2], eighth: usize) -> __m256 {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        if B::VECTORS == 1 {
            return _mm256_permutevar8x32_ps(factors[0], _mm256_set1_epi32(eighth as i32));
        }
        let (a, b) = (2 * (eighth % 4) as i32, 2 * (eighth % 4) as i32 + 1);
        _mm256_permutevar8x32_ps(factors[eighth / 4], _mm256_setr_epi32(a, a, a, a, b, b, b, b))
    }
}
