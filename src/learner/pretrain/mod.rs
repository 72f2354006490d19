//! Offline training of a first ensemble: all members in one stacked pass.
//!
//! Members are independent agents: own random start, own policy samples, own targets, own entropy temperature, no
//! term that couples them. They do share the order of the minibatches and the uniform actions of the penalty;
//! agents from separate runs differ in these two as well. `docs/method.md` has the equations of every method.
//!
//! With [`Pretrainer::critics_for`] the actors are given and stay: critics are fitted to them by Bellman backups of
//! the ensemble policy's own actions (fitted Q evaluation). Called by one thread; spawns nothing.

mod draws;
mod losses;
mod metrics;
mod persist;
mod returns;

pub use metrics::PretrainMetrics;
pub(super) use persist::moments;
pub(super) use returns::returns_over;
pub use returns::returns_to_go;

use candle_core::{DType, Device, Result as TensorResult, Tensor, Var};
use rand_chacha::ChaCha8Rng;

use super::LearnerError;
use super::batch::{Batch, Dims};
use super::eyes::{Eyes, Trunks, network_dims, new_encoders};
use super::networks::{check, device};
use super::streams::stream;
use crate::config::{LearnerConfig, PretrainConfig, PretrainMethod};
use crate::kernels::Staging;
use crate::nn::{
    ActorWeights, Adam, AdamSettings, EnsembleWeights, Init, LogStdBounds, Stack, StackWeights, copy_into,
};
use crate::replay::Replay;
use crate::spaces::{FrameShape, Minibatch, Source};

/// `N` agents in training.
pub struct Pretrainer {
    dims: Dims,
    config: PretrainConfig,
    discount: f64,
    target_rate: f64,
    device: Device,
    /// What the networks see images with.
    eyes: Option<Eyes>,
    /// Only critics learn; actions of the backup come from the ensemble policy of the given actors.
    actors_given: bool,
    log_std: LogStdBounds,
    actor: Stack,
    critic1: Stack,
    critic2: Stack,
    target1: Stack,
    target2: Stack,
    /// `ln alpha_i`, `(members, 1)`.
    log_alpha: Var,
    /// `ln` of the Lagrange multipliers of the penalty, `(members)`; stays 0 with a fixed weight.
    log_multiplier: Var,
    optimisers: Optimisers,
    streams: Streams,
    minibatch: Minibatch,
    staging: Staging,
    /// Return of the data from every offline slot on; empty until Cal-QL's first step.
    returns: Vec<f32>,
    updates: u64,
}

struct Optimisers {
    actor: Adam,
    critic1: Adam,
    critic2: Adam,
    temperature: Adam,
    multiplier: Adam,
}

/// One stream per consumer of randomness.
struct Streams {
    minibatch: ChaCha8Rng,
    noise: ChaCha8Rng,
    uniform: ChaCha8Rng,
    crops: ChaCha8Rng,
}

impl Pretrainer {
    /// Random agents. `learner` gives discount, target rate, device and threads.
    ///
    /// # Errors
    /// When the device is not there or a width is 0.
    pub fn new(dims: Dims, config: &PretrainConfig, learner: &LearnerConfig, seed: u64) -> Result<Self, LearnerError> {
        Self::seeing(None, dims, config, learner, seed)
    }

    /// [`Pretrainer::new`] for data with images of `frame`: agents with encoders, as `learner` describes them.
    ///
    /// # Errors
    /// As [`Pretrainer::new`], and when the images are too small for the encoders.
    pub fn seeing(
        frame: Option<FrameShape>,
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        seed: u64,
    ) -> Result<Self, LearnerError> {
        let device = device(learner.device)?;
        let members = config.ensemble_size;
        let made = frame.map(|frame| new_encoders(frame, dims.observation, members, learner, seed)).transpose()?;
        let (own, encoder) = made.flatten().unzip();
        let dims = network_dims(own.as_ref(), dims);
        let mut made = Self::random(dims, config, learner, seed, &device)?;
        let sizes = StackWeights { members, ..StackWeights::default() };
        let weights = EnsembleWeights {
            actor: ActorWeights { stack: sizes.clone(), log_std: config.log_std, eyes: own },
            critic1: sizes,
            encoder,
            ..EnsembleWeights::default()
        };
        let rates = (config.actor_learning_rate, config.critic_learning_rate);
        made.eyes = Eyes::new(&weights, learner, rates, (false, 0), &device)?;
        made.minibatch.with_frames = made.eyes.is_some();
        Ok(made)
    }

