//! One buffer: a ring of records that survives the death of its writer (`docs/replay-format.md`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};

use super::error::ReplayError;
use super::files::{self, io_error};
use super::header::{Header, MINOR};
use super::layout::{Head, Layout, MAX_SEQUENCE, RECORDS_AT, u32_at};
use super::meta::{Meta, Origin};
use super::region::{Mapped, Region};
use super::scan::{BadRecords, scan};
use super::slot_set::SlotSet;
use crate::spaces::{StepFlags, StepRecord};

/// Bytes of the file that are made writable ahead of the append position.
const PREPARE: usize = 128 * 1024;

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
    bad: BadRecords,
    poisoned: Option<String>,
    scratch: Vec<u8>,
    prepared_to: usize,
}

impl Store {
    /// Creates a buffer of `capacity` records in the folder `dir` and allocates all of its disk space.
    ///
    /// # Errors
    /// When a buffer exists there, the disk is too small ([`ReplayError::NoSpace`]), or layout or capacity are
    /// impossible. Nothing is left behind then.
    pub fn create(dir: &Path, layout: Layout, capacity: u64) -> Result<Self, ReplayError> {
        Self::create_from(dir, layout, capacity, None)
    }

    /// [`Store::create`], remembering where the content comes from.
    pub(crate) fn create_from(
        dir: &Path,
        layout: Layout,
        capacity: u64,
        origin: Option<Origin>,
    ) -> Result<Self, ReplayError> {
        let header = Header::new(layout, capacity)?;
        let len = header.file_len().ok_or(ReplayError::Capacity { capacity, least: 1, most: u32::MAX.into() })?;
        let mut first = vec![0; RECORDS_AT];
        header.write(&mut first);
        let (file, path) = files::create(dir, len, |file| {
            std::io::Write::write_all(file, &first).map_err(io_error("write the header in", dir))?;
            Meta::new(layout, capacity, origin).write(dir)
        })?;
        let region = Mapped::new(file, true).map_err(io_error("map", &path))?;
        Self::start(Box::new(region), path, Some(dir.to_owned()), Access::ReadWrite)
    }

    /// Opens the buffer in the folder `dir`: reads and verifies every record.
    ///
    /// # Errors
    /// When there is none, another process holds it, or its header or length are unusable. Damaged records are
    /// no error: see [`Store::bad_records`].
    pub fn open(dir: &Path, access: Access) -> Result<Self, ReplayError> {
        let write = access == Access::ReadWrite;
        let (file, path) = files::open(dir, write)?;
        let len = file.metadata().map_err(io_error("look at", &path))?.len();
        if len < RECORDS_AT as u64 {
            return Err(ReplayError::Header { path, reason: super::HeaderProblem::Short });
        }
        let region = Mapped::new(file, write).map_err(io_error("map", &path))?;
        Self::start(Box::new(region), path, Some(dir.to_owned()), access)
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
        let header = Header::new(layout, capacity)?;
        let len = header.file_len().ok_or(ReplayError::Capacity { capacity, least: 1, most: u32::MAX.into() })?;
        let mut bytes = vec![0; len as usize];
        header.write(&mut bytes);
        Self::from_region(Box::new(bytes), Access::ReadWrite)
    }

    /// Opens whatever `region` holds, as [`Store::open`] does with a file.
    ///
    /// # Errors
    /// When header or length are unusable.
    pub fn from_region(region: Box<dyn Region>, access: Access) -> Result<Self, ReplayError> {
        Self::start(region, PathBuf::from("(memory)"), None, access)
    }

    fn start(
        region: Box<dyn Region>,
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
        if header.minor > MINOR && access == Access::ReadWrite {
            return Err(ReplayError::NewerMinor { path, minor: header.minor });
        }
        let scan = scan(bytes, &header);
        let mut store = Self {
            path,
            dir,
            access,
            headers_usable,
            was_clean: header.clean,
            last: scan.last,
            next_episode: scan.next_episode,
            transitions: SlotSet::new(header.capacity as usize),
            valid: scan.valid,
            bad: scan.bad,
            poisoned: None,
            scratch: vec![0; header.layout.record_size()],
            prepared_to: 0,
            header,
            region,
        };
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
        self.writable()?;
        self.check(record)?;
        let sequence = self.last + 1;
        if sequence > MAX_SEQUENCE {
            return Err(ReplayError::SequenceEnd { path: self.path.clone() });
        }
        let slot = self.slot(sequence);
        self.valid.remove(slot);
        self.header.layout.encode(sequence, record, &mut self.scratch);
        self.prepare(slot);
        self.write_record(slot)?;
        self.valid.insert(slot);
        self.last = sequence;
        self.next_episode = self.next_episode.max(record.episode.saturating_add(1));
        self.transitions.remove(self.slot(sequence + 1));
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

    /// Copies `scratch` into `slot` so that a process that dies in between leaves no valid checksum.
    fn write_record(&mut self, slot: usize) -> Result<(), ReplayError> {
        let range = self.range(slot);
        let Some(bytes) = self.region.bytes_mut() else {
            return Err(ReplayError::ReadOnly { path: self.path.clone() });
        };
        let (body, checksum) = bytes[range].split_at_mut(self.scratch.len() - 4);
        checksum.fill(0);
        // The compiler keeps the three steps apart; the processor retires stores in an order that the death of
        // the process cannot change. Against a power cut only the checksum itself helps.
        compiler_fence(Ordering::SeqCst);
        body.copy_from_slice(&self.scratch[..body.len()]);
        compiler_fence(Ordering::SeqCst);
        checksum.copy_from_slice(&self.scratch[body.len()..]);
        Ok(())
    }

    fn prepare(&mut self, slot: usize) {
        let range = self.range(slot);
        // At the start of a lap the position is below everything prepared before.
        if range.end > self.prepared_to || range.start + PREPARE < self.prepared_to {
            let end = (range.start + PREPARE).max(range.end).min(self.region.bytes().len());
            self.region.prepare(range.start..end);
            self.prepared_to = end;
        }
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
        // A sync makes pages read-only again, so the next append prepares them anew.
        self.prepared_to = 0;
        self.region.sync().map_err(|source| {
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
        }
    }

    /// Copies the record with this sequence number.
    ///
    /// # Errors
    /// When it was overwritten, is damaged, or never was.
    pub fn record(&self, sequence: u64, into: &mut StepRecord) -> Result<(), ReplayError> {
        let (first, last) = (self.first_sequence(), self.last);
        let slot = self.slot(sequence.max(1));
        if sequence < first || sequence > last || sequence == 0 || !self.valid.contains(slot) {
            return Err(ReplayError::NoRecord { sequence, first, last });
        }
        self.header.layout.decode(self.record_bytes(slot), into);
        Ok(())
    }

    /// Whether the record in `slot` and its successor form a transition that may be sampled.
    pub fn is_sampleable(&self, slot: usize) -> bool {
        self.transitions.contains(slot)
    }

    /// Number of transitions that may be sampled.
    pub fn transitions(&self) -> u64 {
        self.transitions.len() as u64
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
