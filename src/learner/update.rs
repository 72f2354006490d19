//! One iteration of Off2OnRL.
//!
//! All losses are evaluated with the parameters from before any step; then temperature, actors, critics and
//! density network step, and the target networks follow. Called by one thread, the learner's; spawns nothing. The
//! replay is locked only while minibatches are drawn and while priorities are written. An autograd graph never
//! outlives its update.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Device, Result as TensorResult, Tensor};
use rand_chacha::ChaCha8Rng;

use super::LearnerError;
use super::batch::{Batch, Dims};
use super::density::{Density, Evaluation};
use super::metrics::{Laps, Timings, UpdateMetrics};
use super::networks::{Networks, Optimisers, check, device};
use super::streams::{normal, stream};
use crate::config::{LearnerConfig, ReplayConfig, SamplerKind};
use crate::nn::{ActorWeights, EnsembleWeights, LogStdBounds, Stack, tanh_gaussian};
use crate::replay::Replay;
use crate::rl::actor::{self, ActorOperator};
use crate::rl::critic::{self, EntropyTerm, TargetOperator};
use crate::rl::{entropy, state_action};
use crate::spaces::Minibatch;

/// Actor and twin critics of every member, their targets, optimisers, random streams and counters.
pub struct Learner {
    pub(super) dims: Dims,
    pub(super) config: LearnerConfig,
    pub(super) sampler: SamplerKind,
    pub(super) device: Device,
    pub(super) log_std: LogStdBounds,
    pub(super) networks: Networks,
    pub(super) optimisers: Optimisers,
    pub(super) density: Option<Density>,
    pub(super) streams: Streams,
    pub(super) updates: u64,
    minibatch: Minibatch,
    timings: Timings,
}

/// One stream per consumer of randomness.
pub(super) struct Streams {
    pub(super) minibatch: ChaCha8Rng,
    pub(super) noise: ChaCha8Rng,
    pub(super) next_noise: ChaCha8Rng,
}

impl Streams {
    fn new(seed: u64) -> Self {
        Self {
            minibatch: stream(seed, "learner minibatch"),
            noise: stream(seed, "learner action noise"),
            next_noise: stream(seed, "learner next action noise"),
        }
    }
}

/// What the actor's pass leaves: gradients of two losses, and scalars for the metrics.
struct ActorPass {
    actor_gradients: GradStore,
    temperature_gradients: GradStore,
    actor_loss: Tensor,
    temperature_loss: Tensor,
    entropy: Tensor,
    disagreement_share: Tensor,
}

impl Learner {
    /// A learner that starts from `weights`: fresh optimisers, temperature as configured unless the weights bring
    /// one, targets equal to the critics unless the weights bring them.
    ///
    /// # Errors
    /// When the weights do not fit `dims`, a number is not finite, or the device is not there.
    pub fn new(
        weights: &EnsembleWeights,
        dims: Dims,
        config: &LearnerConfig,
        replay: &ReplayConfig,
        seed: u64,
    ) -> Result<Self, LearnerError> {
        check(weights, dims)?;
        let device = device(config.device)?;
        let networks = Networks::new(weights, config, &device).map_err(LearnerError::tensor("build the networks"))?;
        Self::around(networks, None, dims, config, replay, seed, device)
            .map_err(LearnerError::tensor("build the optimisers"))
    }

    /// Fresh optimisers and streams around `networks`; a density network is made when one is needed and none given.
    pub(super) fn around(
        networks: Networks,
        density: Option<Stack>,
        dims: Dims,
        config: &LearnerConfig,
        replay: &ReplayConfig,
        seed: u64,
        device: Device,
    ) -> TensorResult<Self> {
        let density = match (replay.sampler, density) {
            (SamplerKind::Uniform | SamplerKind::Online, _) => None,
            (SamplerKind::Balanced, Some(network)) => Some(Density::around(network, config, replay, seed)?),
            (SamplerKind::Balanced, None) => Some(Density::new(dims, config, replay, seed, &device)?),
        };
        Ok(Self {
            dims,
            config: config.clone(),
            sampler: replay.sampler,
            log_std: config.log_std,
            optimisers: Optimisers::new(&networks, config)?,
            networks,
            density,
            streams: Streams::new(seed),
            updates: 0,
            minibatch: Minibatch::default(),
            timings: Timings::default(),
            device,
        })
    }

