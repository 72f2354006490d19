//! The learner's density-ratio network: what turns the offline data that look like the robot's into priorities.
//!
//! Owns the network, its optimiser and the two uniform minibatches it learns from. It exists only with the
//! balanced sampler. Source: Off2OnRL, Eq. 4 and 6, in the form of the published code.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};
use rand_chacha::ChaCha8Rng;

use super::batch::Dims;
use super::metrics::DensityMetrics;
use super::streams::stream;
use crate::config::{LearnerConfig, ReplayConfig};
use crate::nn::{Adam, AdamSettings, Init, Stack};
use crate::replay::{Replay, ReplayError};
use crate::rl::density_ratio::{OutputActivation, js_estimate, loss, output_of_one, priorities, ratio};
use crate::spaces::{Minibatch, Source};

pub(super) struct Density {
    pub(super) network: Stack,
    pub(super) optimiser: Adam,
    pub(super) online_rng: ChaCha8Rng,
    pub(super) offline_rng: ChaCha8Rng,
    online: Minibatch,
    offline: Minibatch,
    activation: OutputActivation,
    temperature: f64,
    min: f32,
    max: f32,
}

/// Result of one evaluation, before the network's own step.
pub(super) struct Evaluation {
    pub(super) gradients: GradStore,
    pub(super) priorities: Vec<f32>,
    pub(super) metrics: DensityMetrics,
}

impl Density {
    pub(super) fn new(
        dims: Dims,
        config: &LearnerConfig,
        replay: &ReplayConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut widths = vec![dims.observation + dims.action];
        widths.extend(&config.density_hidden);
        widths.push(1);
        // Ratio one at the start, so that all data count the same.
        let init = Init { last_bias: Some(output_of_one(config.density_output)), layer_norm: false };
        let network = Stack::random(1, &widths, init, &mut stream(seed, "learner density weights"), device)?;
        Self::around(network, config, replay, seed)
    }

    /// A fresh optimiser and fresh streams around `network`.
    pub(super) fn around(network: Stack, config: &LearnerConfig, replay: &ReplayConfig, seed: u64) -> Result<Self> {
        let settings = AdamSettings { learning_rate: config.density_learning_rate, ..AdamSettings::default() };
        Ok(Self {
            optimiser: Adam::new(network.vars(), settings)?,
            network,
            online_rng: stream(seed, "learner density online"),
            offline_rng: stream(seed, "learner density offline"),
            online: Minibatch::default(),
            offline: Minibatch::default(),
            activation: config.density_output,
            temperature: replay.priority_temperature,
            min: replay.priority_min,
            max: replay.priority_max,
        })
    }

    /// Draws `rows` uniform transitions from either side.
    pub(super) fn sample(&mut self, replay: &mut Replay, rows: usize) -> std::result::Result<(), ReplayError> {
        replay.sample_source(Source::Online, rows, &mut self.online_rng, &mut self.online)?;
        replay.sample_source(Source::Offline, rows, &mut self.offline_rng, &mut self.offline)
    }

    /// The two minibatches drawn last: online, offline.
    pub(super) fn drawn(&self) -> (&Minibatch, &Minibatch) {
        (&self.online, &self.offline)
    }

    /// [`Density::drawn`], to be changed.
    pub(super) fn drawn_mut(&mut self) -> [&mut Minibatch; 2] {
        [&mut self.online, &mut self.offline]
    }

    /// Loss and gradients on rows `s ++ a` of the two minibatches drawn last, online and offline, and priorities of the
    /// rows `state_action` (`B`, `s ++ a`).
    pub(super) fn evaluate(&self, state_action: &Tensor, [online, offline]: [Tensor; 2]) -> Result<Evaluation> {
        let ratios =
            ratio(&self.network.forward(&Tensor::cat(&[&online, &offline], 0)?)?, self.activation)?.flatten_all()?;
        let (count, others) = (online.dim(0)?, offline.dim(0)?);
        let offline_ratios = ratios.narrow(0, count, others)?;
        let loss = loss(&ratios.narrow(0, 0, count)?, &offline_ratios)?;
        let minibatch = ratio(&self.network.forward_detached(state_action)?, self.activation)?.flatten_all()?;
        let priorities = priorities(&minibatch, &offline_ratios.detach(), self.temperature, self.min, self.max)?;
        let metrics = self.metrics(loss.to_scalar()?, &minibatch.to_vec1()?, &priorities);
        Ok(Evaluation { gradients: loss.backward()?, priorities, metrics })
    }

    fn metrics(&self, loss: f32, ratios: &[f32], priorities: &[f32]) -> DensityMetrics {
        let share = |count: usize| count as f32 / ratios.len().max(1) as f32;
        DensityMetrics {
            loss,
            js_estimate: js_estimate(f64::from(loss)) as f32,
            zero_share: share(ratios.iter().filter(|w| **w == 0.0).count()),
            clipped_low_share: share(priorities.iter().filter(|p| **p <= self.min).count()),
            clipped_high_share: share(priorities.iter().filter(|p| **p >= self.max).count()),
        }
    }
}
