//! Attention of new positions over all that a sequence has passed, whose keys and values are held as they are or in blocks.
//!
//! The scores of a row exist for some keys at a time: sums of what came before are scaled anew when a larger score turns
//! up, so that the whole row never has to. Keys and values are read once for all query heads that share them, and are
//! never copied; those in blocks are unpacked in the cache of a core, or, for a row, read as they lie. Letters as in
//! [`crate::attention()`]; T positions.
//!
//! Reference: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867).

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::attention::hidden;
#[cfg(target_arch = "x86_64")]
use crate::block_vectors::add_shares;
use crate::panels;
#[cfg(target_arch = "x86_64")]
use crate::plain_rows::PlainRows;
use crate::processor::processor;
#[cfg(target_arch = "x86_64")]
use crate::products::Output;
use crate::products::{Layer, PARALLEL, Weights};
use crate::rotary::rotary_embedding;
use crate::rows::{fusible, tensor, with_values};
use crate::softmax::add_bias;
use crate::vector::{exp, largest, widest};
use crate::{BlockFormat, DeviceRows};

/// Query rows of a task, of all heads that share keys.
const QUERY_ROWS: usize = 64;
/// Keys whose scores exist at once: they, or their values, and what is made of them are in the first caches.
const KEYS: usize = 64;
/// The same where there are few rows, which read more than they compute: from memory, in long pieces.
const KEYS_OF_FEW_ROWS: usize = 256;
/// Rows up to which keys and values in plain numbers, or what blocks are unpacked to, are read row after row, where that is quicker.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 16;
/// Keys that are worth a task.
const LEAST_KEYS: usize = 512;

/// Numbers of a head up to which attention on a CUDA device is one operation, whose scores are never held in memory.
pub const WIDEST_FUSED_HEAD: usize = 128;

/// Keys or values of a layer: room for (B, key heads, capacity, d), of which the first positions are taken.
#[derive(Debug, Clone, Copy)]
pub enum CachedRows<'a> {
    /// A contiguous tensor: f32 on a CPU, or in the dtype of the queries on a CUDA device.
    Numbers(&'a Tensor),
    /// Rows in blocks, one after the other.
    Blocks {
        /// How they are stored.
        format: BlockFormat,
        /// B, key heads, capacity and d.
        shape: [usize; 4],
        /// As many as the shape takes.
        bytes: &'a [u8],
    },
    /// Rows in blocks on a CUDA device.
    Device(&'a DeviceRows),
}

impl CachedRows<'_> {
    pub(crate) fn shape(&self) -> Result<[usize; 4]> {
        match self {
            Self::Device(rows) => Ok(rows.shape()),
            Self::Numbers(rows) => {
                rows.dims4().map(|(batch, heads, capacity, width)| [batch, heads, capacity, width])
            }
            Self::Blocks { shape, .. } => Ok(*shape),
        }
    }
}

/// Causal attention of `q` (B, H, Q, d), of which [`reads_cache`] is true, over the first `length` cached positions: (B, Q, H · d).
///
/// The last query is at the last position. Scores are scaled by 1 / √d. Positions are hidden where `padding` (B, `length`)
/// is 0; a row that sees nothing gets the mean of what is before it. No gradient flows through it.
///
/// # Errors
/// Shapes that do not go together.
pub fn cached_attention(
    q: &Tensor,
    keys: CachedRows,
    values: CachedRows,
    length: usize,
    padding: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, heads, queries, width) = q.dims4()?;
    let shape = keys.shape()?;
    let [cached, key_heads, capacity, cached_width] = shape;
    let fits = shape == values.shape()? && cached == batch && cached_width == width && length <= capacity;
    if !fits || key_heads == 0 || !heads.is_multiple_of(key_heads) || queries > length {
        bail!("cached attention: queries {:?} do not go with {length} positions of {shape:?}", q.dims());
    }
    if let Some(padding) = padding
        && padding.dims() != [batch, length]
    {
        bail!("cached attention: a padding {:?} for {batch} x {length} positions", padding.dims());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[q]) {
        return crate::cuda::cached_attention(q, keys, values, length, padding);
    }
    let hidden = padding.map(hidden).transpose()?;
    let run = |q: &[f32], keys: Weights, values: Weights| {
        let attention = Cached {
            q,
            keys,
            values,
            hidden: hidden.as_deref(),
            heads,
            group: heads / key_heads,
            queries,
            capacity,
            length,
            width,
        };
        tensor(attention.run(batch), &(batch, queries, heads * width).into())
    };
    match (keys, values) {
        (CachedRows::Numbers(keys), CachedRows::Numbers(values)) => {
            with_values([q, keys, values], |[q, k, v]| run(q, Weights::Numbers(k), Weights::Numbers(v)))
        }
        (
            CachedRows::Blocks { format, bytes: keys, .. },
            CachedRows::Blocks { format: of_values, bytes: values, .. },
        ) => {
            let room = format.row_bytes(width).map(|row| row * batch * key_heads * capacity);
            if format != of_values || room != Some(keys.len()) || room != Some(values.len()) {
                bail!("cached attention: {} bytes of {} for {shape:?}", keys.len(), format.name());
            }
            with_values([q], |[q]| run(q, Weights::Blocks(format, keys), Weights::Blocks(format, values)))
        }
        _ => bail!("cached attention: keys and values that are stored in two ways"),
    }
}

