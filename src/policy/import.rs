//! Importers of pretrained ensembles made by others.
//!
//! What a file cannot say (names, rate, discount) is the caller's to say in the bundle's description; nothing is
//! guessed. Runs in commands.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use super::import_kind::{Given, Imported, Kind, detect, import};
pub use super::import_layers::StateScaling;
use super::import_layers::{Named, append};
use super::structure::{StructureError, check_ensemble};
use super::torch_legacy::{self, Tensor, TorchError};
use super::torch_zip;
use crate::nn::weights::{ActorWeights, EnsembleWeights, LogStdBounds, StackWeights};

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
    /// Mean and standard deviation of another length than the observation, or out of range.
    #[error("{path}: the state {what} has {got} numbers; needed are {expected}, finite, a standard deviation above 0")]
    StateScaling {
        /// Which source.
        path: PathBuf,
        /// `mean` or `std`.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The observation's.
        expected: usize,
    },
    /// Something the file does not say.
    #[error("{path}: the file does not say {what}; give {flag}")]
    Unsaid {
        /// Which source.
        path: PathBuf,
        /// What is needed.
        what: &'static str,
        /// How to say it.
        flag: &'static str,
    },
    /// Something that was said although the file says it itself, or has no such thing.
    #[error("{path}: {what} is not to be given for this kind of file: {reason}")]
    Said {
        /// Which source.
        path: PathBuf,
        /// What was given.
        what: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A network or a training that cannot be continued here.
    #[error("{path}: {what} is {found}; {reason}")]
    Unsupported {
        /// Which source.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        reason: &'static str,
    },
    /// A file of no known kind.
    #[error("{path} is of no kind that is imported (see docs/importing.md); --kind names one")]
    UnknownKind {
        /// Which file.
        path: PathBuf,
    },
    /// Settings beside the tensors that cannot be read.
    #[error("{path}: its settings cannot be read: {reason}")]
    Settings {
        /// Which source.
        path: PathBuf,
        /// What is wrong.
        reason: String,
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
            eyes: None,
        },
        critic1: stack("critic1.pt", &["last_fc"])?,
        critic2: stack("critic2.pt", &["last_fc"])?,
        targets: None,
        log_alpha: None,
        encoder: None,
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
    let mut file = Named { path, tensors: read_torch(path, &read(path)?)? };
    let network = file.network(|index| format!("fc{index}"), heads)?;
    file.finish(&[])?;
    append(stack, network, path)
}

/// The tensors of a file of `torch.save`, of either format.
pub(super) fn read_torch(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, ImportError> {
    let tensors = if bytes.starts_with(b"PK") { torch_zip::read(bytes) } else { torch_legacy::read(bytes) };
    tensors.map_err(|source| ImportError::File { path: path.to_path_buf(), source })
}

/// A whole file, if it is not too long.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    let io = |source| ImportError::Io { path: path.to_path_buf(), source };
    let length = fs::metadata(path).map_err(io)?.len();
    if length > torch_legacy::MAX_BYTES as u64 {
        let source = TorchError::TooLarge { bytes: length as usize };
        return Err(ImportError::File { path: path.to_path_buf(), source });
    }
    fs::read(path).map_err(io)
}
