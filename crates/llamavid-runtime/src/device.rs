//! One thread a device: it owns the device's work and gives every job a small step in turn.
//!
//! So two sessions on one device advance side by side, a cancellation is seen after one step, and no two jobs
//! compete for the same cores or the same stream.

#[cfg(feature = "cuda")]
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::{ControlFlow, Deref};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use candle_core::Device as TensorDevice;

use crate::cuda;
use crate::processor::instruction_set;
use crate::reply::{Reply, catch_panic};
use crate::threads::use_threads;
use crate::{Cancellation, Error, ErrorCode, Result};

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The machine's processor.
    Cpu,
    /// An NVIDIA graphics processor.
    Cuda,
}

impl DeviceKind {
    /// `cpu` or `cuda`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Which device is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Auto,
    Cpu,
    Cuda(usize),
}

/// A turn of a job: one step, and whether there are more.
pub(crate) type Turn = Box<dyn FnMut(&TensorDevice) -> ControlFlow<()> + Send>;

/// A device and the thread that works on it. The thread ends after its last job once all handles are gone.
#[derive(Debug)]
pub struct Device {
    /// One, or several that share the language model; everything else is on the first.
    stages: Vec<StageDevice>,
    name: String,
    queue: Sender<Turn>,
}

/// A device that holds some of the language model's layers, or a share of each.
#[derive(Debug, Clone)]
pub(crate) struct StageDevice {
    pub(crate) tensors: TensorDevice,
    pub(crate) kind: DeviceKind,
    /// `cpu` or `cuda:N`.
    pub(crate) name: String,
}

/// Open devices: a second `open` of a device shares its thread.
static OPEN: Mutex<Vec<Weak<Device>>> = Mutex::new(Vec::new());

impl Device {
    /// Opens `auto`, `cpu`, `cuda` (the first one) or `cuda:N`. `auto` is the first CUDA device that works, else
    /// the CPU. Several, `cuda:0,cuda:1` or `cuda,cpu`, share the language model, as its [`crate::Split`] says.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for another name or a `LLAMAVID_THREADS` that is no number, `DEVICE_UNAVAILABLE` when there is
    /// no such device or this build has no CUDA.
    pub fn open(name: &str) -> Result<Arc<Self>> {
        let cpu = (DeviceKind::Cpu, 0);
        let wanted = name.split(',').map(parse_name).collect::<Result<Vec<_>>>()?;
        if let [Wanted::Auto] = wanted.as_slice() {
            return match cfg!(feature = "cuda") {
                true => Self::open_all(&[(DeviceKind::Cuda, 0)]).or_else(|_| Self::open_all(&[cpu])),
                false => Self::open_all(&[cpu]),
            };
        }
        let each = wanted.into_iter().map(|wanted| match wanted {
            Wanted::Cpu => Ok(cpu),
            Wanted::Cuda(index) => Ok((DeviceKind::Cuda, index)),
            Wanted::Auto => Err(Error::argument(format!("{name:?}: auto stands alone, for one device"))),
        });
        Self::open_all(&each.collect::<Result<Vec<_>>>()?)
    }

