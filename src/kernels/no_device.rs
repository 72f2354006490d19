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
    /// What was asked for does not fit.
    #[error("the GPU has no memory left: end what else uses it, or lower learner.batch_size or learner.members")]
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

/// Whether the device refused memory.
pub fn out_of_memory(error: &candle_core::Error) -> bool {
    let text = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|word| text.contains(word))
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
        } else if out_of_memory(&source) {
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

/// Gives back what freed tensors left on a GPU for their successors; nothing on the processor. A driver that refuses
/// keeps it until the process ends.
pub fn release(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device
        && let Err(error) = super::device::release(gpu)
    {
        log::warn!("memory of the GPU stays reserved: {error}");
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the driver's answers come through cudarc and candle.
    #[test]
    fn answers_of_the_driver_become_words() {
        let of = |answer: &str| NoDevice::from(candle_core::Error::Msg(format!("DriverError({answer}, \"...\")")));
        let table = [
            ("CUDA_ERROR_NO_DEVICE", "sees no GPU"),
            ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "older than this build"),
            ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "older than this build"),
            ("CUDA_ERROR_OUT_OF_MEMORY", "no memory left"),
            ("CUBLAS_STATUS_ALLOC_FAILED", "no memory left"),
            ("CUDA_ERROR_NO_BINARY_FOR_GPU", "no code for this GPU"),
            ("CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_FAILED"),
        ];
        for (answer, words) in table {
            assert!(of(answer).to_string().contains(words), "{answer}: {}", of(answer));
        }
    }
}
