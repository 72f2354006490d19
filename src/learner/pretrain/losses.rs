//! The losses of one update, put together from [`crate::rl`].

use candle_core::{Result, Tensor};

use super::Pretrainer;
use super::draws::{Backup, PenaltyDraws};
use crate::learner::batch::{Batch, for_critics};
use crate::learner::streams::noise_like;
use crate::nn::{pointwise, tanh_gaussian};
use crate::rl::cql::{self, SampledValues};
use crate::rl::critic::{self, EntropyTerm, SampledBackup, TargetOperator};
use crate::rl::{actor, state_action};

/// Data actions are clipped to this magnitude before `atanh` (published code).
const ACTION_CLIP: f64 = 0.999_999;

/// The actors' loss and sample.
pub(super) struct ActorLoss {
    /// Sum over the members.
    pub(super) loss: Tensor,
    /// `log pi_i(a_i|s)`, `(members, B)`, without gradient.
    pub(super) log_prob: Tensor,
}

/// Losses of the critics and what the metrics say of them.
pub(super) struct CriticLosses {
    /// Sum over all critics of Bellman error and weighted penalty, with its graph.
    pub(super) loss: Tensor,
    /// Loss of the Lagrange multipliers, where they move.
    pub(super) multiplier_loss: Option<Tensor>,
    /// Sum over all critics of the mean squared temporal-difference error.
    pub(super) bellman: Tensor,
    /// Sum over all critics of the penalty.
    pub(super) penalty: Tensor,
    /// Mean of all critics at the data's actions.
    pub(super) q_mean: Tensor,
    /// Share of policy values that Cal-QL's bound replaced.
    pub(super) bound_rate: Tensor,
}

impl Pretrainer {
    /// `sum_i mean[alpha_i log pi_i(a_i|s) - min(Q1_i, Q2_i)(s, a_i)]`, or, while the actors imitate, with
    /// `log pi_i` of the data's action in place of the value.
    pub(super) fn actor_loss(&mut self, batch: &Batch, output: &Tensor, temperature: &Tensor) -> Result<ActorLoss> {
        let (mean, std) = tanh_gaussian::member_moments(output, self.log_std)?;
        let sample = tanh_gaussian::sample(&mean, &std, &noise_like(&mean, &mut self.streams.noise)?)?;
        let loss = if self.imitates() {
            let data_log_prob =
                tanh_gaussian::log_prob_of(&mean, &std, &batch.action.broadcast_as(mean.shape())?, ACTION_CLIP)?;
            actor::behaviour_cloning_loss(temperature, &sample.log_prob, &data_log_prob)?
        } else {
            let [one, two] = for_critics(&batch.judged, |seen| state_action(&seen.detach(), &sample.action))?;
            let q1 = self.critic1.forward_frozen(&one)?.squeeze(2)?;
            let q2 = self.critic2.forward_frozen(&two)?.squeeze(2)?;
            // The loss averages over members as well; each member's own gradient wants the sum.
            (actor::loss(temperature, &sample.log_prob, &pointwise::minimum(&q1, &q2)?)? * self.members() as f64)?
        };
        Ok(ActorLoss { loss, log_prob: sample.log_prob.detach() })
    }

    /// `-sum_i ln alpha_i mean[log pi_i(a_i|s) - |A|]`: every member holds its own entropy.
    pub(super) fn temperature_loss(&self, log_prob: &Tensor) -> Result<Tensor> {
        let excess = (log_prob.mean_keepdim(1)? - self.dims.action as f64)?;
        (self.log_alpha.as_tensor() * excess)?.sum_all()?.neg()
    }

    /// `y_i = r + gamma (1 - terminated) V_i(s')`, `(members, B)`, with `V_i = min_j Q'_j,i(s', a')` of one action, or
    /// `min_j max_a' Q'_j,i(s', a')` of several; less `alpha_i log pi_i(a'|s')` with the entropy backup.
    pub(super) fn target(&self, batch: &Batch, backup: &Backup, temperature: Option<&Tensor>) -> Result<Tensor> {
        let (_, k, count, _) = backup.action.dims4()?;
        let [one, two] = for_critics(&batch.next_judged, |seen| state_action(seen, &backup.action))?;
        let judge = |critic: &crate::nn::Stack, rows: &Tensor| {
            critic.forward_detached(rows)?.reshape((self.members(), k, count))
        };
        let (q1, q2) = (judge(&self.target1, &one)?, judge(&self.target2, &two)?);
        if k > 1 {
            let value = critic::sampled_next_value(&q1, &q2, SampledBackup::MaxThenMin)?;
            return critic::td_target(&batch.reward, &batch.terminated, &value, None, self.discount);
        }
        let value = critic::next_value(&q1.squeeze(1)?, &q2.squeeze(1)?, &TargetOperator::OwnTwinMin)?;
        let log_prob = backup.log_prob.squeeze(1)?;
        let entropy = temperature
            .filter(|_| self.config.entropy_backup)
            .map(|temperature| EntropyTerm { temperature, next_log_prob: &log_prob });
        critic::td_target(&batch.reward, &batch.terminated, &value, entropy, self.discount)
    }

