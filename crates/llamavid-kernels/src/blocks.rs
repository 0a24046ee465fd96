//! Whole sub-layers of a transformer as one operation each: norm, what comes in between, and the residual.
//!
//! What an autograd engine costs beside the products is traffic: a gradient for every tensor in between, begun with
//! zeros and added to. A sub-layer has one input and one result; gradients in between stay within it and are added
//! up by the products themselves. Letters: B batch, S rows, D width.

use candle_core::{Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::attention::{Attention, Sequences, fused};
use crate::dropout::keep_rows;
use crate::many_inputs::{Differentiable, record};
use crate::matrix::{Matrix, multiply};
use crate::products::{Layer, Weights};
use crate::rows::{add_rows, column_sums, fusible, tensor, values};
use crate::{
    Dropout, Heads, QuantisedMatrix, Weight, gelu, layer_norm, multi_head_attention, packed_attention,
    rms_norm, swiglu,
};

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
    pub weight: Weight<'a>,
    /// (out).
    pub bias: Option<&'a Tensor>,
}

impl Projection<'_> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.linear(x, self.bias)
    }
}

/// Where the norm is.
#[derive(Debug, Clone, Copy)]
pub enum NormPlace {
    /// `x + inner(norm(x))`, as in LLaMA and the vision transformers.
    Before,
    /// `norm(x + dropout(inner(x)))`, as in BERT.
    After(Option<Dropout>),
}

impl NormPlace {
    /// The sub-layer by operations of their own.
    fn compose(
        self,
        x: &Tensor,
        norm: Norm,
        inner: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Before => x + inner(&norm.forward(x)?)?,
            Self::After(None) => norm.forward(&(x + inner(x)?)?),
            Self::After(Some(dropout)) => norm.forward(&(x + dropout.apply(&inner(x)?)?)?),
        }
    }
}

/// Self-attention with norm and residual, `output(attention(…))` inside: `x` (B, S, D) gives (B, S, D).
///
/// `sources` make queries, keys and values, or one of them all three (see [`packed_attention`]).
pub fn attention_block(
    x: &Tensor,
    (norm, place): (Norm, NormPlace),
    sources: &[Projection],
    output: Projection,
    heads: &Heads,
) -> Result<Tensor> {
    let kind = match sources.len() {
        1 => Kind::Packed,
        3 => Kind::Attention,
        count => bail!("attention of {count} sources, not of one or three"),
    };
    #[cfg(feature = "cuda")]
    if let Some(result) = crate::cuda::attention_block(x, (norm, place), sources, output, heads)? {
        return Ok(result);
    }
    if let Some(inputs) = Inputs::fusible(kind, x, (norm, place), sources.iter().copied().chain([output]))
        && let Some(attention) = fused(&[x], heads)?
    {
        let (batch, rows, _width) = x.dims3()?;
        let inner = SelfAttention { attention, sources: sources.len(), batch, rows };
        return inputs.compute(inner, rows.max(1));
    }
    place.compose(x, norm, |rows| {
        let sources: Vec<_> = sources.iter().map(|source| source.forward(rows)).collect::<Result<_>>()?;
        let attended = match sources.as_slice() {
            [q, k, v] => multi_head_attention(q, k, v, heads)?,
            sources => packed_attention(&sources[0], heads)?,
        };
        output.forward(&attended)
    })
}

/// LLaMA's feed-forward layer with norm and residual, `down(silu(gate(…)) · up(…))` inside: (…, D) gives (…, D).
pub fn swiglu_block(
    x: &Tensor,
    (norm, place): (Norm, NormPlace),
    gate: Projection,
    up: Projection,
    down: Projection,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(result) = crate::cuda::swiglu_block(x, (norm, place), [gate, up, down])? {
        return Ok(result);
    }
    if let Some(inputs) = Inputs::fusible(Kind::FeedForward, x, (norm, place), [gate, up, down]) {
        return inputs.compute(SwiGlu, 1);
    }
    place.compose(x, norm, |rows| down.forward(&swiglu(&gate.forward(rows)?, &up.forward(rows)?)?))
}

