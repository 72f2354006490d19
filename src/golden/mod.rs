//! Reference numbers against the production code (layer 4): `fieldtune check golden DIR`.
//!
//! A golden file holds inputs, settings and the results that a reference in double precision computed from them:
//! losses, gradients, priorities, policy moments, optimiser steps, encoder features. Every file is run through the
//! functions that the learner calls, in single precision on the chosen device, whatever its shapes, seeds and
//! ensemble sizes; everything it expects must be compared and agree. A file of an unknown schema or kind, or one that
//! expects something unknown, fails.
//!
//! Tolerance of each number, as stated beside the published files: `|got - want| <= R |want| + R/10 max(1, max|want|)`
//! with the maximum over the tensor; second moments of Adam purely relative. `R` is 1e-5 on the processor and 1e-4 on
//! a GPU.

mod case;
mod critics;
mod networks;
mod policies;

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;

use case::Case;

/// The schema that this program reads.
const SCHEMA: &str = "1";

type Result<T> = std::result::Result<T, GoldenError>;
type Run = fn(&mut Case) -> Result<()>;

/// What runs each kind of file.
const KINDS: &[(&str, Run)] = &[
    ("ensemble_policy", policies::ensemble_policy),
    ("sac_update", critics::sac_update),
    ("wsrl_temperature", policies::wsrl_temperature),
    ("cql_critic", critics::cql_critic),
    ("calql_critic", critics::cql_critic),
    ("density_ratio", networks::density_ratio),
    ("adam_polyak", networks::adam_polyak),
    ("awac_actor", policies::awac_actor),
    ("bc_actor", policies::bc_actor),
    ("conv_encoder", networks::conv_encoder),
];

/// Why a golden file could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// The folder cannot be listed.
    #[error("cannot read the folder {dir}: {source}")]
    Folder {
        /// Which.
        dir: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The folder holds no golden file.
    #[error("{0} holds no .safetensors file")]
    NoFiles(PathBuf),
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Unreadable(std::io::Error),
    /// It is no safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor of a type that golden files do not have.
    #[error("tensor `{name}` is {dtype}, want F32, F64, I64 or U8")]
    Type {
        /// Which.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A setting is absent, or has a value that this program does not know.
    #[error("setting `{key}` is {}", .value.as_ref().map_or("missing".into(), |v| format!("`{v}`, which is unknown")))]
    Setting {
        /// Which.
        key: &'static str,
        /// Its value, if there is one.
        value: Option<String>,
    },
    /// An input is absent.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Which.
        name: String,
    },
    /// An input has a shape that has no meaning.
    #[error("tensor `{name}` has shape {shape:?}")]
    Shape {
        /// Which.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The result has another shape than the file expects.
    #[error("`{name}` has shape {got:?}, the file expects {want:?}")]
    Expected {
        /// Which.
        name: String,
        /// Computed.
        got: Vec<usize>,
        /// In the file.
        want: Vec<usize>,
    },
    /// No gradient reached a variable.
    #[error("no gradient reached `{name}`")]
    NoGradient {
        /// Which.
        name: String,
    },
    /// The file expects what this program does not compute.
    #[error("never compared: {}", .0.join(", "))]
    NeverCompared(Vec<String>),
    /// The file expects nothing.
    #[error("it expects no result")]
    Empty,
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// The largest errors of one tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Quantity {
    /// Name in the file: `out.*` or `grad.*`.
    pub name: String,
    /// How many numbers it has.
    pub numbers: usize,
    /// `max |got - want|`.
    pub max_absolute: f64,
    /// `max |got - want| / |want|` where `want` is not 0.
    pub max_relative: f64,
    /// The largest error in terms of what is allowed; at most 1 passes.
    pub of_tolerance: f64,
    /// Whether it passed.
    pub passed: bool,
}

/// What one file gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseReport {
    /// Name of the file.
    pub file: String,
    /// `R` of the tolerance.
    pub tolerance: f64,
    /// Everything that was compared.
    pub quantities: Vec<Quantity>,
    /// Why the file could not be compared as a whole.
    pub failure: Option<String>,
}

impl CaseReport {
    /// Whether everything agreed.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.quantities.iter().all(|q| q.passed)
    }
}

/// Runs every golden file of a folder, in the order of their names.
///
/// # Errors
/// When the folder cannot be read or holds none. What is wrong with a file is in its report.
pub fn check_folder(dir: &Path, device: &Device) -> Result<Vec<CaseReport>> {
    let folder = |source| GoldenError::Folder { dir: dir.to_owned(), source };
    let entries: std::io::Result<Vec<PathBuf>> =
        std::fs::read_dir(dir).map_err(folder)?.map(|entry| entry.map(|e| e.path())).collect();
    let mut files = entries.map_err(folder)?;
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    if files.is_empty() {
        return Err(GoldenError::NoFiles(dir.to_owned()));
    }
    Ok(files.iter().map(|path| check_file(path, device)).collect())
}

/// Runs one golden file.
pub fn check_file(path: &Path, device: &Device) -> CaseReport {
    let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let tolerance = if device.is_cpu() { 1e-5 } else { 1e-4 };
    let (quantities, outcome) = match Case::open(path, device, tolerance) {
        Ok(mut case) => {
            let outcome = run(&mut case);
            (case.quantities, outcome)
        }
        Err(error) => (Vec::new(), Err(error)),
    };
    CaseReport { file, tolerance, quantities, failure: outcome.err().map(|error| error.to_string()) }
}

fn run(case: &mut Case) -> Result<()> {
    if case.text("schema")? != SCHEMA {
        return Err(GoldenError::Setting { key: "schema", value: case.text("schema").ok().map(Into::into) });
    }
    case.choice("kind", KINDS)?(case)?;
    case.finish()
}
