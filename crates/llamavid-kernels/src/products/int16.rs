//! Products of many rows with weights in 16 bits or fewer, in int16: two multiplications and additions for each that f32 does in the
//! same time.
//!
//! Rows of weights and of `x` are quantised alike, [`PART`] numbers at a time: a part is int16 times a scale, which is as small as it
//! can be while sums of products stay within 32 bits. By Cauchy and Schwarz no sum is larger than the product of two parts' roots of
//! sums of squares: those are bounded, and not the largest number, so that an outlier leaves the others of its part steps. Together,
//! the squares of a part's steps are at most 2^-24 of its sum of squares, or 2^-23 of the square of its largest number; in f16, which
//! llama.cpp rounds `x` to beside such weights, they are 2^-22 to 2^-20 of the sum of squares. Here weights err as well, and still both
//! less than that.

use std::ops::RangeInclusive;
use std::ptr;

use pulp::Simd;
use pulp::bytemuck::{cast_slice, cast_slice_mut};

use crate::instructions::integer_vectors::IntegerVectors;
pub(crate) use crate::instructions::integer_vectors::{Avx2, Avx512Vnni, AvxVnni};
use crate::instructions::vector::{NEAREST, multiply_add, sum_of, widest};
use crate::products::panels::{Kind, PART, VECTORS};

/// Numbers that one instruction multiplies and adds up in a lane.
const PAIR: usize = 2;
/// The largest int16.
const LARGEST: f32 = 32767.0;
/// The root of the sum of a part's squares at most, before its numbers are rounded. That adds up to half the root of [`PART`], 5.7:
/// the product of two such roots stays below 2^31, with room for the error of the root itself (4e-6 of it).
const ROOT: f32 = 46334.0;
/// Scales from 2^-64 to 2^40: sums of squares and products of scales stay within f32, whatever they are multiplied with.
const SCALES: RangeInclusive<f32> = 5.421_010_9e-20..=1.099_511_6e12;

/// The scale of a part, from its sum of squares and its largest number without a sign; none where that is not among [`SCALES`], or the
/// numbers are not finite.
#[inline(always)]
fn scale_of(squares: f32, largest: f32) -> Option<f32> {
    let (of_root, of_largest) = (squares.sqrt() / ROOT, largest / LARGEST);
    let scale = if of_largest > of_root { of_largest } else { of_root };
    (SCALES.contains(&scale) || squares + largest == 0.0).then_some(scale)
}

/// What a part is to be multiplied with to become integers.
#[inline(always)]
fn inverse_of(scale: f32) -> f32 {
    if scale > 0.0 { scale.recip() } else { 0.0 }
}

/// Quantises a part of a row, and gives its scale.
#[inline(always)]
fn round_inline<const FUSED: bool>(values: &[f32; PART], numbers: &mut [i16; PART]) -> Option<f32> {
    let squares = sum_of(PART, |place| values[place] * values[place]);
    let (mut min, mut max) = (0f32, 0f32);
    for value in values {
        min = if *value < min { *value } else { min };
        max = if *value > max { *value } else { max };
    }
    let scale = scale_of(squares, max.max(-min))?;
    let inverse = inverse_of(scale);
    for (number, value) in numbers.iter_mut().zip(values) {
        *number = multiply_add::<FUSED>(*value, inverse, NEAREST).to_bits() as i16;
    }
    Some(scale)
}
widest!(fn round(values: &[f32; PART], numbers: &mut [i16; PART]) -> Option<f32> = round_inline);

/// A part of a row of `x`, quantised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pairs: [[i16; PAIR]; PART / PAIR],
    scale: f32,
}

impl Part {
    const ZEROS: Self = Self { pairs: [[0; PAIR]; PART / PAIR], scale: 0.0 };

