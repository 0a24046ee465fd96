//! Whole sub-layers of a transformer as one operation each: norm, what comes in between, and the residual.
//!
//! What an autograd engine costs beside the products is traffic: a gradient for every tensor in between, begun with
//! zeros and added to. A sub-layer has one input and one result; gradients in between stay within it and are added
//! up by the products themselves. Letters: B batch, S rows, D width.

use candle_core::{Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::attention::{Attention, fused};
use crate::many_inputs::{Differentiable, record};
use crate::matrix::{Matrix, multiply, product};
use crate::rows::{column_sums, fusible, rows_of_a_task, tensor, values};
use crate::{Heads, gelu, layer_norm, linear, multi_head_attention, packed_attention, rms_norm, swiglu};

/// Normalisation over the last dimension: of layers with a bias, of root mean squares without one.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// (D).
    pub weight: &'a Tensor,
    /// (D).
    pub bias: Option<&'a Tensor>,
    /// Added to the variance, or to the mean of the squares.
    pub eps: f64,
}

impl Norm<'_> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.bias {
            Some(bias) => layer_norm(x, self.weight, bias, self.eps),
            None => rms_norm(x, self.weight, self.eps),
        }
    }
}

/// A linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// (out, in).
    pub weight: &'a Tensor,
    /// (out).
    pub bias: Option<&'a Tensor>,
}

impl Projection<'_> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, self.weight, self.bias)
    }
}

/// Self-attention with norm and residual, `x + output(attention(norm(x)))`: `x` (B, S, D) gives (B, S, D).
///
/// `sources` make queries, keys and values, or one of them all three (see [`packed_attention`]).
pub fn attention_block(
    x: &Tensor,
    norm: Norm,
    sources: &[Projection],
    output: Projection,
    heads: &Heads,
) -> Result<Tensor> {
    if !matches!(sources.len(), 1 | 3) {
        bail!("attention of {} sources, not of one or three", sources.len());
    }
    let kind = if sources.len() == 1 { Kind::Packed } else { Kind::Attention };
    let inputs = Inputs::new(kind, x, norm, sources.iter().copied().chain([output]));
    let fused = if inputs.fusible() { fused(&[x], heads)? } else { None };
    let Some(attention) = fused else {
        let normed = norm.forward(x)?;
        let sources: Vec<_> = sources.iter().map(|source| source.forward(&normed)).collect::<Result<_>>()?;
        let attended = match sources.as_slice() {
            [packed] => packed_attention(packed, heads)?,
            [q, k, v] => multi_head_attention(q, k, v, heads)?,
            _ => bail!("attention of {} sources, not of one or three", sources.len()),
        };
        return x + output.forward(&attended)?;
    };
    let (batch, rows, _width) = x.dims3()?;
    inputs.compute(|slices| {
        let normed = slices.normed();
        let sources: Vec<_> = (0..sources.len()).map(|layer| slices.project(layer, &normed)).collect();
        let attended = attention.attend(batch, rows, &slices_of(&sources))?;
        let result = slices.add_projected(sources.len(), slices.x().to_vec(), &attended);
        Ok((result, AttentionBlock { form: inputs.form, attention, batch, rows, normed, sources, attended }))
    })
}

/// LLaMA's feed-forward layer with norm and residual, `x + down(silu(gate(norm(x))) · up(norm(x)))`: (…, D) gives (…, D).
pub fn swiglu_block(
    x: &Tensor,
    norm: Norm,
    gate: Projection,
    up: Projection,
    down: Projection,
) -> Result<Tensor> {
    let inputs = Inputs::new(Kind::FeedForward, x, norm, [gate, up, down]);
    if !inputs.fusible() {
        let normed = norm.forward(x)?;
        return x + down.forward(&swiglu(&gate.forward(&normed)?, &up.forward(&normed)?)?)?;
    }
    inputs.compute(|slices| {
        let normed = slices.normed();
        let (gate, up) = (slices.project(0, &normed), slices.project(1, &normed));
        let inner = crate::swiglu::activated(&gate, &up);
        let result = slices.add_projected(2, slices.x().to_vec(), &inner);
        Ok((result, SwigluBlock { form: inputs.form, normed, gate, up, inner }))
    })
}

