//! `meta.json`: for people, and for finding out whether a data set was imported before. Never needed to open.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::ReplayError;
use super::files;
use super::header::{Header, MAJOR, MINOR};
use crate::spaces::FrameShape;

const FILE: &str = "meta.json";

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    format: String,
    version: String,
    observation_dim: usize,
    action_dim: usize,
    schema_hash: String,
    record_bytes: usize,
    capacity: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    frames: Option<FrameShape>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) origin: Option<Origin>,
}

/// The data set file that a buffer was imported from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// Its time of change, nanoseconds since 1970.
    pub(crate) changed_ns: i128,
    /// SHA-256 of its content.
    pub(crate) sha256: String,
}

impl Meta {
    pub(crate) fn new(header: &Header, frames: Option<FrameShape>, origin: Option<Origin>) -> Self {
        let layout = header.layout;
        Self {
            format: "fieldtune replay buffer".into(),
            version: format!("{MAJOR}.{MINOR}"),
            observation_dim: layout.observation_dim,
            action_dim: layout.action_dim,
            schema_hash: format!("{:016x}", layout.schema_hash),
            record_bytes: header.record_size(),
            capacity: header.capacity,
            frames,
            origin,
        }
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<(), ReplayError> {
        let path = dir.join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|e| files::io_error("write", &path)(e.into()))?;
        files::replace(&path, &text)
    }

    /// The file's content, `None` when it is absent or damaged.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }
}
