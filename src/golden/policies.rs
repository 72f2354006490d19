//! Golden files of policies: moments and log-probabilities, losses of actors, WSRL's temperature.

use candle_core::Tensor;

use super::Result;
use super::case::Case;
use crate::nn::pointwise;
use crate::nn::tanh_gaussian::{self, Sample, log_prob_of, member_moments, moments, sample};
use crate::rl::actor::{self, ActorOperator};
use crate::rl::{entropy, state_action};

/// Magnitude that data actions are clipped to where a file names none.
const ACTION_CLIP: f32 = 0.999_999;

/// Whose samples a file speaks of.
#[derive(Clone, Copy)]
pub(super) enum PolicyOf {
    /// Each member's own.
    Members,
    /// The ensemble's, the same for all members.
    Ensemble,
}

pub(super) fn policy_of(case: &Case) -> Result<PolicyOf> {
    case.choice("policy", &[("member", PolicyOf::Members), ("ensemble", PolicyOf::Ensemble)])
}

pub(super) fn actor_operator(case: &Case) -> Result<ActorOperator> {
    let choices = [
        ("mean_of_twin_min", ActorOperator::MeanOfTwinMin),
        ("min", ActorOperator::Min),
        ("mean", ActorOperator::Mean),
    ];
    case.choice("actor_operator", &choices)
}

/// Moments `(P, B, A)`, `P` members or 1.
fn moments_of(case: &Case, actor_out: &Tensor, of: PolicyOf) -> Result<(Tensor, Tensor)> {
    Ok(match of {
        PolicyOf::Members => member_moments(actor_out, case.bounds()?)?,
        PolicyOf::Ensemble => {
            let (mean, std) = moments(actor_out, case.bounds()?)?;
            (mean.unsqueeze(0)?, std.unsqueeze(0)?)
        }
    })
}

/// Samples `(P, n, B, A)` for noise of that shape.
pub(super) fn draw(case: &Case, actor_out: &Tensor, noise: &str, of: PolicyOf) -> Result<Sample> {
    let (mean, std) = moments_of(case, actor_out, of)?;
    Ok(sample(&mean.unsqueeze(1)?, &std.unsqueeze(1)?, &case.input(noise)?)?)
}

pub(super) fn ensemble_policy(case: &mut Case) -> Result<()> {
    let (mean, log_std) = (case.variable("mean")?, case.variable("log_std")?);
    let actor_out = Tensor::cat(&[mean.as_tensor(), log_std.as_tensor()], 2)?;
    let (m, std) = moments(&actor_out, case.bounds()?)?;
    let drawn = sample(&m, &std, &case.input("noise")?)?;
    let scalar = (drawn.log_prob.sum_all()? + drawn.action.sum_all()?)?;
    let gradients = scalar.backward()?;
    case.value("mean", &m)?;
    case.value("std", &std)?;
    case.value("pre_tanh", &drawn.pre_tanh)?;
    case.value("action", &drawn.action)?;
    case.value("deterministic_action", &m.tanh()?)?;
    case.value("log_prob", &drawn.log_prob)?;
    case.value("scalar", &scalar)?;
    case.gradient("mean", &mean, &gradients)?;
    case.gradient("log_std", &log_std, &gradients)
}

pub(super) fn wsrl_temperature(case: &mut Case) -> Result<()> {
    let lambda = case.variable("lambda")?;
    let out = case.stack("actor")?.forward_detached(&case.input("next_observation")?)?;
    let (mean, std) = moments(&out, case.bounds()?)?;
    let next = sample(&mean, &std, &case.input("next_noise")?)?;
    let wanted = case.number_or("target_entropy", -(mean.dim(1)? as f64))?;
    let loss = entropy::softplus_loss(&lambda, &next.log_prob, wanted)?;
    let gradients = loss.backward()?;
    case.value("next_log_prob", &next.log_prob)?;
    case.value("entropy", &next.log_prob.mean_all()?.neg()?)?;
    case.value("temperature", &pointwise::softplus(&lambda)?)?;
    case.value("entropy_temperature_loss", &loss)?;
    case.gradient("lambda", &lambda, &gradients)
}

pub(super) fn awac_actor(case: &mut Case) -> Result<()> {
    let (critic1, critic2, actor) = (case.stack("critic1")?, case.stack("critic2")?, case.stack("actor")?);
    let (s, a) = (case.input("observation")?, case.input("action")?);
    let (mean, std) = moments(&actor.forward(&s)?, case.bounds()?)?;
    let now = sample(&mean.detach(), &std.detach(), &case.input("noise")?)?;
    let operator = actor_operator(case).unwrap_or(ActorOperator::MeanOfTwinMin);
    let judge = |action: &Tensor| -> Result<Tensor> {
        let x = state_action(&s, action)?;
        let (q1, q2) = (critic1.forward_detached(&x)?.squeeze(2)?, critic2.forward_detached(&x)?.squeeze(2)?);
        Ok(actor::value(&q1, &q2, operator)?)
    };
    let (data, policy) = (judge(&a)?, judge(&now.action)?);
    let weight = actor::advantage_weights(&data, &policy, case.number("beta")?)?;
    let log_prob = log_prob_of(&mean, &std, &a, case.number_or("action_clip", ACTION_CLIP.into())?)?;
    let loss = actor::advantage_weighted_loss(&weight, &log_prob)?;
    let gradients = loss.backward()?;
    case.value("advantage", &(data - policy)?)?;
    case.value("weight", &weight)?;
    case.value("log_prob", &log_prob)?;
    case.value("actor_loss", &loss)?;
    case.gradients("actor", &actor, &gradients)
}

pub(super) fn bc_actor(case: &mut Case) -> Result<()> {
    let actor = case.stack("actor")?;
    let out = actor.forward(&case.input("observation")?)?;
    let (mean, std) = moments_of(case, &out, policy_of(case)?)?;
    let drawn = tanh_gaussian::sample(&mean, &std, &case.input("noise")?)?;
    let clip = case.number_or("action_clip", ACTION_CLIP.into())?;
    let data = log_prob_of(&mean, &std, &case.input("action")?, clip)?;
    let alpha = case.input("log_alpha")?.exp()?;
    let loss = actor::behaviour_cloning_loss(&alpha, &drawn.log_prob, &data)?;
    let gradients = loss.backward()?;
    case.value("log_prob", &drawn.log_prob)?;
    case.value("data_log_prob", &data)?;
    case.value("actor_loss", &loss)?;
    case.gradients("actor", &actor, &gradients)
}
