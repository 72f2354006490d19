//! The way of a minibatch to the device.
#![cfg_attr(feature = "cuda", allow(unsafe_code, reason = "page-locked memory comes uninitialised"))]

use candle_core::{Device, Result, Tensor, WithDType};

/// Reused slots of page-locked memory, so that the columns of a minibatch reach a GPU in one copy that the processor
/// does not wait for. Without a GPU it is nothing.
#[derive(Default)]
pub struct Staging {
    #[cfg(feature = "cuda")]
    numbers: Option<slot::Slot<f32>>,
    #[cfg(feature = "cuda")]
    bytes: Option<slot::Slot<u8>>,
}

impl Staging {
    /// The columns as tensors of the given shapes on `device`; on a GPU they are views of one buffer.
    ///
    /// # Errors
    /// When a shape does not fit its column or the device refuses.
    pub fn upload<const N: usize>(&mut self, columns: [(&[f32], &[usize]); N], device: &Device) -> Result<[Tensor; N]> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = device {
            return slot::send(&mut self.numbers, columns, gpu);
        }
        each(columns, device)
    }

    /// [`Staging::upload`] of bytes, with a slot of their own.
    ///
    /// # Errors
    /// As [`Staging::upload`].
    pub fn upload_bytes<const N: usize>(
        &mut self,
        columns: [(&[u8], &[usize]); N],
        device: &Device,
    ) -> Result<[Tensor; N]> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = device {
            return slot::send(&mut self.bytes, columns, gpu);
        }
        each(columns, device)
    }
}

fn each<T: WithDType, const N: usize>(columns: [(&[T], &[usize]); N], device: &Device) -> Result<[Tensor; N]> {
    transpose(columns.map(|(column, shape)| Tensor::from_slice(column, shape, device)))
}

/// All or the first error.
fn transpose<const N: usize>(tensors: [Result<Tensor>; N]) -> Result<[Tensor; N]> {
    let all = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    match <[Tensor; N]>::try_from(all) {
        Ok(tensors) => Ok(tensors),
        Err(all) => candle_core::bail!("{} columns instead of {N}", all.len()),
    }
}

#[cfg(feature = "cuda")]
mod slot {
    use candle_core::cuda_backend::cudarc::driver::{
        CudaEvent, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, sys::CUevent_flags,
    };
    use candle_core::cuda_backend::{CudaDType, WrapErr};
    use candle_core::op::BackpropOp;
    use candle_core::{CudaDevice, CudaStorage, Result, Storage, Tensor, bail};

    pub(super) struct Slot<T> {
        memory: PinnedHostSlice<T>,
        /// Recorded behind every copy. cudarc's own event of the memory is not, for event tracking is off.
        left: CudaEvent,
    }

    /// All columns one after the other in memory of the GPU.
    pub(super) fn send<T, const N: usize>(
        slot: &mut Option<Slot<T>>,
        columns: [(&[T], &[usize]); N],
        gpu: &CudaDevice,
    ) -> Result<[Tensor; N]>
    where
        T: CudaDType + DeviceRepr + ValidAsZeroBits + Copy + 'static,
    {
        let (len, stream) = (columns.iter().map(|(column, _)| column.len()).sum(), gpu.cuda_stream());
        if let Some(slot) = slot {
            // Until the copy before this one has left the slot.
            slot.left.synchronize().w()?;
        }
        if slot.as_ref().is_none_or(|slot| slot.memory.len() != len) {
            let context = stream.context();
            // Cached on the processor, unlike cudarc's default. SAFETY: written before anything reads it, below.
            let memory = unsafe { context.alloc_pinned_with_flags(len, 0) }.w()?;
            let left = context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC)).w()?;
            *slot = Some(Slot { memory, left });
        }
        let Some(Slot { memory, left }) = slot else { bail!("no page-locked memory") };
        let mut rest = memory.as_mut_slice().w()?;
        for (column, _) in columns {
            let (part, tail) = rest.split_at_mut(column.len());
            part.copy_from_slice(column);
            rest = tail;
        }
        // SAFETY: the copy fills all of it before anything on the same stream reads it.
        let mut buffer = unsafe { gpu.alloc::<T>(len)? };
        gpu.memcpy_htod(memory, &mut buffer)?;
        left.record(&stream).w()?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, gpu.clone()));
        let (all, mut start) = (Tensor::from_storage(storage, len, BackpropOp::none(), false), 0);
        super::transpose(columns.map(|(column, shape)| {
            let view = all.narrow(0, start, column.len())?.reshape(shape);
            start += column.len();
            view
        }))
    }
}