    /// Goes on with the actors, critics, target networks and encoders of `weights`; moments of the optimisers,
    /// temperatures and multipliers are new. With `learner.trunk = "frozen"` the encoders stay, and updates work on
    /// what they made of each stored image once.
    ///
    /// # Errors
    /// When the weights do not fit `dims` or the sizes of `config`, or the device is not there.
    pub fn from_ensemble(
        weights: &EnsembleWeights,
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        seed: u64,
    ) -> Result<Self, LearnerError> {
        check(weights, dims)?;
        let device = device(learner.device)?;
        let dims = network_dims(weights.actor.eyes.as_ref(), dims);
        let mut made = Self::random(dims, config, learner, seed, &device)?;
        let rates = (config.actor_learning_rate, config.critic_learning_rate);
        made.eyes = Eyes::new(weights, learner, rates, (false, 0), &device)?;
        made.minibatch.with_frames = made.eyes.as_ref().is_some_and(Eyes::learning);
        made.fill(weights)?;
        Ok(made)
    }

    /// Takes over the numbers of actors, critics and targets, which are copies of the critics where there are none.
    fn fill(&self, weights: &EnsembleWeights) -> Result<(), LearnerError> {
        let (target1, target2) =
            weights.targets.as_ref().map_or((&weights.critic1, &weights.critic2), |(one, two)| (one, two));
        let given = [&weights.actor.stack, &weights.critic1, &weights.critic2, target1, target2];
        for ((network, stack), given) in self.stacks().into_iter().zip(given) {
            let from = Stack::from_weights(given, &self.device).map_err(LearnerError::tensor("read the networks"))?;
            if from.vars()[0].dims() != stack.vars()[0].dims() || from.inputs() != stack.inputs() {
                let reason =
                    format!("the {network} that training goes on with has other sizes than [pretrain] asks for");
                return Err(LearnerError::Setting { key: "pretrain.hidden", reason });
            }
            copy_into(stack, &from).map_err(LearnerError::tensor("fill the networks"))?;
        }
        Ok(())
    }

    /// Random critics, one pair for each of the given actors, which stay as they are. Of `config`, sizes and
    /// learning rate of the critics, batch and checkpoints count; method and penalty do not.
    ///
    /// # Errors
    /// When the actors do not fit `dims` or hold a number that is not finite, or the device is not there.
    pub fn critics_for(
        actors: &ActorWeights,
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        seed: u64,
    ) -> Result<Self, LearnerError> {
        if actors.eyes.is_some() {
            let reason =
                "critics for given actors that see images are not fitted: their encoders would have to be, too";
            return Err(LearnerError::Setting { key: "learner.trunk", reason: reason.into() });
        }
        check_actors(&actors.stack, dims)?;
        let device = device(learner.device)?;
        let build = || {
            let actor = Stack::from_weights(&actors.stack, &device)?;
            Self::build(dims, config, learner, seed, &device, actor, Some(actors.log_std))
        };
        build().map_err(LearnerError::tensor("build the networks"))
    }

