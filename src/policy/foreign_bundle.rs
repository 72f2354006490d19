//! Bundles of ONNX actors of others: the file as it is, a manifest, and golden answers; no weights to learn from.
//!
//! The layout is in `docs/policy-bundle.md`. Such a bundle is run by ONNX Runtime alone. Reading checks everything that
//! can be checked without it; [`ForeignBundle::prepare`] then checks the golden answers, fit and response, as
//! [`super::prepare_file`] does for an ensemble. [`AnyBundle`] reads either kind.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::bundle::{self, BundleError, GOLDEN, MANIFEST, POLICY, save_folder};
use super::checks::{Inputs, TOLERANCE, dimensions, names, responds, warm_up};
use super::foreign::{self, ForeignError, ForeignPolicy, Interface};
use super::golden::{self, GoldenError};
use super::manifest::{self, FORMAT, FileEntry, ManifestError, Residual, check_common, sealed, sha256, unsealed};
use super::noise::WithNoise;
use super::onnxruntime::Runtime;
use super::prepare::{Engine, Prepared, Report, WARM_UP_RUNS, prepare};
use super::{Bundle, PolicyBackend, PolicyError, residual};
use crate::config::{PolicyConfig, PolicyEngine};
use crate::nn::weights::ActorWeights;
use crate::spaces::Spaces;

/// What the maker of a bundle says about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignDescription {
    /// Name for people.
    pub name: String,
    /// Control steps per second the actor was trained for.
    pub control_hz: f64,
    /// Names of observation and action entries, in order.
    pub spaces: Spaces,
    /// Where it comes from.
    #[serde(default)]
    pub provenance: BTreeMap<String, String>,
}

/// The manifest without its seal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignManifest {
    /// Version of the bundle format.
    pub format: u32,
    /// What the maker says.
    pub description: ForeignDescription,
    /// Which input and output are observation and action.
    pub foreign: Interface,
    /// Every other file of the bundle.
    pub files: BTreeMap<String, FileEntry>,
}

impl ForeignManifest {
    fn check(&self) -> Result<(), ManifestError> {
        let ForeignDescription { name, control_hz, spaces, .. } = &self.description;
        check_common(self.format, name, *control_hz, spaces)
    }
}

/// A bundle of an ONNX actor of others.
#[derive(Clone, Debug, PartialEq)]
pub struct ForeignBundle {
    manifest: ForeignManifest,
    onnx: Vec<u8>,
    golden: Golden,
}

/// Observations, and the actions the graph gave when its bundle was made.
#[derive(Clone, Debug, PartialEq)]
struct Golden {
    /// `(K, O)`.
    observations: Vec<f32>,
    /// `(K, A)`.
    actions: Vec<f32>,
}

impl ForeignBundle {
    /// Makes a bundle from an ONNX file and runs it once to know its answers. `output` names the action where the
    /// file has several outputs.
    ///
    /// # Errors
    /// When the file is no actor, does not fit the spaces, ignores its input, or ONNX Runtime refuses it.
    pub fn new(
        description: ForeignDescription,
        onnx: Vec<u8>,
        output: Option<&str>,
        runtime: &'static Runtime,
    ) -> Result<Self, PolicyError> {
        let interface = foreign::inspect(&onnx, output)?.interface;
        let mut policy = ForeignPolicy::new(runtime, &onnx, &interface)?;
        dimensions(&policy, &description.spaces)?;
        let inputs = Inputs::of(&policy, golden::ROWS);
        let mut actions = Vec::new();
        for (row, _) in inputs.iter() {
            actions.extend(policy.action(row)?);
        }
        responds(&mut policy, &inputs)?;
        let golden = Golden { observations: inputs.observations, actions };
        let entry = |bytes: &[u8]| FileEntry { size: bytes.len() as u64, sha256: sha256(bytes) };
        let answers = golden.encode(&interface).map_err(BundleError::from)?;
        let files = [(POLICY.to_owned(), entry(&onnx)), (GOLDEN.to_owned(), entry(&answers))].into();
        let manifest = ForeignManifest { format: FORMAT, description, foreign: interface, files };
        manifest.check().map_err(BundleError::from)?;
        Ok(Self { manifest, onnx, golden })
    }

