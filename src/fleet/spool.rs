//! A robot's replay as what is still to be sent.

use std::fs;
use std::path::Path;

use super::error::FleetError;
use super::wire::{Batch, Mark};
use crate::replay::{Store, flags, replace};
use crate::spaces::{StepFlags, StepRecord};

/// Name of the file that tells the replay folders of a robot apart.
const FILE: &str = "spool";

/// A replay folder's name for the learner. There is no other state: the learner says how far it has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spool {
    id: [u8; 16],
}

impl Spool {
    /// Of the replay in the folder `dir`; made and kept there on first use.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn open(dir: &Path) -> Result<Self, FleetError> {
        let path = dir.join(FILE);
        let failed = |reason: String| FleetError::File { path: path.clone(), reason };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let fresh = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|e| failed(e.to_string()))?;
                replace(&path, fresh.as_bytes())?;
                fresh
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let id = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
        let id = id.ok_or_else(|| failed("is no UUID; move the replay folder aside, or restore the file".into()))?;
        Ok(Self { id: id.to_be_bytes() })
    }

    /// The oldest record of `store` behind `mark`; one behind the newest when there is none.
    pub fn first_after(store: &Store, mark: Option<Mark>) -> u64 {
        let Some(mark) = mark else { return store.first_sequence() };
        let mut record = StepRecord::default();
        let (mut low, mut high) = (store.first_sequence(), store.last_sequence() + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // A hole counts as what comes after it.
            let found = (middle..high).find(|sequence| store.record(*sequence, &mut record).is_ok());
            match found {
                Some(sequence) if Mark::from(&record) <= mark => low = sequence + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// A message that asks how far the learner has got, and brings nothing.
    pub fn question(&self, store: &Store) -> Vec<u8> {
        Batch::encode(self.id, None, store.layout(), &[])
    }

    /// The next message to a learner that has got as far as `mark`, and how many records are in it: at most `most`, and
    /// none when of the only one the end is not known yet.
    pub fn batch(&self, store: &Store, mark: Option<Mark>, most: usize) -> (Vec<u8>, usize) {
        let (mut records, mut count, mut whole) = (Vec::new(), 0, false);
        // Two at least: the learner takes a step when it has the one behind it.
        for sequence in Self::first_after(store, mark)..=store.last_sequence() {
            if count == most.max(2) {
                break;
            }
            let Ok(bytes) = store.bytes(sequence) else { continue };
            records.extend_from_slice(bytes);
            count += 1;
            whole = count > 1 || flags(bytes).contains(StepFlags::OBSERVATION_ONLY);
        }
        if !whole {
            (records, count) = (Vec::new(), 0);
        }
        (Batch::encode(self.id, mark, store.layout(), &records), count)
    }
}
