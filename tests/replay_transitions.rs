//! Every sampled row against a plain list of all records: no wrong next observation, no row that should not exist.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Access, Layout, Replay, ReplayError, Store};
use fieldtune::spaces::{Minibatch, Outcome, Source, StepFlags, StepRecord};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAYOUT: Layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 9 };

const KINDS: [SamplerKind; 4] =
    [SamplerKind::Balanced, SamplerKind::Uniform, SamplerKind::Online, SamplerKind::Symmetric];

fn worth(outcome: Outcome) -> f32 {
    if outcome == Outcome::Success { 8.0 } else { -2.0 }
}

/// All records ever appended to a ring; record `k` has sequence number `k + 1`.
#[derive(Default)]
struct Model {
    records: Vec<StepRecord>,
    capacity: usize,
}

impl Model {
    /// The record that follows record `k` in time and makes a transition with it that may be sampled now.
    fn successor(&self, k: usize) -> Option<&StepRecord> {
        let (this, next) = (self.records.get(k)?, self.records.get(k + 1)?);
        let kept = k + self.capacity > self.records.len();
        let follows = next.episode == this.episode && next.step == this.step + 1;
        let whole = !next.flags.contains(StepFlags::GAP) && !this.flags.contains(StepFlags::OBSERVATION_ONLY);
        (kept && follows && whole).then_some(next)
    }

    /// The naive form of a label: the newest kept transition of the episode that ended it.
    fn label(&mut self, episode: u32, outcome: Outcome) -> bool {
        let ends = |k: &usize| {
            let record = &self.records[*k];
            record.episode == episode && record.flags.0 & 3 != 0 && self.successor(*k).is_some()
        };
        let Some(k) = (0..self.records.len()).rev().find(ends) else { return false };
        let record = &mut self.records[k];
        let before = [Outcome::Success, Outcome::Failure].into_iter().find(|o| record.flags.contains(o.flag()));
        record.reward = record.reward + worth(outcome) - before.map_or(0.0, worth);
        let kept = record.flags.0 & !(2 + 128 + 256);
        record.flags = StepFlags(kept | 1 | outcome.flag().0);
        true
    }

    /// Transitions in which a person chose the action.
    fn interventions(&self) -> usize {
        let oldest = self.records.len().saturating_sub(self.capacity);
        let of_a_person = |k: usize| self.records[k].flags.contains(StepFlags::INTERVENTION);
        (oldest..self.records.len()).filter(|k| of_a_person(*k) && self.successor(*k).is_some()).count()
    }

    fn transitions(&self) -> usize {
        let oldest = self.records.len().saturating_sub(self.capacity);
        (oldest..self.records.len()).filter(|k| self.successor(*k).is_some()).count()
    }

    /// Newest record in a slot.
    fn in_slot(&self, slot: usize) -> usize {
        let newest = self.records.len() - 1;
        newest - (newest - slot) % self.capacity
    }

    fn check_row(&self, batch: &Minibatch, row: usize, slot: usize) {
        let k = self.in_slot(slot);
        let this = &self.records[k];
        let next = self.successor(k).unwrap_or_else(|| panic!("record {k} is no transition"));
        assert_eq!(batch.observation[2 * row..2 * row + 2], this.observation[..]);
        assert_eq!(batch.next_observation[2 * row..2 * row + 2], next.observation[..]);
        assert_eq!(batch.action[row..=row], this.action[..]);
        assert_eq!(batch.reward[row], this.reward);
        assert_eq!(batch.terminated[row] == 1.0, this.flags.contains(StepFlags::TERMINATED));
    }
}

/// A robot that ends, cuts, loses and repeats things.
struct Robot {
    rng: ChaCha8Rng,
    episode: u32,
    step: u32,
    ended: bool,
    mean_length: u32,
}

