//! What a buffer holds, and how much of it.

use std::path::Path;
use std::sync::Arc;

use super::Store;
use crate::replay::budget::Budget;
use crate::replay::error::ReplayError;
use crate::replay::frames::Frames;
use crate::replay::layout::{Head, Layout, RECORDS_AT, u32_at};
use crate::replay::scan::BadRecords;
use crate::replay::slot_set::SlotSet;
use crate::spaces::{Frame, FrameShape, StepRecord};

impl Store {
    /// Copies the record with this sequence number.
    ///
    /// # Errors
    /// When it was overwritten, is damaged, or never was.
    pub fn record(&self, sequence: u64, into: &mut StepRecord) -> Result<(), ReplayError> {
        self.header.layout.decode(self.record_bytes(self.valid_slot(sequence)?), into);
        Ok(())
    }

    /// [`Store::record`] with the frame that belongs to it, in a buffer that has frames. Records that are read one
    /// after the other into the same place and share a frame share its memory.
    ///
    /// # Errors
    /// As [`Store::record`].
    pub fn record_with_frame(&self, sequence: u64, into: &mut StepRecord) -> Result<(), ReplayError> {
        self.record(sequence, into)?;
        let Some(shape) = self.frame_shape() else { return Ok(()) };
        let (number, capture_ns, pixels) = self.frame(sequence)?;
        if into.frame.as_ref().is_none_or(|frame| frame.sequence != number) {
            into.frame = Some(Arc::new(Frame { shape, sequence: number, capture_ns, pixels: pixels.into() }));
        }
        Ok(())
    }

    /// The bytes of the record with this sequence number, as [`Layout::read`] takes them from a buffer without frames.
    ///
    /// # Errors
    /// As [`Store::record`].
    pub fn bytes(&self, sequence: u64) -> Result<&[u8], ReplayError> {
        Ok(self.record_bytes(self.valid_slot(sequence)?))
    }

    pub(super) fn valid_slot(&self, sequence: u64) -> Result<usize, ReplayError> {
        let (first, last) = (self.first_sequence(), self.last);
        let slot = self.slot(sequence.max(1));
        if sequence < first || sequence > last || sequence == 0 || !self.valid.contains(slot) {
            return Err(ReplayError::NoRecord { sequence, first, last });
        }
        Ok(slot)
    }

    /// Whether the record in `slot` and its successor form a transition that may be sampled.
    pub fn is_sampleable(&self, slot: usize) -> bool {
        self.transitions.contains(slot)
    }

    /// Number of transitions that may be sampled.
    pub fn transitions(&self) -> u64 {
        self.transitions.len() as u64
    }

    /// Number of those transitions in which a person chose the action.
    pub fn interventions(&self) -> u64 {
        self.interventions.len() as u64
    }

    /// Size of the camera frames, `None` for a buffer without.
    pub fn frame_shape(&self) -> Option<FrameShape> {
        self.frames.as_ref().map(Frames::shape)
    }

    /// The frame that belongs to a record: its number, when it was taken (nanoseconds of the run's clock), and its
    /// pixels. Records of a slow camera share a number.
    ///
    /// # Errors
    /// When there is no such record, or the buffer has no frames.
    pub fn frame(&self, sequence: u64) -> Result<(u64, u64, &[u8]), ReplayError> {
        let frames = self.frames.as_ref().ok_or(ReplayError::NoFrames)?;
        let number = self.header.layout.frame(self.record_bytes(self.valid_slot(sequence)?)).number;
        Ok((number, frames.capture_ns(number), frames.pixels(number)))
    }

    /// Numbers of the frames of a transition.
    pub(crate) fn transition_frame_numbers(&self, slot: usize) -> Option<[u64; 2]> {
        self.frames.as_ref()?;
        let (record, following) = self.transition(slot);
        Some([record, following].map(|bytes| self.header.layout.frame(bytes).number))
    }

    /// Pixels of a frame that a valid record has.
    pub(crate) fn pixels(&self, number: u64) -> Option<&[u8]> {
        self.frames.as_ref().map(|frames| frames.pixels(number))
    }

    /// Pixels of the observation and of the next observation of a transition.
    pub(crate) fn transition_frames(&self, slot: usize) -> Option<(&[u8], &[u8])> {
        let frames = self.frames.as_ref()?;
        let (record, following) = self.transition(slot);
        let layout = self.header.layout;
        Some((frames.pixels(layout.frame(record).number), frames.pixels(layout.frame(following).number)))
    }

