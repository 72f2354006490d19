//! Files of a buffer: allocation, lock, and who holds it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::error::ReplayError;

/// Name of the record file in a buffer's folder.
pub(crate) const RECORD_FILE: &str = "trans.rrb";

/// An [`ReplayError::Io`] from its parts, for `map_err`.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplayError {
    move |source| ReplayError::Io { action, path: path.to_owned(), source }
}

/// A file under its lock.
///
/// The lock is given back, not only the descriptor closed: a process that another thread starts at this moment has a
/// copy of every descriptor until its program is loaded, and the lock would stay with the copy.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            log::warn!("the lock of a replay file goes with its last descriptor: {error}");
        }
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

/// Creates the file `name` with `len` allocated bytes, calls `fill`, and gives it its name only when all is on disk.
///
/// One that exists is an error unless `replace`. The file is returned locked exclusively. A failure leaves nothing
/// behind.
pub(crate) fn create(
    dir: &Path,
    name: &str,
    len: u64,
    replace: bool,
    fill: impl FnOnce(&mut File) -> Result<(), ReplayError>,
) -> Result<(Locked, PathBuf), ReplayError> {
    let path = dir.join(name);
    fs::create_dir_all(dir).map_err(io_error("create the folder", dir))?;
    let unnamed = dir.join(format!("{name}.new"));
    // Not truncated before the lock: another creator may be working on it.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&unnamed)
        .map_err(io_error("create", &unnamed))?;
    let mut file = lock(file, FlockOperation::NonBlockingLockExclusive, &unnamed)?;
    let made = if path.exists() && !replace {
        Err(ReplayError::Exists { path: path.clone() })
    } else {
        build(&mut file.0, &unnamed, len, fill).and_then(|()| {
            fs::rename(&unnamed, &path).map_err(io_error("rename", &unnamed))?;
            sync_dir(dir)
        })
    };
    if let Err(error) = made {
        // The first error is the one to report.
        let _ = fs::remove_file(&unnamed);
        return Err(error);
    }
    Ok((file, path))
}

fn build(
    file: &mut File,
    path: &Path,
    len: u64,
    fill: impl FnOnce(&mut File) -> Result<(), ReplayError>,
) -> Result<(), ReplayError> {
    file.set_len(0).map_err(io_error("empty", path))?;
    allocate(file, path, len)?;
    fill(file)?;
    file.sync_all().map_err(io_error("sync", path))
}

/// Reserves `len` bytes on the disk, so that no later write into the map can find the disk full (SIGBUS).
fn allocate(file: &mut File, path: &Path, len: u64) -> Result<(), ReplayError> {
    let no_space = || {
        let available = rustix::fs::statvfs(path.parent().unwrap_or(path)).map_or(0, |s| s.f_bavail * s.f_frsize);
        ReplayError::NoSpace { path: path.to_owned(), needed: len, available }
    };
    // Asked first, because a file system may fill itself up before it notices; what it says later still counts.
    let known = rustix::fs::fstatvfs(&*file).ok().filter(|s| s.f_blocks > 0);
    if known.is_some_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < len) {
        return Err(no_space());
    }
    let done = match rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, len),
        other => other.map_err(io::Error::from),
    };
    match done {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            let _ = file.set_len(0);
            Err(no_space())
        }
        other => other.map_err(io_error("allocate", path)),
    }
}

/// For file systems without `fallocate`.
fn write_zeros(file: &mut File, len: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let part = left.min(zeros.len() as u64);
        file.write_all(&zeros[..part as usize])?;
        left -= part;
    }
    io::Seek::rewind(file)
}

/// Opens a file of a buffer with the lock that fits: exclusive for writing, shared for reading.
pub(crate) fn open(dir: &Path, name: &str, write: bool) -> Result<(Locked, PathBuf), ReplayError> {
    let path = dir.join(name);
    let file = OpenOptions::new().read(true).write(write).open(&path).map_err(io_error("open", &path))?;
    let operation =
        if write { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    Ok((lock(file, operation, &path)?, path))
}

/// Content of a file of a buffer that no writer has open.
pub(crate) fn read_locked(dir: &Path, name: &str) -> Result<(Vec<u8>, PathBuf), ReplayError> {
    let (file, path) = open(dir, name, false)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut &*file, &mut bytes).map_err(io_error("read", &path))?;
    Ok((bytes, path))
}

fn lock(file: File, operation: FlockOperation, path: &Path) -> Result<Locked, ReplayError> {
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(Locked(file)),
        Err(Errno::WOULDBLOCK) => Err(ReplayError::Locked { path: path.to_owned(), holder: holder(&file) }),
        Err(error) => Err(io_error("lock", path)(error.into())),
    }
}

/// Who holds the lock on `file`, from `/proc/locks`: `process NUMBER (NAME)`.
fn holder(file: &File) -> Option<String> {
    let inode = format!(":{}", file.metadata().ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`
    let process = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words.get(1) == Some(&"FLOCK") && words.get(5).is_some_and(|w| w.ends_with(&inode));
        ours.then(|| words[4].to_owned())
    })?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} ({})", name.trim()))
}

/// Makes new and renamed entries of a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), ReplayError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync the folder", dir))
}

/// Replaces `path` by a file with these bytes: at every moment either the old or the new content is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ReplayError> {
    let mut name = OsString::from(path);
    name.push(".new");
    let unnamed = PathBuf::from(name);
    let written = File::create(&unnamed).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unnamed, path)
    });
    written.map_err(|source| {
        let _ = fs::remove_file(&unnamed);
        io_error("write", path)(source)
    })?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_given_back_although_a_copy_of_the_descriptor_lives() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = create(dir.path(), "file", 1, false, |_| Ok(())).unwrap();
        let copy = file.try_clone().unwrap();
        assert!(matches!(open(dir.path(), "file", true), Err(ReplayError::Locked { .. })));
        drop(file);
        open(dir.path(), "file", true).unwrap();
        drop(copy);
    }
}
