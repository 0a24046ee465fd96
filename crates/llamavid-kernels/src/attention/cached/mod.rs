//! Attention of new positions over all that a sequence has passed, whose keys and values are held as they are or in blocks.
//!
//! The scores of a row exist for some keys at a time: sums of what came before are scaled anew when a larger score turns
//! up, so that the whole row never has to. Keys and values are read once for all query heads that share them, in one of several ways
//! ([`reading`]), and are never copied. Letters as in [`crate::attention()`]; T positions.
//!
//! Reference: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867).

#[cfg(target_arch = "x86_64")]
mod in_pieces;
#[cfg(target_arch = "x86_64")]
mod in_tiles;
mod reading;

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use self::reading::{KEYS_OF_FEW_ROWS, Reading};
use crate::attention::hidden;
use crate::instructions::vector::{exp_of_negative, largest, widest};
use crate::operations::rotary::rotary_embedding;
use crate::operations::rows::{fusible, tensor, with_values};
use crate::operations::softmax::add_bias;
use crate::products::{PARALLEL, Weights};
use crate::{BlockFormat, DeviceRows};

/// Query rows of a task, of all heads that share keys.
const QUERY_ROWS: usize = 128;
/// Keys that are worth a task.
const MIN_KEYS: usize = 512;

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
            with_values([q, keys, values], |[q, k, v]| run(q, Weights::F32(k), Weights::F32(v)))
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
    /// The sum of the probabilities of each row, which are not normalised before the end.
    sums: Vec<f32>,
    /// The values, each times its probability, (rows, d).
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
        let keys = self.length.div_ceil(parts).next_multiple_of(KEYS_OF_FEW_ROWS).max(MIN_KEYS);
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
        let mut reading = Reading::new(&block.queries, self.width, self.keys.format());
        let at_once = reading.at_once;
        let mut scores = vec![0f32; count * at_once];
        let end = part.end.min(before + rows);
        for from in (part.start..end).step_by(at_once) {
            let keys = at_once.min(end - from);
            let places = places + from..places + from + keys;
            let of_keys = self.keys.part(places.clone(), self.width);
            reading.score(&block.queries, of_keys, keys, &mut scores);
            for (index, scores) in scores.chunks_exact_mut(at_once).enumerate() {
                // A row sees the keys up to its own place.
                let seen = (before + index % rows + 1).saturating_sub(from).min(keys);
                if let Some(hidden) = self.hidden {
                    hide(&hidden[sequence * self.length + from..][..seen], &mut scores[..seen]);
                }
                let attended = &mut block.attended[index * self.width..(index + 1) * self.width];
                exponentiate(seen, scores, &mut block.largest[index], &mut block.sums[index], attended);
            }
            reading.add_weighted(self.values.part(places, self.width), keys, &scores, &mut block.attended);
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
}

widest!(fn hide(hidden: &[f32], scores: &mut [f32]) = add_bias);

/// A step of the online softmax: turns the first `seen` scores into probabilities, the others into 0, and rescales what
/// was found with smaller scores.
#[inline(always)]
fn exponentiate_inline<const FUSED: bool>(
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
    let factor = exp_of_negative::<FUSED>(*most - now);
    let mut lanes = [0f32; 16];
    let mut blocks = scores.chunks_exact_mut(16);
    for block in &mut blocks {
        for (score, lane) in block.iter_mut().zip(&mut lanes) {
            *score = exp_of_negative::<FUSED>(*score - now);
            *lane += *score;
        }
    }
    let mut added = 0.0;
    for score in blocks.into_remainder() {
        *score = exp_of_negative::<FUSED>(*score - now);
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
widest!(fn exponentiate(
    seen: usize,
    scores: &mut [f32],
    most: &mut f32,
    sum: &mut f32,
    attended: &mut [f32],
) = exponentiate_inline);
