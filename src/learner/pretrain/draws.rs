//! Actions of one update, drawn before any loss is evaluated; constants for the losses.

use candle_core::{Result, Tensor};
use rand::Rng;

use super::Pretrainer;
use crate::config::PretrainMethod;
use crate::learner::batch::Batch;
use crate::learner::streams::{noise, noise_like};
use crate::nn::tanh_gaussian::{self, Sample};

/// What an update needs besides the actors' own sample.
pub(super) struct Draws {
    /// For the backup, from `pi_i(s')`.
    pub(super) backup: Backup,
    /// For the CQL penalty, if the method has one.
    pub(super) penalty: Option<PenaltyDraws>,
}

/// Actions at `s'` and their log-probability.
pub(super) struct Backup {
    /// `(members, k, B, action)`, or `(1, 1, B, action)` for one policy of all members.
    pub(super) action: Tensor,
    /// Without the last dimension.
    pub(super) log_prob: Tensor,
}

/// Proposals of the penalty, each `(members, n, B, action)`, with their log-probability where they have one.
pub(super) struct PenaltyDraws {
    /// Uniform in `[-1, 1]`, the same for all members.
    pub(super) uniform: Tensor,
    /// From `pi_i(s)`.
    pub(super) policy: (Tensor, Tensor),
    /// From `pi_i(s')`.
    pub(super) next: (Tensor, Tensor),
}

impl Pretrainer {
    /// The actors' output at `s`, with its graph, and all constant actions of this update.
    pub(super) fn draw(&mut self, batch: &Batch) -> Result<(Tensor, Draws)> {
        let (members, k) = (self.members(), self.config.backup_actions);
        let penalised = matches!(self.config.method, PretrainMethod::Cql | PretrainMethod::CalQl);
        let n = if penalised { self.config.cql_actions } else { 0 };
        let output = self.actor.forward(&batch.observation)?;
        let next_output = self.actor.forward_detached(&batch.next_observation)?;
        let policy = if penalised { Some(self.sample_members(&output.detach(), n)?) } else { None };
        let next = self.sample_members(&next_output, n + k)?;
        let part = |from: usize, count: usize| {
            Ok::<_, candle_core::Error>((next.action.narrow(1, from, count)?, next.log_prob.narrow(1, from, count)?))
        };
        let (action, log_prob) = part(n, k)?;
        let backup = Backup { action, log_prob };
        let Some(policy) = policy else {
            return Ok((output, Draws { backup, penalty: None }));
        };
        let next = part(0, n)?;
        let (rows, width) = batch.action.dims2()?;
        let uniform: Vec<f32> = (0..n * rows * width).map(|_| self.streams.uniform.random_range(-1.0..=1.0)).collect();
        let uniform = Tensor::from_vec(uniform, (1, n, rows, width), &self.device)?;
        let uniform = uniform.broadcast_as((members, n, rows, width))?;
        let penalty = PenaltyDraws { uniform, policy: (policy.action, policy.log_prob), next };
        Ok((output, Draws { backup, penalty: Some(penalty) }))
    }

    /// One action at `s'` from the policy that the given actors form together, the same for all critics.
    pub(super) fn draw_ensemble(&mut self, batch: &Batch) -> Result<Backup> {
        let output = self.actor.forward_detached(&batch.next_observation)?;
        let (mean, std) = tanh_gaussian::moments(&output, self.log_std)?;
        let sample = tanh_gaussian::sample(&mean, &std, &noise_like(&mean, &mut self.streams.noise)?)?;
        let lead = |t: &Tensor| t.unsqueeze(0)?.unsqueeze(0);
        Ok(Backup { action: lead(&sample.action)?, log_prob: lead(&sample.log_prob)? })
    }

    /// `count` actions of every member's own policy, `(members, count, B, action)`.
    fn sample_members(&mut self, output: &Tensor, count: usize) -> Result<Sample> {
        let (mean, std) = tanh_gaussian::member_moments(output, self.log_std)?;
        let (members, rows, width) = mean.dims3()?;
        let noise = noise(&mut self.streams.noise, (members, count, rows, width), &self.device)?;
        tanh_gaussian::sample(&mean.unsqueeze(1)?, &std.unsqueeze(1)?, &noise)
    }
}
