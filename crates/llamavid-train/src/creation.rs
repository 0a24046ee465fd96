//! How weights begin that no file has.
//!
//! Each weight has a random stream of its own, chosen by its name: creating another weight before it changes nothing.

use candle_core::{Device, Result, Shape, Tensor};
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Standard deviation of BERT, LLaMA and the EVA visual encoder.
const DEVIATION: Init = Init::Randn { mean: 0., stdev: 0.02 };

/// How a weight of a name and a shape begins, for which its module asks, as the reference creates its modules: BERT, LLaMA and EVA with a deviation of 0.02, without biases; the new
/// layers between them as torch's `Linear`, uniform up to the inverse root of their inputs. Others as they ask.
pub(crate) fn as_published(name: &str, shape: &Shape, asked: Init) -> Init {
    let matrix = shape.rank() >= 2;
    let bias = name.ends_with("bias");
    if name.starts_with("visual_encoder.") {
        return match (matrix, name.ends_with("norm1.weight") || name.ends_with("norm2.weight")) {
            (true, _) => DEVIATION,
            (false, norm) => Init::Const(if norm { 1. } else { 0. }),
        };
    }
    if name.starts_with("token_generator.query_model.") || name.starts_with("language_model.") {
        return match (matrix, bias) {
            (true, _) => DEVIATION,
            (false, true) => Init::Const(0.),
            (false, false) => asked,
        };
    }
    let new = ["token_generator.context.", "token_generator.projector.", "token_generator.bert_proj."];
    if matrix && new.iter().any(|prefix| name.starts_with(prefix)) {
        let inputs: usize = shape.dims().iter().skip(1).product();
        let bound = (inputs as f64).powf(-0.5);
        return Init::Uniform { lo: -bound, up: bound };
    }
    asked
}

/// A weight in f32, the same for the same seed, name and shape on any machine.
pub(crate) fn create(seed: u64, name: &str, shape: &Shape, init: Init, device: &Device) -> Result<Tensor> {
    let mut rng = stream(seed, name);
    let count = shape.elem_count();
    let values = match init {
        Init::Const(value) => vec![value as f32; count],
        Init::Randn { mean, stdev } => normal(&mut rng, count, mean, stdev),
        Init::Uniform { lo, up } => uniform(&mut rng, count, lo, up),
        Init::Kaiming { dist, fan, non_linearity } => {
            let deviation = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => normal(&mut rng, count, 0., deviation),
                NormalOrUniform::Uniform => {
                    let bound = 3f64.sqrt() * deviation;
                    uniform(&mut rng, count, -bound, bound)
                }
            }
        }
    };
    Tensor::from_vec(values, shape, device)
}

/// The random stream that belongs to a name.
pub(crate) fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // FNV-1a: the standard library's hash may change with its version.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    rng.set_stream(hash);
    rng
}

fn uniform(rng: &mut ChaCha8Rng, count: usize, low: f64, high: f64) -> Vec<f32> {
    (0..count).map(|_| (low + (high - low) * rng.random::<f64>()) as f32).collect()
}

/// Box and Muller's method: two uniform numbers make two normal ones.
fn normal(rng: &mut ChaCha8Rng, count: usize, mean: f64, deviation: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // In (0, 1], so that the logarithm exists.
        let radius = (-2. * (((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        values.push((mean + deviation * radius * cosine) as f32);
        values.push((mean + deviation * radius * sine) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn values(seed: u64, name: &str, count: usize, init: Init) -> Vec<f32> {
        create(seed, name, &Shape::from(count), init, &Device::Cpu).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_weight_depends_on_seed_and_name_only() {
        let made = values(1, "a", 100, DEVIATION);
        assert_eq!(made, values(1, "a", 100, DEVIATION));
        assert_ne!(made, values(2, "a", 100, DEVIATION));
        assert_ne!(made, values(1, "b", 100, DEVIATION));
    }

    #[test]
    fn normal_numbers_have_their_moments() {
        let made = values(7, "w", 100_001, Init::Randn { mean: 1., stdev: 2. });
        let mean = made.iter().map(|&x| f64::from(x)).sum::<f64>() / made.len() as f64;
        let variance = made.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / made.len() as f64;
        assert!((mean - 1.).abs() < 0.03 && (variance - 4.).abs() < 0.1, "{mean} {variance}");
    }

    #[test]
    fn new_layers_begin_as_in_torch() {
        let shape = Shape::from((8, 25));
        match as_published("token_generator.context.key_proj.weight", &shape, Init::Const(0.)) {
            Init::Uniform { lo, up } => assert_eq!((lo, up), (-0.2, 0.2)),
            other => unreachable!("{other:?}"),
        }
    }
}
