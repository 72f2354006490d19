//! One iteration: minibatches, critic steps, one step of actors, temperature and density network.
//!
//! As published for Off2OnRL (one critic step, `order = "joint"`), all losses are evaluated with the parameters from
//! before any step. Otherwise the critic steps follow each other, and the actors' losses see the critics that
//! `learner.order` names. Called by one thread, the learner's; spawns nothing. The replay is locked only while
//! minibatches are drawn and while priorities are written. An autograd graph never outlives its step.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result as TensorResult, Tensor};

use super::LearnerError;
use super::actors::{self, ActorPass};
use super::batch::{Batch, Below, Dims, upload_state_action};
use super::critics::{self, CriticPass};
use super::density::{Density, Evaluation};
use super::eyes::{Eyes, Trunks, network_dims};
use super::metrics::{Laps, Timings, UpdateMetrics, ages};
use super::networks::{Before, Networks, Optimisers, device, temperature_parameter};
use super::pretrain::moments;
use super::returns::Returns;
use super::start;
use super::streams::Streams;
use super::sweep::Sweeps;
use crate::config::{ActorBatch, CriticLoss, LearnerConfig, Order, ReplayConfig, SamplerKind, Start};
use crate::kernels::Staging;
use crate::nn::{ActorWeights, EnsembleWeights, LogStdBounds, Stack};
use crate::policy::residual::Frozen;
use crate::replay::Replay;
use crate::rl::state_action;
use crate::spaces::{Minibatch, Source};

/// Actors and twin critics of every member, their targets, optimisers, random streams and counters.
pub struct Learner {
    /// Of the networks.
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
    /// What the networks see images with.
    pub(super) eyes: Option<Eyes>,
    /// What the actors stand on when they are a residual.
    pub(super) base: Option<Frozen>,
    /// One for every critic step.
    pub(super) minibatches: Vec<Minibatch>,
    staging: Staging,
    /// What the critics' penalty needs of the replay, for Cal-QL.
    returns: Option<Returns>,
    /// With the trajectory sampler.
    sweeps: Option<Sweeps>,
    timings: Timings,
}

/// What was drawn for one update.
struct Drawn {
    batches: Vec<Batch>,
    /// Rows of all of them.
    all: Batch,
    /// Whether the minibatches of the density loss are among them.
    weigh: bool,
    ages: [f32; super::metrics::AGES],
    left_out: u32,
}

impl Learner {
    /// A learner that starts from `weights`, or from new ones of their shape, as `config` says: temperature and targets
    /// as configured unless the weights bring them and they are to be carried over; optimisers fresh or carried over.
    ///
    /// # Errors
    /// When the weights do not fit `dims` or a setting, a number is not finite, or the device is not there.
    pub fn new(
        weights: &EnsembleWeights,
        dims: Dims,
        config: &LearnerConfig,
        replay: &ReplayConfig,
        seed: u64,
    ) -> Result<Self, LearnerError> {
        let weights = start::weights(weights, dims, config, seed)?;
        let device = device(config.device)?;
        let parameter = temperature_parameter(&weights, config);
        let networks =
            Networks::new(&weights, parameter, config, &device).map_err(LearnerError::tensor("build the networks"))?;
        let eyes =
            Eyes::new(&weights, config, rates(config), (replay.sampler == SamplerKind::Balanced, seed), &device)?;
        let dims = network_dims(weights.actor.eyes.as_ref(), dims);
        let mut learner = Self::around((networks, eyes), None, dims, config, replay, seed, device)
            .map_err(LearnerError::tensor("build the optimisers"))?;
        if !config.carry_optimiser.as_os_str().is_empty() {
            let states = moments(&config.carry_optimiser, &weights, &learner.networks)?;
            learner.optimisers.carry(&states).map_err(LearnerError::tensor("carry the optimisers over"))?;
        }
        Ok(learner)
    }

    /// Makes the actors a residual on `base`: critics judge, and targets bootstrap from, what base and residual do together.
    #[must_use]
    pub fn on_base(mut self, base: Option<Frozen>) -> Self {
        self.base = base;
        self
    }

