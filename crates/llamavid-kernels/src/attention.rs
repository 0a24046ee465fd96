//! Attention: scores, softmax and weighted sum in one operation, forwards and backwards.
//!
//! The scores exist for a block of query rows at a time, so memory grows with rows + keys and not with their
//! product; the backward pass computes them again. Letters: B batch, H query heads, G query heads of a key head,
//! Q query rows, K key rows, d head width.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::dropout::{Dropout, keep_row};
use crate::matrix::{Matrix, multiply};
use crate::rotary::rotate_row;
use crate::rows::{at_least_single, fusible, tensor, with_values};
use crate::softmax::{add_bias, softmax, softmax_row};
use crate::vector::{sum_of, widest};

/// Query rows whose scores exist at once.
const QUERY_BLOCK: usize = 64;

/// Who sees whom.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Every row sees every key.
    All,
    /// What is added to the scaled scores; broadcasts to (B, H, Q, K). f32 for the fused form.
    Bias(&'a Tensor),
    /// A row sees the keys up to its own place; the last row is at the last key's place. Keys are hidden where
    /// `padding` (B, K) is 0. A row that sees nothing gets the mean of what is before it.
    Causal {
        /// (B, K) of any number type.
        padding: Option<&'a Tensor>,
    },
}

/// How rows are split into heads, and what happens to the scores.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Query heads H.
    pub heads: usize,
    /// Heads of keys and values; they divide the query heads.
    pub key_heads: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Who sees whom.
    pub mask: Mask<'a>,
    /// Cosines and sines (rows, d / 2) by which queries and keys are rotated; constants.
    pub angles: Option<(&'a Tensor, &'a Tensor)>,
    /// Dropout of the normalised scores.
    pub dropout: Option<Dropout>,
}

impl Heads<'_> {
    /// As many heads of keys as of queries, scaled by 1 / √d, everybody sees everything.
    pub fn new(heads: usize, head_width: usize) -> Self {
        Self {
            heads,
            key_heads: heads,
            scale: (head_width as f64).powf(-0.5),
            mask: Mask::All,
            angles: None,
            dropout: None,
        }
    }
}

/// Attention of `q` (B, H, Q, d) over `k` and `v` (B, H, K, d).
///
/// `bias` is added to the scaled scores and broadcasts to (B, H, Q, K). Half-precision scores are
/// normalised in f32, as the reference does. Gives (B, H, Q, d).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_batch, heads, _rows, width) = q.dims4()?;
    let mask = bias.map_or(Mask::All, Mask::Bias);
    let options = Heads { scale, mask, ..Heads::new(heads, width) };
    #[cfg(feature = "cuda")]
    if crate::cuda::takes_heads(&[q, k, v], width, &options) {
        let (batch, _heads, rows, width) = q.dims4()?;
        let attended = crate::cuda::attention(q, k, v, &options, None)?;
        return attended.reshape((batch, rows, heads, width))?.transpose(1, 2)?.contiguous();
    }
    match fused(&[q, k, v], &options)? {
        Some(op) => last_contiguous(q)?.apply_op3(
            &last_contiguous(k)?,
            &last_contiguous(v)?,
            Attention { split: true, ..op },
        ),
        None => decomposed(q, k, v, &options),
    }
}

/// Attention of rows `q` (B, Q, H · d) over `k` and `v` (B, K, key heads · d): (B, Q, H · d).
///
/// The heads stay where they are: nothing is transposed or copied.
pub fn multi_head_attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Heads) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(attended) = crate::cuda::multi_head_attention(q, k, v, options)? {
        return Ok(attended);
    }
    if let Some(op) = fused(&[q, k, v], options)? {
        return last_contiguous(q)?.apply_op3(&last_contiguous(k)?, &last_contiguous(v)?, op);
    }
    let (batch, count, width) = q.dims3()?;
    let split = |x: &Tensor, heads: usize| {
        let (batch, rows, width) = x.dims3()?;
        x.reshape((batch, rows, heads, width / heads.max(1)))?.transpose(1, 2)
    };
    let (mut q, mut k, v) =
        (split(q, options.heads)?, split(k, options.key_heads)?, split(v, options.key_heads)?);
    if let Some((cos, sin)) = options.angles {
        q = crate::rotary_embedding(&q, cos, sin)?;
        k = crate::rotary_embedding(&k, cos, sin)?;
    }
    let (k, v) = (repeat_heads(&k, options.heads)?, repeat_heads(&v, options.heads)?);
    decomposed(&q, &k, &v, options)?.transpose(1, 2)?.reshape((batch, count, width))
}

