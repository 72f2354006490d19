//! `prio.rrb`: a snapshot of all priorities, so that a resumed run draws as before (`docs/replay-format.md`).
//!
//! Advisory: absent, damaged or foreign, it is set aside with a warning and the priorities start afresh.

use std::fs;
use std::path::Path;

use super::error::ReplayError;
use super::files;
use super::header::ENDIAN;
use super::layout::{floats, put, u32_at, u64_at};

const FILE: &str = "prio.rrb";
const MAGIC: [u8; 8] = *b"\x89FTP\r\n\x1a\n";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const CHECKSUM: usize = 4;

/// What the priorities belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) offline_leaves: u64,
    pub(crate) online_leaves: u64,
    pub(crate) offline_identity: u64,
}

/// Content of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) owner: Owner,
    /// Online sequence numbers whose priorities are in the file.
    pub(crate) online_first: u64,
    pub(crate) online_last: u64,
    pub(crate) running_maximum: f32,
    /// One per leaf.
    pub(crate) priorities: Vec<f32>,
}

impl Snapshot {
    /// Replaces the file in `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), ReplayError> {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 12, &ENDIAN.to_le_bytes());
        put(&mut bytes, 16, &self.owner.offline_leaves.to_le_bytes());
        put(&mut bytes, 24, &self.owner.online_leaves.to_le_bytes());
        put(&mut bytes, 32, &self.owner.offline_identity.to_le_bytes());
        put(&mut bytes, 40, &self.online_first.to_le_bytes());
        put(&mut bytes, 48, &self.online_last.to_le_bytes());
        put(&mut bytes, 56, &self.running_maximum.to_le_bytes());
        bytes.extend(self.priorities.iter().flat_map(|p| p.to_le_bytes()));
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend(checksum.to_le_bytes());
        files::replace(&dir.join(FILE), &bytes)
    }

    /// The snapshot in `dir` if it is whole and belongs to `owner`. `None` when there is no file.
    pub(crate) fn read(dir: &Path, owner: Owner) -> Option<Result<Self, &'static str>> {
        fs::read(dir.join(FILE)).ok().map(|bytes| Self::parse(&bytes, owner))
    }

    fn parse(bytes: &[u8], owner: Owner) -> Result<Self, &'static str> {
        if bytes.len() < HEADER + CHECKSUM || bytes[..8] != MAGIC {
            return Err("it is no priority file");
        }
        let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if crc32c::crc32c(body) != u32_at(checksum, 0) {
            return Err("its checksum is wrong");
        }
        if u32_at(body, 8) != VERSION || u32_at(body, 12) != ENDIAN {
            return Err("its version is unknown");
        }
        let snapshot = Self {
            owner: Owner {
                offline_leaves: u64_at(body, 16),
                online_leaves: u64_at(body, 24),
                offline_identity: u64_at(body, 32),
            },
            online_first: u64_at(body, 40),
            online_last: u64_at(body, 48),
            running_maximum: f32::from_bits(u32_at(body, 56)),
            priorities: floats(&body[HEADER..]).collect(),
        };
        if snapshot.owner != owner {
            return Err("it belongs to other buffers");
        }
        let numbers = snapshot.priorities.iter().chain([&snapshot.running_maximum]);
        let leaves = owner.offline_leaves.checked_add(owner.online_leaves);
        if leaves != Some(snapshot.priorities.len() as u64) || !numbers.into_iter().all(|p| p.is_finite() && *p >= 0.0)
        {
            return Err("its numbers are impossible");
        }
        Ok(snapshot)
    }
}
