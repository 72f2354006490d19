//! What a pretraining update reports.

use candle_core::Tensor;
use serde::Serialize;

use super::Pretrainer;
use super::losses::{ActorLoss, CriticLosses};
use crate::learner::LearnerError;

/// Numbers of one update, taken before its optimisers moved; means over all members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PretrainMetrics {
    /// Mean over the critics of the mean squared temporal-difference error.
    pub bellman_error: f32,
    /// Mean over the critics of the weighted CQL penalty, without its multiplier.
    pub penalty: f32,
    /// Mean over the members of the penalty's Lagrange multiplier; 1 with a fixed weight.
    pub penalty_multiplier: f32,
    /// Share of policy values that Cal-QL's bound replaced.
    pub bound_rate: f32,
    /// Mean over the members of the actor loss; 0 for given actors.
    pub actor_loss: f32,
    /// Mean entropy temperature.
    pub temperature: f32,
    /// `-mean log pi(a|s)`, nats; 0 for given actors.
    pub entropy: f32,
    /// Mean of all critics at the actions of the data.
    pub q_mean: f32,
    /// Mean bootstrapped target.
    pub target_mean: f32,
}

impl Pretrainer {
    /// Reads all scalars at once and refuses numbers that would poison the networks.
    pub(super) fn metrics(
        &self,
        critics: &CriticLosses,
        actor: Option<(&ActorLoss, &Tensor)>,
        target: &Tensor,
    ) -> Result<PretrainMetrics, LearnerError> {
        let read = || {
            let nothing = critics.q_mean.zeros_like()?;
            let (loss, temperature, log_prob) = match actor {
                Some((actor, temperature)) => {
                    (actor.loss.detach(), temperature.mean_all()?, actor.log_prob.mean_all()?)
                }
                None => (nothing.clone(), nothing.clone(), nothing),
            };
            let multiplier = self.log_multiplier.as_detached_tensor().exp()?.mean_all()?;
            let target = target.mean_all()?;
            let [bellman, penalty, q, rate] =
                [&critics.bellman, &critics.penalty, &critics.q_mean, &critics.bound_rate].map(Tensor::detach);
            Tensor::stack(&[bellman, penalty, multiplier, rate, loss, temperature, log_prob, q, target], 0)?
                .to_vec1::<f32>()
        };
        let read = read().map_err(LearnerError::tensor("read the losses"))?;
        let names = [
            "Bellman error",
            "CQL penalty",
            "penalty multiplier",
            "bound rate",
            "actor loss",
            "temperature",
            "log probability",
            "mean Q",
            "mean target",
        ];
        for (quantity, value) in names.into_iter().zip(read.iter().copied()) {
            if !value.is_finite() {
                return Err(LearnerError::NotFinite { quantity, value, update: self.updates });
            }
        }
        let members = self.members() as f32;
        Ok(PretrainMetrics {
            bellman_error: read[0] / (2.0 * members),
            penalty: read[1] / (2.0 * members),
            penalty_multiplier: read[2],
            bound_rate: read[3],
            actor_loss: read[4] / members,
            temperature: read[5],
            entropy: -read[6],
            q_mean: read[7],
            target_mean: read[8],
        })
    }
}
