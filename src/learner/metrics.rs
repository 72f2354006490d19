//! What an update reports: losses, health of the ensemble, and where the processor time went.

use std::time::Duration;

use serde::Serialize;

use crate::clock;
use crate::replay::Replay;
use crate::spaces::{Minibatch, Source};

/// Classes of [`UpdateMetrics::age_shares`].
pub(super) const AGES: usize = 5;

/// Numbers of one update, all taken before its optimiser steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct UpdateMetrics {
    /// Sum over members and twins of the mean squared temporal-difference error.
    pub critic_loss: f32,
    /// `mean(alpha log pi - Q)`.
    pub actor_loss: f32,
    /// Loss of the entropy temperature.
    pub temperature_loss: f32,
    /// Entropy temperature `alpha` the losses used.
    pub temperature: f32,
    /// `-mean log pi(a|s)` of the ensemble policy, nats.
    pub entropy: f32,
    /// Mean of all critics at the minibatch's own actions.
    pub q_mean: f32,
    /// Mean bootstrapped target.
    pub target_mean: f32,
    /// Share of the ensemble policy's variance that the members' disagreement makes up, `[0, 1]`.
    pub disagreement_share: f32,
    /// Share of the sampled action entries beyond a magnitude of 0.99, `[0, 1]`.
    pub action_saturation: f32,
    /// Mean over the critics of the weighted conservative penalty; 0 without one.
    pub penalty: f32,
    /// Mean of the penalty's Lagrange multipliers; 1 with a fixed weight.
    pub penalty_multiplier: f32,
    /// Mean `|Q - y|` of the offline rows; `None` when there are none.
    pub td_error_offline: Option<f32>,
    /// Mean `|Q - y|` of the online rows.
    pub td_error_online: Option<f32>,
    /// Rows that Cal-QL left out of the minibatches because their episode is not over.
    pub left_out_rows: u32,
    /// Share of offline rows in the minibatches, `[0, 1]`.
    pub offline_share: f32,
    /// How old the online rows are: shares of them that were recorded within the last 100, 1000, 10,000 and 100,000
    /// steps, and before. All 0 without online rows.
    pub age_shares: [f32; AGES],
    /// What the density-ratio network reports; `None` with a sampler that has no use for it.
    pub density: Option<DensityMetrics>,
}

/// Numbers of one pass of the density-ratio network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DensityMetrics {
    /// Loss of the network.
    pub loss: f32,
    /// Estimate of the Jensen-Shannon divergence between online and offline data, nats, at most ln 2.
    pub js_estimate: f32,
    /// Share of minibatch rows with a ratio of exactly 0.
    pub zero_share: f32,
    /// Share of new priorities at the lower bound.
    pub clipped_low_share: f32,
    /// Share of new priorities at the upper bound.
    pub clipped_high_share: f32,
}

/// Shares of the online rows by age.
pub(super) fn ages(minibatches: &[Minibatch], replay: &Replay) -> [f32; AGES] {
    let mut counts = [0.0f32; AGES];
    for minibatch in minibatches {
        for (leaf, _) in minibatch.leaf.iter().zip(&minibatch.source).filter(|(_, s)| **s == Source::Online) {
            let decade = replay.online_age(*leaf).max(1).ilog10() as usize;
            counts[decade.saturating_sub(1).min(AGES - 1)] += 1.0;
        }
    }
    let total: f32 = counts.iter().sum();
    counts.map(|count| count / total.max(1.0))
}

/// Processor time of the learner's thread by part of an update, summed since the learner was built.
///
/// Kernels that run on further threads are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// Drawing minibatches and noise, writing priorities, copies to the device.
    pub sampling: Duration,
    /// Looking at images: forward passes of the encoders. Their gradients count to the losses that ask for them.
    pub encoder: Duration,
    /// Density-ratio network: loss, gradients and priorities.
    pub density: Duration,
    /// Bootstrapped targets.
    pub target: Duration,
    /// Critic loss.
    pub critic_forward: Duration,
    /// Critic gradients.
    pub critic_backward: Duration,
    /// Actor and temperature losses and gradients.
    pub actor: Duration,
    /// Optimiser steps, and the target networks that follow them.
    pub optimiser: Duration,
}

/// Splits a thread's processor time into laps.
pub(super) struct Laps(Duration);

impl Laps {
    pub(super) fn start() -> Self {
        Self(clock::thread_cpu())
    }

    /// Adds the time since the last lap to `part`.
    pub(super) fn add_to(&mut self, part: &mut Duration) {
        let now = clock::thread_cpu();
        *part += now.saturating_sub(self.0);
        self.0 = now;
    }
}