/// Self-attention of rows that hold query, key and value of all heads one after the other, (B, R, 3 · H · d):
/// (B, R, H · d).
pub fn packed_attention(packed: &Tensor, options: &Heads) -> Result<Tensor> {
    let (_batch, _rows, width) = packed.dims3()?;
    if !width.is_multiple_of(3) || options.key_heads != options.heads {
        bail!("rows of {width} do not hold queries, keys and values of {} heads", options.heads);
    }
    #[cfg(feature = "cuda")]
    if let Some(attended) = crate::cuda::packed_attention(packed, options)? {
        return Ok(attended);
    }
    if let Some(op) = fused(&[packed], options)? {
        return packed.contiguous()?.apply_op1(Packed(op));
    }
    let part = |index: usize| packed.narrow(2, index * width / 3, width / 3)?.contiguous();
    multi_head_attention(&part(0)?, &part(1)?, &part(2)?, options)
}

/// Each key head as often as it has query heads: (B, key heads, K, d) gives (B, H, K, d).
fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, key_heads, rows, width) = x.dims4()?;
    if key_heads == heads {
        return Ok(x.clone());
    }
    let repeated = x.unsqueeze(2)?.broadcast_as((batch, key_heads, heads / key_heads, rows, width))?;
    repeated.contiguous()?.reshape((batch, heads, rows, width))
}

/// The same by candle's own operations, on any device and in any dtype.
fn decomposed(q: &Tensor, k: &Tensor, v: &Tensor, options: &Heads) -> Result<Tensor> {
    let scores = (q.contiguous()? * options.scale)?.matmul(&k.transpose(2, 3)?.contiguous()?)?; // (B, H, Q, K)
    let scores = scores.to_dtype(at_least_single(&scores))?;
    let scores = match options.mask {
        Mask::All => scores,
        Mask::Bias(bias) => scores.broadcast_add(bias)?,
        Mask::Causal { padding } => {
            scores.broadcast_add(&causal_bias(&scores, padding)?.to_dtype(scores.dtype())?)?
        }
    };
    let mut weights = softmax(&scores)?;
    if let Some(dropout) = options.dropout {
        weights = dropout.apply(&weights)?;
    }
    weights.to_dtype(v.dtype())?.matmul(&v.contiguous()?)
}

/// 0 where a row may look, the smallest f32 elsewhere: (1 or B, 1, Q, K).
fn causal_bias(scores: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
    let (_batch, _heads, rows, keys) = scores.dims4()?;
    let device = scores.device();
    let places = Tensor::arange(0, keys as u32, device)?.reshape((1, keys))?;
    let first = keys.saturating_sub(rows) as u32;
    let own = Tensor::arange(first, first + rows as u32, device)?.reshape((rows, 1))?;
    let mut seen = places.broadcast_le(&own)?.reshape((1, 1, rows, keys))?;
    if let Some(padding) = padding {
        seen = seen.broadcast_mul(&not_padding(padding)?)?;
    }
    hiding(&seen)
}

/// Whether keys may be seen at all, of `padding` (B, K): u8 (B, 1, 1, K).
pub(crate) fn not_padding(padding: &Tensor) -> Result<Tensor> {
    let (batch, keys) = padding.dims2()?;
    padding.to_dtype(DType::U8)?.ne(0u8)?.reshape((batch, 1, 1, keys))
}

/// What `padding` (B, K) adds to the scores of each key: the smallest f32 where it is 0.
pub(crate) fn hidden(padding: &Tensor) -> Result<Vec<f32>> {
    let seen = padding.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(seen.iter().map(|seen| if *seen == 0.0 { f32::MIN } else { 0.0 }).collect())
}

/// 0 where a key is `seen` (u8), the smallest f32 elsewhere.
pub(crate) fn hiding(seen: &Tensor) -> Result<Tensor> {
    let zero = Tensor::zeros(seen.shape(), DType::F32, seen.device())?;
    let hidden = Tensor::full(f32::MIN, seen.shape(), seen.device())?;
    seen.where_cond(&zero, &hidden)
}