    fn open_all(devices: &[(DeviceKind, usize)]) -> Result<Arc<Self>> {
        let names: Vec<String> = devices
            .iter()
            .map(|(kind, index)| match kind {
                DeviceKind::Cpu => "cpu".to_owned(),
                DeviceKind::Cuda => format!("cuda:{index}"),
            })
            .collect();
        let name = names.join(",");
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|device| device.strong_count() > 0);
        if let Some(device) = open.iter().filter_map(Weak::upgrade).find(|device| device.name == name) {
            return Ok(device);
        }
        let stages = devices.iter().zip(names).enumerate().map(|(place, (&(kind, index), own_name))| {
            let tensors = match kind {
                DeviceKind::Cpu => {
                    instruction_set()?;
                    use_threads()?;
                    TensorDevice::Cpu
                }
                DeviceKind::Cuda => open_cuda(index, (&name, place))?,
            };
            Ok(StageDevice { tensors, kind, name: own_name })
        });
        let stages = stages.collect::<Result<Vec<_>>>()?;
        let (queue, mut inbox) = mpsc::channel();
        let on_thread = first_of(&stages).clone();
        // Several devices may want kernels launched side by side.
        let in_pool = on_thread.is_cpu() || stages.len() > 1;
        std::thread::Builder::new()
            .name(format!("llamavid {name}"))
            .spawn(move || serve(&on_thread, in_pool, &mut inbox))
            .map_err(|error| {
                Error::new(ErrorCode::OutOfMemory, format!("no thread for the device {name}: {error}"))
            })?;
        let device = Arc::new(Self { stages, name, queue });
        open.push(Arc::downgrade(&device));
        Ok(device)
    }

    /// What it is; of several, the first one.
    pub fn kind(&self) -> DeviceKind {
        self.stages.first().map_or(DeviceKind::Cpu, |stage| stage.kind)
    }

    /// The devices that share the language model.
    pub(crate) fn stages(&self) -> &[StageDevice] {
        &self.stages
    }

    /// `cpu` or `cuda:N`; of several, all with commas between.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where tensors are made; of several, the first one.
    pub fn tensors(&self) -> &TensorDevice {
        first_of(&self.stages)
    }

    /// Runs a job: `step` is called again and again, with steps of other jobs in between, until it gives
    /// [`ControlFlow::Break`] or an error. The flag is read before each step, and what `step` holds is dropped
    /// before the reply comes.
    pub fn run<T: Send + 'static>(
        &self,
        cancellation: &Cancellation,
        step: impl FnMut(&TensorDevice) -> Result<ControlFlow<T>> + Send + 'static,
    ) -> Reply<T> {
        let (sender, reply) = Reply::channel();
        let cancellation = cancellation.clone();
        let mut job = Some((sender, step));
        self.enqueue(Box::new(move |device| {
            let Some((sender, step)) = &mut job else { return ControlFlow::Break(()) };
            let outcome = if sender.is_closed() {
                Err(Error::new(ErrorCode::Aborted, "nobody waits for this job"))
            } else {
                cancellation.check().and_then(|()| catch_panic(|| step(device)))
            };
            let result = match outcome {
                Ok(ControlFlow::Continue(())) => return ControlFlow::Continue(()),
                Ok(ControlFlow::Break(value)) => Ok(value),
                Err(error) => Err(error),
            };
            if let Some((sender, step)) = job.take() {
                // First the step, so that a session is free again when its caller hears of it.
                drop(step);
                let _ = sender.send(result);
            }
            ControlFlow::Break(())
        }));
        reply
    }

    /// Runs a job of one step.
    pub fn run_once<T: Send + 'static>(
        &self,
        cancellation: &Cancellation,
        work: impl FnOnce(&TensorDevice) -> Result<T> + Send + 'static,
    ) -> Reply<T> {
        let mut work = Some(work);
        self.run(cancellation, move |device| match work.take() {
            Some(work) => work(device).map(ControlFlow::Break),
            None => Err(Error::new(ErrorCode::Internal, "a job of one step was asked for another")),
        })
    }

    /// Drops `value` on the device's thread: to free gigabytes takes a while, and callers must not wait for it.
    pub(crate) fn discard(&self, value: impl Send + 'static) {
        let mut value = Some(value);
        self.enqueue(Box::new(move |_| {
            drop(value.take());
            ControlFlow::Break(())
        }));
    }

    /// Lets others have the memory of graphics processors that is free once the jobs before have ended.
    #[cfg(feature = "cuda")]
    fn give_back(&self) {
        let stages = self.stages.clone();
        self.enqueue(Box::new(move |_| {
            for stage in &stages {
                // A device that failed says so to those who compute on it.
                let _ = give_back(&stage.tensors);
            }
            ControlFlow::Break(())
        }));
    }

    /// Runs a job that tells its callers itself how it ended.
    pub(crate) fn enqueue(&self, turn: Turn) {
        // Fails only when the thread is gone; the job is dropped then, and its reply says so.
        let _ = self.queue.send(turn);
    }
}

/// A model's weights. They are freed on the device's thread, behind the jobs that still use them.
#[derive(Debug)]
pub struct Weights<M: Send + Sync + 'static> {
    model: ManuallyDrop<Arc<M>>,
    device: Arc<Device>,
}

impl<M: Send + Sync + 'static> Weights<M> {
    /// Takes a model whose tensors are on `device`.
    pub fn new(model: M, device: Arc<Device>) -> Self {
        Self { model: ManuallyDrop::new(Arc::new(model)), device }
    }
}

impl<M: Send + Sync + 'static> Deref for Weights<M> {
    type Target = Arc<M>;

    fn deref(&self) -> &Arc<M> {
        &self.model
    }
}

impl<M: Send + Sync + 'static> Drop for Weights<M> {
    fn drop(&mut self) {
        // SAFETY: `drop` runs once and nothing reads the field after it.
        let model = unsafe { ManuallyDrop::take(&mut self.model) };
        self.device.discard(model);
        #[cfg(feature = "cuda")]
        self.device.give_back();
    }
}

/// How long a processor's turns stay in the pool of threads, so that others who want it wait no longer.
const STAY: Duration = Duration::from_millis(20);

