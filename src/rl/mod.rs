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
/// `(members, samples * batch, o + a)`. An `observation` `(members, batch, o)` gives each member its own rows too.
///
/// # Errors
/// When the batches differ.
pub fn state_action(observation: &Tensor, action: &Tensor) -> Result<Tensor> {
    let own = observation.rank() == 3;
    let (observation, mut dims) = match (own, action.rank()) {
        (true, 4) => (observation.unsqueeze(1)?, action.dims().to_vec()),
        (true, _) => (observation.clone(), observation.dims().to_vec()),
        _ => (observation.clone(), action.dims().to_vec()),
    };
    if let (true, Some(members)) = (own, dims.first_mut()) {
        *members = observation.dim(0)?;
    }
    let mut of = |part: &Tensor| {
        if let Some(width) = dims.last_mut() {
            *width = part.dim(D::Minus1)?;
        }
        part.broadcast_as(dims.as_slice())
    };
    let rows = Tensor::cat(&[&of(&observation)?, &of(action)?], D::Minus1)?;
    match *rows.dims() {
        [1, samples, batch, width] if !own => rows.reshape((samples * batch, width)),
        [members, samples, batch, width] => rows.reshape((members, samples * batch, width)),
        _ => Ok(rows),
    }
}
