//! Checkpoints on disk: a folder of numbered generations, each a set of parts with their SHA-256.
//!
//! ```text
//! DIR/000007/SHA256SUMS          "<hex>  <part>\n" for every part: `sha256sum -c` reads it
//! DIR/000007/<part>              bytes
//! DIR/.writing/                  a generation that is not durable yet; never read
//! ```
//!
//! A generation is written beside the good one, every part and the folder are synced, then one rename makes it
//! visible; older generations are removed only after that rename is durable. Whatever moment the power goes,
//! the newest numbered folder is complete. Reading checks every part before it returns any of them. What the
//! parts hold is the caller's business. Called by the learner thread, one writer per folder.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const SUMS: &str = "SHA256SUMS";
const WRITING: &str = ".writing";

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// No generation in the folder.
    #[error("no checkpoint in {}: start without one, or give the folder that holds the numbered generations", dir.display())]
    NotFound {
        /// The folder.
        dir: PathBuf,
    },
    /// A part, or a tensor inside a part, is not there.
    #[error("checkpoint {}: `{part}` is missing: restore the folder from a copy or remove it to start afresh", dir.display())]
    Missing {
        /// The generation's folder.
        dir: PathBuf,
        /// Name of the part.
        part: String,
    },
    /// The bytes of a part are not those that were written.
    #[error("checkpoint {}: `{part}` was altered, it does not match its SHA-256 in {SUMS}: restore it from a copy or remove the folder to start afresh", dir.display())]
    Altered {
        /// The generation's folder.
        dir: PathBuf,
        /// Name of the part.
        part: String,
    },
    /// A part has the right hash, but this program cannot use it.
    #[error("checkpoint {}: `{part}` does not fit this run: {reason}", dir.display())]
    Unusable {
        /// The generation's folder.
        dir: PathBuf,
        /// Name of the part.
        part: String,
        /// What differs.
        reason: String,
    },
    /// The file system refused.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { operation, path, source }
}

/// The newest generation in `dir`, if there is one.
///
/// # Errors
/// When `dir` exists but cannot be listed.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    Ok(generations(dir)?.pop().map(|(_, path)| path))
}

/// All generations in `dir`, oldest first.
fn generations(dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("list", dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io("list", dir))?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Writes a generation with `parts` and, once it is durable, removes the older ones. Returns its folder.
///
/// # Errors
/// When the file system refuses; the previous generation is then still the newest.
pub(super) fn write(dir: &Path, parts: &[(&str, Vec<u8>)]) -> Result<PathBuf, CheckpointError> {
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    let older = generations(dir)?;
    let writing = dir.join(WRITING);
    if writing.exists() {
        fs::remove_dir_all(&writing).map_err(io("remove", &writing))?;
    }
    fs::create_dir(&writing).map_err(io("create", &writing))?;
    let mut sums = String::new();
    for (part, bytes) in parts {
        write_durably(&writing.join(part), bytes)?;
        let _ = writeln!(sums, "{}  {part}", hex(bytes)); // writing to a String cannot fail
    }
    write_durably(&writing.join(SUMS), sums.as_bytes())?;
    sync_folder(&writing)?;
    let target = dir.join(format!("{:06}", older.last().map_or(0, |(number, _)| number + 1)));
    fs::rename(&writing, &target).map_err(io("rename to", &target))?;
    sync_folder(dir)?;
    for (_, path) in older {
        fs::remove_dir_all(&path).map_err(io("remove", &path))?;
    }
    Ok(target)
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("sync", path))
}

fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io("sync", path))
}

