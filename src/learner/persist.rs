//! A learner as a checkpoint: exact, all or nothing.
//!
//! Parts: `networks.safetensors` (actor, critics, targets, density network, parameter of the temperature),
//! `optimisers.safetensors` (Adam's moments), `state.bin` (version as u32 little-endian, then [`State`] in
//! bincode). Priorities and records are the replay's own files.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::LearnerError;
use super::batch::Dims;
use super::checkpoint::{self, CheckpointError, Parts};
use super::eyes::{Eyes, network_dims};
use super::networks::{Networks, Optimisers, check, device};
use super::streams::Streams;
use super::tensors::{ArrayError, Arrays};
use super::update::{Learner, rates};
use crate::config::{LearnerConfig, OutputActivation, ReplayConfig, SamplerKind, TemperatureForm, TrunkKind};
use crate::nn::{ActorWeights, Adam, AdamState, EnsembleWeights, Stack, StackWeights, encoder_tensors};
use crate::policy::manifest::Residual;
use crate::policy::residual::Frozen;
use crate::replay::ReplayState;

pub(super) const NETWORKS: &str = "networks.safetensors";
pub(super) const OPTIMISERS: &str = "optimisers.safetensors";
pub(super) const STATE: &str = "state.bin";
/// Version of the three parts together.
const VERSION: u32 = 5;

const OPTIMISER_COUNT: usize = 5;

/// What is not a tensor.
#[derive(Serialize, Deserialize)]
struct State {
    updates: u64,
    streams: Streams,
    /// Without it the temperature's parameter has no meaning.
    temperature_form: TemperatureForm,
    /// Steps of the optimisers in the order of [`Optimisers::named`].
    steps: [u64; OPTIMISER_COUNT],
    density: Option<DensityState>,
    /// Steps of the encoders' optimisers.
    encoder_steps: Vec<u64>,
    /// Without it the encoders have no meaning.
    trunk: TrunkKind,
    /// Without it the actors have no meaning.
    residual: Option<Residual>,
    replay: ReplayState,
}

#[derive(Serialize, Deserialize)]
struct DensityState {
    online: ChaCha8Rng,
    offline: ChaCha8Rng,
    step: u64,
    /// Without it the network's output has no meaning.
    output: OutputActivation,
}

impl Learner {
    /// Writes a checkpoint into `dir` and returns the folder of its generation; `replay` comes from
    /// [`crate::replay::Replay::state`]. The newest checkpoint before it stays until this one is durable.
    ///
    /// # Errors
    /// When the device cannot be read or the file system refuses.
    pub fn save(&self, dir: &Path, replay: &ReplayState) -> Result<PathBuf, LearnerError> {
        let (networks, optimisers, steps) = self.arrays()?;
        let density = self.density.as_ref().zip(steps.get(OPTIMISER_COUNT)).map(|(density, step)| DensityState {
            online: density.online_rng.clone(),
            offline: density.offline_rng.clone(),
            step: *step,
            output: self.config.density_output,
        });
        let state = State {
            updates: self.updates,
            streams: self.streams.clone(),
            temperature_form: self.config.temperature_form,
            steps: std::array::from_fn(|index| steps[index]),
            density,
            encoder_steps: self.eyes.iter().flat_map(|e| &e.optimisers).map(|(_, adam)| adam.steps()).collect(),
            trunk: self.eyes.as_ref().map_or(TrunkKind::None, |_| self.config.trunk),
            residual: self.base.as_ref().map(|base| base.residual().clone()),
            replay: *replay,
        };
        let encode = |part: &str, arrays: &Arrays| arrays.encode().map_err(|e| unusable(dir, part, &e));
        let mut state_bytes = VERSION.to_le_bytes().to_vec();
        let encoded = bincode::serde::encode_to_vec(&state, bincode::config::standard());
        state_bytes.extend(encoded.map_err(|e| unusable(dir, STATE, &e))?);
        let parts = [
            (NETWORKS, encode(NETWORKS, &networks)?),
            (OPTIMISERS, encode(OPTIMISERS, &optimisers)?),
            (STATE, state_bytes),
        ];
        Ok(checkpoint::write(dir, &parts)?)
    }

