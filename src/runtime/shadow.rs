//! A policy beside the one in use, on the newest observations, before the robot sees it.

use std::fmt;

use crate::nn::weights::ActorWeights;
use crate::policy::manifest::Residual;
use crate::policy::{ForeignBundle, PolicyBackend, PolicyError, PolicyOutput, Source};
use crate::replay::Store;
use crate::spaces::{Spaces, StepRecord};

/// A policy that can be made ready again: the publisher keeps those that the loop has, for comparison.
pub(super) enum Kept {
    /// An ensemble's actors, and on what they stand if they are a residual.
    Ensemble(Box<(ActorWeights, Option<Residual>)>),
    /// An ONNX actor of others.
    Foreign(Box<ForeignBundle>),
}

impl From<Source<'_>> for Kept {
    fn from(source: Source<'_>) -> Self {
        match source {
            Source::Ensemble(actor, residual) => Self::Ensemble(Box::new((actor.clone(), residual.cloned()))),
            Source::Foreign(bundle) => Self::Foreign(Box::new(bundle.clone())),
        }
    }
}

impl Kept {
    /// To make it ready.
    pub(super) fn source(&self) -> Source<'_> {
        match self {
            Self::Ensemble(kept) => Source::Ensemble(&kept.0, kept.1.as_ref()),
            Self::Foreign(bundle) => Source::Foreign(bundle),
        }
    }
}

/// How far the actions of two policies without noise are apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shadow {
    /// Observations they were run on.
    pub steps: usize,
    /// Mean over observations and entries.
    pub mean: f64,
    /// The largest, and its entry.
    pub largest: (f32, String),
}

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, mean, largest: (largest, entry) } = self;
        if *steps == 0 {
            return write!(f, "no observation to try it on yet");
        }
        write!(
            f,
            "on the newest {steps} observations its action differs from that of the policy in use by {mean:.3} on average, at most {largest:.3} ({entry})"
        )
    }
}

/// At most `count` of the newest observations of a buffer.
pub(super) fn newest(store: &Store, count: usize) -> Vec<StepRecord> {
    let mut record = StepRecord::default();
    let first = if store.is_empty() { store.last_sequence() + 1 } else { store.first_sequence() };
    let all = (first..=store.last_sequence()).rev().take(count);
    all.filter_map(|sequence| store.record_with_frame(sequence, &mut record).ok().map(|()| record.clone())).collect()
}

/// Runs both on the observations.
///
/// # Errors
/// When one of them fails.
pub(super) fn compare(
    new: &mut dyn PolicyBackend,
    old: &mut dyn PolicyBackend,
    observations: &[StepRecord],
    spaces: &Spaces,
) -> Result<Shadow, PolicyError> {
    let (mut theirs, mut ours) = (PolicyOutput::default(), PolicyOutput::default());
    let mut shadow = Shadow { steps: observations.len(), ..Shadow::default() };
    let entries = (observations.len() * spaces.action_dim()).max(1) as f64;
    for record in observations {
        let image = record.frame.as_ref().map_or(&[][..], |frame| &frame.pixels);
        new.infer(&record.observation, image, &mut theirs)?;
        old.infer(&record.observation, image, &mut ours)?;
        for entry in 0..theirs.action_dim.min(ours.action_dim) {
            let difference = (theirs.action(entry, 0.0) - ours.action(entry, 0.0)).abs();
            shadow.mean += f64::from(difference) / entries;
            if difference >= shadow.largest.0 {
                shadow.largest = (difference, spaces.action.get(entry).cloned().unwrap_or_default());
            }
        }
    }
    Ok(shadow)
}
