//! The bytes under a buffer: a memory map, a vector, or in tests the image that a crash leaves.
//!
//! One of the two places of the crate with `unsafe`: mapping a file.
#![allow(unsafe_code, reason = "a file mapping cannot be made without it; the invariant is the lock on the file")]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Advice, Mmap, MmapMut};

/// Storage of one record file.
pub trait Region: Send + fmt::Debug {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// All bytes for writing, `None` when opened read-only.
    fn bytes_mut(&mut self) -> Option<&mut [u8]>;

    /// Makes the pages of `range` ready, so that writing them soon does not wait for the file system.
    fn prepare(&mut self, range: Range<usize>) {
        let _ = range;
    }

    /// Returns once everything written so far would survive a power cut.
    ///
    /// # Errors
    /// When the device reports a failure; what is on the disk is unknown then.
    fn sync(&mut self) -> io::Result<()>;
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

/// A mapped record file together with its lock.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Map,
    populate: bool,
    // Holds the lock, and with it the SAFETY argument below, for as long as the map lives.
    _locked: File,
}

#[derive(Debug)]
enum Map {
    ReadOnly(Mmap),
    ReadWrite(MmapMut),
}

impl Mapped {
    /// Maps all of `file`, which the caller has locked: exclusively for `write`, shared otherwise.
    pub(crate) fn new(file: File, write: bool) -> io::Result<Self> {
        // SAFETY: the bytes change only through this map while it lives. Every opener of a buffer takes the
        // file lock first (`files::lock`): a writer excludes everybody, readers exclude writers; the lock is
        // released when `_locked` is dropped, after `map`. Nothing shortens the file (`files` only creates).
        // A process outside this crate that ignores the lock can still change bytes; they are read as plain
        // integers and floats, for which every bit pattern is valid.
        let map = unsafe {
            if write { MmapMut::map_mut(&file).map(Map::ReadWrite)? } else { Mmap::map(&file).map(Map::ReadOnly)? }
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

    fn sync(&mut self) -> io::Result<()> {
        match &self.map {
            Map::ReadOnly(_) => Ok(()),
            Map::ReadWrite(map) => map.flush(),
        }
    }
}
