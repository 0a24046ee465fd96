//! Whole sub-layers: norm, what comes in between, and the residual, with every bias added where numbers pass anyway.

use candle_core::{Result, Tensor};

use super::arguments::Each;
use super::device::takes;
use super::operations::{
    attention, function, norm, norm_of_sum, split_heads, split_packed, swiglu, takes_heads,
};
use super::row_products::row_products;
use crate::{Heads, Norm, NormPlace, Projection, Weight};

/// Whether the kernels take a sub-layer of these: everything on one device in one dtype, no gradient, no dropout.
fn takes_block(x: &Tensor, (norm, place): (Norm, NormPlace), projections: &[Projection]) -> bool {
    let mut inputs = vec![x, norm.weight];
    inputs.extend(norm.bias);
    for projection in projections {
        inputs.extend(projection.bias);
        match projection.weight {
            Weight::Dense(weight) => inputs.push(weight),
            Weight::Blocks(_) => {}
        }
    }
    takes(&inputs) && matches!(place, NormPlace::Before | NormPlace::After(None))
}

/// `inner` of the rows, then `output`, residual and norm.
fn block(
    x: &Tensor,
    (of_block, place): (Norm, NormPlace),
    output: Projection,
    inner: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    match place {
        NormPlace::Before => added(x, output, &inner(&norm(x, of_block)?)?),
        NormPlace::After(_) => {
            let y = output.weight.linear(&inner(x)?, None)?;
            norm_of_sum(x, &y, output.bias, of_block)
        }
    }
}

/// x plus a projection of `inner`.
fn added(x: &Tensor, projection: Projection, inner: &Tensor) -> Result<Tensor> {
    if let Some(mut sums) = row_products(inner, None, &[projection], Some(x), false)? {
        return sums.swap_remove(0).reshape(x.shape());
    }
    let y = projection.weight.linear(inner, None)?;
    // The bias goes to the rows of the first input.
    function(Each::Sum, &y, projection.bias, Some(x))
}

/// The operation [`crate::added_projection`], where the kernels take it.
pub(crate) fn added_projection(x: &Tensor, projection: Projection, inner: &Tensor) -> Result<Option<Tensor>> {
    let mut inputs = vec![x, inner];
    inputs.extend(projection.bias);
    if let Weight::Dense(weight) = projection.weight {
        inputs.push(weight);
    }
    takes(&inputs).then(|| added(x, projection, inner)).transpose()
}

/// The operation [`crate::attention_block`], where the kernels take it.
pub(crate) fn attention_block(
    x: &Tensor,
    norm: (Norm, NormPlace),
    sources: &[Projection],
    output: Projection,
    heads: &Heads,
) -> Result<Option<Tensor>> {
    let all: Vec<_> = sources.iter().copied().chain([output]).collect();
    let (inner_width, query_bias, value_bias) = match sources {
        [packed] => (packed.weight.dims2()?.0 / 3, packed.bias, packed.bias),
        [q, _, v] => (q.weight.dims2()?.0, q.bias, v.bias),
        _ => return Ok(None),
    };
    let head_width = inner_width.checked_div(heads.heads).unwrap_or(0);
    if !takes_block(x, norm, &all) || !takes_heads(&[x], head_width, heads) {
        return Ok(None);
    }
    // Probabilities add up to 1, so a bias of the values is one of the result; one of the keys adds the same to all scores of a row,
    // which softmax does not see. Not so when both are rotated, and not with heads of keys that several heads of queries share.
    let aside = heads.angles.is_none()
        && heads.key_heads == heads.heads
        && query_bias.is_some() == value_bias.is_some();
    let attended = |rows: &Tensor| {
        let parts = match sources {
            [packed] => split_packed(&source(packed, rows, aside)?, heads.heads)?,
            [q, k, v] => [
                split_heads(&source(q, rows, aside)?, heads.heads)?,
                split_heads(&source(k, rows, aside)?, heads.key_heads)?,
                split_heads(&source(v, rows, aside)?, heads.key_heads)?,
            ],
            other => candle_core::bail!("attention of {} sources, not of one or three", other.len()),
        };
        let first_value = if sources.len() == 1 { 2 * inner_width } else { 0 };
        let biases = match (query_bias, value_bias) {
            (Some(q), Some(v)) if aside => {
                Some([q.narrow(0, 0, inner_width)?, v.narrow(0, first_value, inner_width)?])
            }
            _ => None,
        };
        let biases = biases.as_ref().map(|[q, v]| [q, v]);
        attention(&parts[0], &parts[1], &parts[2], heads, biases)
    };
    block(x, norm, output, attended).map(Some)
}

/// A projection of rows; without its bias if that is added elsewhere.
fn source(projection: &Projection, rows: &Tensor, aside: bool) -> Result<Tensor> {
    projection.weight.linear(rows, projection.bias.filter(|_| !aside))
}

/// The operation [`crate::swiglu_block`], where the kernels take it.
pub(crate) fn swiglu_block(
    x: &Tensor,
    norm: (Norm, NormPlace),
    [gate, up, down]: [Projection; 3],
) -> Result<Option<Tensor>> {
    if !takes_block(x, norm, &[gate, up, down]) {
        return Ok(None);
    }
    if let NormPlace::Before = norm.1
        && let Some(inner) = row_products(x, Some(norm.0), &[gate, up], None, true)?
    {
        return added(x, down, &inner[0]).map(Some);
    }
    let inner = |rows: &Tensor| swiglu(&source(&gate, rows, false)?, &source(&up, rows, false)?);
    block(x, norm, down, inner).map(Some)
}

/// The operation [`crate::gelu_block`], where the kernels take it.
pub(crate) fn gelu_block(
    x: &Tensor,
    norm: (Norm, NormPlace),
    first: Projection,
    second: Projection,
) -> Result<Option<Tensor>> {
    if !takes_block(x, norm, &[first, second]) {
        return Ok(None);
    }
    let inner = |rows: &Tensor| function(Each::Gelu, &source(&first, rows, true)?, first.bias, None);
    block(x, norm, second, inner).map(Some)
}
