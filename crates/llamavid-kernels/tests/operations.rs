//! Each operation against its definition in f64, with and without a gradient, in every dtype.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use llamavid_kernels::{
    Heads, attention, folded_attention, gelu, layer_norm, multi_head_attention, rms_norm, rotary_embedding,
    softmax,
};

mod noise;

use noise::noise;

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference against the largest value.
#[track_caller]
fn assert_close(actual: &Tensor, expected: &[f64], tolerance: f64) {
    let actual = values(actual);
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    for (actual, expected) in actual.iter().zip(expected) {
        // Written so that NaN fails.
        assert!((actual - expected).abs() <= tolerance * largest, "{actual} instead of {expected}");
    }
}

/// `operation` of `x` equals `expected`: in f32, with a gradient, of a strided `x`, and nearly so in half precision.
/// The gradient equals the slope of the operation.
fn check(x: &Tensor, operation: impl Fn(&Tensor) -> Result<Tensor>, expected: impl Fn(&[f64]) -> Vec<f64>) {
    let reference = expected(&values(x));
    assert_close(&operation(x).unwrap(), &reference, 1e-6);

    let strided = x.t().unwrap().contiguous().unwrap().t().unwrap();
    assert!(!strided.is_contiguous());
    assert_close(&operation(&strided).unwrap(), &reference, 1e-6);

    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let half = operation(&x.to_dtype(dtype).unwrap()).unwrap();
        assert_eq!(half.dtype(), dtype);
        assert_close(&half, &expected(&values(&x.to_dtype(dtype).unwrap())), tolerance);
    }

    let var = Var::from_tensor(x).unwrap();
    let result = operation(&var).unwrap();
    assert_close(&result, &reference, 1e-6);
    let weights = noise(result.dims(), 99);
    let gradients = (&result * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = values(gradients.get(&var).expect("a gradient"));
    let weights = values(&weights);
    let point = values(x);
    let mut slope = Vec::new();
    for index in 0..point.len() {
        let at = |step: f64| -> f64 {
            let mut moved = point.clone();
            moved[index] += step;
            expected(&moved).iter().zip(&weights).map(|(value, weight)| value * weight).sum()
        };
        slope.push((at(1e-5) - at(-1e-5)) / 2e-5);
    }
    let gradient = Tensor::new(gradient, &Device::Cpu).unwrap();
    assert_close(&gradient, &slope, 1e-4);
}

/// Applies a function of rows to each row of `width`.
fn by_rows(x: &[f64], width: usize, row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(width).flat_map(row).collect()
}

fn softmax_row(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().fold(f64::MIN, |largest, value| largest.max(*value));
    let exponents: Vec<f64> = row.iter().map(|value| (value - largest).exp()).collect();
    let sum: f64 = exponents.iter().sum();
    exponents.iter().map(|value| value / sum).collect()
}

fn layer_norm_row(row: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = (variance + eps).sqrt().recip();
    row.iter()
        .zip(weight)
        .zip(bias)
        .map(|((value, weight), bias)| (value - mean) * scale * weight + bias)
        .collect()
}

#[test]
fn softmax_is_its_definition() {
    let x = (noise(&[2, 3, 7], 1) * 4.0).unwrap();
    check(&x, softmax, |x| by_rows(x, 7, softmax_row));
}

#[test]
fn softmax_of_large_numbers_is_finite() {
    let x = Tensor::new(&[[1e4f32, -1e4, 1e4, 0.0]], &Device::Cpu).unwrap();
    assert_close(&softmax(&x).unwrap(), &[0.5, 0.0, 0.5, 0.0], 1e-6);
}

#[test]
fn layer_norm_is_its_definition() {
    // Not a multiple of the lanes, and one that is.
    for width in [35, 32] {
        let (weight, bias) = (noise(&[width], 2), noise(&[width], 3));
        let (weights, biases) = (values(&weight), values(&bias));
        let operation =
            |x: &Tensor| layer_norm(x, &weight.to_dtype(x.dtype())?, &bias.to_dtype(x.dtype())?, 1e-6);
        check(&noise(&[2, 3, width], 4), operation, |x| {
            by_rows(x, width, |row| layer_norm_row(row, &weights, &biases, 1e-6))
        });
    }
}

