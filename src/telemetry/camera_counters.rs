//! What the camera thread counts: atomics, read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything the camera thread counts.
        #[derive(Debug, Default)]
        pub struct CameraCounters { $($(#[$doc])* pub $name: AtomicU64,)* }

        /// The counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct CameraSummary { $($(#[$doc])* pub $name: u64,)* }

        impl CameraCounters {
            /// All of them now.
            pub fn summary(&self) -> CameraSummary {
                CameraSummary { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Cameras of the configuration.
    cameras,
    /// Cameras that are there now.
    connected,
    /// Frames handed to the control thread.
    frames,
    /// Age of the newest frame, microseconds of the run's clock.
    age_us,
    /// Cameras whose image does not change although they count on, now.
    frozen,
    /// How often that was noticed.
    frozen_alarms,
    /// Cameras opened anew after they were lost.
    reconnects,
    /// Images that end before their last row.
    truncated,
    /// Images that the decoder refused.
    damaged,
    /// Images of another size than those before, or too small for a frame.
    wrong_size,
    /// Images that are not of the format they are said to be.
    wrong_format,
    /// Bytes between images that are none.
    stream_errors,
    /// Numbers of images that never came.
    sequence_gaps,
    /// Images that a newer one overtook before they were looked at.
    overtaken,
    /// Images whose stamp lies before that of the image before.
    clock_backwards,
    /// Images whose stamp lies in the future.
    clock_ahead,
    /// Frames not made because the stamps of the cameras lay too far apart.
    misaligned,
    /// Frames for which the control thread had no room.
    dropped,
}
