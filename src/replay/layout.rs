//! Dimensions of a buffer and the byte layout of one record (`docs/replay-format.md`).

use std::fmt;

use firmware_bridge::{MAX_ACTION, MAX_OBSERVATION};

use super::error::ReplayError;
use crate::spaces::{Spaces, StepFlags, StepRecord};

/// Bytes in front of the first record: two header slots of 4 KiB.
pub(crate) const RECORDS_AT: usize = 8192;
/// Bytes of a record in front of its observation.
const PREFIX: usize = 32;
/// Bytes of the checksum at the end of a record.
const CHECKSUM: usize = 4;
const SEQUENCE_BITS: u32 = 40;
const CAPTURE_BITS: u32 = 48;
/// Largest sequence number: at 1000 records per second reached after 35 years.
pub(crate) const MAX_SEQUENCE: u64 = (1 << SEQUENCE_BITS) - 1;
/// Largest age of an observation that a record can hold, in microseconds (16.8 s); older ones are stored as this.
pub const MAX_AGE_US: u64 = (1 << (64 - SEQUENCE_BITS)) - 1;

/// What the records of a buffer hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of an observation.
    pub observation_dim: usize,
    /// Length of an action.
    pub action_dim: usize,
    /// [`Spaces::schema_hash`] of the robot.
    pub schema_hash: u64,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} observation and {} action entries (schema {:016x})",
            self.observation_dim, self.action_dim, self.schema_hash
        )
    }
}

impl From<&Spaces> for Layout {
    fn from(spaces: &Spaces) -> Self {
        Self {
            observation_dim: spaces.observation_dim(),
            action_dim: spaces.action_dim(),
            schema_hash: spaces.schema_hash(),
        }
    }
}

impl Layout {
    /// Whether records of this layout exist.
    pub(crate) fn check(self) -> Result<Self, ReplayError> {
        let fits = (1..=MAX_OBSERVATION).contains(&self.observation_dim) && (1..=MAX_ACTION).contains(&self.action_dim);
        if fits { Ok(self) } else { Err(ReplayError::BadLayout { layout: self }) }
    }

    /// Bytes of a record: 64, 128, 256, 512 or a multiple of 512, so that none crosses a disk sector needlessly.
    pub fn record_size(self) -> usize {
        self.record_size_with(0)
    }

    /// Bytes of a record that names a frame of each of `cameras` streams.
    pub(crate) fn record_size_with(self, cameras: u16) -> usize {
        let numbers = 4 * (self.observation_dim + self.action_dim);
        let needed = PREFIX + numbers + FrameRef::SIZE * usize::from(cameras) + CHECKSUM;
        if needed <= 512 { needed.next_power_of_two().max(64) } else { needed.next_multiple_of(512) }
    }

    /// Byte range of the observation within a record.
    pub(crate) fn observation(self) -> std::ops::Range<usize> {
        PREFIX..PREFIX + 4 * self.observation_dim
    }

    /// Byte range of the action within a record.
    pub(crate) fn action(self) -> std::ops::Range<usize> {
        let start = PREFIX + 4 * self.observation_dim;
        start..start + 4 * self.action_dim
    }

    /// Writes `record` into `out`, which has exactly one record's length, the checksum last. `frame` is what the
    /// camera saw, in a buffer with frames.
    pub(crate) fn encode(self, sequence: u64, record: &StepRecord, frame: Option<FrameRef>, out: &mut [u8]) {
        out.fill(0);
        let only_observation = record.flags.contains(StepFlags::OBSERVATION_ONLY);
        let age = record.use_us.saturating_sub(record.capture_us).min(MAX_AGE_US);
        let capture = record.capture_us.min((1 << CAPTURE_BITS) - 1);
        let reward = if only_observation { 0.0 } else { record.reward };
        put(out, 0, &(sequence | age << SEQUENCE_BITS).to_le_bytes());
        put(out, 8, &(capture | u64::from(record.flags.0) << CAPTURE_BITS).to_le_bytes());
        put(out, 16, &record.episode.to_le_bytes());
        put(out, 20, &record.step.to_le_bytes());
        put(out, 24, &record.policy_generation.to_le_bytes());
        put(out, 28, &reward.to_le_bytes());
        put_floats(&mut out[self.observation()], &record.observation);
        if !only_observation {
            put_floats(&mut out[self.action()], &record.action);
        }
        if let Some(frame) = frame {
            put(out, self.action().end, &frame.number.to_le_bytes());
            put(out, self.action().end + 8, &frame.checksum.to_le_bytes());
        }
        seal(out);
    }

    /// Gives the record in `bytes` other flags and another reward, and its checksum; nothing else changes.
    pub(crate) fn relabel(bytes: &mut [u8], flags: StepFlags, reward: f32) {
        let capture = u64_at(bytes, 8) & ((1 << CAPTURE_BITS) - 1);
        put(bytes, 8, &(capture | u64::from(flags.0) << CAPTURE_BITS).to_le_bytes());
        put(bytes, 28, &reward.to_le_bytes());
        seal(bytes);
    }

    /// The frame that a record of a buffer with frames belongs to.
    pub(crate) fn frame(self, bytes: &[u8]) -> FrameRef {
        let at = self.action().end;
        FrameRef { number: u64_at(bytes, at), checksum: u32_at(bytes, at + 8) }
    }