    /// Networks, moments, and the optimisers' steps in the order of [`State::steps`], density last if there is one.
    pub(super) fn arrays(&self) -> Result<(Arrays, Arrays, Vec<u64>), LearnerError> {
        let weights = self.weights()?;
        let mut networks = Arrays::default();
        for (name, (shape, values)) in encoder_tensors(&weights) {
            networks.put(name, shape, values);
        }
        if let Some((_, density)) = self.eyes.iter().flat_map(Eyes::named).find(|(name, _)| *name == "trunk density") {
            let flat = density.vars()[0].flatten_all().and_then(|v| v.to_vec1::<f32>());
            let flat = flat.map_err(LearnerError::tensor("copy an encoder"))?;
            networks.put("trunk density".into(), vec![flat.len()], flat);
        }
        networks.put_stack("actor", weights.actor.stack);
        networks.put_stack("critic1", weights.critic1);
        networks.put_stack("critic2", weights.critic2);
        if let Some((target1, target2)) = weights.targets {
            networks.put_stack("target1", target1);
            networks.put_stack("target2", target2);
        }
        let parameter = self.networks.temperature_parameter.to_scalar::<f32>();
        let parameter = parameter.map_err(LearnerError::tensor("copy the temperature"))?;
        networks.put("temperature_parameter".into(), vec![], vec![parameter]);
        let multipliers = self.networks.log_multiplier.to_vec1::<f32>();
        let multipliers = multipliers.map_err(LearnerError::tensor("copy the multipliers"))?;
        networks.put("log_multiplier".into(), vec![multipliers.len()], multipliers);
        if let Some(anchor) = &self.networks.anchor {
            networks.put_stack("anchor", anchor.actor.to_weights().map_err(LearnerError::tensor("copy the anchor"))?);
        }
        if let Some(density) = &self.density {
            networks.put_stack(
                "density",
                density.network.to_weights().map_err(LearnerError::tensor("copy the density network"))?,
            );
        }
        let (mut optimisers, mut steps) = (Arrays::default(), Vec::new());
        for (name, adam) in self
            .optimisers
            .named()
            .into_iter()
            .chain(self.density.as_ref().map(|d| ("density", &d.optimiser)))
            .chain(self.eyes.iter().flat_map(|eyes| eyes.optimisers.iter().map(|(name, adam)| (*name, adam))))
        {
            let state = adam.state().map_err(LearnerError::tensor("copy an optimiser"))?;
            steps.push(state.step);
            for (moment, arrays) in [("m", state.m), ("v", state.v)] {
                for (index, values) in arrays.into_iter().enumerate() {
                    optimisers.put(format!("{name}.{moment}.{index}"), vec![values.len()], values);
                }
            }
        }
        Ok((networks, optimisers, steps))
    }

    /// The learner of the newest checkpoint in `dir`, and what [`crate::replay::Replay::restore`] takes. It goes on
    /// as the one that was saved, to the byte; learning rates and other settings are those of `config`.
    ///
    /// # Errors
    /// When there is no checkpoint, or a part is missing, altered, of another version or does not fit `dims`, the
    /// sampler or `base`, on which the actors stand if they are a residual; the error names the part.
    pub fn load(
        dir: &Path,
        dims: Dims,
        config: &LearnerConfig,
        replay: &ReplayConfig,
        base: Option<Frozen>,
    ) -> Result<(Self, ReplayState), LearnerError> {
        let parts = Parts::read(dir, &[NETWORKS, OPTIMISERS, STATE])?;
        let state = decode_state(&parts)?;
        let mut arrays = decode_arrays(&parts, NETWORKS)?;
        let Saved { weights, parameter, multipliers, anchor, density } =
            take_networks(&mut arrays, config, state.density.is_some()).map_err(|e| refuse(&parts, NETWORKS, e))?;
        let changed = [
            ("learner.trunk", state.trunk != if weights.actor.eyes.is_some() { config.trunk } else { TrunkKind::None }),
            ("replay.sampler", state.density.is_some() != (replay.sampler == SamplerKind::Balanced)),
            ("policy.base", state.residual.as_ref() != base.as_ref().map(Frozen::residual)),
            ("learner.temperature_form", state.temperature_form != config.temperature_form),
            ("learner.density_output", state.density.as_ref().is_some_and(|d| d.output != config.density_output)),
        ];
        if let Some((key, _)) = changed.iter().find(|(_, changed)| *changed) {
            return Err(parts.unusable(STATE, &format!("it was made with another `{key}`")).into());
        }
        check(&weights, dims)?;
        let device = device(config.device)?;
        let stack = |weights: StackWeights| Stack::from_weights(&weights, &device);
        let density = density.map(stack).transpose().map_err(LearnerError::tensor("build the density network"))?;
        let mut networks =
            Networks::new(&weights, parameter, config, &device).map_err(LearnerError::tensor("build the networks"))?;
        let fill =
            networks.log_multiplier.set(&Tensor::new(multipliers, &device).map_err(LearnerError::tensor("upload"))?);
        fill.map_err(|e| parts.unusable(NETWORKS, &e))?;
        if let (Some(anchor), Some(saved)) = (&mut networks.anchor, anchor) {
            anchor.actor = stack(saved).map_err(LearnerError::tensor("build the anchor"))?.with_threads(config.threads);
        }
        let mut eyes = Eyes::new(&weights, config, rates(config), (density.is_some(), 0), &device)?;
        if let Some((_, trunk)) = eyes.iter().flat_map(Eyes::named).find(|(name, _)| *name == "trunk density") {
            let flat = arrays.take("trunk density").map_err(|e| refuse(&parts, NETWORKS, e))?;
            let var = &trunk.vars()[0];
            let fill = Tensor::from_vec(flat, var.shape(), &device).and_then(|flat| var.set(&flat));
            fill.map_err(|e| parts.unusable(NETWORKS, &e))?;
        }
        let dims = network_dims(weights.actor.eyes.as_ref(), dims);
        let mut learner = Self::around((networks, eyes.take()), density, dims, config, replay, 0, device)
            .map_err(LearnerError::tensor("build the optimisers"))?
            .on_base(base);
        let mut moments = decode_arrays(&parts, OPTIMISERS)?;
        let mut restore = |name: &str, adam: &mut Adam, step: u64| -> Result<(), LearnerError> {
            let moments = take_moments(&mut moments, name, step).map_err(|e| refuse(&parts, OPTIMISERS, e))?;
            adam.restore(&moments).map_err(|e| parts.unusable(OPTIMISERS, &e).into())
        };
        for ((name, adam), step) in learner.optimisers.named_mut().into_iter().zip(state.steps) {
            restore(name, adam, step)?;
        }
        for ((name, adam), step) in
            learner.eyes.iter_mut().flat_map(|eyes| &mut eyes.optimisers).zip(state.encoder_steps)
        {
            restore(name, adam, step)?;
        }
        if let (Some(density), Some(saved)) = (&mut learner.density, state.density) {
            restore("density", &mut density.optimiser, saved.step)?;
            (density.online_rng, density.offline_rng) = (saved.online, saved.offline);
        }
        learner.streams = state.streams;
        learner.updates = state.updates;
        Ok((learner, state.replay))
    }
}

