//! One buffer: a ring of records that survives the death of its writer (`docs/replay-format.md`).

mod label;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::budget::Budget;
use super::error::ReplayError;
use super::files::{self, RECORD_FILE, io_error};
use super::frames::{Frames, Seen};
use super::header::{Header, MINOR};
use super::layout::{Head, Layout, MAX_SEQUENCE, RECORDS_AT, u32_at};
use super::meta::{Meta, Origin};
use super::region::{Ahead, Mapped, Region, write_checked};
use super::scan::{BadRecords, scan};
use super::slot_set::SlotSet;
use crate::spaces::{Frame, FrameShape, StepFlags, StepRecord};

/// How a buffer is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The only opener.
    ReadWrite,
    /// Shared with other readers; excludes a writer.
    ReadOnly,
}

/// A buffer of step records with its transitions.
///
/// Slot of a record: `(sequence - 1) % capacity`, sequence numbers count from 1. Invariants: `valid` holds the
/// slots whose bytes are a verified record of the present lap; `transitions` holds those of them whose successor
/// follows directly and that the next append does not overwrite.
#[derive(Debug)]
pub struct Store {
    region: Box<dyn Region>,
    frames: Option<Frames>,
    /// Record file, or a name for people.
    path: PathBuf,
    /// Folder of a buffer on disk.
    dir: Option<PathBuf>,
    access: Access,
    header: Header,
    /// Header slots found usable at open, of 2.
    headers_usable: usize,
    /// The last writer closed the buffer.
    was_clean: bool,
    last: u64,
    next_episode: u32,
    valid: SlotSet,
    transitions: SlotSet,
    /// Those of the transitions in which a person chose the action.
    interventions: SlotSet,
    bad: BadRecords,
    poisoned: Option<String>,
    scratch: Vec<u8>,
    ahead: Ahead,
}

impl Store {
    /// Creates a buffer of `capacity` records in the folder `dir` and allocates all of its disk space.
    ///
    /// # Errors
    /// When a buffer exists there, the disk is too small ([`ReplayError::NoSpace`]), or layout or capacity are
    /// impossible. Nothing is left behind then.
    pub fn create(dir: &Path, layout: Layout, capacity: u64) -> Result<Self, ReplayError> {
        Self::create_from(dir, layout, capacity, None, None)
    }

    /// [`Store::create`] with a camera frame for every record.
    ///
    /// # Errors
    /// As [`Store::create`], and when no buffer holds frames of this size.
    pub fn create_with_frames(
        dir: &Path,
        layout: Layout,
        capacity: u64,
        shape: FrameShape,
    ) -> Result<Self, ReplayError> {
        Self::create_from(dir, layout, capacity, Some(shape), None)
    }

    /// [`Store::create`], remembering where the content comes from.
    pub(crate) fn create_from(
        dir: &Path,
        layout: Layout,
        capacity: u64,
        shape: Option<FrameShape>,
        origin: Option<Origin>,
    ) -> Result<Self, ReplayError> {
        let header = Header::new(layout, u16::from(shape.is_some()), capacity)?;
        let impossible = ReplayError::Capacity { capacity, least: 1, most: u32::MAX.into() };
        let len = header.file_len().ok_or(impossible)?;
        if dir.join(RECORD_FILE).exists() {
            return Err(ReplayError::Exists { path: dir.join(RECORD_FILE) });
        }
        // How much of the frames is in memory is for who opens the buffer to say.
        Budget::new(layout, capacity, shape).with_resident(0).check(dir)?;
        let frames = shape.map(|shape| Frames::create(dir, shape, capacity, layout.schema_hash)).transpose()?;
        let mut first = vec![0; RECORDS_AT];
        header.write(&mut first);
        let (file, path) = files::create(dir, RECORD_FILE, len, false, |file| {
            std::io::Write::write_all(file, &first).map_err(io_error("write the header in", dir))?;
            Meta::new(&header, shape, origin).write(dir)
        })?;
        let region = Mapped::new(file, true).map_err(io_error("map", &path))?;
        Self::start(Box::new(region), frames, path, Some(dir.to_owned()), Access::ReadWrite)
    }

