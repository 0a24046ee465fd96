//! Products with weights in blocks against products with the same weights unpacked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use llamavid_kernels::{
    BlockFormat, Heads, Norm, NormPlace, Projection, QuantisedMatrix, SharedBytes, Weight, attention_block,
    embedding, gelu_block, instruction_set, linear, normed_projections, rms_norm, swiglu_block,
};

mod noise;

use noise::noise;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    assert_eq!(actual.dtype(), expected.dtype(), "{what}");
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (actual, expected) in actual.iter().zip(&expected) {
        // Written so that NaN fails.
        assert!((actual - expected).abs() <= tolerance * largest, "{what}: {actual} instead of {expected}");
    }
}

/// How far products of so many rows may be from those with the unpacked weights, relative to the largest: rows are quantised
/// to int8 by some instructions, by some few rows only, and many by some to int16.
fn tolerance(format: BlockFormat, rows: usize) -> f32 {
    let (to_eight_bits, to_sixteen) = match instruction_set().unwrap() {
        "avx512-f32" | "avx2-f32" | "neon" | "portable" => (false, false),
        "avx512" => (rows <= 16, false),
        "avx2" => (rows <= 16, true),
        "avx512amx" | "avx512vnni" | "avxvnni" => (true, true),
        _ => (true, false),
    };
    if to_eight_bits && format.block_length() > 1 {
        1e-2
    } else if to_sixteen && format != BlockFormat::F32 {
        2e-4
    } else {
        2e-6
    }
}

/// A number of columns that the format can have, no multiple of anything larger.
fn columns(format: BlockFormat) -> usize {
    match format.block_length() {
        1 => 77,
        length => 3 * length,
    }
}

/// Three matrices of one number of columns: together they give what each gives alone, to the bit, whatever the formats are and
/// wherever a thread's share of all their rows ends.
#[test]
fn three_products_together_are_the_same_three_products() {
    let formats = [
        [BlockFormat::Q4K, BlockFormat::Q4K, BlockFormat::Q6K],
        [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q8_0],
        [BlockFormat::F16, BlockFormat::BF16, BlockFormat::F16],
    ];
    for (formats, outputs) in formats.iter().zip([[321, 33, 1], [64, 1000, 7], [400, 5, 33]]) {
        let matrices: Vec<_> = formats
            .iter()
            .zip(outputs)
            .map(|(format, rows)| {
                let matrix = QuantisedMatrix::quantise(&noise(&[rows, 768], rows as u32), *format).unwrap();
                if rows == 400 { matrix.with_turned_heads(20).unwrap() } else { matrix }
            })
            .collect();
        for rows in [1, 2, 5, 9, 70] {
            let x = noise(&[1, rows, 768], rows as u32);
            let layers = std::array::from_fn(|layer| Projection {
                weight: Weight::Blocks(&matrices[layer]),
                bias: None,
            });
            let weight = Tensor::full(0.5f32, 768, &Device::Cpu).unwrap();
            let norm = Norm { weight: &weight, bias: None, eps: 1e-5 };
            let together = normed_projections(&x, norm, layers).unwrap();
            let normed = rms_norm(&x, &weight, 1e-5).unwrap();
            for ((together, matrix), outputs) in together.iter().zip(&matrices).zip(outputs) {
                assert_eq!(together.dims(), [1, rows, outputs]);
                assert_eq!(
                    values(together),
                    values(&matrix.linear(&normed).unwrap()),
                    "{formats:?}, {rows} rows"
                );
            }
            let narrow = x.narrow(2, 0, 767).unwrap();
            assert!(normed_projections(&narrow, norm, layers).is_err());
        }
    }
}

