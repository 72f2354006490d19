//! The return of recorded data: what Cal-QL takes as a lower bound of the values.

use std::ops::RangeInclusive;

use crate::config::CutReturns;
use crate::replay::{ReplayError, Store};
use crate::spaces::{StepFlags, StepRecord};

/// `G_t = r_t + gamma G_{t+1}` for every slot of `store`; negative infinity where there is no step.
///
/// An episode ends with a terminated step, or is cut: by its time limit, by missing records, or by the end of the
/// data. `cut` says what follows then. `Steady` bootstraps from the mean reward of the episode (of the part without
/// a gap), as if the robot went on like that.
///
/// # Errors
/// When a record cannot be read.
pub fn returns_to_go(store: &Store, discount: f64, cut: CutReturns) -> Result<Vec<f32>, ReplayError> {
    let mut returns = vec![f32::NEG_INFINITY; store.capacity() as usize];
    let all = store.first_sequence()..=store.last_sequence();
    returns_over(store, all, discount, cut, |sequence, value| returns[store.slot(sequence)] = value)?;
    Ok(returns)
}

/// As [`returns_to_go`] for the steps of some sequence numbers, the last of an episode first; the steps behind the range
/// count as missing.
///
/// # Errors
/// When a record cannot be read.
pub(in crate::learner) fn returns_over(
    store: &Store,
    sequences: RangeInclusive<u64>,
    discount: f64,
    cut: CutReturns,
    mut take: impl FnMut(u64, f32),
) -> Result<(), ReplayError> {
    let mut segment: Vec<(u64, f64)> = Vec::new();
    let mut record = StepRecord::default();
    let last = *sequences.end();
    for sequence in sequences {
        let mut ended = true;
        let mut terminated = false;
        match store.record(sequence, &mut record) {
            // A damaged record cuts the episode.
            Err(ReplayError::NoRecord { .. }) => {}
            Err(error) => return Err(error),
            Ok(()) if record.flags.contains(StepFlags::OBSERVATION_ONLY) => {}
            Ok(()) => {
                segment.push((sequence, f64::from(record.reward)));
                terminated = record.flags.contains(StepFlags::TERMINATED);
                ended = terminated || !store.is_sampleable(store.slot(sequence));
            }
        }
        if ended || sequence == last {
            close(&mut segment, terminated, discount, cut, &mut take);
        }
    }
    Ok(())
}

/// Returns of the steps of one episode, last to first.
fn close(
    segment: &mut Vec<(u64, f64)>,
    terminated: bool,
    discount: f64,
    cut: CutReturns,
    take: &mut impl FnMut(u64, f32),
) {
    let mean = segment.iter().map(|(_, reward)| reward).sum::<f64>() / segment.len().max(1) as f64;
    let mut rest = match cut {
        CutReturns::Steady if !terminated => mean / (1.0 - discount),
        _ => 0.0,
    };
    while let Some((sequence, reward)) = segment.pop() {
        rest = reward + discount * rest;
        take(sequence, rest as f32);
    }
}