    /// Opens the buffer in the folder `dir`: reads and verifies every record.
    ///
    /// # Errors
    /// When there is none, another process holds it, or its header or length are unusable. Damaged records are
    /// no error: see [`Store::bad_records`].
    pub fn open(dir: &Path, access: Access) -> Result<Self, ReplayError> {
        let write = access == Access::ReadWrite;
        let (file, path) = files::open(dir, RECORD_FILE, write)?;
        let len = file.metadata().map_err(io_error("look at", &path))?.len();
        if len < RECORDS_AT as u64 {
            return Err(ReplayError::Header { path, reason: super::HeaderProblem::Short });
        }
        let region = Mapped::new(file, write).map_err(io_error("map", &path))?;
        let frames = match Header::read(region.bytes()) {
            Ok((header, _)) if header.cameras > 0 => {
                Some(Frames::open(dir, write, header.layout.schema_hash, header.capacity)?)
            }
            _ => None,
        };
        Self::start(Box::new(region), frames, path, Some(dir.to_owned()), access)
    }

    /// Opens the buffer in the folder `dir` for writing, or creates it where there is none. A buffer that exists
    /// keeps its capacity.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::create`], and when the buffer belongs to another robot.
    pub fn open_or_create(dir: &Path, layout: Layout, capacity: u64) -> Result<Self, ReplayError> {
        if !dir.join(files::RECORD_FILE).exists() {
            return Self::create(dir, layout, capacity);
        }
        let store = Self::open(dir, Access::ReadWrite)?;
        store.expect_layout(layout)?;
        if store.capacity() != capacity {
            let (path, found) = (store.path.display(), store.capacity());
            log::warn!("replay {path}: keeps its capacity of {found} records; {capacity} needs a new folder");
        }
        Ok(store)
    }

    /// A buffer in memory, gone when dropped.
    ///
    /// # Errors
    /// When layout or capacity are impossible.
    pub fn in_memory(layout: Layout, capacity: u64) -> Result<Self, ReplayError> {
        Self::in_memory_with_frames(layout, capacity, None)
    }

    /// [`Store::in_memory`] with camera frames, if `shape` is given.
    ///
    /// # Errors
    /// As [`Store::in_memory`], and when no buffer holds frames of this size.
    pub fn in_memory_with_frames(
        layout: Layout,
        capacity: u64,
        shape: Option<FrameShape>,
    ) -> Result<Self, ReplayError> {
        let header = Header::new(layout, u16::from(shape.is_some()), capacity)?;
        let len = header.file_len().ok_or(ReplayError::Capacity { capacity, least: 1, most: u32::MAX.into() })?;
        Budget::new(layout, capacity, shape).check_in_memory()?;
        let frames = shape.map(|shape| Frames::in_memory(shape, capacity, layout.schema_hash)).transpose()?;
        let mut bytes = vec![0; len as usize];
        header.write(&mut bytes);
        Self::start(Box::new(bytes), frames, PathBuf::from("(memory)"), None, Access::ReadWrite)
    }

    /// Opens whatever `region` holds, as [`Store::open`] does with a file; a buffer with camera frames cannot be
    /// opened this way.
    ///
    /// # Errors
    /// When header or length are unusable.
    pub fn from_region(region: Box<dyn Region>, access: Access) -> Result<Self, ReplayError> {
        Self::start(region, None, PathBuf::from("(memory)"), None, access)
    }

    /// [`Store::from_region`] with the file of the camera frames.
    ///
    /// # Errors
    /// As [`Store::from_region`], for both files.
    pub fn from_regions(region: Box<dyn Region>, frames: Box<dyn Region>, access: Access) -> Result<Self, ReplayError> {
        let path = PathBuf::from("(memory)");
        let (header, _) =
            Header::read(region.bytes()).map_err(|reason| ReplayError::Header { path: path.clone(), reason })?;
        let frames = Frames::start(frames, &path, header.layout.schema_hash, header.capacity)?;
        Self::start(region, Some(frames), path, None, access)
    }