/// Queries or keys of llama.cpp's files: the first row of a head, the first of its second half, and so on.
#[test]
fn heads_whose_halves_lie_in_turn_give_what_they_give_in_order() {
    let (rows, head, columns) = (24, 8, 512);
    let x = noise(&[1, 9, columns], 30);
    let ids = Tensor::new(&[[17u32, 0], [5, 23]], &Device::Cpu).unwrap();
    for format in BlockFormat::ALL {
        let what = format.name();
        let stored = QuantisedMatrix::quantise(&noise(&[rows, columns], 31), format).unwrap();
        let turned = stored.clone().with_turned_heads(head).unwrap();
        let in_order = stored.dequantise().unwrap().reshape((rows / head, head / 2, 2, columns)).unwrap();
        let in_order =
            in_order.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap();
        assert_eq!(values(&turned.dequantise().unwrap()), values(&in_order), "{what}");
        assert_eq!(
            values(&turned.embedding(&ids).unwrap()),
            values(&embedding(&in_order, &ids).unwrap()),
            "{what}"
        );
        for (rows, columns) in
            [(8..24, 0..columns), (0..8, 0..columns), (3..13, 0..columns), (8..16, 256..512)]
        {
            let expected = in_order.narrow(0, rows.start, rows.len()).unwrap();
            let expected = expected.narrow(1, columns.start, columns.len()).unwrap();
            let part = turned.part(rows, columns).unwrap();
            assert_eq!(values(&part.dequantise().unwrap()), values(&expected), "{what}");
        }
        for count in [1, 3, 9] {
            let x = x.narrow(1, 0, count).unwrap();
            let expected = stored.linear(&x).unwrap().reshape((1, count, rows / head, head / 2, 2)).unwrap();
            let expected = expected.transpose(3, 4).unwrap().contiguous().unwrap();
            let expected = values(&expected);
            assert_eq!(values(&turned.linear(&x).unwrap()), expected, "{what}");
        }
        let tracked = Var::from_tensor(&x).unwrap();
        let gradient = |product: Tensor| {
            let weights = noise(&[1, 9, rows], 32);
            let loss = (product * weights).unwrap().sum_all().unwrap();
            loss.backward().unwrap().get(&tracked).unwrap().clone()
        };
        let expected = gradient(linear(&tracked, &in_order, None).unwrap());
        assert_close(&gradient(turned.linear(&tracked).unwrap()), &expected, 1e-5, what);
        assert!(turned.with_turned_heads(head).is_err());
        assert!(stored.clone().with_turned_heads(7).is_err() && stored.with_turned_heads(16).is_err());
    }
}

#[test]
fn interleaved_rows_give_what_they_give_in_order() {
    let (rows, head, columns) = (40, 8, 512);
    let x = noise(&[1, 41, columns], 33);
    let ids = Tensor::new(&[[17u32, 0], [39, 23]], &Device::Cpu).unwrap();
    for format in BlockFormat::ALL.into_iter().filter(|format| format.interleaves()) {
        let what = format.name();
        let plain = QuantisedMatrix::quantise(&noise(&[rows, columns], 34), format).unwrap();
        for stored in [plain.clone(), plain.with_turned_heads(head).unwrap()] {
            let interleaved = stored.interleaved().unwrap();
            assert!(interleaved.is_interleaved() && !stored.is_interleaved());
            assert_eq!(interleaved.size_in_bytes(), stored.size_in_bytes());
            assert_eq!(interleaved.interleaved().unwrap().bytes(), interleaved.bytes(), "{what}");
            let dense = stored.dequantise().unwrap();
            assert_eq!(values(&interleaved.dequantise().unwrap()), values(&dense), "{what}");
            assert_eq!(
                values(&interleaved.embedding(&ids).unwrap()),
                values(&stored.embedding(&ids).unwrap()),
                "{what}"
            );
            for (rows, columns) in [
                (0..40, 0..columns),
                (16..32, 0..columns),
                (32..40, 0..columns),
                (3..30, 0..columns),
                (8..40, 256..512),
            ] {
                let expected = stored.part(rows.clone(), columns.clone()).unwrap();
                let part = interleaved.part(rows, columns).unwrap();
                assert_eq!(values(&part.dequantise().unwrap()), values(&expected.dequantise().unwrap()));
                let x = x.narrow(2, 0, part.shape().1).unwrap();
                assert_close(&part.linear(&x).unwrap(), &expected.linear(&x).unwrap(), 1e-5, what);
            }
            for count in [1, 2, 5, 8, 9, 17, 24, 33, 41] {
                let x = x.narrow(1, 0, count).unwrap();
                let expected = stored.linear(&x).unwrap();
                // Rows in order may be rounded in another way.
                let tolerance = 2.0 * tolerance(format, count);
                assert_close(&interleaved.linear(&x).unwrap(), &expected, tolerance, what);
            }
            let tracked = Var::from_tensor(&x).unwrap();
            let gradient = |matrix: &QuantisedMatrix| {
                let loss = (matrix.linear(&tracked).unwrap() * noise(&[1, 41, rows], 32)).unwrap();
                loss.sum_all().unwrap().backward().unwrap().get(&tracked).unwrap().clone()
            };
            assert_close(&gradient(&interleaved), &gradient(&stored), 1e-6, what);
        }
    }
    let plain = QuantisedMatrix::quantise(&noise(&[rows, columns], 34), BlockFormat::F16).unwrap();
    assert!(plain.interleaved().is_err() && plain.with_interleaved_rows().is_err());
}

