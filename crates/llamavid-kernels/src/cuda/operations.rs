//! The operations by themselves. Letters as in [`crate::attention()`].

use candle_core::{D, DType, Result, Tensor, bail};

use super::arguments::{
    AttentionCall, AttentionPlan, Each, EachArguments, FEW_ROWS, HeadRows, LargestArguments, NOT_FINITE,
    NormArguments, RotateArguments, StoreArguments, Stored, each, largest as largest_launch,
    norm as norm_launch, rotate, store,
};
use super::device::{device_of, run, takes, unwritten, with_pointers};
use crate::attention::{hiding, not_padding};
use crate::{BlockFormat, CachedRows, Heads, Mask, Norm, WIDEST_FUSED_HEAD};

/// Layer norm with a bias, that of root mean squares without one.
pub(crate) fn norm(x: &Tensor, norm: Norm) -> Result<Tensor> {
    norm_of(&x.contiguous()?, None, norm)
}

/// The norm of x + added + bias.
pub(super) fn norm_of_sum(x: &Tensor, added: &Tensor, bias: Option<&Tensor>, norm: Norm) -> Result<Tensor> {
    norm_of(&x.contiguous()?, Some((&added.contiguous()?, bias)), norm)
}

fn norm_of(x: &Tensor, added: Option<(&Tensor, Option<&Tensor>)>, norm: Norm) -> Result<Tensor> {
    let (device, dtype, width) = (device_of(x)?, x.dtype(), x.dim(D::Minus1)?);
    let (weight, bias) = (norm.weight.contiguous()?, norm.bias.map(Tensor::contiguous).transpose()?);
    if weight.elem_count() != width || bias.as_ref().is_some_and(|bias| bias.elem_count() != width) {
        bail!("a norm of {} weights does not go with rows of {width}", weight.elem_count());
    }
    let result = unwritten(&device, dtype, x.shape())?;
    let sum = added.map(|_| unwritten(&device, dtype, x.shape())).transpose()?;
    let (added, added_bias) = (added.map(|(added, _)| added), added.and_then(|(_, bias)| bias));
    let tensors = [Some(x), added, added_bias, Some(&weight), bias.as_ref(), Some(&result), sum.as_ref()];
    with_pointers(&device, tensors, |[x_at, added, added_bias, weight, bias_at, result, sum]| {
        let (rows, width, eps) = ((x.elem_count() / width) as i64, width as i64, norm.eps as f32);
        let mut arguments = NormArguments {
            x: x_at,
            added,
            added_bias,
            weight,
            bias: bias_at,
            result,
            sum,
            rows,
            width,
            vectors: 0,
            eps,
        };
        let launch = norm_launch(dtype, bias.is_some(), &mut arguments)?;
        run(&device, &launch, &arguments)
    })?;
    Ok(result)
}

/// A function of each number of x, with a bias for its rows and a second input of its shape.
pub(super) fn function(
    kind: Each,
    x: &Tensor,
    bias: Option<&Tensor>,
    other: Option<&Tensor>,
) -> Result<Tensor> {
    let (device, dtype, width) = (device_of(x)?, x.dtype(), x.dim(D::Minus1)?);
    let x = x.contiguous()?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let other = other.map(Tensor::contiguous).transpose()?;
    if other.as_ref().is_some_and(|other| other.shape() != x.shape())
        || bias.as_ref().is_some_and(|bias| bias.elem_count() != width)
    {
        bail!("{kind:?} of {:?} with {other:?} and a bias {bias:?}", x.shape());
    }
    let result = unwritten(&device, dtype, x.shape())?;
    let tensors = [Some(&x), other.as_ref(), bias.as_ref(), Some(&result)];
    with_pointers(&device, tensors, |[x_at, other, bias, result]| {
        let (count, width) = (x.elem_count() as i64, width as i64);
        let mut arguments =
            EachArguments { x: x_at, other, bias, result, count, width, ..Default::default() };
        let launch = each(dtype, kind, &mut arguments)?;
        run(&device, &launch, &arguments)
    })?;
    Ok(result)
}

/// The exact GELU of x.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    function(Each::Gelu, x, None, None)
}

/// CLIP's GELU of x.
pub(crate) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    function(Each::QuickGelu, x, None, None)
}

/// `silu(gate) · up`.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    function(Each::SwiGlu, gate, None, Some(up))
}

