//! Linear layers.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use candle_nn::Init;
use llamavid_kernels::{Projection, QuantisedMatrix, Weight};

use crate::weight_source::WeightSource;

/// Weights (out, in), as numbers or in blocks.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(Tensor),
    Blocks(QuantisedMatrix),
}

impl Matrix {
    /// Reads `weight` (rows, columns), for products.
    pub(crate) fn new(rows: usize, columns: usize, init: Init, vb: &WeightSource) -> Result<Self> {
        Self::table(rows, columns, init, vb)?.to_device(vb.device())
    }

    /// Reads `weight` (rows, columns), for rows by their numbers: in blocks it stays on the CPU.
    pub(crate) fn table(rows: usize, columns: usize, init: Init, vb: &WeightSource) -> Result<Self> {
        match vb.blocks(rows, columns)? {
            Some(blocks) => Ok(Self::Blocks(blocks)),
            None => Ok(Self::Dense(vb.get_with_hints((rows, columns), "weight", init)?)),
        }
    }

    /// The same for products on a device.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        match self {
            Self::Dense(weight) => Ok(Self::Dense(weight.to_device(device)?)),
            Self::Blocks(weight) => Ok(Self::Blocks(weight.to_device(device)?)),
        }
    }

    /// Some of its rows and columns, which share nothing with it but what lies in a mapped file.
    pub(crate) fn part(&self, rows: &Range<usize>, columns: &Range<usize>) -> Result<Self> {
        match self {
            Self::Dense(weight) => {
                let part = weight.narrow(0, rows.start, rows.len())?;
                Ok(Self::Dense(part.narrow(1, columns.start, columns.len())?.force_contiguous()?))
            }
            Self::Blocks(weight) => Ok(Self::Blocks(weight.part(rows.clone(), columns.clone())?)),
        }
    }

    /// Itself, for an operation.
    pub(crate) fn weight(&self) -> Weight<'_> {
        match self {
            Self::Dense(weight) => Weight::Dense(weight),
            Self::Blocks(weight) => Weight::Blocks(weight),
        }
    }
}

/// A linear layer with its weights: `x` (…, in) gives (…, out).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// (out, in).
    weight: Matrix,
    /// (out).
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Some outputs of a layer without bias, on a device.
    pub(crate) fn outputs(&self, rows: Range<usize>, device: &Device) -> Result<Self> {
        let (_rows, columns) = self.weight.weight().dims2()?;
        Ok(Self::new(self.weight.part(&rows, &(0..columns))?.to_device(device)?, None))
    }

    /// Its weights, for an operation that it is a part of.
    pub(crate) fn projection(&self) -> Projection<'_> {
        Projection { weight: self.weight.weight(), bias: self.bias.as_ref() }
    }

    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Its weight (out, in), where it is held as numbers.
    pub(crate) fn dense_weight(&self) -> Option<&Tensor> {
        match &self.weight {
            Matrix::Dense(weight) => Some(weight),
            Matrix::Blocks(_) => None,
        }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.weight().linear(x, self.bias.as_ref())
    }
}

impl From<candle_nn::Linear> for Linear {
    fn from(layer: candle_nn::Linear) -> Self {
        Self::new(Matrix::Dense(layer.weight().clone()), layer.bias().cloned())
    }
}

/// Reads `weight` and `bias`; where they are created, as candle-nn does.
pub(crate) fn linear(input: usize, output: usize, vb: WeightSource) -> Result<Linear> {
    match vb.blocks(output, input)? {
        Some(weight) => {
            let weight = Matrix::Blocks(weight.to_device(vb.device())?);
            Ok(Linear::new(weight, Some(vb.get(output, "bias")?)))
        }
        None => Ok(candle_nn::linear(input, output, vb.tensors())?.into()),
    }
}

/// Reads `weight` only.
pub(crate) fn linear_no_bias(input: usize, output: usize, vb: WeightSource) -> Result<Linear> {
    match vb.blocks(output, input)? {
        Some(weight) => Ok(Linear::new(Matrix::Blocks(weight.to_device(vb.device())?), None)),
        None => Ok(candle_nn::linear_no_bias(input, output, vb.tensors())?.into()),
    }
}
