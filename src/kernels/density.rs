//! The density ratio and its priorities.

use candle_core::{Result, Tensor, bail};

use super::operation::Operation;
use super::queue::{Grid, Queue, launch};

/// What makes a ratio of a network's output; the numbers are those of `density.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(u, 0)`.
    Relu = 0,
    /// `ln(1 + exp(u))`.
    Softplus = 1,
    /// `exp(u)`.
    Exp = 2,
}

/// `w = activation(u)`, differentiable, same shape.
///
/// # Errors
/// When the device fails.
pub fn ratio(u: &Tensor, activation: Activation) -> Result<Tensor> {
    let u = u.contiguous()?;
    let (queue, n, kind) = (Queue::of(u.device())?, u.elem_count(), activation as i32);
    let w = queue.alloc(n)?;
    launch!(queue, "ratio", Grid::Elements(n), &u, n, kind, &w)?;
    let input = u.detach();
    let backward = move |_: &Tensor, g: &Tensor| {
        let gradient = queue.alloc(n)?;
        launch!(queue, "ratio_backward", Grid::Elements(n), &input, g, n, kind, &gradient)?;
        Ok([Some(gradient.tensor(input.shape()))])
    };
    Operation::<1>::new("density-ratio", w, u.shape(), backward).of(&u)
}

/// Loss of the density ratio, a scalar, differentiable in both ratios `(n)`.
///
/// # Errors
/// When the lengths differ.
pub fn density_loss(online: &Tensor, offline: &Tensor) -> Result<Tensor> {
    let (online, offline) = (online.contiguous()?, offline.contiguous()?);
    if offline.dims() != online.dims() {
        bail!("ratios of {:?} online and {:?} offline rows", online.dims(), offline.dims());
    }
    let (queue, n) = (Queue::of(online.device())?, online.elem_count());
    let loss = queue.alloc(1)?;
    launch!(queue, "density_loss", Grid::One, &online, &offline, n, &loss)?;
    let (on, off) = (online.detach(), offline.detach());
    let backward = move |_: &Tensor, g: &Tensor| {
        let (g_on, g_off) = (queue.alloc(n)?, queue.alloc(n)?);
        launch!(queue, "density_loss_backward", Grid::Elements(n), &on, &off, g, n, &g_on, &g_off)?;
        Ok([Some(g_on.tensor(on.shape())), Some(g_off.tensor(off.shape()))])
    };
    Operation::<2>::new("density-loss", loss, (), backward).of(&online, &offline)
}

/// Priorities of the ratios `w` `(n)`, normalised by those of `offline` `(m)`: `clamp(w^(1/T) / mean, min, max)`; NaN
/// for a ratio that is not finite.
///
/// # Errors
/// When the device fails.
pub fn priorities(w: &Tensor, offline: &Tensor, temperature: f64, min: f32, max: f32) -> Result<Tensor> {
    let (w, offline) = (w.contiguous()?, offline.contiguous()?);
    let (queue, n, m) = (Queue::of(w.device())?, w.elem_count(), offline.elem_count());
    let out = queue.alloc(n)?;
    launch!(queue, "priorities", Grid::One, &w, n, &offline, m, 1.0 / temperature, min, max, &out)?;
    Ok(out.tensor(n))
}
