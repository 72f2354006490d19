//! Losses of the entropy temperature.

use candle_core::{Result, Tensor};

use crate::nn::pointwise;

/// `-mean_b [log alpha sg(log pi(a|s) + target_entropy)]`, linear in `log_alpha` (the published SAC codes).
///
/// # Errors
/// When `log_alpha` is not a scalar.
pub fn loss(log_alpha: &Tensor, log_prob: &Tensor, target_entropy: f64) -> Result<Tensor> {
    let excess = (log_prob.detach().mean_all()? + target_entropy)?;
    (log_alpha * excess)?.neg()
}

/// `softplus(lambda) (entropy - target_entropy)` with `entropy = -mean_b log pi(a'|s')` (WSRL).
///
/// # Errors
/// When `lambda` is not a scalar.
pub fn softplus_loss(lambda: &Tensor, next_log_prob: &Tensor, target_entropy: f64) -> Result<Tensor> {
    let excess = (next_log_prob.detach().mean_all()?.neg()? - target_entropy)?;
    pointwise::softplus(lambda)? * excess
}
