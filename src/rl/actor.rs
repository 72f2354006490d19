//! Losses of the actors.

use candle_core::{Result, Tensor};

use super::critic::mean_of_pair_minima;
pub use crate::config::ActorOperator;
use crate::kernels::{self, ValueRule};
use crate::nn::pointwise;

/// Value of each action, `(batch)`, from critics `(members, batch)`; a tie sends its gradient to the first.
///
/// # Errors
/// When shapes differ.
pub fn value(q1: &Tensor, q2: &Tensor, operator: ActorOperator) -> Result<Tensor> {
    let rule = match operator {
        ActorOperator::MeanOfTwinMin => Some(ValueRule::MeanOfTwinMin),
        ActorOperator::Min => Some(ValueRule::Min),
        ActorOperator::Mean => Some(ValueRule::Mean),
        ActorOperator::WeightedMinPair => None,
    };
    if let Some(rule) = rule.filter(|_| kernels::take(q1)) {
        return kernels::actor_value(q1, q2, rule);
    }
    match operator {
        ActorOperator::MeanOfTwinMin => pointwise::minimum(q1, q2)?.mean(0),
        ActorOperator::Min => pointwise::min_over_first(&Tensor::cat(&[q1, q2], 0)?),
        ActorOperator::Mean => Tensor::cat(&[q1, q2], 0)?.mean(0),
        ActorOperator::WeightedMinPair => mean_of_pair_minima(&Tensor::cat(&[q1, q2], 0)?),
    }
}

/// What is executed when a residual actor says `action` above a frozen base: `clip(base + scale action, -1, 1)`, with
/// `action = tanh(z)`. An entry that is clipped has no gradient.
///
/// The shapes broadcast, `(batch, action)` or `(draws, batch, action)`. Log-probabilities stay those of `action`: where
/// nothing is clipped, the density of what is executed is that over `scale^|A|`, a constant that moves no gradient.
/// Source: Ankile et al., Residual Off-Policy RL for Finetuning Behavior Cloning Policies, 2025.
///
/// # Errors
/// When the shapes do not broadcast.
pub fn executed(base: &Tensor, scale: f64, action: &Tensor) -> Result<Tensor> {
    pointwise::clamp(&(action * scale)?.broadcast_add(base)?, -1.0, 1.0)
}

/// `mean_b [alpha log pi(a|s) - Q(s, a)]` (SAC); `alpha` is a constant here.
///
/// # Errors
/// When shapes differ.
pub fn loss(temperature: &Tensor, log_prob: &Tensor, value: &Tensor) -> Result<Tensor> {
    (log_prob.broadcast_mul(&temperature.detach())? - value)?.mean_all()
}

/// `beta (log pi(a|s) - log pi_k(a|s))`, `(batch)`: what an action costs that the slow policy `pi_k` would not take; on
/// average `beta KL(pi || pi_k)`. Actors add it to their loss, targets subtract it like the entropy term. Source: PROTO's
/// published code.
///
/// # Errors
/// When shapes differ.
pub fn anchor_cost(log_prob: &Tensor, anchor_log_prob: &Tensor, weight: f64) -> Result<Tensor> {
    (log_prob - anchor_log_prob)? * weight
}

/// `sum_p mean_b [alpha log pi_p(a_p|s) - log pi_p(a_data|s)]`: CQL's first updates, which imitate the data.
///
/// Both log-probabilities are `(policies, batch)`; an ensemble policy counts as one.
///
/// # Errors
/// When shapes differ.
pub fn behaviour_cloning_loss(temperature: &Tensor, log_prob: &Tensor, data_log_prob: &Tensor) -> Result<Tensor> {
    (log_prob.broadcast_mul(&temperature.detach())? - data_log_prob)?.mean(1)?.sum_all()
}

/// Weights `softmax_b((Q(s, a_data) - Q(s, a_pi)) / beta) B`, `(batch)`, without gradient (AWAC).
///
/// # Errors
/// When shapes differ.
pub fn advantage_weights(data_value: &Tensor, policy_value: &Tensor, beta: f64) -> Result<Tensor> {
    let scaled = ((data_value.detach() - policy_value.detach())? / beta)?;
    let count = scaled.elem_count() as f64;
    let total = pointwise::log_sum_exp(&scaled, 0)?;
    scaled.broadcast_sub(&total)?.exp()? * count
}

/// `-mean_b [weight log pi(a_data|s)]` (AWAC).
///
/// # Errors
/// When shapes differ.
pub fn advantage_weighted_loss(weights: &Tensor, data_log_prob: &Tensor) -> Result<Tensor> {
    (weights * data_log_prob)?.mean_all()?.neg()
}