#[test]
fn layer_norm_keeps_the_variance_of_rows_far_from_zero() {
    let x = (noise(&[4, 1408], 5) + 1000.0).unwrap();
    let weight = Tensor::ones(1408, DType::F32, &Device::Cpu).unwrap();
    let bias = weight.zeros_like().unwrap();
    let (ones, zeros) = (vec![1.0; 1408], vec![0.0; 1408]);
    let expected = by_rows(&values(&x), 1408, |row| layer_norm_row(row, &ones, &zeros, 1e-12));
    assert_close(&layer_norm(&x, &weight, &bias, 1e-12).unwrap(), &expected, 1e-3);

    let constant = (x.zeros_like().unwrap() + 3.1).unwrap();
    let normalised = layer_norm(&constant, &weight, &bias, 1e-12).unwrap();
    assert!(values(&normalised).iter().all(|value| value.abs() < 1.0), "a row without variance");
}

#[test]
fn layer_norm_names_a_wrong_size() {
    let (x, weight) = (noise(&[2, 8], 6), noise(&[7], 6));
    let error = layer_norm(&x, &weight, &weight, 1e-6).unwrap_err().to_string();
    assert!(error.contains("8 weights") && error.contains('7'), "{error}");
}

#[test]
fn rms_norm_is_its_definition() {
    let weight = noise(&[10], 7);
    let weights = values(&weight);
    let operation = |x: &Tensor| rms_norm(x, &weight.to_dtype(x.dtype())?, 1e-5);
    check(&noise(&[2, 3, 10], 8), operation, |x| {
        by_rows(x, 10, |row| {
            let mean = row.iter().map(|value| value * value).sum::<f64>() / 10.0;
            row.iter().zip(&weights).map(|(value, weight)| value / (mean + 1e-5).sqrt() * weight).collect()
        })
    });
}

#[test]
fn gelu_is_its_definition() {
    // The distribution function of the normal distribution, by Simpson's rule from 0 on.
    let below = |x: f64| {
        let steps = 400;
        let step = x / f64::from(steps);
        let density = |at: f64| (-at * at / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let sum: f64 = (0..=steps)
            .map(|index| {
                let weight = if index == 0 || index == steps { 1.0 } else { f64::from(2 + 2 * (index % 2)) };
                weight * density(f64::from(index) * step)
            })
            .sum();
        0.5 + sum * step / 3.0
    };
    let x = (noise(&[2, 3, 7], 9) * 5.0).unwrap();
    check(&x, gelu, |x| x.iter().map(|value| value * below(*value)).collect());
}

/// Over blocks, vectors and single values, and where the error function ends.
#[test]
fn gelu_agrees_with_candle() {
    let x = (noise(&[3, 5001], 10) * 8.0).unwrap();
    for (actual, expected) in values(&gelu(&x).unwrap()).iter().zip(values(&x.gelu_erf().unwrap())) {
        assert!((actual - expected).abs() < 6e-7, "{actual} instead of {expected}");
    }
    let ends = Tensor::new(&[0f32, -0.0, 1e30, -1e30, f32::INFINITY, 1e-30], &Device::Cpu).unwrap();
    assert_eq!(values(&gelu(&ends).unwrap())[..4], [0.0, 0.0, f64::from(1e30f32), 0.0]);
    assert_eq!(values(&gelu(&ends).unwrap())[4..], [f64::INFINITY, f64::from(1e-30f32 * 0.5)]);
    let not_a_number = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
    assert!(values(&gelu(&not_a_number).unwrap())[0].is_nan());
}

#[test]
fn rotary_embedding_is_its_definition() {
    let (positions, width) = (3, 8);
    let angles = noise(&[positions, width / 2], 11).affine(3.0, 0.0).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let turned = values(&angles);
    let operation = |x: &Tensor| rotary_embedding(x, &cos.to_dtype(x.dtype())?, &sin.to_dtype(x.dtype())?);
    check(&noise(&[2, 2, positions, width], 12), operation, |x| {
        let rows = x.chunks_exact(width).enumerate().flat_map(|(row, x)| {
            let angles = &turned[row % positions * (width / 2)..][..width / 2];
            let half = |sign: f64, own: usize, other: usize| {
                (0..width / 2)
                    .map(|index| {
                        x[own + index] * angles[index].cos() + sign * x[other + index] * angles[index].sin()
                    })
                    .collect::<Vec<_>>()
            };
            [half(-1.0, 0, width / 2), half(1.0, width / 2, 0)].concat()
        });
        rows.collect()
    });
}

#[test]
fn attention_is_its_definition() {
    let (queries, keys, width, scale) = (3, 5, 4, 0.5);
    let (k, v) = (noise(&[1, 2, keys, width], 13), noise(&[1, 2, keys, width], 14));
    let bias = noise(&[1, 1, queries, keys], 15);
    let (key_values, value_values, bias_values) = (values(&k), values(&v), values(&bias));
    for biased in [false, true] {
        let operation = |q: &Tensor| {
            let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
            attention(q, &k, &v, scale, biased.then_some(&bias))
        };
        check(&noise(&[1, 2, queries, width], 16), operation, |q| {
            let rows = q.chunks_exact(width).enumerate().flat_map(|(row, q)| {
                let head = row / queries * keys * width;
                let scores: Vec<f64> = (0..keys)
                    .map(|key| {
                        let product: f64 =
                            (0..width).map(|i| q[i] * key_values[head + key * width + i]).sum();
                        let bias = if biased { bias_values[row % queries * keys + key] } else { 0.0 };
                        scale * product + bias
                    })
                    .collect();
                let shares = softmax_row(&scores);
                let value =
                    |i: usize| (0..keys).map(|key| shares[key] * value_values[head + key * width + i]).sum();
                (0..width).map(value).collect::<Vec<f64>>()
            });
            rows.collect()
        });
    }
}

#[test]
fn attention_gives_keys_and_values_a_gradient() {
    let vars: Vec<Var> =
        (0..4).map(|seed| Var::from_tensor(&noise(&[1, 2, 3, 4], 20 + seed)).unwrap()).collect();
    let bias = vars[3].narrow(D::Minus1, 0, 3).unwrap();
    let out = attention(&vars[0], &vars[1], &vars[2], 0.5, Some(&bias)).unwrap();
    let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in ["q", "k", "v", "bias"].iter().zip(&vars) {
        let gradient = gradients.get(var).map(values).unwrap_or_default();
        assert!(gradient.iter().any(|value| *value != 0.0), "{name}");
    }
}

#[test]
fn norms_give_their_weights_a_gradient() {
    let x = noise(&[3, 6], 30);
    let weight = Var::from_tensor(&noise(&[6], 31)).unwrap();
    let bias = Var::from_tensor(&noise(&[6], 32)).unwrap();
    for out in [layer_norm(&x, &weight, &bias, 1e-6).unwrap(), rms_norm(&x, &weight, 1e-6).unwrap()] {
        let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&weight).is_some());
    }
    let out = layer_norm(&x, &weight.detach(), &bias, 1e-6).unwrap();
    assert!(out.sum_all().unwrap().backward().unwrap().get(&bias).is_some());
}