    /// Of the robot.
    pub(super) fn host_dims(&self) -> Dims {
        let observation = self.eyes.as_ref().map_or(self.dims.observation, |eyes| eyes.observation);
        Dims { observation, ..self.dims }
    }

    /// Goes on from the networks of `weights`, chosen as at a start from a bundle, with fresh optimisers; the count of
    /// updates, the random streams, the density network and the base stay. On an error nothing has changed.
    ///
    /// # Errors
    /// As [`Learner::new`].
    pub fn adopt(&mut self, weights: &EnsembleWeights) -> Result<(), LearnerError> {
        let config = LearnerConfig { start: Start::Bundle, ..self.config.clone() };
        let weights = start::weights(weights, self.host_dims(), &config, 0)?;
        let eyes = Eyes::new(&weights, &config, rates(&config), (self.density.is_some(), 0), &self.device)?;
        if let (Some(new), Some(old)) = (&eyes, &self.eyes) {
            new.keep_density_of(old).map_err(LearnerError::tensor("keep the encoder of the density network"))?;
        }
        if eyes.is_some() != self.eyes.is_some()
            || network_dims(weights.actor.eyes.as_ref(), self.host_dims()) != self.dims
        {
            let reason = "the networks see other things than those before".into();
            return Err(LearnerError::Setting { key: "learner.trunk", reason });
        }
        let parameter = temperature_parameter(&weights, &config);
        let made = Networks::new(&weights, parameter, &config, &self.device)
            .and_then(|networks| Ok((Optimisers::new(&networks, &config)?, networks)));
        (self.optimisers, self.networks) = made.map_err(LearnerError::tensor("build the networks"))?;
        self.eyes = eyes;
        Ok(())
    }

