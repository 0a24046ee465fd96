//! Sums over CUDA devices by NCCL, through cudarc: one process, one communicator a device, all of them led by one thread.
//!
//! A sum is one group call, which gives every device its part of it behind what its stream has to do. Nobody waits for it but
//! [`Communicators::settle`]. When a device fails, all communicators are aborted, so that the kernels of the others end.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUresult, cuStreamQuery};
use candle_core::cuda_backend::cudarc::nccl::result::{
    NcclError, NcclStatus, all_reduce, comm_abort, comm_init_all, group_end, group_start,
};
use candle_core::cuda_backend::cudarc::nccl::sys::{
    ncclComm_t, ncclCommGetAsyncError, ncclDataType_t, ncclGetErrorString, ncclRedOp_t, ncclResult_t,
};
use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use super::device::{unwritten, with_pointers};

/// What NCCL was asked for, or its words for what is wrong.
type Outcome = std::result::Result<(), String>;

/// One communicator a device.
pub(crate) struct Communicators {
    devices: Vec<CudaDevice>,
    state: Mutex<State>,
}

enum State {
    Ready(Vec<ncclComm_t>),
    /// Aborted, and why.
    Broken(String),
}

// SAFETY: any thread may use a communicator, one at a time, and the lock sees to that.
unsafe impl Send for State {}

impl fmt::Debug for Communicators {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "NCCL over {} devices", self.devices.len())
    }
}

impl Communicators {
    /// Communicators of different CUDA devices.
    ///
    /// # Errors
    /// Another device, and what NCCL says.
    pub(crate) fn new(devices: &[Device]) -> Result<Self> {
        let devices = devices.iter().map(|device| device.as_cuda_device().cloned());
        let devices = devices.collect::<Result<Vec<_>>>()?;
        let numbers = devices.iter().map(|device| device.cuda_stream().context().ordinal() as c_int);
        let numbers: Vec<c_int> = numbers.collect();
        let mut communicators = vec![std::ptr::null_mut(); devices.len()];
        // SAFETY: there is room for one each, and as many numbers of devices.
        let made =
            unsafe { comm_init_all(communicators.as_mut_ptr(), numbers.len() as c_int, numbers.as_ptr()) };
        if let Err(problem) = checked(made) {
            bail!("NCCL does not connect the devices {numbers:?}: {problem}");
        }
        Ok(Self { devices, state: Mutex::new(State::Ready(communicators)) })
    }

    /// The sum of one tensor of each device, on each of them.
    ///
    /// # Errors
    /// Tensors of different shapes or of a dtype that is not added up; a device that failed.
    pub(crate) fn sum(&self, addends: &[Tensor]) -> Result<Vec<Tensor>> {
        let Some(first) = addends.first().filter(|_| addends.len() == self.devices.len()) else {
            bail!("{} tensors are not those of {} devices", addends.len(), self.devices.len());
        };
        let (shape, dtype) = (first.shape(), first.dtype());
        let kind = match dtype {
            DType::F32 => ncclDataType_t::ncclFloat32,
            DType::F16 => ncclDataType_t::ncclFloat16,
            DType::BF16 => ncclDataType_t::ncclBfloat16,
            other => bail!("numbers of {other:?} are not added up over devices"),
        };
        if let Some(other) = addends.iter().find(|other| other.shape() != shape || other.dtype() != dtype) {
            bail!("{first:?} and {other:?} are not added up");
        }
        let addends = addends.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let results = self.devices.iter().map(|device| unwritten(device, dtype, shape));
        let results = results.collect::<Result<Vec<_>>>()?;
        let pairs: Vec<_> = self.devices.iter().zip(addends.iter().zip(&results)).collect();
        with_all_pointers(&pairs, &mut Vec::new(), &|places| {
            self.with(|communicators| {
                checked(group_start())?;
                let each = communicators.iter().zip(&self.devices).zip(places);
                let entered = each.into_iter().try_for_each(|((communicator, device), [from, to])| {
                    let stream = device.cuda_stream().cu_stream();
                    // SAFETY: both are addresses of as many numbers of this kind on the communicator's device, which live until the
                    // group is entered, and are freed behind the sum on the same stream.
                    checked(unsafe {
                        all_reduce(
                            *from as _,
                            *to as _,
                            shape.elem_count(),
                            kind,
                            ncclRedOp_t::ncclSum,
                            *communicator,
                            stream as _,
                        )
                    })
                });
                // Also behind an error: what was begun must end.
                entered.and(checked(group_end()))
            })
        })?;
        Ok(results)
    }

    /// Waits until every device has done what its stream holds, and looks after the communicators meanwhile.
    ///
    /// # Errors
    /// A device that failed.
    pub(crate) fn settle(&self) -> Result<()> {
        for device in &self.devices {
            let stream = device.cuda_stream();
            stream.context().bind_to_thread().w()?;
            loop {
                // SAFETY: a stream that the device keeps open.
                let busy = match unsafe { cuStreamQuery(stream.cu_stream()) } {
                    CUresult::CUDA_SUCCESS => false,
                    CUresult::CUDA_ERROR_NOT_READY => true,
                    failed => return self.with(|_| Err(format!("a device failed: {failed:?}"))),
                };
                self.with(|communicators| communicators.iter().try_for_each(|each| async_error(*each)))?;
                if !busy {
                    break;
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Uses the communicators. An error is the last thing they hear of.
    fn with(&self, work: impl FnOnce(&[ncclComm_t]) -> Outcome) -> Result<()> {
        let mut state = self.lock();
        let problem = match &*state {
            State::Ready(communicators) => match work(communicators) {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            },
            State::Broken(problem) => problem.clone(),
        };
        state.abort(&problem);
        bail!("the devices no longer compute together, load the model again: {problem}")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has not changed it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn abort(&mut self, problem: &str) {
        if let Self::Ready(communicators) = std::mem::replace(self, Self::Broken(problem.to_owned())) {
            for communicator in communicators {
                // SAFETY: it is open, and nobody has it any more. What it says of its end changes nothing.
                let _ = unsafe { comm_abort(communicator) };
            }
        }
    }
}

impl Drop for Communicators {
    fn drop(&mut self) {
        self.lock().abort("closed");
    }
}

/// Calls `then` with the addresses of two tensors of each device.
fn with_all_pointers(
    pairs: &[(&CudaDevice, (&Tensor, &Tensor))],
    places: &mut Vec<[u64; 2]>,
    then: &dyn Fn(&[[u64; 2]]) -> Result<()>,
) -> Result<()> {
    let Some(((device, (from, to)), rest)) = pairs.split_first() else { return then(places) };
    with_pointers(device, [Some(*from), Some(*to)], |pair| {
        places.push(pair);
        with_all_pointers(rest, places, then)
    })
}

/// What a communicator found out after its calls had returned.
fn async_error(communicator: ncclComm_t) -> Outcome {
    let mut found = ncclResult_t::ncclSuccess;
    // SAFETY: the communicator is open, and there is room for the answer.
    checked(unsafe { ncclCommGetAsyncError(communicator, &mut found) }.result())?;
    checked(found.result())
}

/// NCCL's words for an error.
fn checked(outcome: std::result::Result<NcclStatus, NcclError>) -> Outcome {
    let Err(NcclError(code)) = outcome else { return Ok(()) };
    // SAFETY: it gives a text that is never freed.
    let text = unsafe { CStr::from_ptr(ncclGetErrorString(code)) };
    Err(format!("{} ({code:?})", text.to_string_lossy()))
}