/// The place of the largest number of each row of x (N, width), f32; none where a number is not finite. Only these places are copied
/// from the device.
pub(crate) fn largest(x: &Tensor) -> Result<Vec<Option<u32>>> {
    let (rows, width) = x.dims2()?;
    let (device, x) = (device_of(x)?, x.contiguous()?);
    let result = unwritten(&device, DType::U32, rows)?;
    with_pointers(&device, [Some(&x), Some(&result)], |[x, result]| {
        run(&device, &largest_launch(rows), &LargestArguments { x, result, width: width as i64 })
    })?;
    Ok(result.to_vec1::<u32>()?.into_iter().map(|place| (place != NOT_FINITE).then_some(place)).collect())
}

/// Strides of batch, head and row, if the numbers of a row lie in a row.
fn strides_of(x: &Tensor) -> Option<[i64; 3]> {
    match *x.stride() {
        [batch, head, row, 1] => Some([batch, head, row].map(|stride| stride as i64)),
        _ => None,
    }
}

/// `x` (B, heads, rows, d), copied if the numbers of a row do not lie in a row.
fn in_rows(x: &Tensor) -> Result<(Tensor, [i64; 3])> {
    if let Some(strides) = strides_of(x) {
        return Ok((x.clone(), strides));
    }
    let x = x.contiguous()?;
    match strides_of(&x) {
        Some(strides) => Ok((x, strides)),
        None => bail!("a tensor of layout {:?} has no rows in one piece", x.layout()),
    }
}

/// Where rows are held, and how.
#[derive(Clone, Copy)]
struct HeldRows<'a> {
    rows: &'a Tensor,
    strides: [i64; 3],
    stored: Stored,
}

/// What an attention is besides its queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    pub(super) scale: f64,
    pub(super) causal: bool,
    /// Added to the scaled scores, broadcasts to (B, H, Q, K).
    pub(super) bias: Option<&'a Tensor>,
    /// Added to queries and to values, (H · d) each.
    pub(super) biases: Option<[&'a Tensor; 2]>,
}

/// Attention of `q` (B, H, Q, d) over (B, key heads, K, d): (B, Q, H · d).
fn attend(
    q: &Tensor,
    [keys, values]: [HeldRows; 2],
    (key_heads, key_count): (usize, usize),
    options: Options,
) -> Result<Tensor> {
    let (batch, heads, query_count, width) = q.dims4()?;
    let (device, dtype) = (device_of(q)?, q.dtype());
    let (q, query_strides) = in_rows(q)?;
    let bias = match options.bias {
        Some(bias) => {
            let bias = bias.to_dtype(DType::F32)?.broadcast_as((batch, heads, query_count, key_count))?;
            Some(bias)
        }
        None => None,
    };
    let result = unwritten(&device, dtype, (batch, query_count, heads * width))?;
    let [query_bias, value_bias] = options.biases.map_or([None; 2], |biases| biases.map(Some));
    let tensors =
        [Some(&q), Some(keys.rows), Some(values.rows), bias.as_ref(), query_bias, value_bias, Some(&result)];
    with_pointers(&device, tensors, |[q, k, v, bias_at, query_bias, value_bias, result]| {
        let bias_strides = bias.as_ref().map_or([0; 4], |bias| {
            let mut strides = [0; 4];
            for (stride, found) in strides.iter_mut().zip(bias.stride()) {
                *stride = *found as i64;
            }
            strides
        });
        let call = AttentionCall {
            dtype,
            stored: keys.stored,
            batch,
            heads,
            key_heads,
            query_count,
            key_count,
            width,
            scale: options.scale as f32,
            causal: options.causal,
            queries: HeadRows { pointer: q, strides: query_strides },
            keys: HeadRows { pointer: k, strides: keys.strides },
            values: HeadRows { pointer: v, strides: values.strides },
            bias: bias.as_ref().map(|_| (bias_at, bias_strides)),
            biases: options.biases.map(|_| [query_bias, value_bias]),
            result,
        };
        match call.plan()? {
            AttentionPlan::Tiles(launch, arguments) => run(&device, &launch, &arguments),
            AttentionPlan::Rows(launch, mut arguments, parts) => {
                if parts == 0 {
                    return run(&device, &launch, &arguments);
                }
                let room = unwritten(&device, DType::F32, parts)?;
                with_pointers(&device, [Some(&room)], |[parts]| {
                    arguments.parts = parts;
                    run(&device, &launch, &arguments)
                })
            }
        }
    })?;
    Ok(result)
}

