//! The error of the policy module. The first five variants are built on the control thread, without the heap.

use super::bundle::BundleError;
use super::checks::CheckError;
use super::foreign::ForeignError;
use super::import::ImportError;
use super::onnx_file::OnnxError;
use super::onnxruntime::RuntimeError;
use super::residual::ResidualError;
use super::structure::StructureError;
use super::weights_file::WeightsFileError;

/// Why a policy cannot be built, loaded, offered or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// An observation of the wrong length.
    #[error("the policy takes observations of {expected} numbers, this one has {got}")]
    ObservationLength {
        /// What the policy takes.
        expected: usize,
        /// What it was given.
        got: usize,
    },
    /// NaN or infinity in an observation.
    #[error("entry {index} of the observation is not a finite number")]
    ObservationNotFinite {
        /// Position in the observation.
        index: usize,
    },
    /// An image of the wrong size, or none.
    #[error("the policy looks at images of {expected} bytes, this one has {got}; is [camera] configured?")]
    ImageLength {
        /// What the policy looks at.
        expected: usize,
        /// What it was given.
        got: usize,
    },
    /// NaN or infinity in an output.
    #[error("entry {index} of the policy's {output} is not a finite number; do not act on it")]
    OutputNotFinite {
        /// `mean` or `std`.
        output: &'static str,
        /// Position in the output.
        index: usize,
    },
    /// ONNX Runtime refused to run. The message is cut to what fits without the heap.
    #[error("ONNX Runtime failed with code {code}: {message}")]
    Run {
        /// Error code of ONNX Runtime.
        code: i32,
        /// Its message.
        message: heapless::String<80>,
    },
    /// Weights that are not an ensemble of networks.
    #[error(transparent)]
    Structure(#[from] StructureError),
    /// An ONNX file.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A weights file.
    #[error(transparent)]
    Weights(#[from] WeightsFileError),
    /// A bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The ONNX Runtime library or a session in it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A check before the policy is offered.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// An ONNX actor of others.
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    /// A residual and its base.
    #[error(transparent)]
    Residual(#[from] ResidualError),
    /// A checkpoint of others.
    #[error(transparent)]
    Import(#[from] ImportError),
}
