//! The critics' part of an update: targets, temporal-difference errors and, where asked for, the conservative penalty.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::batch::{Batch, Dims, for_critics};
use super::metrics::{Laps, Timings};
use super::networks::Networks;
use super::streams::{Streams, noise, noise_like};
use crate::config::{CriticLoss, LearnerConfig, TargetKind};
use crate::kernels;
use crate::nn::tanh_gaussian::{self, Sample};
use crate::nn::{Stack, pointwise};
use crate::rl::critic::{self, EntropyTerm, TargetOperator};
use crate::rl::{cql, state_action};

/// What the critics' pass leaves, all with the parameters from before the step.
pub(super) struct CriticPass {
    pub(super) gradients: GradStore,
    /// Of the Lagrange multipliers, where they move.
    pub(super) multiplier_gradients: Option<GradStore>,
    /// Scalars.
    pub(super) loss: Tensor,
    pub(super) q_mean: Tensor,
    pub(super) target_mean: Tensor,
    /// Mean over the critics of the weighted penalty.
    pub(super) penalty: Tensor,
    /// Mean of the Lagrange multipliers.
    pub(super) multiplier: Tensor,
    /// Mean over the critics of `|Q - y|`, `(B)`.
    pub(super) errors: Tensor,
}

/// `sum_i mean(Q1_i - y_i)^2 + sum_i mean(Q2_i - y_i)^2` and, with a conservative loss, the penalty of every critic.
pub(super) fn pass(
    networks: &Networks,
    config: &LearnerConfig,
    dims: Dims,
    batch: &Batch,
    streams: &mut Streams,
    (laps, timings): (&mut Laps, &mut Timings),
) -> Result<CriticPass> {
    let target = target(networks, config, batch, streams)?;
    laps.add_to(&mut timings.target);
    let critics = [&networks.critic1, &networks.critic2];
    let (q, penalties) = match config.critic_loss {
        CriticLoss::Sac => {
            let [one, two] = batch.state_action()?;
            let q = [critics[0].forward(&one)?.squeeze(2), critics[1].forward(&two)?.squeeze(2)];
            (q, None)
        }
        CriticLoss::Cql | CriticLoss::CalQl => {
            let draws = Draws::new(networks, config, dims, batch, &mut streams.penalty)?;
            let (q1, p1) = draws.penalise((critics[0], &draws.rows[0]), config, dims, batch)?;
            let (q2, p2) = draws.penalise((critics[1], &draws.rows[1]), config, dims, batch)?;
            ([Ok(q1), Ok(q2)], Some((p1, p2)))
        }
    };
    let [q1, q2] = q;
    let (q1, q2) = (q1?, q2?);
    let mut loss = critic::loss(&q1, &q2, &target)?;
    let (mut penalty, mut multiplier_loss) = (Tensor::zeros((), loss.dtype(), loss.device())?, None);
    if let Some((p1, p2)) = penalties {
        let weighed = cql::weigh(networks.log_multiplier.as_tensor(), &p1, &p2, config.cql_gap)?;
        loss = (loss + weighed.loss)?;
        multiplier_loss = weighed.multiplier_loss;
        penalty = ((p1.detach().mean_all()? + p2.detach().mean_all()?)? * 0.5)?;
    }
    laps.add_to(&mut timings.critic_forward);
    let gradients = loss.backward()?;
    let multiplier_gradients = multiplier_loss.as_ref().map(Tensor::backward).transpose()?;
    laps.add_to(&mut timings.critic_backward);
    let error = |q: &Tensor| (q.detach() - &target)?.abs()?.mean(0);
    Ok(CriticPass {
        gradients,
        multiplier_gradients,
        q_mean: ((q1.detach().mean_all()? + q2.detach().mean_all()?)? * 0.5)?,
        target_mean: target.mean_all()?,
        errors: ((error(&q1)? + error(&q2)?)? * 0.5)?,
        loss,
        penalty,
        multiplier: networks.log_multiplier.as_detached_tensor().exp()?.mean_all()?,
    })
}

