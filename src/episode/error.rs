//! Why a data set cannot be read or written.

use std::io;
use std::path::PathBuf;

use super::dataset::DatasetProblem;

/// A data set that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EpisodeError {
    /// The file.
    #[error("data set {}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An array.
    #[error("data set {}: array `{array}` {problem}", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        array: String,
        /// What is wrong with it.
        problem: ArrayProblem,
    },
    /// The arrays together.
    #[error("data set {}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: DatasetProblem,
    },
    /// A file that is not what its name or its folder promises.
    #[error("data set {}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something the file does not say, and that nobody may guess.
    #[error("data set {}: {what}; say it with {flag}", path.display())]
    Unsaid {
        /// The file.
        path: PathBuf,
        /// What it does not say.
        what: String,
        /// How to say it.
        flag: &'static str,
    },
    /// Something that was said although the file says it itself.
    #[error("data set {}: {flag} is not to be given: {reason}", path.display())]
    Said {
        /// The file.
        path: PathBuf,
        /// What was given.
        flag: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

/// What is wrong with one array.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayProblem {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// Its bytes cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// It does not hold numbers.
    #[error("has type {0}; it must hold numbers or booleans")]
    Type(String),
    /// Column-major.
    #[error("is in Fortran order; save it with numpy.ascontiguousarray")]
    Order,
    /// Not the number of axes or rows that belongs there.
    #[error("has shape {found:?}; expected {wanted}")]
    Shape {
        /// Its shape.
        found: Vec<u64>,
        /// What fits.
        wanted: &'static str,
    },
}