/// The fused operation, where it takes these inputs and this mask.
pub(crate) fn fused(inputs: &[&Tensor], options: &Heads) -> Result<Option<Attention>> {
    if options.heads == 0 || options.key_heads == 0 || !options.heads.is_multiple_of(options.key_heads) {
        bail!("{} query heads do not divide among {} key heads", options.heads, options.key_heads);
    }
    let constant = |tensor: &Tensor| fusible(&[tensor]) && !tensor.track_op();
    let mask = match options.mask {
        Mask::Bias(bias) if !constant(bias) => return Ok(None),
        Mask::Bias(bias) => FusedMask::Bias(bias.clone()),
        Mask::All => FusedMask::All,
        Mask::Causal { padding } => FusedMask::Causal { padding: padding.map(hidden).transpose()? },
    };
    let angles = match options.angles {
        Some((cos, sin)) if !constant(cos) || !constant(sin) => return Ok(None),
        Some((cos, sin)) => Some((cos.contiguous()?, sin.contiguous()?)),
        None => None,
    };
    Ok(fusible(inputs).then_some(Attention {
        split: false,
        heads: options.heads,
        key_heads: options.key_heads,
        scale: options.scale as f32,
        mask,
        angles,
        dropout: options.dropout,
    }))
}

/// `x`, copied if its last dimension is not in one piece.
fn last_contiguous(x: &Tensor) -> Result<Tensor> {
    match x.stride().last() {
        Some(1) | None => Ok(x.clone()),
        Some(_) => x.contiguous(),
    }
}

enum FusedMask {
    All,
    Bias(Tensor),
    /// What is added to the scores of each key, (B, K).
    Causal {
        padding: Option<Vec<f32>>,
    },
}

pub(crate) struct Attention {
    /// Whether inputs are (B, heads, rows, d) and not (B, rows, heads · d).
    split: bool,
    heads: usize,
    key_heads: usize,
    scale: f32,
    mask: FusedMask,
    angles: Option<(Tensor, Tensor)>,
    dropout: Option<Dropout>,
}

struct Packed(Attention);

/// Where the rows of each head are within a slice.
#[derive(Debug, Clone, Copy)]
struct Places {
    batch: usize,
    head: usize,
    row: usize,
    start: usize,
}

impl Places {
    fn of(&self, batch: usize, head: usize, row: usize) -> usize {
        self.start + batch * self.batch + head * self.head + row * self.row
    }
}

/// Rows of heads that are read.
#[derive(Debug, Clone, Copy)]
struct Input<'a> {
    values: &'a [f32],
    places: Places,
}

/// Rows of heads that several threads write, each the rows of its own heads.
#[derive(Clone, Copy)]
struct Output {
    values: *mut f32,
    length: usize,
    places: Places,
}

// SAFETY: threads get disjoint rows, see `row`.
unsafe impl Sync for Output {}

impl Output {
    fn new(values: &mut [f32], places: Places) -> Self {
        Self { values: values.as_mut_ptr(), length: values.len(), places }
    }

    /// # Safety
    /// The slice behind must live, and no other reference to this row may exist.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, batch: usize, head: usize, row: usize, width: usize) -> &mut [f32] {
        let start = self.places.of(batch, head, row);
        assert!(start + width <= self.length, "a row beyond its tensor");
        // SAFETY: within the slice, and the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(start), width) }
    }
}

/// B, Q, K and d.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    width: usize,
}

/// Some sequences of a batch, for self-attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequences {
    /// The first one's number.
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Sequences of the whole batch.
    pub(crate) whole: usize,
    /// Rows of each.
    pub(crate) rows: usize,
}

/// What the tasks read besides queries, keys and values.
struct Context<'a> {
    sizes: Sizes,
    /// Number of the first sequence in the batch.
    first: usize,
    angles: Option<(&'a [f32], &'a [f32])>,
    bias: Option<(&'a [f32], [usize; 4])>,
}

impl Attention {
    /// Batch, rows and head width of an input with `heads`, and where its heads are if it is in one piece.
    fn shape_of(&self, shape: &Shape, heads: usize) -> Result<(usize, usize, usize, Places)> {
        let (batch, rows, width) = match (self.split, shape.dims()) {
            (true, &[batch, found, rows, width]) if found == heads => (batch, rows, width),
            (false, &[batch, rows, all]) if all.is_multiple_of(heads) => (batch, rows, all / heads),
            _ => bail!("attention: rows of shape {shape:?} have no {heads} heads"),
        };
        let places = match self.split {
            true => Places { batch: heads * rows * width, head: rows * width, row: width, start: 0 },
            false => Places { batch: rows * heads * width, head: width, row: heads * width, start: 0 },
        };
        Ok((batch, rows, width, places))
    }