    /// Keeps at most so many bytes of the frame file in memory ([`Budget::RESIDENT`] without this).
    pub fn keep_resident(&mut self, bytes: u64) {
        if let Some(frames) = &mut self.frames {
            frames.keep_resident(bytes);
        }
    }

    /// What the buffer costs.
    pub fn budget(&self) -> Budget {
        Budget::new(self.layout(), self.capacity(), self.frame_shape())
    }

    /// Takes the buffer out of locked memory: whoever calls `mlockall` after the buffer was opened locks its files
    /// too, and those are read and written by threads that may wait for the disk.
    pub fn unlock_memory(&self) {
        self.region.unlock();
        if let Some(frames) = &self.frames {
            frames.unlock_memory();
        }
    }

    /// Number of usable records.
    pub fn len(&self) -> u64 {
        self.valid.len() as u64
    }

    /// Whether there is no usable record.
    pub fn is_empty(&self) -> bool {
        self.valid.len() == 0
    }

    /// Records that fit.
    pub fn capacity(&self) -> u64 {
        self.header.capacity
    }

    /// Smallest sequence number that the ring can still hold, 1 for an empty buffer.
    pub fn first_sequence(&self) -> u64 {
        (self.last + 1).saturating_sub(self.header.capacity).max(1)
    }

    /// Sequence number of the newest record, 0 for an empty buffer.
    pub fn last_sequence(&self) -> u64 {
        self.last
    }

    /// Records that newer ones have replaced over the life of the buffer.
    pub fn overwritten(&self) -> u64 {
        self.last.saturating_sub(self.header.capacity)
    }

    /// Damaged records found when the buffer was opened.
    pub fn bad_records(&self) -> &BadRecords {
        &self.bad
    }

    /// One more than the largest episode number in the buffer.
    pub fn next_episode(&self) -> u32 {
        self.next_episode
    }

    /// What the records hold.
    pub fn layout(&self) -> Layout {
        self.header.layout
    }

    /// Refuses a buffer of another robot.
    ///
    /// # Errors
    /// When the layouts differ.
    pub fn expect_layout(&self, wanted: Layout) -> Result<(), ReplayError> {
        let found = self.layout();
        if found == wanted {
            return Ok(());
        }
        Err(ReplayError::LayoutMismatch { path: self.path.clone(), found, wanted })
    }

    /// Whether the writer before this opener closed the buffer; `false` after a kill or a power cut.
    pub fn was_closed_cleanly(&self) -> bool {
        self.was_clean
    }

    /// Usable header slots found at open, of 2. Fewer is harmless, but worth a look at the disk.
    pub fn usable_headers(&self) -> usize {
        self.headers_usable
    }

    /// Largest sequence number that a sync is known to have covered.
    pub fn watermark(&self) -> u64 {
        self.header.watermark
    }

    /// Folder of a buffer on disk.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    pub(crate) fn slot(&self, sequence: u64) -> usize {
        ((sequence - 1) % self.header.capacity) as usize
    }

    /// Sequence number in a slot with a usable record.
    pub(crate) fn sequence_in(&self, slot: usize) -> u64 {
        self.head(slot).sequence
    }

    pub(crate) fn intervention_slots(&self) -> &SlotSet {
        &self.interventions
    }

    pub(crate) fn transition_slots(&self) -> &SlotSet {
        &self.transitions
    }

    /// Byte range of a slot in the file.
    pub(super) fn range(&self, slot: usize) -> std::ops::Range<usize> {
        let start = RECORDS_AT + slot * self.scratch.len();
        start..start + self.scratch.len()
    }

    /// Bytes of the record in `slot` and of its successor.
    pub(crate) fn transition(&self, slot: usize) -> (&[u8], &[u8]) {
        let next = if slot + 1 == self.header.capacity as usize { 0 } else { slot + 1 };
        let bytes = self.region.bytes();
        (&bytes[self.range(slot)], &bytes[self.range(next)])
    }

    /// A number that tells buffers with different content apart: checksums of the first and last record.
    pub(crate) fn identity(&self) -> u64 {
        let checksum = |sequence: u64| {
            let bytes = self.record_bytes(self.slot(sequence.max(1)));
            u64::from(u32_at(bytes, bytes.len() - 4))
        };
        checksum(self.first_sequence()) << 32 | checksum(self.last)
    }

    pub(super) fn record_bytes(&self, slot: usize) -> &[u8] {
        &self.region.bytes()[self.range(slot)]
    }

    pub(super) fn head(&self, slot: usize) -> Head {
        Head::read(self.record_bytes(slot))
    }
}
