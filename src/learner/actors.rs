//! The part of an update that belongs to actors and entropy temperature.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor};

use super::batch::{Batch, Dims, for_critics};
use super::critics::next_output;
use super::networks::{Anchor, Networks};
use super::streams::{Streams, noise_like};
use crate::config::{ActorLoss, LearnerConfig, TemperatureForm, TemperatureStates};
use crate::nn::{LogStdBounds, tanh_gaussian};
use crate::rl::{actor, entropy, state_action};

/// Data actions are clipped to this magnitude before `atanh` (published code).
pub(super) const ACTION_CLIP: f64 = 0.999_999;
/// An action entry beyond this magnitude counts as saturated.
const SATURATED: f64 = 0.99;

/// What the actors' pass leaves: gradients of two losses, and scalars for the metrics.
pub(super) struct ActorPass {
    pub(super) actor_gradients: GradStore,
    pub(super) temperature_gradients: GradStore,
    pub(super) actor_loss: Tensor,
    pub(super) temperature_loss: Tensor,
    pub(super) temperature: Tensor,
    pub(super) entropy: Tensor,
    pub(super) disagreement_share: Tensor,
    /// Share of the entries of executed actions that are saturated.
    pub(super) saturation: Tensor,
}

/// Losses of actors and temperature, with `a` from the ensemble policy, and their gradients.
pub(super) fn pass(
    networks: &Networks,
    config: &LearnerConfig,
    dims: Dims,
    batch: &Batch,
    streams: &mut Streams,
) -> Result<ActorPass> {
    let temperature = networks.temperature()?;
    let output = networks.actor.forward(&batch.observation)?;
    let noise = noise_like(&batch.action, &mut streams.noise)?;
    let sample = tanh_gaussian::draw(&output, &noise, config.log_std)?;
    let executed = batch.executed(&sample.action)?;
    let data_log_prob = || {
        let (mean, std) = tanh_gaussian::moments(&output, config.log_std)?;
        tanh_gaussian::log_prob_of(&mean, &std, &batch.action, ACTION_CLIP)
    };
    let value = |action: &Tensor| {
        let rows = for_critics(&batch.judged, |observation| state_action(&observation.detach(), action))?;
        let q1 = networks.critic1.forward_frozen(&rows[0])?.squeeze(2)?;
        let q2 = networks.critic2.forward_frozen(&rows[1])?.squeeze(2)?;
        actor::value(&q1, &q2, config.actor_operator)
    };
    let actor_loss = match config.actor_loss {
        ActorLoss::Sac => {
            let value = value(&executed)?;
            let loss = actor::loss(&temperature, &sample.log_prob, &value)?;
            match &networks.anchor {
                Some(anchor) => {
                    (loss + anchor.cost(config, &batch.observation, &sample.pre_tanh, &sample.log_prob)?.mean_all()?)?
                }
                None => loss,
            }
        }
        ActorLoss::Bc => {
            let (drawn, data) = (sample.log_prob.unsqueeze(0)?, data_log_prob()?.unsqueeze(0)?);
            actor::behaviour_cloning_loss(&temperature, &drawn, &data)?
        }
        ActorLoss::Awac => {
            let policy = value(&sample.action.detach())?;
            let weights = actor::advantage_weights(&value(&batch.action)?, &policy, config.awac_beta)?;
            actor::advantage_weighted_loss(&weights, &data_log_prob()?)?
        }
    };
    let log_prob = match config.temperature_states {
        TemperatureStates::Current => sample.log_prob.detach(),
        TemperatureStates::Next => {
            let noise = noise_like(&batch.action, &mut streams.temperature_noise)?;
            tanh_gaussian::draw(&next_output(networks, batch)?, &noise, config.log_std)?.log_prob
        }
    };
    let (parameter, wanted) = (networks.temperature_parameter.as_tensor(), config.target_entropy * dims.action as f64);
    let temperature_loss = match config.temperature_form {
        TemperatureForm::Exp => entropy::loss(parameter, &log_prob, wanted)?,
        TemperatureForm::Softplus => entropy::softplus_loss(parameter, &log_prob, wanted)?,
    };
    Ok(ActorPass {
        actor_gradients: actor_loss.backward()?,
        temperature_gradients: temperature_loss.backward()?,
        entropy: sample.log_prob.detach().mean_all()?.neg()?,
        disagreement_share: disagreement_share(&output.detach(), config.log_std)?,
        saturation: executed.detach().abs()?.gt(SATURATED)?.to_dtype(DType::F32)?.mean_all()?,
        temperature,
        actor_loss,
        temperature_loss,
    })
}

impl Anchor {
    /// What the actions `tanh(z)` cost, `(B)`; gradient to `z` and `log_prob`.
    pub(super) fn cost(
        &self,
        config: &LearnerConfig,
        observation: &Tensor,
        pre_tanh: &Tensor,
        log_prob: &Tensor,
    ) -> Result<Tensor> {
        let (mean, std) = tanh_gaussian::moments(&self.actor.forward_detached(observation)?, config.log_std)?;
        actor::anchor_cost(log_prob, &tanh_gaussian::log_prob_at(&mean, &std, pre_tanh)?, self.weight)
    }
}

/// Mean over batch and action entries of `mean_i (m_i - m)^2 / sigma^2`.
fn disagreement_share(output: &Tensor, bounds: LogStdBounds) -> Result<Tensor> {
    let (mean, std) = tanh_gaussian::moments(output, bounds)?;
    let means = output.narrow(2, 0, mean.dim(1)?)?;
    let spread = means.broadcast_sub(&mean)?.sqr()?.mean(0)?;
    (spread / std.sqr()?)?.mean_all()
}