/// BERT's and the vision transformers' feed-forward layer with norm and residual, `x + second(gelu(first(norm(x))))`:
/// (…, D) gives (…, D).
pub fn gelu_block(x: &Tensor, norm: Norm, first: Projection, second: Projection) -> Result<Tensor> {
    let inputs = Inputs::new(Kind::FeedForward, x, norm, [first, second]);
    if !inputs.fusible() {
        return x + second.forward(&gelu(&first.forward(&norm.forward(x)?)?)?)?;
    }
    inputs.compute(|slices| {
        let normed = slices.normed();
        let hidden = slices.project(0, &normed);
        let inner = crate::gelu::activated(&hidden);
        let result = slices.add_projected(1, slices.x().to_vec(), &inner);
        Ok((result, GeluBlock { form: inputs.form, normed, hidden, inner }))
    })
}

/// What the projections are for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// One makes queries, keys and values.
    Packed,
    /// Three make them.
    Attention,
    FeedForward,
}

/// Which of the inputs is what.
#[derive(Debug, Clone, Copy)]
struct Form {
    kind: Kind,
    eps: f32,
    norm_bias: bool,
    /// Whether each projection has a bias.
    biases: [bool; 4],
}

impl Form {
    /// Number of the weight of a projection among the inputs: `x`, the norm and the projections before it come first.
    fn weight(&self, layer: usize) -> usize {
        let biases = self.biases[..layer].iter().filter(|bias| **bias).count();
        2 + usize::from(self.norm_bias) + layer + biases
    }
}

/// The tensors of a sub-layer in the order of their gradients.
struct Inputs {
    tensors: Vec<Tensor>,
    form: Form,
}

impl Inputs {
    fn new<'a>(
        kind: Kind,
        x: &Tensor,
        norm: Norm,
        projections: impl IntoIterator<Item = Projection<'a>>,
    ) -> Self {
        let mut form =
            Form { kind, eps: norm.eps as f32, norm_bias: norm.bias.is_some(), biases: [false; 4] };
        let mut tensors = vec![x.clone(), norm.weight.clone()];
        tensors.extend(norm.bias.cloned());
        for (bias, projection) in form.biases.iter_mut().zip(projections) {
            *bias = projection.bias.is_some();
            tensors.push(projection.weight.clone());
            tensors.extend(projection.bias.cloned());
        }
        Self { tensors, form }
    }

    /// Whether all are f32 on a CPU.
    fn fusible(&self) -> bool {
        self.tensors.iter().all(|tensor| fusible(&[tensor]))
    }

    /// The result of `compute`, a tensor of the shape of `x`, with the operation that differentiates it.
    fn compute<O: Differentiable>(
        &self,
        compute: impl FnOnce(&Slices) -> Result<(Vec<f32>, O)>,
    ) -> Result<Tensor> {
        let tensors: Vec<Tensor> = self.tensors.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
        let (result, operation) = with_slices(&tensors, self.form, compute)?;
        let shape = self.tensors[0].shape().clone();
        record(tensors, result, shape, operation)
    }
}

/// The values of the inputs.
struct Slices<'a> {
    values: Vec<&'a [f32]>,
    shapes: Vec<&'a Shape>,
    form: Form,
}

/// Runs `read` on the values of contiguous f32 tensors.
fn with_slices<T>(tensors: &[Tensor], form: Form, read: impl FnOnce(&Slices) -> Result<T>) -> Result<T> {
    let storages: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let values = storages
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cpu(storage) => values(storage, layout),
            _ => bail!("a tensor of another device than the CPU"),
        })
        .collect::<Result<_>>()?;
    let slices = Slices { values, shapes: tensors.iter().map(Tensor::shape).collect(), form };
    slices.check()?;
    read(&slices)
}