/// `y_i = r + gamma (1 - terminated)(V_i(s', a') - alpha log pi(a'|s'))`, `(members, B)`; all members share `a'`. With the
/// entropy, the anchor's cost counts as well.
fn target(networks: &Networks, config: &LearnerConfig, batch: &Batch, streams: &mut Streams) -> Result<Tensor> {
    let noise = noise_like(&batch.action, &mut streams.next_noise)?;
    let Sample { action, log_prob, pre_tanh } =
        tanh_gaussian::draw(&next_output(networks, batch)?, &noise, config.log_std)?;
    let action = batch.executed_next(&action)?;
    let rows = for_critics(&batch.next_judged, |observation| state_action(observation, &action))?;
    let targets = [&networks.target1, &networks.target2];
    let members = networks.critic1.members();
    let operator = match config.target_operator {
        TargetKind::OwnTwinMin => TargetOperator::OwnTwinMin,
        TargetKind::MeanOfTwinMin => TargetOperator::MeanOfTwinMin,
        TargetKind::EnsembleMin => TargetOperator::EnsembleMin,
        TargetKind::WeightedMinPair => TargetOperator::WeightedMinPair,
        TargetKind::Redq => TargetOperator::Redq { indices: subset(config, 2 * members, &mut streams.subset) },
    };
    let temperature = networks.temperature()?;
    let entropy = EntropyTerm { temperature: &temperature, next_log_prob: &log_prob };
    let entropy = config.entropy_backup.then_some(entropy);
    let cost = match (&networks.anchor, config.entropy_backup) {
        (Some(anchor), true) => Some(anchor.cost(config, &batch.next_observation, &pre_tanh, &log_prob)?),
        _ => None,
    };
    let target_of = |value: Tensor| {
        let value = cost.as_ref().map_or(Ok(value.clone()), |cost| value.broadcast_sub(cost))?;
        critic::td_target(&batch.reward, &batch.terminated, &value, entropy, config.discount)
    };
    if let (TargetOperator::Redq { indices }, false) = (&operator, kernels::take(&rows[0])) {
        // Only those that were drawn. A GPU evaluates all: its work then has the same shape in every update.
        let (first, second) = halves(indices, members);
        let pool = [chosen(targets[0], &first, &rows[0])?, chosen(targets[1], &second, &rows[1])?];
        return target_of(critic::least(&Tensor::cat(&pool, 0)?.squeeze(2)?, members)?);
    }
    let q1 = targets[0].forward_detached(&rows[0])?.squeeze(2)?;
    let q2 = targets[1].forward_detached(&rows[1])?.squeeze(2)?;
    if cost.is_some() {
        return target_of(critic::next_value(&q1, &q2, &operator)?);
    }
    critic::bootstrapped_target((&q1, &q2), &operator, &batch.reward, &batch.terminated, entropy, config.discount)
}

/// What the actors answer to the next states, `(members, B, 2 action)`, without gradient.
pub(super) fn next_output(networks: &Networks, batch: &Batch) -> Result<Tensor> {
    match &batch.next_output {
        Some(known) => Ok(known.clone()),
        None => networks.actor.forward_detached(&batch.next_observation),
    }
}

/// What the networks `chosen` make of rows that all share or that each has its own of.
fn chosen(stack: &Stack, chosen: &[usize], rows: &Tensor) -> Result<Tensor> {
    if rows.rank() == 2 || chosen.is_empty() {
        return stack.forward_of(chosen, &if rows.rank() == 2 { rows.clone() } else { rows.get(0)? });
    }
    let own = chosen.iter().map(|member| rows.get(*member)).collect::<Result<Vec<_>>>()?;
    stack.forward_of(chosen, &Tensor::stack(&own, 0)?)
}

/// Places in the pool as members of the first and of the second twin. The least of them does not depend on their order.
fn halves(places: &[u32], members: usize) -> (Vec<usize>, Vec<usize>) {
    let places = places.iter().map(|place| *place as usize);
    let (first, second): (Vec<usize>, Vec<usize>) = places.partition(|place| *place < members);
    (first, second.into_iter().map(|place| place - members).collect())
}