    /// Where the heads of an input are, from its layout.
    fn places(&self, layout: &Layout, width: usize) -> Result<Places> {
        let start = layout.start_offset();
        match (self.split, layout.stride()) {
            (true, &[batch, head, row, 1]) => Ok(Places { batch, head, row, start }),
            (false, &[batch, row, 1]) => Ok(Places { batch, head: width, row, start }),
            // A last dimension of one has any stride.
            (true, &[batch, head, row, _]) if width == 1 => Ok(Places { batch, head, row, start }),
            _ => bail!("attention: a tensor of layout {layout:?} has no rows in one piece"),
        }
    }

    /// `whole` is how many sequences the batch has, if these are only some of them.
    fn sizes(&self, q: &Shape, k: &Shape, v: &Shape, whole: Option<usize>) -> Result<Sizes> {
        let (batch, queries, width, _) = self.shape_of(q, self.heads)?;
        let (key_batch, keys, key_width, _) = self.shape_of(k, self.key_heads)?;
        if k != v || key_batch != batch || key_width != width {
            bail!("attention: queries {q:?}, keys {k:?} and values {v:?} do not go together");
        }
        if let (FusedMask::Causal { .. }, true) = (&self.mask, queries > keys) {
            bail!("attention: {queries} causal rows over {keys} keys");
        }
        if let FusedMask::Causal { padding: Some(padding) } = &self.mask
            && padding.len() != whole.unwrap_or(batch) * keys
        {
            bail!("attention: a padding of {} for {batch} x {keys} keys", padding.len());
        }
        if let Some((cos, sin)) = &self.angles
            && (queries != keys
                || !width.is_multiple_of(2)
                || cos.dims() != [queries, width / 2]
                || sin.dims() != cos.dims())
        {
            bail!(
                "attention: angles {:?} do not go with {queries} rows of {width} over {keys} keys",
                cos.dims()
            );
        }
        Ok(Sizes { batch, queries, keys, width })
    }

    /// Runs `compute` with angles and bias at hand.
    fn with_context<T>(
        &self,
        sizes: Sizes,
        (first, whole): (usize, usize),
        compute: impl FnOnce(&Context) -> Result<T>,
    ) -> Result<T> {
        let bias = match &self.mask {
            FusedMask::Bias(bias) => {
                Some(bias.broadcast_as((whole, self.heads, sizes.queries, sizes.keys))?)
            }
            FusedMask::All | FusedMask::Causal { .. } => None,
        };
        let held = bias.as_ref().map(Tensor::storage_and_layout);
        let bias = match &held {
            Some((storage, layout)) => match (&**storage, layout.stride()) {
                (Storage::Cpu(storage), &[batch, head, row, key]) => {
                    Some((&storage.as_slice::<f32>()?[layout.start_offset()..], [batch, head, row, key]))
                }
                _ => bail!("attention: a bias of layout {layout:?}"),
            },
            None => None,
        };
        match &self.angles {
            Some((cos, sin)) => with_values([cos, sin], |[cos, sin]| {
                compute(&Context { sizes, first, angles: Some((cos, sin)), bias })
            }),
            None => compute(&Context { sizes, first, angles: None, bias }),
        }
    }

    /// Rows of a head, scaled and rotated, one after the other.
    fn gather(
        &self,
        context: &Context,
        input: &Input,
        place: (usize, usize),
        scale: f32,
        result: &mut [f32],
    ) {
        let width = context.sizes.width;
        if !result.is_empty() {
            let start = input.places.of(place.0, place.1, 0);
            gather(&input.values[start..], input.places.row, width, context.angles, scale, result);
        }
    }

    /// The inverse for gradients: rotated back and scaled.
    fn scatter(&self, context: &Context, values: &[f32], place: (usize, usize), scale: f32, output: &Output) {
        let width = context.sizes.width;
        for (row, values) in values.chunks_exact(width.max(1)).enumerate() {
            // SAFETY: only this task writes this head.
            let result = unsafe { output.row(place.0, place.1, row, width) };
            match context.angles {
                Some((cos, sin)) => {
                    let angles = row * width / 2..(row + 1) * width / 2;
                    rotate(values, &cos[angles.clone()], &sin[angles], -1.0, scale, result);
                }
                None => copy_scaled(values, scale, result),
            }
        }
    }

