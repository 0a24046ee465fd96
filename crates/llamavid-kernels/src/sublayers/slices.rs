//! The values of a sub-layer's inputs, and what its norm and projections make of rows and of gradients.

use candle_core::{Result, Shape, Storage, Tensor, bail};

use super::inputs::{Form, Kind};
use super::split::Part;
use crate::QuantisedMatrix;
use crate::operations::rows::values;
use crate::products::matrix::{Matrix, multiply};
use crate::products::{Layer, Weights};

/// The values of the inputs.
pub(super) struct Slices<'a> {
    pub(super) values: Vec<&'a [f32]>,
    pub(super) shapes: Vec<&'a Shape>,
    pub(super) blocks: &'a [Option<QuantisedMatrix>; 4],
    pub(super) form: Form,
}

/// Runs `read` on the values of contiguous f32 tensors.
pub(super) fn with_slices<T>(
    tensors: &[Tensor],
    blocks: &[Option<QuantisedMatrix>; 4],
    form: Form,
    read: impl FnOnce(&Slices) -> Result<T>,
) -> Result<T> {
    let storages: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let values = storages
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cpu(storage) => values(storage, layout),
            _ => bail!("a tensor of another device than the CPU"),
        })
        .collect::<Result<_>>()?;
    let slices = Slices { values, shapes: tensors.iter().map(Tensor::shape).collect(), blocks, form };
    slices.check()?;
    read(&slices)
}

impl<'a> Slices<'a> {
    /// Weights of shapes that go together, so that the products do not have to ask.
    fn check(&self) -> Result<()> {
        let width = self.width();
        let norm = &self.shapes[1..2 + usize::from(self.form.norm_bias)];
        if norm.iter().any(|shape| shape.dims() != [width]) {
            bail!("a norm of shape {:?} does not go with rows of shape {:?}", self.shapes[1], self.shapes[0]);
        }
        let mut layers = Vec::new(); // (output, input)
        for (layer, blocks) in self.blocks.iter().enumerate() {
            let sizes = match blocks {
                Some(blocks) => blocks.shape(),
                None if self.form.dense[layer] => self.shapes[self.form.weight(layer)].dims2()?,
                None => continue,
            };
            if self.form.biases[layer] {
                let bias = self.shapes[self.form.bias(layer)];
                if bias.dims() != [sizes.0] {
                    bail!("a bias of shape {bias:?} for {} outputs", sizes.0);
                }
            }
            layers.push(sizes);
        }
        let (Some((output, inner)), Some(&(first, _))) = (layers.pop(), layers.first()) else {
            bail!("a block of fewer than two projections")
        };
        let reads_width = layers.iter().all(|(_output, input)| *input == width);
        let same_inner = match self.form.kind {
            Kind::Packed => first == 3 * inner,
            // How many key heads there are is for the attention to check.
            Kind::Attention => first == inner,
            Kind::FeedForward => layers.iter().all(|(output, _input)| *output == inner),
        };
        if output != width || !reads_width || !same_inner {
            bail!("projections {:?} do not go together for rows of {width}", &self.shapes[1..]);
        }
        Ok(())
    }

    pub(super) fn x(&self) -> &'a [f32] {
        self.values[0]
    }

    pub(super) fn width(&self) -> usize {
        crate::operations::rows::width(self.shapes[0])
    }

    /// Rows of `x` after the norm.
    pub(super) fn normed(&self, x: &[f32]) -> Vec<f32> {
        let mut result = vec![0f32; x.len()];
        self.write_normed(x, &mut result);
        result
    }

    /// Writes rows of `x` after the norm.
    pub(super) fn write_normed(&self, x: &[f32], result: &mut [f32]) {
        let (weight, eps) = (self.values[1], self.form.eps);
        match self.form.norm_bias {
            true => crate::operations::layer_norm::write_normalised(x, weight, self.values[2], eps, result),
            false => crate::operations::rms_norm::write_normalised(x, weight, eps, result),
        }
    }

    /// A projection's weight.
    pub(super) fn weight(&self, layer: usize) -> Matrix<'a> {
        let index = self.form.weight(layer);
        let (output, input) = self.shapes[index].dims2().unwrap_or((0, 0));
        Matrix::new(self.values[index], output, input)
    }

    /// A projection as a layer.
    fn layer(&self, layer: usize) -> Layer<'a> {
        let bias = self.form.biases[layer].then(|| self.values[self.form.bias(layer)]);
        match &self.blocks[layer] {
            Some(blocks) => blocks.layer(bias),
            None => {
                let weight = self.weight(layer);
                let weights = Weights::F32(weight.values());
                Layer { weights, rows: weight.rows(), columns: weight.columns(), bias }
            }
        }
    }

    /// What a projection makes of rows.
    pub(super) fn project(&self, layer: usize, part: Part, rows: &[f32]) -> Vec<f32> {
        self.layer(layer).forward(rows, part.rows, part.parallel)
    }

    /// What several projections make of the same rows.
    pub(super) fn project_each<const N: usize>(
        &self,
        layers: [usize; N],
        part: Part,
        rows: &[f32],
    ) -> [Vec<f32>; N] {
        Layer::forward_each(layers.map(|layer| self.layer(layer)), rows, part.rows, part.parallel)
    }

    /// Adds what a projection makes of rows to what is there.
    pub(super) fn add_projected(&self, layer: usize, part: Part, rows: &[f32], result: &mut [f32]) {
        self.layer(layer).add_to(rows, result, part.parallel);
    }

    /// The gradient of a projection's input.
    pub(super) fn through(&self, layer: usize, part: Part, gradient: &[f32]) -> Vec<f32> {
        let mut result = vec![0f32; part.rows * self.weight(layer).columns()];
        self.add_through(layer, part, gradient, &mut result, false);
        result
    }

    /// Writes the gradient of what the first projections read, or adds it to what is there.
    pub(super) fn add_all_through(
        &self,
        part: Part,
        of_projected: &[Vec<f32>],
        result: &mut [f32],
        add: bool,
    ) {
        for (layer, gradient) in of_projected.iter().enumerate() {
            self.add_through(layer, part, gradient, result, add || layer > 0);
        }
    }

    /// Writes the gradient of a projection's input, or adds it to what is there.
    fn add_through(&self, layer: usize, part: Part, gradient: &[f32], result: &mut [f32], add: bool) {
        let weight = self.weight(layer);
        multiply(Matrix::new(gradient, part.rows, weight.rows()), weight, result, add, part.parallel);
    }
}