/// Places in the pool of target critics that REDQ takes this time.
pub(super) fn subset(config: &LearnerConfig, pool: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    if config.redq_replacement {
        (0..config.redq_subset).map(|_| rng.random_range(0..pool as u32)).collect()
    } else {
        rand::seq::index::sample(rng, pool, config.redq_subset.min(pool)).into_iter().map(|i| i as u32).collect()
    }
}

/// `count` draws of the ensemble policy at every row, `(count, B, action)`, without gradient.
fn policy(
    networks: &Networks,
    config: &LearnerConfig,
    observation: &Tensor,
    rng: &mut ChaCha8Rng,
    count: usize,
) -> Result<Sample> {
    let output = networks.actor.forward_detached(observation)?;
    let shape = (count, output.dim(1)?, output.dim(2)? / 2);
    tanh_gaussian::draw(&output, &noise(rng, shape, output.device())?, config.log_std)
}

/// Actions of the penalty, the same for all members, all to be judged at `s`; and the rows that judge them.
struct Draws {
    policy_log_prob: Tensor,
    next_log_prob: Tensor,
    /// For either critic the data's own rows, then those of uniform, policy and next-state actions,
    /// `((1 + 3 n) B, o + a)`.
    rows: [Tensor; 2],
    count: usize,
}

impl Draws {
    fn new(
        networks: &Networks,
        config: &LearnerConfig,
        dims: Dims,
        batch: &Batch,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self> {
        let (count, rows) = (config.cql_actions, batch.reward.dim(0)?);
        let now = policy(networks, config, &batch.observation, rng, count)?;
        let next = policy(networks, config, &batch.next_observation, rng, count)?;
        let uniform: Vec<f32> = (0..count * rows * dims.action).map(|_| rng.random_range(-1.0..=1.0)).collect();
        let uniform = Tensor::from_vec(uniform, (count, rows, dims.action), batch.observation.device())?;
        let sampled = [uniform.unsqueeze(0)?, now.action.unsqueeze(0)?, next.action.unsqueeze(0)?];
        let rows = for_critics(&batch.judged, |observation| {
            let own = state_action(observation, &batch.action)?;
            let [first, second, third] = sampled.each_ref().map(|action| state_action(observation, action));
            Tensor::cat(&[&own, &first?, &second?, &third?], own.rank() - 2)
        })?;
        Ok(Self {
            rows,
            policy_log_prob: now.log_prob.unsqueeze(0)?,
            next_log_prob: next.log_prob.unsqueeze(0)?,
            count,
        })
    }

    /// Values at the data's actions, `(members, B)`, and the weighted penalty, `(members)`, in one pass.
    fn penalise(
        &self,
        (stack, rows): (&Stack, &Tensor),
        config: &LearnerConfig,
        dims: Dims,
        batch: &Batch,
    ) -> Result<(Tensor, Tensor)> {
        let all = stack.forward(rows)?.squeeze(2)?;
        let batch_rows = batch.reward.dim(0)?;
        let group = |index: usize| {
            let start = (1 + index * self.count) * batch_rows;
            all.narrow(1, start, self.count * batch_rows)?.reshape((stack.members(), self.count, batch_rows))
        };
        let q = all.narrow(1, 0, batch_rows)?.contiguous()?;
        let settings = cql::Settings {
            form: config.cql_entries.into(),
            temperature: config.cql_temperature,
            weight: config.cql_weight,
            action_dim: dims.action,
        };
        let values = cql::SampledValues {
            uniform: &group(0)?,
            policy: &group(1)?,
            policy_log_prob: &self.policy_log_prob,
            next: &group(2)?,
            next_log_prob: &self.next_log_prob,
        };
        let penalty = cql::penalty(settings, values, &q, batch.lower_bound.as_ref())?.per_member;
        Ok((q, penalty))
    }
}

/// `mean_i min(Q1_i, Q2_i)` at rows `s ++ a` for either critic, `(rows)`, without gradient: how the ensemble judges.
pub(super) fn judge(networks: &Networks, rows: &[Tensor; 2]) -> Result<Tensor> {
    let q1 = networks.critic1.forward_detached(&rows[0])?.squeeze(2)?;
    let q2 = networks.critic2.forward_detached(&rows[1])?.squeeze(2)?;
    pointwise::minimum(&q1, &q2)?.mean(0)
}
