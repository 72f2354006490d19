//! What can go wrong between robots and learner.

use std::path::PathBuf;

use super::wire::WireError;
use super::{EPISODE_BITS, MOST_SPOOLS};
use crate::replay::ReplayError;

/// Failure of a link, a spool or an intake.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The program was built without the feature.
    #[error("this build has no fleet: build with --features fleet (docs/fleet.md)")]
    NotBuilt,
    /// The way to the others cannot be opened.
    #[error("fleet: {what}: {reason}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// What zenoh says.
        reason: String,
    },
    /// Nobody answered in time.
    #[error("nobody answers for `{key}`")]
    Silent {
        /// The key that was asked.
        key: String,
    },
    /// The other side said no.
    #[error("the learner refuses: {0}")]
    Refused(String),
    /// A message that cannot be used.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The replay.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A file beside the replay.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why it cannot be used, and what to do.
        reason: String,
    },
    /// A robot with other observations or actions than the learner's.
    #[error("the robot's records are not of the learner's layout: compare robot.spaces of both configurations")]
    Layout,
    /// Camera frames.
    #[error("a replay with camera frames cannot be sent: a fleet carries records without frames")]
    Frames,
    /// No number left for another robot.
    #[error(
        "the learner's replay has seen {MOST_SPOOLS} robots, a robot with a new replay folder counted anew: begin a new run.directory"
    )]
    Spools,
    /// A robot's episode number is too large.
    #[error(
        "episode {episode} of the robot is beyond {most}: begin a new run.directory on the robot",
        most = (1u32 << EPISODE_BITS) - 1
    )]
    Episode {
        /// Its number.
        episode: u32,
    },
    /// A learner that keeps all has no room left.
    #[error(
        "the learner's replay is full and keeps all (replay.retention): raise replay.capacity in a new run.directory"
    )]
    Full,
}
