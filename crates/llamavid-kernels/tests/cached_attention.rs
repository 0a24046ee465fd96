//! Attention over cached positions against the same over whole sequences, by candle's own operations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use candle_core::{D, DType, Device, Tensor};
use llamavid_kernels::{BlockFormat, CachedRows, cached_attention, instruction_set, softmax};

mod noise;

/// Numbers between -2 and 2 that follow no pattern.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    (noise::noise(shape, seed) * 2.0).unwrap()
}

/// Scores, mask, softmax and sum one after the other, in f64.
fn plainly(q: &Tensor, k: &Tensor, v: &Tensor, length: usize, padding: Option<&Tensor>) -> Tensor {
    let (batch, heads, queries, width) = q.dims4().unwrap();
    let key_heads = k.dims()[1];
    let [q, k, v] = [q, k, v].map(|tensor| tensor.to_dtype(DType::F64).unwrap());
    let of_queries = |x: &Tensor| {
        let x = x.narrow(2, 0, length).unwrap().unsqueeze(2).unwrap();
        let x = x.broadcast_as((batch, key_heads, heads / key_heads, length, width)).unwrap();
        x.contiguous().unwrap().reshape((batch, heads, length, width)).unwrap()
    };
    let (k, v) = (of_queries(&k), of_queries(&v));
    let mut bias = vec![0f64; batch * queries * length];
    let seen = padding.map(|padding| padding.to_vec2::<u8>().unwrap());
    for (place, bias) in bias.iter_mut().enumerate() {
        let (sequence, query, key) = (place / length / queries, place / length % queries, place % length);
        if key > length - queries + query || seen.as_ref().is_some_and(|seen| seen[sequence][key] == 0) {
            *bias = f64::from(f32::MIN);
        }
    }
    let bias = Tensor::from_vec(bias, (batch, 1, queries, length), &Device::Cpu).unwrap();
    let scores = (q.matmul(&k.transpose(2, 3).unwrap().contiguous().unwrap()).unwrap()
        / (width as f64).sqrt())
    .unwrap()
    .broadcast_add(&bias)
    .unwrap();
    let attended = softmax(&scores).unwrap().matmul(&v).unwrap();
    attended.transpose(1, 2).unwrap().reshape((batch, queries, heads * width)).unwrap()
}

#[track_caller]
fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let actual = actual.to_dtype(DType::F64).unwrap();
    let error = (&actual - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    // Written so that NaN fails.
    assert!(error <= tolerance, "{what}: {error:e}");
}

/// B, query heads, key heads, queries, positions, capacity and head width.
const CASES: [[usize; 7]; 12] = [
    [1, 2, 2, 1, 1, 1, 8],
    [1, 4, 4, 1, 700, 900, 32],
    [1, 1, 1, 1, 2500, 2500, 64],
    [1, 5, 1, 2, 1700, 2048, 32],
    [1, 8, 2, 1, 513, 513, 64],
    [2, 4, 2, 3, 300, 301, 32],
    [1, 4, 4, 9, 257, 300, 128],
    [1, 6, 2, 200, 200, 256, 96],
    [2, 4, 1, 70, 600, 1024, 64],
    [1, 3, 3, 65, 400, 400, 7],
    [1, 2, 1, 2, 300, 300, 160],
    [1, 7, 1, 1, 900, 1000, 80],
];

#[test]
fn cached_positions_are_seen_as_whole_sequences_are() {
    for [batch, heads, key_heads, queries, length, capacity, width] in CASES {
        let q = noise(&[batch, heads, queries, width], 1);
        let k = noise(&[batch, key_heads, capacity, width], 2);
        let v = noise(&[batch, key_heads, capacity, width], 3);
        for padded in [false, true] {
            let what = format!("{heads}/{key_heads} heads, {queries} of {length}, {width} wide, {padded}");
            // The last fifth of the second sequence is padding, and a position in between.
            let padding = padded.then(|| {
                let seen = (0..batch * length).map(|place| {
                    let (sequence, position) = (place / length, place % length);
                    u8::from(!(sequence == 1 && position > length * 4 / 5 || position == 2))
                });
                Tensor::from_iter(seen, &Device::Cpu).unwrap().reshape((batch, length)).unwrap()
            });
            let expected = plainly(&q, &k, &v, length, padding.as_ref());
            let (keys, values) = (CachedRows::Numbers(&k), CachedRows::Numbers(&v));
            let actual = cached_attention(&q, keys, values, length, padding.as_ref()).unwrap();
            assert_close(&actual, &expected, 3e-6, &what);
        }
    }
}

