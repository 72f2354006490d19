//! The learner's networks and optimisers, and whether given weights make a learner.

use candle_core::{Device, Result as TensorResult, Tensor, Var};

use super::LearnerError;
use super::batch::Dims;
use crate::config::{DeviceKind, LearnerConfig};
use crate::nn::{Adam, AdamSettings, EnsembleWeights, Stack, StackWeights, polyak};

/// Everything that learns or follows, but the density network.
pub(super) struct Networks {
    pub(super) actor: Stack,
    pub(super) critic1: Stack,
    pub(super) critic2: Stack,
    pub(super) target1: Stack,
    pub(super) target2: Stack,
    /// `ln alpha`, a scalar.
    pub(super) log_alpha: Var,
}

pub(super) struct Optimisers {
    pub(super) actor: Adam,
    pub(super) critic1: Adam,
    pub(super) critic2: Adam,
    pub(super) temperature: Adam,
}

impl Networks {
    /// Missing targets are copies of the critics, a missing temperature is the configured one.
    pub(super) fn new(weights: &EnsembleWeights, config: &LearnerConfig, device: &Device) -> TensorResult<Self> {
        let stack =
            |weights| Ok::<_, candle_core::Error>(Stack::from_weights(weights, device)?.with_threads(config.threads));
        let targets = weights.targets.as_ref();
        Ok(Self {
            actor: stack(&weights.actor.stack)?,
            critic1: stack(&weights.critic1)?,
            critic2: stack(&weights.critic2)?,
            target1: stack(targets.map_or(&weights.critic1, |t| &t.0))?,
            target2: stack(targets.map_or(&weights.critic2, |t| &t.1))?,
            log_alpha: Var::new(weights.log_alpha.unwrap_or(config.initial_temperature.ln() as f32), device)?,
        })
    }

    /// `alpha`, a scalar without gradient.
    pub(super) fn temperature(&self) -> TensorResult<Tensor> {
        self.log_alpha.as_detached_tensor().exp()
    }

    /// Moves the targets towards the critics.
    pub(super) fn follow(&self, rate: f64) -> TensorResult<()> {
        polyak(&self.target1, &self.critic1, rate)?;
        polyak(&self.target2, &self.critic2, rate)
    }
}

impl Optimisers {
    /// Fresh ones.
    pub(super) fn new(networks: &Networks, config: &LearnerConfig) -> TensorResult<Self> {
        let adam = |vars, learning_rate| Adam::new(vars, AdamSettings { learning_rate, ..AdamSettings::default() });
        Ok(Self {
            actor: adam(networks.actor.vars(), config.actor_learning_rate)?,
            critic1: adam(networks.critic1.vars(), config.critic_learning_rate)?,
            critic2: adam(networks.critic2.vars(), config.critic_learning_rate)?,
            temperature: adam(vec![networks.log_alpha.clone()], config.temperature_learning_rate)?,
        })
    }
}

/// The tensor library's device.
pub(super) fn device(kind: DeviceKind) -> Result<Device, LearnerError> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => Device::new_cuda(0).map_err(|source| LearnerError::Device { source }),
    }
}

/// Whether the networks fit each other and `dims`, and hold only numbers.
pub(super) fn check(weights: &EnsembleWeights, dims: Dims) -> Result<(), LearnerError> {
    let (actor, input) = (&weights.actor.stack, dims.observation + dims.action);
    let mut stacks = vec![
        ("actor", actor, ends(actor, dims.observation, 2 * dims.action)),
        ("critic1", &weights.critic1, ends(&weights.critic1, input, 1)),
        ("critic2", &weights.critic2, ends(&weights.critic2, input, 1)),
    ];
    if let Some((target1, target2)) = &weights.targets {
        stacks.push(("target1", target1, widths(&weights.critic1)));
        stacks.push(("target2", target2, widths(&weights.critic2)));
    }
    for (network, stack, wanted) in stacks {
        let found = (stack.members, widths(stack));
        let wanted = (actor.members, wanted);
        if found != wanted {
            return Err(LearnerError::Shape { network, found, wanted });
        }
        if !stack.is_finite() {
            return Err(LearnerError::NotANumber { network });
        }
    }
    Ok(())
}

/// Widths of all layers, input first.
fn widths(stack: &StackWeights) -> Vec<usize> {
    stack
        .layers
        .iter()
        .take(1)
        .map(|layer| layer.inputs)
        .chain(stack.layers.iter().map(|layer| layer.outputs))
        .collect()
}

/// The stack's own hidden widths between the ends that the robot asks for.
fn ends(stack: &StackWeights, inputs: usize, outputs: usize) -> Vec<usize> {
    let mut widths = widths(stack);
    widths.resize(widths.len().max(2), 0);
    let last = widths.len() - 1;
    (widths[0], widths[last]) = (inputs, outputs);
    widths
}
