use candle_core::{DType, Device, Shape};

use super::*;
use crate::noise::noise;
use crate::{NormPlace, gelu_block, layer_norm, linear};

/// Runs a test on the processors that lay weights out, or what stands in for one, with so few threads that there are both few rows
/// and many.
fn on_each(test: impl Fn(Processor) + Sync) {
    let tiles = |found: &Processor| matches!(found, Processor::Avx512(_, IntegerDot::Tiles));
    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    threads.install(|| Processor::tested().into_iter().filter(tiles).for_each(&test));
}

fn numbers(shape: impl Into<Shape>, seed: u32) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(noise(shape.elem_count(), seed), shape, &Device::Cpu).unwrap()
}

/// Weight and bias of a layer whose weights numbers of `dtype` hold.
fn layer(rows: usize, columns: usize, seed: u32, dtype: DType) -> (Tensor, Tensor) {
    let weight = (numbers((rows, columns), seed) * (3.0 / columns as f64).sqrt()).unwrap();
    let weight = weight.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
    (weight, numbers(rows, seed + 1))
}

fn projection((weight, bias): &(Tensor, Tensor)) -> Projection<'_> {
    Projection { weight: Weight::Dense(weight), bias: Some(bias) }
}

fn frozen(processor: Processor, layer: &(Tensor, Tensor)) -> FrozenProjection {
    FrozenProjection::on(processor, projection(layer)).unwrap().unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Differences by what they differ from, as lengths, are of rounding.
fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let (mut difference, mut length) = (0.0, 0.0);
    for (actual, expected) in values(actual).iter().zip(values(expected)) {
        difference += f64::from(actual - expected).powi(2);
        length += f64::from(expected).powi(2);
    }
    let error = (difference / length).sqrt();
    // Written so that NaN fails.
    assert!(error <= 1e-6, "{what}: {error:e}");
}

#[test]
fn projects_what_linear_layers_do() {
    on_each(|processor| {
        for dtype in [DType::F16, DType::BF16] {
            for [batch, all, first, some, columns, rows] in [
                [1, 1, 0, 1, 1, 1],
                [2, 7, 3, 4, 33, 70],
                [3, 50, 1, 48, 65, 31],
                [1, 300, 7, 290, 100, 97],
                [2, 40, 0, 40, 1600, 40],
                [4, 66, 0, 66, 1540, 33],
            ] {
                let x = numbers((batch, all, columns), 1);
                let layers = [layer(rows, columns, 2, dtype), layer(2 * rows, columns, 4, dtype)];
                let [one, other] = layers.each_ref().map(|layer| frozen(processor, layer));
                if rows > 1 {
                    assert_eq!(one.each, if dtype == DType::F16 { 2 } else { 1 });
                }
                let selected = SomeRows { of: &x, range: first..first + some };
                let found = FrozenProjection::project([&one, &other], &selected).unwrap();
                let x = x.narrow(1, first, some).unwrap();
                for (found, (weight, bias)) in found.iter().zip(&layers) {
                    let expected = linear(&x, weight, Some(bias)).unwrap();
                    assert_close(found, &expected, &format!("{dtype:?} {batch} {some} {columns} {rows}"));
                }
            }
        }
    });
}

#[test]
fn adds_and_norms_as_the_operations_do() {
    on_each(|processor| {
        for [batch, all, first, some, width, inner] in
            [[1, 1, 0, 1, 2, 1], [2, 9, 2, 5, 70, 40], [3, 90, 30, 60, 35, 1600], [9, 40, 0, 32, 130, 67]]
        {
            let (x, norm) = (numbers((batch, all, width), 1), layer(1, width, 2, DType::F32));
            let (norm_weight, norm_bias) = (norm.0.flatten_all().unwrap(), numbers(width, 3));
            let norm = Norm { weight: &norm_weight, bias: Some(&norm_bias), eps: 1e-12 };
            let what = format!("{batch} {some} {width} {inner}");
            let (of_rows, rows) = (SomeRows { of: &x, range: first..first + some }, first..first + some);
            let x_rows = x.narrow(1, rows.start, rows.len()).unwrap().contiguous().unwrap();

            let made = layer(width, inner, 5, DType::F16);
            let seen = numbers((batch, some, inner), 6);
            let found = frozen(processor, &made).add_and_norm(&seen, &of_rows, norm).unwrap();
            let sum = (linear(&seen, &made.0, Some(&made.1)).unwrap() + &x_rows).unwrap();
            assert_close(&found, &layer_norm(&sum, &norm_weight, &norm_bias, 1e-12).unwrap(), &what);

            let layers = [layer(inner, width, 7, DType::F16), layer(width, inner, 9, DType::BF16)];
            let [to, back] = layers.each_ref().map(|layer| frozen(processor, layer));
            let part = |of, range| FrozenGelu { first: &to, second: &back, norm, x: SomeRows { of, range } };
            let found = frozen_gelu(&[part(&seen_as(&x), 0..all), part(&x, rows)]).unwrap();
            let [to, back] = layers.each_ref().map(projection);
            let expected = |x: &Tensor| gelu_block(x, (norm, NormPlace::After(None)), to, back).unwrap();
            let expected = Tensor::cat(&[expected(&seen_as(&x)), expected(&x_rows)], 1).unwrap();
            assert_close(&found, &expected, &what);
        }
    });
}