/// Attention of `q` (B, H, Q, d) over `k` and `v` (B, key heads, K, d), strided as they may be: (B, Q, H · d).
pub(super) fn attend_heads(q: &Tensor, k: &Tensor, v: &Tensor, options: Options) -> Result<Tensor> {
    let (batch, key_heads, key_count, width) = k.dims4()?;
    if v.dims() != k.dims() || q.dim(0)? != batch || q.dim(3)? != width {
        bail!("attention: queries {:?}, keys {:?} and values {:?} do not go together", q, k, v);
    }
    let stored = Stored::Numbers(q.dtype());
    let ((k, key_strides), (v, value_strides)) = (in_rows(k)?, in_rows(v)?);
    let keys = HeldRows { rows: &k, strides: key_strides, stored };
    let values = HeldRows { rows: &v, strides: value_strides, stored };
    attend(q, [keys, values], (key_heads, key_count), options)
}

/// Whether the kernels take such heads, and options.
pub(crate) fn takes_heads(inputs: &[&Tensor], head_width: usize, options: &Heads) -> bool {
    let constants = match options.mask {
        Mask::All => true,
        Mask::Bias(bias) => !bias.track_op(),
        Mask::Causal { padding } => padding.is_none_or(|padding| !padding.track_op()),
    };
    let rotated = options.angles.is_none_or(|(cos, sin)| takes(&[inputs[0], cos, sin]));
    takes(inputs)
        && constants
        && rotated
        && options.dropout.is_none()
        && (1..=WIDEST_FUSED_HEAD).contains(&head_width)
        && options.key_heads > 0
        && options.heads.is_multiple_of(options.key_heads)
}

/// The operation [`crate::attention()`] of heads (B, H, rows, d), or of rows that are split already: (B, Q, H · d).
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &Heads,
    biases: Option<[&Tensor; 2]>,
) -> Result<Tensor> {
    let rotated = |x: &Tensor| match options.angles {
        Some((cos, sin)) => rotate_heads(x, cos, sin),
        None => Ok(x.clone()),
    };
    let (q, k) = (rotated(q)?, rotated(k)?);
    let padded;
    let (causal, bias) = match options.mask {
        Mask::All => (false, None),
        Mask::Bias(bias) => (false, Some(bias)),
        Mask::Causal { padding: None } => (true, None),
        Mask::Causal { padding: Some(padding) } => {
            padded = hiding(&not_padding(padding)?)?;
            (true, Some(&padded))
        }
    };
    attend_heads(&q, &k, v, Options { scale: options.scale, causal, bias, biases })
}

/// Rows (B, R, heads · d) as (B, heads, R, d), in place.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, rows, width) = x.dims3()?;
    if !width.is_multiple_of(heads) {
        bail!("rows of {width} have no {heads} heads");
    }
    x.contiguous()?.reshape((batch, rows, heads, width / heads))?.transpose(1, 2)
}

/// Rows (B, R, 3 · heads · d) of queries, keys and values as three times (B, heads, R, d), in place.
pub(super) fn split_packed(packed: &Tensor, heads: usize) -> Result<[Tensor; 3]> {
    let (batch, rows, width) = packed.dims3()?;
    let parts = packed.contiguous()?.reshape((batch, rows, 3, heads, width / (3 * heads)))?;
    let part = |index: usize| parts.narrow(2, index, 1)?.squeeze(2)?.transpose(1, 2);
    Ok([part(0)?, part(1)?, part(2)?])
}

/// The operation [`crate::rotary_embedding`] of `x` (B, heads, S, d), strided as it may be.
pub(crate) fn rotate_heads(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate_all(x, None, (cos, sin))
}

/// Keys and values (B, key heads, S, d), and where they are to be in their caches.
struct Cached<'a> {
    keys: &'a Tensor,
    values: &'a Tensor,
    places: [Tensor; 2],
}

