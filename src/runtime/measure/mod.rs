//! Measurements on this machine: how the control loop keeps its deadlines, what a swap of policies, an image and an
//! update of the learner cost, and what the way to a learner elsewhere does.
//!
//! They run the real control loop, policies of HalfCheetah's size and a real learner, with a robot in memory. They
//! judge nothing; `fieldtune bench` prints them and compares.

mod camera;
mod cyclictest;
mod fleet;
mod fleet_robots;
mod learner;
mod pacing;
mod rig;
mod swaps;

pub use camera::{CameraRow, measure_camera};
pub use cyclictest::Cyclictest;
pub use fleet::{FleetOptions, FleetRow, measure_fleet};
pub use fleet_robots::play_robots;
pub use learner::{
    Allocations, Beside, LearnerOptions, LearnerRow, LearnerSpeed, Workload, measure_beside, measure_learner,
    record_updates,
};
pub use pacing::{Pacing, PacingOptions, PacingRow, Scheme, measure_pacing, median};
pub use swaps::{SwapOptions, SwapReport, measure_swaps};
