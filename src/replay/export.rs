//! A buffer as a data set.

use std::sync::Arc;

use super::{ReplayError, Store};
use crate::episode::{Dataset, Images};
use crate::spaces::{Frame, StepFlags, StepRecord};

/// All transitions of a buffer as episodes, oldest first. An episode with missing steps becomes several; each of
/// them ends truncated, with the observation that is known.
///
/// # Errors
/// When the buffer cannot be read.
pub fn export(store: &Store) -> Result<Dataset, ReplayError> {
    let layout = store.layout();
    let sequences = (!store.is_empty()).then(|| store.first_sequence()..=store.last_sequence()).into_iter().flatten();
    let mut record = StepRecord::default();
    let shape = store.frame_shape();
    let records = sequences.map(|sequence| {
        store.record(sequence, &mut record).ok()?;
        let frame = shape.and_then(|shape| {
            let (number, capture_ns, pixels) = store.frame(sequence).ok()?;
            Some(Arc::new(Frame { shape, sequence: number, capture_ns, pixels: pixels.into() }))
        });
        Some(StepRecord { frame, ..record.clone() })
    });
    let mut data = episodes(layout.observation_dim, layout.action_dim, records);
    // A buffer without a transition has a size of images all the same.
    data.images = shape.map(|shape| Images { shape, ..data.images.unwrap_or_default() });
    Ok(data)
}

/// The transitions of records as episodes, as [`export`]; `None` is a record that cannot be read.
pub fn episodes(
    observation_dim: usize,
    action_dim: usize,
    records: impl Iterator<Item = Option<StepRecord>>,
) -> Dataset {
    let mut data = Dataset { observation_dim, action_dim, ..Dataset::default() };
    let mut run: Vec<StepRecord> = Vec::new();
    for record in records {
        let follows = record.as_ref().is_some_and(|record| {
            !record.flags.contains(StepFlags::GAP)
                && run.last().is_some_and(|last| {
                    last.episode == record.episode
                        && last.step + 1 == record.step
                        && !last.flags.contains(StepFlags::OBSERVATION_ONLY)
                })
        });
        let over = run.len() > 1 && run[run.len() - 2].flags.contains(StepFlags::TERMINATED);
        if !follows {
            close(&mut run, &mut data);
        } else if over {
            // Steps go on although the task ended: the last observation of one episode begins the next.
            let begin = run.last().cloned();
            close(&mut run, &mut data);
            run.extend(begin);
        }
        run.extend(record);
    }
    close(&mut run, &mut data);
    if data.capture_us.iter().all(|stamp| *stamp == 0) {
        // Imported from a set without stamps.
        data.capture_us.clear();
    }
    data
}

/// Puts a run of consecutive records into the data set; its last record is the final observation.
fn close(run: &mut Vec<StepRecord>, data: &mut Dataset) {
    let Some((last, steps)) = run.split_last().filter(|(_, steps)| !steps.is_empty()) else {
        run.clear();
        return;
    };
    for step in steps {
        data.observations.extend_from_slice(&step.observation);
        data.actions.extend_from_slice(&step.action);
        data.rewards.push(step.reward);
        data.terminated.push(step.flags.contains(StepFlags::TERMINATED));
        data.truncated.push(false);
        data.capture_us.push(step.capture_us);
        if let Some(frame) = &step.frame {
            let images = data.images.get_or_insert_with(|| Images { shape: frame.shape, ..Images::default() });
            images.steps.extend_from_slice(&frame.pixels);
        }
    }
    if let (Some(frame), Some(images)) = (&last.frame, &mut data.images) {
        images.finals.extend_from_slice(&frame.pixels);
    }
    let end = data.rewards.len();
    let cut = steps[steps.len() - 1].flags.contains(StepFlags::TRUNCATED);
    data.truncated[end - 1] = cut || !data.terminated[end - 1];
    data.episode_ends.push(end);
    data.final_observations.extend_from_slice(&last.observation);
    run.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Layout;

    fn record(episode: u32, step: u32, flags: StepFlags) -> StepRecord {
        let mut r = StepRecord { episode, step, flags, reward: step as f32, ..StepRecord::default() };
        r.observation.extend_from_slice(&[episode as f32, step as f32]).unwrap();
        if !flags.contains(StepFlags::OBSERVATION_ONLY) {
            r.action.push(0.5).unwrap();
        }
        r
    }

    #[test]
    fn episodes_come_out_whole_and_gaps_split_them() {
        let layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 1 };
        let mut store = Store::in_memory(layout, 1024).unwrap();
        let none = StepFlags::default();
        for r in [
            record(0, 0, none),
            record(0, 1, StepFlags::TERMINATED),
            record(0, 2, StepFlags::OBSERVATION_ONLY),
            record(1, 0, none),
            record(1, 1, StepFlags::OBSERVATION_ONLY),
            record(1, 3, StepFlags::GAP),
            record(1, 4, StepFlags::TRUNCATED),
            record(1, 5, StepFlags::OBSERVATION_ONLY),
        ] {
            store.append(&r).unwrap();
        }
        let data = export(&store).unwrap();
        assert_eq!(data.episode_ends, [2, 3, 5]);
        assert_eq!(data.rewards, [0.0, 1.0, 0.0, 3.0, 4.0]);
        assert_eq!(data.terminated, [false, true, false, false, false]);
        assert_eq!(data.truncated, [false, false, true, false, true]);
        assert_eq!(data.final_observations, [0.0, 2.0, 1.0, 1.0, 1.0, 5.0]);
        assert!(data.check().is_ok());
    }

    #[test]
    fn steps_behind_a_terminated_one_are_an_episode_of_their_own() {
        let layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 1 };
        let mut store = Store::in_memory(layout, 1024).unwrap();
        for step in 0..5 {
            let flags = if step == 1 { StepFlags::TERMINATED } else { StepFlags::default() };
            store.append(&record(0, step, flags)).unwrap();
        }
        let data = export(&store).unwrap();
        assert!(data.check().is_ok());
        assert_eq!((data.episode_ends.clone(), data.steps() as u64), (vec![2, 4], store.transitions()));
        assert_eq!(data.final_observations, [0.0, 2.0, 0.0, 4.0]);
    }
}