/// The verified parts of one generation.
#[derive(Debug)]
pub(super) struct Parts {
    dir: PathBuf,
    bytes: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    /// Reads `names` of the newest generation in `dir` and checks each against its SHA-256.
    pub(super) fn read(dir: &Path, names: &[&str]) -> Result<Self, CheckpointError> {
        let dir = latest(dir)?.ok_or_else(|| CheckpointError::NotFound { dir: dir.to_owned() })?;
        let mut parts = Self { dir, bytes: BTreeMap::new() };
        let sums = String::from_utf8(parts.read_file(SUMS)?).map_err(|_| parts.altered(SUMS))?;
        for name in names {
            let line = sums.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix("  "));
            let bytes = parts.read_file(name)?;
            match line {
                None => return Err(parts.altered(SUMS)),
                Some(sum) if sum != hex(&bytes) => return Err(parts.altered(name)),
                Some(_) => parts.bytes.insert((*name).to_owned(), bytes),
            };
        }
        Ok(parts)
    }

    /// Bytes of a part that was among the names read.
    pub(super) fn part(&self, name: &str) -> Result<&[u8], CheckpointError> {
        self.bytes.get(name).map(Vec::as_slice).ok_or_else(|| self.missing(name))
    }

    pub(super) fn missing(&self, part: impl Into<String>) -> CheckpointError {
        CheckpointError::Missing { dir: self.dir.clone(), part: part.into() }
    }

    pub(super) fn unusable(&self, part: &str, reason: &dyn Display) -> CheckpointError {
        CheckpointError::Unusable { dir: self.dir.clone(), part: part.to_owned(), reason: reason.to_string() }
    }

    fn altered(&self, part: &str) -> CheckpointError {
        CheckpointError::Altered { dir: self.dir.clone(), part: part.to_owned() }
    }

    fn read_file(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let path = self.dir.join(name);
        fs::read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.missing(name),
            _ => io("read", &path)(error),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["a.bin", "b.bin"];

    fn save(dir: &Path, fill: u8) -> PathBuf {
        write(dir, &[("a.bin", vec![fill; 100]), ("b.bin", vec![fill; 5])]).unwrap()
    }

    #[test]
    fn newest_generation_wins_and_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Parts::read(dir.path(), &NAMES), Err(CheckpointError::NotFound { .. })));
        save(dir.path(), 1);
        let second = save(dir.path(), 2);
        assert_eq!(generations(dir.path()).unwrap().len(), 1);
        assert_eq!(latest(dir.path()).unwrap(), Some(second));
        assert_eq!(Parts::read(dir.path(), &NAMES).unwrap().part("b.bin").unwrap(), [2; 5]);
    }

    #[test]
    fn a_torn_generation_is_never_read() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), 1);
        fs::create_dir(dir.path().join(WRITING)).unwrap();
        fs::write(dir.path().join(WRITING).join("a.bin"), [9; 3]).unwrap();
        assert_eq!(Parts::read(dir.path(), &NAMES).unwrap().part("a.bin").unwrap(), [1; 100]);
        save(dir.path(), 3);
        assert_eq!(Parts::read(dir.path(), &NAMES).unwrap().part("a.bin").unwrap(), [3; 100]);
        assert!(!dir.path().join(WRITING).exists());
    }

    #[test]
    fn every_flipped_byte_and_missing_part_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let generation = save(dir.path(), 1);
        for name in NAMES {
            let path = generation.join(name);
            let good = fs::read(&path).unwrap();
            for position in 0..good.len() {
                let mut bad = good.clone();
                bad[position] ^= 0x40;
                fs::write(&path, bad).unwrap();
                let error = Parts::read(dir.path(), &NAMES).unwrap_err();
                assert!(matches!(&error, CheckpointError::Altered { part, .. } if part == name), "{error}");
            }
            fs::remove_file(&path).unwrap();
            let error = Parts::read(dir.path(), &NAMES).unwrap_err();
            assert!(matches!(&error, CheckpointError::Missing { part, .. } if part == name), "{error}");
            fs::write(&path, good).unwrap();
        }
        let sums = fs::read_to_string(generation.join(SUMS)).unwrap();
        for position in 0..sums.len() {
            let mut bad = sums.clone().into_bytes();
            bad[position] ^= 0x40;
            fs::write(generation.join(SUMS), bad).unwrap();
            assert!(Parts::read(dir.path(), &NAMES).is_err(), "byte {position}");
        }
        fs::remove_file(generation.join(SUMS)).unwrap();
        assert!(Parts::read(dir.path(), &NAMES).unwrap_err().to_string().contains(SUMS));
    }
}