    /// One iteration on minibatches from `replay`.
    ///
    /// With the balanced sampler and offline data: `batch_size` uniform online, as many uniform offline for the
    /// density loss, as many by priority for everything else, whose priorities are rewritten. With another sampler
    /// or without offline data the density network is not touched.
    ///
    /// # Errors
    /// When the replay has nothing to draw or a loss is not finite; networks and priorities are then as before.
    pub fn update(&mut self, replay: &Mutex<Replay>) -> Result<UpdateMetrics, LearnerError> {
        let mut laps = Laps::start();
        let weigh = self.sample(&mut lock(replay))?;
        let rows = self.minibatch.rows;
        let tensor = LearnerError::tensor;
        let batch = Batch::upload(&self.minibatch, self.dims, &self.device).map_err(tensor("upload a minibatch"))?;
        let noise = self.noise(rows).map_err(tensor("draw noise"))?;
        laps.add_to(&mut self.timings.sampling);
        let density = match &self.density {
            Some(density) if weigh => {
                Some(density.evaluate(&batch.state_action, self.dims).map_err(tensor("evaluate the density ratio"))?)
            }
            _ => None,
        };
        laps.add_to(&mut self.timings.density);
        let temperature = self.networks.temperature().map_err(tensor("read the temperature"))?;
        let pass = self.actor_pass(&batch, &noise.0, &temperature).map_err(tensor("evaluate the actors"))?;
        laps.add_to(&mut self.timings.actor);
        let target = self.target(&batch, &noise.1, &temperature).map_err(tensor("compute targets"))?;
        laps.add_to(&mut self.timings.target);
        let (critic_loss, q_mean) = self.critic_loss(&batch, &target).map_err(tensor("evaluate the critics"))?;
        laps.add_to(&mut self.timings.critic_forward);
        let critic_gradients = critic_loss.backward().map_err(tensor("differentiate the critics"))?;
        laps.add_to(&mut self.timings.critic_backward);
        let scalars = [
            &critic_loss,
            &pass.actor_loss,
            &pass.temperature_loss,
            &temperature,
            &pass.entropy,
            &q_mean,
            &target.mean_all().map_err(tensor("average targets"))?,
            &pass.disagreement_share,
        ];
        let metrics = self.metrics(&scalars, density.as_ref())?;
        if let Some(density) = &density {
            lock(replay).set_priorities(&self.minibatch.leaf, &density.priorities)?;
        }
        laps.add_to(&mut self.timings.sampling);
        self.step(&pass, &critic_gradients, density.as_ref()).map_err(tensor("step the optimisers"))?;
        laps.add_to(&mut self.timings.optimiser);
        self.networks.follow(self.config.target_rate).map_err(tensor("move the target networks"))?;
        laps.add_to(&mut self.timings.polyak);
        self.updates += 1;
        Ok(metrics)
    }

    /// Draws the minibatches; tells whether those of the density loss are among them.
    fn sample(&mut self, replay: &mut Replay) -> Result<bool, LearnerError> {
        let rows = self.config.batch_size;
        let offline = replay.offline_transitions() > 0;
        let sampler = if offline { self.sampler } else { SamplerKind::Online };
        replay.sample(sampler, rows, &mut self.streams.minibatch, &mut self.minibatch)?;
        match &mut self.density {
            Some(density) if offline => density.sample(replay, rows).map(|()| true).map_err(Into::into),
            _ => Ok(false),
        }
    }

    /// Standard normal noise for `a ~ pi(s)` and `a' ~ pi(s')`, each `(rows, action)`.
    fn noise(&mut self, rows: usize) -> TensorResult<(Tensor, Tensor)> {
        let shape = (rows, self.dims.action);
        let now = Tensor::from_vec(normal(&mut self.streams.noise, shape.0 * shape.1), shape, &self.device)?;
        let next = Tensor::from_vec(normal(&mut self.streams.next_noise, shape.0 * shape.1), shape, &self.device)?;
        Ok((now, next))
    }

    /// `L_actor = mean[alpha log pi(a|s) - mean_i min(Q1_i, Q2_i)(s, a)]` and
    /// `L_alpha = -mean[ln alpha (log pi(a|s) - |A|)]`, with `a` from the ensemble policy.
    fn actor_pass(&self, batch: &Batch, noise: &Tensor, temperature: &Tensor) -> TensorResult<ActorPass> {
        let networks = &self.networks;
        let output = networks.actor.forward(&batch.observation)?;
        let (mean, std) = tanh_gaussian::moments(&output, self.log_std)?;
        let sample = tanh_gaussian::sample(&mean, &std, noise)?;
        let rows = state_action(&batch.observation, &sample.action)?;
        let (q1, q2) =
            (networks.critic1.forward_frozen(&rows)?.squeeze(2)?, networks.critic2.forward_frozen(&rows)?.squeeze(2)?);
        let actor_loss =
            actor::loss(temperature, &sample.log_prob, &actor::value(&q1, &q2, ActorOperator::MeanOfTwinMin)?)?;
        let target_entropy = -(self.dims.action as f64);
        let temperature_loss = entropy::loss(networks.log_alpha.as_tensor(), &sample.log_prob, target_entropy)?;
        Ok(ActorPass {
            actor_gradients: actor_loss.backward()?,
            temperature_gradients: temperature_loss.backward()?,
            entropy: sample.log_prob.detach().mean_all()?.neg()?,
            disagreement_share: disagreement_share(&output.detach(), &mean.detach(), &std.detach())?,
            actor_loss,
            temperature_loss,
        })
    }

