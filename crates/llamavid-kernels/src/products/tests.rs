//! Every way to multiply on every processor, against sums in f64.

use super::*;
use crate::formats::block_format::{BlockFormat, decode};
use crate::noise::noise;

/// How what is multiplied is rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "pieces are those of AMX"))]
enum Rounding {
    None,
    /// To int16, both.
    SixteenBits,
    /// To bf16 pieces: how far a product may be from what it is.
    Pieces(f64),
}

/// Sums in f64, and how far from them a result may be: rounding errors grow with the products without signs. Rows that are
/// quantised to int16 err by up to half of their scale.
fn exactly(numbers: &[f32], columns: usize, x: &[f32], rounding: Rounding) -> Vec<(f64, f64)> {
    let size = |part: &[f32]| part.iter().map(|value| f64::from(value.abs())).sum::<f64>();
    let half = |part: &[f32]| {
        let squares: f64 = part.iter().map(|value| f64::from(*value).powi(2)).sum();
        let largest = part.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        0.5 * (squares.sqrt() / 46334.0).max(f64::from(largest) / 32767.0)
    };
    let of = |x: &[f32], row: &[f32]| {
        let products = x.iter().zip(row).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
        let (sum, all) =
            products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
        let parts = x
            .chunks(128)
            .zip(row.chunks(128))
            .map(|(x, row)| half(x) * size(row) + half(row) * size(x) + 128.0 * half(x) * half(row));
        let rounded = match rounding {
            Rounding::None => 0.0,
            Rounding::SixteenBits => parts.sum(),
            Rounding::Pieces(relative) => relative * all,
        };
        (sum, 1e-6 * all + rounded)
    };
    x.chunks_exact(columns).flat_map(|x| numbers.chunks_exact(columns).map(move |row| of(x, row))).collect()
}

