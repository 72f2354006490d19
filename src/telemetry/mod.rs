//! What people see of a run (layer 1): counters, metric records and their sinks, the final report.
//!
//! Counters are plain atomics that the control thread adds to and everybody may read. Records are made on
//! threads that may allocate and go to a [`Sink`]; nothing here is called on the control thread but
//! [`ControlCounters`].

mod counters;
mod report;
mod sink;

pub use counters::{ControlCounters, LatencySummary};
pub use report::{EpisodeReturn, Report};
pub use sink::{FileSink, NullSink, Sink};
