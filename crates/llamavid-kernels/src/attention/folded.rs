//! Attention of few queries over many rows, without their keys and values.
//!
//! A score q (W x + b) is (q W) x and q b, which is the same for all rows and so nothing to a softmax; and a mean of W x + b is W
//! times the mean of x, and b. With few queries it is cheaper to multiply those, and what they saw, with the weights than all
//! rows. Letters: F frames, R queries of a frame, N rows of a frame, V their width, H heads, d head width.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::formats::block_format::BlockFormat;
#[cfg(target_arch = "x86_64")]
use crate::instructions::prefetch::CACHE_LINE;
use crate::instructions::processor::{Processor, processor};
use crate::operations::rows::{fusible, tensor, with_values};
use crate::operations::softmax::{normalise, softmax};
use crate::products::matrix::{Matrix, multiply};
#[cfg(target_arch = "x86_64")]
use crate::products::panels::Panels;
#[cfg(target_arch = "x86_64")]
use crate::products::pieces::{self, transpose};
#[cfg(target_arch = "x86_64")]
use crate::products::{Layer, Output, Weights};

/// Heads that a task takes together: enough queries that laying out a frame's rows is worth it.
const TASK_HEADS: usize = 4;

/// The layer of weights in rows of `columns`.
#[cfg(target_arch = "x86_64")]
fn layer(weights: &[f32], columns: usize) -> Layer<'_> {
    Layer { weights: Weights::F32(weights), rows: weights.len() / columns, columns, bias: None }
}

/// Rows of queries that are folded together at least.
#[cfg(target_arch = "x86_64")]
const FOLDED_ROWS: usize = 128;
/// f32 numbers of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE_FLOATS: usize = CACHE_LINE / size_of::<f32>();

/// Attention of `queries` (F, R, H · d) over `rows` (F, N, V), of which `key` and `value` (H · d, V) would make keys and
/// values; the value's `bias` is (H · d). Gives (F, R, H · d).
///
/// There is no backward pass: whoever trains makes keys and values.
pub fn folded_attention(
    queries: &Tensor,
    rows: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (frames, count, width) = queries.dims3()?;
    let (found, length, visual) = rows.dims3()?;
    let weights = [key.dims2()?, value.dims2()?];
    if found != frames || weights != [(width, visual); 2] || heads == 0 || !width.is_multiple_of(heads) {
        bail!(
            "queries {:?} of {heads} heads, rows {:?} and weights {weights:?} do not go together",
            queries.shape(),
            rows.shape()
        );
    }
    let attended = match fusible(&[queries, rows, key, value]) && length > 0 {
        true => {
            let sizes = Sizes { frames, count, length, visual, heads, head_width: width / heads };
            with_values([queries, rows, key, value], |values| {
                tensor(sizes.attend(processor(), values), queries.shape())
            })?
        }
        false => decomposed(queries, rows, key, value, heads)?,
    };
    match bias {
        Some(bias) => attended.broadcast_add(bias),
        None => Ok(attended),
    }
}

/// The same by operations of their own.
fn decomposed(queries: &Tensor, rows: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    let (frames, count, width) = queries.dims3()?;
    let (_frames, _rows, visual) = rows.dims3()?;
    let head_width = width / heads;
    let by_head = |weight: &Tensor| weight.reshape((heads, head_width, visual)); // (H, d, V)
    let queries = (queries.reshape((frames * count, heads, head_width))? / (head_width as f64).sqrt())?;
    let folded = queries.transpose(0, 1)?.contiguous()?.matmul(&by_head(key)?)?; // (H, F * R, V)
    let folded = folded.reshape((heads, frames, count, visual))?.transpose(0, 1)?.contiguous()?;
    let scores = folded.flatten(1, 2)?.matmul(&rows.t()?)?; // (F, H * R, N)
    let probabilities = softmax(&scores.to_dtype(DType::F32)?)?.to_dtype(rows.dtype())?;
    let seen = probabilities.matmul(rows)?.reshape((frames, heads, count, visual))?;
    let seen = seen.transpose(0, 1)?.contiguous()?.flatten(1, 2)?; // (H, F * R, V)
    let attended = seen.matmul(&by_head(value)?.t()?)?; // (H, F * R, d)
    attended.transpose(0, 1)?.contiguous()?.reshape((frames, count, width))
}

#[derive(Debug)]
struct Sizes {
    frames: usize,
    count: usize,
    length: usize,
    visual: usize,
    heads: usize,
    head_width: usize,
}

