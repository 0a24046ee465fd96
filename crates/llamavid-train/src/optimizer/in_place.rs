//! The numbers of a CPU tensor as a slice, to read and to change where they lie.

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// Runs `change` on the numbers of `tensor`, f32 on the CPU without gaps.
pub(crate) fn change<T>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<T> {
    let operation = Change { change: Cell::new(Some(change)), result: RefCell::new(None) };
    tensor.inplace_op1(&operation)?;
    match operation.result.into_inner() {
        Some(result) => result,
        None => bail!("a tensor on the CPU is expected, not on {:?}", tensor.device()),
    }
}

/// Runs `look` on the numbers of `tensor`, f32 on the CPU without gaps.
pub(crate) fn look<T>(tensor: &Tensor, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(look(&storage.as_slice::<f32>()?[start..end])),
        _ => bail!("a contiguous tensor on the CPU is expected, not {:?}", tensor.layout()),
    }
}

/// Whether a tensor's numbers can be changed in place.
pub(crate) fn possible(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

struct Change<F, T> {
    change: Cell<Option<F>>,
    result: RefCell<Option<Result<T>>>,
}

impl<T, F: FnOnce(&mut [f32]) -> Result<T>> InplaceOp1 for Change<F, T> {
    fn name(&self) -> &'static str {
        "change-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("contiguous f32 numbers are expected, not {layout:?}")
        };
        if let Some(change) = self.change.take() {
            *self.result.borrow_mut() = Some(change(&mut values[start..end]));
        }
        Ok(())
    }
}
