//! The vocabulary of the house (layer 0): observation and action specifications, step records, minibatches.
//!
//! Shapes are run-time values that are checked once at the edges. Policy actions lie in `[-1, 1]`.

use std::fmt;
use std::sync::Arc;

use firmware_bridge::{MAX_ACTION, MAX_OBSERVATION};
use serde::{Deserialize, Serialize};

/// Names of the entries of an observation or of an action, in order. Units belong into the name (`theta_rad`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spaces {
    /// One name per observation entry.
    pub observation: Vec<String>,
    /// One name per action entry; the policy's actions lie in `[-1, 1]`.
    pub action: Vec<String>,
}

impl Spaces {
    /// Length of an observation.
    pub fn observation_dim(&self) -> usize {
        self.observation.len()
    }

    /// Length of an action.
    pub fn action_dim(&self) -> usize {
        self.action.len()
    }

    /// FNV-1a over all names, their order and the split: two ends with the same hash mean the same numbers.
    ///
    /// The hash text is `obs\0NAME\0...act\0NAME\0...`, in UTF-8.
    pub fn schema_hash(&self) -> u64 {
        firmware_bridge::schema_hash(
            self.observation.iter().map(String::as_str),
            self.action.iter().map(String::as_str),
        )
    }
}

/// Where a transition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A data set that existed before this run.
    Offline,
    /// This robot, in this run or an earlier one on the same buffer.
    Online,
}

/// Facts about a step, as bits (`docs/replay-format.md`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepFlags(pub u16);

impl StepFlags {
    /// The task ended in the state after this step: no bootstrapping.
    pub const TERMINATED: Self = Self(1);
    /// The episode was cut after this step (time limit, operator): bootstrap from the next observation.
    pub const TRUNCATED: Self = Self(1 << 1);
    /// Steps are missing right before this record: it never forms a pair with the record in front of it.
    pub const GAP: Self = Self(1 << 2);
    /// The observation was older than allowed when it was used.
    pub const STALE: Self = Self(1 << 3);
    /// Only the observation counts: the last one of an episode.
    pub const OBSERVATION_ONLY: Self = Self(1 << 4);
    /// From a data set, not from this robot.
    pub const OFFLINE: Self = Self(1 << 5);
    /// A person chose the action, or had a part in it while control passed over.
    pub const INTERVENTION: Self = Self(1 << 6);

    /// The step ended its episode as a success, by a rule or by somebody's word.
    pub const SUCCESS: Self = Self(1 << 7);
    /// And as a failure.
    pub const FAILURE: Self = Self(1 << 8);
    /// Only with [`StepFlags::OBSERVATION_ONLY`]: a robot's steps were cut here on their way to a learner, and the step
    /// of this observation comes in full elsewhere.
    pub const SEAM: Self = Self(1 << 9);

    /// What the step made of its episode, where that was said.
    pub fn outcome(self) -> Option<Outcome> {
        [Outcome::Success, Outcome::Failure].into_iter().find(|outcome| self.contains(outcome.flag()))
    }

    /// Clears the bits of `other`.
    pub fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the bits of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// How an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The task is done.
    Success,
    /// It cannot be done any more.
    Failure,
}

impl Outcome {
    /// Its bit in a record.
    pub fn flag(self) -> StepFlags {
        match self {
            Self::Success => StepFlags::SUCCESS,
            Self::Failure => StepFlags::FAILURE,
        }
    }
}

/// Size of a camera image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameShape {
    /// Pixels in a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
    /// Bytes of a pixel; several cameras lie behind each other in it.
    pub channels: u16,
}

impl fmt::Display for FrameShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, height, channels } = self;
        write!(f, "images of {width} x {height} x {channels}")
    }
}

impl FrameShape {
    /// In words, where there may be none.
    pub fn words(shape: Option<Self>) -> String {
        shape.map_or_else(|| "no images".to_owned(), |shape| shape.to_string())
    }

    /// Bytes of a frame, rows from top to bottom, the channels of a pixel together.
    pub fn bytes(self) -> usize {
        usize::from(self.width) * usize::from(self.height) * usize::from(self.channels)
    }
}

