//! The kinds of checkpoints that are imported, how they are told apart, and what is common to them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::import::{ImportError, import_off2onrl, read};
use super::import_layers::{StateScaling, append, fold_action, fold_state};
use super::structure::check_ensemble;
use super::weights_file::{self, WeightsFileError};
use super::{import_corl, import_d3rlpy, import_sb3, stored_zip};
use crate::nn::weights::EnsembleWeights;

/// Where a checkpoint comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Folder of the Off2OnRL release.
    Off2onrl,
    /// CQL or Cal-QL of CORL: zip `.pt` of `trainer.state_dict()`.
    Corl,
    /// d3rlpy: `.d3`, or `.pt` of `save_model`.
    D3rlpy,
    /// SAC of Stable-Baselines3: `.zip` of `model.save`.
    Sb3,
    /// SAC of LeRobot: safetensors.
    Lerobot,
    /// `weights.safetensors` of a bundle, or of a tool that writes the same (`tools/orbax_to_weights.py`).
    Weights,
    /// An ONNX actor.
    Onnx,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off2onrl => "the agents published with Off2OnRL",
            Self::Corl => "a CORL checkpoint",
            Self::D3rlpy => "a d3rlpy checkpoint",
            Self::Sb3 => "a Stable-Baselines3 SAC model",
            Self::Lerobot => "a LeRobot SAC checkpoint",
            Self::Weights => "a file of weights in the layout of a bundle",
            Self::Onnx => "an ONNX actor",
        })
    }
}

/// What a user says because a file cannot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// How observations were scaled before the network.
    pub state: Option<StateScaling>,
    /// Observations were not scaled.
    pub raw_state: bool,
    /// The actor's tanh was multiplied by this before the environment and the critics saw it.
    pub action_scale: Option<f64>,
    /// d3rlpy's `params.json`.
    pub params: Option<Vec<u8>>,
}

/// An imported checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// Its networks, all scaling folded in.
    pub weights: EnsembleWeights,
    /// How it was trained.
    pub algorithm: String,
    /// gamma, where the file says it.
    pub discount: Option<f64>,
    /// What else the file says.
    pub facts: BTreeMap<String, String>,
}

/// Tells the kind of a checkpoint from its content.
///
/// # Errors
/// When it cannot be read or is of no known kind.
pub fn detect(path: &Path) -> Result<Kind, ImportError> {
    let unknown = || ImportError::UnknownKind { path: path.to_path_buf() };
    if path.is_dir() {
        return if path.join("model.safetensors").is_file() { Ok(Kind::Lerobot) } else { Ok(Kind::Off2onrl) };
    }
    let bytes = read(path)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if bytes.starts_with(b"PK") {
        let file = |source: stored_zip::ZipError| ImportError::File { path: path.to_path_buf(), source: source.into() };
        if stored_zip::entries(&bytes).map_err(file)?.contains_key("policy.pth") {
            return Ok(Kind::Sb3);
        }
        let tensors = super::import::read_torch(path, &bytes)?;
        let has = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
        return match (has("actor/base_network."), has("policy/_encoder.")) {
            (true, _) => Ok(Kind::Corl),
            (_, true) => Ok(Kind::D3rlpy),
            _ => Err(unknown()),
        };
    }
    match extension {
        "d3" => Ok(Kind::D3rlpy),
        "onnx" => Ok(Kind::Onnx),
        "safetensors" if weights_file::decode(&bytes).is_ok() => Ok(Kind::Weights),
        "safetensors" => Ok(Kind::Lerobot),
        _ => Err(unknown()),
    }
}

