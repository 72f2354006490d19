//! A new buffer from what is verified in a damaged one.

use std::path::Path;

use super::error::ReplayError;
use super::files::{self, RECORD_FILE};
use super::frames::{FRAME_FILE, Seen};
use super::header::Header;
use super::store::{Access, Store};
use crate::spaces::{StepFlags, StepRecord};

/// Opens the buffer in the folder `dir` read-only; one whose files were cut is read into memory as far as it goes.
///
/// # Errors
/// When no header is usable or the files cannot be read.
pub fn open_damaged(dir: &Path) -> Result<Store, ReplayError> {
    match Store::open(dir, Access::ReadOnly) {
        Err(ReplayError::Truncated { .. }) => {}
        other => return other,
    }
    let (mut records, path) = files::read_locked(dir, RECORD_FILE)?;
    let (header, _) = Header::read(&records).map_err(|reason| ReplayError::Header { path, reason })?;
    extend(&mut records, header.file_len());
    if header.cameras == 0 {
        return Store::from_region(Box::new(records), Access::ReadOnly);
    }
    let (mut frames, path) = files::read_locked(dir, FRAME_FILE)?;
    let shape = super::frames::shape_of(&frames).map_err(|reason| ReplayError::Header { path, reason })?;
    extend(&mut frames, shape.file_len(header.capacity));
    Store::from_regions(Box::new(records), Box::new(frames), Access::ReadOnly)
}

/// Fills up with zeros, which are empty slots. A length that no file on this machine can have stays refused.
fn extend(bytes: &mut Vec<u8>, len: Option<u64>) {
    // The header's checksum was right, so the length is one that this program once allocated on a disk.
    let missing = len.map_or(0, |len| (len as usize).saturating_sub(bytes.len()));
    if bytes.try_reserve_exact(missing).is_ok() {
        bytes.resize(bytes.len() + missing, 0);
    }
}

/// Writes all usable records of `store`, oldest first, into a new buffer of the same capacity in the folder `dir`.
/// `store` stays as it is. Records before a hole and behind it are joined by nothing: the one behind it gets
/// [`StepFlags::GAP`]. Priorities are not taken along.
///
/// # Errors
/// As [`Store::create`] and [`Store::append`].
pub fn repair(store: &Store, dir: &Path) -> Result<Store, ReplayError> {
    let mut new = match store.frame_shape() {
        Some(shape) => Store::create_with_frames(dir, store.layout(), store.capacity(), shape)?,
        None => Store::create(dir, store.layout(), store.capacity())?,
    };
    let mut record = StepRecord::default();
    let mut last_frame = None;
    let mut hole = false;
    for sequence in store.first_sequence()..=store.last_sequence() {
        if store.record(sequence, &mut record).is_err() {
            hole = true;
            continue;
        }
        if std::mem::take(&mut hole) && !new.is_empty() {
            record.flags.insert(StepFlags::GAP);
        }
        if store.frame_shape().is_none() {
            new.append(&record)?;
            continue;
        }
        let (number, capture_ns, pixels) = store.frame(sequence)?;
        let again = last_frame.replace(number) == Some(number);
        new.append_with_frame(&record, if again { Seen::Same } else { Seen::New { pixels, capture_ns } })?;
    }
    new.sync()?;
    Ok(new)
}