    /// The query rows of each block and how many keys they see.
    fn blocks(&self, sizes: Sizes) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let causal = matches!(self.mask, FusedMask::Causal { .. });
        (0..sizes.queries).step_by(QUERY_BLOCK).map(move |start| {
            let end = (start + QUERY_BLOCK).min(sizes.queries);
            let visible = if causal { sizes.keys - sizes.queries + end } else { sizes.keys };
            (start, end - start, visible)
        })
    }

    /// Turns the scores of a block of rows into shares.
    fn normalise(
        &self,
        context: &Context,
        (batch, head): (usize, usize),
        start: usize,
        visible: usize,
        scores: &mut [f32],
    ) {
        let sizes = context.sizes;
        let batch = context.first + batch;
        for (index, row) in scores.chunks_exact_mut(visible.max(1)).enumerate() {
            match (&self.mask, context.bias) {
                (FusedMask::Causal { padding }, _) => {
                    let seen = sizes.keys - sizes.queries + start + index + 1;
                    let (row, later) = row.split_at_mut(seen);
                    later.fill(0.0);
                    match padding {
                        Some(padding) => add_and_normalise(&padding[batch * sizes.keys..][..seen], row),
                        None => normalise_row(row),
                    }
                }
                (FusedMask::Bias(_), Some((bias, strides))) => {
                    let first = batch * strides[0] + head * strides[1] + (start + index) * strides[2];
                    match strides[3] {
                        1 => add_and_normalise(&bias[first..first + visible], row),
                        stride => {
                            for (place, score) in row.iter_mut().enumerate() {
                                *score += bias[first + place * stride];
                            }
                            normalise_row(row);
                        }
                    }
                }
                _ => normalise_row(row),
            }
        }
    }

    /// The number of a row among all of (B, H, Q), by which dropout tells rows apart.
    fn row_number(&self, context: &Context, (batch, head): (usize, usize), row: usize) -> usize {
        ((context.first + batch) * self.heads + head) * context.sizes.queries + row
    }

    fn forward(&self, context: &Context, q: Input, k: Input, v: Input, result: &Output) {
        let Sizes { batch, queries, keys, width } = context.sizes;
        let group = self.heads / self.key_heads;
        (0..batch * self.key_heads).into_par_iter().for_each(|task| {
            let (batch, key_head) = (task / self.key_heads, task % self.key_heads);
            let mut key_rows = vec![0f32; keys * width];
            self.gather(context, &k, (batch, key_head), 1.0, &mut key_rows);
            let mut query_rows = vec![0f32; queries * width];
            let mut scores = vec![0f32; queries.min(QUERY_BLOCK) * keys];
            let mut attended = vec![0f32; queries.min(QUERY_BLOCK) * width];
            let values = head_values(&v, (batch, key_head), keys, width);
            for head in key_head * group..(key_head + 1) * group {
                self.gather(context, &q, (batch, head), self.scale, &mut query_rows);
                for (start, rows, visible) in self.blocks(context.sizes) {
                    let scores = &mut scores[..rows * visible];
                    let block = Matrix::new(&query_rows[start * width..(start + rows) * width], rows, width);
                    let seen = Matrix::new(&key_rows[..visible * width], visible, width);
                    multiply(block, seen.transposed(), scores, false, false);
                    self.normalise(context, (batch, head), start, visible, scores);
                    if let Some(dropout) = self.dropout {
                        let first = self.row_number(context, (batch, head), start);
                        drop_rows(dropout, first, visible, scores);
                    }
                    let attended = &mut attended[..rows * width];
                    let shares = Matrix::new(scores, rows, visible);
                    multiply(shares, values.rows(visible), attended, false, false);
                    for (row, attended) in attended.chunks_exact(width.max(1)).enumerate() {
                        // SAFETY: only this task writes this head.
                        unsafe { result.row(batch, head, start + row, width) }.copy_from_slice(attended);
                    }
                }
            }
        });
    }

    /// Gradients of all three at once; `of_*` are zero or will be overwritten.
    fn backward(&self, context: &Context, inputs: [Input; 3], gradient: Input, outputs: [&Output; 3]) {
        let Sizes { batch, queries, keys, width } = context.sizes;
        let ([q, k, v], [of_q, of_k, of_v]) = (inputs, outputs);
        let group = self.heads / self.key_heads;
        (0..batch * self.key_heads).into_par_iter().for_each(|task| {
            let (batch, key_head) = (task / self.key_heads, task % self.key_heads);
            let block = queries.min(QUERY_BLOCK);
            let mut key_rows = vec![0f32; keys * width];
            self.gather(context, &k, (batch, key_head), 1.0, &mut key_rows);
            let values = head_values(&v, (batch, key_head), keys, width);
            let (mut of_keys, mut of_values) = (vec![0f32; keys * width], vec![0f32; keys * width]);
            let (mut query_rows, mut of_queries) = (vec![0f32; queries * width], vec![0f32; queries * width]);
            let (mut shares, mut of_shares) = (vec![0f32; block * keys], vec![0f32; block * keys]);
            let mut kept = vec![0f32; if self.dropout.is_some() { block * keys } else { 0 }];
            for head in key_head * group..(key_head + 1) * group {
                self.gather(context, &q, (batch, head), self.scale, &mut query_rows);
                let gradient = head_values(&gradient, (batch, head), queries, width);
                for (start, rows, visible) in self.blocks(context.sizes) {
                    let (shares, of_shares) =
                        (&mut shares[..rows * visible], &mut of_shares[..rows * visible]);
                    let block = Matrix::new(&query_rows[start * width..(start + rows) * width], rows, width);
                    let seen = Matrix::new(&key_rows[..visible * width], visible, width);
                    let gradient = gradient.part(start, rows);
                    multiply(block, seen.transposed(), shares, false, false);
                    self.normalise(context, (batch, head), start, visible, shares);
                    multiply(gradient, values.rows(visible).transposed(), of_shares, false, false);
                    let of_values = &mut of_values[..visible * width];
                    if let Some(dropout) = self.dropout {
                        let first = self.row_number(context, (batch, head), start);
                        let kept = &mut kept[..rows * visible];
                        kept.copy_from_slice(shares);
                        drop_rows(dropout, first, visible, kept);
                        drop_rows(dropout, first, visible, of_shares);
                        let kept = Matrix::new(kept, rows, visible);
                        multiply(kept.transposed(), gradient, of_values, true, false);
                    } else {
                        let shares = Matrix::new(shares, rows, visible);
                        multiply(shares.transposed(), gradient, of_values, true, false);
                    }
                    differentiate(visible, shares, of_shares);
                    let of_scores = Matrix::new(of_shares, rows, visible);
                    let of_queries = &mut of_queries[start * width..(start + rows) * width];
                    multiply(of_scores, seen, of_queries, false, false);
                    multiply(of_scores.transposed(), block, &mut of_keys[..visible * width], true, false);
                }
                self.scatter(context, &of_queries, (batch, head), self.scale, of_q);
            }
            self.scatter(context, &of_keys, (batch, key_head), 1.0, of_k);
            for (row, values) in of_values.chunks_exact(width.max(1)).enumerate() {
                // SAFETY: only this task writes this head.
                unsafe { of_v.row(batch, key_head, row, width) }.copy_from_slice(values);
            }
        });
    }
}

