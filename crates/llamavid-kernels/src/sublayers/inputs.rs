//! What a sub-layer reads, and how its result is computed from that.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::backward::{Block, Saved};
use super::inner::Inner;
use super::slices::{Slices, with_slices};
use super::split::{Part, Split};
use super::{Norm, NormPlace, Projection};
use crate::operations::dropout::keep_rows;
use crate::operations::rows::{add_rows, fusible, tensor};
use crate::sublayers::many_inputs::record;
use crate::{QuantisedMatrix, Weight};

/// Rows of which there is what is in between at once, where no gradient will be prefetched and all threads compute together: what
/// they make of a feed-forward layer's input is read again before it leaves the caches, and the same memory serves the next ones.
const ROWS_AT_ONCE: usize = 512;

/// What the projections are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One makes queries, keys and values.
    Packed,
    /// Three make them.
    Attention,
    FeedForward,
}

/// Which of the inputs is what: `x`, the norm, and the projections in their order, each with its bias behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) kind: Kind,
    pub(super) place: NormPlace,
    pub(super) eps: f32,
    pub(super) norm_bias: bool,
    /// Whether each projection's weight is among the inputs, and not in blocks.
    pub(super) dense: [bool; 4],
    /// Whether each projection has a bias.
    pub(super) biases: [bool; 4],
}

impl Form {
    /// Number of a projection's weight among the inputs.
    pub(super) fn weight(&self, layer: usize) -> usize {
        let before = self.biases[..layer].iter().chain(&self.dense[..layer]);
        2 + usize::from(self.norm_bias) + before.filter(|found| **found).count()
    }

    /// Number of a projection's bias among the inputs.
    pub(super) fn bias(&self, layer: usize) -> usize {
        self.weight(layer) + usize::from(self.dense[layer])
    }
}

/// What a sub-layer reads.
pub(super) struct Inputs {
    /// In the order of their gradients.
    tensors: Vec<Tensor>,
    /// Weights of projections that are in blocks. They have no gradients, and so nothing else has.
    blocks: [Option<QuantisedMatrix>; 4],
    form: Form,
}

impl Inputs {
    /// None unless all are on a CPU, tensors in f32 and with something in a row; and none where a gradient would go through
    /// weights in blocks.
    pub(super) fn fusible<'a>(
        kind: Kind,
        x: &Tensor,
        (norm, place): (Norm, NormPlace),
        projections: impl IntoIterator<Item = Projection<'a>>,
    ) -> Option<Self> {
        let (eps, norm_bias) = (norm.eps as f32, norm.bias.is_some());
        let mut form = Form { kind, place, eps, norm_bias, dense: [false; 4], biases: [false; 4] };
        let mut tensors = vec![x.clone(), norm.weight.clone()];
        let mut blocks = [const { None }; 4];
        tensors.extend(norm.bias.cloned());
        for (layer, projection) in projections.into_iter().enumerate() {
            match projection.weight {
                Weight::Dense(weight) => {
                    form.dense[layer] = true;
                    tensors.push(weight.clone());
                }
                Weight::Blocks(weight) => blocks[layer] = Some(weight.clone()),
            }
            form.biases[layer] = projection.bias.is_some();
            tensors.extend(projection.bias.cloned());
        }
        let fusible = tensors.iter().all(|tensor| fusible(&[tensor]) && tensor.rank() > 0);
        let on_cpu = blocks.iter().flatten().all(|blocks| blocks.is_on_cpu() && blocks.is_in_order());
        let differentiable = blocks.iter().all(Option::is_none);
        let fusible = fusible && on_cpu && (differentiable || !tensors.iter().any(Tensor::track_op));
        (fusible && crate::operations::rows::width(x.shape()) > 0).then_some(Self { tensors, blocks, form })
    }

    /// The sub-layer's result. `unit` rows belong together.
    pub(super) fn compute<I: Inner>(self, inner: I, unit: usize) -> Result<Tensor> {
        let tensors: Vec<Tensor> = self.tensors.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
        let shape = self.tensors[0].shape().clone();
        let keeps_nothing =
            matches!(self.form.place, NormPlace::After(None)) && !self.tensors.iter().any(Tensor::track_op);
        let (result, block) = with_slices(&tensors, &self.blocks, self.form, |slices| {
            let width = slices.width();
            let split = Split::new(slices, unit);
            if keeps_nothing && split.whole {
                return Ok((only_result(slices, &inner, unit)?, None));
            }
            let mut result = vec![0f32; slices.x().len()];
            let tasks = result.par_chunks_mut(split.part_rows * width);
            let saved = tasks
                .zip(slices.x().par_chunks(split.part_rows * width))
                .enumerate()
                .map(|(index, (result, x))| {
                    let part = split.part(index, x.len() / width);
                    let NormPlace::After(dropout) = self.form.place else {
                        result.copy_from_slice(x);
                        let saved = inner.forward(slices, part, &slices.normed(x), result)?;
                        return Ok(Saved { inner: saved, sum: Vec::new() });
                    };
                    let mut sum = vec![0f32; x.len()];
                    let saved = inner.forward(slices, part, x, &mut sum)?;
                    if let Some(dropout) = dropout {
                        keep_rows(dropout, part.first, width, &mut sum);
                    }
                    add_rows(x, &mut sum);
                    slices.write_normed(&sum, result);
                    Ok(Saved { inner: saved, sum })
                })
                .collect::<Result<Vec<_>>>()?;
            Ok((result, Some(Block { form: self.form, inner, split, saved })))
        })?;
        match block {
            Some(block) => record(tensors, result, shape, block),
            None => tensor(result, &shape),
        }
    }
}

/// The result of a sub-layer with the norm behind it, where nothing is kept for gradients: what is in between exists for some rows at a
/// time.
fn only_result<I: Inner>(slices: &Slices, inner: &I, unit: usize) -> Result<Vec<f32>> {
    let (x, width) = (slices.x(), slices.width());
    let units = x.len() / width / unit;
    let times = (units * unit).div_ceil(ROWS_AT_ONCE).max(1);
    let rows = units.div_ceil(times).max(1) * unit;
    let (mut result, mut sum) = (vec![0f32; x.len()], Vec::new());
    let parts = result.chunks_mut(rows * width).zip(x.chunks(rows * width));
    for (index, (result, x)) in parts.enumerate() {
        let part = Part { first: index * rows, rows: x.len() / width, parallel: true };
        sum.clear();
        sum.extend_from_slice(x);
        inner.add_result(slices, part, x, &mut sum)?;
        slices.write_normed(&sum, result);
    }
    Ok(result)
}
