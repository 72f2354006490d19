//! Golden files of critics: soft actor-critic updates and conservative penalties.

use candle_core::Tensor;

use super::case::Case;
use super::policies::{PolicyOf, actor_operator, draw, policy_of};
use super::{GoldenError, Result};
use crate::nn::Stack;
use crate::nn::tanh_gaussian::{self, Sample};
use crate::rl::critic::{self, EntropyTerm, SampledBackup, TargetOperator};
use crate::rl::{actor, cql, entropy, state_action};

fn target_operator(case: &Case) -> Result<TargetOperator> {
    let choices = [("own_twin_min", 0), ("ensemble_min", 1), ("redq", 2), ("mean_of_twin_min", 3)];
    Ok(match case.choice("target_operator", &choices)? {
        0 => TargetOperator::OwnTwinMin,
        1 => TargetOperator::EnsembleMin,
        2 => TargetOperator::Redq { indices: case.raw("in.redq_indices")?.1.iter().map(|v| *v as u32).collect() },
        _ => TargetOperator::MeanOfTwinMin,
    })
}

/// The temperature of the backup, and whether the backup has it.
fn backup_temperature(case: &Case) -> Result<Option<Tensor>> {
    case.flag("entropy_backup")?.then(|| Ok(case.input("log_alpha")?.exp()?)).transpose()
}

pub(super) fn sac_update(case: &mut Case) -> Result<()> {
    let [critic1, critic2, target1, target2, actor] =
        ["critic1", "critic2", "target1", "target2", "actor"].map(|net| case.stack(net));
    let (critic1, critic2, target1, target2, actor) = (critic1?, critic2?, target1?, target2?, actor?);
    let (s, s2, a) = (case.input("observation")?, case.input("next_observation")?, case.input("action")?);
    let log_alpha = case.variable("log_alpha")?;
    let alpha = log_alpha.as_detached_tensor().exp()?;
    let act = |out: &Tensor, noise: &str| -> Result<Sample> {
        Ok(tanh_gaussian::draw(out, &case.input(noise)?, case.bounds()?)?)
    };
    let next = act(&actor.forward_detached(&s2)?, "next_noise")?;
    let now = act(&actor.forward(&s)?, "noise")?;

    let x2 = state_action(&s2, &next.action)?;
    let (t1, t2) = (target1.forward_detached(&x2)?.squeeze(2)?, target2.forward_detached(&x2)?.squeeze(2)?);
    let (operator, temperature) = (target_operator(case)?, backup_temperature(case)?);
    let term = temperature.as_ref().map(|temperature| EntropyTerm { temperature, next_log_prob: &next.log_prob });
    let (reward, terminated, discount) = (case.input("reward")?, case.input("terminated")?, case.number("gamma")?);
    let target = critic::bootstrapped_target((&t1, &t2), &operator, &reward, &terminated, term, discount)?;

    let x = state_action(&s, &a)?;
    let (q1, q2) = (critic1.forward(&x)?.squeeze(2)?, critic2.forward(&x)?.squeeze(2)?);
    let critic_loss = critic::loss(&q1, &q2, &target)?;
    let critic_gradients = critic_loss.backward()?;

    let xp = state_action(&s, &now.action)?;
    let (p1, p2) = (critic1.forward_frozen(&xp)?.squeeze(2)?, critic2.forward_frozen(&xp)?.squeeze(2)?);
    let actor_q = actor::value(&p1, &p2, actor_operator(case)?)?;
    let actor_loss = actor::loss(&alpha, &now.log_prob, &actor_q)?;
    let actor_gradients = actor_loss.backward()?;

    let wanted = case.number_or("target_entropy", -(a.dim(1)? as f64))?;
    let temperature_loss = entropy::loss(&log_alpha, &now.log_prob, wanted)?;
    let temperature_gradients = temperature_loss.backward()?;

    case.value("next_action", &next.action)?;
    case.value("action", &now.action)?;
    case.value("next_log_prob", &next.log_prob)?;
    case.value("log_prob", &now.log_prob)?;
    case.value("target", &target)?;
    case.value("q1", &q1)?;
    case.value("q2", &q2)?;
    case.value("actor_q", &actor_q)?;
    case.value("critic_loss", &critic_loss)?;
    case.value("actor_loss", &actor_loss)?;
    case.value("entropy_temperature_loss", &temperature_loss)?;
    case.gradients("critic1", &critic1, &critic_gradients)?;
    case.gradients("critic2", &critic2, &critic_gradients)?;
    case.gradients("actor", &actor, &actor_gradients)?;
    case.gradient("log_alpha", &log_alpha, &temperature_gradients)
}