    fn start(
        region: Box<dyn Region>,
        frames: Option<Frames>,
        path: PathBuf,
        dir: Option<PathBuf>,
        access: Access,
    ) -> Result<Self, ReplayError> {
        let bytes = region.bytes();
        let (header, headers_usable) =
            Header::read(bytes).map_err(|reason| ReplayError::Header { path: path.clone(), reason })?;
        let (needed, found) = (header.file_len().unwrap_or(u64::MAX), bytes.len() as u64);
        if found < needed {
            return Err(ReplayError::Truncated { path, needed, found });
        }
        if frames.is_some() != (header.cameras > 0) {
            return Err(ReplayError::Header { path, reason: super::HeaderProblem::Unsupported });
        }
        if header.minor > MINOR && access == Access::ReadWrite {
            return Err(ReplayError::NewerMinor { path, minor: header.minor });
        }
        let scan = scan(bytes, &header, frames.as_ref());
        let mut store = Self {
            path,
            dir,
            access,
            headers_usable,
            was_clean: header.clean,
            last: scan.last,
            next_episode: scan.next_episode,
            transitions: SlotSet::new(header.capacity as usize),
            interventions: SlotSet::new(header.capacity as usize),
            valid: scan.valid,
            bad: scan.bad,
            poisoned: None,
            scratch: vec![0; header.record_size()],
            ahead: Ahead::default(),
            header,
            region,
            frames,
        };
        if let Some(frames) = &mut store.frames
            && store.valid.contains(((scan.last.max(1) - 1) % store.header.capacity) as usize)
        {
            let start = RECORDS_AT + ((scan.last - 1) % store.header.capacity) as usize * store.scratch.len();
            let newest = &store.region.bytes()[start..start + store.scratch.len()];
            frames.go_on_after(store.header.layout.frame(newest));
        }
        for slot in store.valid.iter().collect::<Vec<_>>() {
            store.pair(slot);
        }
        if access == Access::ReadWrite {
            // A writer that was killed may have left one slot in the page cache only; two must never be at risk.
            store.flush()?;
            store.put_header(false)?;
            store.flush()?;
        }
        Ok(store)
    }

    /// Appends a record and returns its sequence number. In a full ring it takes the place of the oldest.
    ///
    /// Once this returns, the record survives the death of the process; [`Store::sync`] makes it survive a power
    /// cut. Of a record with [`StepFlags::OBSERVATION_ONLY`] action and reward are not stored.
    ///
    /// # Errors
    /// When the record does not fit or is not finite, the buffer is read-only, or a sync failed before.
    pub fn append(&mut self, record: &StepRecord) -> Result<u64, ReplayError> {
        if self.frames.is_some() {
            return Err(ReplayError::NoFrame);
        }
        self.append_seen(record, None)
    }

    /// [`Store::append`] for a buffer with camera frames.
    ///
    /// # Errors
    /// As [`Store::append`], and when the buffer has no frames, the frame has another size, or the first record of a
    /// process wants the frame of the one before and there is none.
    pub fn append_with_frame(&mut self, record: &StepRecord, seen: Seen<'_>) -> Result<u64, ReplayError> {
        match &self.frames {
            Some(frames) => frames.check(seen)?,
            None => return Err(ReplayError::NoFrames),
        }
        self.append_seen(record, Some(seen))
    }

    fn append_seen(&mut self, record: &StepRecord, seen: Option<Seen<'_>>) -> Result<u64, ReplayError> {
        self.writable()?;
        self.check(record)?;
        let sequence = self.last + 1;
        if sequence > MAX_SEQUENCE {
            return Err(ReplayError::SequenceEnd { path: self.path.clone() });
        }
        let slot = self.slot(sequence);
        self.valid.remove(slot);
        // The frame first: a record is there only with its frame.
        let frame = match (&mut self.frames, seen) {
            (Some(frames), Some(seen)) => Some(frames.take(seen)?),
            _ => None,
        };
        self.header.layout.encode(sequence, record, frame, &mut self.scratch);
        self.write_record(slot)?;
        self.valid.insert(slot);
        self.last = sequence;
        self.next_episode = self.next_episode.max(record.episode.saturating_add(1));
        let about_to_go = self.slot(sequence + 1);
        self.transitions.remove(about_to_go);
        self.interventions.remove(about_to_go);
        if sequence > 1 {
            self.pair(self.slot(sequence - 1));
        }
        Ok(sequence)
    }

