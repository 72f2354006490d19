//! What a buffer costs, asked before it is made.

use std::fmt;
use std::fs;
use std::path::Path;

use super::error::ReplayError;
use super::layout::{Layout, RECORDS_AT};
use crate::spaces::FrameShape;
use crate::telemetry::meminfo;

/// Bytes of memory for a slot outside the files: its priority, its share of the tree above, and a bit in each set.
const TABLES_PER_SLOT: u64 = 6;

/// Disk and memory of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of the record file.
    pub records: u64,
    /// Bytes of the frame file.
    pub frames: u64,
    /// Bytes of memory for priorities and sets.
    pub tables: u64,
    /// Most bytes of the frame file that are in memory at once.
    pub resident: u64,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        write!(
            f,
            "{:.2} GB on disk, {:.2} of them frames; at most {:.2} GB of memory",
            gb(self.disk()),
            gb(self.frames),
            gb(self.memory())
        )
    }
}

impl Budget {
    /// Bytes of frames that are in memory where nobody says otherwise.
    pub const RESIDENT: u64 = 4 << 30;

    /// Of a buffer of `capacity` records.
    pub fn new(layout: Layout, capacity: u64, frames: Option<FrameShape>) -> Self {
        let record = layout.record_size_with(u16::from(frames.is_some())) as u64;
        Self {
            records: capacity.saturating_mul(record).saturating_add(RECORDS_AT as u64),
            frames: frames.map_or(0, |shape| shape.file_len(capacity).unwrap_or(u64::MAX)),
            tables: capacity.saturating_mul(TABLES_PER_SLOT),
            resident: Self::RESIDENT,
        }
    }

    /// With at most so many bytes of the frame file in memory.
    #[must_use]
    pub fn with_resident(self, bytes: u64) -> Self {
        Self { resident: bytes, ..self }
    }

    /// Bytes of memory, what may be mapped of the files included.
    pub fn memory(&self) -> u64 {
        self.mapped().saturating_add(self.tables)
    }

    fn mapped(&self) -> u64 {
        self.records.saturating_add(self.frames.min(self.resident))
    }

    /// Bytes on disk.
    pub fn disk(&self) -> u64 {
        self.records.saturating_add(self.frames)
    }

    /// Refuses a buffer in the folder `dir` that the disk or the memory cannot hold. Draws are spread over the whole
    /// record file, so one that is larger than the memory would wait for the disk at every row; of the frame file the
    /// resident part counts.
    ///
    /// # Errors
    /// [`ReplayError::NoSpace`] or [`ReplayError::NoMemory`], with the numbers.
    pub fn check(&self, dir: &Path) -> Result<(), ReplayError> {
        let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
        // File systems that do not know say 0 blocks.
        let free = rustix::fs::statvfs(existing).ok().filter(|s| s.f_blocks > 0);
        let available = free.map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        if self.disk() > available {
            return Err(ReplayError::NoSpace { path: dir.to_owned(), needed: self.disk(), available });
        }
        self.check_resident()
    }

    /// [`Budget::check`] of a buffer that has its place on the disk already.
    ///
    /// # Errors
    /// [`ReplayError::NoMemory`].
    pub fn check_resident(&self) -> Result<(), ReplayError> {
        self.check_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    /// [`Budget::check`] of a buffer without files.
    ///
    /// # Errors
    /// [`ReplayError::NoMemory`].
    pub fn check_in_memory(&self) -> Result<(), ReplayError> {
        let all = Self { tables: self.tables.saturating_add(self.disk()), resident: u64::MAX, ..*self };
        all.check_resident()
    }

    /// `memory` has the form of `/proc/meminfo`; a system without it is not asked.
    fn check_memory(&self, memory: &str) -> Result<(), ReplayError> {
        for (what, needed, field) in
            [("priorities and sets", self.tables, "MemAvailable:"), ("records and frames", self.mapped(), "MemTotal:")]
        {
            let available = meminfo(memory, field).unwrap_or(u64::MAX);
            if needed > available {
                return Err(ReplayError::NoMemory { what, needed, available });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 0 };
    const SHAPE: FrameShape = FrameShape { width: 48, height: 48, channels: 3 };

    #[test]
    fn a_pixel_step_costs_at_most_five_percent_more_than_its_frame() {
        for (observation_dim, action_dim) in [(1, 1), (13, 7), (17, 7), (40, 10)] {
            let layout = Layout { observation_dim, action_dim, schema_hash: 0 };
            let with = Budget::new(layout, 1_000_000, Some(SHAPE));
            let per_step = with.disk() as f64 / 1e6;
            assert!(per_step <= 1.05 * 6912.0, "{per_step} bytes per step");
        }
    }

    #[test]
    fn what_memory_cannot_hold_is_refused_with_the_numbers() {
        let budget = Budget::new(LAYOUT, 100_000, Some(SHAPE));
        let memory = |total_kb: u64, free_kb: u64| format!("MemTotal: {total_kb} kB\nMemAvailable:   {free_kb} kB\n");
        assert!(budget.check_memory(&memory(1_000_000, 500_000)).is_ok());
        assert!(budget.check_memory("").is_ok(), "a system that does not say is not asked");
        let error = budget.check_memory(&memory(600_000, 500_000)).unwrap_err().to_string();
        assert!(error.contains(&budget.disk().to_string()) && error.contains("614400000"), "{error}");
        assert!(matches!(
            budget.check_memory(&memory(1_000_000, 500)),
            Err(ReplayError::NoMemory { needed: 600_000, available: 512_000, .. })
        ));
    }

    #[test]
    fn a_hundred_thousand_steps_with_two_cameras_fit_a_small_computer() {
        let shape = FrameShape { width: 128, height: 128, channels: 6 };
        let budget = Budget::new(LAYOUT, 100_000, Some(shape)).with_resident(2 << 30);
        assert!(budget.disk() <= 9_900_000_000, "{}", budget.disk());
        assert_eq!(budget.to_string(), "9.86 GB on disk, 9.84 of them frames; at most 2.17 GB of memory");
        assert!(budget.check_memory("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n").is_ok());
        let most = budget.check_memory("MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n");
        assert!(matches!(most, Err(ReplayError::NoMemory { what: "records and frames", .. })));
    }

    #[test]
    fn what_the_disk_cannot_hold_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("not/yet/there");
        let error = Budget::new(LAYOUT, u32::MAX.into(), Some(SHAPE)).check(&inner).unwrap_err();
        assert!(matches!(error, ReplayError::NoSpace { needed, .. } if needed > 7 * u64::from(u32::MAX)), "{error}");
        assert!(!dir.path().join("not").exists());
    }
}