impl Optimisers {
    pub(super) fn named(&self) -> [(&'static str, &Adam); OPTIMISER_COUNT] {
        [
            ("actor", &self.actor),
            ("critic1", &self.critic1),
            ("critic2", &self.critic2),
            ("temperature", &self.temperature),
            ("multiplier", &self.multiplier),
        ]
    }

    pub(super) fn named_mut(&mut self) -> [(&'static str, &mut Adam); OPTIMISER_COUNT] {
        [
            ("actor", &mut self.actor),
            ("critic1", &mut self.critic1),
            ("critic2", &mut self.critic2),
            ("temperature", &mut self.temperature),
            ("multiplier", &mut self.multiplier),
        ]
    }
}

fn decode_state(parts: &Parts) -> Result<State, LearnerError> {
    let Some((version, rest)) = parts.part(STATE)?.split_first_chunk::<4>() else {
        return Err(parts.unusable(STATE, &"it is too short").into());
    };
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(parts.unusable(STATE, &format!("version {version}, this program reads {VERSION}")).into());
    }
    let (state, _) =
        bincode::serde::decode_from_slice(rest, bincode::config::standard()).map_err(|e| parts.unusable(STATE, &e))?;
    Ok(state)
}

pub(super) fn decode_arrays(parts: &Parts, name: &str) -> Result<Arrays, LearnerError> {
    Arrays::decode(parts.part(name)?).map_err(|e| refuse(parts, name, e))
}

/// What the first part holds.
struct Saved {
    weights: EnsembleWeights,
    parameter: f32,
    multipliers: Vec<f32>,
    anchor: Option<StackWeights>,
    density: Option<StackWeights>,
}

fn take_networks(arrays: &mut Arrays, config: &LearnerConfig, with_density: bool) -> Result<Saved, ArrayError> {
    let (eyes, encoder) = arrays.take_encoders()?;
    let weights = EnsembleWeights {
        actor: ActorWeights { stack: arrays.take_stack("actor")?, log_std: config.log_std, eyes },
        critic1: arrays.take_stack("critic1")?,
        critic2: arrays.take_stack("critic2")?,
        targets: Some((arrays.take_stack("target1")?, arrays.take_stack("target2")?)),
        log_alpha: None,
        encoder,
    };
    let parameter = arrays.take("temperature_parameter")?;
    let parameter = *parameter.first().ok_or_else(|| ArrayError::Missing("temperature_parameter".into()))?;
    let multipliers = arrays.take("log_multiplier")?;
    let anchor = (config.anchor_weight > 0.0).then(|| arrays.take_stack("anchor")).transpose()?;
    let density = with_density.then(|| arrays.take_stack("density")).transpose()?;
    Ok(Saved { weights, parameter, multipliers, anchor, density })
}

/// Moments of an optimiser with one variable, which is what all of the learner's are.
pub(super) fn take_moments(arrays: &mut Arrays, name: &str, step: u64) -> Result<AdamState, ArrayError> {
    let mut take = |moment: &str| Ok::<_, ArrayError>(vec![arrays.take(&format!("{name}.{moment}.0"))?]);
    Ok(AdamState { step, m: take("m")?, v: take("v")? })
}

pub(super) fn refuse(parts: &Parts, part: &str, error: ArrayError) -> LearnerError {
    match error {
        ArrayError::Missing(tensor) => parts.missing(format!("{part}: {tensor}")).into(),
        other => parts.unusable(part, &other).into(),
    }
}

pub(super) fn unusable(dir: &Path, part: &str, reason: &dyn Display) -> CheckpointError {
    CheckpointError::Unusable { dir: dir.to_owned(), part: part.to_owned(), reason: reason.to_string() }
}