    /// Reads a folder and verifies what can be verified without ONNX Runtime.
    ///
    /// # Errors
    /// With the file and the reason, at the first thing that is wrong.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let text = bundle::read(&dir.join(MANIFEST), MANIFEST, manifest::MAX_BYTES, None)?;
        let text = String::from_utf8_lossy(&text);
        let manifest: ForeignManifest = unsealed(&text)
            .and_then(|body| Ok(toml::from_str(body)?))
            .and_then(|m: ForeignManifest| m.check().map(|()| m))
            .map_err(BundleError::from)?;
        if !manifest.files.keys().map(String::as_str).eq([GOLDEN, POLICY]) {
            return Err(BundleError::Files { got: manifest.files.keys().take(8).cloned().collect() }.into());
        }
        let file = |name, limit| bundle::read(&dir.join(name), name, limit, manifest.files.get(name));
        let onnx = file(POLICY, foreign::MAX_BYTES)?;
        let interface = foreign::inspect(&onnx, Some(&manifest.foreign.output))?.interface;
        let differ = |part, other| BundleError::Contradiction { part, one: MANIFEST, other };
        if interface != manifest.foreign {
            return Err(differ("inputs and outputs", POLICY).into());
        }
        let spaces = &manifest.description.spaces;
        if (spaces.observation_dim(), spaces.action_dim()) != (interface.observation_dim, interface.action_dim) {
            return Err(differ("the lengths of observation and action", POLICY).into());
        }
        let answers = file(GOLDEN, golden::MAX_BYTES)?;
        let golden = Golden::decode(&answers, &interface).map_err(BundleError::from)?;
        Ok(Self { manifest, onnx, golden })
    }

    /// Writes the bundle as folder `dir`, all or nothing, as [`Bundle::save`] does.
    ///
    /// # Errors
    /// When the disk says no, or `dir` holds anything but a bundle.
    pub fn save(&self, dir: &Path) -> Result<(), PolicyError> {
        let text = sealed(&self.manifest).map_err(BundleError::from)?;
        let answers = self.golden.encode(&self.manifest.foreign).map_err(BundleError::from)?;
        save_folder(dir, &[(POLICY, self.onnx.clone()), (GOLDEN, answers), (MANIFEST, text.into_bytes())])
    }

    /// The manifest.
    pub fn manifest(&self) -> &ForeignManifest {
        &self.manifest
    }

    /// The ONNX file.
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// From the bundle to a policy that may be offered: session, fit, golden answers, response, warm-up.
    ///
    /// # Errors
    /// When the configuration names no ONNX Runtime, or a check fails.
    pub fn prepare(&self, spaces: &Spaces, config: &PolicyConfig) -> Result<Prepared, PolicyError> {
        if config.engine == PolicyEngine::Builtin || config.onnxruntime.as_os_str().is_empty() {
            return Err(ForeignError::NeedsRuntime.into());
        }
        names(&self.manifest.description.spaces, spaces)?;
        let interface = &self.manifest.foreign;
        let mut policy = ForeignPolicy::new(Runtime::load(&config.onnxruntime)?, &self.onnx, interface)?;
        dimensions(&policy, spaces)?;
        let probe_difference = self.golden.check(&mut policy, interface)?;
        let inputs = Inputs::of(&policy, WARM_UP_RUNS);
        responds(&mut policy, &inputs)?;
        let report = Report {
            engine: policy.engine(),
            base: None,
            members: 1,
            observation_dim: interface.observation_dim,
            action_dim: interface.action_dim,
            probe_difference,
            frame: None,
            engine_difference: None,
            run_time: warm_up(&mut policy, &inputs)?,
        };
        Ok(Prepared { backend: Box::new(policy), engine: Engine::Onnxruntime, report })
    }
}

impl Golden {
    /// The graph still answers as recorded. Returns the largest difference.
    fn check(&self, policy: &mut ForeignPolicy, interface: &Interface) -> Result<f32, PolicyError> {
        let actions = self.actions.chunks_exact(interface.action_dim);
        let mut largest = 0.0_f32;
        for (observation, recorded) in self.observations.chunks_exact(interface.observation_dim).zip(actions) {
            for (index, (&expected, &got)) in recorded.iter().zip(policy.action(observation)?).enumerate() {
                let difference = (expected - got).abs();
                // NaN is close to nothing.
                if difference.is_nan() || difference > TOLERANCE * expected.abs().max(1.0) {
                    return Err(ForeignError::Recorded { index, expected, got }.into());
                }
                largest = largest.max(difference);
            }
        }
        Ok(largest)
    }

    fn encode(&self, interface: &Interface) -> Result<Vec<u8>, GoldenError> {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (observations, actions) = (bytes(&self.observations), bytes(&self.actions));
        let rows = self.observations.len() / interface.observation_dim;
        let view = |width, data| TensorView::new(Dtype::F32, vec![rows, width], data);
        let tensors = [
            ("observations", view(interface.observation_dim, &observations)?),
            ("actions", view(interface.action_dim, &actions)?),
        ];
        Ok(serialize(tensors, None)?)
    }