/// Queries (B, heads, S, d) rotated; keys too, with their values into their places.
fn rotate_all(queries: &Tensor, cached: Option<Cached>, (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor> {
    let (batch, heads, rows, width) = queries.dims4()?;
    let (device, dtype) = (device_of(queries)?, queries.dtype());
    let angles = [rows, width / 2];
    if cos.dims() != angles || sin.dims() != angles || !width.is_multiple_of(2) {
        bail!("rotary-embedding of {:?} needs angles {angles:?}, not {:?}", queries.shape(), cos.shape());
    }
    let (queries, query_strides) = in_rows(queries)?;
    let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
    let result = unwritten(&device, dtype, (batch, heads, rows, width))?;
    let mut arguments = RotateArguments { query_strides, ..Default::default() };
    let mut key_heads = 0;
    let cached = match cached {
        Some(Cached { keys, values, places: [key_places, value_places] }) => {
            let ((keys, key_strides), (values, value_strides)) = (in_rows(keys)?, in_rows(values)?);
            let Some(cache_strides) = strides_of(&key_places) else {
                bail!("a cache without rows in one piece")
            };
            key_heads = keys.dim(1)?;
            arguments = RotateArguments { key_strides, value_strides, cache_strides, ..arguments };
            [Some(keys), Some(values), Some(key_places), Some(value_places)]
        }
        None => [const { None }; 4],
    };
    arguments.sizes = [batch, heads, key_heads, rows, width].map(|size| size as i32);
    let [keys, values, key_places, value_places] = cached.each_ref().map(Option::as_ref);
    let tensors =
        [Some(&queries), keys, values, Some(&result), key_places, value_places, Some(&cos), Some(&sin)];
    with_pointers(
        &device,
        tensors,
        |[queries, keys, values, rotated, key_cache, value_cache, cosines, sines]| {
            let mut arguments = RotateArguments {
                queries,
                keys,
                values,
                rotated,
                key_cache,
                value_cache,
                cosines,
                sines,
                ..arguments
            };
            let launch = rotate(dtype, &mut arguments)?;
            run(&device, &launch, &arguments)
        },
    )?;
    Ok(result)
}

/// Rows of heads in a cache, of which `shape` is (B, key heads, capacity, d): tensors of numbers, or of bytes in blocks.
fn held<'a>(rows: &CachedRows<'a>, dtype: DType) -> Result<HeldRows<'a>> {
    match rows {
        CachedRows::Numbers(rows) if rows.dtype() == dtype => match strides_of(rows) {
            Some(strides) => Ok(HeldRows { rows, strides, stored: Stored::Numbers(dtype) }),
            None => bail!("a cache of layout {:?} has no rows in one piece", rows.layout()),
        },
        CachedRows::Device(rows) => {
            let Some(strides) = strides_of(rows.bytes()) else { bail!("a cache without rows in one piece") };
            let (stored, strides) = match stored_as(rows.format())? {
                Stored::Numbers(half) => (Stored::Numbers(half), strides.map(|bytes| bytes / 2)),
                blocks => (blocks, strides),
            };
            Ok(HeldRows { rows: rows.bytes(), strides, stored })
        }
        CachedRows::Numbers(rows) => bail!("a cache of {:?} beside queries of {dtype:?}", rows.dtype()),
        CachedRows::Blocks { .. } => bail!("a cache in the memory of the processor, queries on a device"),
    }
}

fn stored_as(format: BlockFormat) -> Result<Stored> {
    match format {
        BlockFormat::F16 => Ok(Stored::Numbers(DType::F16)),
        BlockFormat::Q8_0 => Ok(Stored::EightBit),
        BlockFormat::Q4_0 => Ok(Stored::FourBit),
        other => bail!("keys and values are not held as {}", other.name()),
    }
}

/// The operation [`crate::cached_attention`], whose shapes have been checked.
pub(crate) fn cached_attention(
    q: &Tensor,
    keys: CachedRows,
    values: CachedRows,
    length: usize,
    padding: Option<&Tensor>,
) -> Result<Tensor> {
    let (_batch, heads, queries, width) = q.dims4()?;
    let [_, key_heads, _, _] = keys.shape()?;
    let bias = padding.map(|padding| hiding(&not_padding(padding)?)).transpose()?;
    let scale = (width as f64).sqrt().recip();
    let options = Options { scale, causal: true, bias: bias.as_ref(), biases: None };
    if let (CachedRows::Device(keys), CachedRows::Device(values)) = (keys, values)
        && q.dtype() != DType::F32
        && queries * heads / key_heads > FEW_ROWS
    {
        // Many rows are worth unpacking keys and values for: then tensor cores take them.
        let (keys, values) = (keys.read(length, q.dtype())?, values.read(length, q.dtype())?);
        return attend_heads(q, &keys, &values, options);
    }
    attend(q, [held(&keys, q.dtype())?, held(&values, q.dtype())?], (key_heads, length), options)
}