    fn writable(&self) -> Result<(), ReplayError> {
        if self.access == Access::ReadOnly {
            return Err(ReplayError::ReadOnly { path: self.path.clone() });
        }
        match &self.poisoned {
            Some(reason) => Err(ReplayError::Poisoned { path: self.path.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn check(&self, record: &StepRecord) -> Result<(), ReplayError> {
        let layout = self.header.layout;
        let only_observation = record.flags.contains(StepFlags::OBSERVATION_ONLY);
        let wrong = |what, found, wanted| Err(ReplayError::Shape { what, found, wanted });
        if record.observation.len() != layout.observation_dim {
            return wrong("observation", record.observation.len(), layout.observation_dim);
        }
        if !only_observation && record.action.len() != layout.action_dim {
            return wrong("action", record.action.len(), layout.action_dim);
        }
        let spoilt = |what| Err(ReplayError::NotFinite { episode: record.episode, step: record.step, what });
        if !record.observation.iter().all(|v| v.is_finite()) {
            return spoilt("observation");
        }
        if !only_observation && !record.action.iter().all(|v| v.is_finite()) {
            return spoilt("action");
        }
        if !only_observation && !record.reward.is_finite() {
            return spoilt("reward");
        }
        Ok(())
    }

    fn write_record(&mut self, slot: usize) -> Result<(), ReplayError> {
        let range = self.range(slot);
        self.ahead.prepare(&mut *self.region, range.clone());
        let Some(bytes) = self.region.bytes_mut() else {
            return Err(ReplayError::ReadOnly { path: self.path.clone() });
        };
        let (body, checksum) = bytes[range].split_at_mut(self.scratch.len() - 4);
        let (new_body, new_checksum) = self.scratch.split_at(body.len());
        write_checked(checksum, new_checksum, || body.copy_from_slice(new_body));
        Ok(())
    }

    /// Makes everything appended so far survive a power cut.
    ///
    /// # Errors
    /// When the device fails. From then on every append is refused: what is on the disk is unknown.
    pub fn sync(&mut self) -> Result<(), ReplayError> {
        self.writable()?;
        self.flush()?;
        // The hint reaches the disk with the next sync, in the header slot that is not in use.
        self.header.watermark = self.last;
        self.put_header(false)
    }

    fn close(&mut self) -> Result<(), ReplayError> {
        self.flush()?;
        self.header.watermark = self.last;
        self.put_header(true)?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), ReplayError> {
        self.ahead.forget();
        let frames = self.frames.as_mut().map_or(Ok(()), Frames::sync);
        frames.and_then(|()| self.region.sync()).map_err(|source| {
            self.poisoned = Some(source.to_string());
            io_error("sync", &self.path)(source)
        })
    }

    fn put_header(&mut self, clean: bool) -> Result<(), ReplayError> {
        self.header.generation += 1;
        self.header.clean = clean;
        let Some(bytes) = self.region.bytes_mut() else {
            return Err(ReplayError::ReadOnly { path: self.path.clone() });
        };
        self.header.write(bytes);
        Ok(())
    }

    /// Puts `slot` among the transitions if it is one.
    fn pair(&mut self, slot: usize) {
        let next = (slot + 1) % self.header.capacity as usize;
        if !self.valid.contains(slot) || !self.valid.contains(next) {
            return;
        }
        let (head, following) = (self.head(slot), self.head(next));
        let about_to_go = head.sequence + self.header.capacity == self.last + 1;
        if head.leads_to(&following) && !about_to_go {
            self.transitions.insert(slot);
            if head.flags.contains(StepFlags::INTERVENTION) {
                self.interventions.insert(slot);
            }
        }
    }

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

    /// Forgets the record with this sequence number and all newer ones; their numbers are given again. For who knows
    /// that the newer ones come once more.
    ///
    /// # Errors
    /// As [`Store::sync`]: they are gone from the disk, too.
    pub(crate) fn forget_from(&mut self, sequence: u64) -> Result<(), ReplayError> {
        self.writable()?;
        let first = sequence.max(self.first_sequence());
        for gone in (first..=self.last).rev() {
            let slot = self.slot(gone);
            self.scratch.fill(0);
            self.write_record(slot)?;
            for set in [&mut self.valid, &mut self.transitions, &mut self.interventions] {
                set.remove(slot);
            }
            self.last = gone - 1;
        }
        if first > 1 {
            let newest = self.slot(first - 1);
            self.transitions.remove(newest);
            self.interventions.remove(newest);
        }
        self.sync()
    }

    fn valid_slot(&self, sequence: u64) -> Result<usize, ReplayError> {
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
    fn range(&self, slot: usize) -> std::ops::Range<usize> {
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

    fn record_bytes(&self, slot: usize) -> &[u8] {
        &self.region.bytes()[self.range(slot)]
    }

    fn head(&self, slot: usize) -> Head {
        Head::read(self.record_bytes(slot))
    }
}

impl Drop for Store {
    /// Marks the file as closed, but only after its records are safe.
    fn drop(&mut self) {
        if self.access == Access::ReadWrite
            && self.poisoned.is_none()
            && let Err(error) = self.close()
        {
            log::error!("{error}; records since the last sync may be lost");
        }
    }
}