    /// Random agents without eyes, for inputs of `dims`.
    fn random(
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, LearnerError> {
        let (members, widths) = (config.ensemble_size, (dims.observation, 2 * dims.action));
        random_stack(config, members, widths, seed, "pretrain actor weights", device)
            .and_then(|actor| Self::build(dims, config, learner, seed, device, actor, None))
            .map_err(LearnerError::tensor("build the networks"))
    }

    fn build(
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        seed: u64,
        device: &Device,
        actor: Stack,
        given: Option<LogStdBounds>,
    ) -> TensorResult<Self> {
        let members = actor.members();
        let critic = |name| {
            let stack = random_stack(config, members, (dims.observation + dims.action, 1), seed, name, device)?;
            Ok::<_, candle_core::Error>(stack.with_threads(learner.threads))
        };
        let (critic1, critic2) = (critic("pretrain critic 1 weights")?, critic("pretrain critic 2 weights")?);
        let (target1, target2) = (critic("pretrain target")?, critic("pretrain target")?);
        copy_into(&target1, &critic1)?;
        copy_into(&target2, &critic2)?;
        let log_alpha = vec![config.initial_temperature.ln() as f32; members];
        let log_alpha = Var::from_vec(log_alpha, (members, 1), device)?;
        let log_multiplier = Var::zeros(members, DType::F32, device)?;
        let adam = |vars, learning_rate| Adam::new(vars, AdamSettings { learning_rate, ..AdamSettings::default() });
        let (actor_rate, critic_rate) = (config.actor_learning_rate, config.critic_learning_rate);
        Ok(Self {
            dims,
            config: config.clone(),
            discount: learner.discount,
            target_rate: learner.target_rate,
            device: device.clone(),
            eyes: None,
            actors_given: given.is_some(),
            log_std: given.unwrap_or(config.log_std),
            optimisers: Optimisers {
                actor: adam(actor.vars(), actor_rate)?,
                critic1: adam(critic1.vars(), critic_rate)?,
                critic2: adam(critic2.vars(), critic_rate)?,
                temperature: adam(vec![log_alpha.clone()], actor_rate)?,
                multiplier: adam(vec![log_multiplier.clone()], critic_rate)?,
            },
            actor: actor.with_threads(learner.threads),
            critic1,
            critic2,
            target1,
            target2,
            log_alpha,
            log_multiplier,
            streams: Streams {
                minibatch: stream(seed, "pretrain minibatch"),
                noise: stream(seed, "pretrain action noise"),
                uniform: stream(seed, "pretrain uniform actions"),
                crops: stream(seed, "pretrain crops"),
            },
            minibatch: Minibatch::default(),
            staging: Staging::default(),
            returns: Vec::new(),
            updates: 0,
        })
    }

    /// One update of all members on a minibatch that is uniform over the offline side of `replay`, always the same.
    ///
    /// # Errors
    /// When there are no offline data or a loss is not finite; the networks are then as before.
    pub fn step(&mut self, replay: &mut Replay) -> Result<PretrainMetrics, LearnerError> {
        let rows = self.config.batch_size;
        replay.sample_source(Source::Offline, rows, &mut self.streams.minibatch, &mut self.minibatch)?;
        let tensor = LearnerError::tensor;
        if let Some(Eyes { trunks: Trunks::Frozen { features }, .. }) = &mut self.eyes {
            features.find(replay, &[&mut self.minibatch])?;
            features.put(&mut [&mut self.minibatch]).map_err(tensor("encode images"))?;
        }
        let teach = self.imitates();
        let eyes = self.eyes.as_ref().filter(|eyes| eyes.learning());
        let dims = eyes.map_or(self.dims, |eyes| Dims { observation: eyes.observation, ..self.dims });
        let mut batch = Batch::upload(&self.minibatch, None, dims, &mut self.staging, &self.device)
            .map_err(tensor("upload a minibatch"))?;
        if let Some(eyes) = eyes {
            let mut look = || {
                batch.seen = Some(eyes.upload(&self.minibatch, &mut self.staging, &self.device)?);
                eyes.look(&mut batch, teach, &mut self.streams.crops)
            };
            look().map_err(tensor("look at images"))?;
        }
        let bound = self.lower_bound(replay)?;
        if self.actors_given { self.step_critics(&batch) } else { self.step_agents(&batch, bound.as_ref()) }
    }

    /// Cal-QL: the return of the data from each row on, `(B)`.
    fn lower_bound(&mut self, replay: &Replay) -> Result<Option<Tensor>, LearnerError> {
        if self.actors_given || self.config.method != PretrainMethod::CalQl {
            return Ok(None);
        }
        if let (true, Some(data)) = (self.returns.is_empty(), replay.offline()) {
            self.returns = returns_to_go(data, self.discount, self.config.cut_returns)?;
        }
        // The leaves of offline rows are their slots.
        let of_row = |leaf: &u32| self.returns.get(*leaf as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let rows: Vec<f32> = self.minibatch.leaf.iter().map(of_row).collect();
        let rows = Tensor::from_vec(rows, self.minibatch.rows, &self.device);
        rows.map(Some).map_err(LearnerError::tensor("upload the returns of the data"))
    }

    fn step_agents(&mut self, batch: &Batch, bound: Option<&Tensor>) -> Result<PretrainMetrics, LearnerError> {
        let tensor = LearnerError::tensor;
        let (output, draws) = self.draw(batch).map_err(tensor("draw actions"))?;
        let temperature = self.log_alpha.as_detached_tensor().exp().map_err(tensor("read the temperatures"))?;
        let actor = self.actor_loss(batch, &output, &temperature).map_err(tensor("evaluate the actors"))?;
        let mut actor_gradients = actor.loss.backward().map_err(tensor("differentiate the actors"))?;
        let temperature_gradients = self
            .temperature_loss(&actor.log_prob)
            .and_then(|loss| loss.backward())
            .map_err(tensor("differentiate the temperatures"))?;
        let target = self.target(batch, &draws.backup, Some(&temperature)).map_err(tensor("compute targets"))?;
        let critics = self
            .critic_losses(batch, draws.penalty.as_ref(), &target, bound)
            .map_err(tensor("evaluate the critics"))?;
        let mut critic_gradients = critics.loss.backward().map_err(tensor("differentiate the critics"))?;
        let multiplier_gradients = critics
            .multiplier_loss
            .as_ref()
            .map(Tensor::backward)
            .transpose()
            .map_err(tensor("differentiate the multipliers"))?;
        let metrics = self.metrics(&critics, Some((&actor, &temperature)), &target)?;
        let tensor = LearnerError::tensor;
        self.optimisers.temperature.step(&temperature_gradients).map_err(tensor("step the temperatures"))?;
        self.optimisers.actor.step(&actor_gradients).map_err(tensor("step the actors"))?;
        if let Some(eyes) = &mut self.eyes {
            eyes.join(&actor_gradients, &mut critic_gradients).map_err(tensor("join the encoders' gradients"))?;
            eyes.step_actors(&mut actor_gradients).map_err(tensor("step the encoders"))?;
        }
        if let Some(gradients) = multiplier_gradients {
            self.optimisers.multiplier.step(&gradients).map_err(tensor("step the multipliers"))?;
        }
        self.finish(&mut critic_gradients).map_err(tensor("step the critics"))?;
        Ok(metrics)
    }

    fn step_critics(&mut self, batch: &Batch) -> Result<PretrainMetrics, LearnerError> {
        let tensor = LearnerError::tensor;
        let backup = self.draw_ensemble(batch).map_err(tensor("draw actions"))?;
        let target = self.target(batch, &backup, None).map_err(tensor("compute targets"))?;
        let critics = self.critic_losses(batch, None, &target, None).map_err(tensor("evaluate the critics"))?;
        let mut gradients = critics.loss.backward().map_err(tensor("differentiate the critics"))?;
        let metrics = self.metrics(&critics, None, &target)?;
        self.finish(&mut gradients).map_err(tensor("step the critics"))?;
        Ok(metrics)
    }

    /// Whether the actors imitate the data in the present update, rather than go where the critics point.
    fn imitates(&self) -> bool {
        let method = self.config.method;
        method == PretrainMethod::BehaviourCloning || self.updates < self.config.behaviour_cloning_updates
    }

    fn finish(&mut self, critic_gradients: &mut candle_core::backprop::GradStore) -> TensorResult<()> {
        if let Some(eyes) = &mut self.eyes {
            eyes.step_critics(critic_gradients, self.target_rate)?;
        }
        self.optimisers.critic1.step_followed(critic_gradients, &self.target1.vars(), self.target_rate)?;
        self.optimisers.critic2.step_followed(critic_gradients, &self.target2.vars(), self.target_rate)?;
        self.updates += 1;
        Ok(())
    }

    /// Copy of actors, critics and target networks, and the mean of the logarithms of the temperatures (none with given
    /// actors). Fine-tuning chooses what of it goes on (`learner.carry_targets`, `learner.carry_temperature`).
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn weights(&self) -> Result<EnsembleWeights, LearnerError> {
        let copy = |stack: &Stack| stack.to_weights().map_err(LearnerError::tensor("copy the networks"));
        let log_alpha = || self.log_alpha.mean_all()?.to_scalar::<f32>();
        let log_alpha = if self.actors_given { None } else { Some(log_alpha()) }.transpose();
        let eyes = self.eyes.as_ref().map(Eyes::to_weights).transpose();
        let (eyes, encoder) = eyes.map_err(LearnerError::tensor("copy the encoders"))?.unzip();
        Ok(EnsembleWeights {
            actor: ActorWeights { stack: copy(&self.actor)?, log_std: self.log_std, eyes },
            critic1: copy(&self.critic1)?,
            critic2: copy(&self.critic2)?,
            targets: Some((copy(&self.target1)?, copy(&self.target2)?)),
            log_alpha: log_alpha.map_err(LearnerError::tensor("copy the temperatures"))?,
            encoder,
        })
    }

    /// Updates made, those before a resume included.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Number of agents.
    pub fn members(&self) -> usize {
        self.actor.members()
    }
}

/// New networks between the widths `(inputs, outputs)`.
fn random_stack(
    config: &PretrainConfig,
    members: usize,
    (inputs, outputs): (usize, usize),
    seed: u64,
    name: &str,
    device: &Device,
) -> TensorResult<Stack> {
    let widths: Vec<usize> = [inputs].into_iter().chain(config.hidden.iter().copied()).chain([outputs]).collect();
    let init = Init { layer_norm: config.layer_norm, ..Init::default() };
    Stack::random(members, &widths, init, &mut stream(seed, name), device)
}

fn check_actors(stack: &StackWeights, dims: Dims) -> Result<(), LearnerError> {
    let network = "actor";
    let wanted = [dims.observation, 2 * dims.action];
    let found = [stack.inputs(), stack.outputs()];
    if found != wanted {
        let members = stack.members;
        return Err(LearnerError::Shape { network, found: (members, found.into()), wanted: (members, wanted.into()) });
    }
    if stack.is_finite() { Ok(()) } else { Err(LearnerError::NotANumber { network }) }
}
