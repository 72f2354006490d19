//! Robots (layer 2): the [`Robot`] trait, robots behind a link, recorded ones, and a model in memory.
//!
//! A robot is observed and given actions; it does not decide, limit or record. The real one is
//! [`FirmwareRobot`]: it speaks `docs/firmware-protocol.md` over a [`link::Link`]. [`loopback`] is a
//! microcontroller in memory, [`PlaybackRobot`] repeats a recorded run.
//!
//! Invariants: a session arms once; after [`Robot::stop`] nothing moves before [`Robot::arm`]; a robot that is
//! dropped while armed is stopped. One thread owns a robot: it arms before the loop starts, and inside the loop
//! (the control thread) it calls only what is marked *real time*, which neither allocates nor logs.

mod datagram;
mod firmware;
pub mod link;
pub mod loopback;
mod playback;
mod serial;
mod time_sync;

use std::time::Duration;

use firmware_bridge::{Counters, DriveState, Faults, MAX_ACTION, MAX_OBSERVATION};
use rustix::io::Errno;

use crate::clock::Stamp;
use crate::config::LinkKind;

pub use firmware::FirmwareRobot;
pub use link::{Link, LinkCounters, LinkError, open};
pub use playback::PlaybackRobot;
pub use time_sync::{ClockEstimate, Exchange, TimeSync};

/// What a robot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RobotDescription {
    /// Length of an observation.
    pub observation_dim: usize,
    /// Length of an action.
    pub action_dim: usize,
    /// Time of one control step.
    pub control_period: Duration,
    /// Silence after which the robot stands still by itself.
    pub watchdog: Duration,
    /// Version of the firmware.
    pub firmware: u32,
    /// Differs after every start of the robot.
    pub boot_id: u32,
}

/// The newest state of a robot. Fixed size; the caller keeps one and has it filled again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Control periods since the episode's reset.
    pub tick: u32,
    /// Episode of the last reset.
    pub episode: u32,
    /// Frame number of the last command or reset that the robot has taken.
    pub ack: u16,
    /// When the robot sent the state, on the run's clock; when it arrived, while the robot's clock is not known.
    pub capture: Stamp,
    /// The same on the robot's own clock, microseconds modulo 2^32.
    pub robot_us: u32,
    /// State of the drive.
    pub drive: DriveState,
    /// Why the drive is in [`DriveState::Fault`].
    pub faults: Faults,
    /// The task has ended in this state.
    pub terminated: bool,
    /// Reward of the step from `tick - 1` to `tick`.
    pub reward: f32,
    /// Whether the robot computed `reward`.
    pub reward_valid: bool,
    /// States of this episode between the one taken before and this one: lost, or overtaken by this one.
    pub skipped: u32,
    /// What the robot has refused or missed since its start.
    pub counters: Counters,
    /// Action really applied from `tick - 1` to `tick`, `(action_dim)`, in `[-1, 1]`.
    pub applied: heapless::Vec<f32, MAX_ACTION>,
    /// Observation at `tick`, `(observation_dim)`.
    pub observation: heapless::Vec<f32, MAX_OBSERVATION>,
}

/// A robot as the control loop sees it.
///
/// Errors of the real-time calls hold no heap memory.
pub trait Robot: Send {
    /// What the robot said about itself when it was connected or armed.
    fn description(&self) -> &RobotDescription;

    /// Makes the robot listen to commands, out of a latched fault if need be. Blocks; not real time.
    ///
    /// # Errors
    /// When the robot does not answer in time or stays in fault.
    fn arm(&mut self) -> Result<(), RobotError>;

    /// Asks for the start state of `episode`; [`Robot::observe`] then delivers tick 0 of it. Real time.
    ///
    /// Send no action of the new episode before that.
    ///
    /// # Errors
    /// When the link fails.
    fn request_reset(&mut self, episode: u32, seed: u64) -> Result<(), RobotError>;

    /// Fills `into` with the newest state; `false` leaves it alone: nothing newer came. Real time.
    ///
    /// On the machine's clock this never waits, and the newest of several states wins. A robot that stands at a
    /// tick (before the first action, after the end) repeats its state: compare `tick`. In lockstep this waits
    /// for the state that answers the last action or reset; without one under way it returns `false`.
    ///
    /// # Errors
    /// When the link fails, the robot speaks of other dimensions, or (lockstep) no answer comes in time.
    fn observe(&mut self, into: &mut Observed) -> Result<bool, RobotError>;