/// Whether [`cached_attention`] takes queries like these: f32 on a CPU; without a gradient and with heads of at most 128 numbers on a
/// CUDA device ([`WIDEST_FUSED_HEAD`]).
pub fn reads_cache(q: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[q]) {
        return q.dims().last().is_some_and(|width| *width <= WIDEST_FUSED_HEAD);
    }
    fusible(&[q])
}

/// Queries (B, H, S, d), rotated by (S, d / 2) cosines and sines. Keys (B, key heads, S, d), rotated likewise, and values are written to
/// positions `at` and on of their caches (B, key heads, capacity, d).
///
/// # Errors
/// Shapes that do not go together.
pub fn rotate_into(
    [queries, keys, values]: [&Tensor; 3],
    (cos, sin): (&Tensor, &Tensor),
    caches: [&Tensor; 2],
    at: usize,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[queries, keys, values, cos, sin, caches[0], caches[1]]) {
        return crate::cuda::rotate_into([queries, keys, values], (cos, sin), caches, at);
    }
    caches[0].slice_set(&rotary_embedding(keys, cos, sin)?.contiguous()?, 2, at)?;
    caches[1].slice_set(&values.contiguous()?, 2, at)?;
    rotary_embedding(queries, cos, sin)
}

/// One call, as its tasks see it.
struct Cached<'a> {
    q: &'a [f32],
    keys: Weights<'a>,
    values: Weights<'a>,
    /// What is added to the scores of each position of a sequence.
    hidden: Option<&'a [f32]>,
    heads: usize,
    /// Query heads of a key head.
    group: usize,
    queries: usize,
    capacity: usize,
    length: usize,
    width: usize,
}

/// Query rows of a task with what they have seen so far.
struct Block {
    /// Scaled queries (rows, d): the rows of the first head, then those of the next one.
    queries: Vec<f32>,
    /// The largest score of each row.
    largest: Vec<f32>,
    /// The sum of the shares of each row.
    sums: Vec<f32>,
    /// The values, each with its share, (rows, d).
    attended: Vec<f32>,
}

impl Block {
    /// Adds what the same rows have seen of other keys, if they have seen any.
    fn add(&mut self, other: &Self) {
        let width = (self.queries.len() / self.sums.len()).max(1);
        let rows = self.attended.chunks_exact_mut(width).zip(other.attended.chunks_exact(width));
        for (index, (row, of_other)) in rows.enumerate() {
            let largest = self.largest[index].max(other.largest[index]);
            let own = (self.largest[index] - largest).exp();
            let others = (other.largest[index] - largest).exp();
            self.largest[index] = largest;
            self.sums[index] = own * self.sums[index] + others * other.sums[index];
            row.iter_mut().zip(of_other).for_each(|(value, other)| *value = own * *value + others * other);
        }
    }
}

