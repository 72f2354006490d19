//! Threads, channels, priorities, shutdown (layer 5): the only place that spawns.
//!
//! [`run`] puts the parts together and lets them work, either on the machine's clock with one thread each
//! ([`realtime`]) or in lockstep on one thread ([`lockstep`]), with the same parts and the same code in them.
//! The robot is stopped first on every way out: end of the run, signal, fault, panic.

mod child;
mod evaluate;
mod event;
mod lockstep;
mod memory;
mod parts;
mod publisher;
mod realtime;
mod recorder;
mod rights;
mod run;
mod socket;
mod trainer;

pub use evaluate::{Evaluation, evaluate};
pub use event::{Event, Observer};
pub use memory::tune_allocator;
pub use parts::{RuntimeError, open_offline};
pub use run::{RunOptions, run};
pub use socket::{Reply, Request, ask};