    /// Sends an action, `(action_dim)` values in `[-1, 1]`. Real time.
    ///
    /// # Errors
    /// When the length is wrong or the link fails.
    fn apply(&mut self, action: &[f32]) -> Result<(), RobotError>;

    /// Emergency stop. Never waits, never fails. Real time.
    fn stop(&mut self);

    /// Orderly end: the robot stands still and is deaf to commands. Waits a moment for the robot to say so.
    fn disarm(&mut self);

    /// What came and went on the link. Real time.
    fn counters(&self) -> LinkCounters;

    /// The robot's clock against the run's, where it is known. Real time.
    fn clock_estimate(&self) -> Option<ClockEstimate> {
        None
    }
}

/// Why a robot cannot be used, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RobotError {
    /// The address in the configuration cannot be opened.
    #[error(
        "robot.address \"{address}\" ({kind:?} link) cannot be opened: {source}; is the robot on and the address right?"
    )]
    Open {
        /// Kind of the link.
        kind: LinkKind,
        /// Address from the configuration.
        address: String,
        /// Reason of the operating system.
        source: std::io::Error,
    },
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The robot said nothing that was waited for.
    #[error("the robot sent no {waiting_for} within {} ms; check its power, the link and robot.timeout_ms", waited.as_millis())]
    NoAnswer {
        /// Kind of frame.
        waiting_for: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// Names or order of observation and action entries differ.
    #[error(
        "robot.spaces has schema {ours:#018x}, the robot has {theirs:#018x} (the number of entries is the same): \
         names, units or order differ; compare the names in the configuration with those of the firmware"
    )]
    Schema {
        /// Hash of the configuration.
        ours: u64,
        /// Hash of the firmware.
        theirs: u64,
    },
    /// Lengths of observation or action differ.
    #[error(
        "robot.spaces has {} observation and {} action entries, the robot has {} and {}; \
         take the names of the firmware into the configuration",
        ours.0, ours.1, theirs.0, theirs.1
    )]
    Dimensions {
        /// Observation and action length of the configuration.
        ours: (usize, usize),
        /// Those of the robot.
        theirs: (usize, usize),
    },
    /// The control periods differ.
    #[error(
        "robot.control_hz means a control period of {} us, the robot has {} us; set both ends alike",
        ours.as_micros(), theirs.as_micros()
    )]
    Period {
        /// Of the configuration.
        ours: Duration,
        /// Of the robot.
        theirs: Duration,
    },
    /// A command would run out before the next one can come.
    #[error(
        "a command runs out after {} ms (the smaller of robot.command_valid_ms and the robot's watchdog), \
         which is not longer than the control period of {} us: the robot would stop in every step; raise it",
        valid.as_millis(), period.as_micros()
    )]
    Validity {
        /// How long a command holds.
        valid: Duration,
        /// Control period.
        period: Duration,
    },
    /// The robot cannot be armed.
    #[error("the robot does not arm, its drive is in {drive:?}; look for an emergency stop that is still pressed")]
    NotArmed {
        /// State of the drive.
        drive: DriveState,
    },
    /// An action of another length than the robot's.
    #[error("the action has {got} entries, the robot takes {expected}")]
    ActionLength {
        /// Entries of the robot.
        expected: usize,
        /// Entries of the action.
        got: usize,
    },
    /// The recording has no further step.
    #[error("the recording ends at step {step} of its episode {episode}; end the episode there")]
    EndOfRecording {
        /// Recorded episode.
        episode: u32,
        /// Last recorded step.
        step: u32,
    },
    /// The recording holds nothing to play.
    #[error("the recording holds no steps, or steps of different dimensions; record it again")]
    EmptyRecording,
}

/// Builds the error of a failed `open`.
fn open_error(kind: LinkKind, address: &str, source: impl Into<std::io::Error>) -> RobotError {
    RobotError::Open { kind, address: address.to_owned(), source: source.into() }
}

/// Builds the error of a failed system call on an open link.
fn link_error(operation: &'static str, errno: Errno) -> LinkError {
    LinkError::Io { operation, errno }
}
