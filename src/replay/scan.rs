//! What an opener learns by reading every slot once: nothing but the records themselves is believed.

use std::fmt;

use serde::Serialize;

use super::frames::Frames;
use super::header::Header;
use super::layout::{Head, Layout, RECORDS_AT, checksum_fits, floats, reward};
use super::slot_set::SlotSet;
use crate::spaces::{StepFlags, StepRecord};

/// Why a slot that is not empty holds no usable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BadReason {
    /// The checksum does not fit: torn by a crash, or damaged later.
    Checksum,
    /// The sequence number belongs to another slot.
    Misplaced,
    /// Whole, but from an earlier lap of the ring: what replaced it never reached the disk.
    EarlierLap,
    /// Whole, but with NaN or infinite numbers.
    NotFinite,
    /// Whole, but the camera frame that belongs to it is damaged or was replaced.
    Frame,
}

impl fmt::Display for BadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "the checksum does not fit: torn by a crash, or damaged later",
            Self::Misplaced => "the record belongs to another slot",
            Self::EarlierLap => "from an earlier lap: what replaced it never reached the disk",
            Self::NotFinite => "NaN or infinite numbers",
            Self::Frame => "its camera frame is damaged or was replaced",
        })
    }
}

/// Slots without a usable record, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BadRecords {
    /// [`BadReason::Checksum`].
    pub checksum: u64,
    /// [`BadReason::Misplaced`].
    pub misplaced: u64,
    /// [`BadReason::EarlierLap`].
    pub earlier_lap: u64,
    /// [`BadReason::NotFinite`].
    pub not_finite: u64,
    /// [`BadReason::Frame`].
    pub frame: u64,
    /// The first of them: slot and reason, at most [`BadRecords::LISTED`].
    pub first: Vec<(u64, BadReason)>,
}

impl BadRecords {
    /// Longest list of examples.
    pub const LISTED: usize = 32;

    /// All of them.
    pub fn total(&self) -> u64 {
        self.checksum + self.misplaced + self.earlier_lap + self.not_finite + self.frame
    }

    fn count(&mut self, slot: usize, reason: BadReason) {
        *match reason {
            BadReason::Checksum => &mut self.checksum,
            BadReason::Misplaced => &mut self.misplaced,
            BadReason::EarlierLap => &mut self.earlier_lap,
            BadReason::NotFinite => &mut self.not_finite,
            BadReason::Frame => &mut self.frame,
        } += 1;
        if self.first.len() < Self::LISTED {
            self.first.push((slot as u64, reason));
        }
    }
}

/// Result of a scan.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Slots with a usable record.
    pub(crate) valid: SlotSet,
    /// Largest sequence number, 0 when there is none.
    pub(crate) last: u64,
    /// One more than the largest episode number.
    pub(crate) next_episode: u32,
    pub(crate) bad: BadRecords,
}

enum Slot {
    Empty,
    Record(Head),
    Bad(BadReason),
}

/// Reads all slots. `file` has at least the length that `header` promises.
pub(crate) fn scan(file: &[u8], header: &Header, frames: Option<&Frames>) -> Scan {
    let capacity = header.capacity as usize;
    let records = file[RECORDS_AT..].chunks_exact(header.record_size()).take(capacity);
    let mut scan = Scan { valid: SlotSet::new(capacity), last: 0, next_episode: 0, bad: BadRecords::default() };
    for (slot, bytes) in records.clone().enumerate() {
        match look_at(bytes, slot, header, frames) {
            Slot::Empty => {}
            Slot::Bad(reason) => scan.bad.count(slot, reason),
            Slot::Record(head) => {
                scan.valid.insert(slot);
                scan.last = scan.last.max(head.sequence);
                scan.next_episode = scan.next_episode.max(head.episode.saturating_add(1));
            }
        }
    }
    for (slot, bytes) in records.enumerate() {
        if scan.valid.contains(slot) && Head::read(bytes).sequence + header.capacity <= scan.last {
            scan.valid.remove(slot);
            scan.bad.count(slot, BadReason::EarlierLap);
        }
    }
    scan
}

fn is_finite(bytes: &[u8], layout: Layout, flags: StepFlags) -> bool {
    let action = if flags.contains(StepFlags::OBSERVATION_ONLY) { 0..0 } else { layout.action() };
    let mut numbers = floats(&bytes[layout.observation()]).chain(floats(&bytes[action]));
    reward(bytes).is_finite() && numbers.all(f32::is_finite)
}

impl Layout {
    /// Reads a record without a frame that came from elsewhere, checked as one that is found on a disk. Returns its
    /// sequence number there.
    ///
    /// # Errors
    /// When it is damaged or not finite.
    pub fn read(self, bytes: &[u8], into: &mut StepRecord) -> Result<u64, BadReason> {
        if bytes.len() != self.record_size() || !checksum_fits(bytes) {
            return Err(BadReason::Checksum);
        }
        let head = Head::read(bytes);
        if !is_finite(bytes, self, head.flags) {
            return Err(BadReason::NotFinite);
        }
        self.decode(bytes, into);
        Ok(head.sequence)
    }
}

fn look_at(bytes: &[u8], slot: usize, header: &Header, frames: Option<&Frames>) -> Slot {
    let head = Head::read(bytes);
    if head.sequence == 0 && bytes.iter().all(|b| *b == 0) {
        return Slot::Empty;
    }
    if !checksum_fits(bytes) {
        return Slot::Bad(BadReason::Checksum);
    }
    if head.sequence == 0 || (head.sequence - 1) % header.capacity != slot as u64 {
        return Slot::Bad(BadReason::Misplaced);
    }
    if !is_finite(bytes, header.layout, head.flags) {
        return Slot::Bad(BadReason::NotFinite);
    }
    if frames.is_some_and(|frames| !frames.holds(header.layout.frame(bytes))) {
        return Slot::Bad(BadReason::Frame);
    }
    Slot::Record(head)
}
