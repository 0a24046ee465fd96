//! The weights that a part of a model asks for, without having any: there is no second list that could differ.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use llamavid_models::WeightSource;

use crate::Result;

/// More weights than any model has: a hostile configuration must not fill the memory.
const MOST: usize = 1 << 20;

/// A weight that a module asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightShape {
    /// Our name for it.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Whether it is a matrix that may be in blocks.
    pub is_matrix: bool,
}

impl WeightShape {
    /// How many numbers it has.
    pub(crate) fn numbers(&self) -> u64 {
        self.shape.elem_count() as u64
    }
}

/// The weights that `build` asks for, in the order in which it does: modules are built on numbers that take no memory.
///
/// # Errors
/// Those of `build`, and a configuration that asks for more than a million weights.
pub fn weight_shapes<M>(
    build: impl FnOnce(WeightSource<'static>) -> llamavid_models::Result<M>,
) -> Result<Vec<WeightShape>> {
    let asked = Recorder::default();
    let tensors = VarBuilder::from_backend(Box::new(asked.clone()), DType::F32, Device::Cpu);
    let matrices = asked.matrices.clone();
    build(WeightSource::new(tensors, move |name, _shape| {
        matrices.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(None)
    }))?;
    let weights = std::mem::take(&mut *asked.weights.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(weights)
}

#[derive(Debug, Clone, Default)]
struct Recorder {
    weights: Arc<Mutex<Vec<WeightShape>>>,
    /// Names that were asked for as matrices.
    matrices: Arc<Mutex<BTreeSet<String>>>,
}

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let is_matrix = self.matrices.lock().unwrap_or_else(PoisonError::into_inner).contains(name);
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        if weights.len() == MOST {
            candle_core::bail!("the configuration asks for more than {MOST} weights")
        }
        weights.push(WeightShape { name: name.to_owned(), shape: shape.clone(), is_matrix });
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of `{name}` is not known")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}
