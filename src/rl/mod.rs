//! Losses and targets (layer 3): pure functions from tensors to tensors, each named after its equation.
//!
//! Nothing here steps a network, draws a random number or writes a priority. Values of critics come as
//! `(members, batch)`; noise, samples and constants are inputs.

pub mod actor;
pub mod cql;
pub mod critic;
pub mod density_ratio;
pub mod entropy;
#[cfg(test)]
mod identities;
pub mod trajectory;

use candle_core::{D, Result, Tensor};

/// Rows for a critic: `observation ++ action`.
///
/// `observation` is `(batch, o)`. `action` `(batch, a)` gives `(batch, o + a)`, the same rows for every critic;
/// `(1, samples, batch, a)` gives `(samples * batch, o + a)`; `(members, samples, batch, a)` gives each member its own
/// `(members, samples * batch, o + a)`.
///
/// # Errors
/// When the batches differ.
pub fn state_action(observation: &Tensor, action: &Tensor) -> Result<Tensor> {
    let mut dims = action.dims().to_vec();
    if let Some(width) = dims.last_mut() {
        *width = observation.dim(D::Minus1)?;
    }
    let rows = Tensor::cat(&[&observation.broadcast_as(dims)?, action], D::Minus1)?;
    match *rows.dims() {
        [1, samples, batch, width] => rows.reshape((samples * batch, width)),
        [members, samples, batch, width] => rows.reshape((members, samples * batch, width)),
        _ => Ok(rows),
    }
}
