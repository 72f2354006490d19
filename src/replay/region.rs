//! The bytes under a buffer: a memory map, a vector, or in tests the image that a crash leaves.
//!
//! One of the places of the crate with `unsafe`: mapping a file, and letting go of its memory.
#![allow(unsafe_code, reason = "a file mapping cannot be made without it; the invariant is the lock on the file")]

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use memmap2::{Advice, Mmap, MmapMut, UncheckedAdvice};

use super::files::Locked;

/// Storage of one file of a buffer.
pub trait Region: Send + fmt::Debug {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// All bytes for writing, `None` when opened read-only.
    fn bytes_mut(&mut self) -> Option<&mut [u8]>;

    /// Makes the pages of `range` ready, so that writing them soon does not wait for the file system.
    fn prepare(&mut self, range: Range<usize>) {
        let _ = range;
    }

    /// Lets go of the memory that holds the bytes; they come back from the file when they are next looked at.
    fn release(&self) {}

    /// Takes the bytes out of locked memory, where `mlockall` put them.
    fn unlock(&self) {}

    /// Returns once everything written so far would survive a power cut.
    ///
    /// # Errors
    /// When the device reports a failure; what is on the disk is unknown then.
    fn sync(&mut self) -> io::Result<()>;
}

/// Bytes of a file that are made writable ahead of the append position.
const PREPARE: usize = 128 * 1024;

/// How far ahead of the append position a file is prepared.
#[derive(Debug, Default)]
pub(crate) struct Ahead(usize);

impl Ahead {
    /// Call before writing into `range`.
    pub(crate) fn prepare(&mut self, region: &mut dyn Region, range: Range<usize>) {
        // At the start of a lap the position is below everything prepared before.
        if range.end > self.0 || range.start + PREPARE < self.0 {
            let end = (range.start + PREPARE).max(range.end).min(region.bytes().len());
            region.prepare(range.start..end);
            self.0 = end;
        }
    }

    /// A sync makes pages read-only again, so the next write prepares them anew.
    pub(crate) fn forget(&mut self) {
        self.0 = 0;
    }
}

/// Writes what a checksum covers so that a process that dies in between leaves no valid checksum.
pub(crate) fn write_checked(checksum: &mut [u8], value: &[u8], body: impl FnOnce()) {
    checksum.fill(0);
    // The compiler keeps the three steps apart; the processor retires stores in an order that the death of the
    // process cannot change. Against a power cut only the checksum itself helps.
    compiler_fence(Ordering::SeqCst);
    body();
    compiler_fence(Ordering::SeqCst);
    checksum.copy_from_slice(value);
}

impl Region for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(self)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A mapped file together with its lock.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Map,
    populate: bool,
    // Holds the lock, and with it the SAFETY argument below, for as long as the map lives.
    _locked: Locked,
}

#[derive(Debug)]
enum Map {
    ReadOnly(Mmap),
    ReadWrite(MmapMut),
}

impl Mapped {
    /// Maps all of `file`, which the caller has locked: exclusively for `write`, shared otherwise.
    pub(crate) fn new(file: Locked, write: bool) -> io::Result<Self> {
        // SAFETY: the bytes change only through this map while it lives. Every opener of a buffer takes the
        // file lock first (`files::lock`): a writer excludes everybody, readers exclude writers; the lock is
        // released when `_locked` is dropped, after `map`. Nothing shortens the file (`files` only creates).
        // A process outside this crate that ignores the lock can still change bytes; they are read as plain
        // integers and floats, for which every bit pattern is valid.
        let map = unsafe {
            if write { MmapMut::map_mut(&*file).map(Map::ReadWrite)? } else { Mmap::map(&*file).map(Map::ReadOnly)? }
        };
        Ok(Self { map, populate: true, _locked: file })
    }
}

impl Region for Mapped {
    fn bytes(&self) -> &[u8] {
        match &self.map {
            Map::ReadOnly(map) => map,
            Map::ReadWrite(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.map {
            Map::ReadOnly(_) => None,
            Map::ReadWrite(map) => Some(map),
        }
    }

    fn prepare(&mut self, range: Range<usize>) {
        if let (Map::ReadWrite(map), true) = (&self.map, self.populate) {
            // Kernels before 5.14 do not know the advice: then writes fault one by one, which is slower, not wrong.
            self.populate = map.advise_range(Advice::PopulateWrite, range.start, range.len()).is_ok();
        }
    }

    fn release(&self) {
        // SAFETY: the map is shared with its file, so what was written stays in the system's page cache: the same bytes
        // are there at the next access, and a reference into the map stays valid.
        let released = unsafe {
            match &self.map {
                Map::ReadOnly(map) => map.unchecked_advise(UncheckedAdvice::DontNeed),
                Map::ReadWrite(map) => map.unchecked_advise(UncheckedAdvice::DontNeed),
            }
        };
        if let Err(error) = released {
            log::debug!("a replay file stays in memory: {error}");
        }
    }

    fn unlock(&self) {
        // Refused only where nothing is mapped; the pages stay locked then, which wastes memory and breaks nothing.
        let unlocked = match &self.map {
            Map::ReadOnly(map) => map.unlock(),
            Map::ReadWrite(map) => map.unlock(),
        };
        if let Err(error) = unlocked {
            log::warn!("a replay file stays in locked memory: {error}");
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match &self.map {
            Map::ReadOnly(_) => Ok(()),
            Map::ReadWrite(map) => map.flush(),
        }
    }
}
