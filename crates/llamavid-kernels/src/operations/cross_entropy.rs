//! Cross-entropy over a vocabulary.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::instructions::vector::{exp, largest, sum_of, widest};
use crate::operations::rows::{accumulation_dtype, fusible, rows_of_a_task, tensor, values, with_values};

/// The label of a row that doesn't count.
pub const IGNORED: i64 = -100;

/// Sum over rows of the negative log-probability of the label, and how many rows that is.
///
/// `logits` are (N, vocabulary), `labels` (N) i64; rows labelled [`IGNORED`] do not count. The sum is a scalar, f32 for half precision,
/// so that batches of several parts can be divided by the tokens of all of them. Any other label outside the
/// vocabulary is an error.
pub fn cross_entropy_sum(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, usize)> {
    let (rows, vocabulary) = logits.dims2()?;
    let labels = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    if labels.len() != rows {
        bail!("cross-entropy of {rows} rows needs as many labels, not {}", labels.len());
    }
    if let Some(label) =
        labels.iter().find(|&&label| label != IGNORED && !(0..vocabulary as i64).contains(&label))
    {
        bail!("label {label} is outside the vocabulary of {vocabulary}");
    }
    let count = labels.iter().filter(|&&label| label != IGNORED).count();
    if fusible(&[logits]) {
        return Ok((logits.contiguous()?.apply_op1(CrossEntropy { labels })?, count));
    }
    let logits = logits.to_dtype(accumulation_dtype(logits))?;
    let device = logits.device();
    let counted: Vec<f32> = labels.iter().map(|&label| if label == IGNORED { 0.0 } else { 1.0 }).collect();
    let counted = Tensor::from_vec(counted, (rows, 1), device)?.to_dtype(logits.dtype())?;
    let places: Vec<u32> = labels.iter().map(|&label| u32::try_from(label).unwrap_or(0)).collect();
    let places = Tensor::from_vec(places, (rows, 1), device)?;
    let largest = logits.max_keepdim(1)?.detach();
    let shifted = logits.broadcast_sub(&largest)?;
    let losses = (shifted.exp()?.sum_keepdim(1)?.log()? - shifted.gather(&places, 1)?)?;
    Ok(((losses * counted)?.sum_all()?, count))
}

/// Mean over the rows that count of the negative log-probability of the label; see [`cross_entropy_sum`].
///
/// 0 when no row counts.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (sum, count) = cross_entropy_sum(logits, labels)?;
    sum / count.max(1) as f64
}

struct CrossEntropy {
    labels: Vec<i64>,
}

/// The largest logit of a row, and the sum of e^(logit - largest).
#[inline(always)]
fn partition<const FUSED: bool>(row: &[f32]) -> (f32, f32) {
    let largest = largest(row);
    (largest, sum_of(row.len(), |place| exp::<FUSED>(row[place] - largest)))
}

/// In f64: a sum of thousands of losses has few digits left in f32.
#[inline(always)]
fn losses_inline<const FUSED: bool>(logits: &[f32], labels: &[i64]) -> f64 {
    let mut loss = 0.0;
    for (row, label) in logits.chunks_exact(logits.len() / labels.len().max(1)).zip(labels) {
        if *label != IGNORED {
            let (largest, sum) = partition::<FUSED>(row);
            loss += f64::from(sum.ln() + largest - row[*label as usize]);
        }
    }
    loss
}
widest!(fn losses(logits: &[f32], labels: &[i64]) -> f64 = losses_inline);

#[inline(always)]
fn differentiate_inline<const FUSED: bool>(
    logits: &[f32],
    labels: &[i64],
    gradient: f32,
    result: &mut [f32],
) {
    let width = logits.len() / labels.len().max(1);
    for ((result, row), label) in result.chunks_exact_mut(width).zip(logits.chunks_exact(width)).zip(labels) {
        if *label == IGNORED {
            continue;
        }
        let largest = largest(row);
        for (result, value) in result.iter_mut().zip(row) {
            *result = exp::<FUSED>(value - largest);
        }
        let scale = gradient / sum_of(width, |place| result[place]);
        for result in result.iter_mut() {
            *result *= scale;
        }
        result[*label as usize] -= gradient;
    }
}
widest!(fn differentiate(logits: &[f32], labels: &[i64], gradient: f32, result: &mut [f32]) = differentiate_inline);

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_rows, vocabulary) = layout.shape().dims2()?;
        let logits = values(logits, layout)?;
        let rows = rows_of_a_task(vocabulary);
        let tasks = logits.par_chunks(rows * vocabulary.max(1)).zip(self.labels.par_chunks(rows));
        // Collected first: the order of a parallel sum would depend on the threads.
        let losses: Vec<f64> = tasks.map(|(logits, labels)| losses(logits, labels)).collect();
        Ok((CpuStorage::F32(vec![losses.iter().sum::<f64>() as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_rows, vocabulary) = logits.dims2()?;
        let gradient = gradient.to_scalar::<f32>()?;
        let of_logits = with_values([logits], |[logits]| {
            let mut of_logits = vec![0f32; logits.len()];
            let rows = rows_of_a_task(vocabulary);
            let task = rows * vocabulary.max(1);
            of_logits
                .par_chunks_mut(task)
                .zip(logits.par_chunks(task))
                .zip(self.labels.par_chunks(rows))
                .for_each(|((result, logits), labels)| differentiate(logits, labels, gradient, result));
            Ok(of_logits)
        })?;
        tensor(of_logits, logits.shape()).map(Some)
    }
}