    fn decode(bytes: &[u8], interface: &Interface) -> Result<Self, GoldenError> {
        let file = SafeTensors::deserialize(bytes)?;
        let (observation_dim, action_dim) = (interface.observation_dim, interface.action_dim);
        let rows = file.tensor("observations")?.shape().first().copied().unwrap_or(0);
        let read = |name, width| -> Result<Vec<f32>, GoldenError> {
            let view = file.tensor(name)?;
            if view.dtype() != Dtype::F32 || view.shape() != [rows, width] || rows == 0 || file.len() != 2 {
                return Err(GoldenError::Shape { observation_dim, action_dim });
            }
            Ok(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        Ok(Self { observations: read("observations", observation_dim)?, actions: read("actions", action_dim)? })
    }
}

/// A bundle of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyBundle {
    /// An ensemble with its weights.
    Ensemble(Box<Bundle>),
    /// An ONNX actor of others.
    Foreign(Box<ForeignBundle>),
}

/// What a control loop can be given.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// An ensemble of actors, and on what it stands if it is a residual.
    Ensemble(&'a ActorWeights, Option<&'a Residual>),
    /// An ONNX actor of others.
    Foreign(&'a ForeignBundle),
}

impl AnyBundle {
    /// Reads a folder of either kind and verifies everything in it.
    ///
    /// # Errors
    /// As [`Bundle::load`] and [`ForeignBundle::load`].
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        /// The one key that tells the kinds apart.
        #[derive(Deserialize)]
        struct Kind {
            foreign: Option<toml::Value>,
        }
        let text = bundle::read(&dir.join(MANIFEST), MANIFEST, manifest::MAX_BYTES, None)?;
        match toml::from_str(&String::from_utf8_lossy(&text)) {
            Ok(Kind { foreign: Some(_) }) => Ok(Self::Foreign(Box::new(ForeignBundle::load(dir)?))),
            _ => Ok(Self::Ensemble(Box::new(Bundle::load(dir)?))),
        }
    }

    /// Names of observation and action entries.
    pub fn spaces(&self) -> &Spaces {
        match self {
            Self::Ensemble(bundle) => &bundle.manifest().description.spaces,
            Self::Foreign(bundle) => &bundle.manifest().description.spaces,
        }
    }

    /// On what the ensemble stands, if it is a residual.
    pub fn residual(&self) -> Option<&Residual> {
        match self {
            Self::Ensemble(bundle) => bundle.manifest().description.residual.as_ref(),
            Self::Foreign(_) => None,
        }
    }

    /// SHA-256 of `policy.onnx`, hexadecimal: what a residual knows its base by.
    pub fn policy_sha256(&self) -> &str {
        let files = match self {
            Self::Ensemble(bundle) => &bundle.manifest().files,
            Self::Foreign(bundle) => &bundle.manifest().files,
        };
        files.get(POLICY).map_or("", |entry| &entry.sha256)
    }

    /// The policy in it.
    pub fn source(&self) -> Source<'_> {
        match self {
            Self::Ensemble(bundle) => Source::Ensemble(&bundle.weights().actor, self.residual()),
            Self::Foreign(bundle) => Source::Foreign(bundle),
        }
    }

    /// The ensemble in it.
    ///
    /// # Errors
    /// [`BundleError::Foreign`] when there is none.
    pub fn ensemble(&self) -> Result<&Bundle, BundleError> {
        match self {
            Self::Ensemble(bundle) => Ok(bundle),
            Self::Foreign(_) => Err(BundleError::Foreign),
        }
    }
}

impl Source<'_> {
    /// Checks and warms up, as [`prepare`] and [`ForeignBundle::prepare`] do.
    ///
    /// # Errors
    /// As those; for a residual also when its base is not there or another one.
    pub fn prepare(self, spaces: &Spaces, config: &PolicyConfig) -> Result<Prepared, PolicyError> {
        let mut prepared = match self {
            Self::Ensemble(actor, None) => prepare(actor, spaces, config),
            Self::Ensemble(actor, Some(on)) => residual::prepare(prepare(actor, spaces, config)?, on, spaces, config),
            Self::Foreign(bundle) => bundle.prepare(spaces, config),
        }?;
        if config.action_noise > 0.0 {
            prepared.backend = Box::new(WithNoise { policy: prepared.backend, std: config.action_noise });
        }
        Ok(prepared)
    }
}