impl Sizes {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "one way there"))]
    fn attend(&self, processor: Processor, values: [&[f32]; 4]) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        if [self.frames, self.heads]
            .iter()
            .all(|times| pieces::pay(processor, BlockFormat::F32, times * self.count))
        {
            // SAFETY: pieces pay there.
            return unsafe { self.attend_in_pieces(processor, values) };
        }
        self.attend_by_heads(values)
    }

    /// Each task takes a few heads of a frame, from the queries to what they saw.
    fn attend_by_heads(&self, [queries, rows, key, value]: [&[f32]; 4]) -> Vec<f32> {
        let Self { frames, count, length, visual, heads, head_width } = *self;
        let width = heads * head_width;
        let groups = heads.div_ceil(TASK_HEADS);
        let attended: Vec<Vec<f32>> = (0..frames * groups)
            .into_par_iter()
            .map(|task| {
                let (frame, first) = (task / groups, task % groups * TASK_HEADS);
                let some = TASK_HEADS.min(heads - first);
                let rows = Matrix::new(&rows[frame * length * visual..][..length * visual], length, visual);
                let of_head = |head: usize| (first + head) * head_width * visual;
                let scale = (head_width as f32).sqrt().recip();
                let scaled: Vec<f32> = queries[frame * count * width..][..count * width]
                    .chunks_exact(width)
                    .flat_map(|query| &query[first * head_width..][..some * head_width])
                    .map(|number| number * scale)
                    .collect();
                let mut folded = vec![0f32; some * count * visual];
                for (head, folded) in folded.chunks_exact_mut(count * visual).enumerate() {
                    let query =
                        Matrix::strided(&scaled[head * head_width..], count, head_width, some * head_width);
                    let key = Matrix::new(&key[of_head(head)..], head_width, visual);
                    multiply(query, key, folded, false, false);
                }
                let mut probabilities = vec![0f32; some * count * length];
                let queries = some * count;
                multiply(
                    Matrix::new(&folded, queries, visual),
                    rows.transposed(),
                    &mut probabilities,
                    false,
                    false,
                );
                normalise(length, length, &mut probabilities);
                let seen = &mut folded;
                multiply(Matrix::new(&probabilities, queries, length), rows, seen, false, false);
                let mut attended = vec![0f32; some * count * head_width];
                for (head, attended) in attended.chunks_exact_mut(count * head_width).enumerate() {
                    let seen = Matrix::new(&seen[head * count * visual..], count, visual);
                    let value = Matrix::new(&value[of_head(head)..], head_width, visual).transposed();
                    multiply(seen, value, attended, false, false);
                }
                attended
            })
            .collect();
        // From heads of a frame one after the other to those of each query.
        let mut result = vec![0f32; frames * count * width];
        for (task, attended) in attended.iter().enumerate() {
            let (frame, first) = (task / groups, task % groups * TASK_HEADS);
            for (head, attended) in attended.chunks_exact(count * head_width).enumerate() {
                for (query, attended) in attended.chunks_exact(head_width).enumerate() {
                    let start = (frame * count + query) * width + (first + head) * head_width;
                    result[start..start + head_width].copy_from_slice(attended);
                }
            }
        }
        result
    }

    /// In tiles, which are worth it for many rows: a head's queries of some frames are folded together, and then a frame's heads see its
    /// rows together. What is folded is (F, R, H, V), so that both are rows of it.
    ///
    /// # Safety
    /// [`pieces::pay`] was true of so many rows.
    #[cfg(target_arch = "x86_64")]
    unsafe fn attend_in_pieces(
        &self,
        processor: Processor,
        [queries, rows, key, value]: [&[f32]; 4],
    ) -> Vec<f32> {
        let Self { frames, count, length, visual, heads, head_width } = *self;
        let width = heads * head_width;
        let scale = (head_width as f32).sqrt().recip();
        let mut keys = vec![0f32; width * visual]; // (H, V, d)
        keys.par_chunks_exact_mut(head_width * visual)
            .zip(key.par_chunks_exact(head_width * visual))
            .for_each(|(into, key)| {
                // SAFETY: as the caller promises.
                unsafe { transpose(key, visual, into, head_width) };
                into.iter_mut().for_each(|number| *number *= scale);
            });
        let together = FOLDED_ROWS.div_ceil(count).max(rayon::current_num_threads()).min(frames);
        let mut folded = vec![0f32; together * count * heads * visual];
        let mut result = vec![0f32; frames * count * width];
        let of_frames = result
            .chunks_mut(together * count * width)
            .zip(queries.chunks(together * count * width))
            .zip(rows.chunks(together * length * visual));
        for ((result, queries), rows) in of_frames {
            let rows_of_all = queries.len() / width;
            let folded = &mut folded[..rows_of_all * heads * visual];
            let output = Output::new(folded, heads * visual);
            (0..heads).into_par_iter().for_each(|head| {
                let layer = layer(&keys[head * head_width * visual..][..head_width * visual], head_width);
                let x = &queries[head * head_width..];
                let panels = Panels { processor, layer, x, stride: width, count: rows_of_all, add: false };
                // SAFETY: what is folded is borrowed for this, and each head writes columns of its own.
                unsafe { panels.multiply(output.beside(head * visual), true) };
            });
            let of_frames = folded.par_chunks_exact_mut(count * heads * visual);
            of_frames.zip(rows.par_chunks_exact(length * visual)).for_each_init(
                || (Vec::new(), Vec::new()),
                |(probabilities, turned), (folded, rows)| {
                    // Rows of an odd number of cache lines each lie in different sets of the caches.
                    let stride = (length.div_ceil(LINE_FLOATS) | 1) * LINE_FLOATS;
                    let queries = count * heads;
                    // Behind the end of a row they stay 0.
                    probabilities.resize(queries * stride, 0f32);
                    turned.resize(visual * stride, 0f32);
                    let scores = Panels {
                        processor,
                        layer: layer(rows, visual),
                        x: folded,
                        stride: visual,
                        count: queries,
                        add: false,
                    };
                    // SAFETY: nobody else has the scores.
                    unsafe { scores.multiply(Output::new(probabilities, stride), false) };
                    normalise(length, stride, probabilities);
                    // SAFETY: as the caller promises.
                    unsafe { transpose(rows, visual, turned, stride) };
                    let seen = Panels { layer: layer(turned, stride), x: probabilities, stride, ..scores };
                    // SAFETY: nobody else has what is folded.
                    unsafe { seen.multiply(Output::new(folded, visual), false) };
                },
            );
            let output = Output::new(result, width);
            (0..heads).into_par_iter().for_each(|head| {
                let layer = layer(&value[head * head_width * visual..][..head_width * visual], visual);
                let x = &folded[head * visual..];
                let panels =
                    Panels { processor, layer, x, stride: heads * visual, count: rows_of_all, add: false };
                // SAFETY: the result is borrowed for this, and each head writes columns of its own.
                unsafe { panels.multiply(output.beside(head * head_width), true) };
            });
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    /// Number by number, in f64.
    fn exactly(sizes: &Sizes, [queries, rows, key, value]: [&[f32]; 4]) -> Vec<f64> {
        let Sizes { frames, count, length, visual, heads, head_width } = *sizes;
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut result = Vec::new();
        for (frame, query, head) in (0..frames).flat_map(|frame| {
            (0..count).flat_map(move |query| (0..heads).map(move |head| (frame, query, head)))
        }) {
            let rows: Vec<_> = rows[frame * length * visual..][..length * visual].chunks(visual).collect();
            let projected = |weight: &[f32], row: &[f32]| -> Vec<f64> {
                let weight = &weight[head * head_width * visual..][..head_width * visual];
                weight.chunks(visual).map(|weight| dot(weight, row)).collect()
            };
            let query = &queries[((frame * count + query) * heads + head) * head_width..][..head_width];
            let powers: Vec<f64> = rows
                .iter()
                .map(|row| {
                    let products = projected(key, row)
                        .into_iter()
                        .zip(query)
                        .map(|(key, query)| key * f64::from(*query));
                    (products.sum::<f64>() / (head_width as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = powers.iter().sum();
            let mut attended = vec![0f64; head_width];
            for (row, power) in rows.iter().zip(&powers) {
                attended
                    .iter_mut()
                    .zip(projected(value, row))
                    .for_each(|(sum, value)| *sum += power / total * value);
            }
            result.extend(attended);
        }
        result
    }

    #[test]
    fn every_processor_attends_to_the_same() {
        for [frames, count, length, visual, heads, head_width] in [
            [1, 1, 1, 1, 1, 1],
            [2, 7, 5, 19, 3, 4],
            [3, 32, 33, 70, 2, 16],
            [11, 30, 17, 40, 3, 8],
            [2, 50, 65, 130, 4, 5],
        ] {
            let sizes = Sizes { frames, count, length, visual, heads, head_width };
            let width = heads * head_width;
            let queries = noise(frames * count * width, 1);
            let rows = noise(frames * length * visual, 2);
            let [mut key, value] = [3, 4].map(|seed| noise(width * visual, seed));
            // Two pieces are enough for some weights.
            key.iter_mut()
                .take(width * visual / 2)
                .for_each(|number| *number = (*number * 100.0).round() / 64.0);
            let values: [&[f32]; 4] = [&queries, &rows, &key, &value];
            let expected = exactly(&sizes, values);
            let length = expected.iter().map(|number| number * number).sum::<f64>().sqrt();
            for processor in Processor::tested() {
                let found = sizes.attend(processor, values);
                let difference =
                    found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
                let error = difference.sqrt() / length;
                assert!(error < 1e-5, "{processor:?} {sizes:?}: {error}");
            }
        }
    }
}
