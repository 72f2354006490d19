//! The stack as one differentiable operation of candle on the processor.
//!
//! The forward pass keeps its activations inside the operation, so the backward pass repeats nothing. A network is
//! worked on by one thread; gradients of a shared input are added in the order of the members. Buffers of activations
//! return to their stack when the graph is dropped, so a steady learner does not ask the system for memory for them.

use std::slice::ChunksExactMut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, bail};

use super::kernels::{self, Real};
use super::member::{Pass, Plan};

/// Activation buffers that wait for their next use.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<CpuStorage>>);

impl Buffers {
    /// More graphs than this alive at once is not what a learner does; the rest goes back to the allocator.
    const MOST: usize = 8;

    pub(super) fn take<T: Real>(&self, len: usize) -> Vec<T> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |s: &CpuStorage| T::cpu_storage_as_slice(s).is_ok_and(|s| s.len() == len);
        let found = waiting.iter().position(fits).map(|i| waiting.swap_remove(i));
        drop(waiting);
        found.and_then(|s| T::cpu_storage_data(s).ok()).unwrap_or_else(|| vec![T::zero(); len])
    }

    pub(super) fn give<T: Real>(&self, buffer: Vec<T>) {
        self.give_storage(T::to_cpu_storage_owned(buffer));
    }

    pub(super) fn give_storage(&self, buffer: CpuStorage) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= Self::MOST {
            waiting.remove(0);
        }
        waiting.push(buffer);
    }
}

/// What a forward pass leaves for the backward pass.
struct Saved {
    activations: CpuStorage,
    fingerprint: u64,
}

/// One application of a stack to an input.
pub(super) struct StackOp {
    /// Shape of a network.
    pub(super) plan: Arc<Plan>,
    /// Number of networks.
    pub(super) members: usize,
    /// Which of the networks, where it is not all of them; none of these keeps anything for a backward pass.
    pub(super) chosen: Option<Vec<usize>>,
    /// Threads to split them over.
    pub(super) threads: usize,
    /// Whether a backward pass may follow.
    pub(super) keep: bool,
    /// Whether it gives gradients of the parameters.
    pub(super) wants_parameters: bool,
    /// Whether it gives gradients of the input.
    pub(super) wants_input: bool,
    /// Where buffers come from and go to.
    pub(super) buffers: Arc<Buffers>,
    saved: Mutex<Option<Saved>>,
}

/// Rows of an input and whether each member has its own.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    own: bool,
}

impl StackOp {
    pub(super) fn new(plan: &Arc<Plan>, members: usize, threads: usize, buffers: &Arc<Buffers>) -> Self {
        Self {
            plan: Arc::clone(plan),
            members,
            chosen: None,
            threads: threads.clamp(1, members.max(1)),
            keep: false,
            wants_parameters: false,
            wants_input: false,
            buffers: Arc::clone(buffers),
            saved: Mutex::new(None),
        }
    }

    fn rows(&self, dims: &[usize]) -> Result<Rows> {
        match *dims {
            [count, width] if width == self.plan.inputs() => Ok(Rows { count, own: false }),
            [n, count, width] if n == self.members && width == self.plan.inputs() => Ok(Rows { count, own: true }),
            _ => bail!(
                "input of a stack of {} networks has shape {dims:?}, want (rows, {w}) or ({}, rows, {w})",
                self.members,
                self.members,
                w = self.plan.inputs()
            ),
        }
    }

    fn forward<T: Real>(&self, x: &[T], parameters: &[T], rows: Rows) -> Result<(CpuStorage, Shape)> {
        let (plan, count) = (&*self.plan, rows.count);
        let len = plan.kept(count);
        let (keep, share) = if self.keep { (self.members, 0) } else { (0, self.threads) };
        let mut kept = self.buffers.take::<T>(len * keep);
        let mut shared = self.buffers.take::<T>(len * share);
        let mut out = vec![T::zero(); self.members * count * plan.outputs()];
        let mut own = parts_mut(&mut kept, len);
        let members = parts_mut(&mut out, count * plan.outputs()).enumerate().map(|(m, out)| (m, out, own.next()));
        in_shares(self.threads, members.collect(), self.places(&mut shared, len), |(member, out, own), shared| {
            let network = self.chosen.as_ref().map_or(member, |chosen| chosen[member]);
            let parameters = part(parameters, network, plan.parameters());
            plan.forward(parameters, x_of(x, member, rows, plan), count, own.unwrap_or(shared), out);
        })?;
        self.buffers.give(shared);
        if self.keep {
            let (activations, fingerprint) = (T::to_cpu_storage_owned(kept), self.fingerprint(parameters));
            *self.saved() = Some(Saved { activations, fingerprint });
        }
        Ok((T::to_cpu_storage_owned(out), (self.members, count, plan.outputs()).into()))
    }

