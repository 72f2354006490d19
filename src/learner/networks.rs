//! The learner's networks and optimisers, and whether given weights make a learner.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result as TensorResult, Tensor, Var};

use super::LearnerError;
use super::actors::ActorPass;
use super::batch::Dims;
use super::eyes::{Eyes, network_dims};
use crate::config::{DeviceKind, LearnerConfig, TemperatureForm};
use crate::kernels;
use crate::nn::{Adam, AdamSettings, AdamState, EnsembleWeights, Stack, StackWeights, pointwise};

/// Everything that learns or follows, but the density network.
pub(super) struct Networks {
    pub(super) actor: Stack,
    pub(super) critic1: Stack,
    pub(super) critic2: Stack,
    pub(super) target1: Stack,
    pub(super) target2: Stack,
    /// What the entropy temperature is made of, a scalar.
    pub(super) temperature_parameter: Var,
    pub(super) temperature_form: TemperatureForm,
    /// `ln` of the Lagrange multipliers of the penalty, `(members)`; stays 0 with a fixed weight.
    pub(super) log_multiplier: Var,
    /// The slow copy of the actors, where leaving it costs.
    pub(super) anchor: Option<Anchor>,
}

/// PROTO's slowly moving policy.
pub(super) struct Anchor {
    pub(super) actor: Stack,
    /// `beta` of the present update.
    pub(super) weight: f64,
}

pub(super) struct Optimisers {
    pub(super) actor: Adam,
    pub(super) critic1: Adam,
    pub(super) critic2: Adam,
    pub(super) temperature: Adam,
    pub(super) multiplier: Adam,
}

impl Networks {
    /// Missing targets are copies of the critics; the temperature is that of its parameter.
    pub(super) fn new(
        weights: &EnsembleWeights,
        temperature_parameter: f32,
        config: &LearnerConfig,
        device: &Device,
    ) -> TensorResult<Self> {
        let stack =
            |weights| Ok::<_, candle_core::Error>(Stack::from_weights(weights, device)?.with_threads(config.threads));
        let targets = weights.targets.as_ref();
        Ok(Self {
            actor: stack(&weights.actor.stack)?,
            critic1: stack(&weights.critic1)?,
            critic2: stack(&weights.critic2)?,
            target1: stack(targets.map_or(&weights.critic1, |t| &t.0))?,
            target2: stack(targets.map_or(&weights.critic2, |t| &t.1))?,
            temperature_parameter: Var::new(temperature_parameter, device)?,
            temperature_form: config.temperature_form,
            log_multiplier: Var::zeros(weights.critic1.members, DType::F32, device)?,
            anchor: if config.anchor_weight > 0.0 {
                Some(Anchor { actor: stack(&weights.actor.stack)?, weight: config.anchor_weight })
            } else {
                None
            },
        })
    }

    /// `alpha`, a scalar without gradient.
    pub(super) fn temperature(&self) -> TensorResult<Tensor> {
        let parameter = self.temperature_parameter.as_detached_tensor();
        match self.temperature_form {
            TemperatureForm::Exp => parameter.exp(),
            TemperatureForm::Softplus => pointwise::softplus(&parameter),
        }
    }

    /// Gradient of the temperature's loss with respect to its parameter over that with respect to `ln alpha`.
    pub(super) fn temperature_slope(&self) -> TensorResult<f64> {
        let parameter = f64::from(self.temperature_parameter.to_scalar::<f32>()?);
        Ok(match self.temperature_form {
            TemperatureForm::Exp => 1.0,
            TemperatureForm::Softplus => 1.0 / (1.0 + (-parameter).exp()),
        })
    }

