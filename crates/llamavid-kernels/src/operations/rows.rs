//! Reading tensors as rows of f32, and summing over rows.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::instructions::vector::widest;

/// Values of rows that one task takes at a time: some hundred kilobytes, so that tasks cost little and the cores
/// stay busy. The number of tasks depends on the shape only, and with it the order of every sum.
const VALUES_OF_A_TASK: usize = 1 << 15;

/// Rows of a task, for rows of `width`.
pub(crate) fn rows_of_a_task(width: usize) -> usize {
    (VALUES_OF_A_TASK / width.max(1)).max(1)
}

/// Whether the fused form takes these inputs: f32 on a CPU, all of them.
pub(crate) fn fusible(inputs: &[&Tensor]) -> bool {
    inputs.iter().all(|input| input.device().is_cpu() && input.dtype() == DType::F32)
}

/// The dtype in which numbers of `x` are added up: f64 stays, all others become f32.
pub(crate) fn accumulation_dtype(x: &Tensor) -> DType {
    if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The values of a contiguous f32 tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a tensor of layout {layout:?} is not contiguous"),
    }
}

/// Runs `read` on the values of some f32 tensors of a CPU; one that is not contiguous is copied.
pub(crate) fn with_values<const N: usize, T>(
    tensors: [&Tensor; N],
    read: impl FnOnce([&[f32]; N]) -> Result<T>,
) -> Result<T> {
    let tensors: Vec<Tensor> =
        tensors.iter().map(|tensor| tensor.detach().contiguous()).collect::<Result<_>>()?;
    let storages: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&storages) {
        *slice = match &**storage {
            Storage::Cpu(storage) => values(storage, layout)?,
            _ => bail!("a tensor of another device than the CPU"),
        };
    }
    read(slices)
}

/// A tensor of the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The last dimension, 1 of a scalar.
pub(crate) fn width(shape: &Shape) -> usize {
    shape.dims().last().copied().unwrap_or(1)
}

/// The sum of each column of rows of `width`.
pub(crate) fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    sum_parts(
        values
            .par_chunks(rows_of_a_task(width) * width.max(1))
            .map(|rows| {
                let mut sums = vec![0f32; width];
                add_rows(rows, &mut sums);
                sums
            })
            .collect(),
        width,
    )
}

#[inline(always)]
fn add_rows_inline<const FUSED: bool>(rows: &[f32], sums: &mut [f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
widest!(
    /// Adds each column of rows as wide as `sums`.
    pub(crate) fn add_rows(rows: &[f32], sums: &mut [f32]) = add_rows_inline
);

/// The mean of the rows of each sequence (B, R, h), added up in f32: (B, 1, h) in the dtype of `x`.
pub fn mean_of_rows(x: &Tensor) -> Result<Tensor> {
    let (batch, rows, width) = x.dims3()?;
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), false, &[apart, row, 1]) =
        (&*storage, x.track_op(), layout.stride())
    else {
        return x.to_dtype(DType::F32)?.mean_keepdim(1)?.to_dtype(x.dtype());
    };
    let scale = (1.0 / rows as f64) as f32;
    let mut means = vec![0f32; batch * width];
    means.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(index, means)| {
        let values = &values[layout.start_offset() + index * apart..];
        (0..rows).for_each(|index| add_rows(&values[index * row..][..width], means));
        means.iter_mut().for_each(|mean| *mean *= scale);
    });
    Tensor::from_vec(means, (batch, 1, width), &Device::Cpu)
}

/// Adds up what the tasks found, in their order.
pub(crate) fn sum_parts(parts: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut sums = vec![0f32; width];
    for part in parts {
        add_rows(&part, &mut sums);
    }
    sums
}
