//! Bytes of a storage → a tensor: element types, strides, and the limits within which both are believed.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use llamavid_kernels::BlockFormat;
use rayon::prelude::*;

use crate::error::Fault;

/// More dimensions than any weight has.
const MAX_RANK: usize = 16;

/// Element types as files name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    U16,
    U32,
    Bool,
}

impl ElementType {
    /// Size in bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The same as a format of rows, which can stay where they are.
    pub(crate) fn format(self) -> Option<BlockFormat> {
        match self {
            Self::F32 => Some(BlockFormat::F32),
            Self::F16 => Some(BlockFormat::F16),
            Self::Bf16 => Some(BlockFormat::BF16),
            _ => None,
        }
    }

    /// The smallest of candle's types that holds all values.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F64 => DType::F64,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::I64 => DType::I64,
            Self::I32 => DType::I32,
            Self::I16 | Self::I8 => DType::I16,
            Self::U16 | Self::U32 => DType::U32,
            Self::U8 | Self::Bool => DType::U8,
        }
    }
}

/// Which elements of a storage make up a tensor. Checked when made, so that reading cannot leave the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    count: usize,
}

impl Layout {
    /// A view of a storage of `available` elements; `limit` bounds how many elements a view that repeats some
    /// (stride 0) may have.
    pub(crate) fn strided(
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        available: usize,
        limit: usize,
    ) -> Result<Self, Fault> {
        if shape.len() != strides.len() {
            return Err(Fault::invalid(format!("shape {shape:?} does not fit strides {strides:?}")));
        }
        let count = element_count(&shape)?;
        let outside = || {
            Fault::invalid(format!(
                "shape {shape:?} with strides {strides:?} from element {offset} leaves its storage of {available} elements"
            ))
        };
        if count > 0 {
            let mut last = offset;
            for (size, stride) in shape.iter().zip(&strides) {
                let reach = (size - 1).checked_mul(*stride).ok_or_else(outside)?;
                last = last.checked_add(reach).ok_or_else(outside)?;
            }
            if last >= available {
                return Err(outside());
            }
            if count > limit.max(available) {
                return Err(Fault::invalid(format!(
                    "shape {shape:?} repeats {available} stored elements {count} times in all, more than the file is long"
                )));
            }
        }
        Ok(Self { shape, strides, offset, count })
    }

    /// All of a storage, row by row.
    pub(crate) fn contiguous(shape: Vec<usize>, available: usize) -> Result<Self, Fault> {
        let strides = row_major(&shape);
        Self::strided(shape, strides, 0, available, available)
    }

    /// All of a storage, column by column.
    pub(crate) fn column_major(shape: Vec<usize>, available: usize) -> Result<Self, Fault> {
        let axes: Vec<usize> = (0..shape.len()).rev().collect();
        let reversed = shape.into_iter().rev().collect();
        Self::permuted(reversed, &axes, available)
    }

    /// All of a storage, row by row for `shape`, whose axes are then taken in the order of `axes`.
    pub(crate) fn permuted(shape: Vec<usize>, axes: &[usize], available: usize) -> Result<Self, Fault> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..shape.len()) {
            return Err(Fault::invalid(format!("axes {axes:?} are not those of shape {shape:?}")));
        }
        let strides = row_major(&shape);
        let taken = |values: &[usize]| axes.iter().filter_map(|axis| values.get(*axis).copied()).collect();
        Self::strided(taken(&shape), taken(&strides), 0, available, available)
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes that it takes of a file whose storage begins at `start`, when they lie there in the order of the tensor.
    pub(crate) fn contiguous_bytes(&self, element: ElementType, start: usize) -> Option<Range<usize>> {
        let at = |count: usize| start + count * element.size();
        self.is_contiguous().then(|| at(self.offset)..at(self.offset + self.count))
    }

    /// Whether the elements lie in the storage in the order of the tensor.
    pub(crate) fn is_contiguous(&self) -> bool {
        let expected = row_major(&self.shape);
        self.shape
            .iter()
            .zip(&self.strides)
            .zip(&expected)
            .all(|((size, stride), row)| *size == 1 || stride == row)
    }
}

/// Product of the sizes, if it is believable.
pub(crate) fn element_count(shape: &[usize]) -> Result<usize, Fault> {
    if shape.len() > MAX_RANK {
        return Err(Fault::invalid(format!("{} dimensions, more than {MAX_RANK}", shape.len())));
    }
    // Sizes of 0 are left out first: [0, 2^60, 2^60] must not pass, its strides overflow.
    let product = shape
        .iter()
        .filter(|size| **size != 0)
        .try_fold(1usize, |product, size| product.checked_mul(*size))
        .filter(|product| *product <= isize::MAX as usize / 8)
        .ok_or_else(|| Fault::invalid(format!("shape {shape:?} has more elements than memory can hold")))?;
    Ok(if shape.contains(&0) { 0 } else { product })
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = usize::saturating_mul(strides[axis], shape[axis].max(1));
    }
    strides
}

