//! What came, went and was lost between host and robot: atomics, written by the control thread, read from anywhere.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $atomic:ident = $number:ident,)*) => {
        /// The link's counters of both ends, and the robot's clock.
        #[derive(Debug, Default)]
        pub struct RobotCounters { $($(#[$doc])* pub $name: $atomic,)* }

        /// The counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct RobotSummary { $($(#[$doc])* pub $name: $number,)* }

        impl RobotCounters {
            /// All of them now.
            pub fn summary(&self) -> RobotSummary {
                RobotSummary { $($name: self.$name.load(Relaxed),)* }
            }

            /// Replaces all of them. Called once per tick; never waits.
            pub fn store(&self, now: RobotSummary) {
                $(self.$name.store(now.$name, Relaxed);)*
            }
        }
    };
}

counters! {
    /// Frames handed to the system.
    sent: AtomicU64 = u64,
    /// Frames the system had no room for.
    send_dropped: AtomicU64 = u64,
    /// Good frames received.
    received: AtomicU64 = u64,
    /// Received frames with a wrong checksum.
    crc_errors: AtomicU64 = u64,
    /// Received bytes that are no frame for another reason.
    malformed: AtomicU64 = u64,
    /// Frame numbers of the robot that never came.
    sequence_gaps: AtomicU64 = u64,
    /// The robot's count of frames with a wrong checksum; this and the next four wrap at 65536.
    robot_crc_errors: AtomicU64 = u64,
    /// The robot's count of our frame numbers that never came.
    robot_sequence_gaps: AtomicU64 = u64,
    /// The robot's count of commands that came too late.
    robot_late_commands: AtomicU64 = u64,
    /// The robot's count of commands refused for another reason.
    robot_rejected_commands: AtomicU64 = u64,
    /// The robot's count of bytes it did not read fast enough.
    robot_overruns: AtomicU64 = u64,
    /// Host clock minus robot clock, microseconds.
    clock_offset_us: AtomicI64 = i64,
    /// How much faster the host's clock runs, parts per thousand million.
    clock_drift_ppb: AtomicI64 = i64,
    /// How far the offset may be off, microseconds.
    clock_uncertainty_us: AtomicU64 = u64,
    /// Exchanges the last three rest on; 0: the robot's clock is not known.
    clock_exchanges: AtomicU64 = u64,
}
