//! The returns that recorded transitions went on to get: the lower bounds of Cal-QL.
//!
//! The return of a transition is the discounted sum of the rewards from it to the end of its episode; a time limit
//! cuts it like an end. As long as an episode is not over, or where a record of it is missing, none is known.

use crate::replay::{Replay, Store};
use crate::spaces::{Minibatch, Source, StepFlags, StepRecord};

/// Returns by slot of both buffers of a [`Replay`].
#[derive(Debug, Default)]
pub(super) struct Returns {
    discount: f64,
    offline: Option<Vec<f32>>,
    online: Vec<f32>,
    /// Online records before this one are done with.
    next: u64,
}

impl Returns {
    pub(super) fn new(discount: f64) -> Self {
        Self { discount, ..Self::default() }
    }

    /// Return of each row of `batch`, minus infinity where none is known.
    pub(super) fn of(&mut self, replay: &Replay, batch: &Minibatch) -> Vec<f32> {
        let offset = self.follow(replay);
        let offline = self.offline.as_deref().unwrap_or_default();
        let of = |(leaf, source): (&u32, &Source)| {
            let leaf = *leaf as usize;
            match source {
                Source::Offline => offline.get(leaf),
                Source::Online => self.online.get(leaf - offset),
            }
        };
        batch.leaf.iter().zip(&batch.source).map(|row| of(row).copied().unwrap_or(f32::NEG_INFINITY)).collect()
    }

    /// Takes up what the replay has got since the last time; the first leaf of the online buffer.
    fn follow(&mut self, replay: &Replay) -> usize {
        let offset = replay.offline().map_or(0, |store| store.capacity() as usize);
        if self.offline.is_none() {
            let mut returns = Vec::new();
            if let Some(store) = replay.offline() {
                fill(store, store.first_sequence(), self.discount, &mut returns);
            }
            self.offline = Some(returns);
        }
        let store = replay.online();
        if !store.is_empty() {
            let from = self.next.max(store.first_sequence());
            self.next = fill(store, from, self.discount, &mut self.online);
        }
        offset
    }
}

/// Writes the returns of all episodes that are over and begin at `from` or later; where to go on next time.
fn fill(store: &Store, from: u64, discount: f64, into: &mut Vec<f32>) -> u64 {
    into.resize(store.capacity() as usize, f32::NEG_INFINITY);
    let (mut next, mut run, mut record) = (from, Vec::new(), StepRecord::default());
    if store.is_empty() {
        return from;
    }
    for sequence in from..=store.last_sequence() {
        let readable = store.record(sequence, &mut record).is_ok();
        if !readable || record.step == 0 || record.flags.contains(StepFlags::GAP) {
            run.clear();
            next = sequence;
        }
        if !readable {
            continue;
        }
        into[store.slot(sequence)] = f32::NEG_INFINITY;
        run.push((store.slot(sequence), f64::from(record.reward)));
        if record.flags.contains(StepFlags::TERMINATED) || record.flags.contains(StepFlags::TRUNCATED) {
            let mut value = 0.0;
            for (slot, reward) in run.drain(..).rev() {
                value = reward + discount * value;
                into[slot] = value as f32;
            }
            next = sequence + 1;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ReplayConfig;
    use crate::replay::Layout;

    fn store(capacity: u64) -> Store {
        Store::in_memory(Layout { observation_dim: 1, action_dim: 1, schema_hash: 1 }, capacity).unwrap()
    }

    fn episode(append: &mut dyn FnMut(&StepRecord), number: u32, rewards: &[f32], end: StepFlags) {
        let mut record = StepRecord { episode: number, ..StepRecord::default() };
        record.observation.push(0.5).unwrap();
        record.action.push(0.0).unwrap();
        for (step, reward) in rewards.iter().enumerate() {
            (record.step, record.reward) = (step as u32, *reward);
            record.flags = if step + 1 == rewards.len() { end } else { StepFlags::default() };
            append(&record);
        }
        if end != StepFlags::default() {
            (record.step, record.flags) = (rewards.len() as u32, StepFlags::OBSERVATION_ONLY);
            append(&record);
        }
    }

    #[test]
    fn returns_reach_back_to_the_start_of_their_episode_and_wait_for_its_end() {
        let mut offline = store(64);
        episode(&mut |r| _ = offline.append(r).unwrap(), 0, &[1.0, 2.0, 4.0], StepFlags::TERMINATED);
        let mut replay = Replay::new(Some(offline), store(64), &ReplayConfig::default()).unwrap();
        let mut append = |r: &StepRecord| replay.append(r).unwrap();
        episode(&mut append, 0, &[8.0, 8.0], StepFlags::TRUNCATED);
        episode(&mut append, 1, &[3.0, 3.0, 3.0], StepFlags::default());
        let mut returns = Returns::new(0.5);
        let offset = returns.follow(&replay);
        assert_eq!(returns.offline.as_ref().unwrap()[..4], [3.0, 4.0, 4.0, f32::NEG_INFINITY]);
        assert_eq!(returns.online[..2], [12.0, 8.0]);
        assert!(returns.online[2..].iter().all(|r| *r == f32::NEG_INFINITY));
        let batch = Minibatch {
            rows: 3,
            leaf: vec![0, offset as u32 + 1, offset as u32 + 4],
            source: vec![Source::Offline, Source::Online, Source::Online],
            ..Minibatch::default()
        };
        assert_eq!(returns.of(&replay, &batch), [3.0, 8.0, f32::NEG_INFINITY]);
        let mut end =
            StepRecord { episode: 1, step: 3, reward: 1.0, flags: StepFlags::TERMINATED, ..Default::default() };
        end.observation.push(0.5).unwrap();
        end.action.push(0.0).unwrap();
        replay.append(&end).unwrap();
        assert_eq!(returns.of(&replay, &batch), [3.0, 8.0, 3.0 + 0.5 * 3.5]);
    }
}