/// The tensor that `layout` cuts out of `storage`, with little-endian elements, on the CPU.
pub(crate) fn tensor(storage: &[u8], element: ElementType, layout: &Layout) -> Result<Tensor, crate::Error> {
    let shape = layout.shape();
    let cpu = &Device::Cpu;
    let tensor = match element {
        ElementType::F64 => Tensor::from_vec(gather(storage, layout, f64::from_le_bytes), shape, cpu),
        ElementType::F32 => Tensor::from_vec(gather(storage, layout, f32::from_le_bytes), shape, cpu),
        ElementType::F16 => Tensor::from_vec(gather(storage, layout, f16::from_le_bytes), shape, cpu),
        ElementType::Bf16 => Tensor::from_vec(gather(storage, layout, bf16::from_le_bytes), shape, cpu),
        ElementType::I64 => Tensor::from_vec(gather(storage, layout, i64::from_le_bytes), shape, cpu),
        ElementType::I32 => Tensor::from_vec(gather(storage, layout, i32::from_le_bytes), shape, cpu),
        ElementType::I16 => Tensor::from_vec(gather(storage, layout, i16::from_le_bytes), shape, cpu),
        ElementType::I8 => {
            Tensor::from_vec(gather(storage, layout, |byte| i16::from(i8::from_le_bytes(byte))), shape, cpu)
        }
        ElementType::U8 => Tensor::from_vec(gather(storage, layout, u8::from_le_bytes), shape, cpu),
        ElementType::U16 => Tensor::from_vec(
            gather(storage, layout, |bytes| u32::from(u16::from_le_bytes(bytes))),
            shape,
            cpu,
        ),
        ElementType::U32 => Tensor::from_vec(gather(storage, layout, u32::from_le_bytes), shape, cpu),
        ElementType::Bool => {
            Tensor::from_vec(gather(storage, layout, |[byte]: [u8; 1]| u8::from(byte != 0)), shape, cpu)
        }
    };
    Ok(tensor?)
}

/// The elements in the order of the tensor. `storage` must hold the elements that `layout` was checked against.
fn gather<const N: usize, T>(storage: &[u8], layout: &Layout, decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (elements, _) = storage.as_chunks::<N>();
    if layout.count == 0 {
        return Vec::new();
    }
    if layout.is_contiguous() {
        let range = layout.offset..layout.offset + layout.count;
        return elements[range].iter().map(|bytes| decode(*bytes)).collect();
    }
    let mut gathered = Vec::with_capacity(layout.count);
    let mut position = vec![0; layout.shape.len()];
    let mut at = layout.offset;
    loop {
        gathered.push(decode(elements[at]));
        let mut axis = layout.shape.len();
        loop {
            let Some(next) = axis.checked_sub(1) else { return gathered };
            axis = next;
            position[axis] += 1;
            // Wrapping: the stride of an axis of size 1 may be anything, and is added and taken away again.
            at = at.wrapping_add(layout.strides[axis]);
            if position[axis] < layout.shape[axis] {
                break;
            }
            at = at.wrapping_sub(layout.shape[axis].wrapping_mul(layout.strides[axis]));
            position[axis] = 0;
        }
    }
}

/// Position and value of the first element that is NaN or infinite, in a contiguous tensor on the CPU.
pub(crate) fn first_not_finite(tensor: &Tensor) -> Option<(usize, f64)> {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return None };
    match storage {
        CpuStorage::F64(values) => first(values, |value| !value.is_finite(), |value| *value),
        CpuStorage::F32(values) => first(values, |value| !value.is_finite(), |value| f64::from(*value)),
        CpuStorage::F16(values) => {
            first(values, |value| value.to_bits() & 0x7c00 == 0x7c00, |value| value.to_f64())
        }
        CpuStorage::BF16(values) => {
            first(values, |value| value.to_bits() & 0x7f80 == 0x7f80, |value| value.to_f64())
        }
        _ => None,
    }
}

fn first<T: Sync>(
    values: &[T],
    bad: impl Fn(&T) -> bool + Sync,
    show: impl Fn(&T) -> f64,
) -> Option<(usize, f64)> {
    // A block at a time without a branch in it, so that the compiler makes vector code of the test.
    const BLOCK: usize = 1 << 14;
    let block = values
        .par_chunks(BLOCK)
        .position_first(|part| part.iter().fold(false, |any, value| any | bad(value)))?;
    let index = block * BLOCK + values[block * BLOCK..].iter().position(bad)?;
    Some((index, show(&values[index])))
}