/// Imports one checkpoint per member, all of one kind and shape, or the folder of Off2OnRL. Nothing in the files is
/// executed.
///
/// # Errors
/// When a file is not what it should be, does not say what was not given either, or the members do not fit together.
pub fn import(kind: Kind, paths: &[&Path], given: &Given) -> Result<Imported, ImportError> {
    let mut all = Imported::default();
    let mut temperatures = Vec::new();
    for (member, path) in paths.iter().enumerate() {
        let one = import_one(kind, path, given)?;
        temperatures.extend(one.weights.log_alpha);
        if member == 0 {
            all = one;
            continue;
        }
        if one.discount != all.discount {
            let (path, found) = (path.to_path_buf(), format!("{:?}", one.discount));
            let reason = "the members of one ensemble share it";
            return Err(ImportError::Unsupported { path, what: "gamma", found, reason });
        }
        append(&mut all.weights.actor.stack, one.weights.actor.stack, path)?;
        append(&mut all.weights.critic1, one.weights.critic1, path)?;
        append(&mut all.weights.critic2, one.weights.critic2, path)?;
        if let (Some((one1, one2)), Some((all1, all2))) = (one.weights.targets, &mut all.weights.targets) {
            append(all1, one1, path)?;
            append(all2, one2, path)?;
        }
    }
    // An ensemble has one temperature: the middle of its members', on the scale they learn it.
    let all_say = !temperatures.is_empty() && temperatures.len() == paths.len();
    all.weights.log_alpha = all_say.then(|| temperatures.iter().sum::<f32>() / temperatures.len() as f32);
    check_ensemble(&all.weights)?;
    Ok(all)
}

fn import_one(kind: Kind, path: &Path, given: &Given) -> Result<Imported, ImportError> {
    let said = |what, reason| Err(ImportError::Said { path: path.to_path_buf(), what, reason });
    if given.action_scale.is_some() && kind != Kind::Corl {
        return said("an action scale", "its critics see actions in [-1, 1]");
    }
    if given.params.is_some() && kind != Kind::D3rlpy {
        return said("params.json", "only d3rlpy writes one");
    }
    let mut imported = match kind {
        Kind::Off2onrl => {
            if given.state.is_some() || given.raw_state {
                return said("a state scaling", "the published agents take observations as they are");
            }
            let algorithm = String::from("CQL, as published with Off2OnRL");
            return Ok(Imported { weights: import_off2onrl(path)?, algorithm, ..Imported::default() });
        }
        Kind::Corl => {
            let mut imported = import_corl::read(path)?;
            let unsaid = || ImportError::Unsaid {
                path: path.to_path_buf(),
                what: "by how much actions were multiplied (max_action)",
                flag: "--action-scale, 1 for D4RL locomotion",
            };
            let scale = given.action_scale.filter(|s| s.is_finite() && *s > 0.0).ok_or_else(unsaid)?;
            fold_action(&mut imported.weights, scale);
            imported.facts.insert("action scale".into(), scale.to_string());
            imported
        }
        Kind::D3rlpy => {
            let (imported, scaling) = import_d3rlpy::read(path, given.params.as_deref())?;
            if given.state.is_some() || given.raw_state {
                return said("a state scaling", "its settings name the observation scaler");
            }
            return folded(path, imported, scaling.as_ref());
        }
        Kind::Sb3 => import_sb3::read(path)?,
        Kind::Weights => {
            let settings =
                |e: WeightsFileError| ImportError::Settings { path: path.to_path_buf(), reason: e.to_string() };
            let weights = weights_file::decode(&read(path)?).map_err(settings)?;
            Imported { weights, algorithm: String::from("not said by a file of weights"), ..Imported::default() }
        }
        Kind::Lerobot => {
            return Err(ImportError::Unsupported {
                path: path.to_path_buf(),
                what: "its network",
                found: String::from("made of SiLU behind layer norm"),
                reason: "networks here have ReLU; export the actor to ONNX and import that (docs/importing.md)",
            });
        }
        Kind::Onnx => {
            return said("an ONNX file among checkpoints", "it becomes a bundle of its own kind");
        }
    };
    match (&given.state, given.raw_state) {
        (Some(scaling), false) => {
            imported.facts.insert("state scaling".into(), "given by the user, folded into the first layers".into());
            folded(path, imported, Some(scaling))
        }
        (None, true) => folded(path, imported, None),
        (Some(_), true) => said("a state scaling together with --raw-state", "one excludes the other"),
        (None, false) => Err(ImportError::Unsaid {
            path: path.to_path_buf(),
            what: "how observations were normalised",
            flag: "--state-mean and --state-std, or --raw-state if they were not",
        }),
    }
}

fn folded(path: &Path, mut imported: Imported, by: Option<&StateScaling>) -> Result<Imported, ImportError> {
    if let Some(by) = by {
        fold_state(path, &mut imported.weights, by)?;
    }
    Ok(imported)
}
