//! Layers of a query model in AMX tiles, with weights that lie ready in bf16 pieces ([`crate::products::pieces`]): two of each number, as
//! f16 needs, or one.
//!
//! Rows are the left operand here, and are laid out by the task that multiplies them: some tiles of rows, few enough to stay in the L2
//! cache with what becomes of them, meet all weights, which are prefetched. A part of a row is multiplied before its sums leave the
//! tiles. What follows a product is done by the same task: in a feed-forward layer the hidden numbers never leave the cache.
//!
//! Letters: B sequences, R rows of each, h width.

mod rows;
mod tasks;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod vectors;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use self::rows::{Rows, Selection, Target};
use self::tasks::{add_and_norm, feed_forward, project};
use super::{FrozenGelu, SomeRows};
use crate::instructions::amx::{Piece, ROWS, RUN};
use crate::instructions::processor::{IntegerDot, Processor, processor};
use crate::operations::rows::{fusible, with_values};
use crate::products::pieces::{lay_out_columns, pieces_of};
use crate::{Norm, Projection, Weight};

/// A linear layer whose weights lie ready for tiles.
#[derive(Debug)]
pub struct FrozenProjection {
    /// Panels of [`ROWS`] rows: of each run, its pieces.
    pieces: Vec<Piece>,
    /// Pieces of a weight.
    each: usize,
    rows: usize,
    columns: usize,
    /// Up to a whole number of panels.
    bias: Vec<f32>,
}

impl FrozenProjection {
    /// Lays out its weights where the processor has tiles and two pieces stand for each of them; else there is none. No gradient flows
    /// through it.
    ///
    /// # Errors
    /// A bias that does not go with the weights.
    pub fn new(projection: Projection) -> Result<Option<Self>> {
        Self::on(processor(), projection)
    }

    fn on(processor: Processor, Projection { weight, bias }: Projection) -> Result<Option<Self>> {
        let Weight::Dense(weight) = weight else { return Ok(None) };
        if !matches!(processor, Processor::Avx512(_, IntegerDot::Tiles)) || !fusible(&[weight]) {
            return Ok(None);
        }
        let (rows, columns) = weight.dims2()?;
        let mut padded = vec![0f32; rows.next_multiple_of(ROWS)];
        if let Some(bias) = bias {
            if bias.dims() != [rows] {
                bail!("a bias of shape {:?} for {rows} outputs", bias.dims());
            }
            with_values([bias], |[bias]| {
                padded[..rows].copy_from_slice(bias);
                Ok(())
            })?;
        }
        with_values([weight], |[values]| {
            let each = values.par_chunks(1 << 16).map(pieces_of).max().unwrap_or(1);
            if rows == 0 || columns == 0 || each > 2 {
                return Ok(None);
            }
            let of_panel = columns.div_ceil(RUN) * each;
            let length = padded.len() / ROWS * of_panel;
            let mut pieces = Vec::with_capacity(length);
            let panels = pieces.spare_capacity_mut()[..length].par_chunks_exact_mut(of_panel);
            panels.zip(values.par_chunks(ROWS * columns)).for_each(|(pieces, values)| {
                let into = pieces.as_mut_ptr().cast();
                // SAFETY: the processor has the instructions, the rows have these columns, and there is room for their pieces.
                unsafe {
                    match each {
                        1 => lay_out_columns::<1>(values, columns, 0..columns, into),
                        _ => lay_out_columns::<2>(values, columns, 0..columns, into),
                    }
                };
            });
            // SAFETY: all of it was written, with zeros for rows and columns that are missing.
            unsafe { pieces.set_len(length) };
            Ok(Some(Self { pieces, each, rows, columns, bias: padded }))
        })
    }