/// `(members, samples, batch)` values of a stack at sampled actions of the given states.
fn judge(stack: &Stack, s: &Tensor, action: &Tensor, detached: bool) -> Result<Tensor> {
    let dims = action.dims();
    let &[_, samples, batch, _] = dims else {
        return Err(GoldenError::Shape { name: "sampled actions".into(), shape: dims.to_vec() });
    };
    let x = state_action(s, action)?;
    let q = if detached { stack.forward_detached(&x)? } else { stack.forward(&x)? };
    Ok(q.reshape((stack.members(), samples, batch))?)
}

/// Mean squared temporal-difference errors against the target that the file's settings describe.
fn conservative_target(case: &Case, actor_out: &Tensor, s2: &Tensor, of: PolicyOf) -> Result<Tensor> {
    let (target1, target2) = (case.stack("target1")?, case.stack("target2")?);
    let backup = draw(case, actor_out, "next_noise", of)?;
    let (t1, t2) = (judge(&target1, s2, &backup.action, true)?, judge(&target2, s2, &backup.action, true)?);
    let choices = [
        ("none", None),
        ("max_then_min", Some(SampledBackup::MaxThenMin)),
        ("min_then_max", Some(SampledBackup::MinThenMax)),
    ];
    let value = match case.choice("backup", &choices)? {
        None => critic::next_value(&t1.squeeze(1)?, &t2.squeeze(1)?, &TargetOperator::OwnTwinMin)?,
        Some(order) => critic::sampled_next_value(&t1, &t2, order)?,
    };
    let log_prob = backup.log_prob.narrow(1, 0, 1)?.squeeze(1)?;
    let temperature = backup_temperature(case)?;
    let term = temperature.as_ref().map(|temperature| EntropyTerm { temperature, next_log_prob: &log_prob });
    let (reward, terminated) = (case.input("reward")?, case.input("terminated")?);
    Ok(critic::td_target(&reward, &terminated, &value, term, case.number("gamma")?)?)
}

pub(super) fn cql_critic(case: &mut Case) -> Result<()> {
    let actor = case.stack("actor")?;
    let critics = [case.stack("critic1")?, case.stack("critic2")?];
    let (s, s2, a) = (case.input("observation")?, case.input("next_observation")?, case.input("action")?);
    let of = policy_of(case)?;
    let (out, out2) = (actor.forward_detached(&s)?, actor.forward_detached(&s2)?);
    let (now, cql_next) = (draw(case, &out, "noise", of)?, draw(case, &out2, "cql_next_noise", of)?);
    let uniform = case.input("uniform_action")?.unsqueeze(0)?;
    let target = conservative_target(case, &out2, &s2, of)?;
    let settings = cql::Settings {
        form: case.choice("form", &[("h", cql::Form::H), ("rho", cql::Form::Rho)])?,
        temperature: case.number_or("cql_temperature", 1.0)?,
        weight: case.number("cql_weight")?,
        action_dim: a.dim(1)?,
    };
    let x = state_action(&s, &a)?;
    let bound = (case.text("kind")? == "calql_critic").then(|| case.input("mc_return")).transpose()?;
    let (mut penalties, mut errors) = (Vec::new(), Vec::new());
    for (j, critic) in critics.iter().enumerate() {
        let q = critic.forward(&x)?.squeeze(2)?;
        let values = cql::SampledValues {
            uniform: &judge(critic, &s, &uniform, false)?,
            policy: &judge(critic, &s, &now.action, false)?,
            policy_log_prob: &now.log_prob,
            next: &judge(critic, &s, &cql_next.action, false)?,
            next_log_prob: &cql_next.log_prob,
        };
        let penalty = cql::penalty(settings, values, &q, bound.as_ref())?;
        case.value(&format!("q{}", j + 1), &q)?;
        case.value(&format!("lse{}", j + 1), &penalty.log_sum_exp)?;
        if bound.is_some() {
            case.value(&format!("bound_rate{}", j + 1), &penalty.bound_rate)?;
        }
        penalties.push(penalty.per_member);
        errors.push(critic::bellman_errors(&q, &target)?);
    }
    let (penalty, bellman) = (Tensor::stack(&penalties, 0)?, Tensor::stack(&errors, 0)?);
    let loss = (penalty.sum_all()? + bellman.sum_all()?)?;
    let gradients = loss.backward()?;
    case.value("policy_action", &now.action)?;
    case.value("policy_next_action", &cql_next.action)?;
    case.value("policy_log_prob", &now.log_prob)?;
    case.value("policy_next_log_prob", &cql_next.log_prob)?;
    case.value("target", &target)?;
    case.value("penalty_per_critic", &penalty)?;
    case.value("bellman_per_critic", &bellman)?;
    case.value("penalty", &penalty.sum_all()?)?;
    case.value("bellman", &bellman.sum_all()?)?;
    case.value("loss", &loss)?;
    case.gradients("critic1", &critics[0], &gradients)?;
    case.gradients("critic2", &critics[1], &gradients)
}