impl Cached<'_> {
    fn run(&self, batch: usize) -> Vec<f32> {
        let mut result = vec![0f32; batch * self.queries * self.heads * self.width];
        let rows = (QUERY_ROWS / self.group).max(1);
        let blocks = self.queries.div_ceil(rows);
        let key_heads = self.heads / self.group;
        // Where there are fewer blocks than threads, several tasks share the keys of a block.
        let count = batch * key_heads * blocks;
        let parts = (2 * rayon::current_num_threads()).div_ceil(count.max(1));
        let keys = self.length.div_ceil(parts).next_multiple_of(KEYS_OF_FEW_ROWS).max(LEAST_KEYS);
        let parts = self.length.div_ceil(keys).max(1);
        let products = 2 * rows.min(self.queries) * self.group * keys.min(self.length) * self.width;
        let mut tasks: Vec<_> = (0..count * parts)
            .into_par_iter()
            .with_min_len(PARALLEL.div_ceil(products.max(1)))
            .map(|task| {
                let (block, part) = (task / parts, task % parts);
                let (head, first) = (block / blocks, block % blocks * rows);
                let queries = first..self.queries.min(first + rows);
                let of_part = part * keys..(part + 1) * keys;
                self.attend(head / key_heads, head % key_heads, queries, of_part)
            })
            .collect();
        for (index, block) in tasks.chunks_exact_mut(parts).enumerate() {
            let (head, first) = (index / blocks, index % blocks * rows);
            let (sequence, first_head) = (head / key_heads, head % key_heads * self.group);
            let [block, others @ ..] = block else { continue };
            others.iter().for_each(|other| block.add(other));
            let rows = block.sums.len() / self.group;
            let attended = block.attended.chunks_exact(self.width.max(1));
            for (index, (row, sum)) in attended.zip(&block.sums).enumerate() {
                let query = first + index % rows;
                let at = (sequence * self.queries + query) * self.heads + first_head + index / rows;
                let result = &mut result[at * self.width..(at + 1) * self.width];
                result.iter_mut().zip(row).for_each(|(result, value)| *result = value / sum);
            }
        }
        result
    }

    /// What some queries have seen, in all heads of a key head, of the positions of a part.
    fn attend(&self, sequence: usize, key_head: usize, queries: Range<usize>, part: Range<usize>) -> Block {
        let (first, rows) = (queries.start, queries.len());
        let mut block = self.begin(sequence, key_head, first, rows);
        let count = block.largest.len();
        let places = (sequence * (self.heads / self.group) + key_head) * self.capacity;
        let before = self.length - self.queries + first;
        #[cfg(target_arch = "x86_64")]
        let few = {
            let format = self.keys.format();
            let in_blocks = format.interleaves();
            let takes = self.width > 0 && count <= FEW_ROWS && !(in_blocks && count == 1);
            let plain = if in_blocks { BlockFormat::F32 } else { format };
            takes.then(|| PlainRows::new(processor(), plain, &block.queries, self.width)).flatten()
        };
        #[cfg(not(target_arch = "x86_64"))]
        let few: Option<()> = None;
        let at_once = if count == 1 || few.is_some() { KEYS_OF_FEW_ROWS } else { KEYS };
        let mut scores = vec![0f32; count * at_once];
        let (mut unpacked, mut columns) = (Vec::new(), Vec::new());
        let end = part.end.min(before + rows);
        for from in (part.start..end).step_by(at_once) {
            let keys = at_once.min(end - from);
            let key_rows = self.part(self.keys, places + from, keys);
            match &few {
                #[cfg(target_arch = "x86_64")]
                Some(few) => {
                    scores.fill(0.0);
                    self.each_plain(key_rows, keys, &mut unpacked, |first, rows| {
                        // SAFETY: nobody else has the scores.
                        unsafe { few.add(rows, first, Output::new(&mut scores, at_once)) };
                    });
                }
                // A row reads keys in blocks as they lie; more of them are worth unpacking those for.
                _ if count == 1 => Layer { weights: key_rows, rows: keys, columns: self.width, bias: None }
                    .write_exactly(&block.queries, &mut scores[..keys]),
                _ => {
                    lay_out(numbers(key_rows, keys * self.width, &mut unpacked), self.width, &mut columns);
                    scores.fill(0.0);
                    let (left, right) = (&block.queries, &columns);
                    add_product(Product { left, stride: self.width, right, width: KEYS }, &mut scores);
                }
            }
            for (index, scores) in scores.chunks_exact_mut(at_once).enumerate() {
                // A row sees the keys up to its own place.
                let seen = (before + index % rows + 1).saturating_sub(from).min(keys);
                if let Some(hidden) = self.hidden {
                    hide(&hidden[sequence * self.length + from..][..seen], &mut scores[..seen]);
                }
                let attended = &mut block.attended[index * self.width..(index + 1) * self.width];
                share(seen, scores, &mut block.largest[index], &mut block.sums[index], attended);
            }
            let values = self.part(self.values, places + from, keys);
            #[cfg(target_arch = "x86_64")]
            if let Some(few) = few.as_ref().filter(|few| few.of_whole_vectors()) {
                self.each_plain(values, keys, &mut unpacked, |first, rows| {
                    few.add_shares(rows, (&scores[first..], at_once), &mut block.attended);
                });
                continue;
            }
            #[cfg(target_arch = "x86_64")]
            if let (1, Weights::Blocks(format, values)) = (count, values)
                && add_shares(processor(), format, values, &scores, &mut block.attended)
            {
                continue;
            }
            let right = numbers(values, keys * self.width, &mut unpacked);
            let product = Product { left: &scores, stride: at_once, right, width: self.width };
            add_product(product, &mut block.attended);
        }
        block
    }

    /// Queries that have seen nothing yet.
    fn begin(&self, sequence: usize, key_head: usize, first: usize, rows: usize) -> Block {
        let count = self.group * rows;
        let scale = (self.width as f32).sqrt().recip();
        let mut queries = Vec::with_capacity(count * self.width);
        for head in key_head * self.group..(key_head + 1) * self.group {
            let start = ((sequence * self.heads + head) * self.queries + first) * self.width;
            queries.extend(self.q[start..start + rows * self.width].iter().map(|value| value * scale));
        }
        Block {
            queries,
            largest: vec![f32::NEG_INFINITY; count],
            sums: vec![0.0; count],
            attended: vec![0.0; count * self.width],
        }
    }

    /// Gives the bytes of `count` rows, or what they are in f32 where they are in blocks: some at a time, which stay in the first cache,
    /// with the number of the first.
    #[cfg(target_arch = "x86_64")]
    fn each_plain(
        &self,
        rows: Weights,
        count: usize,
        unpacked: &mut Vec<f32>,
        mut take: impl FnMut(usize, &[u8]),
    ) {
        if !rows.format().interleaves() {
            return take(0, rows.bytes());
        }
        for first in (0..count).step_by(KEYS) {
            let some = KEYS.min(count - first);
            let rows = numbers(self.part(rows, first, some), some * self.width, unpacked);
            take(first, pulp::bytemuck::cast_slice(rows));
        }
    }

    /// `count` rows from `first` on.
    fn part<'a>(&self, rows: Weights<'a>, first: usize, count: usize) -> Weights<'a> {
        rows.part(first..first + count, self.width)
    }
}