    /// What each of some layers makes of the same rows: (B, rows of each sequence, out).
    ///
    /// # Errors
    /// Rows that the layers do not read.
    pub fn project<const N: usize>(layers: [&Self; N], x: &SomeRows) -> Result<[Tensor; N]> {
        const { assert!(N > 0, "no layers") };
        let mut found = Vec::with_capacity(N);
        for layer in layers {
            let (batch, some, _width) = x.check(layer.columns)?;
            found.push((batch, some, layer.rows));
        }
        let results = with_values([x.of], |[values]| {
            let x = Rows::new(values, x.of.dims3()?, &x.range);
            Ok(project(layers, x))
        })?;
        let tensors = results.into_iter().zip(found);
        let tensors = tensors.map(|(values, shape)| Tensor::from_vec(values, shape, x.of.device()));
        let tensors: Vec<Tensor> = tensors.collect::<Result<_>>()?;
        tensors.try_into().map_err(|_| candle_core::Error::msg("another number of results"))
    }

    /// The norm of rows of `x`, to which it adds what it makes of `inner` (B, rows of each sequence, in): (B, rows of each sequence, h).
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn add_and_norm(&self, inner: &Tensor, x: &SomeRows, norm: Norm) -> Result<Tensor> {
        let (batch, some, width) = x.check(self.rows)?;
        if inner.dims() != [batch, some, self.columns] || !fusible(&[inner]) {
            bail!("rows {:?} and {:?} do not go with a layer of {} x {}", inner, x, self.rows, self.columns);
        }
        let result = with_norm(norm, width, |norm| {
            with_values([inner, x.of], |[inner, values]| {
                let inner = Rows::all(inner, self.columns);
                let x = Rows::new(values, x.of.dims3()?, &x.range);
                let length = x.count * width;
                let mut result = Vec::with_capacity(length);
                let target = Target::new(result.as_mut_ptr(), length, width, Selection::ALL);
                add_and_norm(self, inner, x, norm, target);
                // SAFETY: all of it was written.
                unsafe { result.set_len(length) };
                Ok(result)
            })
        })?;
        Tensor::from_vec(result, (batch, some, width), x.of.device())
    }

    fn runs(&self) -> usize {
        self.columns.div_ceil(RUN)
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }
}

/// What feed-forward layers make of their rows, those of a sequence one after the other: (B, rows of all, h).
///
/// # Errors
/// Shapes that do not go together.
pub fn frozen_gelu(parts: &[FrozenGelu]) -> Result<Tensor> {
    let Some(first) = parts.first() else { bail!("no feed-forward layer") };
    let (batch, _rows, width) = first.x.check(first.first.columns)?;
    let all: usize = parts.iter().map(|part| part.x.range.len()).sum();
    let length = batch * all * width;
    let mut result = Vec::with_capacity(length);
    let mut begin = 0;
    for FrozenGelu { first, second, norm, x } in parts {
        let (found, some, _width) = x.check(width)?;
        if found != batch || first.columns != width || second.rows != width || second.columns != first.rows {
            bail!("feed-forward layers that do not go together, or with rows {x:?}");
        }
        let selection = Selection { all, first: begin, some };
        let target = Target::new(result.as_mut_ptr(), length, width, selection);
        with_norm(*norm, width, |norm| {
            with_values([x.of], |[values]| {
                feed_forward([first, second], Rows::new(values, x.of.dims3()?, &x.range), norm, target);
                Ok(())
            })
        })?;
        begin += some;
    }
    // SAFETY: the parts have written all rows of each sequence.
    unsafe { result.set_len(length) };
    Tensor::from_vec(result, (batch, all, width), first.x.of.device())
}

/// A norm's numbers.
#[derive(Debug, Clone, Copy)]
struct NormOf<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

fn with_norm<T>(norm: Norm, width: usize, run: impl FnOnce(NormOf) -> Result<T>) -> Result<T> {
    let Some(bias) = norm.bias else { bail!("a norm without a bias") };
    if norm.weight.dims() != [width] || bias.dims() != [width] {
        bail!("a norm of {:?} for rows of {width}", norm.weight.dims());
    }
    with_values([norm.weight, bias], |[weight, bias]| run(NormOf { weight, bias, eps: norm.eps as f32 }))
}
