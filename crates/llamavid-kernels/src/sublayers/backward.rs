//! The backward pass of a sub-layer.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::NormPlace;
use super::inner::Inner;
use super::inputs::Form;
use super::slices::{Slices, with_slices};
use super::split::{Part, Split};
use crate::operations::dropout::keep_rows;
use crate::operations::rows::{add_rows, column_sums, tensor};
use crate::products::matrix::{Matrix, multiply};
use crate::sublayers::many_inputs::Differentiable;

/// A sub-layer that was computed.
pub(super) struct Block<I: Inner> {
    pub(super) form: Form,
    pub(super) inner: I,
    pub(super) split: Split,
    /// By parts.
    pub(super) saved: Vec<Saved<I::Saved>>,
}

/// What the backward pass needs of some rows.
pub(super) struct Saved<T> {
    pub(super) inner: T,
    /// What a norm behind the sub-layer reads.
    pub(super) sum: Vec<f32>,
}

impl<I: Inner> Differentiable for Block<I> {
    fn name(&self) -> &'static str {
        I::NAME
    }

    fn gradients(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        with_slices(inputs, &[const { None }; 4], self.form, |slices| {
            crate::operations::rows::with_values([gradient], |[gradient]| {
                self.differentiate(inputs, slices, gradient)
            })
        })
    }
}

