//! The weights that a part of a model asks for, without having any.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::Result;

/// Shapes of the weights that `build` asks for, by our names: modules are built on numbers that take no memory.
///
/// # Errors
/// Those of `build`.
pub fn weight_shapes<M>(
    build: impl FnOnce(VarBuilder<'static>) -> llamavid_models::Result<M>,
) -> Result<BTreeMap<String, Shape>> {
    let shapes = Arc::new(Mutex::new(BTreeMap::new()));
    build(VarBuilder::from_backend(Box::new(Recorder(shapes.clone())), DType::F32, Device::Cpu))?;
    let shapes = std::mem::take(&mut *shapes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(shapes)
}

struct Recorder(Arc<Mutex<BTreeMap<String, Shape>>>);

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut shapes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.insert(name.to_owned(), shape.clone());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of `{name}` is not known")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}