/// The rows of a head as they lie.
#[derive(Debug, Clone, Copy)]
struct HeadRows<'a> {
    values: &'a [f32],
    row: usize,
    width: usize,
}

fn head_values<'a>(
    input: &Input<'a>,
    (batch, head): (usize, usize),
    rows: usize,
    width: usize,
) -> HeadRows<'a> {
    let start = if rows == 0 { 0 } else { input.places.of(batch, head, 0) };
    HeadRows { values: &input.values[start..], row: input.places.row, width }
}

impl<'a> HeadRows<'a> {
    fn rows(&self, rows: usize) -> Matrix<'a> {
        Matrix::strided(self.values, rows, self.width, self.row)
    }

    fn part(&self, start: usize, rows: usize) -> Matrix<'a> {
        Matrix::strided(&self.values[start * self.row..], rows, self.width, self.row)
    }
}

#[inline(always)]
fn rotate_inline<const FUSED: bool>(
    row: &[f32],
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    scale: f32,
    result: &mut [f32],
) {
    rotate_row(row, cos, sin, direction, result);
    for value in result.iter_mut() {
        *value *= scale;
    }
}
widest!(fn rotate(
    row: &[f32],
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    scale: f32,
    result: &mut [f32],
) = rotate_inline);

#[inline(always)]
fn gather_inline<const FUSED: bool>(
    values: &[f32],
    row_stride: usize,
    width: usize,
    angles: Option<(&[f32], &[f32])>,
    scale: f32,
    result: &mut [f32],
) {
    for (row, result) in result.chunks_exact_mut(width).enumerate() {
        let values = &values[row * row_stride..row * row_stride + width];
        match angles {
            Some((cos, sin)) => {
                let angles = row * width / 2..(row + 1) * width / 2;
                rotate_inline::<FUSED>(values, &cos[angles.clone()], &sin[angles], 1.0, scale, result);
            }
            None => copy_scaled(values, scale, result),
        }
    }
}
widest!(fn gather(
    values: &[f32],
    row_stride: usize,
    width: usize,
    angles: Option<(&[f32], &[f32])>,
    scale: f32,
    result: &mut [f32],
) = gather_inline);