    /// Fresh optimisers and streams around `networks`; a density network is made when one is needed and none given.
    pub(super) fn around(
        (networks, eyes): (Networks, Option<Eyes>),
        density: Option<Stack>,
        dims: Dims,
        config: &LearnerConfig,
        replay: &ReplayConfig,
        seed: u64,
        device: Device,
    ) -> TensorResult<Self> {
        let density = match (replay.sampler, density) {
            (SamplerKind::Balanced, Some(network)) => Some(Density::around(network, config, replay, seed)?),
            (SamplerKind::Balanced, None) => Some(Density::new(dims, config, replay, seed, &device)?),
            _ => None,
        };
        let density = density.map(|mut density| {
            density.drawn_mut().into_iter().for_each(|minibatch| *minibatch = drawn_with(eyes.as_ref()));
            density
        });
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
            base: None,
            minibatches: vec![drawn_with(eyes.as_ref()); config.critic_steps.max(1)],
            eyes,
            staging: Staging::default(),
            returns: (config.critic_loss == CriticLoss::CalQl).then(|| Returns::new(config.discount)),
            sweeps: (replay.sampler == SamplerKind::Trajectory).then(|| replay.into()),
            timings: Timings::default(),
            device,
        })
    }

    /// One iteration on minibatches from `replay`; its metrics are those of the last critic step and of the actors'.
    ///
    /// With the balanced sampler and offline data: `batch_size` uniform online, as many uniform offline for the
    /// density loss, as many by priority for every critic step, whose priorities are rewritten. With another sampler
    /// or without offline data the density network is not touched.
    ///
    /// # Errors
    /// When the replay has nothing to draw or a loss is not finite; networks, targets, optimisers and priorities are as
    /// before then, however many critic steps were made. Random streams have moved on.
    pub fn update(&mut self, replay: &Mutex<Replay>) -> Result<UpdateMetrics, LearnerError> {
        let tensor = LearnerError::tensor;
        if let Some(anchor) = &mut self.networks.anchor {
            let left = 1.0 - self.updates as f64 / self.config.anchor_updates as f64;
            let share = if self.config.anchor_updates == 0 { 1.0 } else { left.max(0.0) };
            anchor.weight = self.config.anchor_weight * share;
        }
        // One critic step beside the actors' is made after all losses are known.
        let steps_before_last_loss = self.config.critic_steps > 1 || self.config.order != Order::Joint;
        let before = if steps_before_last_loss {
            Some(
                Before::of(&self.networks, &self.optimisers, self.eyes.as_ref())
                    .map_err(tensor("copy the networks"))?,
            )
        } else {
            None
        };
        let result = self.attempt(replay);
        if let (Err(_), Some(before)) = (&result, before) {
            before.restore(&mut self.optimisers, self.eyes.as_mut()).map_err(tensor("take a failed update back"))?;
        }
        result
    }

    fn attempt(&mut self, replay: &Mutex<Replay>) -> Result<UpdateMetrics, LearnerError> {
        let tensor = LearnerError::tensor;
        let mut laps = Laps::start();
        if let Some(sweeps) = self.sweeps.filter(|sweeps| self.updates.is_multiple_of(sweeps.every)) {
            sweeps.run((&self.networks, self.eyes.as_ref()), &self.config, self.dims, replay, &self.device)?;
        }
        let mut drawn = self.draw(replay)?;
        laps.add_to(&mut self.timings.sampling);
        let learns_to_see = self.eyes.as_ref().is_some_and(Eyes::learning);
        let alone = drawn.batches.len() == 1;
        if learns_to_see {
            self.look(&mut drawn.all)?;
            laps.add_to(&mut self.timings.encoder);
        }
        if learns_to_see && alone {
            drawn.batches[0] = drawn.all.clone().with_bound_of(&drawn.batches[0]);
        }
        let density =
            if drawn.weigh { self.weigh(&drawn.all).map_err(tensor("evaluate the density ratio"))? } else { None };
        laps.add_to(&mut self.timings.density);
        if !self.config.zero_gradient_adam && !learns_to_see {
            self.foresee(&mut drawn).map_err(tensor("evaluate the actors"))?;
        }
        laps.add_to(&mut self.timings.target);
        let Some((last, before)) = drawn.batches.split_last_mut() else { return Ok(UpdateMetrics::default()) };
        for batch in before {
            if learns_to_see {
                self.look(batch)?;
                laps.add_to(&mut self.timings.encoder);
            }
            let critics = self.critic_pass(batch, &mut laps)?;
            self.refuse_infinities(&[("critic loss", &critics.loss)])?;
            self.step_critics(critics, true, &mut laps)?;
        }
        if learns_to_see && !alone {
            self.look(last)?;
            laps.add_to(&mut self.timings.encoder);
        }
        let critics = self.critic_pass(last, &mut laps)?;
        let rows = if self.config.actor_batch == ActorBatch::All && !alone { &mut drawn.all } else { last };
        if learns_to_see && !alone && self.config.order == Order::Joint {
            // The encoders have moved since all rows were looked at.
            self.look(rows)?;
            laps.add_to(&mut self.timings.encoder);
        }
        let mut metrics = self.critic_metrics(&critics, density.as_ref())?;
        let actors = if self.config.order == Order::Joint {
            let actors = self.actor_pass(rows, &mut laps)?;
            self.actor_metrics(&actors, &mut metrics)?;
            self.write_priorities(replay, density.as_ref(), &mut laps)?;
            self.step_critics(critics, false, &mut laps)?;
            actors
        } else {
            self.step_critics(critics, true, &mut laps)?;
            if learns_to_see {
                self.look(rows)?;
                laps.add_to(&mut self.timings.encoder);
            }
            let actors = self.actor_pass(rows, &mut laps)?;
            self.actor_metrics(&actors, &mut metrics)?;
            self.write_priorities(replay, density.as_ref(), &mut laps)?;
            if self.config.zero_gradient_adam {
                self.optimisers.critics_idle().map_err(tensor("step the optimisers"))?;
            }
            actors
        };
        self.step_actors(actors, density).map_err(tensor("step the optimisers"))?;
        laps.add_to(&mut self.timings.optimiser);
        (metrics.age_shares, metrics.left_out_rows) = (drawn.ages, drawn.left_out);
        self.updates += 1;
        Ok(metrics)
    }

    /// Draws and uploads all minibatches of an update.
    fn draw(&mut self, replay: &Mutex<Replay>) -> Result<Drawn, LearnerError> {
        let rows = self.config.batch_size;
        let mut locked = lock(replay);
        let offline = locked.offline_transitions() > 0;
        let sampler = if offline { self.sampler } else { SamplerKind::Online };
        let (mut bounds, mut left_out) = (Vec::new(), 0);
        for minibatch in &mut self.minibatches {
            locked.sample(sampler, rows, &mut self.streams.minibatch, minibatch)?;
            bounds.push(self.returns.as_mut().map(|returns| returns.bound(&locked, minibatch, &mut left_out)));
        }
        let weigh = match &mut self.density {
            Some(density) if offline => density.sample(&mut locked, rows).map(|()| true)?,
            _ => false,
        };
        let ages = ages(&self.minibatches, &locked);
        if let Some(Eyes { trunks: Trunks::Frozen { features }, .. }) = &mut self.eyes {
            let own = self.density.as_mut().filter(|_| weigh).map(Density::drawn_mut).into_iter().flatten();
            let mut all: Vec<&mut Minibatch> = self.minibatches.iter_mut().chain(own).collect();
            features.find(&locked, &all)?;
            drop(locked);
            features.put(&mut all).map_err(LearnerError::tensor("encode images"))?;
        } else {
            drop(locked);
        }
        let mut batches = Vec::with_capacity(self.minibatches.len());
        for (minibatch, bound) in self.minibatches.iter().zip(bounds) {
            let eyes = self.eyes.as_ref().filter(|eyes| eyes.learning());
            let dims = eyes.map_or(self.dims, |eyes| Dims { observation: eyes.observation, ..self.dims });
            let upload = || {
                let mut batch = Batch::upload(minibatch, bound, dims, &mut self.staging, &self.device)?;
                batch.seen = eyes.map(|eyes| eyes.upload(minibatch, &mut self.staging, &self.device)).transpose()?;
                Ok(batch)
            };
            let mut batch = upload().map_err(LearnerError::tensor("upload a minibatch"))?;
            batch.below = self.base.as_mut().map(|base| below(base, minibatch, self.dims, &self.device)).transpose()?;
            batches.push(batch);
        }
        let all = Batch::cat(&batches).map_err(LearnerError::tensor("join the minibatches"))?;
        Ok(Drawn { batches, all, weigh, ages, left_out })
    }

    /// Lets the networks look at the images of `batch`.
    fn look(&mut self, batch: &mut Batch) -> Result<(), LearnerError> {
        let Some(eyes) = &self.eyes else { return Ok(()) };
        eyes.look(batch, false, &mut self.streams.crops).map_err(LearnerError::tensor("look at images"))
    }

    /// What the density network makes of its own minibatches and of `all` rows.
    fn weigh(&mut self, all: &Batch) -> TensorResult<Option<Evaluation>> {
        let Some(density) = &self.density else { return Ok(None) };
        let (online, offline) = density.drawn();
        let mut rows = |host: &Minibatch| match self.eyes.as_ref().filter(|eyes| eyes.learning()) {
            Some(eyes) => {
                let seen = eyes.weigh(host, &mut self.staging, &self.device, &mut self.streams.crops)?;
                state_action(&seen, &Tensor::from_slice(&host.action, (host.rows, self.dims.action), &self.device)?)
            }
            None => upload_state_action(host, self.dims, &self.device),
        };
        let own = [rows(online)?, rows(offline)?];
        density.evaluate(&state_action(&all.weighed, &all.action)?, own).map(Some)
    }

    /// Lets the actors answer to all next states at once, for targets and temperature; they step last.
    fn foresee(&self, drawn: &mut Drawn) -> TensorResult<()> {
        let output = critics::next_output(&self.networks, &drawn.all)?;
        let mut start = 0;
        for batch in &mut drawn.batches {
            let rows = batch.reward.dim(0)?;
            batch.next_output = Some(output.narrow(1, start, rows)?);
            start += rows;
        }
        drawn.all.next_output = Some(output);
        Ok(())
    }

    fn critic_pass(&mut self, batch: &Batch, laps: &mut Laps) -> Result<CriticPass, LearnerError> {
        let timings = (laps, &mut self.timings);
        critics::pass(&self.networks, &self.config, self.dims, batch, &mut self.streams, timings)
            .map_err(LearnerError::tensor("evaluate the critics"))
    }

    fn actor_pass(&mut self, batch: &Batch, laps: &mut Laps) -> Result<ActorPass, LearnerError> {
        let pass = actors::pass(&self.networks, &self.config, self.dims, batch, &mut self.streams)
            .map_err(LearnerError::tensor("evaluate the actors"))?;
        laps.add_to(&mut self.timings.actor);
        Ok(pass)
    }

    /// Steps the critics, and their targets follow. Where the actors do not step with them, `alone`, their momentum may
    /// be asked to move on.
    fn step_critics(&mut self, mut critics: CriticPass, alone: bool, laps: &mut Laps) -> Result<(), LearnerError> {
        let tensor = LearnerError::tensor;
        let idle = alone && self.config.zero_gradient_adam;
        let (gradients, multipliers) = (&mut critics.gradients, critics.multiplier_gradients.as_ref());
        self.optimisers
            .step_critics(&self.networks, gradients, multipliers, &self.config)
            .and_then(|()| if idle { self.optimisers.actors_idle() } else { Ok(()) })
            .map_err(tensor("step the optimisers"))?;
        if let Some(eyes) = &mut self.eyes {
            eyes.step_critics(gradients, self.config.target_rate).map_err(tensor("step the encoders"))?;
        }
        laps.add_to(&mut self.timings.optimiser);
        Ok(())
    }

    fn step_actors(&mut self, mut actors: ActorPass, mut density: Option<Evaluation>) -> TensorResult<()> {
        self.optimisers.step_actors(&self.networks, &mut actors, &self.config)?;
        if let Some(eyes) = &mut self.eyes {
            eyes.step_actors(&mut actors.actor_gradients)?;
            density.as_mut().map_or(Ok(()), |evaluation| eyes.step_density(&mut evaluation.gradients))?;
        }
        match (&mut self.density, &density) {
            (Some(network), Some(evaluation)) => network.optimiser.step(&evaluation.gradients),
            _ => Ok(()),
        }
    }

    fn write_priorities(
        &mut self,
        replay: &Mutex<Replay>,
        density: Option<&Evaluation>,
        laps: &mut Laps,
    ) -> Result<(), LearnerError> {
        if let Some(density) = density {
            let leaf: Vec<u32> = self.minibatches.iter().flat_map(|m| &m.leaf).copied().collect();
            lock(replay).set_priorities(&leaf, &density.priorities)?;
            laps.add_to(&mut self.timings.sampling);
        }
        Ok(())
    }

    fn critic_metrics(
        &self,
        critics: &CriticPass,
        density: Option<&Evaluation>,
    ) -> Result<UpdateMetrics, LearnerError> {
        let scalars = [
            ("critic loss", &critics.loss),
            ("mean Q", &critics.q_mean),
            ("mean target", &critics.target_mean),
            ("penalty", &critics.penalty),
            ("penalty multiplier", &critics.multiplier),
        ];
        let [critic_loss, q_mean, target_mean, penalty, penalty_multiplier] = self.refuse_infinities(&scalars)?;
        let density = density.map(|d| d.metrics);
        if let Some(d) = density.filter(|d| !d.loss.is_finite()) {
            return Err(LearnerError::NotFinite { quantity: "density loss", value: d.loss, update: self.updates });
        }
        let errors = critics.errors.to_vec1::<f32>().map_err(LearnerError::tensor("read the errors"))?;
        let sources = self.minibatches.last().map_or(&[][..], |m| &m.source);
        let mean_of = |side: Source| {
            let of: Vec<f32> = errors.iter().zip(sources).filter(|(_, s)| **s == side).map(|(e, _)| *e).collect();
            (!of.is_empty()).then(|| of.iter().sum::<f32>() / of.len() as f32)
        };
        let offline: f32 = self.minibatches.iter().map(Minibatch::offline_share).sum();
        Ok(UpdateMetrics {
            critic_loss,
            q_mean,
            target_mean,
            penalty,
            penalty_multiplier,
            td_error_offline: mean_of(Source::Offline),
            td_error_online: mean_of(Source::Online),
            offline_share: offline / self.minibatches.len() as f32,
            density,
            ..UpdateMetrics::default()
        })
    }

    fn actor_metrics(&self, actors: &ActorPass, into: &mut UpdateMetrics) -> Result<(), LearnerError> {
        let scalars = [
            ("actor loss", &actors.actor_loss),
            ("temperature loss", &actors.temperature_loss),
            ("temperature", &actors.temperature),
            ("entropy", &actors.entropy),
            ("disagreement share", &actors.disagreement_share),
            ("saturation", &actors.saturation),
        ];
        let read = self.refuse_infinities(&scalars)?;
        [
            into.actor_loss,
            into.temperature_loss,
            into.temperature,
            into.entropy,
            into.disagreement_share,
            into.action_saturation,
        ] = read;
        Ok(())
    }

    /// Reads scalars at once and refuses numbers that would poison the networks.
    fn refuse_infinities<const N: usize>(
        &self,
        scalars: &[(&'static str, &Tensor); N],
    ) -> Result<[f32; N], LearnerError> {
        let detached = scalars.map(|(_, scalar)| scalar.detach());
        let read = Tensor::stack(&detached, 0)
            .and_then(|all| all.to_vec1::<f32>())
            .map_err(LearnerError::tensor("read the losses"))?;
        let mut numbers = [0.0; N];
        for ((number, (quantity, _)), value) in numbers.iter_mut().zip(scalars).zip(read) {
            if !value.is_finite() {
                return Err(LearnerError::NotFinite { quantity, value, update: self.updates });
            }
            *number = value;
        }
        Ok(numbers)
    }

    /// Copy of the actors.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn actor(&self) -> Result<ActorWeights, LearnerError> {
        let stack = self.networks.actor.to_weights().map_err(LearnerError::tensor("copy the actors"))?;
        let eyes = self.eyes.as_ref().map(Eyes::to_weights).transpose();
        let eyes = eyes.map_err(LearnerError::tensor("copy the encoders"))?.map(|(own, _)| own);
        Ok(ActorWeights { stack, log_std: self.log_std, eyes })
    }

    /// Copy of all networks, targets and temperature included.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn weights(&self) -> Result<EnsembleWeights, LearnerError> {
        let copy = |stack: &Stack| stack.to_weights().map_err(LearnerError::tensor("copy the networks"));
        let networks = &self.networks;
        let temperature = networks.temperature().and_then(|t| t.log()?.to_scalar());
        let eyes = self.eyes.as_ref().map(Eyes::to_weights).transpose();
        let eyes = eyes.map_err(LearnerError::tensor("copy the encoders"))?;
        let (own, encoder) = eyes.unzip();
        let stack = copy(&networks.actor)?;
        Ok(EnsembleWeights {
            actor: ActorWeights { stack, log_std: self.log_std, eyes: own },
            critic1: copy(&networks.critic1)?,
            critic2: copy(&networks.critic2)?,
            targets: Some((copy(&networks.target1)?, copy(&networks.target2)?)),
            log_alpha: Some(temperature.map_err(LearnerError::tensor("copy the temperature"))?),
            encoder,
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

/// Step sizes of actors and critics.
pub(super) fn rates(config: &LearnerConfig) -> (f64, f64) {
    (config.actor_learning_rate, config.critic_learning_rate)
}

/// An empty minibatch that will be drawn with what `eyes` need.
fn drawn_with(eyes: Option<&Eyes>) -> Minibatch {
    Minibatch { with_frames: eyes.is_some_and(Eyes::learning), ..Minibatch::default() }
}

/// What the base does at the states of a minibatch.
fn below(base: &mut Frozen, minibatch: &Minibatch, dims: Dims, device: &Device) -> Result<Below, LearnerError> {
    let mut actions = |observations: &[f32]| {
        let actions = base.actions(observations).map_err(LearnerError::Base)?;
        Tensor::from_vec(actions, (minibatch.rows, dims.action), device)
            .map_err(LearnerError::tensor("upload a minibatch"))
    };
    let (now, next) = (actions(&minibatch.observation)?, actions(&minibatch.next_observation)?);
    Ok(Below { scale: f64::from(base.residual().scale), now, next })
}

/// A panic elsewhere leaves a replay whose every append and write was complete, so its data stay usable.
pub(super) fn lock(replay: &Mutex<Replay>) -> MutexGuard<'_, Replay> {
    replay.lock().unwrap_or_else(PoisonError::into_inner)
}