/// The device's thread: jobs take turns, one step each. A processor's turns run in the pool of threads: what a step shares out
/// begins there at once, and need not be handed over and waited for each time.
fn serve(device: &TensorDevice, in_pool: bool, inbox: &mut Receiver<Turn>) {
    let mut jobs: VecDeque<Turn> = VecDeque::new();
    while let Ok(job) = inbox.recv() {
        jobs.push_back(job);
        while !jobs.is_empty() {
            match in_pool {
                true => rayon::scope(|_| take_turns(device, &mut jobs, inbox)),
                false => take_turns(device, &mut jobs, inbox),
            }
        }
    }
}

/// Gives jobs their turns for a while.
fn take_turns(device: &TensorDevice, jobs: &mut VecDeque<Turn>, inbox: &mut Receiver<Turn>) {
    let began = Instant::now();
    while began.elapsed() < STAY {
        jobs.extend(inbox.try_iter());
        let Some(mut job) = jobs.pop_front() else { return };
        // Steps catch their own panics; this one is for what is dropped behind them.
        match catch_panic(|| Ok(job(device))) {
            Ok(ControlFlow::Continue(())) => jobs.push_back(job),
            Ok(ControlFlow::Break(())) | Err(_) => {}
        }
    }
}

/// Where tensors are made.
fn first_of(stages: &[StageDevice]) -> &TensorDevice {
    stages.first().map_or(&TensorDevice::Cpu, |stage| &stage.tensors)
}

fn parse_name(name: &str) -> Result<Wanted> {
    let wanted = match name {
        "auto" => Some(Wanted::Auto),
        "cpu" => Some(Wanted::Cpu),
        "cuda" => Some(Wanted::Cuda(0)),
        other => other.strip_prefix("cuda:").and_then(|index| index.parse().ok()).map(Wanted::Cuda),
    };
    wanted.ok_or_else(|| Error::argument(format!("the device {name:?} is none of auto, cpu, cuda, cuda:N")))
}

/// CUDA devices that were opened, by the names of all that were opened with them and their place among those. They stay until the process
/// ends: a thread that takes cuBLAS apart while the process exits faults now and then. Whoever opens them again finds them.
#[cfg(feature = "cuda")]
static KEPT: Mutex<BTreeMap<(String, usize), TensorDevice>> = Mutex::new(BTreeMap::new());

#[cfg(feature = "cuda")]
fn open_cuda(index: usize, (names, place): (&str, usize)) -> Result<TensorDevice> {
    let among = (names.to_owned(), place);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    // One that has failed is let go before another is opened.
    let device = match kept.remove(&among).filter(|device| device.synchronize().is_ok()) {
        Some(device) => device,
        None => open_another(index)?,
    };
    kept.insert(among, device.clone());
    Ok(device)
}

#[cfg(feature = "cuda")]
fn open_another(index: usize) -> Result<TensorDevice> {
    let because = |reason: &str| format!("the device cuda:{index} cannot be opened: {reason}");
    let device = cuda::device(index).map_err(|error| Error { message: because(&error.message), ..error })?;
    // Set by `tools/cuda`; a build without it is for whatever its builder has.
    if let Some(built) = option_env!("LLAMAVID_CUDA_ARCHITECTURE")
        && !device.builds().any(|build| build.architecture == built)
    {
        let reason = format!("{device} does not run a build for {built}");
        return Err(cuda::unavailable(because(&reason), device.advice()));
    }
    open_stream(index).map_err(|error| match Error::from(error) {
        full if full.code == ErrorCode::OutOfMemory => Error { message: because(&full.message), ..full },
        error => cuda::unavailable(
            because(&error.message),
            "Check the driver with nvidia-smi, or take the device cpu.",
        ),
    })
}

/// A CUDA device with a stream of its own: with the default one each thread has another, and what a loading thread copies would not be
/// ordered before the device thread's work.
#[cfg(feature = "cuda")]
fn open_stream(index: usize) -> candle_core::Result<TensorDevice> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::result::mem_pool;
    use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;

    let device = TensorDevice::new_cuda_with_stream(index)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: its tensors are made, used and freed on its one stream, in that order; `Stage::take`, which copies from one device to
    // another, waits for both.
    // Otherwise each tensor has two events, which every operation waits for and records: several times the cost of its launch.
    unsafe { cuda.disable_event_tracking() };
    if let Some(pool) = memory_pool(&device)? {
        let mut threshold = u64::MAX;
        // SAFETY: the driver's own pool, and a number as large as this attribute is.
        // Otherwise what a token freed goes back to the system whenever the host waits, and is mapped anew for the next one.
        unsafe {
            mem_pool::set_attribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut threshold).cast())
        }
        .w()?;
    }
    Ok(device)
}

