//! Pinned memory, which a device fetches from by itself.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

/// Some of it, and when the device had fetched from it.
#[derive(Debug)]
pub(crate) struct Pinned {
    memory: PinnedHostSlice<f32>,
    fetched: CudaEvent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Freed when nothing reads it any more. A device that failed reads nothing.
        let _ = self.fetched.synchronize();
    }
}

/// The operation [`crate::Staging::upload`], from `pinned`, which grows as needed.
pub(crate) fn upload(
    pinned: &mut Option<Pinned>,
    parts: &[&[f32]],
    shape: Shape,
    device: &CudaDevice,
) -> Result<Tensor> {
    let stream = device.cuda_stream();
    let count = shape.elem_count();
    if parts.iter().map(|part| part.len()).sum::<usize>() != count {
        bail!(
            "parts of {:?} numbers do not fill {shape:?}",
            parts.iter().map(|part| part.len()).collect::<Vec<_>>()
        );
    }
    let roomy = pinned.take().filter(|held| held.memory.len() >= count);
    let mut held = match roomy {
        Some(held) => held,
        None => {
            let fetched = stream.record_event(None).w()?;
            // SAFETY: numbers of any bits; they are written before they are read.
            Pinned { memory: unsafe { stream.context().alloc_pinned(count) }.w()?, fetched }
        }
    };
    held.fetched.synchronize().w()?;
    // SAFETY: as many are there, the device has read what was in them, and `held` is nobody else's.
    let all = unsafe { std::slice::from_raw_parts_mut(held.memory.as_mut_ptr().w()?, count) };
    // By all threads: the first batch is waited for.
    let mut rest = &mut *all;
    let places = parts.iter().map(|part| rest.split_off_mut(..part.len()).unwrap_or_default());
    let copies: Vec<_> = places.zip(parts).collect();
    copies.into_par_iter().for_each(|(place, part)| place.copy_from_slice(part));
    // SAFETY: written by the copy that follows.
    let mut slice = unsafe { device.alloc::<f32>(count)? };
    stream.memcpy_htod(&*all, &mut slice).w()?;
    held.fetched = stream.record_event(None).w()?;
    *pinned = Some(held);
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}