    /// Up to [`PART`] numbers; none where they cannot be rounded.
    fn new(x: &[f32]) -> Option<Self> {
        let (mut values, mut numbers) = ([0f32; PART], [0i16; PART]);
        values[..x.len()].copy_from_slice(x);
        let scale = round(&values, &mut numbers)?;
        Some(Self { pairs: pulp::bytemuck::cast(numbers), scale })
    }

    #[inline(always)]
    fn pair(&self, index: usize) -> i32 {
        let [first, second] = self.pairs[index];
        i32::from(first as u16) | i32::from(second) << 16
    }
}

/// The integers nearest to products, in the lower 16 bits.
#[inline(always)]
fn nearest<S: Simd>(simd: S, values: S::f32s, inverses: S::f32s) -> S::u32s {
    simd.transmute_u32s_f32s(simd.mul_add_e_f32s(values, inverses, simd.splat_f32s(NEAREST)))
}

/// Quantises a part of a panel of numbers, a row in each place of a step, to pairs of int16, and finds the scale of each row; false
/// where there is none.
#[inline(always)]
fn round_part<S: Simd>(
    simd: S,
    steps: &[[S::f32s; VECTORS]],
    pairs: &mut [[S::f32s; VECTORS]],
    scales: &mut [S::f32s; VECTORS],
) -> bool {
    let zeros = [simd.splat_f32s(0.0); VECTORS];
    let (mut squares, mut largest, mut inverses) = (zeros, zeros, zeros);
    for step in steps {
        for vector in 0..VECTORS {
            let values = step[vector];
            squares[vector] = simd.mul_add_e_f32s(values, values, squares[vector]);
            largest[vector] = simd.max_f32s(simd.abs_f32s(values), largest[vector]);
        }
    }
    let mut possible = true;
    {
        let [squares, largest]: [&[f32]; 2] = [&squares, &largest].map(|vectors| cast_slice(vectors));
        let [scales, inverses]: [&mut [f32]; 2] =
            [scales, &mut inverses].map(|vectors| cast_slice_mut(vectors));
        for place in 0..squares.len() {
            let scale = scale_of(squares[place], largest[place]);
            possible &= scale.is_some();
            scales[place] = scale.unwrap_or_default();
            inverses[place] = inverse_of(scales[place]);
        }
    }
    let (lower, sixteen) = (simd.splat_u32s(0xffff), simd.splat_u32s(16));
    for (steps, pair) in steps.chunks(PAIR).zip(pairs) {
        let second = if steps.len() == PAIR { steps[1] } else { zeros };
        for vector in 0..VECTORS {
            let first = nearest(simd, steps[0][vector], inverses[vector]);
            let second = nearest(simd, second[vector], inverses[vector]);
            let upper = simd.wrapping_dyn_shl_u32s(second, sixteen);
            pair[vector] = simd.transmute_f32s_u32s(simd.or_u32s(simd.and_u32s(first, lower), upper));
        }
    }
    possible
}

/// Adds the products of `X` rows of `x` with a part of a panel to their sums.
///
/// # Safety
/// The processor has the instructions of `V`, the vectors of which have as many lanes as those of `S`.
#[inline(always)]
unsafe fn add_tile<S: Simd, V: IntegerVectors, const X: usize>(
    (panel, scales): (&[[S::f32s; VECTORS]], &[S::f32s; VECTORS]),
    x: &[Part],
    sums: &mut [[S::f32s; VECTORS]],
) {
    assert!(x.len() == X && sums.len() == X && panel.len() <= PART / PAIR, "a tile of another size");
    // SAFETY: as the caller promises; a vector of `S` is as many words, wherever they lie.
    unsafe {
        let mut found = [[V::splat_integers(0); VECTORS]; X];
        for (step, weights) in panel.iter().enumerate() {
            for (found, x) in found.iter_mut().zip(x) {
                let x = V::splat_integers(x.pair(step));
                for (found, weights) in found.iter_mut().zip(weights) {
                    *found = V::dot_pairs(*found, V::load_integers(ptr::from_ref(weights).cast()), x);
                }
            }
        }
        for ((sums, found), x) in sums.iter_mut().zip(found).zip(x) {
            let of_x = V::splat(x.scale);
            for ((sum, found), scale) in sums.iter_mut().zip(found).zip(scales) {
                let sum = ptr::from_mut(sum).cast();
                let found = V::multiply(V::converted(found), V::load(ptr::from_ref(scale).cast()));
                V::store(sum, V::multiply_add(found, of_x, V::load(sum)));
            }
        }
    }
}