/// Where the driver takes a device's memory from; none where each allocation is one of the system's.
#[cfg(feature = "cuda")]
fn memory_pool(
    device: &TensorDevice,
) -> candle_core::Result<Option<candle_core::cuda_backend::cudarc::driver::sys::CUmemoryPool>> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::result::device::get_mem_pool;

    let TensorDevice::Cuda(cuda) = device else { return Ok(None) };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    // SAFETY: the context's own device.
    context.has_async_alloc().then(|| unsafe { get_mem_pool(context.cu_device()) }.w()).transpose()
}

/// Gives memory that nothing uses any more back to the system.
#[cfg(feature = "cuda")]
fn give_back(device: &TensorDevice) -> candle_core::Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::result::mem_pool::trim_to;

    let Some(pool) = memory_pool(device)? else { return Ok(()) };
    // What was freed is free behind the work before it.
    device.synchronize()?;
    // SAFETY: the driver's own pool; it keeps what is in use.
    unsafe { trim_to(pool, 0) }.w()
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize, _among: (&str, usize)) -> Result<TensorDevice> {
    let message = format!("the device cuda:{index} cannot be opened: this build has no CUDA");
    let hint = match cuda::device(index) {
        Ok(device) => device.advice(),
        Err(missing) => format!(
            "Take the device cpu. The addon with CUDA is {}, and this machine lacks what it needs: {missing}. {}",
            cuda::PACKAGE,
            missing.hint.as_deref().unwrap_or_default()
        ),
    };
    Err(cuda::unavailable(message, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends when `gate` does: holds the device's thread so that what follows is queued.
    fn hold(device: &Device) -> (Sender<()>, Reply<()>) {
        let (release, gate) = mpsc::channel::<()>();
        let reply = device.run_once(&Cancellation::default(), move |_| {
            let _ = gate.recv();
            Ok(())
        });
        (release, reply)
    }

    fn private_device() -> Device {
        let (queue, mut inbox) = mpsc::channel();
        std::thread::spawn(move || serve(&TensorDevice::Cpu, true, &mut inbox));
        Device { stages: Vec::new(), name: "cpu".into(), queue }
    }

    #[test]
    fn names() {
        assert_eq!(parse_name("cuda").unwrap(), Wanted::Cuda(0));
        assert_eq!(parse_name("cuda:3").unwrap(), Wanted::Cuda(3));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert_eq!(parse_name(name).unwrap_err().code, ErrorCode::InvalidArgument, "{name}");
        }
    }

    #[test]
    fn a_device_opened_twice_is_one() {
        let device = Device::open("cpu").unwrap();
        assert!(Arc::ptr_eq(&device, &Device::open("cpu").unwrap()));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_missing_device_says_so() {
        assert_eq!(Device::open("cuda:7").unwrap_err().code, ErrorCode::DeviceUnavailable);
    }

    #[test]
    fn jobs_take_turns() {
        let device = private_device();
        let (release, held) = hold(&device);
        let order = Arc::new(Mutex::new(Vec::new()));
        let job = |name: char| {
            let (order, mut left) = (order.clone(), 3);
            device.run(&Cancellation::default(), move |_| {
                order.lock().unwrap().push(name);
                left -= 1;
                Ok(if left == 0 { ControlFlow::Break(name) } else { ControlFlow::Continue(()) })
            })
        };
        let replies = [job('a'), job('b')];
        release.send(()).unwrap();
        held.wait().unwrap();
        assert_eq!(replies.map(|reply| reply.wait().unwrap()), ['a', 'b']);
        assert_eq!(*order.lock().unwrap(), ['a', 'b', 'a', 'b', 'a', 'b']);
    }

    #[test]
    fn a_panic_ends_its_job_and_nothing_else() {
        let device = private_device();
        let broken: Reply<()> = device.run_once(&Cancellation::default(), |_| panic!("a bug"));
        assert_eq!(broken.wait().unwrap_err().code, ErrorCode::Internal);
        assert_eq!(device.run_once(&Cancellation::default(), |_| Ok(7)).wait().unwrap(), 7);
    }

    #[test]
    fn cancelled_between_steps() {
        let device = private_device();
        let cancellation = Cancellation::default();
        let flag = cancellation.clone();
        let mut steps = 0;
        let reply: Reply<()> = device.run(&cancellation, move |_| {
            steps += 1;
            assert!(steps < 4, "a step after the cancellation");
            if steps == 3 {
                flag.cancel();
            }
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!(reply.wait().unwrap_err().code, ErrorCode::Aborted);
    }

    #[test]
    fn a_job_that_nobody_waits_for_is_given_up() {
        let device = private_device();
        let endless: Reply<()> = device.run(&Cancellation::default(), |_| Ok(ControlFlow::Continue(())));
        drop(endless);
        assert_eq!(device.run_once(&Cancellation::default(), |_| Ok(1)).wait().unwrap(), 1);
    }
}