#[inline(always)]
fn copy_scaled(row: &[f32], scale: f32, result: &mut [f32]) {
    for (result, value) in result.iter_mut().zip(row) {
        *result = value * scale;
    }
}

widest!(fn normalise_row(row: &mut [f32]) = softmax_row);

#[inline(always)]
fn add_and_normalise_inline<const FUSED: bool>(bias: &[f32], row: &mut [f32]) {
    add_bias::<FUSED>(bias, row);
    softmax_row::<FUSED>(row);
}
widest!(fn add_and_normalise(bias: &[f32], row: &mut [f32]) = add_and_normalise_inline);

#[inline(always)]
fn drop_rows_inline<const FUSED: bool>(dropout: Dropout, first: usize, width: usize, rows: &mut [f32]) {
    for (index, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
        keep_row(dropout, first + index, row);
    }
}
widest!(fn drop_rows(dropout: Dropout, first: usize, width: usize, rows: &mut [f32]) = drop_rows_inline);

/// Turns gradients of shares into gradients of scores.
#[inline(always)]
fn differentiate_inline<const FUSED: bool>(width: usize, shares: &[f32], gradients: &mut [f32]) {
    for (shares, gradients) in shares.chunks_exact(width.max(1)).zip(gradients.chunks_exact_mut(width.max(1)))
    {
        let along = sum_of(width, |place| shares[place] * gradients[place]);
        for (gradient, share) in gradients.iter_mut().zip(shares) {
            *gradient = share * (*gradient - along);
        }
    }
}
widest!(fn differentiate(width: usize, shares: &[f32], gradients: &mut [f32]) = differentiate_inline);

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(q_layout.shape(), k_layout.shape(), v_layout.shape(), None)?;
        let mut result = vec![0f32; q_layout.shape().elem_count()];
        let input = |storage, layout| self.input(storage, layout, sizes.width);
        let (q, k, v) = (input(q, q_layout)?, input(k, k_layout)?, input(v, v_layout)?);
        let (_, _, _, places) = self.shape_of(q_layout.shape(), self.heads)?;
        let output = Output::new(&mut result, places);
        self.with_context(sizes, (0, sizes.batch), |context| {
            self.forward(context, q, k, v, &output);
            Ok(())
        })?;
        Ok((CpuStorage::F32(result), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(q.shape(), k.shape(), v.shape(), None)?;
        let (_, _, _, query_places) = self.shape_of(q.shape(), self.heads)?;
        let (_, _, _, key_places) = self.shape_of(k.shape(), self.key_heads)?;
        let mut of_q = vec![0f32; q.elem_count()];
        let (mut of_k, mut of_v) = (vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
        with_values([q, k, v, gradient], |[q, k, v, gradient]| {
            let query = |values| Input { values, places: query_places };
            let key = |values| Input { values, places: key_places };
            self.with_context(sizes, (0, sizes.batch), |context| {
                let outputs = [
                    &Output::new(&mut of_q, query_places),
                    &Output::new(&mut of_k, key_places),
                    &Output::new(&mut of_v, key_places),
                ];
                self.backward(context, [query(q), key(k), key(v)], query(gradient), outputs);
                Ok(())
            })
        })?;
        let part = |of: &Tensor, gradient| of.track_op().then(|| tensor(gradient, of.shape())).transpose();
        Ok((part(q, of_q)?, part(k, of_k)?, part(v, of_v)?))
    }
}

impl Attention {
    fn input<'a>(&self, storage: &'a CpuStorage, layout: &Layout, width: usize) -> Result<Input<'a>> {
        Ok(Input { values: storage.as_slice::<f32>()?, places: self.places(layout, width)? })
    }
}

