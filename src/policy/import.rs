//! Importers of pretrained ensembles made by others.
//!
//! What a file cannot say (names, rate, discount) is the caller's to say in the bundle's description; nothing is
//! guessed. Runs in commands.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::structure::{StructureError, check_ensemble};
use super::torch_legacy::{self, Tensor, TorchError};
use crate::nn::weights::{ActorWeights, EnsembleWeights, LayerWeights, LogStdBounds, StackWeights};

/// The clamp of the log standard deviation while the agents of Off2OnRL were trained (CQL). Fine-tuning and acting
/// use the wider default of [`LogStdBounds`], as the published code does.
pub const OFF2ONRL_TRAINING_LOG_STD: LogStdBounds = LogStdBounds { min: -5.0, max: 2.0 };

/// Why a checkpoint cannot be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The operating system says no.
    #[error("read {path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No agents.
    #[error("{path} has no folder seed<number> with actor.pt, critic1.pt and critic2.pt")]
    NoMembers {
        /// Which folder.
        path: PathBuf,
    },
    /// A file that is not what it should be.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: TorchError,
    },
    /// A tensor that must be there, or has another shape.
    #[error("{path}: tensor `{name}` is {found}, expected shape {expected:?}")]
    Tensor {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// What was found.
        found: String,
        /// `[outputs, inputs]` or `[outputs]`; 0 where any size will do.
        expected: Vec<usize>,
    },
    /// A tensor that has no place in the network.
    #[error("{path}: tensor `{name}` does not belong to such a network")]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
    },
    /// A member of another shape than the first.
    #[error("{path}: layer {layer} is {got}, that of the first member is {expected}")]
    Member {
        /// Which file.
        path: PathBuf,
        /// Layer from 0.
        layer: usize,
        /// `inputs x outputs` of the first member.
        expected: String,
        /// `inputs x outputs` here.
        got: String,
    },
    /// The files are no ensemble.
    #[error("the imported files are no ensemble: {0}")]
    Structure(#[from] StructureError),
}

/// Imports the agents of the Off2OnRL release: `dir/seed<number>/{actor,critic1,critic2}.pt`, members in the order of
/// their numbers. Targets and temperature are not in the files and start anew.
///
/// # Errors
/// When a file is missing, is not what it should be, or the members differ in shape.
pub fn import_off2onrl(dir: &Path) -> Result<EnsembleWeights, ImportError> {
    let members = member_folders(dir)?;
    let stack = |file: &str, heads: &[&str]| {
        let mut stack = StackWeights::default();
        for member in &members {
            add_member(&mut stack, &member.join(file), heads)?;
        }
        Ok::<_, ImportError>(stack)
    };
    let weights = EnsembleWeights {
        actor: ActorWeights {
            stack: stack("actor.pt", &["last_fc", "last_fc_log_std"])?,
            log_std: LogStdBounds::default(),
        },
        critic1: stack("critic1.pt", &["last_fc"])?,
        critic2: stack("critic2.pt", &["last_fc"])?,
        targets: None,
        log_alpha: None,
    };
    check_ensemble(&weights)?;
    Ok(weights)
}

/// `seed<number>` folders by number.
fn member_folders(dir: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let io = |source| ImportError::Io { path: dir.to_path_buf(), source };
    let mut members = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if let Some(seed) = name.and_then(|n| n.strip_prefix("seed")).and_then(|n| n.parse::<u64>().ok()) {
            members.insert(seed, path);
        }
    }
    if members.is_empty() {
        return Err(ImportError::NoMembers { path: dir.to_path_buf() });
    }
    Ok(members.into_values().collect())
}

/// Reads `fc0, fc1, ...` and the heads, which become one layer side by side, and appends them to the stack.
fn add_member(stack: &mut StackWeights, path: &Path, heads: &[&str]) -> Result<(), ImportError> {
    let mut file = TorchFile::open(path)?;
    let mut layers = Vec::new();
    for index in 0.. {
        let name = format!("fc{index}");
        if !file.tensors.contains_key(&format!("{name}.weight")) {
            break;
        }
        layers.push(file.layer(&[&name])?);
    }
    layers.push(file.layer(heads)?);
    if let Some(name) = file.tensors.into_keys().next() {
        return Err(ImportError::Unknown { path: path.to_path_buf(), name });
    }
    if stack.members == 0 {
        stack.layers = layers;
    } else {
        let shape =
            |l: Option<&LayerWeights>| l.map_or(String::from("absent"), |l| format!("{} x {}", l.inputs, l.outputs));
        for layer in 0..layers.len().max(stack.layers.len()) {
            let (expected, got) = (shape(stack.layers.get(layer)), shape(layers.get(layer)));
            if expected != got {
                return Err(ImportError::Member { path: path.to_path_buf(), layer, expected, got });
            }
        }
        for (all, new) in stack.layers.iter_mut().zip(layers) {
            all.weight.extend(new.weight);
            all.bias.extend(new.bias);
        }
    }
    stack.members += 1;
    Ok(())
}

struct TorchFile<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> TorchFile<'a> {
    fn open(path: &'a Path) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { path: path.to_path_buf(), source };
        let file = |source| ImportError::File { path: path.to_path_buf(), source };
        let length = fs::metadata(path).map_err(io)?.len();
        if length > torch_legacy::MAX_BYTES as u64 {
            return Err(file(TorchError::TooLarge { bytes: length as usize }));
        }
        let tensors = torch_legacy::read(&fs::read(path).map_err(io)?).map_err(file)?;
        Ok(Self { path, tensors })
    }

    /// One layer whose outputs are those of the named ones side by side. PyTorch keeps `(outputs, inputs)`.
    fn layer(&mut self, names: &[&str]) -> Result<LayerWeights, ImportError> {
        let mut parts = Vec::new();
        let mut layer = LayerWeights::default();
        for name in names {
            let weight = self.tensor(&format!("{name}.weight"), &[0, layer.inputs])?;
            layer.inputs = weight.shape[1];
            layer.bias.extend(self.tensor(&format!("{name}.bias"), &[weight.shape[0]])?.data);
            parts.push(weight);
        }
        layer.outputs = layer.bias.len();
        for row in 0..layer.inputs {
            let column = |part: &Tensor| part.data.iter().skip(row).step_by(part.shape[1]).copied().collect::<Vec<_>>();
            layer.weight.extend(parts.iter().flat_map(column));
        }
        Ok(layer)
    }

    /// Takes a tensor out; 0 in `expected` stands for any size but 0.
    fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<Tensor, ImportError> {
        let tensor = self.tensors.remove(name);
        let found = tensor.as_ref().map_or_else(|| String::from("absent"), |t| format!("{:?}", t.shape));
        let fits = |shape: &[usize]| {
            shape.len() == expected.len() && shape.iter().zip(expected).all(|(s, e)| *s > 0 && (*e == 0 || s == e))
        };
        tensor.filter(|t| fits(&t.shape)).ok_or_else(|| ImportError::Tensor {
            path: self.path.to_path_buf(),
            name: name.to_owned(),
            found,
            expected: expected.to_vec(),
        })
    }
}