/// `count` numbers as they are, or unpacked.
fn numbers<'a>(rows: Weights<'a>, count: usize, unpacked: &'a mut Vec<f32>) -> &'a [f32] {
    match rows {
        Weights::Numbers(values) => values,
        Weights::Blocks(format, bytes) | Weights::Interleaved(format, bytes) => {
            unpacked.resize(count, 0.0);
            format.decode(bytes, unpacked);
            unpacked
        }
    }
}

/// Makes columns of up to [`KEYS`] keys (keys, width): (width, [`KEYS`]). What stands for keys that are missing is of others.
fn lay_out(keys: &[f32], width: usize, columns: &mut Vec<f32>) {
    columns.resize(width * KEYS, 0.0);
    let count = keys.len() / width.max(1);
    for first in (0..count).step_by(TOGETHER) {
        let four = std::array::from_fn(|index| {
            let key = (first + index).min(count - 1);
            &keys[key * width..(key + 1) * width]
        });
        panels::lay_out(four, first, columns, KEYS);
    }
}

widest!(fn hide(hidden: &[f32], scores: &mut [f32]) = add_bias);

/// Turns the first `seen` scores into shares, the others into none; what was found with smaller scores is scaled anew.
#[inline(always)]
fn share_inline<const FUSED: bool>(
    seen: usize,
    scores: &mut [f32],
    most: &mut f32,
    sum: &mut f32,
    attended: &mut [f32],
) {
    let (scores, later) = scores.split_at_mut(seen);
    later.fill(0.0);
    if seen == 0 {
        return;
    }
    let found = largest(scores);
    let now = if found > *most { found } else { *most };
    let factor = exp::<FUSED>(*most - now);
    let mut lanes = [0f32; 16];
    let mut blocks = scores.chunks_exact_mut(16);
    for block in &mut blocks {
        for (score, lane) in block.iter_mut().zip(&mut lanes) {
            *score = exp::<FUSED>(*score - now);
            *lane += *score;
        }
    }
    let mut added = 0.0;
    for score in blocks.into_remainder() {
        *score = exp::<FUSED>(*score - now);
        added += *score;
    }
    for lane in lanes {
        added += lane;
    }
    *most = now;
    *sum = *sum * factor + added;
    if factor != 1.0 {
        for value in attended {
            *value *= factor;
        }
    }
}
widest!(fn share(
    seen: usize,
    scores: &mut [f32],
    most: &mut f32,
    sum: &mut f32,
    attended: &mut [f32],
) = share_inline);