/// The operation [`crate::rotate_into`].
pub(crate) fn rotate_into(
    [queries, keys, values]: [&Tensor; 3],
    angles: (&Tensor, &Tensor),
    caches: [&Tensor; 2],
    at: usize,
) -> Result<Tensor> {
    let (batch, _heads, rows, width) = queries.dims4()?;
    let (_, key_heads, capacity, _) = caches[0].dims4()?;
    let fits = keys.dims() == [batch, key_heads, rows, width]
        && caches[0].dims() == [batch, key_heads, capacity, width];
    if !fits
        || values.dims() != keys.dims()
        || caches[1].dims() != caches[0].dims()
        || !caches[1].is_contiguous()
    {
        bail!(
            "{:?} and {:?} cannot be written to a cache {:?}",
            keys.shape(),
            values.shape(),
            caches[0].shape()
        );
    }
    let places = [caches[0].narrow(2, at, rows)?, caches[1].narrow(2, at, rows)?];
    rotate_all(queries, Some(Cached { keys, values, places }), angles)
}

/// Writes numbers (B, heads, S, d) into bytes (B, heads, capacity, bytes of a row) from position `at` on, or reads them `back`.
pub(crate) fn store_rows(
    numbers: &Tensor,
    bytes: &Tensor,
    format: BlockFormat,
    at: usize,
    back: bool,
) -> Result<()> {
    let (numbers, number_strides) = in_rows(numbers)?;
    let (batch, heads, rows, width) = numbers.dims4()?;
    let (device, dtype) = (device_of(&numbers)?, numbers.dtype());
    let places = bytes.narrow(2, at, rows)?;
    let fits = bytes.dims()[..2] == [batch, heads] && format.row_bytes(width) == Some(bytes.dim(3)?);
    let (Some(held_strides), true) = (strides_of(&places), fits) else {
        bail!("{:?} does not go into {:?} as {}", numbers.shape(), bytes.shape(), format.name());
    };
    with_pointers(&device, [Some(&numbers), Some(&places)], |[numbers, held]| {
        let sizes = [batch, heads, rows, width].map(|size| size as i32);
        let arguments = StoreArguments { numbers, held, number_strides, held_strides, sizes };
        run(&device, &store(dtype, stored_as(format)?, back, &arguments)?, &arguments)
    })
}

/// Reads the first `total` positions, see [`store_rows`]: (B, heads, total, `width`).
pub(crate) fn read_rows(
    bytes: &Tensor,
    format: BlockFormat,
    (total, width): (usize, usize),
    dtype: DType,
) -> Result<Tensor> {
    let (batch, heads, _, _) = bytes.dims4()?;
    let result = unwritten(&device_of(bytes)?, dtype, (batch, heads, total, width))?;
    store_rows(&result, bytes, format, 0, true)?;
    Ok(result)
}

/// The operation [`crate::multi_head_attention`], where the kernels take it.
pub(crate) fn multi_head_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &Heads,
) -> Result<Option<Tensor>> {
    let width = q.dim(D::Minus1)?.checked_div(options.heads).unwrap_or(0);
    if !takes_heads(&[q, k, v], width, options) {
        return Ok(None);
    }
    let (q, k, v) = (
        split_heads(q, options.heads)?,
        split_heads(k, options.key_heads)?,
        split_heads(v, options.key_heads)?,
    );
    attention(&q, &k, &v, options, None).map(Some)
}

/// The operation [`crate::packed_attention`], where the kernels take it.
pub(crate) fn packed_attention(packed: &Tensor, options: &Heads) -> Result<Option<Tensor>> {
    let width = (packed.dim(D::Minus1)? / 3).checked_div(options.heads).unwrap_or(0);
    if !takes_heads(&[packed], width, options) {
        return Ok(None);
    }
    let [q, k, v] = split_packed(packed, options.heads)?;
    attention(&q, &k, &v, options, None).map(Some)
}
