//! int8 dot products of a few rows with weights in blocks: the weights are read once, as they lie in memory, which bounds the
//! time for one row.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_abs_epi8, _mm256_add_ps, _mm256_broadcast_sd, _mm256_broadcast_ss,
    _mm256_castpd_ps, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32, _mm256_fmadd_ps,
    _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_permutevar_ps, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_xor_si256,
};
use std::mem::MaybeUninit;

use crate::formats::block_types::{NUMBERS, each_eighth, with_block};
use crate::formats::integer_blocks::{IntegerBlock, Row};
use crate::instructions::horizontal_sums::horizontal_sums_256;
use crate::instructions::prefetch::{CACHE_LINE, PREFETCH_DISTANCE, prefetch_l1};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::Output;
use crate::products::integer::quantised_rows::QuantisedRows;

/// Rows of `x` of which there are sums at a time.
const X_ROWS: usize = 4;
/// Sums of a row of `x` at most that do not wait for each other.
const SUMS: usize = 4;
/// Blocks of 256 numbers of which the scales are read before the numbers.
const BLOCKS: usize = 2;

/// Adds the products of all rows of `x`, which are not in parts, with some rows of weights, the bytes of which are `rows`;
/// their results are the columns from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_rows(
    processor: Processor,
    x: &QuantisedRows,
    rows: &[u8],
    column: usize,
    output: Output,
) {
    // A function for each format, whose registers are its own.
    // SAFETY: as the caller promises.
    unsafe {
        with_block!(
            x.format,
            B => match processor {
                Processor::Avx512(_, IntegerDot::Tiles | IntegerDot::Quads) => {
                    in_quads::<B>(x, rows, column, output)
                }
                Processor::Avx2(_, IntegerDot::Quads) => in_avx_quads::<B>(x, rows, column, output),
                _ => in_pairs::<B>(x, rows, column, output),
            },
            ()
        );
    }
}

/// # Safety
/// As [`add_rows`], and the processor has AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn in_quads<B: IntegerBlock>(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, Quads>(x, rows, column, output) }
}

/// # Safety
/// As [`add_rows`], and the processor has AVX2, FMA, F16C and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn in_avx_quads<B: IntegerBlock>(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, AvxQuads>(x, rows, column, output) }
}

/// # Safety
/// As [`add_rows`], and the processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn in_pairs<B: IntegerBlock>(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, Pairs>(x, rows, column, output) }
}

/// How int8 products are added up: each int32 sum is one of four.
trait Products {
    /// Whether weights may have all eight bits.
    const EIGHT_BITS: bool;
    /// Sums of a row of `x` that do not wait for each other: what there are registers for with [`X_ROWS`] of them, since a row
    /// gives the same alone.
    const SUMS: usize;

    /// The weights have no sign.
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i;
}

struct Quads;

impl Products for Quads {
    const EIGHT_BITS: bool = true;
    const SUMS: usize = SUMS;

    #[inline(always)]
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: whoever calls it has the instructions.
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), weights, x) }
    }
}

/// The same without AVX-512: another encoding of the instruction.
struct AvxQuads;

impl Products for AvxQuads {
    const EIGHT_BITS: bool = true;
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: whoever calls it has the instructions.
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), weights, x) }
    }
}

struct Pairs;

impl Products for Pairs {
    /// Sums of two products are int16, signed.
    const EIGHT_BITS: bool = false;
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn sums(weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: whoever calls it has the instructions.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)) }
    }
}

#[inline(always)]
unsafe fn add<B: IntegerBlock, P: Products>(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
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
unsafe fn add_row<B: IntegerBlock, P: Products, const X: usize>(
    x: &QuantisedRows,
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
        let mut sums = [[_mm256_setzero_ps(); SUMS]; X];
        // What the sums of each group are multiplied with: a register would have to be taken apart again.
        let mut factors = [[MaybeUninit::<[__m256; 2]>::uninit(); X]; BLOCKS];
        let mut start = 0;
        while let Some((weights, blocks)) = row.blocks::<B>(start, BLOCKS) {
            // A row of int8 is as quick as memory already, and slower when it is prefetched.
            if X > 1 || !B::EIGHT_BITS {
                for line in (0..BLOCKS * B::BYTES).step_by(CACHE_LINE) {
                    prefetch_l1(weights.wrapping_add(PREFETCH_DISTANCE + line));
                }
            }
            for (block, factors) in factors.iter_mut().enumerate().take(blocks) {
                let of_block = B::scales(weights.add(B::BYTES * block));
                for index in 0..X {
                    let mut of_row = [_mm256_setzero_ps(); 2];
                    for vector in 0..B::VECTORS {
                        let place = index * groups + 8 * ((start + block) * B::VECTORS + vector);
                        let of_x = _mm256_loadu_ps(scales.as_ptr().add(place));
                        of_row[vector] = _mm256_mul_ps(of_block.scales[vector], of_x);
                        if !signed {
                            let of_x = _mm256_loadu_ps(of_groups.as_ptr().add(place));
                            sums[index][vector] =
                                _mm256_fnmadd_ps(of_block.mins[vector], of_x, sums[index][vector]);
                        }
                    }
                    factors[index].write(of_row);
                }
            }
            for (block, factors) in factors.iter().enumerate().take(blocks) {
                let weights = weights.add(B::BYTES * block);
                each_eighth!(eighth => {
                    let mut weights = B::numbers(weights, eighth);
                    if signed {
                        weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
                    }
                    for index in 0..X {
                        let place = index * x.columns + NUMBERS * (start + block) + NUMBERS / 8 * eighth;
                        let of_x = _mm256_loadu_si256(numbers.as_ptr().add(place).cast());
                        let products = match signed {
                            true => P::sums(_mm256_abs_epi8(weights), _mm256_sign_epi8(of_x, weights)),
                            false => P::sums(weights, of_x),
                        };
                        let factor = factor::<B>(factors[index].as_ptr().cast(), eighth);
                        let sum = &mut sums[index][eighth % P::SUMS];
                        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factor, *sum);
                    }
                });
            }
            start += blocks;
        }
        let mut vectors = [_mm256_setzero_ps(); X_ROWS];
        for index in 0..X {
            let [a, b, c, d] = sums[index];
            vectors[index] = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
        }
        for (index, sum) in horizontal_sums_256(vectors).iter().enumerate().take(X) {
            output.add(first + index, column, &[*sum]);
        }
    }
}

/// What each of an eighth's eight sums is multiplied with, of the factors of a block's groups: they are of one group, or the
/// halves are of two.
#[inline(always)]
unsafe fn factor<B: IntegerBlock>(factors: *const f32, eighth: usize) -> __m256 {
    // SAFETY: whoever calls it has the instructions and the factors.
    unsafe {
        if B::VECTORS == 1 {
            return _mm256_broadcast_ss(&*factors.add(eighth));
        }
        let both = _mm256_castpd_ps(_mm256_broadcast_sd(&*factors.add(2 * eighth).cast()));
        _mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
    }
}
