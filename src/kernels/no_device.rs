//! Opening the GPU, and in words why there is none.

use candle_core::Device;

/// Why the learner's GPU is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoDevice {
    /// The program was built without CUDA.
    #[error("this build has no CUDA: build with --features cuda (docs/gpu.md)")]
    NotBuilt,
    /// No GPU answers.
    #[error("the CUDA driver sees no GPU")]
    NoGpu,
    /// The driver is older than the toolkit of the build.
    #[error("the CUDA driver is older than this build: update the driver, or build with the toolkit it belongs to")]
    OldDriver,
    /// Not even a context fits.
    #[error("the GPU has no memory left: stop what else uses it")]
    Memory,
    /// There is code for other GPUs only.
    #[error(
        "this build has no code for this GPU: build with CUDA_COMPUTE_CAP set to its compute capability (docs/gpu.md)"
    )]
    Architecture,
    /// Something else.
    #[error("the GPU cannot be used: {0}")]
    Other(candle_core::Error),
}

impl From<candle_core::Error> for NoDevice {
    fn from(source: candle_core::Error) -> Self {
        let text = source.to_string();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if matches!(source, candle_core::Error::NotCompiledWithCudaSupport) {
            Self::NotBuilt
        } else if says(&["CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_STUB_LIBRARY"]) {
            Self::NoGpu
        } else if says(&[
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "INSUFFICIENT_DRIVER",
        ]) {
            Self::OldDriver
        } else if says(&["CUDA_ERROR_OUT_OF_MEMORY", "ALLOC_FAILED"]) {
            Self::Memory
        } else if says(&["CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_PTX"]) {
            Self::Architecture
        } else {
            Self::Other(source)
        }
    }
}

/// The first GPU, on a stream of its own, with every kernel loaded and run once: nothing is compiled or loaded later,
/// when a robot may be moving.
///
/// # Errors
/// When there is no GPU, or none that works.
pub fn open() -> Result<Device, NoDevice> {
    #[cfg(feature = "cuda")]
    {
        let device = super::device::open()?;
        super::warm_up(&device)?;
        Ok(device)
    }
    #[cfg(not(feature = "cuda"))]
    Err(NoDevice::NotBuilt)
}