/// Other rows of the same shape.
fn seen_as(x: &Tensor) -> Tensor {
    (x * -2.0).unwrap()
}

#[test]
fn what_is_not_finite_spoils_its_row_only() {
    on_each(|processor| {
        for count in [3, 200] {
            let layers = [layer(70, 40, 1, DType::F16), layer(40, 70, 3, DType::F16)];
            let [first, second] = layers.each_ref().map(|layer| frozen(processor, layer));
            let ones = Tensor::ones(40, DType::F32, &Device::Cpu).unwrap();
            let norm = Norm { weight: &ones, bias: Some(&ones), eps: 1e-12 };
            for wrong in [f32::NAN, f32::INFINITY] {
                let mut rows = noise(count * 40, 5);
                rows[40 + 7] = wrong;
                let x = Tensor::from_vec(rows, (1, count, 40), &Device::Cpu).unwrap();
                let x = || SomeRows { of: &x, range: 0..count };
                let [projected] = FrozenProjection::project([&first], &x()).unwrap();
                let fed = FrozenGelu { first: &first, second: &second, norm, x: x() };
                for (found, width) in [(projected, 70), (frozen_gelu(&[fed]).unwrap(), 40)] {
                    for (index, row) in values(&found).chunks(width).enumerate() {
                        let finite = index != 1;
                        assert!(row.iter().all(|value| value.is_finite() == finite), "{wrong} {index}");
                    }
                }
            }
        }
    });
}

#[test]
fn weights_of_more_than_two_pieces_are_left_as_they_are() {
    for (numbers, count) in [
        (vec![1.0, -0.5, 0.0, 3.0], 1),
        (vec![1.0, 1.0 + 2f32.powi(-10)], 2),
        (vec![0.1], 3),
        (vec![f32::NAN], 3),
        (vec![f32::INFINITY], 3),
        (vec![2f32.powi(-126) * (1.0 + 2f32.powi(-10))], 3),
    ] {
        assert_eq!(pieces_of(&numbers), count, "{numbers:?}");
    }
    let halves: Vec<f32> = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).collect();
    let finite: Vec<f32> = halves.into_iter().filter(|value| value.is_finite()).collect();
    assert_eq!(pieces_of(&finite), 2);
    for processor in Processor::tested() {
        let exact = FrozenProjection::on(processor, projection(&layer(5, 9, 1, DType::F32))).unwrap();
        assert!(exact.is_none());
        let halves = FrozenProjection::on(processor, projection(&layer(5, 9, 1, DType::F16))).unwrap();
        let tiles = matches!(processor, Processor::Avx512(_, IntegerDot::Tiles));
        assert_eq!(halves.is_some(), tiles);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each(|processor| {
        let [wide, back] = [(64, 32), (32, 64)]
            .map(|(rows, columns)| frozen(processor, &layer(rows, columns, 1, DType::F16)));
        let (x, ones) = (numbers((2, 5, 32), 2), Tensor::ones(32, DType::F32, &Device::Cpu).unwrap());
        let norm = Norm { weight: &ones, bias: Some(&ones), eps: 1e-12 };
        let some = |range| SomeRows { of: &x, range };
        assert!(FrozenProjection::project([&back], &some(0..5)).is_err());
        assert!(FrozenProjection::project([&wide, &back], &some(0..5)).is_err());
        assert!(FrozenProjection::project([&wide], &some(2..6)).is_err());
        assert!(FrozenProjection::project([&wide], &some(2..2)).is_err());
        assert!(back.add_and_norm(&numbers((2, 4, 64), 3), &some(0..5), norm).is_err());
        assert!(frozen_gelu(&[]).is_err());
        let gelu = |first, second| FrozenGelu { first, second, norm, x: some(1..3) };
        assert!(frozen_gelu(&[gelu(&wide, &wide)]).is_err());
        assert!(frozen_gelu(&[gelu(&wide, &back)]).is_ok());
        let nothing = Tensor::zeros((0, 5, 32), DType::F32, &Device::Cpu).unwrap();
        let [projected] =
            FrozenProjection::project([&wide], &SomeRows { of: &nothing, range: 0..5 }).unwrap();
        assert_eq!(projected.dims(), [0, 5, 64]);
    });
}
