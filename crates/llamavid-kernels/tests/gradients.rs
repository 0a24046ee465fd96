//! Each fused operation, forwards and backwards, against the same operation in f64, which is put together from
//! candle's own operations and differentiated by candle.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use llamavid_kernels::{
    Dropout, Heads, IGNORED, Mask, Norm, NormPlace, Projection, Weight, attention, attention_block,
    cross_entropy, cross_entropy_sum, embedding, gelu, gelu_block, layer_norm, linear, multi_head_attention,
    packed_attention, rms_norm, rotary_embedding, softmax, swiglu, swiglu_block,
};

/// Largest error, relative to the largest value.
const TOLERANCE: f64 = 1e-5;

/// Numbers of the normal distribution's size, the same each time.
fn numbers(seed: usize, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let mut state = seed as u64 * 0x9e37_79b9_7f4a_7c15 + 1;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1 << 24) as f64 - 0.5
    };
    let values: Vec<f32> =
        (0..shape.elem_count()).map(|_| (2.0 * (uniform() + uniform() + uniform())) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[track_caller]
fn assert_close(what: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let flat = |tensor: &Tensor| {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    let (actual, expected) = (flat(actual), flat(expected));
    let largest = expected.iter().fold(1e-12f64, |largest, value| largest.max(value.abs()));
    for (place, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let error = (actual - expected).abs() / largest;
        assert!(error <= TOLERANCE, "{what}: {actual} at {place} should be {expected}, off by {error}");
    }
}

/// Runs `op` on `inputs` in f32 and in f64; results and all gradients have to agree, and an input that is no variable
/// has none.
#[track_caller]
fn check(what: &str, inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype: DType, frozen: Option<usize>| {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(dtype).unwrap()).collect();
        let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
        let arguments: Vec<Tensor> =
            (0..inputs.len())
                .map(|index| {
                    if frozen == Some(index) {
                        inputs[index].clone()
                    } else {
                        vars[index].as_tensor().clone()
                    }
                })
                .collect();
        let result = op(&arguments).unwrap();
        let weights = numbers(99, result.shape().clone()).to_dtype(dtype).unwrap();
        let gradients = (&result * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients: Vec<Option<Tensor>> = arguments.iter().map(|a| gradients.get(a).cloned()).collect();
        (result, gradients)
    };
    let (result, gradients) = run(DType::F32, None);
    let (expected, expected_gradients) = run(DType::F64, None);
    assert_eq!(result.dtype(), DType::F32);
    assert_close(what, &result, &expected);
    for (index, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        let what = format!("{what}: gradient of input {index}");
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{what} is missing"));
        assert_close(&what, gradient, expected.as_ref().unwrap());
    }
    if inputs.len() > 1 {
        for frozen in 0..inputs.len() {
            let (_, partial) = run(DType::F32, Some(frozen));
            for (index, gradient) in partial.iter().enumerate() {
                let what = format!("{what}, input {frozen} frozen: gradient of input {index}");
                match gradient {
                    None => assert_eq!(index, frozen, "{what} is missing"),
                    Some(_) if index == frozen => panic!("{what}"),
                    Some(gradient) => {
                        assert_close(&what, gradient, expected_gradients[index].as_ref().unwrap())
                    }
                }
            }
        }
    }
    let constant = op(inputs).unwrap();
    assert!(!constant.track_op());
    assert_close(what, &constant, &expected);
}

const WIDTHS: [usize; 5] = [1, 7, 32, 97, 384];

#[test]
fn norms() {
    for width in WIDTHS {
        for rows in [1, 3, 600] {
            let x = (numbers(1, (rows, width)) * 3.0).unwrap();
            let (weight, bias) = (numbers(2, width), numbers(3, width));
            // With one column, layer norm is a constant and its gradients are zero up to rounding.
            if width > 1 {
                let inputs = [(&x + 2.0).unwrap(), weight.clone(), bias];
                check(&format!("layer norm {rows} x {width}"), &inputs, |i| {
                    layer_norm(&i[0], &i[1], &i[2], 1e-6)
                });
            }
            check(&format!("rms norm {rows} x {width}"), &[x, weight], |i| rms_norm(&i[0], &i[1], 1e-2));
        }
    }
    check("three dimensions", &[numbers(1, (2, 3, 5)), numbers(2, 5)], |i| rms_norm(&i[0], &i[1], 1e-6));
}

#[test]
fn elementwise() {
    for count in [1, 15, 1000, 9001] {
        let x = (numbers(1, count) * 3.0).unwrap();
        check("gelu", std::slice::from_ref(&x), |i| gelu(&i[0]));
        check("swiglu", &[x, numbers(2, count)], |i| swiglu(&i[0], &i[1]));
    }
}

#[test]
fn softmaxes() {
    for width in WIDTHS {
        let x = (numbers(1, (2, 9, width)) * 5.0).unwrap();
        if width > 1 {
            check("softmax", &[x], |i| softmax(&i[0]));
        }
    }
    let x = Tensor::new(&[[f32::MIN, 0.0], [f32::NEG_INFINITY, 1.0], [200.0, -200.0]], &Device::Cpu).unwrap();
    assert_eq!(softmax(&x).unwrap().to_vec2::<f32>().unwrap(), [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]);
}

#[test]
fn inputs_of_any_layout() {
    let x = numbers(1, (6, 4, 10));
    let weight = numbers(2, 4);
    check("rms norm of a transposed tensor", &[x.clone(), weight.clone()], |i| {
        rms_norm(&i[0].transpose(1, 2)?, &i[1], 1e-6)
    });
    check("linear of a part", &[x, numbers(3, (5, 10))], |i| linear(&i[0].narrow(1, 1, 2)?, &i[1], None));
    check("linear by a transposed weight", &[numbers(4, (3, 10)), numbers(5, (10, 5))], |i| {
        linear(&i[0], &i[1].t()?, None)
    });
    check("embedding of a part", &[numbers(6, (9, 4))], |i| {
        embedding(&i[0].narrow(0, 2, 5)?, &Tensor::new(&[4u32, 0, 4], &Device::Cpu)?)
    });
}

#[test]
fn linear_layers() {
    for (rows, input, output) in [(1, 1, 1), (1, 128, 273), (37, 33, 7), (1200, 64, 65)] {
        let inputs = [numbers(1, (rows, input)), numbers(2, (output, input)), numbers(3, output)];
        let what = format!("linear {rows} x {input} to {output}");
        check(&what, &inputs[..2], |i| linear(&i[0], &i[1], None));
        check(&what, &inputs, |i| linear(&i[0], &i[1], Some(&i[2])));
    }
    let inputs = [numbers(1, (2, 3, 5, 8)), numbers(2, (4, 8))];
    check("linear of four dimensions", &inputs, |i| linear(&i[0], &i[1], None));
}

#[test]
fn rotations() {
    for (positions, width) in [(1, 2), (9, 6), (33, 32)] {
        let angles = numbers(2, (positions, width / 2));
        check("rotary embedding", &[numbers(1, (2, 3, positions, width))], |i| {
            let angles = angles.to_dtype(i[0].dtype())?;
            rotary_embedding(&i[0], &angles.cos()?, &angles.sin()?)
        });
    }
}

#[test]
fn attention_over_split_heads() {
    for (queries, keys, width) in [(1, 1, 4), (5, 9, 7), (70, 70, 32), (130, 3, 16)] {
        let inputs = [
            numbers(1, (2, 3, queries, width)),
            numbers(2, (2, 3, keys, width)),
            numbers(3, (2, 3, keys, width)),
        ];
        if keys > 1 {
            check(&format!("attention {queries} over {keys}"), &inputs, |i| {
                attention(&i[0], &i[1], &i[2], 0.3, None)
            });
        }
        let biases: [Shape; 4] = [
            (2, 1, 1, keys).into(),
            (1, 1, queries, keys).into(),
            (2, 3, queries, keys).into(),
            (2, 3, queries, 1).into(),
        ];
        for shape in biases {
            if keys > 1 {
                let bias = numbers(4, shape);
                check(&format!("attention {queries} over {keys} with {bias:?}"), &inputs, |i| {
                    attention(&i[0], &i[1], &i[2], 0.3, Some(&bias.to_dtype(i[0].dtype())?))
                });
            }
        }
    }
}

#[test]
fn attention_of_transposed_views() {
    let inputs = [numbers(1, (2, 10, 3, 8)), numbers(2, (2, 12, 3, 8)), numbers(3, (2, 12, 3, 8))];
    check("attention of views", &inputs, |i| {
        attention(&i[0].transpose(1, 2)?, &i[1].transpose(1, 2)?, &i[2].transpose(1, 2)?, 0.3, None)
    });
    check("attention of columns", &[numbers(1, (2, 3, 8, 10))], |i| {
        let x = i[0].transpose(2, 3)?;
        attention(&x, &x, &x, 0.3, None)
    });
}

#[test]
fn causal_attention_with_grouped_heads_rotation_and_padding() {
    let (batch, width) = (2, 8);
    for (heads, key_heads, rows) in [(2, 2, 1), (4, 4, 65), (4, 2, 150), (3, 1, 20)] {
        let inputs = [
            numbers(1, (batch, rows, heads * width)),
            numbers(2, (batch, rows, key_heads * width)),
            numbers(3, (batch, rows, key_heads * width)),
        ];
        let seen: Vec<u8> = (0..batch * rows)
            .map(|place| u8::from(place < rows || place < rows + rows.div_ceil(2)))
            .collect();
        let padding = Tensor::from_vec(seen, (batch, rows), &Device::Cpu).unwrap();
        let angles = numbers(4, (rows, width / 2));
        for (rotated, padded) in [(false, false), (true, false), (true, true)] {
            if rows == 1 {
                continue;
            }
            check(
                &format!("causal {heads} over {key_heads} heads, {rows} rows, {rotated} {padded}"),
                &inputs,
                |i| {
                    let angles = angles.to_dtype(i[0].dtype())?;
                    let (cos, sin) = (angles.cos()?, angles.sin()?);
                    let options = Heads {
                        key_heads,
                        mask: Mask::Causal { padding: padded.then_some(&padding) },
                        angles: rotated.then_some((&cos, &sin)),
                        ..Heads::new(heads, width)
                    };
                    let attended = multi_head_attention(&i[0], &i[1], &i[2], &options)?;
                    // Rows of padding see earlier words, so they too have numbers to compare.
                    attended.contiguous()
                },
            );
        }
    }
}

#[test]
fn causal_rows_after_cached_ones() {
    let inputs = [numbers(1, (2, 3, 16)), numbers(2, (2, 11, 16)), numbers(3, (2, 11, 16))];
    check("three rows after eight", &inputs, |i| {
        let options = Heads { mask: Mask::Causal { padding: None }, ..Heads::new(2, 8) };
        multi_head_attention(&i[0], &i[1], &i[2], &options)
    });
}

#[test]
fn attention_with_dropout() {
    let inputs = [numbers(1, (2, 70, 16)), numbers(2, (2, 90, 16)), numbers(3, (2, 90, 16))];
    let options = Heads { dropout: Some(Dropout { rate: 0.3, seed: 11 }), ..Heads::new(2, 8) };
    check("attention with dropout", &inputs, |i| multi_head_attention(&i[0], &i[1], &i[2], &options));
    let plain = multi_head_attention(&inputs[0], &inputs[1], &inputs[2], &Heads { dropout: None, ..options })
        .unwrap();
    let dropped = multi_head_attention(&inputs[0], &inputs[1], &inputs[2], &options).unwrap();
    let gap = (plain - dropped).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(gap > 0.01, "{gap}");
}

#[test]
fn attention_of_packed_rows() {
    let packed = numbers(1, (3, 37, 3 * 24));
    check("packed attention", &[packed], |i| packed_attention(&i[0], &Heads::new(3, 8)));
}

#[test]
fn a_row_that_sees_nothing_stays_finite() {
    let x = numbers(1, (1, 4, 8));
    let padding = Tensor::new(&[[0u8, 0, 1, 1]], &Device::Cpu).unwrap();
    let options = Heads { mask: Mask::Causal { padding: Some(&padding) }, ..Heads::new(1, 8) };
    let attended = multi_head_attention(&x, &x, &x, &options).unwrap();
    assert!(attended.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|value| value.is_finite()));
}

#[test]
fn dropout_scales_what_it_keeps() {
    for rate in [0.1, 0.5, 0.9] {
        let dropout = Dropout { rate, seed: 7 };
        let ones = Tensor::ones((1000, 100), DType::F32, &Device::Cpu).unwrap();
        let dropped = dropout.apply(&ones).unwrap();
        let again = dropout.apply(&ones.to_dtype(DType::F64).unwrap()).unwrap();
        assert_close("both forms", &dropped, &again);
        let values = dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = values.iter().filter(|value| **value == 0.0).count() as f32 / values.len() as f32;
        assert!((zeros - rate).abs() < 0.01, "{zeros} of {rate}");
        assert!(values.iter().all(|value| *value == 0.0 || (value * (1.0 - rate) - 1.0).abs() < 1e-6));
        let other =
            Dropout { rate, seed: 8 }.apply(&ones).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_ne!(values, other);
    }
    check("dropout", &[numbers(1, (20, 33))], |i| Dropout { rate: 0.2, seed: 3 }.apply(&i[0]));
    let x = numbers(1, 5);
    let same = Dropout { rate: 0.0, seed: 3 }.apply(&x).unwrap();
    assert_eq!(same.to_vec1::<f32>().unwrap(), x.to_vec1::<f32>().unwrap());
}

#[test]
fn cross_entropies() {
    for (rows, vocabulary) in [(1, 2), (5, 273), (300, 1000)] {
        let logits = (numbers(1, (rows, vocabulary)) * 4.0).unwrap();
        let labels: Vec<i64> = (0..rows as i64)
            .map(|row| if row % 3 == 1 { IGNORED } else { row * 7919 % vocabulary as i64 })
            .collect();
        let counted = labels.iter().filter(|label| **label != IGNORED).count();
        let labels = Tensor::from_vec(labels, rows, &Device::Cpu).unwrap();
        let whole = |i: &[Tensor]| cross_entropy(&i[0], &labels);
        check(&format!("cross-entropy {rows} x {vocabulary}"), std::slice::from_ref(&logits), whole);
        let (sum, count) = cross_entropy_sum(&logits, &labels).unwrap();
        assert_eq!(count, counted);
        let mean = cross_entropy(&logits, &labels).unwrap();
        assert_close("sum", &sum, &(mean * count as f64).unwrap());
    }
    let logits = numbers(1, (2, 3));
    let of = |labels: [i64; 2]| cross_entropy(&logits, &Tensor::new(&labels, &Device::Cpu).unwrap());
    assert_eq!(of([IGNORED, IGNORED]).unwrap().to_scalar::<f32>().unwrap(), 0.0);
    assert!(of([3, 0]).unwrap_err().to_string().contains("label 3"));
    assert!(of([-1, 0]).is_err());
}

#[test]
fn embeddings() {
    let ids = Tensor::new(&[[3u32, 0, 3, 3], [1, 5, 0, 2]], &Device::Cpu).unwrap();
    check("embedding", &[numbers(1, (7, 33))], |i| embedding(&i[0], &ids));
    let outside = Tensor::new(&[7u32], &Device::Cpu).unwrap();
    assert!(embedding(&numbers(1, (7, 3)), &outside).unwrap_err().to_string().contains("row 7"));
}

/// The same with a third of the numbers' size, as weights are.
fn weights(seed: usize, shape: impl Into<Shape>) -> Tensor {
    (numbers(seed, shape) / 3.0).unwrap()
}

#[test]
fn blocks_of_a_language_model() {
    for (rows, heads, key_heads) in [(1, 2, 2), (70, 2, 2), (20, 4, 2)] {
        let (width, head_width) = (24, 8);
        let (queries, keys) = (heads * head_width, key_heads * head_width);
        let angles = numbers(9, (rows, head_width / 2));
        let inputs = [
            numbers(1, (3, rows, width)),
            numbers(2, width),
            weights(3, (queries, width)),
            weights(4, (keys, width)),
            weights(5, (keys, width)),
            weights(6, (width, queries)),
        ];
        // A row on its own has no gradient of queries and keys to compare.
        if rows > 1 {
            check(&format!("attention block, {heads} over {key_heads} heads"), &inputs, |i| {
                let angles = angles.to_dtype(i[0].dtype())?;
                let options = Heads {
                    key_heads,
                    mask: Mask::Causal { padding: None },
                    angles: Some((&angles.cos()?, &angles.sin()?)),
                    ..Heads::new(heads, head_width)
                };
                let norm = Norm { weight: &i[1], bias: None, eps: 1e-5 };
                let layer = |index: usize| Projection { weight: Weight::Dense(&i[index]), bias: None };
                attention_block(
                    &i[0],
                    (norm, NormPlace::Before),
                    &[layer(2), layer(3), layer(4)],
                    layer(5),
                    &options,
                )
            });
        }
        let inputs = [
            numbers(1, (3, rows, width)),
            numbers(2, width),
            weights(3, (37, width)),
            weights(4, (37, width)),
            weights(5, (width, 37)),
        ];
        check("feed-forward block", &inputs, |i| {
            let norm = Norm { weight: &i[1], bias: None, eps: 1e-5 };
            let layer = |index: usize| Projection { weight: Weight::Dense(&i[index]), bias: None };
            swiglu_block(&i[0], (norm, NormPlace::Before), layer(2), layer(3), layer(4))
        });
    }
}

#[test]
fn blocks_of_a_visual_encoder() {
    let (width, heads) = (24, 3);
    let inputs = [
        numbers(1, (3, 17, width)),
        numbers(2, width),
        numbers(3, width),
        weights(4, (3 * width, width)),
        weights(5, 3 * width),
        weights(6, (width, width)),
        weights(7, width),
    ];
    let layer = |i: &[Tensor], index: usize| (i[index].clone(), i[index + 1].clone());
    check("packed attention block", &inputs, |i| {
        let (packed, output) = (layer(i, 3), layer(i, 5));
        let norm = Norm { weight: &i[1], bias: Some(&i[2]), eps: 1e-5 };
        let packed = Projection { weight: Weight::Dense(&packed.0), bias: Some(&packed.1) };
        let output = Projection { weight: Weight::Dense(&output.0), bias: Some(&output.1) };
        attention_block(
            &i[0],
            (norm, NormPlace::Before),
            &[packed],
            output,
            &Heads::new(heads, width / heads),
        )
    });
    let inputs = [
        numbers(1, (3, 17, width)),
        numbers(2, width),
        numbers(3, width),
        weights(4, (50, width)),
        weights(5, 50),
        weights(6, (width, 50)),
        weights(7, width),
    ];
    check("feed-forward block", &inputs, |i| {
        let (first, second) = (layer(i, 3), layer(i, 5));
        let norm = Norm { weight: &i[1], bias: Some(&i[2]), eps: 1e-5 };
        let first = Projection { weight: Weight::Dense(&first.0), bias: Some(&first.1) };
        gelu_block(
            &i[0],
            (norm, NormPlace::Before),
            first,
            Projection { weight: Weight::Dense(&second.0), bias: Some(&second.1) },
        )
    });
}

/// Enough rows to be split into parts, whose last one is shorter; padding, biases and dropout depend on the sequence.
#[test]
fn blocks_of_many_sequences() {
    let (batch, rows, width, heads) = (53, 37, 12, 2);
    let inputs = [
        numbers(1, (batch, rows, width)),
        numbers(2, width),
        weights(3, (width, width)),
        weights(4, (width, width)),
        weights(5, (width, width)),
        weights(6, (width, width)),
        weights(7, width),
    ];
    let seen: Vec<u8> =
        (0..batch * rows).map(|place| u8::from(place % rows <= place / rows % rows)).collect();
    let padding = Tensor::from_vec(seen, (batch, rows), &Device::Cpu).unwrap();
    let bias = numbers(8, (batch, 1, 1, rows));
    let angles = numbers(9, (rows, width / heads / 2));
    for choice in 0..3 {
        check(&format!("attention block of many sequences, mask {choice}"), &inputs, |i| {
            let (angles, bias) = (angles.to_dtype(i[0].dtype())?, bias.to_dtype(i[0].dtype())?);
            let (cos, sin) = (angles.cos()?, angles.sin()?);
            let mut options = Heads::new(heads, width / heads);
            match choice {
                0 => options.mask = Mask::Causal { padding: Some(&padding) },
                1 => options.mask = Mask::Bias(&bias),
                _ => options.dropout = Some(Dropout { rate: 0.2, seed: 5 }),
            }
            options.angles = Some((&cos, &sin));
            let norm = Norm { weight: &i[1], bias: None, eps: 1e-5 };
            let layer = |index: usize| Projection { weight: Weight::Dense(&i[index]), bias: None };
            let output = Projection { weight: Weight::Dense(&i[5]), bias: Some(&i[6]) };
            attention_block(
                &i[0],
                (norm, NormPlace::Before),
                &[layer(2), layer(3), layer(4)],
                output,
                &options,
            )
        });
    }
    let inputs = [
        numbers(1, (batch, rows, width)),
        numbers(2, width),
        numbers(3, width),
        weights(4, (50, width)),
        weights(5, 50),
        weights(6, (width, 50)),
        weights(7, width),
    ];
    check("feed-forward block of many rows", &inputs, |i| {
        let norm = Norm { weight: &i[1], bias: Some(&i[2]), eps: 1e-5 };
        let first = Projection { weight: Weight::Dense(&i[3]), bias: Some(&i[4]) };
        gelu_block(
            &i[0],
            (norm, NormPlace::Before),
            first,
            Projection { weight: Weight::Dense(&i[5]), bias: Some(&i[6]) },
        )
    });
}

#[test]
fn blocks_of_bert() {
    let (width, heads) = (12, 2);
    for (batch, rows) in [(3, 7), (53, 37)] {
        let inputs = [
            numbers(1, (batch, rows, width)),
            numbers(2, width),
            numbers(3, width),
            weights(4, (width, width)),
            weights(5, width),
            weights(6, (width, width)),
            weights(7, (width, width)),
            weights(8, (width, width)),
            weights(9, width),
        ];
        let bias = numbers(8, (batch, 1, 1, rows));
        for rate in [0.0, 0.2] {
            let dropout = |seed| (rate > 0.0).then_some(Dropout { rate, seed });
            check(&format!("attention block of BERT, {batch} x {rows}, dropout {rate}"), &inputs, |i| {
                let bias = bias.to_dtype(i[0].dtype())?;
                let options = Heads {
                    mask: Mask::Bias(&bias),
                    dropout: dropout(1),
                    ..Heads::new(heads, width / heads)
                };
                let norm = Norm { weight: &i[1], bias: Some(&i[2]), eps: 1e-5 };
                let biased =
                    |index: usize| Projection { weight: Weight::Dense(&i[index]), bias: Some(&i[index + 1]) };
                let plain = |index: usize| Projection { weight: Weight::Dense(&i[index]), bias: None };
                let sources = [biased(3), plain(5), plain(6)];
                attention_block(&i[0], (norm, NormPlace::After(dropout(2))), &sources, biased(7), &options)
            });
            let inputs = [
                numbers(1, (batch, rows, width)),
                numbers(2, width),
                numbers(3, width),
                weights(4, (50, width)),
                weights(5, 50),
                weights(6, (width, 50)),
                weights(7, width),
            ];
            check(&format!("feed-forward block of BERT, {batch} x {rows}, dropout {rate}"), &inputs, |i| {
                let norm = Norm { weight: &i[1], bias: Some(&i[2]), eps: 1e-5 };
                let layer =
                    |index: usize| Projection { weight: Weight::Dense(&i[index]), bias: Some(&i[index + 1]) };
                gelu_block(&i[0], (norm, NormPlace::After(dropout(3))), layer(3), layer(5))
            });
        }
    }
}

#[test]
fn blocks_refuse_weights_that_do_not_go_together() {
    let x = numbers(1, (2, 3, 8));
    let weight = numbers(2, 8);
    let norm = Norm { weight: &weight, bias: None, eps: 1e-5 };
    let layer = |output: usize, input: usize| weights(3, (output, input));
    for (gate, up, down) in [
        (layer(5, 8), layer(6, 8), layer(8, 5)),
        (layer(5, 7), layer(5, 8), layer(8, 5)),
        (layer(5, 8), layer(5, 8), layer(7, 5)),
        (layer(5, 8), layer(5, 8), layer(8, 4)),
    ] {
        let [gate, up, down] =
            [&gate, &up, &down].map(|weight| Projection { weight: Weight::Dense(weight), bias: None });
        assert!(swiglu_block(&x, (norm, NormPlace::Before), gate, up, down).is_err());
    }
}

#[test]
fn chains_of_blocks_share_their_inputs() {
    let inputs = [numbers(1, (2, 5, 8)), numbers(2, 8), weights(3, (16, 8)), weights(4, (8, 16))];
    check("a block after itself", &inputs, |i| {
        let norm = Norm { weight: &i[1], bias: None, eps: 1e-5 };
        let block = |x: &Tensor| {
            let inner = Projection { weight: Weight::Dense(&i[2]), bias: None };
            swiglu_block(
                x,
                (norm, NormPlace::Before),
                inner,
                inner,
                Projection { weight: Weight::Dense(&i[3]), bias: None },
            )
        };
        block(&block(&i[0])?)
    });
}

#[test]
fn nothing_at_all() {
    let device = &Device::Cpu;
    let none = Var::from_tensor(&Tensor::zeros((0, 8), DType::F32, device).unwrap()).unwrap();
    let weight = Var::from_tensor(&numbers(1, 8)).unwrap();
    let square = Var::from_tensor(&numbers(2, (5, 8))).unwrap();
    let zeros = |result: Result<Tensor>, of: &Var| {
        let result = result.unwrap();
        assert_eq!(result.elem_count(), 0);
        let gradient = result.sum_all().unwrap().backward().unwrap().get(of).unwrap().clone();
        assert!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|value| *value == 0.0));
    };
    zeros(rms_norm(&none, &weight, 1e-6), &weight);
    zeros(layer_norm(&none, &weight, &weight, 1e-6), &weight);
    zeros(linear(&none, &square, None), &square);
    zeros(softmax(&none), &none);
    zeros(gelu(&none), &none);
    zeros(swiglu(&none, &none), &none);
    zeros(embedding(&square, &Tensor::zeros(0, DType::U32, device).unwrap()), &square);
    let rows = Var::from_tensor(&Tensor::zeros((2, 0, 8), DType::F32, device).unwrap()).unwrap();
    zeros(multi_head_attention(&rows, &rows, &rows, &Heads::new(2, 4)), &rows);
}

#[test]
fn sums_come_out_the_same_every_time() {
    let inputs = [numbers(1, (3000, 40)), numbers(2, 40), numbers(3, 40)];
    let run = || {
        let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
        let result = layer_norm(&vars[0], &vars[1], &vars[2], 1e-6).unwrap();
        let gradients = result.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        gradients.get(&vars[1]).unwrap().to_vec1::<f32>().unwrap()
    };
    let first = run();
    for _ in 0..20 {
        assert_eq!(run(), first);
    }
}
