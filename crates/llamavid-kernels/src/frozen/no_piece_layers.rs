//! The same for processors without tiles: there are no such layers.

use candle_core::{Result, Tensor, bail};

use super::{FrozenGelu, SomeRows};
use crate::{Norm, Projection};

/// A linear layer whose weights lie ready for tiles.
#[derive(Debug)]
pub enum FrozenProjection {}

impl FrozenProjection {
    /// None.
    ///
    /// # Errors
    /// Never.
    pub fn new(_projection: Projection) -> Result<Option<Self>> {
        Ok(None)
    }

    /// What each of some layers makes of the same rows.
    ///
    /// # Errors
    /// Without a layer.
    pub fn project<const N: usize>(layers: [&Self; N], _x: &SomeRows) -> Result<[Tensor; N]> {
        match layers.first() {
            Some(layer) => match **layer {},
            None => bail!("no layer"),
        }
    }

    /// The norm of rows of `x`, to which it adds what it makes of `inner`.
    ///
    /// # Errors
    /// Never.
    pub fn add_and_norm(&self, _inner: &Tensor, _x: &SomeRows, _norm: Norm) -> Result<Tensor> {
        match *self {}
    }
}

/// What feed-forward layers make of their rows.
///
/// # Errors
/// Without a layer.
pub fn frozen_gelu(parts: &[FrozenGelu]) -> Result<Tensor> {
    match parts.first() {
        Some(part) => match *part.first {},
        None => bail!("no feed-forward layer"),
    }
}
