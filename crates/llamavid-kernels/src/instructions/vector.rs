//! Loops over slices, auto-vectorised for the widest vectors that the processor has when they run.

/// Defines a function that runs `$body` in the widest vectors of this processor.
///
/// `$body` is an `#[inline(always)]` function with a `const FUSED: bool`: whether a multiplication and an addition
/// are one instruction (see [`multiply_add`]). What it calls must be inlined as well, and so must not be a function that
/// was passed to another one: that is compiled without these vectors.
macro_rules! widest {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wider($($argument: $type),*) $(-> $result)? {
                    $body::<true>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($argument: $type),*) $(-> $result)? {
                    $body::<true>($($argument),*)
                }
                match $crate::instructions::processor::processor() {
                    // SAFETY: the processor has AVX-512 F, VL, BW and DQ, AVX2 and FMA.
                    $crate::instructions::processor::Processor::Avx512(..) => return unsafe { wider($($argument),*) },
                    // SAFETY: the processor has AVX2 and FMA.
                    $crate::instructions::processor::Processor::Avx2(..) => return unsafe { wide($($argument),*) },
                    $crate::instructions::processor::Processor::Portable => {}
                }
            }
            // Every processor of this architecture has the vectors, and one instruction that multiplies and adds.
            #[cfg(target_arch = "aarch64")]
            if let $crate::instructions::processor::Processor::Neon(..) = $crate::instructions::processor::processor() {
                return $body::<true>($($argument),*);
            }
            $body::<false>($($argument),*)
        }
    };
}
pub(crate) use widest;

/// Runs `$body` with a number of rows, 12 at most, as the constant `$rows`: a tile of sums has a register for each.
macro_rules! with_rows {
    ($count:expr, $rows:ident => $body:expr) => {
        $crate::instructions::vector::with_rows!($count, $rows => $body, 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($count:expr, $rows:ident => $body:expr, $($number:literal)*) => {
        match $count {
            $($number => {
                const $rows: usize = $number;
                $body
            })*
            _ => {
                const $rows: usize = 12;
                $body
            }
        }
    };
}
pub(crate) use with_rows;

/// 1.5 · 2^23: added to a small number, it leaves the number's nearest integer in the lowest bits.
pub(crate) const NEAREST: f32 = 12_582_912.0;

/// `a * b + c`. Fused only where that is one instruction: elsewhere `mul_add` is a call of the C library.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Below it e^x is no normal f32.
const MIN_EXPONENT: f32 = -87.336_54;
/// Above it e^x is no f32.
const MAX_EXPONENT: f32 = 88.722_83;

/// e^x to 2e-7 of its value, without a branch or a table, so that it runs in vectors.
///
/// Cephes' polynomial. 0 where the result would be no normal number, the largest f32 (nearly) beyond it.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    let inside = if x > MAX_EXPONENT { MAX_EXPONENT } else { x };
    let (sum, power) = exp_parts::<FUSED>(inside);
    // Two factors, since 2^128 alone is beyond the largest f32 while the product may not be.
    let power = power.to_bits() as i32 - NEAREST.to_bits() as i32;
    let half = power >> 1;
    let scale = |power: i32| f32::from_bits(((power + 127) << 23) as u32);
    let result = sum * scale(half) * scale(power - half);
    if x < MIN_EXPONENT { 0.0 } else { result }
}

/// The same of what is not above 0, in fewer steps.
#[inline(always)]
pub(crate) fn exp_of_negative<const FUSED: bool>(x: f32) -> f32 {
    let (sum, power) = exp_parts::<FUSED>(x);
    // Of the bits of the power only the lowest are left, those of an integer.
    let result = sum * f32::from_bits((power.to_bits() << 23).wrapping_add(127 << 23));
    if x < MIN_EXPONENT { 0.0 } else { result }
}

/// e^x as a number near 1 and the power of 2 that it is to be multiplied with, to which [`NEAREST`] is added.
#[inline(always)]
fn exp_parts<const FUSED: bool>(x: f32) -> (f32, f32) {
    /// ln 2 in two parts; products of the first with integers up to 2^9 are exact.
    const LN_2: (f32, f32) = (0.693_359_375, -2.121_944_4e-4);
    // A comparison that NaN passes as it is.
    let x = if x < MIN_EXPONENT { MIN_EXPONENT } else { x };
    let power = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, NEAREST);
    let whole = power - NEAREST;
    let rest = multiply_add::<FUSED>(whole, -LN_2.0, x);
    let rest = multiply_add::<FUSED>(whole, -LN_2.1, rest);
    let mut sum = 1.987_569_2e-4;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1] {
        sum = multiply_add::<FUSED>(sum, rest, factor);
    }
    (multiply_add::<FUSED>(sum * rest, rest, rest) + 1.0, power)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// Values that a loop adds up side by side: quicker than one after the other, and closer to the exact sum.
const LANES: usize = 32;

/// A sum of `term` over the places of a row, in lanes.
#[inline(always)]
pub(crate) fn sum_of(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let blocks = length / LANES;
    for block in 0..blocks {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(block * LANES + lane);
        }
    }
    let mut rest = 0.0;
    for place in blocks * LANES..length {
        rest += term(place);
    }
    fold(sums) + rest
}

/// The largest of a row; minus infinity of none. NaN is passed over.
#[inline(always)]
pub(crate) fn largest(row: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let blocks = row.chunks_exact(LANES);
    let mut rest = f32::NEG_INFINITY;
    for value in blocks.remainder() {
        rest = if *value > rest { *value } else { rest };
    }
    for block in blocks {
        for (largest, value) in largest.iter_mut().zip(block) {
            *largest = if *value > *largest { *value } else { *largest };
        }
    }
    for value in largest {
        rest = if value > rest { value } else { rest };
    }
    rest
}

/// Adds the lanes pairwise.
#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn exp_all<const FUSED: bool>(x: &[f32], result: &mut [f32]) {
        for (result, x) in result.iter_mut().zip(x) {
            *result = exp::<FUSED>(*x);
        }
    }
    widest!(fn exponentials(x: &[f32], result: &mut [f32]) = exp_all);

    fn check(x: &[f32], result: &[f32]) {
        for (x, result) in x.iter().zip(result) {
            let expected = f64::from(*x).exp();
            let error = (f64::from(*result) - expected).abs() / expected;
            assert!(error < 2e-7, "e^{x} = {result}, not {expected}");
        }
    }

    #[test]
    fn exponential_is_exact_to_the_last_digits() {
        let x: Vec<f32> = (0..1_750_000).map(|step| step as f32 * 1e-4 - 87.3).collect();
        let mut result = vec![0f32; x.len()];
        exponentials(&x, &mut result);
        check(&x, &result);
        exp_all::<false>(&x, &mut result);
        check(&x, &result);
    }

    #[test]
    fn exponential_at_its_ends() {
        assert_eq!(exp::<false>(0.0), 1.0);
        for far in [-88.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp::<false>(far), 0.0, "{far}");
        }
        for far in [1e3, f32::MAX, f32::INFINITY] {
            assert!(exp::<false>(far) > 3e38, "{far}");
        }
        assert!(exp::<false>(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_the_largest_see_every_place() {
        for length in 0..100 {
            let row: Vec<f32> = (0..length).map(|place| place as f32).collect();
            assert_eq!(sum_of(length, |place| row[place]), (length * length.saturating_sub(1) / 2) as f32);
            let expected = if length == 0 { f32::NEG_INFINITY } else { (length - 1) as f32 };
            assert_eq!(largest(&row), expected);
        }
    }
}
