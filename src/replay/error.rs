//! What can go wrong with a buffer, as fields and not as prose.

use std::io;
use std::path::PathBuf;

use super::layout::Layout;
use crate::episode::EpisodeError;
use crate::spaces::FrameShape;
use crate::spaces::Source;

/// Failure of a replay buffer or of its sampler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The operating system refused an action on a file.
    #[error("replay {}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk cannot hold the buffer; nothing was left behind.
    #[error("replay {}: the buffer needs {needed} bytes and the file system has {available} left; lower `replay.capacity` or free space", path.display())]
    NoSpace {
        /// The record file.
        path: PathBuf,
        /// Bytes of the record file.
        needed: u64,
        /// Bytes the file system offers.
        available: u64,
    },
    /// Another process has the buffer open.
    #[error("replay {}: in use by {}; stop that process or choose another folder", path.display(), holder.as_deref().unwrap_or("another process"))]
    Locked {
        /// The record file.
        path: PathBuf,
        /// `process NUMBER (NAME)` where the system tells.
        holder: Option<String>,
    },
    /// There is a buffer already.
    #[error("replay {}: a buffer exists here already; open it, or choose another folder", path.display())]
    Exists {
        /// The record file.
        path: PathBuf,
    },
    /// Neither header slot can be used.
    #[error("replay {}: no usable header: {reason}", path.display())]
    Header {
        /// The record file.
        path: PathBuf,
        /// Why the newer slot was refused.
        reason: HeaderProblem,
    },
    /// The file ends before the last record its header promises.
    #[error("replay {}: the header promises {needed} bytes and the file has {found}; it was cut: restore it from a copy", path.display())]
    Truncated {
        /// The record file.
        path: PathBuf,
        /// Bytes by the header.
        needed: u64,
        /// Bytes found.
        found: u64,
    },
    /// The file was written by a later version of the same major format.
    #[error("replay {}: written by a later version (format minor {minor}); open it read-only", path.display())]
    NewerMinor {
        /// The record file.
        path: PathBuf,
        /// Its minor version.
        minor: u16,
    },
    /// The buffer holds other observations or actions than asked for.
    #[error("replay {}: holds {found}, asked for {wanted}; choose the folder that belongs to this robot", path.display())]
    LayoutMismatch {
        /// The buffer.
        path: PathBuf,
        /// What the buffer holds.
        found: Layout,
        /// What was asked for.
        wanted: Layout,
    },
    /// The buffer's frames are not those of the camera.
    #[error("replay {}: holds {}, the cameras give {}; choose a new folder, or the [camera] it was recorded with", path.display(), FrameShape::words(*found), FrameShape::words(*wanted))]
    OtherFrames {
        /// The buffer.
        path: PathBuf,
        /// Size of its frames.
        found: Option<FrameShape>,
        /// Size of the cameras'.
        wanted: Option<FrameShape>,
    },
    /// A layout that no record can have.
    #[error("replay layout {layout}: an observation has 1 to {max_observation} entries and an action 1 to {max_action}", max_observation = firmware_bridge::MAX_OBSERVATION, max_action = firmware_bridge::MAX_ACTION)]
    BadLayout {
        /// The layout.
        layout: Layout,
    },
    /// A capacity outside the possible range.
    #[error("replay capacity {capacity}: must be between {least} and {most} records")]
    Capacity {
        /// The capacity.
        capacity: u64,
        /// Smallest.
        least: u64,
        /// Largest.
        most: u64,
    },
    /// The buffer was opened for reading.
    #[error("replay {}: opened read-only", path.display())]
    ReadOnly {
        /// The buffer.
        path: PathBuf,
    },
    /// An earlier sync failed, so nobody knows what is on the disk.
    #[error("replay {}: a sync failed earlier ({reason}), so appended data may be lost; nothing more is accepted: check the disk and open the buffer again", path.display())]
    Poisoned {
        /// The buffer.
        path: PathBuf,
        /// The failure.
        reason: String,
    },
    /// A record that does not fit the buffer's layout.
    #[error("replay: the record's {what} has {found} entries, the buffer's {wanted}")]
    Shape {
        /// `observation`, `action` or `frame`.
        what: &'static str,
        /// Entries of the record.
        found: usize,
        /// Entries of the buffer.
        wanted: usize,
    },
    /// A record with NaN or an infinite number; it would spoil every network that sees it.
    #[error("replay: episode {episode} step {step}: the {what} is not finite; the record was not stored")]
    NotFinite {
        /// Its episode.
        episode: u32,
        /// Its step.
        step: u32,
        /// `observation`, `action` or `reward`.
        what: &'static str,
    },
    /// Frames of a size that no buffer holds.
    #[error("replay frames of {width} x {height} x {channels}: must have 1 to {most} bytes", width = shape.width, height = shape.height, channels = shape.channels)]
    FrameShape {
        /// The size.
        shape: FrameShape,
        /// Most bytes.
        most: usize,
    },
    /// A buffer with frames got a record without one, or the first record repeats a frame.
    #[error("replay: the record has no camera frame, and the buffer keeps one for each")]
    NoFrame,
    /// A frame for a buffer without frames.
    #[error("replay: the buffer keeps no camera frames; create it with frames")]
    NoFrames,
    /// The machine's memory cannot hold the buffer.
    #[error(
        "replay: {what} need {needed} bytes and the machine has {available} bytes of memory for them; lower `replay.capacity`"
    )]
    NoMemory {
        /// What needs it.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes that the machine has.
        available: u64,
    },
    /// There is no valid record with this sequence number.
    #[error("replay: no valid record {sequence}; live are {first} to {last}")]
    NoRecord {
        /// The number asked for.
        sequence: u64,
        /// First live one.
        first: u64,
        /// Last live one.
        last: u64,
    },
    /// A label for an episode of which nothing is left, or that never was.
    #[error("episode {episode} has no record in the buffer, which holds {}; nothing was labelled", episodes(*held))]
    NoEpisode {
        /// The episode asked for.
        episode: u32,
        /// First and last episode in the buffer.
        held: Option<(u32, u32)>,
    },
    /// A label for an episode whose last step is not in the buffer.
    #[error(
        "the end of episode {episode} is not in the buffer: it is under way, was cut off, or is being overwritten; \
         nothing was labelled"
    )]
    NotEnded {
        /// The episode asked for.
        episode: u32,
    },
    /// All sequence numbers are used up.
    #[error("replay {}: sequence numbers are used up; start a new buffer", path.display())]
    SequenceEnd {
        /// The buffer.
        path: PathBuf,
    },
    /// Nothing to sample from.
    #[error("replay: no {} transition to sample from yet", match source_side { Some(Source::Offline) => "offline", Some(Source::Online) => "online", None => "single" })]
    Empty {
        /// The side that was asked for, `None` for both.
        source_side: Option<Source>,
    },
    /// A priority that would break every later draw.
    #[error(
        "replay: priority {value} for leaf {leaf}: must be finite, not negative and at most {most}; nothing was written"
    )]
    Priority {
        /// The leaf.
        leaf: u32,
        /// The value.
        value: f32,
        /// Largest value allowed.
        most: f32,
    },
    /// A leaf that does not exist.
    #[error("replay: leaf {leaf} of {leaves}; nothing was written")]
    Leaf {
        /// The leaf.
        leaf: u32,
        /// Number of leaves.
        leaves: usize,
    },
    /// Leaves and priorities of different number.
    #[error("replay: {leaves} leaves and {priorities} priorities")]
    Lengths {
        /// Number of leaves.
        leaves: usize,
        /// Number of priorities.
        priorities: usize,
    },
    /// A sampler setting out of range.
    #[error("replay setting `{key}` = {value}: must be {range}")]
    Setting {
        /// The key in `[replay]`.
        key: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range.
        range: &'static str,
    },
    /// A data set that cannot be read.
    #[error(transparent)]
    Episode(#[from] EpisodeError),
}

/// Why a header slot was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// Shorter than the two slots.
    #[error("the file is shorter than its header")]
    Short,
    /// Not our file.
    #[error("the magic bytes are wrong: this is no replay file, or it went through a text-mode copy")]
    Magic,
    /// Written on a big-endian machine.
    #[error("the endian tag is wrong")]
    Endian,
    /// Unknown major version.
    #[error("format version {0} is unknown to this build: use the version of the program that wrote it")]
    Major(u16),
    /// The bytes are damaged.
    #[error("the checksum is wrong")]
    Checksum,
    /// The numbers contradict each other.
    #[error("dimensions, record size or capacity contradict each other")]
    Geometry,
    /// The frame file of another buffer.
    #[error("it belongs to another buffer")]
    Foreign,
    /// Data types or frame streams that this build does not know.
    #[error("it holds data types or camera frames that this build cannot read")]
    Unsupported,
}

fn episodes(held: Option<(u32, u32)>) -> String {
    held.map_or("none".into(), |(first, last)| format!("episodes {first} to {last}"))
}
