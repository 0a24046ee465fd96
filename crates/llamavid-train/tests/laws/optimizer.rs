//! Updates against numbers worked out another way, and their state on the way to disk and back.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Init;
use llamavid_train::schedule::warmup_steps;
use llamavid_train::{
    FreezePlan, Optimizer, ParameterGroup, Parameters, Update, cosine_with_warmup, gradients,
};

fn var(values: &[f32]) -> Var {
    Var::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

fn group(
    variables: Vec<(String, Var)>,
    update: Update,
    learning_rate: f64,
    weight_decay: f64,
) -> ParameterGroup {
    ParameterGroup { variables, update, learning_rate, weight_decay }
}

/// The sum of `weights * var`² / 2, whose gradient is `weights * var`.
fn loss(var: &Var, weights: &[f32]) -> Tensor {
    let weights = Tensor::from_slice(weights, weights.len(), &Device::Cpu).unwrap();
    ((var.as_tensor().sqr().unwrap() * weights).unwrap().sum_all().unwrap() * 0.5).unwrap()
}

#[test]
fn adamw_follows_its_formula() {
    let (rate, decay, beta1, beta2, epsilon) = (0.1, 0.01, 0.9, 0.98, 1e-8);
    let start = [0.5f32, -2., 3., 1e-3];
    let weights = [1f32, 0.25, -0.5, 10.];
    let var = var(&start);
    let update = Update::AdamW { beta1, beta2, epsilon };
    let mut optimizer =
        Optimizer::new(vec![group(vec![("w".into(), var.clone())], update, rate, decay)]).unwrap();
    let mut expected = start.map(f64::from);
    let (mut mean, mut square) = ([0f64; 4], [0f64; 4]);
    for step in 1..=20 {
        let factor = cosine_with_warmup(step, 3, 20);
        optimizer.step(&loss(&var, &weights).backward().unwrap(), factor).unwrap();
        for index in 0..4 {
            let gradient = f64::from(weights[index]) * expected[index];
            mean[index] = beta1 * mean[index] + (1. - beta1) * gradient;
            square[index] = beta2 * square[index] + (1. - beta2) * gradient * gradient;
            let mean = mean[index] / (1. - beta1.powi(step as i32));
            let square = square[index] / (1. - beta2.powi(step as i32));
            expected[index] -= rate * factor * (decay * expected[index] + mean / (square.sqrt() + epsilon));
        }
    }
    for (actual, expected) in values(&var).iter().zip(expected) {
        assert!((f64::from(*actual) - expected).abs() < 1e-5, "{actual} {expected}");
    }
}

#[test]
fn state_goes_on_bit_for_bit() {
    let weights = [1f32, 0.25, -0.5, 10., 3., 0.1];
    let make = || {
        let matrix = Var::from_slice(&[1f32, 2., -3., 4., 5., -6.], (2, 3), &Device::Cpu).unwrap();
        let vector = var(&[1., 2., 3., 4., 5., 6.]);
        let groups = vec![
            group(vec![("m".into(), matrix.clone())], Update::muon(), 0.02, 0.1),
            group(vec![("v".into(), vector.clone())], Update::adamw(), 0.1, 0.),
        ];
        (matrix, vector, Optimizer::new(groups).unwrap())
    };
    let step = |matrix: &Var, vector: &Var, optimizer: &mut Optimizer| {
        let flat = matrix.flatten_all().unwrap();
        let weights = Tensor::from_slice(&weights, 6, &Device::Cpu).unwrap();
        let loss =
            ((flat.sqr().unwrap() * vector.as_tensor()).unwrap() * weights).unwrap().sum_all().unwrap();
        optimizer.step(&loss.backward().unwrap(), 1.).unwrap();
    };
    let (matrix, vector, mut optimizer) = make();
    (0..3).for_each(|_| step(&matrix, &vector, &mut optimizer));

    let (matrix2, vector2, mut optimizer2) = make();
    matrix2.set(&matrix.as_detached_tensor().copy().unwrap()).unwrap();
    vector2.set(&vector.as_detached_tensor().copy().unwrap()).unwrap();
    optimizer2.restore(&optimizer.state().unwrap()).unwrap();
    for _ in 0..5 {
        step(&matrix, &vector, &mut optimizer);
        step(&matrix2, &vector2, &mut optimizer2);
    }
    assert_eq!(values(&matrix), values(&matrix2));
    assert_eq!(values(&vector), values(&vector2));
    let mut state = optimizer.state().unwrap();
    state.remove("v/second");
    assert!(optimizer2.restore(&state).unwrap_err().contains("`v/second` is missing"));
}

#[test]
fn a_scaled_step_is_a_step_with_scaled_gradients() {
    for update in [Update::adamw(), Update::muon()] {
        let run = |factor: f64| {
            let var = Var::from_slice(&[1f32, -2., 3., 0.5], (2, 2), &Device::Cpu).unwrap();
            let mut optimizer =
                Optimizer::new(vec![group(vec![("w".into(), var.clone())], update, 0.1, 0.)]).unwrap();
            let loss = (var.sqr().unwrap().sum_all().unwrap() * (1. / factor)).unwrap();
            optimizer.step_scaled(&loss.backward().unwrap(), 1., factor).unwrap();
            values(&var)
        };
        for (left, right) in run(1.).iter().zip(run(0.25)) {
            assert!((left - right).abs() < 1e-6);
        }
    }
}

#[test]
fn wrong_settings_are_refused() {
    let new = |update, rate| Optimizer::new(vec![group(vec![("w".into(), var(&[1.]))], update, rate, 0.)]);
    for rate in [0., -1., f64::NAN, f64::INFINITY] {
        assert!(new(Update::adamw(), rate).unwrap_err().to_string().contains("learning_rate"), "{rate}");
    }
    assert!(new(Update::muon(), 0.1).unwrap_err().to_string().contains("matrix"));
    let twice =
        vec![group(vec![("w".into(), var(&[1.])), ("w".into(), var(&[1.]))], Update::adamw(), 0.1, 0.)];
    assert!(Optimizer::new(twice).unwrap_err().to_string().contains("two groups"));
}

#[test]
fn the_norm_is_over_all_gradients() {
    let (a, b) = (var(&[3., 0.]), var(&[0., 4.]));
    let loss = (loss(&a, &[1., 1.]) + loss(&b, &[1., 1.])).unwrap();
    let variables = [("a".to_owned(), a), ("b".to_owned(), b)];
    let store = loss.backward().unwrap();
    assert_eq!(gradients::global_norm(&store, &variables).unwrap(), 5.);
    assert!((gradients::clip_factor(5., 1.) - 0.2).abs() < 1e-6);
    assert_eq!(gradients::clip_factor(0.5, 1.), 1.);
}

/// Numbers of `text/decoding.json`, `lr_schedule`.
#[test]
fn the_rate_is_the_references() {
    for (total, warmup, factors) in [
        (
            10,
            1,
            &[(0, 0.), (1, 1.), (2, 0.969_846_310_392_954_2), (9, 0.030_153_689_607_045_84), (10, 0.)][..],
        ),
        (
            100,
            3,
            &[(1, 0.333_333_333_333_333_3), (4, 0.999_737_784_522_757_5), (50, 0.524_281_111_057_224_2)][..],
        ),
        (5198, 156, &[(155, 0.993_589_743_589_743_6), (2599, 0.524_290_735_013_735_2)][..]),
    ] {
        assert_eq!(warmup_steps(0.03, total), warmup);
        for (step, expected) in factors {
            let factor = cosine_with_warmup(*step, warmup, total);
            assert!((factor - expected).abs() < 1e-12, "{step} of {total}: {factor}");
        }
    }
}

#[test]
fn parameters_are_made_once_and_saved_whole() {
    let plan = FreezePlan::only(["a"]);
    let parameters = Parameters::new(plan.clone(), 3, &Device::Cpu);
    let builder = parameters.var_builder_as(DType::BF16);
    let init = Init::Randn { mean: 0., stdev: 1. };
    let a = builder.pp("a").get_with_hints((2, 3), "w", init).unwrap();
    let b = builder.pp("b").get_with_hints(4, "w", init).unwrap();
    assert_eq!((a.dtype(), b.dtype()), (DType::BF16, DType::BF16));
    // The gradient goes back to the f32 master; the frozen weight has none.
    let store = (a.sum_all().unwrap() + b.sum_all().unwrap()).unwrap().backward().unwrap();
    let trainable = parameters.trainable();
    assert_eq!(trainable.len(), 1);
    assert_eq!(store.get(&trainable[0].1).unwrap().dtype(), DType::F32);
    assert!(builder.pp("a").get((3, 2), "w").unwrap_err().to_string().contains("shape"));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    parameters.save(&path).unwrap();
    let again = Parameters::load(&path, plan, 3, &Device::Cpu).unwrap();
    for (name, tensor) in parameters.tensors() {
        let read: Vec<f32> = again.get(&name).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(read, tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
