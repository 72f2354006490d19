//! The control loop (layer 4): observation, image, policy, limits, robot, record, swap; in this order, once per period.
//!
//! [`ControlLoop::tick`] runs on the control thread. After the first tick it allocates nothing, takes no lock,
//! writes no log and touches no file. Steps leave through a fixed-size queue; policies come in and go back
//! through queues of the same kind and are dropped elsewhere. The only thing it waits for is its deadline (in lockstep:
//! the robot's answer and the image that belongs to it). Faults and reactions are listed in `docs/safety.md`.

/// The queues of the hand-over. `tests/handover_model.rs` puts loom's in this place.
mod channel {
    pub(super) use heapless::spsc::{Consumer, Producer, Queue};
}
/// The atomics of a person's slot; `tests/handover_model.rs` likewise.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
}
mod frame_queue;
mod outcome;
mod pacer;
mod person;
mod person_slot;
mod queue;
mod sight;
mod swap;
#[cfg(test)]
mod swap_tests;
mod tick;

pub use firmware_bridge::{Limiter, Limits};
pub use frame_queue::{FrameConsumer, FrameProducer, frame_queue};
pub use outcome::{Outcome, Range, Rules, Verdict};
pub use pacer::Pacer;
pub use person::{Chosen, Person};
pub use person_slot::{NotTaken, PersonCommand, PersonSlot};
pub use queue::{QUEUE_STEPS, StepConsumer, StepProducer, step_queue};
pub use sight::{Pace, Sight};
pub use swap::{Offer, PolicyHandover, PolicySlot, SwapRequest, Unsent, policy_slot};
pub use tick::{ControlLoop, ControlSettings, Fault};
