//! Attention of new positions over all that a sequence has passed, whose keys and values are held as they are or in blocks.
//!
//! The scores of a row exist for some keys at a time: sums of what came before are scaled anew when a larger score turns
//! up, so that the whole row never has to. Keys and values are read once for all query heads that share them, and are
//! never copied; those in blocks are unpacked in the cache of a core. Letters as in [`crate::attention()`]; T positions.
//!
//! Reference: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867).

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::matrix::{Matrix, multiply};
use crate::processor::processor;
use crate::products::{Layer, Weights};
use crate::rotary::rotary_embedding;
use crate::rows::{fusible, tensor, with_values};
use crate::vector::{exp, largest, widest};
use crate::{BlockFormat, DeviceRows};

/// Query rows of a task, of all heads that share keys.
const QUERY_ROWS: usize = 64;
/// Keys whose scores exist at once.
const KEYS: usize = 256;
/// Query rows up to which values are added up row by row, and not as a product of matrices.
const FEW: usize = 8;

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
    let hidden = match padding {
        Some(padding) => {
            let seen = padding.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Some(seen.iter().map(|seen| if *seen == 0.0 { f32::MIN } else { 0.0 }).collect::<Vec<_>>())
        }
        None => None,
    };
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

impl Cached<'_> {
    fn run(&self, batch: usize) -> Vec<f32> {
        let mut result = vec![0f32; batch * self.queries * self.heads * self.width];
        let rows = (QUERY_ROWS / self.group).max(1);
        let blocks = self.queries.div_ceil(rows);
        let key_heads = self.heads / self.group;
        let tasks: Vec<_> = (0..batch * key_heads * blocks)
            .into_par_iter()
            .map(|task| {
                let (head, block) = (task / blocks, task % blocks);
                let first = block * rows;
                self.attend(head / key_heads, head % key_heads, first, rows.min(self.queries - first))
            })
            .collect();
        for (task, attended) in tasks.iter().enumerate() {
            let (head, block) = (task / blocks, task % blocks);
            let (sequence, first_head) = (head / key_heads, head % key_heads * self.group);
            let rows = attended.len() / (self.group * self.width).max(1);
            for (index, row) in attended.chunks_exact(self.width.max(1)).enumerate() {
                let query = block * (QUERY_ROWS / self.group).max(1) + index % rows;
                let at = (sequence * self.queries + query) * self.heads + first_head + index / rows;
                result[at * self.width..(at + 1) * self.width].copy_from_slice(row);
            }
        }
        result
    }

    /// What `rows` queries from `first` on get in all heads of a key head, (heads, rows, d).
    fn attend(&self, sequence: usize, key_head: usize, first: usize, rows: usize) -> Vec<f32> {
        let mut block = self.begin(sequence, key_head, first, rows);
        let count = block.largest.len();
        let places = (sequence * (self.heads / self.group) + key_head) * self.capacity;
        let before = self.length - self.queries + first;
        let mut scores = vec![0f32; count * KEYS];
        let mut unpacked = Vec::new();
        for from in (0..before + rows).step_by(KEYS) {
            let keys = KEYS.min(before + rows - from);
            let scores = &mut scores[..count * keys];
            // A few rows read keys in blocks as they lie; many are worth unpacking them for.
            let key_rows = match self.part(self.keys, places + from, keys) {
                blocks if count <= FEW => blocks,
                key_rows => Weights::Numbers(numbers(key_rows, keys * self.width, &mut unpacked)),
            };
            Layer { weights: key_rows, rows: keys, columns: self.width, bias: None }
                .write_exactly(&block.queries, scores);
            for (index, scores) in scores.chunks_exact_mut(keys).enumerate() {
                // A row sees the keys up to its own place.
                let seen = (before + index % rows + 1).saturating_sub(from).min(keys);
                if let Some(hidden) = self.hidden {
                    hide(&hidden[sequence * self.length + from..][..seen], &mut scores[..seen]);
                }
                let attended = &mut block.attended[index * self.width..(index + 1) * self.width];
                share(seen, scores, &mut block.largest[index], &mut block.sums[index], attended);
            }
            let values = self.part(self.values, places + from, keys);
            let values = numbers(values, keys * self.width, &mut unpacked);
            if count <= FEW {
                let sums = &mut block.attended;
                processor().run(AddShares { shares: scores, values, width: self.width, sums });
            } else {
                let shares = Matrix::new(scores, count, keys);
                multiply(shares, Matrix::new(values, keys, self.width), &mut block.attended, true, false);
            }
        }
        for (row, sum) in block.attended.chunks_exact_mut(self.width.max(1)).zip(&block.sums) {
            row.iter_mut().for_each(|value| *value /= sum);
        }
        block.attended
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

    /// `count` rows from `first` on.
    fn part<'a>(&self, rows: Weights<'a>, first: usize, count: usize) -> Weights<'a> {
        match rows {
            Weights::Numbers(values) => {
                Weights::Numbers(&values[first * self.width..(first + count) * self.width])
            }
            Weights::Blocks(format, bytes) => {
                let row = self.width / format.block_length() * format.block_bytes();
                Weights::Blocks(format, &bytes[first * row..(first + count) * row])
            }
        }
    }
}

