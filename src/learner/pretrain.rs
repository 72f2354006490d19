//! Offline training of a first ensemble: conservative Q-learning (CQL) for all members in one stacked pass.
//!
//! Members are independent CQL agents: own random start, own policy samples, own targets, own entropy temperature,
//! no term that couples them. They do share the order of the minibatches and the uniform actions of the penalty;
//! the published agents came from separate runs, which differ in these two as well. Source: CQL(H), the
//! importance-sampled variant of the published code, with a deterministic backup (no entropy term) and, at the
//! start, actors that imitate the data. Called by one thread; spawns nothing.

use candle_core::{Device, Result as TensorResult, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::LearnerError;
use super::batch::{Batch, Dims};
use super::networks::device;
use super::streams::{normal, stream};
use crate::config::{LearnerConfig, PretrainConfig};
use crate::nn::{
    ActorWeights, Adam, AdamSettings, EnsembleWeights, Init, Stack, copy_into, pointwise, polyak, tanh_gaussian,
};
use crate::replay::Replay;
use crate::rl::cql::{self, Form, SampledValues};
use crate::rl::critic::{self, TargetOperator};
use crate::rl::{actor, state_action};
use crate::spaces::{Minibatch, Source};

/// Data actions are clipped to this magnitude before `atanh` (published code).
const ACTION_CLIP: f64 = 0.999_999;
/// `T` of the penalty's log-sum-exp (published code).
const CQL_TEMPERATURE: f64 = 1.0;

/// `N` CQL agents in training.
pub struct Pretrainer {
    dims: Dims,
    config: PretrainConfig,
    discount: f64,
    target_rate: f64,
    device: Device,
    actor: Stack,
    critic1: Stack,
    critic2: Stack,
    target1: Stack,
    target2: Stack,
    /// `ln alpha_i`, `(members, 1)`.
    log_alpha: Var,
    actor_optimiser: Adam,
    critic_optimiser: Adam,
    temperature_optimiser: Adam,
    minibatch_rng: ChaCha8Rng,
    noise_rng: ChaCha8Rng,
    uniform_rng: ChaCha8Rng,
    minibatch: Minibatch,
    updates: u64,
}

/// Numbers of one step, taken before its optimisers moved; sums and means over all members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PretrainMetrics {
    /// Mean over the critics of the mean squared temporal-difference error.
    pub bellman_error: f32,
    /// Mean over the critics of the weighted CQL penalty.
    pub penalty: f32,
    /// Mean over the members of the actor loss.
    pub actor_loss: f32,
    /// Mean entropy temperature.
    pub temperature: f32,
    /// `-mean log pi(a|s)`, nats.
    pub entropy: f32,
    /// Mean of all critics at the actions of the data.
    pub q_mean: f32,
    /// Mean bootstrapped target.
    pub target_mean: f32,
}

/// Actions of one update, drawn from every member's own policy and uniformly; constants for the losses.
struct Draws {
    /// From `pi_i(s)`, `(members, n, B, action)`, and their log-probability `(members, n, B)`.
    policy: (Tensor, Tensor),
    /// From `pi_i(s')`.
    next: (Tensor, Tensor),
    /// One more from `pi_i(s')`, for the backup, `(members, 1, B, action)`.
    backup: Tensor,
    /// Uniform in `[-1, 1]`, the same for all members, `(members, n, B, action)`.
    uniform: Tensor,
}

impl Pretrainer {
    /// Random agents. `learner` gives discount, target rate, device and threads.
    ///
    /// # Errors
    /// When the device is not there or a width is 0.
    pub fn new(dims: Dims, config: &PretrainConfig, learner: &LearnerConfig, seed: u64) -> Result<Self, LearnerError> {
        let device = device(learner.device)?;
        Self::build(dims, config, learner, seed, device).map_err(LearnerError::tensor("build the networks"))
    }