    /// Reads a record whose checksum was verified. The sequence number comes from [`Head::read`].
    pub(crate) fn decode(self, bytes: &[u8], into: &mut StepRecord) {
        let head = Head::read(bytes);
        let capture_us = u64_at(bytes, 8) & ((1 << CAPTURE_BITS) - 1);
        into.episode = head.episode;
        into.step = head.step;
        into.flags = head.flags;
        into.policy_generation = u32_at(bytes, 24);
        into.capture_us = capture_us;
        into.use_us = capture_us + (u64_at(bytes, 0) >> SEQUENCE_BITS);
        into.reward = reward(bytes);
        into.observation.clear();
        into.observation.extend(floats(&bytes[self.observation()]));
        into.action.clear();
        if !head.flags.contains(StepFlags::OBSERVATION_ONLY) {
            into.action.extend(floats(&bytes[self.action()]));
        }
    }
}

/// What a record says about its frame. The checksum ties the record to the pixels themselves: after two power cuts
/// a frame number alone could name a frame that was never seen with this record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameRef {
    pub(crate) number: u64,
    pub(crate) checksum: u32,
}

impl FrameRef {
    /// Bytes in a record.
    const SIZE: usize = 12;
}

/// The part of a record that decides which neighbours form a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    pub(crate) episode: u32,
    pub(crate) step: u32,
    pub(crate) flags: StepFlags,
}

impl Head {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self {
            sequence: u64_at(bytes, 0) & MAX_SEQUENCE,
            episode: u32_at(bytes, 16),
            step: u32_at(bytes, 20),
            flags: StepFlags((u64_at(bytes, 8) >> CAPTURE_BITS) as u16),
        }
    }

    /// Whether the observation of `next` is what followed the action of `self`.
    pub(crate) fn leads_to(&self, next: &Head) -> bool {
        next.sequence == self.sequence + 1
            && next.episode == self.episode
            && self.step.checked_add(1) == Some(next.step)
            && !next.flags.contains(StepFlags::GAP)
            && !self.flags.contains(StepFlags::OBSERVATION_ONLY)
    }
}

/// Writes the checksum at the end of `record`.
fn seal(record: &mut [u8]) {
    let body = record.len() - CHECKSUM;
    let checksum = crc32c::crc32c(&record[..body]);
    put(record, body, &checksum.to_le_bytes());
}

/// Whether the checksum at the end of `record` fits the rest.
pub(crate) fn checksum_fits(record: &[u8]) -> bool {
    let body = record.len() - CHECKSUM;
    crc32c::crc32c(&record[..body]) == u32_at(record, body)
}

/// The flags of a record.
pub(crate) fn flags(bytes: &[u8]) -> StepFlags {
    Head::read(bytes).flags
}

/// The reward of a record.
pub(crate) fn reward(bytes: &[u8]) -> f32 {
    f32::from_bits(u32_at(bytes, 28))
}

/// Little-endian numbers of a byte range whose length is a multiple of 4.
pub(crate) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

/// Copies little-endian numbers into a row of the same length.
pub(crate) fn copy_floats(bytes: &[u8], row: &mut [f32]) {
    for (to, from) in row.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *to = f32::from_le_bytes(*from);
    }
}

fn put_floats(out: &mut [u8], values: &[f32]) {
    for (to, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *to = value.to_le_bytes();
    }
}

pub(crate) fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(observation_dim: usize, action_dim: usize) -> Layout {
        Layout { observation_dim, action_dim, schema_hash: 1 }
    }

    #[test]
    fn a_halfcheetah_record_fills_two_cache_lines_exactly() {
        assert_eq!(layout(17, 6).record_size(), 128);
        assert_eq!(layout(3, 1).record_size(), 64);
        assert_eq!(layout(17, 7).record_size(), 256);
        assert_eq!((layout(13, 7).record_size_with(1), layout(14, 7).record_size_with(1)), (128, 256));
        assert_eq!(layout(MAX_OBSERVATION, MAX_ACTION).record_size(), 512);
        assert_eq!(layout(200, 20).record_size(), 1024);
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let layout = layout(3, 2);
        let mut record = StepRecord {
            episode: 7,
            step: 9,
            flags: StepFlags(0x8043),
            policy_generation: 70_000,
            capture_us: 1 << 47,
            use_us: (1 << 47) + 1234,
            reward: -1.5,
            ..StepRecord::default()
        };
        record.observation.extend([1.0, f32::MIN_POSITIVE, -3.0]);
        record.action.extend([0.25, -1.0]);
        let mut bytes = vec![0xAA; layout.record_size()];
        layout.encode(MAX_SEQUENCE, &record, None, &mut bytes);
        assert!(checksum_fits(&bytes));
        assert_eq!(Head::read(&bytes).sequence, MAX_SEQUENCE);
        let mut back = StepRecord::default();
        layout.decode(&bytes, &mut back);
        assert_eq!(back, record);
        record.use_us = record.capture_us + 2 * MAX_AGE_US;
        layout.encode(1, &record, None, &mut bytes);
        layout.decode(&bytes, &mut back);
        assert_eq!(back.use_us - back.capture_us, MAX_AGE_US);
    }
}