    /// `y_i = r + gamma (1 - terminated)(min(Q1'_i, Q2'_i)(s', a') - alpha log pi(a'|s'))`, `(members, B)`; all
    /// members share `a'`.
    fn target(&self, batch: &Batch, next_noise: &Tensor, temperature: &Tensor) -> TensorResult<Tensor> {
        let networks = &self.networks;
        let output = networks.actor.forward_detached(&batch.next_observation)?;
        let (mean, std) = tanh_gaussian::moments(&output, self.log_std)?;
        let sample = tanh_gaussian::sample(&mean, &std, next_noise)?;
        let rows = state_action(&batch.next_observation, &sample.action)?;
        let (q1, q2) = (
            networks.target1.forward_detached(&rows)?.squeeze(2)?,
            networks.target2.forward_detached(&rows)?.squeeze(2)?,
        );
        let value = critic::next_value(&q1, &q2, &TargetOperator::OwnTwinMin)?;
        let entropy = EntropyTerm { temperature, next_log_prob: &sample.log_prob };
        let entropy = self.config.entropy_backup.then_some(entropy);
        critic::td_target(&batch.reward, &batch.terminated, &value, entropy, self.config.discount)
    }

    /// `sum_i mean(Q1_i - y_i)^2 + sum_i mean(Q2_i - y_i)^2`, and the mean of all critics.
    fn critic_loss(&self, batch: &Batch, target: &Tensor) -> TensorResult<(Tensor, Tensor)> {
        let q1 = self.networks.critic1.forward(&batch.state_action)?.squeeze(2)?;
        let q2 = self.networks.critic2.forward(&batch.state_action)?.squeeze(2)?;
        let q_mean = ((q1.detach().mean_all()? + q2.detach().mean_all()?)? * 0.5)?;
        Ok((critic::loss(&q1, &q2, target)?, q_mean))
    }

    /// Reads all scalars at once and refuses numbers that would poison the networks.
    fn metrics(&self, scalars: &[&Tensor; 8], density: Option<&Evaluation>) -> Result<UpdateMetrics, LearnerError> {
        let detached: Vec<Tensor> = scalars.iter().map(|s| s.detach()).collect();
        let read = Tensor::stack(&detached, 0)
            .and_then(|all| all.to_vec1::<f32>())
            .map_err(LearnerError::tensor("read the losses"))?;
        let names = [
            "critic loss",
            "actor loss",
            "temperature loss",
            "temperature",
            "entropy",
            "mean Q",
            "mean target",
            "disagreement share",
        ];
        let density = density.map(|d| d.metrics);
        let named = names.into_iter().zip(read.iter().copied()).chain(density.map(|d| ("density loss", d.loss)));
        for (quantity, value) in named {
            if !value.is_finite() {
                return Err(LearnerError::NotFinite { quantity, value, update: self.updates });
            }
        }
        Ok(UpdateMetrics {
            critic_loss: read[0],
            actor_loss: read[1],
            temperature_loss: read[2],
            temperature: read[3],
            entropy: read[4],
            q_mean: read[5],
            target_mean: read[6],
            disagreement_share: read[7],
            offline_share: self.minibatch.offline_share(),
            density,
        })
    }

    fn step(
        &mut self,
        pass: &ActorPass,
        critic_gradients: &GradStore,
        density: Option<&Evaluation>,
    ) -> TensorResult<()> {
        self.optimisers.temperature.step(&pass.temperature_gradients)?;
        self.optimisers.actor.step(&pass.actor_gradients)?;
        self.optimisers.critic1.step(critic_gradients)?;
        self.optimisers.critic2.step(critic_gradients)?;
        match (&mut self.density, density) {
            (Some(network), Some(evaluation)) => network.optimiser.step(&evaluation.gradients),
            _ => Ok(()),
        }
    }

    /// Copy of the actors.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn actor(&self) -> Result<ActorWeights, LearnerError> {
        let stack = self.networks.actor.to_weights().map_err(LearnerError::tensor("copy the actors"))?;
        Ok(ActorWeights { stack, log_std: self.log_std })
    }

    /// Copy of all networks, targets and temperature included.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn weights(&self) -> Result<EnsembleWeights, LearnerError> {
        let copy = |stack: &Stack| stack.to_weights().map_err(LearnerError::tensor("copy the networks"));
        let networks = &self.networks;
        Ok(EnsembleWeights {
            actor: self.actor()?,
            critic1: copy(&networks.critic1)?,
            critic2: copy(&networks.critic2)?,
            targets: Some((copy(&networks.target1)?, copy(&networks.target2)?)),
            log_alpha: Some(networks.log_alpha.to_scalar().map_err(LearnerError::tensor("copy the temperature"))?),
        })
    }

    /// Updates since the start, those before a resume included.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Processor time by part since this learner was built.
    pub fn timings(&self) -> Timings {
        self.timings
    }
}

/// A panic elsewhere leaves a replay whose every append and write was complete, so its data stay usable.
fn lock(replay: &Mutex<Replay>) -> MutexGuard<'_, Replay> {
    replay.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mean over batch and action entries of `mean_i (m_i - m)^2 / sigma^2`.
fn disagreement_share(output: &Tensor, mean: &Tensor, std: &Tensor) -> TensorResult<Tensor> {
    let means = output.narrow(2, 0, mean.dim(1)?)?;
    let spread = means.broadcast_sub(mean)?.sqr()?.mean(0)?;
    (spread / std.sqr()?)?.mean_all()
}
