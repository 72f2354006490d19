//! The learner (layer 4): gradient updates on an ensemble of SAC agents beside a running robot.
//!
//! [`Schedule`] says how many updates are due, [`Learner`] makes one and saves or restores itself exactly,
//! [`pretrain`] makes a first ensemble out of recorded data. All of it is plain code on the caller's thread (the
//! runtime's learner thread); nothing here spawns, talks to a robot or knows what a policy is used for.
//!
//! Method: Off2OnRL (balanced replay and pessimistic Q-ensemble) as in its published code, and by independent switches
//! (`[learner]`, presets in `config/method`) WSRL, RLPD, Cal-QL and the baselines; equations are named at the functions
//! of [`crate::rl`].
//!
//! Invariants: equal seed, data, build and device give equal bytes for any number of threads; the replay is locked only
//! to draw and to write priorities.

mod actors;
mod advice;
mod batch;
pub mod checkpoint;
mod critics;
mod density;
mod device;
mod diagnosis;
mod eyes;
mod features;
mod memory;
mod metrics;
mod networks;
mod pace;
mod persist;
pub mod pretrain;
mod returns;
pub mod schedule;
mod start;
mod streams;
mod sweep;
mod tensors;
mod update;
mod witness;

pub use advice::{Advice, advise};
pub use batch::Dims;
pub use checkpoint::CheckpointError;
pub use device::{Chosen, choose, random_store};
pub use diagnosis::Diagnosis;
pub use memory::LearnerMemory;
pub use metrics::{DensityMetrics, Timings, UpdateMetrics};
pub use pace::{Heat, Pace};
pub use schedule::Schedule;
pub use streams::stream;
pub use update::Learner;

use crate::kernels::{NoDevice, out_of_memory};
use crate::policy::PolicyError;
use crate::replay::ReplayError;

/// Why the learner cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnerError {
    /// A network does not fit the robot or the other networks.
    #[error("`{network}` has {} members of widths {:?}, needed are {} of {:?}: choose a policy bundle with actors and critics that was made for this robot", found.0, found.1, wanted.0, wanted.1)]
    Shape {
        /// Which network.
        network: &'static str,
        /// Its members and the widths of its layers, input first.
        found: (usize, Vec<usize>),
        /// What is needed.
        wanted: (usize, Vec<usize>),
    },
    /// A network holds NaN or infinity.
    #[error("`{network}` holds a number that is not finite: the bundle is damaged or its training diverged")]
    NotANumber {
        /// Which network.
        network: &'static str,
    },
    /// A setting does not fit the networks.
    #[error("{key}: {reason}")]
    Setting {
        /// Which setting.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The machine has no room for the learner.
    #[error(
        "the learner needs {:.0} MB ({}) and {machine} has {:.0} MB available: lower learner.members, learner.batch_size or learner.critic_steps, or end what else runs there",
        mb(need.total()), need.parts(), mb(*available)
    )]
    NoMemory {
        /// What it needs.
        need: LearnerMemory,
        /// Bytes that there are.
        available: u64,
        /// The machine, in words.
        machine: String,
    },
    /// The configured device is not there.
    #[error("learner.device: {0}; \"cpu\" needs no GPU")]
    Device(NoDevice),
    /// A loss diverged. The networks are those from before the update.
    #[error(
        "update {update}: {quantity} is {value}: the learner stopped before the step; lower the learning rates or look for broken rewards and observations in the replay"
    )]
    NotFinite {
        /// Which number.
        quantity: &'static str,
        /// Its value.
        value: f32,
        /// Updates made before.
        update: u64,
    },
    /// A tensor operation failed.
    #[error("learner cannot {action}: {source}")]
    Tensor {
        /// What was tried.
        action: &'static str,
        /// The tensor library's answer.
        source: candle_core::Error,
    },
    /// The frozen policy below a residual failed on a row of the replay.
    #[error("the base of the residual fails on a recorded observation: {0}")]
    Base(#[source] PolicyError),
    /// The replay refused.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Millions of bytes.
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl LearnerError {
    /// Wraps a tensor error with what was tried; a GPU without memory needs other words.
    fn tensor(action: &'static str) -> impl FnOnce(candle_core::Error) -> Self {
        move |source| {
            if out_of_memory(&source) { Self::Device(NoDevice::Memory) } else { Self::Tensor { action, source } }
        }
    }
}