/// Rows, those of `left`, times a matrix that stays in the first cache: (rows, inner) · (inner, width).
#[derive(Clone, Copy)]
struct Product<'a> {
    left: &'a [f32],
    /// From a row of `left` to the next one.
    stride: usize,
    right: &'a [f32],
    width: usize,
}

/// Adds a product to `sums` (rows, width).
fn add_product(product: Product, sums: &mut [f32]) {
    processor().run(AddProduct { product, sums });
}

struct AddProduct<'a> {
    product: Product<'a>,
    sums: &'a mut [f32],
}

/// Rows whose sums stay in registers while the right matrix goes by, and vectors of each of them.
const TOGETHER: usize = 4;
/// Vectors of the sums of a row alone: enough of them that none waits for the addition before it.
const ALONE: usize = 8;

impl WithSimd for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut product, mut sums } = self;
        // With fewer registers half as many rows, so that sums and what is multiplied still fit.
        let most = if S::REGISTER_COUNT >= 32 { TOGETHER } else { TOGETHER / 2 };
        while !sums.is_empty() {
            let rows = if sums.len() >= most * product.width { most } else { 1 };
            let (of_these, others) = sums.split_at_mut(rows * product.width);
            match rows {
                1 => product.add::<S, 1, ALONE>(simd, of_these),
                2 => product.add::<S, 2, TOGETHER>(simd, of_these),
                _ => product.add::<S, TOGETHER, TOGETHER>(simd, of_these),
            }
            sums = others;
            product.left = product.left.get(rows * product.stride..).unwrap_or_default();
        }
    }
}

impl Product<'_> {
    /// Adds to `R` rows of sums, `N` vectors at a time.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const N: usize>(self, simd: S, sums: &mut [f32]) {
        let whole = self.width / S::F32_LANES * S::F32_LANES;
        let mut first = 0;
        while first + N * S::F32_LANES <= whole {
            self.add_vectors::<S, R, N>(simd, first, sums);
            first += N * S::F32_LANES;
        }
        while first < whole {
            self.add_vectors::<S, R, 1>(simd, first, sums);
            first += S::F32_LANES;
        }
        for (sums, left) in sums.chunks_exact_mut(self.width).zip(self.left.chunks(self.stride)) {
            for (place, sum) in sums.iter_mut().enumerate().skip(whole) {
                for (left, right) in left.iter().zip(self.right.chunks_exact(self.width)) {
                    *sum += left * right[place];
                }
            }
        }
    }

    /// Adds to the `N` vectors from `first` on of each row.
    #[inline(always)]
    fn add_vectors<S: Simd, const R: usize, const N: usize>(self, simd: S, first: usize, sums: &mut [f32]) {
        let Self { left, stride, right, width } = self;
        let inner = right.len() / width;
        let left: [&[f32]; R] = std::array::from_fn(|row| &left[row * stride..][..inner]);
        let mut registers = [[simd.splat_f32s(0.0); N]; R];
        for (row, registers) in registers.iter_mut().enumerate() {
            registers.copy_from_slice(&S::as_simd_f32s(&sums[row * width + first..]).0[..N]);
        }
        for (place, right) in right.chunks_exact(width).enumerate().take(inner) {
            let right = &S::as_simd_f32s(&right[first..]).0[..N];
            for (registers, left) in registers.iter_mut().zip(left) {
                let left = simd.splat_f32s(left[place]);
                for (sum, right) in registers.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(left, *right, *sum);
                }
            }
        }
        for (row, registers) in registers.iter().enumerate() {
            S::as_mut_simd_f32s(&mut sums[row * width + first..]).0[..N].copy_from_slice(registers);
        }
    }
}
