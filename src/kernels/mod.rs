//! Fused kernels of the learner for NVIDIA GPUs (layer 0), as differentiable operations of candle.
//!
//! The kernels are the `.cu` files in `cuda/`, one module with machine code for the GPUs of Jetson Orin (sm_87), Hopper
//! (sm_90) and Jetson Thor (sm_110) and PTX for others. Losses and networks call the functions here for tensors that
//! [`take`] accepts, and are plain tensor algebra for all others; what an operation means is written there. Matrix
//! products are cuBLAS's, batched with strides over the members of a stack.
//!
//! The same files are compiled for the processor with the feature `host-kernels`; [`on_host`] sends a test's tensors
//! through them. So everything but the GPU itself is tested without one: kernels, operations with their gradients, and a
//! learner's whole update. Single precision only.
//!
//! # One thread, one stream
//!
//! A GPU device has a stream of its own, on which everything runs in the order of the calls: an operation never waits
//! for its result, memory is reused without events, and only reading numbers back synchronises. Tensors of one
//! device are used by one thread at a time, the learner's; other threads get host copies.

mod critic;
mod density;
#[cfg(feature = "cuda")]
mod device;
#[cfg(host_kernels)]
mod host;
mod image;
mod no_device;
mod operation;
mod optimiser;
mod policy;
mod queue;
mod staging;
#[cfg(test)]
#[cfg(host_kernels)]
mod tests;
#[cfg(any(feature = "cuda", host_kernels))]
mod warm_up;

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

pub use critic::{Backup, Entropy, ValueRule, actor_value, td_target, twin_loss};
pub use density::{Activation, density_loss, priorities, ratio};
pub use image::normalise_images;
pub use no_device::{NoDevice, open, out_of_memory, release};
pub(crate) use operation::Operation;
pub use optimiser::{AdamStep, adam_polyak};
pub use policy::policy_sample;
pub use queue::launches;
pub(crate) use queue::{Argument, Gemm, Grid, Memory, Queue, launch};
pub use staging::Staging;
#[cfg(any(feature = "cuda", host_kernels))]
pub use warm_up::warm_up;

thread_local! {
    static ON_HOST: Cell<Option<Order>> = const { Cell::new(None) };
}

/// Whether the kernels do the work for `x`: a single-precision tensor on a GPU, or on the processor inside [`on_host`].
pub fn take(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && place(x.device())
}

/// Whether the kernels run on `device`.
pub(crate) fn place(device: &Device) -> bool {
    match device {
        Device::Cuda(_) => cfg!(feature = "cuda"),
        _ => ON_HOST.get().is_some(),
    }
}

/// In which order the processor runs what a GPU runs at once. No result may depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Blocks, warps and lanes from the first on.
    Ascending,
    /// From the last on.
    Descending,
}

/// Runs `work` with the kernels working on this thread's processor tensors, for tests; `None` in a build without them.
pub fn on_host<R>(order: Order, work: impl FnOnce() -> R) -> Option<R> {
    if cfg!(not(host_kernels)) {
        return None;
    }
    let before = ON_HOST.replace(Some(order));
    let result = work();
    ON_HOST.set(before);
    Some(result)
}
