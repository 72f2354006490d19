//! The kernels on an NVIDIA GPU.
#![allow(unsafe_code, reason = "launches kernels and matrix products on addresses")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys::cublasOperation_t};
use candle_core::cuda_backend::cudarc::driver::{
    self, CudaFunction, CudaModule, CudaSlice, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, bail};

use super::queue::{Gemm, Passed};

/// Machine code for sm_87, sm_90 and sm_110, and PTX of compute_80 for all others (build.rs).
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The module in the GPU's primary context, and its functions by name.
struct Loaded {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
}

/// One GPU per process.
static LOADED: OnceLock<Loaded> = OnceLock::new();

/// A GPU with its stream.
#[derive(Clone)]
pub(crate) struct Gpu(CudaDevice);

/// Memory of a GPU for a result.
pub(crate) struct Buffer {
    slice: CudaSlice<f32>,
    device: CudaDevice,
}

impl Gpu {
    /// Of an open device.
    pub(super) fn of(device: &CudaDevice) -> Self {
        Self(device.clone())
    }

    /// Uninitialised memory.
    pub(super) fn alloc(&self, len: usize) -> Result<Buffer> {
        // SAFETY: every kernel writes all of its result before anything reads it (tests poison it with NaN).
        let slice = unsafe { self.0.alloc::<f32>(len)? };
        Ok(Buffer { slice, device: self.0.clone() })
    }

    /// Where a storage's `start`-th entry lies.
    pub(super) fn address(&self, storage: &CudaStorage, start: usize) -> Result<u64> {
        use candle_core::backend::BackendStorage;
        let stream = self.0.cuda_stream();
        Ok(match storage.dtype() {
            DType::F32 => storage.as_cuda_slice::<f32>()?.slice(start..).device_ptr(&stream).0,
            DType::U32 => storage.as_cuda_slice::<u32>()?.slice(start..).device_ptr(&stream).0,
            DType::I32 => storage.as_cuda_slice::<i32>()?.slice(start..).device_ptr(&stream).0,
            DType::U8 => storage.as_cuda_slice::<u8>()?.slice(start..).device_ptr(&stream).0,
            other => bail!("a kernel works on f32, u32, i32 or u8, not {other:?}"),
        })
    }

    fn function(&self, kernel: &'static str) -> Result<CudaFunction> {
        let loaded = if let Some(loaded) = LOADED.get() {
            loaded
        } else {
            let module = self.0.cuda_stream().context().load_module(Ptx::from_binary(IMAGE.to_vec())).w()?;
            LOADED.get_or_init(|| Loaded { module, functions: Mutex::default() })
        };
        let mut functions = loaded.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let function = loaded.module.load_function(kernel).w()?;
        functions.insert(kernel, function.clone());
        Ok(function)
    }

    /// Sends a kernel to the stream.
    pub(super) fn launch(
        &self,
        kernel: &'static str,
        (x, y): (u32, u32),
        threads: u32,
        arguments: &[Passed],
    ) -> Result<()> {
        let (function, stream) = (self.function(kernel)?, self.0.cuda_stream());
        let mut builder = stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Passed::Address(value) => builder.arg(value),
                Passed::Integer(value) => builder.arg(value),
                Passed::Number(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig { grid_dim: (x, y, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: number and kinds of the arguments are those of the kernel (the tests on the processor compare them at
        // every launch), and addresses lie in storages that the caller holds, as long as its counts say.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    /// Sends a matrix product to the stream.
    pub(super) fn gemm(&self, product: &Gemm) -> Result<()> {
        let Gemm { transpose_a, transpose_b, shape: (m, n, k), a, b, c, batch } = *product;
        let op = |transpose| if transpose { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
        let (one, zero) = (1f32, 0f32);
        let blas = self.0.cublas_handle();
        self.0.cuda_stream().context().bind_to_thread().w()?;
        // SAFETY: the handle belongs to the device and sends to its stream; the three matrices lie in storages that the
        // caller holds, with leading dimensions and strides inside them; `one` and `zero` are read during the call.
        unsafe {
            cublas::sgemm_strided_batched(
                *blas.handle(),
                op(transpose_a),
                op(transpose_b),
                m as i32,
                n as i32,
                k as i32,
                &raw const one,
                a.0 as *const f32,
                a.1 as i32,
                a.2 as i64,
                b.0 as *const f32,
                b.1 as i32,
                b.2 as i64,
                &raw const zero,
                c.0 as *mut f32,
                c.1 as i32,
                c.2 as i64,
                batch as i32,
            )
        }
        .w()
    }
}

impl Buffer {
    /// Where it starts.
    pub(super) fn at(&self) -> u64 {
        self.slice.device_ptr(&self.device.cuda_stream()).0
    }

    /// As a storage of candle.
    pub(super) fn storage(self) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(self.slice, self.device)
    }
}

/// Where the `start`-th number of a storage lies that is open for writing; `None` unless it holds f32.
pub(super) fn address_mut(storage: &mut CudaStorage, start: usize) -> Option<u64> {
    let stream = storage.device.cuda_stream();
    let slice = storage.as_cuda_slice_mut::<f32>().ok()?;
    Some(slice.slice_mut(start..).device_ptr_mut(&stream).0)
}

/// The first GPU, on a stream of its own.
pub(super) fn open() -> Result<Device> {
    let device = Device::new_cuda_with_stream(0)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: everything on this device goes to its one stream in the order of the calls (see the module's head),
        // so there is nothing that events between streams could order.
        unsafe { cuda.disable_event_tracking() };
        if let Err(error) = keep_freed(cuda) {
            log::warn!("updates on this GPU ask the driver for memory again and again: {error}");
        }
    }
    Ok(device)
}

/// Lets freed memory wait for its next use. As a driver starts, none does: whenever an update reads its numbers, all of
/// it goes back, and the next update asks for it again.
fn keep_freed(device: &CudaDevice) -> Result<()> {
    let (pool, mut bytes) = (pool(device)?, u64::MAX);
    let attribute = driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is that of an open device; the attribute is a number of 64 bits, read during the call.
    unsafe { driver::result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast()) }.w()
}

/// Gives the memory back that waits for its next use.
pub(super) fn release(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().synchronize().w()?;
    // SAFETY: the pool is that of an open device.
    unsafe { driver::result::mem_pool::trim_to(pool(device)?, 0) }.w()
}

/// Where the device's memory comes from.
fn pool(device: &CudaDevice) -> Result<driver::sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    // SAFETY: the device is open.
    unsafe { driver::result::device::get_default_mem_pool(stream.context().cu_device()) }.w()
}
