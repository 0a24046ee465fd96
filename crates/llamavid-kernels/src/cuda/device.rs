//! Tensors of a CUDA device as the kernels see them, and the launch of a kernel.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUfunction_attribute_enum, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, cuLaunchKernelEx,
};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use super::Source;
use super::arguments::{
    AttentionArguments, EachArguments, LargestArguments, Launch, NormArguments, ProductArguments,
    RotateArguments, StoreArguments, UnpackArguments,
};

// SAFETY: plain numbers in the order and sizes of C, as the kernels' own structs are.
unsafe impl DeviceRepr for AttentionArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for NormArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for EachArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for LargestArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for RotateArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for StoreArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for ProductArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for UnpackArguments {}

/// Shared memory that a block gets without asking for it, less what kernels declare.
const USUAL_SHARED: u32 = 47 << 10;

impl Source {
    /// The kernels, compiled when the crate was built.
    fn ptx(self) -> &'static str {
        match self {
            Self::Attention => include_str!(concat!(env!("OUT_DIR"), "/attention.ptx")),
            Self::AttentionRows => include_str!(concat!(env!("OUT_DIR"), "/attention_rows.ptx")),
            Self::Rows => include_str!(concat!(env!("OUT_DIR"), "/rows.ptx")),
            Self::Cache => include_str!(concat!(env!("OUT_DIR"), "/cache.ptx")),
            Self::RowProducts => include_str!(concat!(env!("OUT_DIR"), "/row_products.ptx")),
            Self::Unpack => include_str!(concat!(env!("OUT_DIR"), "/unpack.ptx")),
        }
    }
}

/// Whether the kernels take these: numbers of one dtype on one CUDA device, without a gradient.
pub(crate) fn takes(inputs: &[&Tensor]) -> bool {
    let Some(first) = inputs.first() else { return false };
    let computed = matches!(first.dtype(), DType::F32 | DType::F16 | DType::BF16);
    computed
        && first.device().is_cuda()
        && inputs.iter().all(|input| {
            input.dtype() == first.dtype()
                && !input.track_op()
                && input.elem_count() > 0
                && input.device().same_device(first.device())
        })
}

/// The CUDA device of a tensor.
pub(super) fn device_of(x: &Tensor) -> Result<CudaDevice> {
    match x.device() {
        Device::Cuda(device) => Ok(device.clone()),
        other => bail!("a tensor is on {other:?}, not on a CUDA device"),
    }
}

/// A tensor that nothing was written to yet. Whoever makes one writes all of it.
pub(super) fn unwritten(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let count = shape.elem_count();
    // SAFETY: of the caller, who fills it before it is read.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc::<f32>(count)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc::<f16>(count)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(count)?),
            DType::U32 => CudaStorageSlice::U32(device.alloc::<u32>(count)?),
            other => bail!("no kernel writes {other:?}"),
        }
    };
    let storage = Storage::Cuda(CudaStorage { slice, device: device.clone() });
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}

/// Runs `launch` with the addresses of the first numbers of some tensors of `device`, 0 for none.
///
/// The kernels also write through such addresses: into tensors of [`unwritten`], which nobody else has yet, and into a cache, which its
/// owner has alone.
pub(super) fn with_pointers<const N: usize, T>(
    device: &CudaDevice,
    tensors: [Option<&Tensor>; N],
    launch: impl FnOnce([u64; N]) -> Result<T>,
) -> Result<T> {
    let stream = device.cuda_stream();
    let held = tensors.map(|tensor| tensor.map(Tensor::storage_and_layout));
    let mut pointers = [0; N];
    // Kept until the launch, which is what they are for where a device has several streams.
    let mut in_use = Vec::with_capacity(N);
    for (place, held) in pointers.iter_mut().zip(&held) {
        let Some((storage, layout)) = held else { continue };
        let Storage::Cuda(storage) = &**storage else { bail!("a tensor of another device than CUDA") };
        let (start, guard) = match &storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::F16(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::U32(slice) => slice.device_ptr(&stream),
            CudaStorageSlice::U8(slice) => slice.device_ptr(&stream),
            _ => bail!("no kernel reads {:?}", storage.dtype()),
        };
        *place = start + (layout.start_offset() * storage.dtype().size_in_bytes()) as u64;
        in_use.push(guard);
    }
    launch(pointers)
}

/// Launches a kernel on the device's stream, behind what was launched before; nobody waits for it.
///
/// Where the architecture has it, the kernel may begin while the one in front of it ends: it waits for that before it touches anything
/// but weights (`wait_for_earlier`), and is launched, and reads the first of these, in the meantime.
pub(super) fn run<A: DeviceRepr>(device: &CudaDevice, launch: &Launch, arguments: &A) -> Result<()> {
    let module = format!("llamavid_{}", launch.source.name());
    let function = device.get_or_load_custom_func(&launch.kernel, &module, launch.source.ptx())?;
    if launch.shared > USUAL_SHARED {
        let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, launch.shared as i32).w()?;
    }
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let mut early = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: Default::default(),
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let [x, y, z] = launch.grid;
    let config = CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        hStream: stream.cu_stream(),
        attrs: &raw mut early,
        numAttrs: cfg!(early_launches).into(),
    };
    let mut parameters = [std::ptr::from_ref(arguments).cast_mut().cast()];
    // SAFETY: the kernel has one argument, of this type, which the driver copies; its addresses are those of tensors that live until the
    // launch, and memory is freed on the same stream, behind it. All kernels wait for earlier ones by themselves.
    unsafe {
        cuLaunchKernelEx(
            &raw const config,
            function.cu_function(),
            parameters.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .w()?;
    Ok(())
}
