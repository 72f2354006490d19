//! Pretraining as a checkpoint: exact, all or nothing, in the parts of the learner's checkpoints.

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Optimisers, Pretrainer, Streams};
use crate::config::{LearnerConfig, PretrainConfig, PretrainMethod, TrunkKind};
use crate::learner::LearnerError;
use crate::learner::batch::Dims;
use crate::learner::checkpoint::{self, Parts};
use crate::learner::networks::{Networks, widths};
use crate::learner::persist::{NETWORKS, OPTIMISERS, STATE, decode_arrays, refuse, take_moments, unusable};
use crate::learner::tensors::Arrays;
use crate::nn::{
    ActorWeights, Adam, AdamState, ConvEncoderWeights, EnsembleWeights, LogStdBounds, Stack, encoder_tensors,
};

/// Version of the three parts together; differs from the learner's, whose state is another one.
const VERSION: u32 = 0x5002;

/// What is not a tensor.
#[derive(Serialize, Deserialize)]
struct State {
    method: PretrainMethod,
    actors_given: bool,
    log_std: LogStdBounds,
    updates: u64,
    minibatch: ChaCha8Rng,
    noise: ChaCha8Rng,
    uniform: ChaCha8Rng,
    crops: ChaCha8Rng,
    /// Steps of the encoders' optimisers.
    encoder_steps: Vec<u64>,
    /// Steps of the optimisers in the order of [`Optimisers::named`].
    steps: [u64; 5],
}

impl Pretrainer {
    /// Writes a checkpoint into `dir` and returns the folder of its generation. The newest checkpoint before it
    /// stays until this one is durable.
    ///
    /// # Errors
    /// When the device cannot be read or the file system refuses.
    pub fn save(&self, dir: &Path) -> Result<PathBuf, LearnerError> {
        let copy = |stack: &Stack| stack.to_weights().map_err(LearnerError::tensor("copy the networks"));
        let mut networks = Arrays::default();
        for (name, (shape, values)) in encoder_tensors(&self.weights()?) {
            networks.put(name, shape, values);
        }
        for (name, stack) in self.stacks() {
            networks.put_stack(name, copy(stack)?);
        }
        for (name, var) in [("log_alpha", &self.log_alpha), ("log_multiplier", &self.log_multiplier)] {
            let values = var.flatten_all().and_then(|v| v.to_vec1()).map_err(LearnerError::tensor("copy a scalar"))?;
            networks.put(name.into(), vec![values.len()], values);
        }
        let (mut optimisers, mut steps) = (Arrays::default(), [0; 5]);
        for ((name, adam), steps) in self.optimisers.named().into_iter().zip(&mut steps) {
            let state = adam.state().map_err(LearnerError::tensor("copy an optimiser"))?;
            *steps = state.step;
            for (moment, values) in [("m", state.m), ("v", state.v)] {
                let values = values.concat();
                optimisers.put(format!("{name}.{moment}.0"), vec![values.len()], values);
            }
        }
        let mut encoder_steps = Vec::new();
        for (name, adam) in self.eyes.iter().flat_map(|eyes| &eyes.optimisers) {
            let state = adam.state().map_err(LearnerError::tensor("copy an optimiser"))?;
            encoder_steps.push(state.step);
            for (moment, values) in [("m", state.m), ("v", state.v)] {
                let values = values.concat();
                optimisers.put(format!("{name}.{moment}.0"), vec![values.len()], values);
            }
        }
        let state = State {
            method: self.config.method,
            actors_given: self.actors_given,
            log_std: self.log_std,
            updates: self.updates,
            minibatch: self.streams.minibatch.clone(),
            noise: self.streams.noise.clone(),
            uniform: self.streams.uniform.clone(),
            crops: self.streams.crops.clone(),
            encoder_steps,
            steps,
        };
        let mut state_bytes = VERSION.to_le_bytes().to_vec();
        let encoded = bincode::serde::encode_to_vec(&state, bincode::config::standard());
        state_bytes.extend(encoded.map_err(|e| unusable(dir, STATE, &e))?);
        let encode = |part: &str, arrays: &Arrays| arrays.encode().map_err(|e| unusable(dir, part, &e));
        let parts = [
            (NETWORKS, encode(NETWORKS, &networks)?),
            (OPTIMISERS, encode(OPTIMISERS, &optimisers)?),
            (STATE, state_bytes),
        ];
        Ok(checkpoint::write(dir, &parts)?)
    }

