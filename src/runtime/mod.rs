//! Threads, channels, priorities, shutdown (layer 5): the only place that spawns.
//!
//! [`run`] puts the parts together and lets them work, either on the machine's clock with one thread each
//! ([`realtime`]) or in lockstep on one thread ([`lockstep`]), with the same parts and the same code in them.
//! [`measure`] runs the same parts for `fieldtune bench`. The robot is stopped first on every way out: end of the run, signal, fault, panic.

mod camera;
mod child;
mod classifier;
mod effort;
mod evaluate;
mod event;
#[cfg(test)]
mod fault_matrix;
mod hub;
mod lockstep;
pub mod measure;
mod memory;
mod notify;
mod offline;
mod parts;
mod person;
mod playback;
mod pretrain;
mod publisher;
mod realtime;
mod recorder;
mod remote;
mod rights;
mod run;
mod shadow;
mod socket;
mod source;
mod trainer;
mod trial;
mod web;

pub use evaluate::{Evaluation, evaluate};
pub use event::{Event, Observer};
pub use hub::learn_for_fleet;
pub use memory::tune_allocator;
pub use notify::ServiceManager;
pub use offline::learn_recorded;
pub use parts::{RuntimeError, open_offline};
pub use playback::{Agreement, Difference, EpisodeReplay, Replayed, replay};
pub use pretrain::{PretrainEvaluation, PretrainEvent, PretrainStart, Pretrained, pretrain, pretrained_description};
pub use run::{RunOptions, run};
pub use socket::{Reply, Request, ask, ask_within};
pub use source::{ActionSource, Hand};
