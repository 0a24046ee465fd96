//! A layer's matrix of weights, stored as numbers or in blocks.

use candle_core::{Result, Tensor};

use crate::{QuantisedMatrix, embedding, linear};

/// The weights (out, in) of a linear layer, or rows of a table.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// A tensor of any device, with a gradient where it is a variable.
    Dense(&'a Tensor),
    /// In blocks, without a gradient; a table is on the CPU.
    Blocks(&'a QuantisedMatrix),
}

impl Weight<'_> {
    /// `x` (…, in) times the transpose of the weights, plus `bias` (out): (…, out).
    pub fn linear(self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(mut products) =
            crate::cuda::row_products(x, None, &[crate::Projection { weight: self, bias }], None, false)?
        {
            return Ok(products.swap_remove(0));
        }
        match (self, bias) {
            (Self::Dense(weight), bias) => linear(x, weight, bias),
            (Self::Blocks(weight), None) => weight.linear(x),
            (Self::Blocks(weight), Some(bias)) => weight.linear(x)?.broadcast_add(bias),
        }
    }

    /// Rows by their numbers `ids` (u32, any shape): (…, in). A number outside the table is an error.
    pub fn embedding(self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(table) => embedding(table, ids),
            Self::Blocks(table) => table.embedding(ids),
        }
    }

    /// Rows and columns.
    pub fn dims2(self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
            Self::Blocks(weight) => Ok(weight.shape()),
        }
    }
}