#[test]
fn a_part_is_the_part_of_the_unpacked_matrix() {
    for format in BlockFormat::ALL {
        let length = format.block_length();
        let columns = 4 * length;
        let matrix = QuantisedMatrix::quantise(&noise(&[7, columns], 5), format).unwrap();
        let whole = matrix.dequantise().unwrap();
        for (rows, part) in
            [(0..7, 0..columns), (2..5, 0..columns), (0..7, length..3 * length), (6..7, 0..length)]
        {
            let expected = whole.narrow(0, rows.start, rows.len()).unwrap();
            let expected = expected.narrow(1, part.start, part.len()).unwrap();
            let part = matrix.part(rows, part).unwrap();
            assert_eq!(values(&part.dequantise().unwrap()), values(&expected), "{}", format.name());
        }
        assert!(matrix.part(3..8, 0..columns).is_err() && matrix.part(0..1, 0..columns + length).is_err());
        if length > 1 {
            assert!(matrix.part(0..7, 0..length / 2).is_err() && matrix.part(0..7, 8..8 + length).is_err());
        }
    }
}

#[test]
fn products_are_those_of_the_unpacked_weights() {
    for format in BlockFormat::ALL {
        for (outputs, width) in [(1, columns(format)), (45, columns(format)), (700, 4096)] {
            let weight = QuantisedMatrix::quantise(&noise(&[outputs, width], 1), format).unwrap();
            let dense = weight.dequantise().unwrap();
            for rows in [1, 2, 7, 33, 259] {
                let what = format!("{} {outputs} x {width}, {rows} rows", format.name());
                let x = noise(&[rows, width], 2);
                let expected = linear(&x, &dense, None).unwrap();
                assert_close(&weight.linear(&x).unwrap(), &expected, tolerance(format, rows), &what);
            }
        }
    }
}

#[test]
fn rounding_is_as_small_as_the_format_is_wide() {
    let weight = noise(&[64, 1024], 3);
    for (format, most) in [
        (BlockFormat::F32, 0.0),
        (BlockFormat::F16, 3e-4),
        (BlockFormat::BF16, 2e-3),
        (BlockFormat::Q8_0, 4e-3),
        (BlockFormat::Q6K, 2e-2),
        (BlockFormat::Q5K, 4e-2),
        (BlockFormat::Q4K, 8e-2),
        (BlockFormat::Q4_0, 1e-1),
    ] {
        let stored = QuantisedMatrix::quantise(&weight, format).unwrap().dequantise().unwrap();
        let square = |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        let error = (square(&(stored - &weight).unwrap()) / square(&weight)).sqrt();
        assert!(error <= most, "{}: {error}", format.name());
    }
}