impl Attention {
    /// Sizes, and where the heads of queries, keys and values and of the result are, for self-attention of
    /// (`batch`, `rows`): of rows that hold all three, or of three tensors.
    fn arrange(&self, sequences: Sequences, sources: &[&[f32]]) -> Result<(Sizes, [Places; 3], Places)> {
        let Sequences { count: batch, whole, rows, .. } = sequences;
        let width =
            |index: usize| sources.get(index).map_or(0, |source| source.len() / (batch * rows).max(1));
        match sources.len() {
            1 => {
                let all = width(0);
                let one = Shape::from((batch, rows, all / 3));
                let sizes = self.sizes(&one, &one, &one, Some(whole))?;
                let (_, _, width, result) = self.shape_of(&one, self.heads)?;
                let part = |index: usize| Places {
                    batch: rows * all,
                    head: width,
                    row: all,
                    start: index * all / 3,
                };
                Ok((sizes, [part(0), part(1), part(2)], result))
            }
            _ => {
                let [q, k, v] = [0, 1, 2].map(|index| Shape::from((batch, rows, width(index))));
                let sizes = self.sizes(&q, &k, &v, Some(whole))?;
                let (_, _, _, query) = self.shape_of(&q, self.heads)?;
                let (_, _, _, key) = self.shape_of(&k, self.key_heads)?;
                Ok((sizes, [query, key, key], query))
            }
        }
    }

    /// Self-attention of `sequences`: `sources` are queries, keys and values, or one slice of rows that hold all
    /// three.
    pub(crate) fn attend(&self, sequences: Sequences, sources: &[&[f32]]) -> Result<Vec<f32>> {
        let (sizes, places, result_places) = self.arrange(sequences, sources)?;
        let mut result = vec![0f32; sizes.batch * sizes.queries * self.heads * sizes.width];
        let output = Output::new(&mut result, result_places);
        let last = sources.len() - 1;
        let input = |index: usize| Input { values: sources[index.min(last)], places: places[index] };
        self.with_context(sizes, (sequences.first, sequences.whole), |context| {
            self.forward(context, input(0), input(1), input(2), &output);
            Ok(())
        })?;
        Ok(result)
    }

    /// The gradients of `sources` as given to [`Attention::attend`].
    pub(crate) fn differentiate(
        &self,
        sequences: Sequences,
        sources: &[&[f32]],
        gradient: &[f32],
    ) -> Result<Vec<Vec<f32>>> {
        let (sizes, places, result_places) = self.arrange(sequences, sources)?;
        let mut of_sources: Vec<_> = sources.iter().map(|source| vec![0f32; source.len()]).collect();
        let last = sources.len() - 1;
        let input = |index: usize| Input { values: sources[index.min(last)], places: places[index] };
        // Three views of one slice have disjoint rows.
        let outputs: Vec<Output> =
            of_sources.iter_mut().map(|of_source| Output::new(of_source, result_places)).collect();
        let [q, k, v] = [0, 1, 2].map(|index| Output { places: places[index], ..outputs[index.min(last)] });
        let gradient = Input { values: gradient, places: result_places };
        self.with_context(sizes, (sequences.first, sequences.whole), |context| {
            self.backward(context, [input(0), input(1), input(2)], gradient, [&q, &k, &v]);
            Ok(())
        })?;
        Ok(of_sources)
    }
}

impl CustomOp1 for Packed {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, packed: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, rows, all) = layout.shape().dims3()?;
        let sequences = Sequences { first: 0, count: batch, whole: batch, rows };
        let result = self.0.attend(sequences, &[crate::rows::values(packed, layout)?])?;
        Ok((CpuStorage::F32(result), Shape::from((batch, rows, all / 3))))
    }

    fn bwd(&self, packed: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (batch, rows, _all) = packed.dims3()?;
        let mut of_packed = with_values([packed, gradient], |[packed, gradient]| {
            self.0.differentiate(
                Sequences { first: 0, count: batch, whole: batch, rows },
                &[packed],
                gradient,
            )
        })?;
        of_packed.pop().map(|of_packed| tensor(of_packed, packed.shape())).transpose()
    }
}