/// BERT's and the vision transformers' feed-forward layer with norm and residual, `second(gelu(first(…)))` inside:
/// (…, D) gives (…, D).
pub fn gelu_block(
    x: &Tensor,
    (norm, place): (Norm, NormPlace),
    first: Projection,
    second: Projection,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(result) = crate::cuda::gelu_block(x, (norm, place), first, second)? {
        return Ok(result);
    }
    if let Some(inputs) = Inputs::fusible(Kind::FeedForward, x, (norm, place), [first, second]) {
        return inputs.compute(Gelu, 1);
    }
    place.compose(x, norm, |rows| second.forward(&gelu(&first.forward(rows)?)?))
}

/// Three projections of the norm of `x` (…, D): (…, out) of each. On a CPU, those with weights in blocks and without bias are one
/// product.
///
/// # Errors
/// Shapes that do not go together.
pub fn normed_projections(x: &Tensor, norm: Norm, projections: [Projection; 3]) -> Result<[Tensor; 3]> {
    #[cfg(feature = "cuda")]
    if let Some(products) = crate::cuda::row_products(x, Some(norm), &projections, None, false)?
        && let Ok(products) = products.try_into()
    {
        return Ok(products);
    }
    let rows = norm.forward(x)?;
    if let [Weight::Blocks(first), Weight::Blocks(second), Weight::Blocks(third)] =
        projections.map(|projection| projection.weight)
        && projections.iter().all(|projection| projection.bias.is_none())
        && let Some(products) = QuantisedMatrix::linear_three([first, second, third], &rows)?
    {
        return Ok(products);
    }
    let [first, second, third] = projections.map(|projection| projection.forward(&rows));
    Ok([first?, second?, third?])
}

/// `x` (…, D) plus a projection of `inner` (…, in).
///
/// # Errors
/// Shapes that do not go together.
pub fn added_projection(x: &Tensor, projection: Projection, inner: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(sum) = crate::cuda::added_projection(x, projection, inner)? {
        return Ok(sum);
    }
    x + projection.forward(inner)?
}

/// What the projections are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One makes queries, keys and values.
    Packed,
    /// Three make them.
    Attention,
    FeedForward,
}

/// Which of the inputs is what: `x`, the norm, and the projections in their order, each with its bias behind it.
#[derive(Debug, Clone, Copy)]
struct Form {
    kind: Kind,
    place: NormPlace,
    eps: f32,
    norm_bias: bool,
    /// Whether each projection's weight is among the inputs, and not in blocks.
    dense: [bool; 4],
    /// Whether each projection has a bias.
    biases: [bool; 4],
}

impl Form {
    /// Number of a projection's weight among the inputs.
    fn weight(&self, layer: usize) -> usize {
        let before = self.biases[..layer].iter().chain(&self.dense[..layer]);
        2 + usize::from(self.norm_bias) + before.filter(|found| **found).count()
    }

    /// Number of a projection's bias among the inputs.
    fn bias(&self, layer: usize) -> usize {
        self.weight(layer) + usize::from(self.dense[layer])
    }
}

/// What a sub-layer reads.
struct Inputs {
    /// In the order of their gradients.
    tensors: Vec<Tensor>,
    /// Weights of projections that are in blocks. They have no gradients, and so nothing else has.
    blocks: [Option<QuantisedMatrix>; 4],
    form: Form,
}