impl<'a> Slices<'a> {
    /// Weights of shapes that go together, so that the products do not have to ask.
    fn check(&self) -> Result<()> {
        let width = crate::rows::width(self.shapes[0]);
        let norm = &self.shapes[1..2 + usize::from(self.form.norm_bias)];
        if norm.iter().any(|shape| shape.dims() != [width]) {
            bail!("a norm of shape {:?} does not go with rows of shape {:?}", self.shapes[1], self.shapes[0]);
        }
        let mut layers = Vec::new(); // (output, input)
        let mut index = 1 + norm.len();
        while index < self.shapes.len() {
            let sizes = self.shapes[index].dims2()?;
            index += 1;
            if self.form.biases[layers.len()] {
                if self.shapes[index].dims() != [sizes.0] {
                    bail!("a bias of shape {:?} for {} outputs", self.shapes[index], sizes.0);
                }
                index += 1;
            }
            layers.push(sizes);
        }
        let (Some(&(output, inner)), Some(&(first, _))) = (layers.pop().as_ref(), layers.first()) else {
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

    fn x(&self) -> &'a [f32] {
        self.values[0]
    }

    /// Rows of `x`.
    fn rows(&self) -> usize {
        self.shapes[0].dims().split_last().map_or(1, |(_width, rows)| rows.iter().product())
    }

    fn normed(&self) -> Vec<f32> {
        match self.form.norm_bias {
            true => crate::layer_norm::normalised(self.x(), self.values[1], self.values[2], self.form.eps),
            false => crate::rms_norm::normalised(self.x(), self.values[1], self.form.eps),
        }
    }

    /// A projection's weight.
    fn weight(&self, layer: usize) -> Matrix<'a> {
        let index = self.form.weight(layer);
        let (output, input) = self.shapes[index].dims2().unwrap_or((0, 0));
        Matrix::new(self.values[index], output, input)
    }

    /// Rows through a projection.
    fn project(&self, layer: usize, rows: &[f32]) -> Vec<f32> {
        let weight = self.weight(layer);
        if self.form.biases[layer] {
            return self.add_projected(layer, vec![0f32; self.rows() * weight.rows()], rows);
        }
        product(Matrix::new(rows, self.rows(), weight.columns()), weight.transposed())
    }

    /// `sum` and what a projection makes of the rows.
    fn add_projected(&self, layer: usize, mut sum: Vec<f32>, rows: &[f32]) -> Vec<f32> {
        let weight = self.weight(layer);
        if self.form.biases[layer] && weight.rows() > 0 {
            let bias = self.values[self.form.weight(layer) + 1];
            sum.par_chunks_mut(rows_of_a_task(bias.len()) * bias.len()).for_each(|sum| {
                for sum in sum.chunks_exact_mut(bias.len()) {
                    for (sum, bias) in sum.iter_mut().zip(bias) {
                        *sum += bias;
                    }
                }
            });
        }
        let rows = Matrix::new(rows, self.rows(), weight.columns());
        multiply(rows, weight.transposed(), &mut sum, true, true);
        sum
    }
}

fn slices_of(parts: &[Vec<f32>]) -> Vec<&[f32]> {
    parts.iter().map(Vec::as_slice).collect()
}

/// Gradients in the order of the inputs, for those that track.
struct Gradients<'a> {
    inputs: &'a [Tensor],
    slices: &'a Slices<'a>,
    found: Vec<Option<Tensor>>,
}