/// A camera image as a policy sees it. Whoever fills frames keeps a share of each, so that the control thread, when it
/// lets go of one, never frees memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Size of the image.
    pub shape: FrameShape,
    /// Counted up by the camera bridge; two frames of a run never share one.
    pub sequence: u64,
    /// When it was taken, nanoseconds of the run's clock; of several cameras, the oldest.
    pub capture_ns: u64,
    /// `(height, width, channels)`, [`FrameShape::bytes`] of them.
    pub pixels: Box<[u8]>,
}

/// What one control step leaves behind. Fixed size: it travels through a queue without touching the heap.
///
/// `action` and `reward` belong to the step that *starts* at `observation`; `action` is what the robot reported
/// as really applied. With [`StepFlags::OBSERVATION_ONLY`] both mean nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Episode number, counted up over the life of a buffer.
    pub episode: u32,
    /// Step within the episode, from 0.
    pub step: u32,
    /// Facts about the step.
    pub flags: StepFlags,
    /// Generation of the policy that chose the action (0: the policy the run started with).
    pub policy_generation: u32,
    /// When the observation was taken, microseconds of the run's clock.
    pub capture_us: u64,
    /// When the observation was used.
    pub use_us: u64,
    /// Reward of the step.
    pub reward: f32,
    /// `s_t`.
    pub observation: heapless::Vec<f32, MAX_OBSERVATION>,
    /// `a_t` as really applied, in `[-1, 1]`.
    pub action: heapless::Vec<f32, MAX_ACTION>,
    /// The camera's part of `s_t`, where there is a camera.
    pub frame: Option<Arc<Frame>>,
}

/// A minibatch on the host, row-major, reused between updates. `B` rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Minibatch {
    /// `B`.
    pub rows: usize,
    /// `s`, `(B, observation_dim)`.
    pub observation: Vec<f32>,
    /// `a`, `(B, action_dim)`.
    pub action: Vec<f32>,
    /// `r`, `(B)`.
    pub reward: Vec<f32>,
    /// 1.0 where the task ended, else 0.0, `(B)`. A truncated step has 0.0.
    pub terminated: Vec<f32>,
    /// `s'`, `(B, observation_dim)`.
    pub next_observation: Vec<f32>,
    /// Leaf of each row in the replay's priority tree, `(B)`.
    pub leaf: Vec<u32>,
    /// Where each row comes from, `(B)`.
    pub source: Vec<Source>,
    /// Whether a draw fills the columns of images.
    pub with_frames: bool,
    /// Images of `s`, `(B, height, width, channels)`; empty unless asked for.
    pub frames: Vec<u8>,
    /// Images of `s'`, as many.
    pub next_frames: Vec<u8>,
}

impl Minibatch {
    /// Empties all columns and keeps their memory.
    pub fn clear(&mut self) {
        self.rows = 0;
        for column in [
            &mut self.observation,
            &mut self.action,
            &mut self.reward,
            &mut self.terminated,
            &mut self.next_observation,
        ] {
            column.clear();
        }
        self.leaf.clear();
        self.source.clear();
        self.frames.clear();
        self.next_frames.clear();
    }

    /// Takes out the rows for which `keep` is false; `keep` has one entry for every row.
    pub fn retain(&mut self, keep: &[bool]) {
        fn column<T>(column: &mut Vec<T>, keep: &[bool]) {
            let width = column.len() / keep.len().max(1);
            let mut place = 0..;
            column.retain(|_| place.next().and_then(|i: usize| keep.get(i / width.max(1))).is_none_or(|keep| *keep));
        }
        for floats in [
            &mut self.observation,
            &mut self.action,
            &mut self.reward,
            &mut self.terminated,
            &mut self.next_observation,
        ] {
            column(floats, keep);
        }
        column(&mut self.leaf, keep);
        column(&mut self.source, keep);
        column(&mut self.frames, keep);
        column(&mut self.next_frames, keep);
        self.rows = self.leaf.len();
    }

    /// Share of offline rows in `[0, 1]`; 0 for an empty minibatch.
    pub fn offline_share(&self) -> f32 {
        let offline = self.source.iter().filter(|s| **s == Source::Offline).count();
        offline as f32 / self.rows.max(1) as f32
    }
}