impl<I: Inner> Block<I> {
    fn differentiate(
        &self,
        inputs: &[Tensor],
        slices: &Slices,
        gradient: &[f32],
    ) -> Result<Vec<Option<Tensor>>> {
        let width = slices.width();
        let (part, group) = (self.split.part_rows * width, self.split.group_parts);
        let after = matches!(self.form.place, NormPlace::After(_));
        let reaches_x = after || inputs[..self.form.weight(0)].iter().any(Tensor::track_op);
        let mut of_x = vec![0f32; if reaches_x { slices.x().len() } else { 0 }];
        // Without a gradient of `x` each group gets an empty slice.
        let mut of_groups: Vec<&mut [f32]> = match reaches_x {
            true => of_x.chunks_mut(part * group).collect(),
            false => self.saved.chunks(group).map(|_| &mut [] as &mut [f32]).collect(),
        };
        let groups = of_groups
            .par_iter_mut()
            .zip(slices.x().par_chunks(part * group))
            .zip(gradient.par_chunks(part * group))
            .zip(self.saved.par_chunks(group))
            .enumerate()
            .map(|(index, (((of_x, x), gradient), saved))| {
                let mut sums = Sums::new(inputs, self.form);
                for (place, saved) in saved.iter().enumerate() {
                    let range = place * part..((place + 1) * part).min(x.len());
                    let rows = self.split.part(index * group + place, range.len() / width);
                    let (x, gradient) = (&x[range.clone()], &gradient[range.clone()]);
                    let of_x = if reaches_x { &mut of_x[range] } else { &mut [] };
                    self.differentiate_part(slices, rows, saved, [x, gradient], of_x, &mut sums)?;
                }
                Ok(sums)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut groups = groups.into_iter();
        let mut sums = groups.next().unwrap_or_else(|| Sums::new(inputs, self.form));
        for group in groups {
            sums.add(&group);
        }
        let mut result = Vec::with_capacity(inputs.len());
        for (input, sum) in inputs.iter().zip(sums.values) {
            result.push(sum.map(|sum| tensor(sum, input.shape())).transpose()?);
        }
        if inputs[0].track_op() {
            result[0] = Some(tensor(of_x, inputs[0].shape())?);
        }
        Ok(result)
    }

    /// Adds gradients of some rows to `sums`, and writes that of `x` to `of_x`, which is empty where nobody wants it.
    fn differentiate_part(
        &self,
        slices: &Slices,
        part: Part,
        saved: &Saved<I::Saved>,
        [x, gradient]: [&[f32]; 2],
        of_x: &mut [f32],
        sums: &mut Sums,
    ) -> Result<()> {
        match self.form.place {
            NormPlace::Before => {
                let normed = slices.normed(x);
                let of_projected =
                    self.inner.backward(slices, part, &saved.inner, &normed, gradient, sums)?;
                if !of_x.is_empty() && !of_projected.is_empty() {
                    of_x.copy_from_slice(gradient);
                    let mut of_normed = vec![0f32; x.len()];
                    slices.add_all_through(part, &of_projected, &mut of_normed, false);
                    sums.norm(slices, x, &of_normed, of_x);
                }
            }
            NormPlace::After(dropout) => {
                sums.norm(slices, &saved.sum, gradient, of_x);
                let mut of_inner = of_x.to_vec();
                if let Some(dropout) = dropout {
                    keep_rows(dropout, part.first, slices.width(), &mut of_inner);
                }
                let of_projected = self.inner.backward(slices, part, &saved.inner, x, &of_inner, sums)?;
                if sums.x {
                    slices.add_all_through(part, &of_projected, of_x, true);
                }
            }
        }
        Ok(())
    }
}

/// Sums of the gradients of norm and projections over some rows, for those that track.
pub(super) struct Sums {
    form: Form,
    /// Whether `x` tracks.
    x: bool,
    /// By inputs; that of `x` is no sum.
    values: Vec<Option<Vec<f32>>>,
}

impl Sums {
    fn new(inputs: &[Tensor], form: Form) -> Self {
        let sum = |input: &Tensor| input.track_op().then(|| vec![0f32; input.elem_count()]);
        let values = [None].into_iter().chain(inputs[1..].iter().map(sum)).collect();
        Self { form, x: inputs[0].track_op(), values }
    }

    fn add(&mut self, other: &Self) {
        for (sum, other) in self.values.iter_mut().zip(&other.values) {
            if let (Some(sum), Some(other)) = (sum, other)
                && !sum.is_empty()
            {
                add_rows(other, sum);
            }
        }
    }

    /// Adds the gradients of a projection's weight and bias from its input and the gradient of its result.
    pub(super) fn projection(
        &mut self,
        slices: &Slices,
        layer: usize,
        part: Part,
        rows: &[f32],
        gradient: &[f32],
    ) {
        let weight = slices.weight(layer);
        let index = self.form.weight(layer);
        if let Some(sum) = &mut self.values[index] {
            let gradient = Matrix::new(gradient, part.rows, weight.rows());
            let rows = Matrix::new(rows, part.rows, weight.columns());
            multiply(gradient.transposed(), rows, sum, true, part.parallel);
        }
        if self.form.biases[layer]
            && let Some(sum) = &mut self.values[self.form.bias(layer)]
            && !sum.is_empty()
        {
            match part.parallel {
                true => add_rows(&column_sums(gradient, weight.rows()), sum),
                false => add_rows(gradient, sum),
            }
        }
    }

    /// Adds the gradient of what the norm read to `of_rows`, and those of the norm to its sums.
    fn norm(&mut self, slices: &Slices, rows: &[f32], gradient: &[f32], of_rows: &mut [f32]) {
        let (weight, eps) = (slices.values[1], self.form.eps);
        let of_norm = match self.form.norm_bias {
            true => crate::operations::layer_norm::differentiated(rows, weight, eps, gradient, of_rows),
            false => crate::operations::rms_norm::differentiated(rows, weight, eps, gradient, of_rows),
        };
        for (sum, of_norm) in self.values[1..].iter_mut().zip(of_norm.chunks_exact(weight.len())) {
            if let Some(sum) = sum {
                add_rows(of_norm, sum);
            }
        }
    }

    /// Whether anything before a projection wants a gradient.
    pub(super) fn wants_before(&self, layer: usize) -> bool {
        self.x || self.values[1..self.form.weight(layer)].iter().any(Option::is_some)
    }
}