impl Gradients<'_> {
    /// Runs `backward` with the inputs and the gradient of the result at hand.
    fn of(
        inputs: &[Tensor],
        form: Form,
        gradient: &Tensor,
        backward: impl FnOnce(&mut Gradients, &[f32]) -> Result<()>,
    ) -> Result<Vec<Option<Tensor>>> {
        let gradient = gradient.contiguous()?;
        let (storage, layout) = gradient.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("a gradient of another device than the CPU") };
        let gradient = values(storage, layout)?;
        with_slices(inputs, form, |slices| {
            let mut gradients = Gradients { inputs, slices, found: vec![None; inputs.len()] };
            backward(&mut gradients, gradient)?;
            Ok(gradients.found)
        })
    }

    fn set(&mut self, index: usize, values: impl FnOnce() -> Vec<f32>) -> Result<()> {
        if self.inputs[index].track_op() {
            self.found[index] = Some(tensor(values(), self.inputs[index].shape())?);
        }
        Ok(())
    }

    /// Whether `x` or the norm wants a gradient.
    fn reach_x(&self) -> bool {
        self.inputs[..self.slices.form.weight(0)].iter().any(Tensor::track_op)
    }

    /// Whether `x`, the norm or one of the first `layers` projections wants a gradient.
    fn reach(&self, layers: usize) -> bool {
        self.inputs[..self.slices.form.weight(layers)].iter().any(Tensor::track_op)
    }

    /// Gradients of a projection's weight and bias from those of its result and from its input.
    fn projection(&mut self, layer: usize, rows: &[f32], gradient: &[f32]) -> Result<()> {
        let weight = self.slices.weight(layer);
        let index = self.slices.form.weight(layer);
        let count = self.slices.rows();
        self.set(index, || {
            let gradient = Matrix::new(gradient, count, weight.rows());
            product(gradient.transposed(), Matrix::new(rows, count, weight.columns()))
        })?;
        if self.slices.form.biases[layer] {
            self.set(index + 1, || column_sums(gradient, weight.rows()))?;
        }
        Ok(())
    }

    /// The gradient of a projection's input.
    fn through(&self, layer: usize, gradient: &[f32]) -> Vec<f32> {
        let weight = self.slices.weight(layer);
        product(Matrix::new(gradient, self.slices.rows(), weight.rows()), weight)
    }

    /// Gradients of norm and `x` from those of the result, and of what the first projections read out of the norm.
    fn norm(&mut self, gradient: &[f32], of_projected: &[&[f32]]) -> Result<()> {
        if !self.reach_x() {
            return Ok(());
        }
        let (count, form) = (self.slices.rows(), self.slices.form);
        let mut of_normed = Vec::new();
        for (layer, of_projected) in of_projected.iter().enumerate() {
            if layer == 0 {
                of_normed = self.through(layer, of_projected);
            } else {
                let weight = self.slices.weight(layer);
                let of_projected = Matrix::new(of_projected, count, weight.rows());
                multiply(of_projected, weight, &mut of_normed, true, true);
            }
        }
        let (x, weight) = (self.slices.x(), self.slices.values[1]);
        let mut of_x = gradient.to_vec();
        let mut of_norm = match form.norm_bias {
            true => crate::layer_norm::differentiated(x, weight, form.eps, &of_normed, &mut of_x),
            false => crate::rms_norm::differentiated(x, weight, form.eps, &of_normed, &mut of_x),
        };
        self.set(0, || of_x)?;
        if form.norm_bias {
            let of_bias = of_norm.split_off(weight.len());
            self.set(2, || of_bias)?;
        }
        self.set(1, || of_norm)
    }
}

struct AttentionBlock {
    form: Form,
    attention: Attention,
    batch: usize,
    rows: usize,
    normed: Vec<f32>,
    sources: Vec<Vec<f32>>,
    attended: Vec<f32>,
}

impl Differentiable for AttentionBlock {
    fn name(&self) -> &'static str {
        "attention-block"
    }

    fn gradients(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Gradients::of(inputs, self.form, gradient, |gradients, gradient| {
            let output = self.sources.len();
            gradients.projection(output, &self.attended, gradient)?;
            if !gradients.reach(output) {
                return Ok(());
            }
            let of_attended = gradients.through(output, gradient);
            let of_sources = self.attention.differentiate(
                self.batch,
                self.rows,
                &slices_of(&self.sources),
                &of_attended,
            )?;
            for (layer, of_source) in of_sources.iter().enumerate() {
                gradients.projection(layer, &self.normed, of_source)?;
            }
            gradients.norm(gradient, &slices_of(&of_sources))
        })
    }
}

struct SwigluBlock {
    form: Form,
    normed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
}

impl Differentiable for SwigluBlock {
    fn name(&self) -> &'static str {
        "swiglu-block"
    }

    fn gradients(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Gradients::of(inputs, self.form, gradient, |gradients, gradient| {
            gradients.projection(2, &self.inner, gradient)?;
            if !gradients.reach(2) {
                return Ok(());
            }
            let of_inner = gradients.through(2, gradient);
            let (of_gate, of_up) = crate::swiglu::differentiated(&self.gate, &self.up, &of_inner);
            gradients.projection(0, &self.normed, &of_gate)?;
            gradients.projection(1, &self.normed, &of_up)?;
            gradients.norm(gradient, &[&of_gate, &of_up])
        })
    }
}

struct GeluBlock {
    form: Form,
    normed: Vec<f32>,
    hidden: Vec<f32>,
    inner: Vec<f32>,
}

impl Differentiable for GeluBlock {
    fn name(&self) -> &'static str {
        "gelu-block"
    }

    fn gradients(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Gradients::of(inputs, self.form, gradient, |gradients, gradient| {
            gradients.projection(1, &self.inner, gradient)?;
            if !gradients.reach(1) {
                return Ok(());
            }
            let of_hidden = crate::gelu::differentiated(&self.hidden, &gradients.through(1, gradient));
            gradients.projection(0, &self.normed, &of_hidden)?;
            gradients.norm(gradient, &[&of_hidden])
        })
    }
}
