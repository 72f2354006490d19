//! Targets and losses of twin critics.

use candle_core::{Result, Tensor, bail};

use super::operation::Operation;
use super::queue::{Grid, Queue, launch};

/// Which target critics bootstrap a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backup<'a> {
    /// Each member its own twins' minimum.
    OwnTwinMin,
    /// The mean of these minima.
    MeanOfTwinMin,
    /// The minimum of all.
    EnsembleMin,
    /// The minimum of these places in the pool of all first twins, then all second ones.
    Subset(&'a [u32]),
}

/// What the soft value subtracts.
#[derive(Clone, Copy, Debug)]
pub struct Entropy<'a> {
    /// `alpha`, a scalar.
    pub temperature: &'a Tensor,
    /// `log pi`, `(batch)` or `(members, batch)`.
    pub log_prob: &'a Tensor,
}

/// How critics judge an action for the actor; the numbers are those of `critic.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueRule {
    /// Mean over members of the twins' minimum.
    MeanOfTwinMin = 0,
    /// Minimum of all.
    Min = 1,
    /// Mean of all.
    Mean = 2,
}

/// `(members, batch)` of a pair of equal shape.
fn shape(q1: &Tensor, q2: &Tensor) -> Result<(usize, usize)> {
    if q1.dims() != q2.dims() {
        bail!("twins have shapes {:?} and {:?}", q1.dims(), q2.dims());
    }
    q1.dims2()
}

/// `y_i = r + gamma (1 - terminated) (V_i - alpha log pi)`, `(members, batch)`, without gradient; `q1`, `q2`
/// `(members, batch)` of the target critics, `reward` and `terminated` `(batch)`.
///
/// # Errors
/// When shapes differ or a place lies outside the pool.
pub fn td_target(
    q1: &Tensor,
    q2: &Tensor,
    backup: Backup<'_>,
    reward: &Tensor,
    terminated: &Tensor,
    entropy: Option<Entropy<'_>>,
    discount: f64,
) -> Result<Tensor> {
    let (members, batch) = shape(q1, q2)?;
    let (rule, places) = match backup {
        Backup::OwnTwinMin => (0, &[][..]),
        Backup::MeanOfTwinMin => (1, &[][..]),
        Backup::EnsembleMin => (2, &[][..]),
        Backup::Subset(places) => (3, places),
    };
    if rule == 3 && (places.is_empty() || places.iter().any(|k| *k as usize >= 2 * members)) {
        bail!("places {places:?} in a pool of {} target critics", 2 * members);
    }
    if reward.dims() != [batch] || terminated.dims() != [batch] {
        bail!("rewards {:?} and ends {:?} for values of {batch} rows", reward.dims(), terminated.dims());
    }
    let stride = match entropy.map(|e| e.log_prob.dims()) {
        None => 0,
        Some([rows]) if *rows == batch => 0,
        Some([n, rows]) if (*n, *rows) == (members, batch) => batch,
        Some(other) => bail!("log-probabilities {other:?} for values of {members} members and {batch} rows"),
    };
    let (queue, grid) = (Queue::of(q1.device())?, Grid::Elements(batch));
    let subset = (rule == 3).then(|| Tensor::new(places, q1.device())).transpose()?;
    let log_prob = entropy.map(|e| e.log_prob.contiguous()).transpose()?;
    let alpha = entropy.map(|e| e.temperature.contiguous()).transpose()?;
    let (q1, q2) = (q1.contiguous()?, q2.contiguous()?);
    let (reward, terminated) = (reward.contiguous()?, terminated.contiguous()?);
    let (log_prob, alpha, subset) = (log_prob.as_ref(), alpha.as_ref(), subset.as_ref());
    let y = queue.alloc(members * batch)?;
    let chosen = places.len();
    launch!(
        queue,
        "td_target",
        grid,
        &q1,
        &q2,
        &reward,
        &terminated,
        log_prob,
        alpha,
        subset,
        chosen,
        members,
        batch,
        stride,
        rule,
        discount,
        &y
    )?;
    Ok(y.tensor((members, batch)))
}

/// `sum_i mean_b (Q1_i - y_i)^2 + sum_i mean_b (Q2_i - y_i)^2`, a scalar, differentiable in the twins `(members, batch)`.
///
/// # Errors
/// When shapes differ.
pub fn twin_loss(q1: &Tensor, q2: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (members, batch) = shape(q1, q2)?;
    if target.dims() != q1.dims() {
        bail!("targets {:?} for values {:?}", target.dims(), q1.dims());
    }
    let (q1, q2, y) = (q1.contiguous()?, q2.contiguous()?, target.detach().contiguous()?);
    let (queue, n) = (Queue::of(q1.device())?, members * batch);
    let loss = queue.alloc(1)?;
    launch!(queue, "twin_loss", Grid::One, &q1, &q2, &y, n, batch, &loss)?;
    let (a, b) = (q1.detach(), q2.detach());
    let backward = move |_: &Tensor, g: &Tensor| {
        let (g1, g2) = (queue.alloc(n)?, queue.alloc(n)?);
        launch!(queue, "twin_loss_backward", Grid::Elements(n), &a, &b, &y, g, n, batch, &g1, &g2)?;
        Ok([Some(g1.tensor((members, batch))), Some(g2.tensor((members, batch)))])
    };
    Operation::<2>::new("twin-loss", loss, (), backward).of(&q1, &q2)
}

/// Value of each action, `(batch)`, differentiable in the twins `(members, batch)`; a minimum sends its gradient to the
/// first critic that has it.
///
/// # Errors
/// When shapes differ.
pub fn actor_value(q1: &Tensor, q2: &Tensor, rule: ValueRule) -> Result<Tensor> {
    let (members, batch) = shape(q1, q2)?;
    let (q1, q2, rule) = (q1.contiguous()?, q2.contiguous()?, rule as i32);
    let (queue, grid) = (Queue::of(q1.device())?, Grid::Elements(batch));
    let value = queue.alloc(batch)?;
    launch!(queue, "actor_value", grid, &q1, &q2, members, batch, rule, &value)?;
    let (a, b) = (q1.detach(), q2.detach());
    let backward = move |_: &Tensor, g: &Tensor| {
        let (g1, g2) = (queue.alloc(members * batch)?, queue.alloc(members * batch)?);
        launch!(queue, "actor_value_backward", grid, &a, &b, g, members, batch, rule, &g1, &g2)?;
        Ok([Some(g1.tensor((members, batch))), Some(g2.tensor((members, batch)))])
    };
    Operation::<2>::new("actor-value", value, batch, backward).of(&q1, &q2)
}