    fn backward<T: Real>(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (plan, rows) = (&*self.plan, self.rows(x.dims())?);
        let saved = self.saved();
        let Some(saved) = saved.as_ref() else { bail!("backward pass of a stack without its forward pass") };
        let guards = [x, parameters, g].map(Tensor::storage_and_layout);
        let [x_data, parameter_data, g_data] = guards.each_ref().map(|(s, layout)| slice::<T>(cpu(s)?, layout));
        let (x_data, parameter_data, g_data) = (x_data?, parameter_data?, g_data?);
        if saved.fingerprint != self.fingerprint(parameter_data) {
            bail!(
                "the parameters of a stack changed between its forward and its backward pass: step after all gradients"
            );
        }
        let kept = T::cpu_storage_as_slice(&saved.activations)?;
        let (parameters_len, x_len) = (plan.parameters(), rows.count * plan.inputs());
        let mut grad_parameters =
            vec![T::zero(); if self.wants_parameters { self.members * parameters_len } else { 0 }];
        let mut grad_x = vec![T::zero(); if self.wants_input { self.members * x_len } else { 0 }];
        let mut scratch = self.buffers.take::<T>(plan.scratch(rows.count) * self.threads);
        let (mut to_parameters, mut to_x) =
            (parts_mut(&mut grad_parameters, parameters_len), parts_mut(&mut grad_x, x_len));
        let members = (0..self.members).map(|m| (m, to_parameters.next(), to_x.next()));
        let places = self.places(&mut scratch, plan.scratch(rows.count));
        in_shares(self.threads, members.collect(), places, |(m, p, x), scratch| {
            let pass = Pass {
                parameters: part(parameter_data, m, parameters_len),
                x: x_of(x_data, m, rows, plan),
                rows: rows.count,
                kept: part(kept, m, plan.kept(rows.count)),
                g: part(g_data, m, rows.count * plan.outputs()),
            };
            plan.backward(&pass, p, x, scratch);
        })?;
        self.buffers.give(scratch);
        if !rows.own && self.wants_input {
            let (total, others) = grad_x.split_at_mut(x_len);
            parts_mut(others, x_len).for_each(|part| kernels::add_into(total, part));
            grad_x.truncate(x_len);
        }
        let grad_x = self.wants_input.then(|| Tensor::from_vec(grad_x, x.shape(), x.device()));
        let grad_parameters =
            self.wants_parameters.then(|| Tensor::from_vec(grad_parameters, parameters.shape(), x.device()));
        Ok((grad_x.transpose()?, grad_parameters.transpose()?))
    }

    fn saved(&self) -> MutexGuard<'_, Option<Saved>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hash of the last layers: changes with practically every step of an optimiser.
    fn fingerprint<T: Real>(&self, parameters: &[T]) -> u64 {
        let start = self.plan.layers.last().map_or(0, |l| l.start);
        let last_layers = parameters.chunks_exact(self.plan.parameters().max(1)).flat_map(|p| &p[start..]);
        hash(last_layers)
    }

    /// A working space for every thread, empty where there are none.
    fn places<'a, T>(&self, scratch: &'a mut [T], len: usize) -> Vec<&'a mut [T]> {
        let mut parts = parts_mut(scratch, len);
        (0..self.threads).map(|_| parts.next().unwrap_or_default()).collect()
    }
}

/// Hash of numbers: changes with practically every change of one.
pub(super) fn hash<'a, T: Real>(numbers: impl Iterator<Item = &'a T>) -> u64 {
    numbers.fold(0, |hash: u64, v| hash.rotate_left(5).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ v.to_f64().to_bits())
}

/// Does `work` for every item: a contiguous share of them on this thread and each other share on its own, each thread
/// with a place of its own, of which there are `threads`.
pub(super) fn in_shares<M: Send, P: Send>(
    threads: usize,
    items: Vec<M>,
    places: Vec<P>,
    work: impl Fn(M, &mut P) + Sync,
) -> Result<()> {
    let (count, mut items) = (items.len(), items.into_iter());
    let mut shares = places.into_iter().enumerate().map(|(t, place)| {
        let len = (t + 1) * count / threads - t * count / threads;
        (items.by_ref().take(len).collect::<Vec<M>>(), place)
    });
    let run = |(share, mut place): (Vec<M>, P)| {
        for item in share {
            work(item, &mut place);
        }
    };
    let first = shares.next();
    std::thread::scope(|scope| {
        for share in shares {
            let thread = std::thread::Builder::new().name(String::from("learner-kernel"));
            thread.spawn_scoped(scope, || run(share)).map_err(Error::wrap)?;
        }
        first.into_iter().for_each(run);
        Ok(())
    })
}

impl Drop for StackOp {
    fn drop(&mut self) {
        if let Some(saved) = self.saved.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            self.buffers.give_storage(saved.activations);
        }
    }
}

impl CustomOp2 for StackOp {
    fn name(&self) -> &'static str {
        "network-stack"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, p: &CpuStorage, pl: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.rows(xl.dims())?;
        match x {
            CpuStorage::F32(_) => self.forward::<f32>(slice(x, xl)?, slice(p, pl)?, rows),
            CpuStorage::F64(_) => self.forward::<f64>(slice(x, xl)?, slice(p, pl)?, rows),
            _ => bail!("a stack works in f32 or f64"),
        }
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        match x.dtype() {
            DType::F32 => self.backward::<f32>(x, p, &g),
            DType::F64 => self.backward::<f64>(x, p, &g),
            other => bail!("a stack works in f32 or f64, not {other:?}"),
        }
    }
}

/// The `index`-th of equal parts.
fn part<T>(all: &[T], index: usize, len: usize) -> &[T] {
    &all[index * len..][..len]
}

/// Equal parts; none when `len` is 0.
fn parts_mut<T>(all: &mut [T], len: usize) -> ChunksExactMut<'_, T> {
    all.chunks_exact_mut(len.max(1))
}

fn x_of<'a, T>(x: &'a [T], member: usize, rows: Rows, plan: &Plan) -> &'a [T] {
    part(x, if rows.own { member } else { 0 }, rows.count * plan.inputs())
}

/// The bytes of a processor tensor.
pub(super) fn cpu(storage: &candle_core::Storage) -> Result<&CpuStorage> {
    match storage {
        candle_core::Storage::Cpu(storage) => Ok(storage),
        _ => bail!("expected a tensor on the processor"),
    }
}

/// The numbers of a contiguous tensor.
pub(super) fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}
