//! One buffer: a ring of records that survives the death of its writer (`docs/replay-format.md`).

mod label;
mod read;

use std::path::{Path, PathBuf};

use super::budget::Budget;
use super::error::ReplayError;
use super::files::{self, RECORD_FILE, io_error};
use super::frames::{Frames, Seen};
use super::header::{Header, MINOR};
use super::layout::{Layout, MAX_SEQUENCE, RECORDS_AT};
use super::meta::{Meta, Origin};
use super::region::{Ahead, Mapped, Region, write_checked};
use super::scan::{BadRecords, scan};
use super::slot_set::SlotSet;
use crate::spaces::{FrameShape, StepFlags, StepRecord};

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
