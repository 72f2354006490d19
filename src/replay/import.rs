//! Data sets become offline buffers, once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::error::ReplayError;
use super::files::{io_error, sync_dir};
use super::frames::Seen;
use super::layout::Layout;
use super::meta::{Meta, Origin};
use super::store::{Access, Store};
use crate::episode::{self, Choices, Dataset};
use crate::spaces::StepFlags;

/// Writes all episodes of `dataset` into a new buffer in the folder `dir`, marked as offline, and syncs it.
///
/// # Errors
/// When the dimensions differ from `layout`'s, or as [`Store::create`] and [`Store::append`].
pub fn import(dataset: &Dataset, dir: &Path, layout: Layout) -> Result<Store, ReplayError> {
    import_from(dataset, dir, layout, None)
}

fn import_from(dataset: &Dataset, dir: &Path, layout: Layout, origin: Option<Origin>) -> Result<Store, ReplayError> {
    let found = Layout {
        observation_dim: dataset.observation_dim,
        action_dim: dataset.action_dim,
        schema_hash: layout.schema_hash,
    };
    if found != layout {
        return Err(ReplayError::LayoutMismatch { path: dir.to_owned(), found, wanted: layout });
    }
    let episodes = dataset.episode_ends.len();
    // One slot more than records: in a full ring the oldest record counts as about to be overwritten.
    let capacity = (dataset.steps() + episodes + 1).max(super::header::MIN_CAPACITY as usize);
    let shape = dataset.images.as_ref().map(|images| images.shape);
    let mut store = Store::create_from(dir, layout, capacity as u64, shape, origin)?;
    for mut record in (0..episodes).flat_map(|episode| dataset.to_records(episode)) {
        record.flags.insert(StepFlags::OFFLINE);
        match record.frame.take() {
            Some(frame) => {
                let (pixels, capture_ns) = (&*frame.pixels, frame.capture_ns);
                store.append_with_frame(&record, Seen::New { pixels, capture_ns })?;
            }
            None => drop(store.append(&record)?),
        }
    }
    store.sync()?;
    Ok(store)
}

/// Opens offline data read-only. A folder is a buffer, or that of a run with one inside; a file is a data set, which is
/// imported once into a folder below `cache_dir` and found there again as long as the file stays the same.
///
/// The import appears in `cache_dir` whole or not at all.
///
/// # Errors
/// When the data cannot be read or do not have `layout`.
pub fn open_offline(path: &Path, layout: Layout, cache_dir: &Path) -> Result<Store, ReplayError> {
    let facts = fs::metadata(path).map_err(io_error("look at", path))?;
    if facts.is_dir() {
        let inner = path.join("replay");
        return open_checked(if inner.is_dir() { &inner } else { path }, layout);
    }
    let changed = facts.modified().map_err(io_error("look at", path))?;
    let changed_ns = changed.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let cached = cache_dir.join(format!("offline-{stem}"));
    let known = Meta::read(&cached).and_then(|meta| meta.origin).filter(|origin| origin.bytes == facts.len());
    if known.as_ref().is_some_and(|origin| origin.changed_ns == changed_ns)
        && let Ok(store) = open_checked(&cached, layout)
    {
        return Ok(store);
    }
    let origin = Origin { bytes: facts.len(), changed_ns, sha256: hash(path)? };
    if known.is_some_and(|known| known.sha256 == origin.sha256)
        && let Ok(store) = open_checked(&cached, layout)
    {
        return Ok(store);
    }
    build(path, layout, &cached, origin)?;
    open_checked(&cached, layout)
}

fn open_checked(dir: &Path, layout: Layout) -> Result<Store, ReplayError> {
    let store = Store::open(dir, Access::ReadOnly)?;
    store.expect_layout(layout)?;
    Ok(store)
}

/// Imports into a folder of its own, which takes the place of `cached` when everything is on disk.
fn build(path: &Path, layout: Layout, cached: &Path, origin: Origin) -> Result<(), ReplayError> {
    let beside = |suffix: &str| {
        let mut name = cached.as_os_str().to_owned();
        name.push(format!(".{suffix}-{}", std::process::id()));
        PathBuf::from(name)
    };
    let (new, old) = (beside("new"), beside("old"));
    // A leftover of an earlier process with the same number.
    let _ = fs::remove_dir_all(&new);
    let made =
        import_from(&episode::read(path, &Choices::default())?, &new, layout, Some(origin)).map(drop).and_then(|()| {
            if cached.exists() {
                fs::rename(cached, &old).map_err(io_error("replace", cached))?;
            }
            fs::rename(&new, cached).map_err(io_error("name", &new))?;
            cached.parent().map_or(Ok(()), sync_dir)
        });
    // Both are gone or useless now, whether it worked or not.
    let _ = fs::remove_dir_all(&old);
    if made.is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    made
}

fn hash(path: &Path) -> Result<String, ReplayError> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(io_error("open", path))?;
    io::copy(&mut file, &mut hasher).map_err(io_error("read", path))?;
    Ok(format!("{:x}", hasher.finalize()))
}
