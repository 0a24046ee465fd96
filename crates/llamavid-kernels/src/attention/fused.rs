//! Attention in one operation, forwards and backwards.
//!
//! The scores exist for a block of query rows at a time, so memory grows with rows + keys and not with their
//! product; the backward pass computes them again. Letters: B batch, H query heads, G query heads of a key head,
//! Q query rows, K key rows, d head width.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::head_rows::{Input, Output, Places, copy_scaled, gather, rotate};
use super::{Heads, Mask, hidden};
use crate::operations::dropout::{Dropout, keep_rows};
use crate::operations::rows::{fusible, tensor, with_values};
use crate::operations::softmax::{add_and_normalise, differentiate, normalise_row};
use crate::products::matrix::{Matrix, multiply};

/// Query rows whose scores exist at once.
const QUERY_BLOCK: usize = 64;

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

pub(super) struct Packed(pub(super) Attention);

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
    /// The same of inputs (B, heads, rows, d).
    pub(super) fn of_split_heads(self) -> Self {
        Self { split: true, ..self }
    }

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

    /// Turns the scores of a block of rows into probabilities.
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
            let values = v.head((batch, key_head), keys, width);
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
                        keep_rows(dropout, first, visible, scores);
                    }
                    let attended = &mut attended[..rows * width];
                    let probabilities = Matrix::new(scores, rows, visible);
                    multiply(probabilities, values.rows(visible), attended, false, false);
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
            let values = v.head((batch, key_head), keys, width);
            let (mut of_keys, mut of_values) = (vec![0f32; keys * width], vec![0f32; keys * width]);
            let (mut query_rows, mut of_queries) = (vec![0f32; queries * width], vec![0f32; queries * width]);
            let (mut probabilities, mut of_probabilities) =
                (vec![0f32; block * keys], vec![0f32; block * keys]);
            let mut kept = vec![0f32; if self.dropout.is_some() { block * keys } else { 0 }];
            for head in key_head * group..(key_head + 1) * group {
                self.gather(context, &q, (batch, head), self.scale, &mut query_rows);
                let gradient = gradient.head((batch, head), queries, width);
                for (start, rows, visible) in self.blocks(context.sizes) {
                    let (probabilities, of_probabilities) =
                        (&mut probabilities[..rows * visible], &mut of_probabilities[..rows * visible]);
                    let block = Matrix::new(&query_rows[start * width..(start + rows) * width], rows, width);
                    let seen = Matrix::new(&key_rows[..visible * width], visible, width);
                    let gradient = gradient.part(start, rows);
                    multiply(block, seen.transposed(), probabilities, false, false);
                    self.normalise(context, (batch, head), start, visible, probabilities);
                    multiply(gradient, values.rows(visible).transposed(), of_probabilities, false, false);
                    let of_values = &mut of_values[..visible * width];
                    if let Some(dropout) = self.dropout {
                        let first = self.row_number(context, (batch, head), start);
                        let kept = &mut kept[..rows * visible];
                        kept.copy_from_slice(probabilities);
                        keep_rows(dropout, first, visible, kept);
                        keep_rows(dropout, first, visible, of_probabilities);
                        let kept = Matrix::new(kept, rows, visible);
                        multiply(kept.transposed(), gradient, of_values, true, false);
                    } else {
                        let probabilities = Matrix::new(probabilities, rows, visible);
                        multiply(probabilities.transposed(), gradient, of_values, true, false);
                    }
                    differentiate(visible, probabilities, of_probabilities);
                    let of_scores = Matrix::new(of_probabilities, rows, visible);
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
        let [q, k, v] = [0, 1, 2].map(|index| outputs[index.min(last)].at(places[index]));
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
        let result = self.0.attend(sequences, &[crate::operations::rows::values(packed, layout)?])?;
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
