//! What people see of a run (layer 1): counters, metric records and their sinks, the final report, and drawings of
//! what the records say.
//!
//! Counters are plain atomics that the control thread adds to and everybody may read. Records are made on
//! threads that may allocate and go to a [`Sink`]; nothing here is called on the control thread but
//! [`ControlCounters`] and [`RobotCounters`].

mod camera_counters;
mod camera_log;
mod chart;
mod counters;
mod event_file;
mod histogram;
mod history;
mod machine;
pub mod page;
mod report;
mod robot_counters;
mod series;
mod sink;
mod step_log;
mod temperature;

pub use camera_counters::{CameraCounters, CameraSummary};
pub use chart::{Chart, Curve};
pub use counters::{ControlCounters, LatencySummary};
pub use event_file::write_events;
pub use histogram::Histogram;
pub use history::{Follower, History, PANELS, Panel, Skipped};
pub use machine::{board, meminfo, unified_memory};
pub use report::{EpisodeReturn, Report};
pub use robot_counters::{RobotCounters, RobotSummary};
pub use series::{Bucket, Series};
pub use sink::{FileSink, NullSink, Sink};
pub use step_log::{LogProblem, Logged, StepLog, read_step_log};
pub use temperature::Zones;
