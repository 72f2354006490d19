//! A minibatch as tensors on the learner's device.

use candle_core::{Device, Result, Tensor};

use super::eyes::Seen;
use crate::kernels::Staging;
use crate::rl::{self, actor};
use crate::spaces::{Minibatch, Spaces};

/// Lengths of an observation and of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Length of an observation.
    pub observation: usize,
    /// Length of an action.
    pub action: usize,
}

impl From<&Spaces> for Dims {
    fn from(spaces: &Spaces) -> Self {
        Self { observation: spaces.observation_dim(), action: spaces.action_dim() }
    }
}

/// One upload of a [`Minibatch`], `B` rows.
#[derive(Clone)]
pub(super) struct Batch {
    /// What the actors see at `s`, `(B, observation)`, or with encoders of their own `(members, B, observation)`.
    pub(super) observation: Tensor,
    /// What either critic sees there; with gradient to encoders that its loss trains.
    pub(super) judged: [Tensor; 2],
    /// What the density network sees there, `(B, observation)`, without gradient.
    pub(super) weighed: Tensor,
    /// `(B, action)`.
    pub(super) action: Tensor,
    /// `(B)`.
    pub(super) reward: Tensor,
    /// `(B)`.
    pub(super) terminated: Tensor,
    /// What the actors see at `s'`, without gradient.
    pub(super) next_observation: Tensor,
    /// What either target critic sees there.
    pub(super) next_judged: [Tensor; 2],
    /// The images behind all that, where networks learn to see.
    pub(super) seen: Option<Seen>,
    /// `(B)`: the return that followed, minus infinity where none is known. Only for Cal-QL.
    pub(super) lower_bound: Option<Tensor>,
    /// What the actors answer to `next_observation`, `(members, B, 2 action)`, where it is known. Without gradient.
    pub(super) next_output: Option<Tensor>,
    /// Where the actors are a residual.
    pub(super) below: Option<Below>,
}

/// The frozen base's part in a minibatch.
#[derive(Clone)]
pub(super) struct Below {
    pub(super) scale: f64,
    /// Its actions at `s`, `(B, action)`.
    pub(super) now: Tensor,
    /// Its actions at `s'`, `(B, action)`.
    pub(super) next: Tensor,
}

impl Batch {
    /// `lower_bound`: as in the field.
    pub(super) fn upload(
        host: &Minibatch,
        lower_bound: Option<Vec<f32>>,
        dims: Dims,
        staging: &mut Staging,
        device: &Device,
    ) -> Result<Self> {
        let rows = host.rows;
        let columns = [
            (&host.observation[..], &[rows, dims.observation][..]),
            (&host.action, &[rows, dims.action]),
            (&host.reward, &[rows]),
            (&host.terminated, &[rows]),
            (&host.next_observation, &[rows, dims.observation]),
        ];
        let [observation, action, reward, terminated, next_observation] = staging.upload(columns, device)?;
        Ok(Self {
            judged: [observation.clone(), observation.clone()],
            weighed: observation.clone(),
            next_judged: [next_observation.clone(), next_observation.clone()],
            seen: None,
            observation,
            action,
            reward,
            terminated,
            next_observation,
            lower_bound: lower_bound.map(|bound| Tensor::from_vec(bound, rows, device)).transpose()?,
            below: None,
            next_output: None,
        })
    }

    /// The executed action for an action of the actors at `s`.
    pub(super) fn executed(&self, action: &Tensor) -> Result<Tensor> {
        self.below.as_ref().map_or_else(|| Ok(action.clone()), |b| actor::executed(&b.now, b.scale, action))
    }

    /// The executed action for an action of the actors at `s'`.
    pub(super) fn executed_next(&self, action: &Tensor) -> Result<Tensor> {
        self.below.as_ref().map_or_else(|| Ok(action.clone()), |b| actor::executed(&b.next, b.scale, action))
    }

    /// With the lower bound of `other`, of the same rows.
    pub(super) fn with_bound_of(mut self, other: &Self) -> Self {
        self.lower_bound.clone_from(&other.lower_bound);
        self
    }

    /// `s ++ a` for either critic.
    pub(super) fn state_action(&self) -> Result<[Tensor; 2]> {
        for_critics(&self.judged, |observation| rl::state_action(observation, &self.action))
    }

    /// All rows of `batches`, without lower bounds. What networks see of images has yet to be looked at.
    pub(super) fn cat(batches: &[Self]) -> Result<Self> {
        let join = |column: fn(&Self) -> &Tensor| Tensor::cat(&batches.iter().map(column).collect::<Vec<_>>(), 0);
        let (observation, next_observation) = (join(|b| &b.observation)?, join(|b| &b.next_observation)?);
        let seen: Option<Vec<&Seen>> = batches.iter().map(|b| b.seen.as_ref()).collect();
        let below: Option<Vec<&Below>> = batches.iter().map(|b| b.below.as_ref()).collect();
        let join_below = |below: Vec<&Below>| {
            let join =
                |column: fn(&Below) -> &Tensor| Tensor::cat(&below.iter().map(|b| column(b)).collect::<Vec<_>>(), 0);
            Ok::<_, candle_core::Error>(Below {
                scale: below[0].scale,
                now: join(|b| &b.now)?,
                next: join(|b| &b.next)?,
            })
        };
        Ok(Self {
            judged: [observation.clone(), observation.clone()],
            weighed: observation.clone(),
            next_judged: [next_observation.clone(), next_observation.clone()],
            seen: seen.filter(|all| !all.is_empty()).map(|all| Seen::cat(&all)).transpose()?,
            observation,
            next_observation,
            action: join(|b| &b.action)?,
            reward: join(|b| &b.reward)?,
            terminated: join(|b| &b.terminated)?,
            lower_bound: None,
            below: below.filter(|b| !b.is_empty()).map(join_below).transpose()?,
            next_output: None,
        })
    }
}

/// Rows for either critic out of what it sees; made once where both see the same.
pub(super) fn for_critics(judged: &[Tensor; 2], rows: impl Fn(&Tensor) -> Result<Tensor>) -> Result<[Tensor; 2]> {
    let first = rows(&judged[0])?;
    let second = if judged[0].id() == judged[1].id() { first.clone() } else { rows(&judged[1])? };
    Ok([first, second])
}

/// `s ++ a` of a minibatch of which nothing else is needed, `(B, observation + action)`.
pub(super) fn upload_state_action(host: &Minibatch, dims: Dims, device: &Device) -> Result<Tensor> {
    let observation = Tensor::from_slice(&host.observation, (host.rows, dims.observation), device)?;
    let action = Tensor::from_slice(&host.action, (host.rows, dims.action), device)?;
    rl::state_action(&observation, &action)
}