#[test]
fn rows_in_blocks_are_those_that_are_unpacked() {
    for format in [BlockFormat::F16, BlockFormat::Q8_0, BlockFormat::Q4_0] {
        for [batch, heads, key_heads, queries, length, capacity, width] in CASES {
            if !width.is_multiple_of(format.block_length()) {
                continue;
            }
            let q = noise(&[batch, heads, queries, width], 4);
            let shape = [batch, key_heads, capacity, width];
            let [(keys, k), (values, v)] = [5, 6].map(|seed| {
                let numbers: Vec<f32> = noise(&shape, seed).flatten_all().unwrap().to_vec1().unwrap();
                let bytes = format.encode(&numbers, width).unwrap();
                let mut numbers = vec![0f32; numbers.len()];
                format.decode(&bytes, &mut numbers);
                (bytes, Tensor::from_vec(numbers, &shape, &Device::Cpu).unwrap())
            });
            let expected = plainly(&q, &k, &v, length, None);
            let rows = |bytes| CachedRows::Blocks { format, shape, bytes };
            let actual = cached_attention(&q, rows(&keys), rows(&values), length, None).unwrap();
            let what = format!("{}: {queries} of {length}, {width} wide", format.name());
            // AMX tiles quantise queries and probabilities to int16, which is felt most where few keys are seen.
            let rounds = instruction_set().unwrap() == "avx512amx" && format.block_length() > 1;
            assert_close(&actual, &expected, if rounds { 3e-4 } else { 3e-6 }, &what);
        }
    }
}

#[test]
fn a_row_that_sees_nothing_stays_a_number() {
    let [q, k, v] = [7, 8, 9].map(|seed| noise(&[1, 1, 4, 8], seed));
    let padding = Tensor::zeros((1, 4), DType::U8, &Device::Cpu).unwrap();
    let (keys, values) = (CachedRows::Numbers(&k), CachedRows::Numbers(&v));
    let actual = cached_attention(&q, keys, values, 4, Some(&padding)).unwrap();
    for (row, actual) in actual.squeeze(0).unwrap().to_vec2::<f32>().unwrap().into_iter().enumerate() {
        let mean = v.narrow(2, 0, row + 1).unwrap().mean(D::Minus2).unwrap().flatten_all().unwrap();
        for (actual, mean) in actual.iter().zip(mean.to_vec1::<f32>().unwrap()) {
            assert!((actual - mean).abs() < 1e-6, "{row}: {actual} instead of {mean}");
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let q = noise(&[1, 4, 3, 8], 1);
    let k = noise(&[1, 2, 10, 8], 2);
    let refused = |q: &Tensor, k: &Tensor, length, padding: Option<&Tensor>| {
        let rows = CachedRows::Numbers(k);
        cached_attention(q, rows, rows, length, padding).unwrap_err();
    };
    refused(&q, &k, 2, None); // more queries than positions
    refused(&q, &k, 11, None); // more positions than there is room for
    refused(&q, &noise(&[1, 3, 10, 8], 2), 5, None); // heads that do not divide
    refused(&q, &noise(&[1, 2, 10, 4], 2), 5, None); // another width
    refused(&q, &noise(&[2, 2, 10, 8], 2), 5, None); // another batch
    refused(&q, &k, 5, Some(&Tensor::zeros((1, 4), DType::U8, &Device::Cpu).unwrap()));
    let blocks = CachedRows::Blocks { format: BlockFormat::F16, shape: [1, 2, 10, 8], bytes: &[0; 7] };
    assert!(cached_attention(&q, blocks, blocks, 5, None).is_err());
    assert!(cached_attention(&q, blocks, CachedRows::Numbers(&k), 5, None).is_err());
}
