//! What a learner takes of the memory, asked before it is made.

use super::batch::Dims;
use super::{LearnerError, mb};
use crate::config::{CriticLoss, LearnerConfig, Order};
use crate::nn::{EnsembleWeights, StackWeights};
use crate::telemetry::{board, meminfo, unified_memory};

/// Bytes of a number.
const NUMBER: u64 = 4;
/// Arrays like a layer's output that a pass with gradients holds at its peak: what the activation is made of, the
/// activation, a gradient.
const KEPT_PER_OUTPUT: u64 = 3;
/// Bytes that any learner takes: packed blocks of the matrix products, buffers of the allocator.
const FIXED: u64 = 8 << 20;

/// Share of the available memory from which a learner is worth a warning.
const TIGHT: f64 = 0.7;

/// Memory of a learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnerMemory {
    /// Bytes of networks, optimisers and their copies, for as long as the learner lives.
    pub networks: u64,
    /// Bytes of minibatches, activations and gradients, for as long as an update lasts.
    pub update: u64,
}

impl LearnerMemory {
    /// Of a learner with `weights`, as [`super::Learner::new`] makes it. An estimate: the tensor library's blocks are a
    /// little larger than what they hold.
    pub fn new(weights: &EnsembleWeights, dims: Dims, config: &LearnerConfig) -> Self {
        let own = weights.critic1.members.max(weights.actor.stack.members).max(1);
        let members = if config.members == 0 { own } else { config.members } as u64;
        let actors = if config.actors == 1 || weights.actor.stack.members == 1 { 1 } else { members };
        let density = mlp(dims.observation + dims.action, &config.density_hidden);
        let (actor, critic) = (one(&weights.actor.stack), one(&weights.critic1));
        let (actor, critics) = (actor.times(actors), critic.times(2 * members));

        // Values, gradients and Adam's two moments; targets are values alone.
        let learned = actor.parameters + critics.parameters + density.parameters;
        let followers = critics.parameters + if config.anchor_weight > 0.0 { actor.parameters } else { 0 };
        // Values and moments from before an update whose critics step before the last loss.
        let undo = config.critic_steps > 1 || config.order != Order::Joint;
        let copies = if undo { 3 * learned + followers } else { 0 };
        // The bundle, and actors on their way to the control loop.
        let bundle = 2 * (actor.parameters + critics.parameters) + 2 * actor.parameters;

        let rows = (config.batch_size * config.critic_steps.max(1)) as u64;
        let judged = if config.critic_loss == CriticLoss::Sac { 1 } else { 1 + 3 * config.cql_actions as u64 };
        let outputs = actor.outputs + critics.outputs * judged + density.outputs;
        let columns = (2 * dims.observation + dims.action + 2) as u64;
        Self {
            networks: FIXED + NUMBER * (3 * learned + followers + copies + bundle),
            update: NUMBER * (learned + rows * (KEPT_PER_OUTPUT * outputs + 4 * columns)),
        }
    }

    /// Refuses a learner that the machine has no room for. With room for it, but hardly more, the answer is a warning:
    /// what else runs would drive the replay out of the page cache.
    ///
    /// `memory` has the form of `/proc/meminfo`, `model` that of `/proc/device-tree/model`; a system without the first
    /// is not asked.
    ///
    /// # Errors
    /// [`LearnerError::NoMemory`].
    pub fn check(self, memory: &str, model: &str) -> Result<Option<String>, LearnerError> {
        let Some(available) = meminfo(memory, "MemAvailable:") else { return Ok(None) };
        let machine = match board(model) {
            Some(name) if unified_memory(name) => format!("{name} (processor and GPU share the memory)"),
            Some(name) => name.to_owned(),
            None => "the machine".into(),
        };
        if self.total() > available {
            return Err(LearnerError::NoMemory { need: self, available, machine });
        }
        let tight = self.total() as f64 > TIGHT * available as f64;
        Ok(tight.then(|| {
            format!(
                "the learner needs {:.0} MB ({}) of the {:.0} MB that {machine} has available",
                mb(self.total()),
                self.parts(),
                mb(available)
            )
        }))
    }

    /// In words.
    pub(super) fn parts(&self) -> String {
        format!("{:.0} MB for networks and optimisers, {:.0} MB for an update", mb(self.networks), mb(self.update))
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.networks.saturating_add(self.update)
    }
}

/// Numbers of a network, and of its layers' outputs for one row.
#[derive(Clone, Copy)]
struct Size {
    parameters: u64,
    outputs: u64,
}

impl Size {
    fn times(self, count: u64) -> Self {
        Self { parameters: count * self.parameters, outputs: count * self.outputs }
    }
}

/// One member of a stack.
fn one(stack: &StackWeights) -> Size {
    let numbers = stack.layers.iter().map(|layer| {
        let norm = if layer.layer_norm.is_some() { 2 } else { 0 };
        (layer.inputs * layer.outputs + (1 + norm) * layer.outputs, layer.outputs)
    });
    let (parameters, outputs) = numbers.fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
    Size { parameters: parameters as u64, outputs: outputs as u64 }
}

/// A network with one output.
fn mlp(inputs: usize, hidden: &[usize]) -> Size {
    let mut size = Size { parameters: 0, outputs: 0 };
    let mut width = inputs;
    for outputs in hidden.iter().copied().chain([1]) {
        size.parameters += ((width + 1) * outputs) as u64;
        size.outputs += outputs as u64;
        width = outputs;
    }
    size
}
