//! Devices and cancellation.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, Dtype, Precision, Split};
use napi::bindgen_prelude::ClassInstance;
use napi_derive::napi;

use crate::handle::Handle;
use crate::promise::call;

/// A device and the thread that works on it. Everything loaded on it keeps it alive.
#[napi]
pub struct Device {
    handle: Handle<runtime::Device>,
}

#[napi]
impl Device {
    /// Opens `auto`, `cpu`, `cuda` or `cuda:N`, or several with commas between.
    #[napi(factory)]
    pub fn open(name: String) -> napi::Result<Self> {
        call(|| Ok(Self { handle: Handle::new("device", runtime::Device::open(&name)?) }))
    }

    /// What it is.
    #[napi(getter, ts_return_type = "'cpu' | 'cuda'")]
    pub fn kind(&self) -> napi::Result<&'static str> {
        call(|| Ok(self.handle.open()?.kind().name()))
    }

    /// `cpu` or `cuda:N`.
    #[napi(getter)]
    pub fn name(&self) -> napi::Result<String> {
        call(|| Ok(self.handle.open()?.name().to_owned()))
    }

    /// Gives it up. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

impl Device {
    pub(crate) fn get(&self) -> runtime::Result<Arc<runtime::Device>> {
        self.handle.open()
    }
}

/// What this machine has for a build with CUDA, whichever build this is. The libraries are opened when it is first asked for.
#[napi]
pub fn cuda_support() -> CudaSupport {
    let support = runtime::cuda_support();
    CudaSupport {
        libraries: support.libraries.clone(),
        devices: support.devices.iter().map(ToString::to_string).collect(),
        packages: support
            .devices
            .first()
            .map(|device| device.builds().map(|build| build.package).collect())
            .unwrap_or_default(),
        problem: support.problem.as_ref().map(|problem| problem.message.clone()),
    }
}

/// The path of NCCL's library, by which several graphics processors share each layer (`split: 'tensor'`). It is opened when it is first
/// asked for.
#[napi]
pub fn nccl_library() -> napi::Result<&'static str> {
    call(runtime::nccl_library)
}

/// NVIDIA's libraries and graphics processors.
#[napi(object, object_from_js = false)]
pub struct CudaSupport {
    /// Paths of the libraries that were opened.
    pub libraries: Vec<String>,
    /// Names of the graphics processors, as the driver numbers them.
    pub devices: Vec<String>,
    /// Packages whose addons run on the first one, the quickest first.
    pub packages: Vec<&'static str>,
    /// Why nothing runs on them; absent where something does.
    pub problem: Option<String>,
}

/// A flag that work reads between its steps; the work then fails with `ABORTED`.
#[napi]
#[derive(Default)]
pub struct Cancellation {
    flag: runtime::Cancellation,
}

#[napi]
impl Cancellation {
    /// A flag that is down.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag. There is no way back.
    #[napi]
    pub fn cancel(&self) {
        self.flag.cancel();
    }
}

/// The caller's flag, or one that nobody raises.
pub(crate) fn flag(cancellation: Option<&Cancellation>) -> runtime::Cancellation {
    cancellation.map(|cancellation| cancellation.flag.clone()).unwrap_or_default()
}

/// Where and how weights are loaded.
#[napi(object, object_to_js = false)]
pub struct LoadOptions<'env> {
    /// The device of the weights.
    pub device: ClassInstance<'env, Device>,
    /// What the weights are computed in; default `auto`.
    #[napi(ts_type = "'auto' | 'f32' | 'bf16' | 'f16'")]
    pub dtype: Option<String>,
    /// How many bits matrices are held in; default `16bit`, which leaves those of a file as they are there.
    #[napi(ts_type = "'16bit' | '8bit' | '4bit'")]
    pub load: Option<String>,
    /// How several devices share the language model: each has whole `layers` (default), or a share of each as `tensor`.
    #[napi(ts_type = "'layers' | 'tensor'")]
    pub split: Option<String>,
    /// Stops loading.
    pub cancellation: Option<ClassInstance<'env, Cancellation>>,
}

impl LoadOptions<'_> {
    pub(crate) fn parts(&self) -> runtime::Result<(Arc<runtime::Device>, Precision, runtime::Cancellation)> {
        let dtype = self.dtype.as_deref().map(Dtype::parse).transpose()?.unwrap_or_default();
        let quantisation = Precision::parse_bits(self.load.as_deref().unwrap_or("16bit"))?;
        Ok((self.device.get()?, Precision { dtype, quantisation }, flag(self.cancellation.as_deref())))
    }

    pub(crate) fn split(&self) -> runtime::Result<Split> {
        self.split.as_deref().map_or(Ok(Split::default()), Split::parse)
    }
}
