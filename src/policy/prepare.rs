//! From weights to a policy that may be offered: encode, choose the engine, check, warm up.
//!
//! Runs on the publisher's thread, or at start-up; takes about two milliseconds for five members of 256 x 256.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::checks::{Inputs, agree, dimensions, names, recorded, responds, warm_up};
use super::native::NativePolicy;
use super::onnx_eyes::encoder_tensors;
use super::onnx_graph::layer_tensors;
use super::onnxruntime::{OrtPolicy, Runtime, RuntimeError};
use super::{PolicyBackend, PolicyError, onnx_file};
use crate::config::{PolicyConfig, PolicyEngine};
use crate::nn::weights::ActorWeights;
use crate::spaces::{FrameShape, Spaces};

/// Runs before a policy is offered, each on another observation.
pub(super) const WARM_UP_RUNS: usize = 20;

/// What runs a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The forward pass of this program.
    Builtin,
    /// ONNX Runtime.
    Onnxruntime,
}

/// A policy that passed every check, ready for the control thread.
pub struct Prepared {
    /// The policy.
    pub backend: Box<dyn PolicyBackend>,
    /// What runs it.
    pub engine: Engine,
    /// What was seen on the way.
    pub report: Report,
}

/// What was seen while a policy was prepared.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Engine in words.
    pub engine: &'static str,
    /// Engine of the frozen policy below a residual.
    pub base: Option<&'static str>,
    /// N.
    pub members: usize,
    /// O.
    pub observation_dim: usize,
    /// A.
    pub action_dim: usize,
    /// Size of the image that it looks at, if it has eyes.
    pub frame: Option<FrameShape>,
    /// Largest difference to the answer recorded in the file.
    pub probe_difference: f32,
    /// Largest difference between the two engines over [`WARM_UP_RUNS`] observations, when both are there.
    pub engine_difference: Option<f32>,
    /// Processor time of the last warm-up run.
    pub run_time: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, members, observation_dim, action_dim, probe_difference, .. } = self;
        write!(f, "{members} members, {observation_dim} -> {action_dim}, ")?;
        if let Some(shape) = self.frame {
            write!(f, "{shape}, ")?;
        }
        write!(f, "run by {engine} in {:?}", self.run_time)?;
        if let Some(base) = self.base {
            write!(f, ", on a base by {base}")?;
        }
        write!(f, "; probe within {probe_difference:.1e}")?;
        match self.engine_difference {
            Some(difference) => write!(f, "; equal to the built-in pass within {difference:.1e}"),
            None => Ok(()),
        }
    }
}

/// Prepares weights: what a publisher calls for every snapshot of the learner.
///
/// # Errors
/// When anything about the weights, their fit to `spaces`, or the configured engine is wrong. A configured ONNX
/// Runtime that fails is an error, never a reason to use the other engine.
pub fn prepare(actor: &ActorWeights, spaces: &Spaces, config: &PolicyConfig) -> Result<Prepared, PolicyError> {
    prepare_file(&onnx_file::encode(&without_subnormals(actor), spaces, &[])?, spaces, config)
}

/// Weights below the smallest normal number as zeros: arithmetic with them can take a hundred times as long.
///
/// Done to the numbers because the processor's own switch (FTZ, DAZ) may not be changed from Rust.
fn without_subnormals(actor: &ActorWeights) -> Cow<'_, ActorWeights> {
    fn arrays(actor: &mut ActorWeights) -> impl Iterator<Item = &mut Vec<f32>> {
        let layers = actor.stack.layers.iter_mut().flat_map(|layer| {
            let norm = layer.layer_norm.iter_mut().flat_map(|(scale, shift)| [scale, shift]);
            [&mut layer.weight, &mut layer.bias].into_iter().chain(norm)
        });
        let encoders = actor.eyes.iter_mut().flat_map(|eyes| &mut eyes.encoders).flat_map(|encoder| {
            let convolutions = encoder.convolutions.iter_mut().flat_map(|c| [&mut c.weight, &mut c.bias]);
            convolutions.chain([&mut encoder.dense_weight, &mut encoder.dense_bias])
        });
        layers.chain(encoders)
    }
    let subnormal = |values: &[f32]| values.iter().any(|value| value.is_subnormal());
    let layers = actor.stack.layers.iter().any(|layer| layer_tensors(layer).any(|(_, values)| subnormal(values)));
    if !layers && !actor.eyes.iter().flat_map(|eyes| &eyes.encoders).flat_map(encoder_tensors).any(subnormal) {
        return Cow::Borrowed(actor);
    }
    let mut cleaned = actor.clone();
    arrays(&mut cleaned).flatten().filter(|value| value.is_subnormal()).for_each(|value| *value = 0.0);
    Cow::Owned(cleaned)
}