#[test]
fn batches_half_precision_and_nothing_at_all() {
    let weight = QuantisedMatrix::quantise(&noise(&[40, 64], 4), BlockFormat::Q8_0).unwrap();
    let dense = weight.dequantise().unwrap();
    let x = noise(&[3, 5, 64], 5);
    let close = tolerance(BlockFormat::Q8_0, 15);
    assert_close(&weight.linear(&x).unwrap(), &linear(&x, &dense, None).unwrap(), close, "a batch");
    let strided = x.transpose(0, 1).unwrap();
    let expected = linear(&strided.contiguous().unwrap(), &dense, None).unwrap();
    assert_close(&weight.linear(&strided).unwrap(), &expected, close, "strided");
    // Sums in another order may be rounded to the number next to it.
    for (dtype, rounding) in [(DType::F16, 5e-4), (DType::BF16, 4e-3)] {
        let x = x.to_dtype(dtype).unwrap();
        let expected = linear(&x.to_dtype(DType::F32).unwrap(), &dense, None).unwrap();
        assert_close(
            &weight.linear(&x).unwrap(),
            &expected.to_dtype(dtype).unwrap(),
            close.max(rounding),
            "half precision",
        );
    }
    let none = Tensor::zeros((0, 64), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(weight.linear(&none).unwrap().dims(), [0, 40]);
    assert!(weight.linear(&noise(&[2, 32], 6)).is_err());
}

#[test]
fn gradients_reach_what_is_multiplied_and_belong_to_the_product() {
    let x = Var::from_tensor(&noise(&[70, 2560], 8)).unwrap();
    let slope = noise(&[70, 1000], 9);
    let gradient = |product: Tensor| {
        (product * &slope).unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone()
    };
    for format in [BlockFormat::Q4K, BlockFormat::F16] {
        let weight = QuantisedMatrix::quantise(&noise(&[1000, 2560], 7), format).unwrap();
        let dense = weight.dequantise().unwrap();
        // Nothing is rounded on the way to a gradient.
        let (product, expected) = (weight.linear(&x).unwrap(), linear(&x, &dense, None).unwrap());
        assert_close(&product, &expected, 2e-6, format.name());
        assert_close(&gradient(product), &gradient(expected), 2e-6, format.name());
    }
}

#[test]
fn rows_of_a_table() {
    let ids = Tensor::new(&[[6u32, 0], [6, 3]], &Device::Cpu).unwrap();
    for format in BlockFormat::ALL {
        let table = QuantisedMatrix::quantise(&noise(&[7, columns(format)], 10), format).unwrap();
        let expected = embedding(&table.dequantise().unwrap(), &ids).unwrap();
        assert_close(&table.embedding(&ids).unwrap(), &expected, 0.0, format.name());
        let outside = Tensor::new(&[7u32], &Device::Cpu).unwrap();
        assert!(table.embedding(&outside).unwrap_err().to_string().contains("row 7"));
    }
}

#[test]
fn blocks_of_a_transformer_take_both_kinds_of_weights() {
    let (rows, width, inner) = (9, 64, 96);
    let stored = |outputs: usize, inputs: usize, seed| {
        let weight = (noise(&[outputs, inputs], seed) / 8.0).unwrap();
        QuantisedMatrix::quantise(&weight, BlockFormat::Q8_0).unwrap()
    };
    let (x, norm_weight, norm_bias) = (noise(&[2, rows, width], 1), noise(&[width], 2), noise(&[width], 3));
    let bias = noise(&[width], 4);
    let square: Vec<_> = (5..9).map(|seed| stored(width, width, seed)).collect();
    let (up, gate, down) = (stored(inner, width, 9), stored(inner, width, 10), stored(width, inner, 11));
    let both = |layers: &[&QuantisedMatrix], block: &dyn Fn(&[Projection]) -> Tensor, what: &str| {
        let dense: Vec<_> = layers.iter().map(|layer| layer.dequantise().unwrap()).collect();
        let last = layers.len() - 1;
        let biased = |index: usize| (index == last).then_some(&bias);
        let stored: Vec<_> = (0..layers.len())
            .map(|index| Projection { weight: Weight::Blocks(layers[index]), bias: biased(index) })
            .collect();
        let dense: Vec<_> = (0..layers.len())
            .map(|index| Projection { weight: Weight::Dense(&dense[index]), bias: biased(index) })
            .collect();
        let mixed = [&stored[..1], &dense[1..]].concat();
        let close = tolerance(BlockFormat::Q8_0, 2 * rows).max(1e-5);
        assert_close(&block(&stored), &block(&dense), close, what);
        assert_close(&block(&mixed), &block(&dense), close, what);
    };
    for place in [NormPlace::Before, NormPlace::After(None)] {
        let norm = (Norm { weight: &norm_weight, bias: Some(&norm_bias), eps: 1e-5 }, place);
        let heads = Heads::new(4, width / 4);
        let attend =
            |layers: &[Projection]| attention_block(&x, norm, &layers[..3], layers[3], &heads).unwrap();
        both(&square.iter().collect::<Vec<_>>(), &attend, "attention");
        let feed = |layers: &[Projection]| gelu_block(&x, norm, layers[0], layers[1]).unwrap();
        both(&[&up, &down], &feed, "GELU");
        let gated = |layers: &[Projection]| swiglu_block(&x, norm, layers[0], layers[1], layers[2]).unwrap();
        both(&[&gate, &up, &down], &gated, "SwiGLU");
    }
}

#[test]
fn bytes_are_taken_as_they_lie_and_only_as_many_as_there_are() {
    let matrix = QuantisedMatrix::quantise(&noise(&[5, 64], 12), BlockFormat::Q4_0).unwrap();
    // At an odd address, with something else around.
    let owner: Arc<Vec<u8>> = Arc::new([&[1], matrix.bytes(), &[2, 3]].concat());
    let bytes = SharedBytes::new(owner.clone(), 1..1 + matrix.size_in_bytes()).unwrap();
    let lying = QuantisedMatrix::new(BlockFormat::Q4_0, 5, 64, bytes.clone()).unwrap();
    assert_eq!(values(&lying.dequantise().unwrap()), values(&matrix.dequantise().unwrap()));
    assert!(SharedBytes::new(owner.clone(), 1..owner.len() + 1).is_none());
    for (rows, columns) in [(4, 64), (5, 32), (5, 60), (usize::MAX, 64), (5, usize::MAX / 32 * 32)] {
        assert!(QuantisedMatrix::new(BlockFormat::Q4_0, rows, columns, bytes.clone()).is_err());
    }
}

#[test]
fn threads_share_a_matrix() {
    let matrix = QuantisedMatrix::quantise(&noise(&[300, 256], 13), BlockFormat::Q6K).unwrap();
    let x = noise(&[9, 256], 14);
    let expected = values(&matrix.linear(&x).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(values(&matrix.linear(&x).unwrap()), expected));
        }
    });
}