/// `count` numbers as they are, or unpacked.
fn numbers<'a>(rows: Weights<'a>, count: usize, unpacked: &'a mut Vec<f32>) -> &'a [f32] {
    match rows {
        Weights::Numbers(values) => values,
        Weights::Blocks(format, bytes) => {
            unpacked.resize(count, 0.0);
            format.decode(bytes, unpacked);
            unpacked
        }
    }
}

#[inline(always)]
fn hide_inline<const FUSED: bool>(hidden: &[f32], scores: &mut [f32]) {
    for (score, hidden) in scores.iter_mut().zip(hidden) {
        // A sum below the smallest f32 would be infinite, and a row of those no number.
        let sum = *score + hidden;
        *score = if sum < f32::MIN { f32::MIN } else { sum };
    }
}
widest!(fn hide(hidden: &[f32], scores: &mut [f32]) = hide_inline);

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

/// Adds values (keys, width), each times its share, to `sums` (rows, width); `shares` are (rows, keys).
struct AddShares<'a> {
    shares: &'a [f32],
    values: &'a [f32],
    width: usize,
    sums: &'a mut [f32],
}

/// Vectors of sums that stay in registers while the values go by.
const SUMS: usize = 8;

impl WithSimd for AddShares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { shares, values, width, sums } = self;
        let keys = values.len() / width.max(1);
        let (step, whole) = (SUMS * S::F32_LANES, width / S::F32_LANES * S::F32_LANES);
        for (row, shares) in sums.chunks_exact_mut(width).zip(shares.chunks_exact(keys)) {
            let mut first = 0;
            while first + step <= whole {
                add_vectors::<S, SUMS>(simd, shares, &values[first..], width, &mut row[first..]);
                first += step;
            }
            while first < whole {
                add_vectors::<S, 1>(simd, shares, &values[first..], width, &mut row[first..]);
                first += S::F32_LANES;
            }
            for (place, sum) in row.iter_mut().enumerate().skip(whole) {
                for (share, values) in shares.iter().zip(values.chunks_exact(width)) {
                    *sum += share * values[place];
                }
            }
        }
    }
}

/// Adds the first `N` vectors of rows of `width`, each times its share.
#[inline(always)]
fn add_vectors<S: Simd, const N: usize>(
    simd: S,
    shares: &[f32],
    values: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    let sums = &mut S::as_mut_simd_f32s(sums).0[..N];
    let mut registers = [simd.splat_f32s(0.0); N];
    registers.copy_from_slice(sums);
    for (share, values) in shares.iter().zip(values.chunks(width)) {
        let share = simd.splat_f32s(*share);
        let values = S::as_simd_f32s(values).0;
        for (sum, value) in registers.iter_mut().zip(&values[..N]) {
            *sum = simd.mul_add_e_f32s(share, *value, *sum);
        }
    }
    sums.copy_from_slice(&registers);
}