#[test]
fn folded_attention_is_attention_of_its_keys_and_values() {
    // Frames, queries, rows, width of the rows, heads and their width; also more heads than a task takes.
    for (frames, count, rows, visual, heads, head_width) in
        [(1, 1, 1, 3, 1, 2), (2, 3, 17, 40, 3, 8), (3, 5, 30, 33, 6, 4)]
    {
        let width = heads * head_width;
        let inputs = [
            noise(&[frames, count, width], 1),
            noise(&[frames, rows, visual], 2),
            noise(&[width, visual], 3),
            noise(&[width, visual], 4),
            noise(&[width], 5),
        ];
        let [queries, x, key, value, bias] =
            inputs.each_ref().map(|input| input.to_dtype(DType::F64).unwrap());
        let project = |weight: &Tensor| x.broadcast_matmul(&weight.t().unwrap()).unwrap();
        let values_of_rows = project(&value).broadcast_add(&bias).unwrap();
        let options = Heads::new(heads, head_width);
        let expected = multi_head_attention(&queries, &project(&key), &values_of_rows, &options).unwrap();
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-6), (DType::F16, 1e-2)] {
            let [queries, x, key, value, bias] =
                inputs.each_ref().map(|input| input.to_dtype(dtype).unwrap());
            let found = folded_attention(&queries, &x, &key, &value, Some(&bias), heads).unwrap();
            assert_eq!(found.dims(), [frames, count, width]);
            assert_close(&found, &values(&expected), tolerance);
        }
    }
    assert!(
        folded_attention(
            &noise(&[2, 3, 4], 1),
            &noise(&[1, 3, 4], 2),
            &noise(&[4, 4], 3),
            &noise(&[4, 4], 4),
            None,
            2
        )
        .is_err()
    );
}