impl Robot {
    fn next(&mut self) -> StepRecord {
        let mut flags = StepFlags::default();
        let chance = |rng: &mut ChaCha8Rng, one_in: u32| rng.random_range(0..one_in) == 0;
        if self.ended {
            // Usually the last observation of the episode; sometimes it is lost.
            self.ended = false;
            if chance(&mut self.rng, 10) {
                (self.episode, self.step) = (self.episode + 1, 0);
            } else {
                flags.insert(StepFlags::OBSERVATION_ONLY);
            }
        } else if chance(&mut self.rng, 3 * self.mean_length) {
            // The process died in the middle of an episode.
            (self.episode, self.step) = (self.episode + 1, 0);
        }
        if chance(&mut self.rng, 20) {
            flags.insert(StepFlags::GAP);
            self.step += u32::from(self.rng.random::<bool>());
        } else if chance(&mut self.rng, 40) {
            // Lost steps or a repeated one that nobody flagged.
            self.step = if self.rng.random() { self.step + 2 } else { self.step.saturating_sub(1) };
        }
        if !flags.contains(StepFlags::OBSERVATION_ONLY) && chance(&mut self.rng, self.mean_length) {
            flags.insert(if self.rng.random() { StepFlags::TERMINATED } else { StepFlags::TRUNCATED });
            self.ended = true;
        }
        if chance(&mut self.rng, 15) {
            flags.insert(StepFlags::INTERVENTION);
        }
        let mut record = StepRecord { episode: self.episode, step: self.step, flags, ..StepRecord::default() };
        record.observation.extend([self.rng.random::<f32>(), self.rng.random()]);
        if flags.contains(StepFlags::OBSERVATION_ONLY) {
            (self.episode, self.step) = (self.episode + 1, 0);
        } else {
            record.action.extend([self.rng.random::<f32>()]);
            record.reward = self.rng.random();
            self.step += 1;
        }
        record
    }
}

/// Runs one buffer of each side and compares `batches` minibatches; returns the number of rows.
fn compare(seed: u64, batches: usize, on_disk: bool) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut robot = Robot {
        rng: ChaCha8Rng::seed_from_u64(seed + 1),
        episode: 0,
        step: 0,
        ended: false,
        mean_length: rng.random_range(1..30),
    };
    let mut model = Model { records: Vec::new(), capacity: rng.random_range(3..150) };
    let mut offline_model = Model { records: Vec::new(), capacity: rng.random_range(3..150) };
    let mut offline = Store::in_memory(LAYOUT, offline_model.capacity as u64).unwrap();
    for _ in 0..rng.random_range(0..300) {
        offline_model.records.push(robot.next());
        offline.append(offline_model.records.last().unwrap()).unwrap();
    }
    let online = if on_disk {
        Store::create(dir.path(), LAYOUT, model.capacity as u64).unwrap()
    } else {
        Store::in_memory(LAYOUT, model.capacity as u64).unwrap()
    };
    let mut replay = Replay::new(Some(offline), online, &ReplayConfig::default()).unwrap();
    let (mut batch, mut rows) = (Minibatch::default(), 0);
    for round in 0..batches {
        for _ in 0..rng.random_range(0..40) {
            model.records.push(robot.next());
            replay.append(model.records.last().unwrap()).unwrap();
        }
        for _ in 0..4 {
            let episode = rng.random_range(0..=robot.episode + 2);
            let outcome = if rng.random() { Outcome::Success } else { Outcome::Failure };
            let labelled = replay.label(episode, outcome, worth);
            assert_eq!(labelled.is_ok(), model.label(episode, outcome), "{labelled:?}");
        }
        if on_disk && round % 8 == 7 {
            let mut offline = Store::in_memory(LAYOUT, offline_model.capacity as u64).unwrap();
            offline_model.records.iter().for_each(|record| _ = offline.append(record).unwrap());
            drop(replay);
            let online = Store::open(dir.path(), Access::ReadWrite).unwrap();
            replay = Replay::new(Some(offline), online, &ReplayConfig::default()).unwrap();
        }
        assert_eq!(replay.online_transitions() as usize, model.transitions());
        assert_eq!(replay.stats().interventions as usize, model.interventions());
        assert_eq!(replay.offline_transitions() as usize, offline_model.transitions());
        let kind = KINDS[round % 4];
        let (offline, online) = (offline_model.transitions(), model.transitions());
        let possible = match kind {
            SamplerKind::Balanced | SamplerKind::Trajectory | SamplerKind::Uniform => offline + online > 0,
            SamplerKind::Online => online > 0,
            SamplerKind::Symmetric => offline > 0 && online > 0,
        };
        if !possible {
            assert!(replay.sample(kind, 64, &mut rng, &mut batch).is_err());
            continue;
        }
        replay.sample(kind, 64, &mut rng, &mut batch).unwrap();
        assert_eq!(batch.rows, 64);
        for row in 0..batch.rows {
            let leaf = batch.leaf[row] as usize;
            match batch.source[row] {
                Source::Offline => offline_model.check_row(&batch, row, leaf),
                Source::Online => model.check_row(&batch, row, leaf - offline_model.capacity),
            }
        }
        rows += batch.rows;
        let priorities: Vec<f32> = (0..64).map(|_| rng.random_range(0.0..5.0)).collect();
        replay.set_priorities(&batch.leaf, &priorities).unwrap();
        let naive: f64 = (0..replay.priorities().len()).map(|leaf| f64::from(replay.priorities().get(leaf))).sum();
        assert!((f64::from(replay.priorities().total()) - naive).abs() <= 1e-6 * naive);
    }
    rows
}