impl Inputs {
    /// None unless all are on a CPU, tensors in f32 and with something in a row; and none where a gradient would go through
    /// weights in blocks.
    fn fusible<'a>(
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
        (fusible && crate::rows::width(x.shape()) > 0).then_some(Self { tensors, blocks, form })
    }

    /// The sub-layer's result. `unit` rows belong together.
    fn compute<I: Inner>(self, inner: I, unit: usize) -> Result<Tensor> {
        let tensors: Vec<Tensor> = self.tensors.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
        let shape = self.tensors[0].shape().clone();
        let keeps_nothing =
            matches!(self.form.place, NormPlace::After(None)) && !self.tensors.iter().any(Tensor::track_op);
        let (result, block) = with_slices(&tensors, &self.blocks, self.form, |slices| {
            let width = slices.width();
            let split = Split::new(slices, unit);
            if keeps_nothing && split.whole {
                return Ok((slices.only_result(&inner, unit)?, None));
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

/// Rows of which there is what is in between at once, where no gradient will be asked for and all threads compute together: what they
/// make of a feed-forward layer's input is read again before it leaves the caches, and the same memory serves the next ones.
const ROWS_AT_ONCE: usize = 512;
/// Rows that are computed from the norm to the residual before the next ones, so that what is in between stays in
/// the cache of a core.
const PART_ROWS: usize = 192;
/// Weights up to which a sub-layer is split into parts. Above, its products are large enough to be split themselves, and
/// sums of weights' gradients for each group would take more than they save.
const SPLIT_WEIGHTS: usize = 1 << 19;
/// Groups of parts at most, each with sums of its own of the weights' gradients.
const GROUPS: usize = 8;

/// How rows are split. It depends on the shapes only, and with it the order of every sum.
#[derive(Debug, Clone, Copy)]
struct Split {
    part_rows: usize,
    group_parts: usize,
    /// One part, whose products take all threads.
    whole: bool,
}

/// Some rows.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: usize,
    rows: usize,
    /// Whether products take all threads, because there are no other parts.
    parallel: bool,
}

impl Split {
    fn new(slices: &Slices, unit: usize) -> Self {
        let rows = slices.x().len() / slices.width();
        let weights: usize = slices.values[1..].iter().map(|values| values.len()).sum();
        let in_blocks: usize =
            slices.blocks.iter().flatten().map(|blocks| blocks.shape().0 * blocks.shape().1).sum();
        let weights = weights + in_blocks;
        let part_rows = (PART_ROWS / unit).max(1) * unit;
        let parts = rows.div_ceil(part_rows);
        if weights > SPLIT_WEIGHTS || parts < GROUPS {
            return Self { part_rows: rows.max(1), group_parts: 1, whole: true };
        }
        Self { part_rows, group_parts: parts.div_ceil(GROUPS), whole: false }
    }

    fn part(&self, index: usize, rows: usize) -> Part {
        Part { first: index * self.part_rows, rows, parallel: self.whole }
    }
}

/// The values of the inputs.
struct Slices<'a> {
    values: Vec<&'a [f32]>,
    shapes: Vec<&'a Shape>,
    blocks: &'a [Option<QuantisedMatrix>; 4],
    form: Form,
}

/// Runs `read` on the values of contiguous f32 tensors.
fn with_slices<T>(
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

    fn x(&self) -> &'a [f32] {
        self.values[0]
    }

    fn width(&self) -> usize {
        crate::rows::width(self.shapes[0])
    }

    /// Rows of `x` after the norm.
    fn normed(&self, x: &[f32]) -> Vec<f32> {
        let mut result = vec![0f32; x.len()];
        self.write_normed(x, &mut result);
        result
    }

    /// Writes rows of `x` after the norm.
    fn write_normed(&self, x: &[f32], result: &mut [f32]) {
        let (weight, eps) = (self.values[1], self.form.eps);
        match self.form.norm_bias {
            true => crate::layer_norm::write_normalised(x, weight, self.values[2], eps, result),
            false => crate::rms_norm::write_normalised(x, weight, eps, result),
        }
    }

    /// The result of a sub-layer with the norm behind it, where nothing is kept for gradients: what is in between exists for some rows at a
    /// time.
    fn only_result<I: Inner>(&self, inner: &I, unit: usize) -> Result<Vec<f32>> {
        let (x, width) = (self.x(), self.width());
        let units = x.len() / width / unit;
        let times = (units * unit).div_ceil(ROWS_AT_ONCE).max(1);
        let rows = units.div_ceil(times).max(1) * unit;
        let (mut result, mut sum) = (vec![0f32; x.len()], Vec::new());
        let parts = result.chunks_mut(rows * width).zip(x.chunks(rows * width));
        for (index, (result, x)) in parts.enumerate() {
            let part = Part { first: index * rows, rows: x.len() / width, parallel: true };
            sum.clear();
            sum.extend_from_slice(x);
            inner.add_result(self, part, x, &mut sum)?;
            self.write_normed(&sum, result);
        }
        Ok(result)
    }

    /// A projection's weight.
    fn weight(&self, layer: usize) -> Matrix<'a> {
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
                let weights = Weights::Numbers(weight.values());
                Layer { weights, rows: weight.rows(), columns: weight.columns(), bias }
            }
        }
    }

    /// What a projection makes of rows.
    fn project(&self, layer: usize, part: Part, rows: &[f32]) -> Vec<f32> {
        self.layer(layer).forward(rows, part.rows, part.parallel)
    }

    /// What several projections make of the same rows.
    fn project_each<const N: usize>(&self, layers: [usize; N], part: Part, rows: &[f32]) -> [Vec<f32>; N] {
        Layer::forward_each(layers.map(|layer| self.layer(layer)), rows, part.rows, part.parallel)
    }

    /// Adds what a projection makes of rows to what is there.
    fn add_projected(&self, layer: usize, part: Part, rows: &[f32], result: &mut [f32]) {
        self.layer(layer).add_to(rows, result, part.parallel);
    }

    /// The gradient of a projection's input.
    fn through(&self, layer: usize, part: Part, gradient: &[f32]) -> Vec<f32> {
        let mut result = vec![0f32; part.rows * self.weight(layer).columns()];
        self.add_through(layer, part, gradient, &mut result, false);
        result
    }

    /// Writes the gradient of what the first projections read, or adds it to what is there.
    fn add_all_through(&self, part: Part, of_projected: &[Vec<f32>], result: &mut [f32], add: bool) {
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

/// What a sub-layer does with some rows, norm and residual aside.
trait Inner: Send + Sync + 'static {
    const NAME: &'static str;
    /// What the backward pass needs of the rows.
    type Saved: Send + Sync;

    /// Adds what it makes of `rows` to `result`.
    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Self::Saved>;

    /// The same, and nothing is kept.
    fn add_result(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<()> {
        self.forward(slices, part, rows, result).map(drop)
    }

    /// Adds gradients of its projections to `sums`, and gives those of what its first projections made of `rows`;
    /// none at all when nothing before its last projection wants one.
    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        saved: &Self::Saved,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>>;
}

/// A sub-layer that was computed.
struct Block<I: Inner> {
    form: Form,
    inner: I,
    split: Split,
    /// By parts.
    saved: Vec<Saved<I::Saved>>,
}

/// What the backward pass needs of some rows.
struct Saved<T> {
    inner: T,
    /// What a norm behind the sub-layer reads.
    sum: Vec<f32>,
}

impl<I: Inner> Differentiable for Block<I> {
    fn name(&self) -> &'static str {
        I::NAME
    }

    fn gradients(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        with_slices(inputs, &[const { None }; 4], self.form, |slices| {
            crate::rows::with_values([gradient], |[gradient]| self.differentiate(inputs, slices, gradient))
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
struct Sums {
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
    fn projection(&mut self, slices: &Slices, layer: usize, part: Part, rows: &[f32], gradient: &[f32]) {
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
            true => crate::layer_norm::differentiated(rows, weight, eps, gradient, of_rows),
            false => crate::rms_norm::differentiated(rows, weight, eps, gradient, of_rows),
        };
        for (sum, of_norm) in self.values[1..].iter_mut().zip(of_norm.chunks_exact(weight.len())) {
            if let Some(sum) = sum {
                add_rows(of_norm, sum);
            }
        }
    }

    /// Whether anything before a projection wants a gradient.
    fn wants_before(&self, layer: usize) -> bool {
        self.x || self.values[1..self.form.weight(layer)].iter().any(Option::is_some)
    }
}

struct SelfAttention {
    attention: Attention,
    /// One of packed rows, or three.
    sources: usize,
    batch: usize,
    /// Of a sequence.
    rows: usize,
}

impl SelfAttention {
    fn sequences(&self, part: Part) -> Sequences {
        let rows = self.rows.max(1);
        Sequences { first: part.first / rows, count: part.rows / rows, whole: self.batch, rows: self.rows }
    }
}

struct Attended {
    sources: Vec<Vec<f32>>,
    attended: Vec<f32>,
}

fn slices_of(parts: &[Vec<f32>]) -> Vec<&[f32]> {
    parts.iter().map(Vec::as_slice).collect()
}

impl Inner for SelfAttention {
    const NAME: &'static str = "attention-block";
    type Saved = Attended;

    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Attended> {
        let sources: Vec<_> = (0..self.sources).map(|layer| slices.project(layer, part, rows)).collect();
        let attended = self.attention.attend(self.sequences(part), &slices_of(&sources))?;
        slices.add_projected(self.sources, part, &attended, result);
        Ok(Attended { sources, attended })
    }

    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        saved: &Attended,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>> {
        let output = self.sources;
        sums.projection(slices, output, part, &saved.attended, gradient);
        if !sums.wants_before(output) {
            return Ok(Vec::new());
        }
        let of_attended = slices.through(output, part, gradient);
        let sources = slices_of(&saved.sources);
        let of_sources = self.attention.differentiate(self.sequences(part), &sources, &of_attended)?;
        for (layer, of_source) in of_sources.iter().enumerate() {
            sums.projection(slices, layer, part, rows, of_source);
        }
        Ok(of_sources)
    }
}

struct SwiGlu;

impl Inner for SwiGlu {
    const NAME: &'static str = "swiglu-block";
    /// Gate and up.
    type Saved = [Vec<f32>; 2];

    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Self::Saved> {
        let [gate, up] = slices.project_each([0, 1], part, rows);
        slices.add_projected(2, part, &crate::swiglu::activated(&gate, &up), result);
        Ok([gate, up])
    }

    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        [gate, up]: &Self::Saved,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>> {
        let of_inner = slices.through(2, part, gradient);
        let [inner, of_gate, of_up] = crate::swiglu::activated_and_differentiated(gate, up, &of_inner);
        sums.projection(slices, 2, part, &inner, gradient);
        if !sums.wants_before(2) {
            return Ok(Vec::new());
        }
        sums.projection(slices, 0, part, rows, &of_gate);
        sums.projection(slices, 1, part, rows, &of_up);
        Ok(vec![of_gate, of_up])
    }
}

struct Gelu;

impl Inner for Gelu {
    const NAME: &'static str = "gelu-block";
    /// What goes into the GELU.
    type Saved = Vec<f32>;

    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Vec<f32>> {
        let hidden = slices.project(0, part, rows);
        slices.add_projected(1, part, &crate::gelu::activated(&hidden), result);
        Ok(hidden)
    }

    fn add_result(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<()> {
        let mut hidden = slices.project(0, part, rows);
        crate::gelu::activate_all(&mut hidden);
        slices.add_projected(1, part, &hidden, result);
        Ok(())
    }

    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        hidden: &Vec<f32>,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>> {
        let of_inner = slices.through(1, part, gradient);
        let [inner, of_hidden] = crate::gelu::activated_and_differentiated(hidden, &of_inner);
        sums.projection(slices, 1, part, &inner, gradient);
        if !sums.wants_before(1) {
            return Ok(Vec::new());
        }
        sums.projection(slices, 0, part, rows, &of_hidden);
        Ok(vec![of_hidden])
    }
}
