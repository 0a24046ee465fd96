//! Where the weights of a module come from.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use llamavid_kernels::QuantisedMatrix;

/// Gives the matrix of a full name and of (rows, columns) in blocks, or none where it is to be a tensor.
type Matrices<'a> = dyn Fn(&str, (usize, usize)) -> Result<Option<QuantisedMatrix>> + Send + Sync + 'a;

/// A `VarBuilder`, and matrices in blocks, which are asked for first.
#[derive(Clone)]
pub struct WeightSource<'a> {
    tensors: VarBuilder<'a>,
    matrices: Option<Arc<Matrices<'a>>>,
}

impl<'a> From<VarBuilder<'a>> for WeightSource<'a> {
    fn from(tensors: VarBuilder<'a>) -> Self {
        Self { tensors, matrices: None }
    }
}

impl<'a> WeightSource<'a> {
    /// Matrices of linear layers and of the decoder's tables come from `matrices`, by their full names and (rows, columns);
    /// those that it does not give, and everything else, from `tensors`.
    pub fn new(
        tensors: VarBuilder<'a>,
        matrices: impl Fn(&str, (usize, usize)) -> Result<Option<QuantisedMatrix>> + Send + Sync + 'a,
    ) -> Self {
        Self { tensors, matrices: Some(Arc::new(matrices)) }
    }

    /// The weights below a name.
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { tensors: self.tensors.pp(name), matrices: self.matrices.clone() }
    }

    /// The same weights, made on another device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        Self { tensors: self.tensors.clone().set_device(device.clone()), matrices: self.matrices.clone() }
    }

    pub(crate) fn tensors(&self) -> VarBuilder<'a> {
        self.tensors.clone()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.tensors.dtype()
    }

    pub(crate) fn device(&self) -> &Device {
        self.tensors.device()
    }

    pub(crate) fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.tensors.get(shape, name)
    }

    pub(crate) fn get_with_hints(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.tensors.get_with_hints(shape, name, init)
    }

    /// The matrix `weight` in blocks, if there is one.
    pub(crate) fn blocks(&self, rows: usize, columns: usize) -> Result<Option<QuantisedMatrix>> {
        let Some(matrices) = &self.matrices else { return Ok(None) };
        let prefix = self.tensors.prefix();
        let name = if prefix.is_empty() { "weight".to_owned() } else { format!("{prefix}.weight") };
        matrices(&name, (rows, columns))
    }
}

impl fmt::Debug for WeightSource<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "weights below `{}`", self.tensors.prefix())
    }
}
