//! The way of a minibatch to the device.
#![allow(unsafe_code, reason = "page-locked memory comes uninitialised")]

use candle_core::{Device, Result, Tensor};

/// A reused slot of page-locked memory, so that the columns of a minibatch reach a GPU in one copy that the processor
/// does not wait for. Without a GPU it is nothing.
#[derive(Default)]
pub struct Staging {
    #[cfg(feature = "cuda")]
    slot: Option<candle_core::cuda_backend::cudarc::driver::PinnedHostSlice<f32>>,
}

impl Staging {
    /// The columns as tensors of the given shapes on `device`; on a GPU they are views of one buffer.
    ///
    /// # Errors
    /// When a shape does not fit its column or the device refuses.
    pub fn upload<const N: usize>(&mut self, columns: [(&[f32], &[usize]); N], device: &Device) -> Result<[Tensor; N]> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = device {
            let all = self.send(&columns.map(|(numbers, _)| numbers), gpu)?;
            let mut start = 0;
            return transpose(columns.map(|(numbers, shape)| {
                let view = all.narrow(0, start, numbers.len())?.reshape(shape);
                start += numbers.len();
                view
            }));
        }
        transpose(columns.map(|(numbers, shape)| Tensor::from_slice(numbers, shape, device)))
    }

    /// All columns one after the other in memory of the GPU.
    #[cfg(feature = "cuda")]
    fn send(&mut self, columns: &[&[f32]], gpu: &candle_core::CudaDevice) -> Result<Tensor> {
        use candle_core::cuda_backend::WrapErr;
        use candle_core::op::BackpropOp;
        use candle_core::{CudaStorage, Storage};

        let len = columns.iter().map(|column| column.len()).sum();
        if self.slot.as_ref().is_none_or(|slot| slot.len() != len) {
            // Cached on the processor, unlike cudarc's default. SAFETY: written before anything reads it, below.
            self.slot = Some(unsafe { gpu.cuda_stream().context().alloc_pinned_with_flags(len, 0) }.w()?);
        }
        let Some(slot) = &mut self.slot else { candle_core::bail!("no page-locked memory") };
        // Waits until the copy before this one has left the slot.
        let mut rest = slot.as_mut_slice().w()?;
        for column in columns {
            let (part, tail) = rest.split_at_mut(column.len());
            part.copy_from_slice(column);
            rest = tail;
        }
        // SAFETY: the copy fills all of it before anything on the same stream reads it.
        let mut buffer = unsafe { gpu.alloc::<f32>(len)? };
        gpu.memcpy_htod(slot, &mut buffer)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, gpu.clone()));
        Ok(Tensor::from_storage(storage, len, BackpropOp::none(), false))
    }
}

/// All or the first error.
fn transpose<const N: usize>(tensors: [Result<Tensor>; N]) -> Result<[Tensor; N]> {
    let all = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    match <[Tensor; N]>::try_from(all) {
        Ok(tensors) => Ok(tensors),
        Err(all) => candle_core::bail!("{} columns instead of {N}", all.len()),
    }
}