    fn build(
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        seed: u64,
        device: Device,
    ) -> TensorResult<Self> {
        let random = |name: &str, inputs: usize, outputs: usize| {
            let widths: Vec<usize> =
                [inputs].into_iter().chain(config.hidden.iter().copied()).chain([outputs]).collect();
            let rng = &mut stream(seed, name);
            let stack = Stack::random(config.ensemble_size, &widths, Init::default(), rng, &device)?;
            Ok::<_, candle_core::Error>(stack.with_threads(learner.threads))
        };
        let critic = |name| random(name, dims.observation + dims.action, 1);
        let actor = random("pretrain actor weights", dims.observation, 2 * dims.action)?;
        let (critic1, critic2) = (critic("pretrain critic 1 weights")?, critic("pretrain critic 2 weights")?);
        let (target1, target2) = (critic("pretrain target")?, critic("pretrain target")?);
        copy_into(&target1, &critic1)?;
        copy_into(&target2, &critic2)?;
        let log_alpha = Var::zeros((config.ensemble_size, 1), candle_core::DType::F32, &device)?;
        let adam = |vars, learning_rate| Adam::new(vars, AdamSettings { learning_rate, ..AdamSettings::default() });
        let critic_vars = [critic1.vars(), critic2.vars()].concat();
        Ok(Self {
            dims,
            config: config.clone(),
            discount: learner.discount,
            target_rate: learner.target_rate,
            actor_optimiser: adam(actor.vars(), config.actor_learning_rate)?,
            critic_optimiser: adam(critic_vars, config.critic_learning_rate)?,
            temperature_optimiser: adam(vec![log_alpha.clone()], config.actor_learning_rate)?,
            actor,
            critic1,
            critic2,
            target1,
            target2,
            log_alpha,
            device,
            minibatch_rng: stream(seed, "pretrain minibatch"),
            noise_rng: stream(seed, "pretrain action noise"),
            uniform_rng: stream(seed, "pretrain uniform actions"),
            minibatch: Minibatch::default(),
            updates: 0,
        })
    }

    /// One update of all members on a minibatch that is uniform over the offline side of `replay`.
    ///
    /// # Errors
    /// When there are no offline data or a loss is not finite; the networks are then as before.
    pub fn step(&mut self, replay: &mut Replay) -> Result<PretrainMetrics, LearnerError> {
        replay.sample_source(Source::Offline, self.config.batch_size, &mut self.minibatch_rng, &mut self.minibatch)?;
        let batch = Batch::upload(&self.minibatch, self.dims, &self.device)
            .map_err(LearnerError::tensor("upload a minibatch"))?;
        self.step_on(&batch)
    }

    fn step_on(&mut self, batch: &Batch) -> Result<PretrainMetrics, LearnerError> {
        let tensor = LearnerError::tensor;
        let (output, draws) = self.draw(batch).map_err(tensor("draw actions"))?;
        let temperature = self.log_alpha.as_detached_tensor().exp().map_err(tensor("read the temperatures"))?;
        let (actor_loss, log_prob) =
            self.actor_loss(batch, &output, &temperature).map_err(tensor("evaluate the actors"))?;
        let actor_gradients = actor_loss.backward().map_err(tensor("differentiate the actors"))?;
        let temperature_gradients = self
            .temperature_loss(&log_prob)
            .and_then(|loss| loss.backward())
            .map_err(tensor("differentiate the temperatures"))?;
        let target = self.target(batch, &draws).map_err(tensor("compute targets"))?;
        let losses = self.critic_losses(batch, &draws, &target).map_err(tensor("evaluate the critics"))?;
        let critic_gradients = (&losses.bellman + &losses.penalty)
            .and_then(|loss| loss.backward())
            .map_err(tensor("differentiate the critics"))?;
        let metrics = self.metrics(&losses, &actor_loss, &temperature, &log_prob, &target)?;
        let tensor = LearnerError::tensor;
        self.temperature_optimiser.step(&temperature_gradients).map_err(tensor("step the temperatures"))?;
        self.actor_optimiser.step(&actor_gradients).map_err(tensor("step the actors"))?;
        self.critic_optimiser.step(&critic_gradients).map_err(tensor("step the critics"))?;
        polyak(&self.target1, &self.critic1, self.target_rate).map_err(tensor("move the target networks"))?;
        polyak(&self.target2, &self.critic2, self.target_rate).map_err(tensor("move the target networks"))?;
        self.updates += 1;
        Ok(metrics)
    }

