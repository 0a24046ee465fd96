//! A tensor's numbers as bytes, little end first, as every format here wants them.

use std::io::{Error, Result, Write};

use candle_core::{CpuStorage, DType, Storage, Tensor};

/// Numbers converted at a time.
const BLOCK: usize = 1 << 16;

/// Writes the numbers row by row.
pub(super) fn write(tensor: &Tensor, out: &mut dyn Write) -> Result<()> {
    let tensor = tensor
        .to_device(&candle_core::Device::Cpu)
        .and_then(|tensor| tensor.contiguous())
        .map_err(Error::other)?;
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().unwrap_or((0, 0));
    let Storage::Cpu(storage) = &*storage else { return Err(Error::other("the tensor is not on the CPU")) };
    match storage {
        CpuStorage::U8(values) => out.write_all(&values[start..end]),
        CpuStorage::U32(values) => convert(&values[start..end], u32::to_le_bytes, out),
        CpuStorage::I16(values) => convert(&values[start..end], i16::to_le_bytes, out),
        CpuStorage::I32(values) => convert(&values[start..end], i32::to_le_bytes, out),
        CpuStorage::I64(values) => convert(&values[start..end], i64::to_le_bytes, out),
        CpuStorage::BF16(values) => convert(&values[start..end], half::bf16::to_le_bytes, out),
        CpuStorage::F16(values) => convert(&values[start..end], half::f16::to_le_bytes, out),
        CpuStorage::F32(values) => convert(&values[start..end], f32::to_le_bytes, out),
        CpuStorage::F64(values) => convert(&values[start..end], f64::to_le_bytes, out),
        _ => Err(unsupported(tensor.dtype())),
    }
}

fn convert<T: Copy, const N: usize>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
    out: &mut dyn Write,
) -> Result<()> {
    let mut buffer = Vec::with_capacity(BLOCK * N);
    for block in values.chunks(BLOCK) {
        buffer.clear();
        block.iter().for_each(|value| buffer.extend_from_slice(&bytes(*value)));
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// The error of a dtype that no file of ours holds.
pub(super) fn unsupported(dtype: DType) -> Error {
    Error::other(format!("numbers of type {} cannot be written", dtype.as_str()))
}
