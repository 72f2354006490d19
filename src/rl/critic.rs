//! Targets and loss of the critics.

use candle_core::{Result, Tensor};

use crate::kernels::{self, Backup, Entropy};
use crate::nn::pointwise;

/// Which target critics bootstrap member `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetOperator {
    /// `min(Q1'_i, Q2'_i)`: each member its own (Off2OnRL code).
    OwnTwinMin,
    /// `mean_i min(Q1'_i, Q2'_i)`, the same for all members (Off2OnRL's text: Eq. 1 on the Q of Eq. 5).
    MeanOfTwinMin,
    /// Minimum over all `2 N` target critics.
    EnsembleMin,
    /// [`mean_of_pair_minima`] of all `2 N` target critics (ENOTO).
    WeightedMinPair,
    /// Minimum over the named critics of the pool `Q1'_0.. Q1'_{N-1}, Q2'_0.. Q2'_{N-1}` (REDQ); may repeat.
    Redq {
        /// Places in the pool.
        indices: Vec<u32>,
    },
}

/// How several sampled next actions become one value (CQL's "max Q backup").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampledBackup {
    /// `min` over twins of `max` over samples.
    MaxThenMin,
    /// `max` over samples of `min` over twins.
    MinThenMax,
}

/// Value of the next state for each member, `(members, batch)`, from target critics `(members, batch)`.
///
/// # Errors
/// When shapes differ or an index is outside the pool.
pub fn next_value(q1: &Tensor, q2: &Tensor, operator: &TargetOperator) -> Result<Tensor> {
    let pool = match operator {
        TargetOperator::OwnTwinMin => return pointwise::minimum(q1, q2),
        TargetOperator::MeanOfTwinMin => {
            return pointwise::minimum(q1, q2)?.mean_keepdim(0)?.broadcast_as(q1.shape())?.contiguous();
        }
        TargetOperator::EnsembleMin => Tensor::cat(&[q1, q2], 0)?,
        TargetOperator::WeightedMinPair => {
            return mean_of_pair_minima(&Tensor::cat(&[q1, q2], 0)?)?.broadcast_as(q1.shape())?.contiguous();
        }
        TargetOperator::Redq { indices } => {
            let indices = Tensor::new(&indices[..], q1.device())?;
            Tensor::cat(&[q1, q2], 0)?.index_select(&indices, 0)?
        }
    };
    least(&pool, q1.dim(0)?)
}

/// The least of a `pool` of target critics, `(critics, batch)`, for each of `members`, `(members, batch)`.
///
/// # Errors
/// When the pool is empty.
pub fn least(pool: &Tensor, members: usize) -> Result<Tensor> {
    let least = pointwise::min_over_first(pool)?;
    least.broadcast_as((members, least.dim(0)?))
}

/// `2 / (n (n - 1)) sum_{i < j} min(Q_i, Q_j)` of a pool of `n` critics `(n, batch)`, `(batch)`: what the minimum over two
/// critics drawn without replacement is on average (the weighted REDQ of Chen et al., 2021; ENOTO's WeightedMinPair).
///
/// # Errors
/// When there are fewer than two critics.
pub fn mean_of_pair_minima(pool: &Tensor) -> Result<Tensor> {
    let n = pool.dim(0)?;
    let pairs = (1..n)
        .map(|apart| pointwise::minimum(&pool.narrow(0, 0, n - apart)?, &pool.narrow(0, apart, n - apart)?)?.sum(0));
    Tensor::stack(&pairs.collect::<Result<Vec<_>>>()?, 0)?.sum(0)? * (2.0 / (n * n.saturating_sub(1)) as f64)
}

/// Value of the next state for each member, `(members, batch)`, from target critics at `k` sampled actions,
/// `(members, k, batch)`.
///
/// # Errors
/// When shapes differ.
pub fn sampled_next_value(q1: &Tensor, q2: &Tensor, backup: SampledBackup) -> Result<Tensor> {
    match backup {
        SampledBackup::MaxThenMin => pointwise::minimum(&q1.max(1)?, &q2.max(1)?),
        SampledBackup::MinThenMax => pointwise::minimum(q1, q2)?.max(1),
    }
}

/// What the soft value subtracts: `alpha log pi(a'|s')`.
#[derive(Clone, Copy, Debug)]
pub struct EntropyTerm<'a> {
    /// `alpha`, a scalar.
    pub temperature: &'a Tensor,
    /// `log pi(a'|s')`, `(batch)` or `(members, batch)`.
    pub next_log_prob: &'a Tensor,
}

/// `y_i = r + gamma (1 - terminated) (V_i - alpha log pi(a'|s'))`, `(members, batch)`, without gradient (Eq. 1).
///
/// `terminated` is 1 or 0 and must not hold time limits. Without an entropy term the backup is deterministic.
///
/// # Errors
/// When shapes differ.
pub fn td_target(
    reward: &Tensor,
    terminated: &Tensor,
    next_value: &Tensor,
    entropy: Option<EntropyTerm<'_>>,
    discount: f64,
) -> Result<Tensor> {
    let soft = match entropy {
        Some(e) => next_value.broadcast_sub(&e.next_log_prob.broadcast_mul(e.temperature)?)?,
        None => next_value.clone(),
    };
    let bootstrap = terminated.affine(-discount, discount)?;
    Ok(soft.broadcast_mul(&bootstrap)?.broadcast_add(reward)?.detach())
}

/// [`td_target`] of [`next_value`]: one kernel on a GPU.
///
/// # Errors
/// When shapes differ or an index is outside the pool.
pub fn bootstrapped_target(
    (q1, q2): (&Tensor, &Tensor),
    operator: &TargetOperator,
    reward: &Tensor,
    terminated: &Tensor,
    entropy: Option<EntropyTerm<'_>>,
    discount: f64,
) -> Result<Tensor> {
    let backup = match operator {
        TargetOperator::OwnTwinMin => Some(Backup::OwnTwinMin),
        TargetOperator::MeanOfTwinMin => Some(Backup::MeanOfTwinMin),
        TargetOperator::EnsembleMin => Some(Backup::EnsembleMin),
        TargetOperator::Redq { indices } => Some(Backup::Subset(indices)),
        TargetOperator::WeightedMinPair => None,
    };
    if let Some(backup) = backup.filter(|_| kernels::take(q1)) {
        let entropy = entropy.map(|e| Entropy { temperature: e.temperature, log_prob: e.next_log_prob });
        return kernels::td_target(q1, q2, backup, reward, terminated, entropy, discount);
    }
    td_target(reward, terminated, &next_value(q1, q2, operator)?, entropy, discount)
}

/// `sum_i mean_b (Q1_i - y_i)^2 + sum_i mean_b (Q2_i - y_i)^2`: each twin regresses to its member's target.
///
/// `q1`, `q2`, `target`: `(members, batch)`. The mean over all critics, as WSRL writes it, is this divided by `2 N`.
///
/// # Errors
/// When shapes differ.
pub fn loss(q1: &Tensor, q2: &Tensor, target: &Tensor) -> Result<Tensor> {
    if kernels::take(q1) {
        return kernels::twin_loss(q1, q2, target);
    }
    bellman_errors(q1, target)?.sum_all()? + bellman_errors(q2, target)?.sum_all()?
}

/// `mean_b (Q_i - y_i)^2` for each member, `(members)`.
///
/// # Errors
/// When shapes differ.
pub fn bellman_errors(q: &Tensor, target: &Tensor) -> Result<Tensor> {
    (q - target)?.sqr()?.mean(1)
}