    /// The actors' output at `s`, with its graph, and all constant actions of this update.
    fn draw(&mut self, batch: &Batch) -> TensorResult<(Tensor, Draws)> {
        let (members, n) = (self.config.ensemble_size, self.config.cql_actions);
        let (rows, width) = batch.action.dims2()?;
        let output = self.actor.forward(&batch.observation)?;
        let next_output = self.actor.forward_detached(&batch.next_observation)?;
        let policy = self.sample(&output.detach(), n)?;
        let (actions, log_prob) = self.sample(&next_output, n + 1)?;
        let uniform: Vec<f32> = (0..n * rows * width).map(|_| self.uniform_rng.random_range(-1.0..=1.0)).collect();
        let uniform = Tensor::from_vec(uniform, (1, n, rows, width), &self.device)?;
        let draws = Draws {
            policy,
            backup: actions.narrow(1, n, 1)?,
            next: (actions.narrow(1, 0, n)?, log_prob.narrow(1, 0, n)?),
            uniform: uniform.broadcast_as((members, n, rows, width))?,
        };
        Ok((output, draws))
    }

    /// `count` actions of every member's own policy, `(members, count, B, action)`, and their log-probability.
    fn sample(&mut self, output: &Tensor, count: usize) -> TensorResult<(Tensor, Tensor)> {
        let (mean, std) = tanh_gaussian::member_moments(output, self.config.log_std)?;
        let (members, rows, width) = mean.dims3()?;
        let noise = normal(&mut self.noise_rng, members * count * rows * width);
        let noise = Tensor::from_vec(noise, (members, count, rows, width), &self.device)?;
        let sample = tanh_gaussian::sample(&mean.unsqueeze(1)?, &std.unsqueeze(1)?, &noise)?;
        Ok((sample.action, sample.log_prob))
    }

    /// `sum_i mean[alpha_i log pi_i(a_i|s) - min(Q1_i, Q2_i)(s, a_i)]`, in the first updates with `log pi_i` of the
    /// data's action in place of the value; and `log pi_i(a_i|s)`, `(members, B)`.
    fn actor_loss(&mut self, batch: &Batch, output: &Tensor, temperature: &Tensor) -> TensorResult<(Tensor, Tensor)> {
        let (mean, std) = tanh_gaussian::member_moments(output, self.config.log_std)?;
        let noise = Tensor::from_vec(normal(&mut self.noise_rng, mean.elem_count()), mean.shape(), &self.device)?;
        let sample = tanh_gaussian::sample(&mean, &std, &noise)?;
        let loss = if self.updates < self.config.behaviour_cloning_updates {
            let data_log_prob =
                tanh_gaussian::log_prob_of(&mean, &std, &batch.action.broadcast_as(mean.shape())?, ACTION_CLIP)?;
            actor::behaviour_cloning_loss(temperature, &sample.log_prob, &data_log_prob)?
        } else {
            let rows = state_action(&batch.observation, &sample.action)?;
            let (q1, q2) =
                (self.critic1.forward_frozen(&rows)?.squeeze(2)?, self.critic2.forward_frozen(&rows)?.squeeze(2)?);
            // The loss averages over members as well; each member's own gradient wants the sum.
            (actor::loss(temperature, &sample.log_prob, &pointwise::minimum(&q1, &q2)?)?
                * self.config.ensemble_size as f64)?
        };
        Ok((loss, sample.log_prob.detach()))
    }

    /// `-sum_i ln alpha_i mean[log pi_i(a_i|s) - |A|]`: every member holds its own entropy.
    fn temperature_loss(&self, log_prob: &Tensor) -> TensorResult<Tensor> {
        let excess = (log_prob.mean_keepdim(1)? - self.dims.action as f64)?;
        (self.log_alpha.as_tensor() * excess)?.sum_all()?.neg()
    }

    /// `y_i = r + gamma (1 - terminated) min(Q1'_i, Q2'_i)(s', a'_i)`, `(members, B)`.
    fn target(&self, batch: &Batch, draws: &Draws) -> TensorResult<Tensor> {
        let rows = state_action(&batch.next_observation, &draws.backup)?;
        let (q1, q2) =
            (self.target1.forward_detached(&rows)?.squeeze(2)?, self.target2.forward_detached(&rows)?.squeeze(2)?);
        let value = critic::next_value(&q1, &q2, &TargetOperator::OwnTwinMin)?;
        critic::td_target(&batch.reward, &batch.terminated, &value, None, self.discount)
    }