#[test]
fn a_million_sampled_rows_are_all_right() {
    let rows: usize = (0..300).map(|seed| compare(seed * 7919, 60, false)).sum();
    assert!(rows > 1_000_000, "only {rows} rows were compared");
}

#[test]
fn buffers_that_are_closed_and_opened_in_between_are_all_right() {
    let rows: usize = (0..20).map(|seed| compare(1_000_003 + seed * 7919, 40, true)).sum();
    assert!(rows > 40_000, "only {rows} rows were compared");
}

#[test]
fn the_same_seed_draws_the_same_rows() {
    let draw = |seed| {
        let mut replay = Replay::new(None, Store::in_memory(LAYOUT, 100).unwrap(), &ReplayConfig::default()).unwrap();
        let mut robot = Robot { rng: ChaCha8Rng::seed_from_u64(1), episode: 0, step: 0, ended: false, mean_length: 9 };
        (0..150).for_each(|_| replay.append(&robot.next()).unwrap());
        let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(seed), Minibatch::default());
        [SamplerKind::Balanced, SamplerKind::Uniform, SamplerKind::Online].map(|kind| {
            replay.sample(kind, 50, &mut rng, &mut batch).unwrap();
            batch.clone()
        })
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

#[test]
fn labels_reach_the_end_of_their_episode_or_nothing() {
    let mut labelled = 0;
    for seed in 0..40 {
        let mut robot =
            Robot { rng: ChaCha8Rng::seed_from_u64(seed), episode: 0, step: 0, ended: false, mean_length: 6 };
        let mut model = Model { records: Vec::new(), capacity: 100 };
        let mut store = Store::in_memory(LAYOUT, 100).unwrap();
        for _ in 0..50 + 5 * seed {
            model.records.push(robot.next());
            store.append(model.records.last().unwrap()).unwrap();
        }
        let held = |model: &Model, episode| {
            let oldest = model.records.len().saturating_sub(model.capacity);
            model.records[oldest..].iter().any(|record| record.episode == episode)
        };
        for episode in 0..robot.episode + 3 {
            for outcome in [Outcome::Success, Outcome::Failure, Outcome::Failure] {
                match store.label(episode, outcome, worth) {
                    Ok(_) => {
                        labelled += 1;
                        assert!(model.label(episode, outcome));
                    }
                    Err(ReplayError::NotEnded { .. }) => assert!(held(&model, episode)),
                    Err(ReplayError::NoEpisode { held: Some((first, last)), .. }) => {
                        assert!(!held(&model, episode) && held(&model, first) && held(&model, last));
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(store.label(episode, outcome, |_| f32::INFINITY).is_err());
                let mut stored = StepRecord::default();
                for sequence in store.first_sequence()..=store.last_sequence() {
                    store.record(sequence, &mut stored).unwrap();
                    assert_eq!(stored, model.records[sequence as usize - 1], "record {sequence}, label of {episode}");
                }
            }
        }
    }
    assert!(labelled > 500, "{labelled}");
}