/// Prepares an exported policy, for example that of a bundle ([`super::Bundle::onnx`]).
///
/// # Errors
/// As [`prepare`], and when `bytes` is not an exported policy.
pub fn prepare_file(bytes: &[u8], spaces: &Spaces, config: &PolicyConfig) -> Result<Prepared, PolicyError> {
    let file = onnx_file::decode(bytes)?;
    names(&file.spaces, spaces)?;
    let mut native = NativePolicy::new(&file.actor)?;
    dimensions(&native, spaces)?;
    let inputs = Inputs::of(&native, WARM_UP_RUNS);
    let mut probe_difference = recorded(&mut native, &file.probe)?;
    responds(&mut native, &inputs)?;
    let (engine, mut backend, engine_difference): (_, Box<dyn PolicyBackend>, _) = if wants_onnxruntime(config)? {
        let mut ort = OrtPolicy::new(Runtime::load(&config.onnxruntime)?, bytes)?;
        dimensions(&ort, spaces)?;
        probe_difference = recorded(&mut ort, &file.probe)?;
        let difference = agree(&mut native, &mut ort, &inputs)?;
        (Engine::Onnxruntime, Box::new(ort), Some(difference))
    } else {
        (Engine::Builtin, Box::new(native), None)
    };
    let report = Report {
        engine: backend.engine(),
        base: None,
        members: file.actor.stack.members,
        observation_dim: backend.observation_dim(),
        action_dim: backend.action_dim(),
        frame: backend.frame(),
        probe_difference,
        engine_difference,
        run_time: warm_up(&mut *backend, &inputs)?,
    };
    Ok(Prepared { backend, engine, report })
}

fn wants_onnxruntime(config: &PolicyConfig) -> Result<bool, RuntimeError> {
    let named = !config.onnxruntime.as_os_str().is_empty();
    match config.engine {
        PolicyEngine::Builtin => Ok(false),
        PolicyEngine::Auto => Ok(named),
        PolicyEngine::Onnxruntime if named => Ok(true),
        PolicyEngine::Onnxruntime => Err(RuntimeError::NoPath),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::policy::checks::CheckError;
    use crate::policy::sample::{ensemble, normed, spaces};
    use crate::policy::structure::StructureError;

    #[test]
    fn good_weights_are_prepared_and_say_by_what() {
        let prepared = prepare(&ensemble(5, 3, &[16], 1).actor, &spaces(3, 1), &PolicyConfig::default()).unwrap();
        assert_eq!(prepared.engine, Engine::Builtin);
        assert_eq!(prepared.report.probe_difference, 0.0);
        assert!(prepared.report.to_string().starts_with("5 members, 3 -> 1, run by built-in"), "{}", prepared.report);
    }

    #[test]
    fn subnormal_weights_become_zero_and_others_stay_where_they_are() {
        let mut actor = ensemble(2, 3, &[8], 1).actor;
        normed(&mut actor);
        assert!(matches!(without_subnormals(&actor), Cow::Borrowed(_)));
        let (tiny, small) = (f32::MIN_POSITIVE / 2.0, -f32::MIN_POSITIVE);
        for place in 0..4 {
            let mut actor = actor.clone();
            let layer = &mut actor.stack.layers[0];
            let norm = layer.layer_norm.as_mut().unwrap();
            let values = [&mut layer.weight, &mut layer.bias, &mut norm.0, &mut norm.1];
            let values = values.into_iter().nth(place).unwrap();
            (values[0], values[1]) = (-tiny, small);
            let cleaned = without_subnormals(&actor).into_owned();
            let layer = &cleaned.stack.layers[0];
            let norm = layer.layer_norm.as_ref().unwrap();
            let values = [&layer.weight, &layer.bias, &norm.0, &norm.1][place];
            assert_eq!((values[0], values[1]), (0.0, small), "place {place}");
        }
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        let config = PolicyConfig::default();
        let good = ensemble(2, 3, &[8], 1).actor;
        let wrong_shape = prepare(&good, &spaces(4, 1), &config).err();
        assert!(matches!(wrong_shape, Some(PolicyError::Check(CheckError::Dimension { .. }))));
        let bytes = onnx_file::encode(&good, &spaces(3, 1), &[]).unwrap();
        let mut other_names = spaces(3, 1);
        other_names.action[0] = String::from("thrust");
        let wrong_name = prepare_file(&bytes, &other_names, &config).err();
        assert!(matches!(wrong_name, Some(PolicyError::Check(CheckError::Name { what: "action", .. }))));
        let mut nan = good.clone();
        nan.stack.layers[1].bias[0] = f32::NAN;
        let nan = prepare(&nan, &spaces(3, 1), &config).err();
        assert!(matches!(nan, Some(PolicyError::Structure(StructureError::NotFinite { .. }))));
        let truncated = prepare_file(&bytes[..bytes.len() - 1], &spaces(3, 1), &config).err();
        assert!(matches!(truncated, Some(PolicyError::Onnx(_))));
    }

    #[test]
    fn an_explicit_library_that_fails_is_an_error_not_a_fall_back() {
        let actor = ensemble(2, 3, &[8], 1).actor;
        for engine in [PolicyEngine::Auto, PolicyEngine::Onnxruntime] {
            let config =
                PolicyConfig { engine, onnxruntime: PathBuf::from("no/such/library.so"), ..PolicyConfig::default() };
            let error = prepare(&actor, &spaces(3, 1), &config).err().map(|e| e.to_string());
            assert!(error.as_deref().is_some_and(|e| e.contains("no/such/library.so")), "{error:?}");
        }
        let config = PolicyConfig { engine: PolicyEngine::Onnxruntime, ..PolicyConfig::default() };
        assert!(matches!(
            prepare(&actor, &spaces(3, 1), &config).err(),
            Some(PolicyError::Runtime(RuntimeError::NoPath))
        ));
    }
}