    pub(super) fn stacks(&self) -> [(&'static str, &Stack); 5] {
        [
            ("actor", &self.actor),
            ("critic1", &self.critic1),
            ("critic2", &self.critic2),
            ("target1", &self.target1),
            ("target2", &self.target2),
        ]
    }

    /// The agents of the newest checkpoint in `dir`. On the same data they go on as those that were saved, to the
    /// byte; learning rates and other settings are those of `config`.
    ///
    /// # Errors
    /// When there is no checkpoint, or a part is missing, altered, of another version, or does not fit `dims`, the
    /// configured method or the networks' sizes; the error names the part.
    pub fn load(
        dir: &Path,
        dims: Dims,
        config: &PretrainConfig,
        learner: &LearnerConfig,
        actors_given: bool,
    ) -> Result<Self, LearnerError> {
        let parts = Parts::read(dir, &[NETWORKS, OPTIMISERS, STATE])?;
        let state = decode(&parts)?;
        if state.actors_given != actors_given || (!actors_given && state.method != config.method) {
            return Err(parts.unusable(STATE, &"it was made with another `pretrain.method`").into());
        }
        let mut arrays = decode_arrays(&parts, NETWORKS)?;
        let (eyes, encoder) = arrays.take_encoders().map_err(|e| refuse(&parts, NETWORKS, e))?;
        let mut stack = |name: &str| arrays.take_stack(name).map_err(|e| refuse(&parts, NETWORKS, e));
        let weights = EnsembleWeights {
            actor: ActorWeights { stack: stack("actor")?, log_std: state.log_std, eyes },
            critic1: stack("critic1")?,
            critic2: stack("critic2")?,
            targets: Some((stack("target1")?, stack("target2")?)),
            log_alpha: None,
            encoder,
        };
        if learner.trunk != TrunkKind::Frozen {
            check_encoders(&parts, &weights, learner)?;
        }
        let made = if actors_given {
            Self::critics_for(&weights.actor, dims, config, learner, 0)
                .and_then(|made| made.fill(&weights).map(|()| made))
        } else {
            Self::from_ensemble(&weights, dims, config, learner, 0)
        };
        let mut made = made.map_err(|error| match error {
            LearnerError::Setting { .. } => parts.unusable(NETWORKS, &error).into(),
            other => other,
        })?;
        for (name, var) in [("log_alpha", &made.log_alpha), ("log_multiplier", &made.log_multiplier)] {
            let values = arrays.take(name).map_err(|e| refuse(&parts, NETWORKS, e))?;
            let fill = || var.set(&candle_core::Tensor::from_vec(values, var.shape(), var.device())?);
            fill().map_err(|e| parts.unusable(NETWORKS, &e))?;
        }
        let mut moments = decode_arrays(&parts, OPTIMISERS)?;
        for ((name, adam), step) in made.optimisers.named_mut().into_iter().zip(state.steps) {
            let state = take_moments(&mut moments, name, step).map_err(|e| refuse(&parts, OPTIMISERS, e))?;
            adam.restore(&state).map_err(|e| parts.unusable(OPTIMISERS, &e))?;
        }
        let own = made.eyes.iter_mut().flat_map(|eyes| &mut eyes.optimisers);
        for ((name, adam), step) in own.zip(state.encoder_steps) {
            let state = take_moments(&mut moments, name, step).map_err(|e| refuse(&parts, OPTIMISERS, e))?;
            adam.restore(&state).map_err(|e| parts.unusable(OPTIMISERS, &e))?;
        }
        let State { minibatch, noise, uniform, crops, .. } = state;
        made.streams = Streams { minibatch, noise, uniform, crops };
        made.updates = state.updates;
        Ok(made)
    }
}

/// Whether the encoders have the widths that `learner` asks for.
fn check_encoders(parts: &Parts, weights: &EnsembleWeights, learner: &LearnerConfig) -> Result<(), LearnerError> {
    let Some(eyes) = &weights.actor.eyes else { return Ok(()) };
    let channels = |e: &ConvEncoderWeights| e.convolutions.iter().map(|c| c.outputs).collect::<Vec<_>>();
    let fits =
        eyes.encoders.iter().all(|e| channels(e) == learner.trunk_channels && e.dense.1 == learner.trunk_features);
    if fits && eyes.proprioception == learner.proprioception {
        return Ok(());
    }
    Err(parts.unusable(NETWORKS, &"its encoders are not those that `learner` asks for").into())
}

/// What Adam knew of actors, twins and entropy temperature in the newest checkpoint in `dir`, in the order of the
/// learner's optimisers, cut to the members of `weights`.
///
/// Pretraining has a temperature for every member: the first moment of the one is the mean of theirs, as its gradient is,
/// and so is the second, which is at least that of the mean gradient. A temperature that is the softplus of its parameter
/// has `sigmoid(parameter)` times the gradient.
///
/// # Errors
/// When there is no checkpoint, or it is not that of networks of this shape; the error names the part.
pub(in crate::learner) fn moments(
    dir: &Path,
    weights: &EnsembleWeights,
    networks_now: &Networks,
) -> Result<[AdamState; 4], LearnerError> {
    let parts = Parts::read(dir, &[NETWORKS, OPTIMISERS, STATE])?;
    let state = decode(&parts)?;
    let (mut networks, mut moments) = (decode_arrays(&parts, NETWORKS)?, decode_arrays(&parts, OPTIMISERS)?);
    let wanted = [&weights.actor.stack, &weights.critic1, &weights.critic2];
    let mut found: [AdamState; 4] = Default::default();
    for (index, name) in ["actor", "critic1", "critic2"].into_iter().enumerate() {
        let saved = networks.take_stack(name).map_err(|e| refuse(&parts, NETWORKS, e))?;
        let same = widths(&saved) == widths(wanted[index]) && saved.layer_norm() == wanted[index].layer_norm();
        if !same || saved.members < wanted[index].members {
            let why =
                format!("`{name}` has another shape than the bundle's; it must be the checkpoint the bundle came from");
            return Err(parts.unusable(NETWORKS, &why).into());
        }
        let mut all =
            take_moments(&mut moments, name, state.steps[index]).map_err(|e| refuse(&parts, OPTIMISERS, e))?;
        for values in all.m.iter_mut().chain(&mut all.v) {
            values.truncate(values.len() / saved.members * wanted[index].members);
        }
        found[index] = all;
    }
    let members = weights.actor.stack.members;
    let all = take_moments(&mut moments, "temperature", state.steps[3]).map_err(|e| refuse(&parts, OPTIMISERS, e))?;
    let slope = networks_now.temperature_slope().map_err(LearnerError::tensor("read the temperature"))?;
    let mean = |values: &[Vec<f32>], scale: f64| {
        let sum: f64 = values.iter().flatten().take(members).map(|v| f64::from(*v)).sum();
        vec![vec![(sum / members as f64 * scale) as f32]]
    };
    found[3] = AdamState { step: all.step, m: mean(&all.m, slope), v: mean(&all.v, slope * slope) };
    Ok(found)
}

fn decode(parts: &Parts) -> Result<State, LearnerError> {
    let bytes = parts.part(STATE)?;
    let (version, rest) = bytes.split_at(bytes.len().min(4));
    if version != VERSION.to_le_bytes() {
        return Err(parts.unusable(STATE, &"it is no checkpoint of this program's pretraining").into());
    }
    let (state, _) =
        bincode::serde::decode_from_slice(rest, bincode::config::standard()).map_err(|e| parts.unusable(STATE, &e))?;
    Ok(state)
}

impl Optimisers {
    fn named(&self) -> [(&'static str, &Adam); 5] {
        [
            ("actor", &self.actor),
            ("critic1", &self.critic1),
            ("critic2", &self.critic2),
            ("temperature", &self.temperature),
            ("multiplier", &self.multiplier),
        ]
    }

    fn named_mut(&mut self) -> [(&'static str, &mut Adam); 5] {
        [
            ("actor", &mut self.actor),
            ("critic1", &mut self.critic1),
            ("critic2", &mut self.critic2),
            ("temperature", &mut self.temperature),
            ("multiplier", &mut self.multiplier),
        ]
    }
}