    /// Every action is judged at `s`, all of them in one pass.
    pub(super) fn critic_losses(
        &self,
        batch: &Batch,
        draws: Option<&PenaltyDraws>,
        target: &Tensor,
        bound: Option<&Tensor>,
    ) -> Result<CriticLosses> {
        let members = self.members();
        let (count, width) = batch.action.dims2()?;
        let rows = match draws {
            Some(d) => {
                let data = batch.action.broadcast_as((members, 1, count, width))?;
                let actions = Tensor::cat(&[&d.uniform, &d.policy.0, &d.next.0, &data], 1)?;
                for_critics(&batch.judged, |seen| state_action(seen, &actions))?
            }
            None => batch.state_action()?,
        };
        let mut q_mean = Vec::new();
        let (mut bellman, mut penalties, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for (critic, rows) in [&self.critic1, &self.critic2].into_iter().zip(&rows) {
            let q = critic.forward(rows)?.reshape((members, (), count))?;
            let n = (q.dim(1)? - 1) / 3;
            let data = q.narrow(1, 3 * n, 1)?.squeeze(1)?;
            if let Some(draws) = draws {
                let values = SampledValues {
                    uniform: &q.narrow(1, 0, n)?,
                    policy: &q.narrow(1, n, n)?,
                    policy_log_prob: &draws.policy.1,
                    next: &q.narrow(1, 2 * n, n)?,
                    next_log_prob: &draws.next.1,
                };
                let penalty = cql::penalty(self.penalty_settings(), values, &data, bound)?;
                penalties.push(penalty.per_member);
                rates.push(penalty.bound_rate);
            }
            bellman.push(critic::bellman_errors(&data, target)?);
            q_mean.push(data.detach().mean_all()?);
        }
        let bellman = (&bellman[0] + &bellman[1])?.sum_all()?;
        let q_mean = ((&q_mean[0] + &q_mean[1])? * 0.5)?;
        let nothing = bellman.detach().zeros_like()?;
        let ([first, second], [rate1, rate2]) = (penalties.as_slice(), rates.as_slice()) else {
            let (penalty, bound_rate) = (nothing.clone(), nothing);
            return Ok(CriticLosses {
                loss: bellman.clone(),
                multiplier_loss: None,
                bellman,
                penalty,
                q_mean,
                bound_rate,
            });
        };
        let weighed = cql::weigh(self.log_multiplier.as_tensor(), first, second, self.config.cql_gap)?;
        Ok(CriticLosses {
            loss: (&bellman + weighed.loss)?,
            multiplier_loss: weighed.multiplier_loss,
            bellman,
            penalty: (first.detach() + second.detach())?.sum_all()?,
            q_mean,
            bound_rate: ((rate1 + rate2)? * 0.5)?,
        })
    }

    fn penalty_settings(&self) -> cql::Settings {
        cql::Settings {
            form: self.config.cql_entries.into(),
            temperature: self.config.cql_temperature,
            weight: self.config.cql_weight,
            action_dim: self.dims.action,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::config::{LearnerConfig, PretrainConfig};
    use crate::kernels::Staging;
    use crate::learner::Dims;
    use crate::nn::{LayerWeights, Stack, StackWeights, copy_into};
    use crate::spaces::Minibatch;

    /// `q(s, a) = slope a` of one member.
    fn line(slope: f32) -> Stack {
        let layer = |inputs, outputs, weight| LayerWeights {
            inputs,
            outputs,
            weight,
            bias: vec![0.0; outputs],
            layer_norm: None,
        };
        let layers = vec![layer(2, 2, vec![0.0, 0.0, 1.0, -1.0]), layer(2, 1, vec![slope, -slope])];
        Stack::from_weights(&StackWeights { members: 1, layers }, &Device::Cpu).unwrap()
    }

    #[test]
    fn targets_take_the_lesser_of_the_bests_of_the_target_networks_and_actors_the_lesser_twin() {
        let config = PretrainConfig { ensemble_size: 1, hidden: vec![2], backup_actions: 2, ..Default::default() };
        let learner = LearnerConfig { discount: 0.5, ..LearnerConfig::default() };
        let mut pretrainer = Pretrainer::new(Dims { observation: 1, action: 1 }, &config, &learner, 1).unwrap();
        for (stack, slope) in [
            (&pretrainer.target1, 1.0),
            (&pretrainer.target2, -1.0),
            (&pretrainer.critic1, 100.0),
            (&pretrainer.critic2, 100.0),
        ] {
            copy_into(stack, &line(slope)).unwrap();
        }
        let host = Minibatch {
            rows: 1,
            observation: vec![0.3],
            action: vec![0.1],
            reward: vec![2.0],
            terminated: vec![0.0],
            next_observation: vec![0.7],
            ..Minibatch::default()
        };
        let batch = Batch::upload(&host, None, pretrainer.dims, &mut Staging::default(), &Device::Cpu).unwrap();
        let action = Tensor::new(&[0.5f32, -0.25], &Device::Cpu).unwrap().reshape((1, 2, 1, 1)).unwrap();
        let backup = Backup { log_prob: action.squeeze(3).unwrap(), action };
        // Bests 0.5 and 0.25; the best of the lesser of each would be -0.25.
        let target = pretrainer.target(&batch, &backup, None).unwrap().flatten_all().unwrap();
        assert_eq!(target.to_vec1::<f32>().unwrap(), [2.125]);
        // The actors follow the lesser twin: -|a| here, whose loss is above 0 without entropy.
        copy_into(&pretrainer.critic2, &line(-100.0)).unwrap();
        let output = pretrainer.actor.forward(&batch.observation).unwrap();
        let loss =
            pretrainer.actor_loss(&batch, &output, &Tensor::zeros((1, 1), output.dtype(), &Device::Cpu).unwrap());
        assert!(loss.unwrap().loss.to_scalar::<f32>().unwrap() > 0.0);
    }
}