/// How rows and weights are rounded.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "none are there"))]
fn rounding(processor: Processor, layer: Layer, x: &[f32]) -> Rounding {
    #[cfg(target_arch = "x86_64")]
    {
        let (stride, count) = (layer.columns, x.len() / layer.columns);
        let panels = Panels { processor, layer, x, stride, count, add: false };
        let format = layer.weights.format();
        if BlockProduct::new(processor, layer.weights, x, layer.columns).is_some() || !panels.pay() {
            return Rounding::None;
        }
        match format {
            BlockFormat::F32 => Rounding::None,
            BlockFormat::F16 | BlockFormat::BF16 if panels.in_pieces() => Rounding::Pieces(2f64.powi(-15)),
            _ if panels.in_pieces() => Rounding::Pieces(2f64.powi(-7)),
            _ if panels.rounds() => Rounding::SixteenBits,
            _ => Rounding::None,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Rounding::None
}

/// What a layer makes of rows on a processor.
fn computed(processor: Processor, layer: Layer, x: &[f32]) -> Vec<f32> {
    layer.forward_on(processor, x, x.len() / layer.columns, true)
}

#[track_caller]
fn assert_close(result: &[f32], exact: &[(f64, f64)], already: f32, what: &str) {
    for (value, (sum, allowed)) in result.iter().zip(exact) {
        // Written so that NaN fails.
        let error = (f64::from(value - already) - sum).abs();
        assert!(error <= allowed + 1e-6 * f64::from(already), "{what}: {value} instead of {sum}");
    }
}

#[test]
fn every_processor_gives_the_sums_in_every_format() {
    for processor in Processor::tested() {
        for format in BlockFormat::ALL {
            for (rows, blocks, count) in [
                (1, 1, 1),
                (3, 1, 2),
                (5, 3, 7),
                (67, 5, 1),
                (64, 9, 4),
                (32, 9, 11),
                (19, 16, 18),
                (48, 3, 16),
                (16, 5, 31),
                (13, 7, 101),
                (67, 3, 53),
                (70, 5, 60),
                (130, 17, 13),
            ] {
                // Without blocks: any number of columns, also a long one.
                let columns = match format.block_length() {
                    1 => [7, 16, 37, 130, 515, 1100, 2049][blocks % 7],
                    length => blocks * length,
                };
                let what = format!("{processor:?} {} {rows} x {columns}, {count}", format.name());
                let bytes = format.encode(&noise(rows * columns, 3), columns).unwrap();
                let interleaved = format.interleave(&bytes, columns).ok();
                let mut numbers = vec![0f32; rows * columns];
                decode(Processor::Portable, format, &bytes, &mut numbers);
                // Integers, the largest in every group, times a power of two: what quantises rows changes nothing.
                let mut x: Vec<f32> = noise(count * columns, 4).iter().map(|x| (x * 126.0).round()).collect();
                x.iter_mut().step_by(16).for_each(|x| *x = 127.0);
                // Of those that many rows round with one scale.
                let together = if format == BlockFormat::Q6K { 128 } else { 32 };
                let places = x.iter_mut().enumerate();
                places.for_each(|(place, x)| *x *= [1.0, 0.25, 8.0][place / together % 3]);
                let bias = noise(rows, 5);
                for (add, parallel, bias) in [
                    (false, true, None),
                    (true, false, Some(bias.as_slice())),
                    (false, false, Some(&bias)),
                    (true, true, None),
                ] {
                    let already = if add { 2.0 } else { 0.0 };
                    let weights = [Weights::Blocks(format, &bytes), Weights::F32(&numbers)];
                    let interleaved = interleaved.as_ref().map(|bytes| Weights::Interleaved(format, bytes));
                    for weights in weights.into_iter().chain(interleaved) {
                        let layer = Layer { weights, rows, columns, bias };
                        let mut exact = exactly(&numbers, columns, &x, rounding(processor, layer, &x));
                        let biases = bias.unwrap_or(&[]).iter().cycle();
                        for ((sum, allowed), bias) in exact.iter_mut().zip(biases) {
                            *sum += f64::from(*bias);
                            *allowed += 1e-6 * f64::from(bias.abs());
                        }
                        // What is not added to does not count.
                        let mut result = vec![if add { already } else { f32::NAN }; rows * count];
                        let output = Output::new(&mut result, rows);
                        // SAFETY: nobody else has the result.
                        unsafe { layer.compute(processor, &x, count, output, add, parallel) };
                        assert_close(&result, &exact, already, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn sums_of_the_largest_integers_do_not_overflow() {
    let (rows, columns) = (35, 1024);
    for format in BlockFormat::ALL.into_iter().filter(|format| format.interleaves()) {
        for byte in [0xff, 0x80, 0x7f, 0] {
            let mut bytes = vec![byte; format.row_bytes(rows * columns).unwrap()];
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                let scales: &[usize] = match format {
                    BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
                    BlockFormat::Q6K => &[208],
                    _ => &[0],
                };
                // One, in int16.
                scales.iter().for_each(|place| block[*place..place + 2].copy_from_slice(&[0, 0x3c]));
            }
            let interleaved = format.interleave(&bytes, columns).unwrap();
            let mut numbers = vec![0f32; rows * columns];
            decode(Processor::Portable, format, &bytes, &mut numbers);
            for (count, x) in [(1, 127.0), (4, -127.0), (8, 127.0), (16, -127.0), (40, 127.0)] {
                let x = vec![x; count * columns];
                let mut exact = exactly(&numbers, columns, &x, Rounding::None);
                // One part in a hundred: bf16 pieces err a quarter of that. What overflows errs by far more.
                exact.iter_mut().for_each(|(_, allowed)| *allowed *= 1e4);
                for weights in [Weights::Blocks(format, &bytes), Weights::Interleaved(format, &interleaved)] {
                    for processor in Processor::tested() {
                        let layer = Layer { weights, rows, columns, bias: None };
                        let what = format!("{processor:?} {} {byte}, {count}", format.name());
                        assert_close(&computed(processor, layer, &x), &exact, 0.0, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn rows_that_are_rounded_err_as_little_as_eight_bits_do() {
    let (rows, columns) = (40, 1024);
    for processor in Processor::tested() {
        for format in BlockFormat::ALL.into_iter().filter(|format| format.block_length() > 1) {
            let bytes = format.encode(&noise(rows * columns, 5), columns).unwrap();
            let mut numbers = vec![0f32; rows * columns];
            decode(Processor::Portable, format, &bytes, &mut numbers);
            for count in [1, 6, 63] {
                let x = noise(count * columns, 6);
                let exact = exactly(&numbers, columns, &x, Rounding::None);
                let layer = Layer { weights: Weights::Blocks(format, &bytes), rows, columns, bias: None };
                let relative = error(&computed(processor, layer, &x), &exact);
                // Pieces err half as much.
                let most = if rounding(processor, layer, &x) == Rounding::None { 6e-3 } else { 3e-3 };
                assert!(relative < most, "{processor:?} {} {count}: {relative}", format.name());
            }
        }
    }
}

/// The root of the mean square of errors, against that of the sums.
fn error(result: &[f32], exact: &[(f64, f64)]) -> f64 {
    let (mut error, mut all) = (0.0, 0.0);
    for (value, (sum, _)) in result.iter().zip(exact) {
        error += (f64::from(*value) - sum).powi(2);
        all += sum.powi(2);
    }
    (error / all).sqrt()
}

/// Makes one number of each part far larger than the others.
fn with_outliers(mut values: Vec<f32>, times: f32) -> Vec<f32> {
    values.iter_mut().skip(77).step_by(128).for_each(|value| *value *= times);
    values
}

#[test]
fn rows_that_are_rounded_to_int16_err_less_than_in_f16() {
    let (rows, columns, count) = (70, 1024, 61);
    // A bell curve: sums of noise.
    let bell = |count: usize, seed: u32| -> Vec<f32> {
        noise(8 * count, seed).chunks(8).map(|numbers| numbers.iter().sum()).collect()
    };
    for (what, weights, x) in [
        ("noise", noise(rows * columns, 11), noise(count * columns, 12)),
        ("bell curves", bell(rows * columns, 13), bell(count * columns, 14)),
        ("large numbers", bell(rows * columns, 15), with_outliers(bell(count * columns, 16), 1000.0)),
        ("very large numbers", bell(rows * columns, 17), with_outliers(bell(count * columns, 18), 1e4)),
        ("large weights", with_outliers(bell(rows * columns, 19), 20.0), bell(count * columns, 20)),
    ] {
        for format in [BlockFormat::F16, BlockFormat::BF16] {
            let bytes = format.encode(&weights, columns).unwrap();
            let mut numbers = vec![0f32; rows * columns];
            decode(Processor::Portable, format, &bytes, &mut numbers);
            let exact = exactly(&numbers, columns, &x, Rounding::SixteenBits);
            let mut halves = vec![0f32; x.len()];
            let bytes_of_x = BlockFormat::F16.encode(&x, columns).unwrap();
            decode(Processor::Portable, BlockFormat::F16, &bytes_of_x, &mut halves);
            let layer = Layer { weights: Weights::F32(&numbers), rows, columns, bias: None };
            let in_halves = error(&computed(Processor::Portable, layer, &halves), &exact);
            for processor in Processor::tested() {
                let layer = Layer { weights: Weights::Blocks(format, &bytes), ..layer };
                let result = computed(processor, layer, &x);
                let what = format!("{processor:?} {} {what}", format.name());
                assert_close(&result, &exact, 0.0, &what);
                let relative = error(&result, &exact);
                assert!(relative < 0.7 * in_halves, "{what}: {relative}, in half precision {in_halves}");
            }
        }
    }
}

#[test]
fn many_rows_beside_weights_in_f32_err_no_more_than_sums_in_f32() {
    let (rows, columns, count) = (33, 1500, 50);
    for (what, weights, x) in [
        ("noise", noise(rows * columns, 31), noise(count * columns, 32)),
        ("no signs", noise(rows * columns, 33).iter().map(|value| value.abs()).collect(), {
            noise(count * columns, 34).iter().map(|value| value.abs()).collect()
        }),
        ("large numbers", with_outliers(noise(rows * columns, 35), 1e4), noise(count * columns, 36)),
    ] {
        let layer = Layer { weights: Weights::F32(&weights), rows, columns, bias: None };
        let exact = exactly(&weights, columns, &x, Rounding::None);
        for processor in Processor::tested() {
            let found = error(&computed(processor, layer, &x), &exact);
            let plain = error(&computed(processor.without_integer_dot(), layer, &x), &exact);
            assert!(found <= 1.2 * plain, "{processor:?} {what}: {found}, in f32 {plain}");
        }
    }
}

#[test]
fn what_cannot_be_rounded_to_int16_is_multiplied_as_it_is() {
    let (rows, columns, count) = (300, 300, 50);
    let bf16 = |mut values: Vec<f32>, changes: &[(usize, f32)]| {
        changes.iter().for_each(|(place, value)| values[*place] = *value);
        values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect::<Vec<u8>>()
    };
    let of = |row: usize, column: usize| row * columns + column;
    let plain = bf16(noise(rows * columns, 21), &[]);
    let mut zeros = plain.clone();
    zeros[2 * of(4, 128)..2 * of(5, 0)].fill(0);
    let all: Vec<usize> = (0..rows).collect();
    for (what, as_they_are, bytes, x) in [
        (
            "weights that are not finite",
            vec![3, 9, 299],
            bf16(
                noise(rows * columns, 22),
                &[(of(3, 5), f32::INFINITY), (of(9, 299), f32::NEG_INFINITY), (of(299, 130), f32::NAN)],
            ),
            noise(count * columns, 23),
        ),
        (
            "weights beyond what is squared",
            vec![0, 250],
            bf16(noise(rows * columns, 24), &[(of(0, 0), 3e38), (of(250, 200), -1e30)]),
            noise(count * columns, 25),
        ),
        (
            "subnormal weights",
            all.clone(),
            bf16(vec![1e-40; rows * columns], &[]),
            noise(count * columns, 26),
        ),
        ("subnormal rows", all.clone(), plain.clone(), vec![1e-40; count * columns]),
        ("large rows", all.clone(), plain, vec![1e30; count * columns]),
        ("weights that are zeros", Vec::new(), zeros.clone(), noise(count * columns, 27)),
        ("rows that are zeros", all, zeros, vec![0.0; count * columns]),
    ] {
        let layer = Layer { weights: Weights::Blocks(BlockFormat::BF16, &bytes), rows, columns, bias: None };
        let mut numbers = vec![0f32; rows * columns];
        decode(Processor::Portable, BlockFormat::BF16, &bytes, &mut numbers);
        let exact = exactly(&numbers, columns, &x, Rounding::SixteenBits);
        for processor in Processor::tested() {
            let result = computed(processor, layer, &x);
            let plain = computed(processor.without_integer_dot(), layer, &x);
            for (index, (value, expected)) in result.iter().zip(plain).enumerate() {
                let (sum, allowed) = exact[index];
                let same = *value == expected || value.is_nan() && expected.is_nan();
                let close =
                    !as_they_are.contains(&(index % rows)) && (f64::from(*value) - sum).abs() <= allowed;
                assert!(same || close, "{processor:?} {what} {index}: {value} instead of {expected}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_gives_nothing_that_is() {
    let (rows, columns) = (5, 512);
    for processor in Processor::tested() {
        for format in BlockFormat::ALL {
            let bytes = format.encode(&noise(rows * columns, 7), columns).unwrap();
            for (count, wrong) in [(1, f32::NAN), (3, f32::INFINITY), (70, f32::NEG_INFINITY)] {
                let mut x = noise(count * columns, 8);
                x[columns / 2 + 3] = wrong;
                let layer = Layer { weights: Weights::Blocks(format, &bytes), rows, columns, bias: None };
                let result = computed(processor, layer, &x);
                let (first, others) = result.split_at(rows);
                let what = format!("{processor:?} {} {wrong}", format.name());
                assert!(first.iter().all(|value| !value.is_finite()), "{what}: {first:?}");
                assert!(others.iter().all(|value| value.is_finite()), "{what}");
            }
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    let layer = |rows, columns, bias| Layer { weights: Weights::F32(&[]), rows, columns, bias };
    assert_eq!(layer(3, 0, None).forward(&[], 2, true), [0.0; 6]);
    assert_eq!(layer(3, 0, Some(&[1.0, 2.0, 3.0])).forward(&[], 1, false), [1.0, 2.0, 3.0]);
    assert_eq!(layer(0, 4, None).forward(&[0.0; 8], 2, true), [0.0; 0]);
    assert_eq!(layer(2, 4, None).forward(&[], 0, true), [0.0; 0]);
}
