//! The density ratio `w(s, a) = d_online / d_offline` and the priorities made from it (Off2OnRL, Eq. 4 and 6).

use candle_core::{Result, Tensor, bail};

pub use crate::config::OutputActivation;
use crate::kernels::{self, Activation};
use crate::nn::pointwise;

/// Guard inside the logarithms and under the normaliser (Off2OnRL code).
pub const GUARD: f64 = 1e-10;

/// What helps against ratios that are not numbers.
const ADVICE: &str = "lower the density learning rate";

/// Output `u` for which the ratio is one.
pub fn output_of_one(activation: OutputActivation) -> f32 {
    match activation {
        OutputActivation::Relu => 1.0,
        OutputActivation::Softplus => 1f32.exp_m1().ln(),
        OutputActivation::Exp => 0.0,
    }
}

/// `w` from the network's output `u`, same shape.
///
/// # Errors
/// When candle cannot run the operation.
pub fn ratio(net_out: &Tensor, activation: OutputActivation) -> Result<Tensor> {
    if kernels::take(net_out) {
        let kind = match activation {
            OutputActivation::Relu => Activation::Relu,
            OutputActivation::Softplus => Activation::Softplus,
            OutputActivation::Exp => Activation::Exp,
        };
        return kernels::ratio(net_out, kind);
    }
    match activation {
        OutputActivation::Relu => pointwise::relu(net_out),
        OutputActivation::Softplus => pointwise::softplus(net_out),
        OutputActivation::Exp => net_out.exp(),
    }
}

/// `mean_b [-ln(2/(w_off + 1) + g) - ln(2 w_on/(w_on + 1) + g)]`: the variational bound of the Jensen-Shannon
/// divergence, negated (Eq. 4).
///
/// `online`, `offline`: `(batch)` ratios of rows drawn uniformly from either buffer.
///
/// # Errors
/// When shapes differ.
pub fn loss(online: &Tensor, offline: &Tensor) -> Result<Tensor> {
    if kernels::take(online) {
        return kernels::density_loss(online, offline);
    }
    let from_offline = (((offline + 1.0)?.recip()? * 2.0)? + GUARD)?.log()?;
    let from_online = (((online / (online + 1.0)?)? * 2.0)? + GUARD)?.log()?;
    (from_offline + from_online)?.mean_all()?.neg()
}

/// Estimate of the Jensen-Shannon divergence in nats, in `[0, ln 2]` up to noise: how far online data has moved.
pub fn js_estimate(loss: f64) -> f64 {
    -loss / 2.0
}

/// `mean_b w_off^(1/T) + g`.
///
/// # Errors
/// When the ratios cannot be read.
pub fn normaliser(offline: &Tensor, priority_temperature: f64) -> Result<f64> {
    let offline = host(offline)?;
    let sum: f64 = offline.iter().map(|w| w.powf(1.0 / priority_temperature)).sum();
    Ok(sum / offline.len().max(1) as f64 + GUARD)
}

/// `clamp(w^(1/T) / normaliser, min, max)` of a minibatch (Eq. 6), in its order.
///
/// Source: Off2OnRL code; the ratios are those before the ratio network's own step, and the normaliser is over the
/// offline rows of the same update.
///
/// # Errors
/// When a ratio is not finite: a priority made of it would poison the sampler.
pub fn priorities(
    minibatch: &Tensor,
    offline: &Tensor,
    priority_temperature: f64,
    min: f32,
    max: f32,
) -> Result<Vec<f32>> {
    if kernels::take(minibatch) {
        let (w, offline) = (minibatch.flatten_all()?, offline.flatten_all()?);
        let priorities = kernels::priorities(&w, &offline, priority_temperature, min, max)?.to_vec1::<f32>()?;
        return match priorities.iter().position(|p| p.is_nan()) {
            Some(row) => bail!("density ratio of row {row} or of an offline row is not finite: {ADVICE}"),
            None => Ok(priorities),
        };
    }
    let normaliser = normaliser(offline, priority_temperature)?;
    let priority = |w: &f64| ((w.powf(1.0 / priority_temperature) / normaliser) as f32).max(min).min(max);
    Ok(host(minibatch)?.iter().map(priority).collect())
}

fn host(ratios: &Tensor) -> Result<Vec<f64>> {
    let ratios = ratios.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
    match ratios.iter().position(|w| !w.is_finite()) {
        Some(row) => bail!("density ratio of row {row} is {}: {ADVICE}", ratios[row]),
        None => Ok(ratios),
    }
}