macro_rules! kind {
    ($name:ident, $features:literal) => {
        impl Kind for $name {
            const OF_A_WORD: usize = PAIR;
            type Part = Part;
            const ZEROS: Part = Part::ZEROS;

            fn part(x: &[f32]) -> Option<Part> {
                Part::new(x)
            }

            #[inline(always)]
            fn convert<S: Simd>(
                simd: S,
                steps: &[[S::f32s; VECTORS]],
                words: &mut [[S::f32s; VECTORS]],
                scales: &mut [S::f32s; VECTORS],
            ) -> bool {
                round_part(simd, steps, words, scales)
            }

            #[inline(always)]
            unsafe fn tile<S: Simd, const X: usize>(
                _simd: S,
                panel: (&[[S::f32s; VECTORS]], &[S::f32s; VECTORS]),
                x: &[Part],
                sums: &mut [[S::f32s; VECTORS]],
            ) {
                #[target_feature(enable = $features)]
                unsafe fn tile<S: Simd, const X: usize>(
                    panel: (&[[S::f32s; VECTORS]], &[S::f32s; VECTORS]),
                    x: &[Part],
                    sums: &mut [[S::f32s; VECTORS]],
                ) {
                    // SAFETY: as the caller promises.
                    unsafe { add_tile::<S, $name, X>(panel, x, sums) }
                }
                assert_eq!(S::F32_LANES, $name::LANES, "vectors of another size");
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe { tile::<S, X>(panel, x, sums) }
            }
        }
    };
}
kind!(Avx512Vnni, "avx512f,avx512vnni");
kind!(AvxVnni, "avx2,fma,avxvnni");
kind!(Avx2, "avx2,fma");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_part_are_as_small_as_sums_of_their_products_must_be() {
        let noise = |place: usize| (place as f32 * 12.9898).sin() * 43758.547 % 1.0;
        let mut alone = [0f32; PART];
        alone[5] = -3e-4;
        let mut large: [f32; PART] = std::array::from_fn(noise);
        large[77] = 1000.0;
        for part in [
            std::array::from_fn(noise),
            std::array::from_fn(|place| 7.7e9 * noise(place + PART)),
            [0.1; PART],
            // Halves are rounded away from their sum of squares at most.
            std::array::from_fn(|place| if place % 2 == 0 { 4095.5 } else { -4095.5 }),
            alone,
            large,
            [0.0; PART],
        ] {
            let rounded = Part::new(&part).unwrap();
            let numbers = rounded.pairs.as_flattened();
            let squares: i64 = numbers.iter().map(|number| i64::from(*number).pow(2)).sum();
            assert!(squares <= i64::from(i32::MAX), "{squares}");
            let max = numbers.iter().map(|number| number.unsigned_abs()).max();
            // As many steps as there may be, nearly.
            assert!(
                part == [0.0; PART] || squares > 2_146_000_000 || max == Some(32767),
                "{squares}, {max:?}"
            );
            for (number, value) in numbers.iter().zip(part) {
                let error = (f32::from(*number) * rounded.scale - value).abs();
                assert!(error <= 0.51 * rounded.scale, "{number} times {} for {value}", rounded.scale);
            }
        }
    }

    #[test]
    fn parts_without_such_numbers_are_refused() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, 1e-40] {
            assert!(Part::new(&[0.0, wrong, 0.0]).is_none(), "{wrong}");
        }
    }
}
