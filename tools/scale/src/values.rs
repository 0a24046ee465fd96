//! Random weights, as fast as a disk takes them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::{DType, Device, Shape, Tensor};
use half::f16;
use llamavid_weights::BlockFormat;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;

/// Normal numbers that are drawn once; weights are runs of them from random places.
const POOL: usize = 1 << 20;
/// Numbers of a run.
const RUN: usize = 4096;
/// Standard deviation of matrices, as LLaMA begins: numbers stay finite through all layers in half precision.
const DEVIATION: f64 = 0.02;

/// Where weights come from. The same seed gives the same ones.
pub struct Values {
    pool: Vec<f16>,
    /// The pool in each format of blocks that was asked for.
    encoded: HashMap<BlockFormat, Vec<u8>>,
    random: ChaCha8Rng,
}

impl Values {
    pub fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let pool = (0..POOL + RUN).map(|_| f16::from_f64(DEVIATION * normal(&mut random))).collect();
        Self { pool, encoded: HashMap::new(), random }
    }

    /// The bytes of `count` random numbers in whole blocks, piece by piece.
    pub fn blocks(&mut self, format: BlockFormat, count: usize) -> Result<impl Iterator<Item = &[u8]>> {
        let pool = match self.encoded.entry(format) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let values: Vec<f32> = self.pool.iter().map(|value| value.to_f32()).collect();
                entry.insert(format.encode(&values, RUN)?)
            }
        };
        let pool = pool.as_slice();
        let run = format.row_bytes(RUN).ok_or("a run is no whole number of blocks")?;
        let mut left = format.row_bytes(count).ok_or("the numbers are no whole number of blocks")?;
        let random = &mut self.random;
        Ok(std::iter::from_fn(move || {
            let length = run.min(left);
            left -= length;
            let start = random.next_u64() as usize % (POOL / RUN) * run;
            (length > 0).then(|| &pool[start..start + length])
        }))
    }

    /// A weight by its name: norms begin at one, what counts positions does, and all else is random.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &Shape) -> Result<Tensor> {
        let (device, count) = (&Device::Cpu, shape.elem_count());
        if name.ends_with("position_ids") {
            return Ok(Tensor::arange(0, count as i64, device)?.reshape(shape)?);
        }
        if name.ends_with("inv_freq") {
            let frequency = |pair: usize| 10_000f32.powf(-(pair as f32) / count as f32);
            return Ok(Tensor::from_vec((0..count).map(frequency).collect::<Vec<_>>(), shape, device)?);
        }
        if is_norm(name) && shape.rank() == 1 && name.ends_with(".weight") {
            return Ok(Tensor::ones(shape, dtype, device)?);
        }
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let start = self.random.next_u64() as usize % POOL;
            let length = RUN.min(count - values.len());
            values.extend_from_slice(&self.pool[start..start + length]);
        }
        Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
    }
}

/// Whether a weight of that name, ours, published or llama.cpp's, belongs to a norm.
pub fn is_norm(name: &str) -> bool {
    ["norm", "LayerNorm", "vlm_att_ln"].iter().any(|part| name.contains(part))
}

/// A normal number, by Box and Muller.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}
