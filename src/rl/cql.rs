//! The conservative penalty of CQL and the calibration of Cal-QL.

use candle_core::{DType, Result, Tensor};

use crate::config::CqlEntries;
use crate::nn::pointwise;

/// Which entries the log-sum-exp takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// CQL(H), importance sampled: values less the log-density of their proposal.
    H,
    /// CQL(rho): plain values and the value of the data.
    Rho,
}

impl From<CqlEntries> for Form {
    fn from(entries: CqlEntries) -> Self {
        match entries {
            CqlEntries::ImportanceSampled => Self::H,
            CqlEntries::Rho => Self::Rho,
        }
    }
}

/// Settings of [`penalty`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Form.
    pub form: Form,
    /// `T` of `T ln sum exp(q / T)`.
    pub temperature: f64,
    /// Weight of the penalty.
    pub weight: f64,
    /// Length of an action, for the density of uniform actions.
    pub action_dim: usize,
}

/// One critic's values at sampled actions, all at the current state. No gradient flows to the log-probabilities.
#[derive(Clone, Copy, Debug)]
pub struct SampledValues<'a> {
    /// At uniform actions in `[-1, 1]`, `(members, n, batch)`.
    pub uniform: &'a Tensor,
    /// At actions from `pi(s)`, `(members, n, batch)`.
    pub policy: &'a Tensor,
    /// Their log-probability, `(members or 1, n, batch)`.
    pub policy_log_prob: &'a Tensor,
    /// At actions from `pi(s')`, `(members, n, batch)`.
    pub next: &'a Tensor,
    /// Their log-probability, `(members or 1, n, batch)`.
    pub next_log_prob: &'a Tensor,
}

/// Result of [`penalty`] for one critic of each member.
#[derive(Clone, Debug)]
pub struct Penalty {
    /// `w (mean_b lse - mean_b Q(s, a_data))`, `(members)`; with gradient.
    pub per_member: Tensor,
    /// The log-sum-exp, `(members, batch)`.
    pub log_sum_exp: Tensor,
    /// Share of the policy's values that the lower bound replaced, a scalar; 0 without a bound.
    pub bound_rate: Tensor,
}

/// CQL's penalty, `w (T logsumexp_k(q_k / T) - Q(s, a_data))` averaged over the batch.
///
/// `data` is `(members, batch)`. With `lower_bound` `(batch)`, the return of the data's policy, values at policy
/// actions become `max(Q, bound)` (Cal-QL); a bounded entry passes no gradient. The log-sum-exp is not divided by the
/// number of entries (CQL code).
///
/// # Errors
/// When shapes differ.
pub fn penalty(
    settings: Settings,
    values: SampledValues<'_>,
    data: &Tensor,
    lower_bound: Option<&Tensor>,
) -> Result<Penalty> {
    let (policy, policy_rate) = bounded(values.policy, lower_bound)?;
    let (next, next_rate) = bounded(values.next, lower_bound)?;
    let entries = match settings.form {
        Form::H => {
            let log_uniform = -(settings.action_dim as f64) * std::f64::consts::LN_2;
            let policy = policy.broadcast_sub(&values.policy_log_prob.detach())?;
            let next = next.broadcast_sub(&values.next_log_prob.detach())?;
            Tensor::cat(&[(values.uniform - log_uniform)?, policy, next], 1)?
        }
        Form::Rho => Tensor::cat(&[values.uniform, &policy, &next, &data.unsqueeze(1)?], 1)?,
    };
    let scaled = (entries / settings.temperature)?;
    let log_sum_exp = (pointwise::log_sum_exp(&scaled, 1)? * settings.temperature)?;
    let per_member = ((log_sum_exp.mean(1)? - data.mean(1)?)? * settings.weight)?;
    Ok(Penalty { per_member, log_sum_exp, bound_rate: ((policy_rate + next_rate)? * 0.5)? })
}

/// Result of [`weigh`].
#[derive(Clone, Debug)]
pub struct Weighed {
    /// What the critics' loss adds, a scalar: the sum of the penalties, or
    /// `sum_i alpha'_i ((p1_i - gap) + (p2_i - gap))`; gradient to the critics only.
    pub loss: Tensor,
    /// The latter's negative half with gradient to the multipliers only, a scalar; `None` with a fixed weight.
    pub multiplier_loss: Option<Tensor>,
}

/// Largest multiplier (CQL code).
const MAX_MULTIPLIER: f64 = 1e6;

/// The penalties `(members)` of the twins as part of a loss. With a `gap` above 0, the Lagrange variant of CQL:
/// `alpha'_i = min(exp(log_multiplier_i), 1e6)` grows while the penalties of member `i`'s two critics are above `gap` on
/// average, and shrinks below.
///
/// # Errors
/// When shapes differ.
pub fn weigh(log_multiplier: &Tensor, penalty1: &Tensor, penalty2: &Tensor, gap: f64) -> Result<Weighed> {
    if gap <= 0.0 {
        return Ok(Weighed { loss: (penalty1 + penalty2)?.sum_all()?, multiplier_loss: None });
    }
    let multiplier = pointwise::clamp(&log_multiplier.exp()?, 0.0, MAX_MULTIPLIER)?;
    let excess = ((penalty1 + penalty2)? - 2.0 * gap)?;
    Ok(Weighed {
        loss: (multiplier.detach() * &excess)?.sum_all()?,
        multiplier_loss: Some(((multiplier * excess.detach())?.sum_all()? * -0.5)?),
    })
}

/// `max(q, bound)` and the share of entries that the bound replaced.
fn bounded(q: &Tensor, lower_bound: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let Some(bound) = lower_bound else {
        return Ok((q.clone(), Tensor::zeros((), q.dtype(), q.device())?));
    };
    let bound = bound.detach().broadcast_as(q.shape())?;
    let rate = bound.gt(q)?.to_dtype(DType::F32)?.mean_all()?.to_dtype(q.dtype())?;
    Ok((pointwise::maximum(q, &bound)?, rate))
}
