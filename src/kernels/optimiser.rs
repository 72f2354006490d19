//! Adam and the slow copy of target networks, in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};

use super::queue::{Grid, Queue, launch};

/// One step of Adam with its bias corrections as scalars.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Decay of the first moment.
    pub beta1: f32,
    /// `1 - beta1`, rounded from double precision.
    pub take1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 - beta2`.
    pub take2: f32,
    /// `lr / (1 - beta1^t)`.
    pub rate: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub root_scale: f32,
    /// Added outside the root.
    pub eps: f32,
}

/// One step along `gradient`; then, where there is a target with its rate `tau`, `target = (1 - tau) target + tau
/// parameter`.
///
/// # Errors
/// When shapes differ; then nothing was changed.
pub fn adam_polyak(
    parameter: &Var,
    m: &Var,
    v: &Var,
    gradient: &Tensor,
    target: Option<(&Var, f64)>,
    step: AdamStep,
) -> Result<()> {
    let others = [m.as_tensor(), v.as_tensor(), gradient].into_iter().chain(target.map(|(t, _)| t.as_tensor()));
    if let Some(other) = others.into_iter().find(|t| t.dims() != parameter.dims()) {
        bail!("an optimiser's step with shapes {:?} and {:?}", parameter.dims(), other.dims());
    }
    let gradient = gradient.contiguous()?;
    let (queue, n) = (Queue::of(parameter.device())?, parameter.elem_count());
    let AdamStep { beta1, take1, beta2, take2, rate, root_scale, eps } = step;
    let tau = target.map_or(0.0, |(_, tau)| tau);
    let (grid, keep) = (Grid::Elements(n), 1.0 - tau);
    let run = |p: u64, m: u64, v: u64, t: u64| {
        launch!(
            queue,
            "adam_polyak",
            grid,
            p,
            m,
            v,
            &gradient,
            t,
            n,
            beta1,
            take1,
            beta2,
            take2,
            rate,
            root_scale,
            eps,
            keep,
            tau
        )
    };
    edit(parameter, |p| {
        edit(m, |m| {
            edit(v, |v| match target {
                Some((target, _)) => edit(target, |t| run(p, m, v, t)),
                None => run(p, m, v, 0),
            })
        })
    })
}

/// Opens a variable for writing and tells `work` where it starts.
fn edit(var: &Var, work: impl FnOnce(u64) -> Result<()>) -> Result<()> {
    var.inplace_op1(&Edit(RefCell::new(Some(work))))
}

struct Edit<F>(RefCell<Option<F>>);

impl<F: FnOnce(u64) -> Result<()>> Edit<F> {
    fn run(&self, start: Option<u64>) -> Result<()> {
        match (start, self.0.take()) {
            (Some(start), Some(work)) => work(start),
            _ => bail!("in-place work needs a contiguous f32 variable"),
        }
    }
}

impl<F: FnOnce(u64) -> Result<()>> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.run(match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(data), Some((start, _))) => Some(data[start..].as_mut_ptr() as u64),
            _ => None,
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        self.run(layout.contiguous_offsets().and_then(|(start, _)| super::device::address_mut(storage, start)))
    }
}
