//! A kernel's result as a part of candle's graph.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};

use super::queue::Memory;

type Backward<const N: usize> = dyn Fn(&Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync;

/// Hands over a result that was computed before, and knows the gradients of the `N` tensors it depends on.
pub(crate) struct Operation<const N: usize> {
    name: &'static str,
    result: Mutex<Option<(Storage, Shape)>>,
    backward: Box<Backward<N>>,
}

impl<const N: usize> Operation<N> {
    /// `backward` gets the result and its gradient, both contiguous.
    pub(crate) fn new(
        name: &'static str,
        result: Memory,
        shape: impl Into<Shape>,
        backward: impl Fn(&Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
    ) -> Self {
        let result = Mutex::new(Some((result.storage(), shape.into())));
        Self { name, result, backward: Box::new(backward) }
    }

    fn take(&self) -> Result<(Storage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{} gave its result away before", self.name),
        }
    }

    fn take_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} has its result elsewhere than its input", self.name),
        }
    }

    #[cfg(feature = "cuda")]
    fn take_cuda(&self) -> Result<(candle_core::CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} has its result elsewhere than its input", self.name),
        }
    }
}

impl Operation<1> {
    /// The result, depending on `a`.
    pub(crate) fn of(self, a: &Tensor) -> Result<Tensor> {
        a.apply_op1(self)
    }
}

impl Operation<2> {
    /// The result, depending on `a` and `b`.
    pub(crate) fn of(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a.apply_op2(b, self)
    }
}

impl CustomOp1 for Operation<1> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, _: &Tensor, result: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let [a] = (self.backward)(result, &g.contiguous()?)?;
        Ok(a)
    }
}

impl CustomOp2 for Operation<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, result: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = (self.backward)(result, &g.contiguous()?)?;
        Ok((a, b))
    }
}
