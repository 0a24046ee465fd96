//! Attention of few queries over many rows, without their keys and values.
//!
//! A score q (W x + b) is (q W) x and q b, which is the same for all rows and so nothing to a softmax; and a mean of W x + b is W
//! times the mean of x, and b. With few queries it is cheaper to multiply those, and what they saw, with the weights than all
//! rows. Letters: F frames, R queries of a frame, N rows of a frame, V their width, H heads, d head width.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::matrix::{Matrix, multiply};
use crate::rows::{fusible, tensor, with_values};
use crate::softmax::{normalise, softmax};

/// Heads that a task takes together: enough queries that laying out a frame's rows is worth it.
const TASK_HEADS: usize = 4;

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
            with_values([queries, rows, key, value], |values| tensor(sizes.attend(values), queries.shape()))?
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
    let shares = softmax(&scores.to_dtype(DType::F32)?)?.to_dtype(rows.dtype())?;
    let seen = shares.matmul(rows)?.reshape((frames, heads, count, visual))?;
    let seen = seen.transpose(0, 1)?.contiguous()?.flatten(1, 2)?; // (H, F * R, V)
    let attended = seen.matmul(&by_head(value)?.t()?)?; // (H, F * R, d)
    attended.transpose(0, 1)?.contiguous()?.reshape((frames, count, width))
}

struct Sizes {
    frames: usize,
    count: usize,
    length: usize,
    visual: usize,
    heads: usize,
    head_width: usize,
}

impl Sizes {
    /// Each task takes a few heads of a frame, from the queries to what they saw.
    fn attend(&self, [queries, rows, key, value]: [&[f32]; 4]) -> Vec<f32> {
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
                let mut shares = vec![0f32; some * count * length];
                let queries = some * count;
                multiply(Matrix::new(&folded, queries, visual), rows.transposed(), &mut shares, false, false);
                normalise(length, &mut shares);
                let seen = &mut folded;
                multiply(Matrix::new(&shares, queries, length), rows, seen, false, false);
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
}
