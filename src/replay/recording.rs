//! What is to be played again: step records in memory, whose camera frames stay in the buffer until they are needed.

use super::error::ReplayError;
use super::store::Store;
use crate::spaces::{FrameShape, StepRecord};

/// Step records, oldest first.
#[derive(Debug, Default)]
pub struct Recording {
    records: Vec<StepRecord>,
    /// The buffer with the frames, and the sequence number of each record in it.
    frames: Option<(Store, Vec<u64>)>,
}

impl From<Vec<StepRecord>> for Recording {
    /// Records with the frames that they have, all in memory.
    fn from(records: Vec<StepRecord>) -> Self {
        Self { records, frames: None }
    }
}

impl Recording {
    /// All usable records of a buffer, and how many are damaged.
    pub fn of(store: Store) -> (Self, u64) {
        let all = if store.is_empty() { 0..0 } else { store.first_sequence()..store.last_sequence() + 1 };
        let expected = all.end - all.start;
        let mut record = StepRecord::default();
        let read =
            all.filter_map(|sequence| store.record(sequence, &mut record).ok().map(|()| (sequence, record.clone())));
        let (sequences, records): (Vec<_>, Vec<_>) = read.unzip();
        let bad = expected - records.len() as u64;
        let frames = store.frame_shape().is_some().then_some((store, sequences));
        (Self { records, frames }, bad)
    }

    /// The records; those of a buffer without their frames.
    pub fn records(&self) -> &[StepRecord] {
        &self.records
    }

    /// Size of the frames, if there are any.
    pub fn frame_shape(&self) -> Option<FrameShape> {
        match &self.frames {
            Some((store, _)) => store.frame_shape(),
            None => self.records.first().and_then(|record| record.frame.as_ref()).map(|frame| frame.shape),
        }
    }

    /// Record `index` with its frame; one after the other into the same place, records of a slow camera share it.
    ///
    /// # Errors
    /// When the buffer does not hold it any more.
    pub fn get(&self, index: usize, into: &mut StepRecord) -> Result<(), ReplayError> {
        if let Some((store, sequences)) = &self.frames {
            return store.record_with_frame(sequences[index], into);
        }
        into.clone_from(&self.records[index]);
        Ok(())
    }
}
