//! Several robots and one learner elsewhere (layer 3): what travels between them, and why no step is lost or doubled.
//!
//! A robot's own replay is its [`Spool`]: nothing else is kept for sending. The learner's [`Intake`] knows how far it has
//! got with each robot, and every [`Answer`] says so; the robot goes on from there, whatever happened to either side.
//! Policies are offered with their hash and fetched by the robots in pieces. The way is a [`Link`] (feature `fleet`:
//! zenoh); everything else here is independent of it and tested without.
//!
//! It starts no thread and swaps no policy: `runtime` does.
//!
#![doc = include_str!("../../docs/fleet.md")]

mod counters;
mod error;
mod intake;
#[cfg(feature = "fleet")]
mod link;
#[cfg(not(feature = "fleet"))]
#[path = "no_link.rs"]
mod link;
mod spool;
#[cfg(test)]
mod tests;
mod wire;

pub use counters::FleetCounters;
pub use error::FleetError;
pub use intake::{Intake, Taken, episode_of};
pub use link::{Link, Listener, Request, Requests, Side};
pub use spool::Spool;
pub use wire::{Answer, Batch, CHUNK, ChunkRequest, MAX_MESSAGE, MAX_PARCEL, Mark, Offer, Parcel, WireError};

/// Robots that a learner can tell apart over the life of its replay, a robot with a new replay folder counted anew.
pub const MOST_SPOOLS: u32 = 1 << (32 - EPISODE_BITS);
/// Bits of an episode number in the learner's replay that are the robot's own; the others name the robot.
const EPISODE_BITS: u32 = 20;