    /// Sums over all critics, with their graph; every action is judged at `s`.
    fn critic_losses(&self, batch: &Batch, draws: &Draws, target: &Tensor) -> TensorResult<CriticLosses> {
        let (members, n) = (self.config.ensemble_size, self.config.cql_actions);
        let (count, width) = batch.action.dims2()?;
        let data = batch.action.broadcast_as((members, 1, count, width))?;
        let actions = Tensor::cat(&[&draws.uniform, &draws.policy.0, &draws.next.0, &data], 1)?;
        let rows = state_action(&batch.observation, &actions)?;
        let settings = cql::Settings {
            form: Form::H,
            temperature: CQL_TEMPERATURE,
            weight: self.config.cql_weight,
            action_dim: width,
        };
        let mut sums = Vec::new();
        for critic in [&self.critic1, &self.critic2] {
            let q = critic.forward(&rows)?.reshape((members, 3 * n + 1, count))?;
            let data = q.narrow(1, 3 * n, 1)?.squeeze(1)?;
            let values = SampledValues {
                uniform: &q.narrow(1, 0, n)?,
                policy: &q.narrow(1, n, n)?,
                policy_log_prob: &draws.policy.1,
                next: &q.narrow(1, 2 * n, n)?,
                next_log_prob: &draws.next.1,
            };
            let penalty = cql::penalty(settings, values, &data, None)?.per_member.sum_all()?;
            sums.push((critic::bellman_errors(&data, target)?.sum_all()?, penalty, data.detach().mean_all()?));
        }
        let add = |pick: fn(&(Tensor, Tensor, Tensor)) -> &Tensor| pick(&sums[0]) + pick(&sums[1]);
        Ok(CriticLosses { bellman: add(|s| &s.0)?, penalty: add(|s| &s.1)?, q_mean: (add(|s| &s.2)? * 0.5)? })
    }

    fn metrics(
        &self,
        losses: &CriticLosses,
        actor_loss: &Tensor,
        temperature: &Tensor,
        log_prob: &Tensor,
        target: &Tensor,
    ) -> Result<PretrainMetrics, LearnerError> {
        let members = self.config.ensemble_size as f32;
        let read = || {
            let means = [temperature.mean_all()?, log_prob.mean_all()?, target.mean_all()?];
            let sums = [&losses.bellman, &losses.penalty, actor_loss, &losses.q_mean].map(Tensor::detach);
            Tensor::stack(&[sums.as_slice(), means.as_slice()].concat(), 0)?.to_vec1::<f32>()
        };
        let read = read().map_err(LearnerError::tensor("read the losses"))?;
        let names =
            ["Bellman error", "CQL penalty", "actor loss", "mean Q", "temperature", "log probability", "mean target"];
        for (quantity, value) in names.into_iter().zip(read.iter().copied()) {
            if !value.is_finite() {
                return Err(LearnerError::NotFinite { quantity, value, update: self.updates });
            }
        }
        Ok(PretrainMetrics {
            bellman_error: read[0] / (2.0 * members),
            penalty: read[1] / (2.0 * members),
            actor_loss: read[2] / members,
            q_mean: read[3],
            temperature: read[4],
            entropy: -read[5],
            target_mean: read[6],
        })
    }

    /// Copy of actors and critics. Targets and temperatures stay behind: fine-tuning as published starts with
    /// targets equal to the critics and with a temperature of its own.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn weights(&self) -> Result<EnsembleWeights, LearnerError> {
        let copy = |stack: &Stack| stack.to_weights().map_err(LearnerError::tensor("copy the networks"));
        Ok(EnsembleWeights {
            actor: ActorWeights { stack: copy(&self.actor)?, log_std: self.config.log_std },
            critic1: copy(&self.critic1)?,
            critic2: copy(&self.critic2)?,
            targets: None,
            log_alpha: None,
        })
    }

    /// Updates made.
    pub fn updates(&self) -> u64 {
        self.updates
    }
}

struct CriticLosses {
    bellman: Tensor,
    penalty: Tensor,
    q_mean: Tensor,
}
