//! The returns that recorded transitions went on to get: the lower bounds of Cal-QL.
//!
//! The return of a transition is the discounted sum of the rewards from it to the end of its episode; a time limit
//! cuts it like an end. As long as an episode is not over, or where a record of it is missing, none is known.

use std::collections::VecDeque;

use crate::replay::{Replay, Store};
use crate::spaces::{Minibatch, Source, StepFlags, StepRecord};

/// Returns by slot of both buffers of a [`Replay`].
#[derive(Debug, Default)]
pub(super) struct Returns {
    discount: f64,
    offline: Option<Vec<f32>>,
    online: Vec<f32>,
    /// Steps of the online episode that is not over, at most as many as the buffer holds.
    waiting: Waiting,
    /// Online records before this one are done with.
    next: u64,
}

/// Slots and rewards of steps whose episode is not over, oldest first.
type Waiting = VecDeque<(usize, f64)>;

impl Returns {
    pub(super) fn new(discount: f64) -> Self {
        Self { discount, ..Self::default() }
    }

    /// Return of each row of `batch`, minus infinity where none is known. Online rows without one are taken out of the
    /// batch and counted, as published: there, only steps of finished episodes are drawn. A batch that has no other rows
    /// stays as it is.
    pub(super) fn bound(&mut self, replay: &Replay, batch: &mut Minibatch, left_out: &mut u32) -> Vec<f32> {
        let mut bound = self.of(replay, batch);
        let keep: Vec<bool> =
            bound.iter().zip(&batch.source).map(|(b, s)| *s == Source::Offline || b.is_finite()).collect();
        let kept = keep.iter().filter(|keep| **keep).count();
        if kept > 0 && kept < keep.len() {
            *left_out += (keep.len() - kept) as u32;
            batch.retain(&keep);
            let mut kept = keep.iter();
            bound.retain(|_| kept.next().is_some_and(|keep| *keep));
        }
        bound
    }

    /// Return of each row of `batch`, minus infinity where none is known.
    fn of(&mut self, replay: &Replay, batch: &Minibatch) -> Vec<f32> {
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
                fill(store, 1, self.discount, &mut Waiting::new(), &mut returns);
            }
            self.offline = Some(returns);
        }
        self.next = fill(replay.online(), self.next, self.discount, &mut self.waiting, &mut self.online);
        offset
    }
}

/// Writes the returns of all episodes that end at record `from` or later; where to go on next time. `waiting` are the
/// steps before `from` whose episode is not over.
fn fill(store: &Store, from: u64, discount: f64, waiting: &mut Waiting, into: &mut Vec<f32>) -> u64 {
    into.resize(store.capacity() as usize, f32::NEG_INFINITY);
    if store.is_empty() {
        return from;
    }
    let first = from.max(store.first_sequence());
    if first != from {
        waiting.clear();
    }
    let mut record = StepRecord::default();
    for sequence in first..=store.last_sequence() {
        let readable = store.record(sequence, &mut record).is_ok();
        if !readable || record.step == 0 || record.flags.contains(StepFlags::GAP) {
            waiting.clear();
        }
        if !readable {
            continue;
        }
        into[store.slot(sequence)] = f32::NEG_INFINITY;
        if waiting.len() == into.len() {
            // Its slot is now this record's.
            waiting.pop_front();
        }
        waiting.push_back((store.slot(sequence), f64::from(record.reward)));
        if record.flags.contains(StepFlags::TERMINATED) || record.flags.contains(StepFlags::TRUNCATED) {
            let mut value = 0.0;
            for (slot, reward) in waiting.drain(..).rev() {
                value = reward + discount * value;
                into[slot] = value as f32;
            }
        }
    }
    store.last_sequence() + 1
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

    #[test]
    fn rows_of_an_episode_that_goes_on_are_left_out_and_counted() {
        let mut offline = store(64);
        episode(&mut |r| _ = offline.append(r).unwrap(), 0, &[1.0, 2.0], StepFlags::default());
        let mut replay = Replay::new(Some(offline), store(64), &ReplayConfig::default()).unwrap();
        let mut append = |r: &StepRecord| replay.append(r).unwrap();
        episode(&mut append, 0, &[8.0, 8.0], StepFlags::TERMINATED);
        episode(&mut append, 1, &[3.0, 3.0, 3.0], StepFlags::default());
        let row = |source, leaf: u32| Minibatch {
            rows: 1,
            observation: vec![leaf as f32, 0.5],
            leaf: vec![leaf],
            source: vec![source],
            ..Minibatch::default()
        };
        let mut batch = row(Source::Online, 64 + 3);
        let (mut returns, mut left_out) = (Returns::new(0.5), 0);
        assert_eq!(returns.bound(&replay, &mut batch, &mut left_out), [f32::NEG_INFINITY]);
        assert_eq!((batch.rows, left_out), (1, 0), "nothing else to learn from");
        for (source, leaf) in [(Source::Offline, 0), (Source::Online, 64), (Source::Online, 64 + 4)] {
            let other = row(source, leaf);
            batch.rows += 1;
            batch.observation.extend(&other.observation);
            batch.leaf.extend(&other.leaf);
            batch.source.extend(&other.source);
        }
        assert_eq!(returns.bound(&replay, &mut batch, &mut left_out), [f32::NEG_INFINITY, 12.0]);
        assert_eq!((batch.rows, left_out), (2, 2));
        assert_eq!((&batch.observation[..], &batch.leaf[..]), (&[0.0, 0.5, 64.0, 0.5][..], &[0, 64][..]));
    }

    #[test]
    fn an_episode_without_an_end_keeps_no_more_steps_than_the_buffer() {
        let mut replay = Replay::new(None, store(64), &ReplayConfig::default()).unwrap();
        let mut returns = Returns::new(0.5);
        let mut record = StepRecord { reward: 1.0, ..StepRecord::default() };
        record.observation.push(0.5).unwrap();
        record.action.push(0.0).unwrap();
        for step in 0..200 {
            record.step = step;
            replay.append(&record).unwrap();
            if step % 7 == 0 {
                returns.follow(&replay);
                assert!(returns.waiting.len() <= 64);
            }
        }
        (record.step, record.flags) = (200, StepFlags::TERMINATED);
        replay.append(&record).unwrap();
        returns.follow(&replay);
        assert!(returns.waiting.is_empty() && returns.online.iter().all(|r| (1.0..=2.0).contains(r)));
        let mut late = Returns::new(0.5);
        late.follow(&replay);
        assert_eq!(late.online, returns.online, "a resumed learner knows the same returns");
    }
}
