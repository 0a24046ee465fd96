//! Whole sub-layers of a transformer as one operation each: norm, what comes in between, and the residual.
//!
//! What an autograd engine costs beside the products is traffic: a gradient for every tensor in between, begun with
//! zeros and added to. A sub-layer has one input and one result; gradients in between stay within it and are added
//! up by the products themselves. Letters: B batch, S rows, D width.

mod backward;
mod inner;
mod inputs;
mod many_inputs;
mod slices;
mod split;

use candle_core::{Result, Tensor, bail};

use self::inner::{Gelu, SelfAttention, SwiGlu};
use self::inputs::{Inputs, Kind};
use crate::attention::fused;
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