    /// All that a learner's optimisers and target copies change in the middle of an update.
    fn vars(&self) -> Vec<Var> {
        let stacks = [&self.actor, &self.critic1, &self.critic2, &self.target1, &self.target2];
        let scalars = [self.temperature_parameter.clone(), self.log_multiplier.clone()];
        stacks.iter().flat_map(|stack| stack.vars()).chain(scalars).collect()
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
            temperature: adam(vec![networks.temperature_parameter.clone()], config.temperature_learning_rate)?,
            multiplier: adam(vec![networks.log_multiplier.clone()], config.critic_learning_rate)?,
        })
    }

    /// Steps critics and multipliers; the target networks follow.
    pub(super) fn step_critics(
        &mut self,
        networks: &Networks,
        gradients: &mut GradStore,
        multipliers: Option<&GradStore>,
        config: &LearnerConfig,
    ) -> TensorResult<()> {
        let critics = [&networks.critic1, &networks.critic2];
        if config.shared_head {
            Stack::share_last_layer(&critics, gradients)?;
        }
        if config.gradient_clip > 0.0 {
            critics.iter().try_for_each(|critic| critic.limit_norm(gradients, config.gradient_clip))?;
        }
        self.critic1.step_followed(gradients, &networks.target1.vars(), config.target_rate)?;
        self.critic2.step_followed(gradients, &networks.target2.vars(), config.target_rate)?;
        multipliers.map_or(Ok(()), |gradients| self.multiplier.step(gradients))
    }

    /// Steps actors and temperature; the slow copy of the actors follows.
    pub(super) fn step_actors(
        &mut self,
        networks: &Networks,
        pass: &mut ActorPass,
        config: &LearnerConfig,
    ) -> TensorResult<()> {
        if config.gradient_clip > 0.0 {
            networks.actor.limit_norm(&mut pass.actor_gradients, config.gradient_clip)?;
        }
        self.temperature.step(&pass.temperature_gradients)?;
        match &networks.anchor {
            Some(anchor) => self.actor.step_followed(&pass.actor_gradients, &anchor.actor.vars(), config.anchor_rate),
            None => self.actor.step(&pass.actor_gradients),
        }
    }

    /// Takes over the states of actors, twins and temperature.
    pub(super) fn carry(&mut self, states: &[AdamState; 4]) -> TensorResult<()> {
        self.named_mut().into_iter().zip(states).try_for_each(|((_, adam), state)| adam.restore(state))
    }

    /// Steps actors and temperature with gradients of 0.
    pub(super) fn actors_idle(&mut self) -> TensorResult<()> {
        self.temperature.step_idle()?;
        self.actor.step_idle()
    }

    /// Steps the critics with gradients of 0.
    pub(super) fn critics_idle(&mut self) -> TensorResult<()> {
        self.critic1.step_idle()?;
        self.critic2.step_idle()
    }
}

/// Networks and optimisers as they were, so that an update that fails half-way leaves nothing behind.
pub(super) struct Before {
    vars: Vec<(Var, Tensor)>,
    states: Vec<AdamState>,
}

impl Before {
    pub(super) fn of(networks: &Networks, optimisers: &Optimisers, eyes: Option<&Eyes>) -> TensorResult<Self> {
        let copy = |var: Var| var.as_detached_tensor().copy().map(|copy| (var, copy));
        let vars = networks.vars().into_iter().chain(eyes.map_or_else(Vec::new, Eyes::vars));
        let own = eyes.into_iter().flat_map(|eyes| eyes.optimisers.iter().map(|(_, adam)| adam));
        let adams = optimisers.named().into_iter().map(|(_, adam)| adam).chain(own);
        Ok(Self {
            vars: vars.map(copy).collect::<TensorResult<_>>()?,
            states: adams.map(Adam::state).collect::<TensorResult<_>>()?,
        })
    }

    pub(super) fn restore(&self, optimisers: &mut Optimisers, eyes: Option<&mut Eyes>) -> TensorResult<()> {
        self.vars.iter().try_for_each(|(var, copy)| var.set(copy))?;
        let own = eyes.into_iter().flat_map(|eyes| eyes.optimisers.iter_mut().map(|(_, adam)| adam));
        let adams = optimisers.named_mut().into_iter().map(|(_, adam)| adam).chain(own);
        adams.zip(&self.states).try_for_each(|(adam, state)| adam.restore(state))
    }
}

/// Parameter of the temperature at the start: that of the weights, or the configured one.
pub(super) fn temperature_parameter(weights: &EnsembleWeights, config: &LearnerConfig) -> f32 {
    let log_alpha = weights.log_alpha.map_or_else(|| config.initial_temperature.ln(), f64::from);
    let parameter = match config.temperature_form {
        TemperatureForm::Exp => log_alpha,
        // The inverse of softplus, ln(e^alpha - 1), without overflow.
        TemperatureForm::Softplus => {
            let alpha = log_alpha.exp();
            alpha + (-(-alpha).exp_m1()).ln()
        }
    };
    parameter as f32
}

/// The tensor library's device; the processor where nobody has chosen yet ([`super::choose`]).
pub(super) fn device(kind: DeviceKind) -> Result<Device, LearnerError> {
    match kind {
        DeviceKind::Cpu | DeviceKind::Auto => Ok(Device::Cpu),
        DeviceKind::Cuda => kernels::open().map_err(LearnerError::Device),
    }
}

/// Whether the networks fit each other and a robot of `dims`, and hold only numbers. One actor may have any number of
/// twins.
pub(super) fn check(weights: &EnsembleWeights, dims: Dims) -> Result<(), LearnerError> {
    let dims = network_dims(weights.actor.eyes.as_ref(), dims);
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
    let members = if actor.members == 1 { weights.critic1.members.max(1) } else { actor.members };
    for (network, stack, wanted) in stacks {
        let found = (stack.members, widths(stack));
        let wanted = (if network == "actor" { actor.members.max(1) } else { members }, wanted);
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
pub(super) fn widths(stack: &StackWeights) -> Vec<usize> {
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
