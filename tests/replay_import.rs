//! Data sets become offline buffers: once, whole, and with the right transitions.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod places;

use std::time::{Duration, SystemTime};

use fieldtune::config::ReplayConfig;
use fieldtune::episode::{self, Choices, Dataset, write_npz};
use fieldtune::replay::{Layout, Replay, ReplayError, Store, import, open_offline};
use fieldtune::spaces::{Minibatch, Source, StepFlags, StepRecord};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const LAYOUT: Layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 3 };

/// Three episodes: terminated, cut, terminated.
fn dataset(offset: f32) -> Dataset {
    let mut data = Dataset { observation_dim: 2, action_dim: 1, ..Dataset::default() };
    for (episode, steps) in [4, 6, 1].into_iter().enumerate() {
        for step in 0..steps {
            let last = step == steps - 1;
            data.observations.extend([episode as f32 + offset, step as f32]);
            data.actions.push(step as f32 * 0.1);
            data.rewards.push(1.0 + step as f32);
            data.terminated.push(last && episode != 1);
            data.truncated.push(last && episode == 1);
        }
        data.episode_ends.push(data.rewards.len());
        data.final_observations.extend([episode as f32 + offset, steps as f32]);
    }
    data
}

/// Observation, action, reward, terminated, next observation.
type Transition = (Vec<f32>, f32, f32, f32, Vec<f32>);

/// All transitions of a store in the order of their slots.
fn transitions(store: Store) -> Vec<Transition> {
    let online = Store::in_memory(store.layout(), 3).unwrap();
    let mut replay = Replay::new(Some(store), online, &ReplayConfig::default()).unwrap();
    let mut batch = Minibatch::default();
    replay.sample_source(Source::Offline, 2000, &mut ChaCha8Rng::seed_from_u64(1), &mut batch).unwrap();
    let mut rows: Vec<usize> = (0..batch.rows).collect();
    rows.sort_unstable_by_key(|row| batch.leaf[*row]);
    rows.dedup_by_key(|row| batch.leaf[*row]);
    let observation = |column: &[f32], row: usize| column[2 * row..2 * row + 2].to_vec();
    rows.into_iter()
        .map(|row| {
            let (this, next) = (observation(&batch.observation, row), observation(&batch.next_observation, row));
            (this, batch.action[row], batch.reward[row], batch.terminated[row], next)
        })
        .collect()
}

#[test]
fn every_step_becomes_a_transition_with_its_own_next_observation() {
    let dir = tempfile::tempdir().unwrap();
    let store = import(&dataset(0.0), &dir.path().join("buffer"), LAYOUT).unwrap();
    assert_eq!((store.len(), store.transitions(), store.next_episode()), (14, 11, 3));
    let mut found = StepRecord::default();
    store.record(1, &mut found).unwrap();
    assert!(found.flags.contains(StepFlags::OFFLINE));
    let all = transitions(store);
    assert_eq!(all.len(), 11);
    for (observation, action, reward, terminated, next) in all {
        let (episode, step) = (observation[0], observation[1]);
        assert_eq!(next, [episode, step + 1.0]);
        assert_eq!((action, reward), (step * 0.1, step + 1.0));
        let ends = (episode == 0.0 && step == 3.0) || episode == 2.0;
        assert_eq!(terminated, f32::from(u8::from(ends)), "a cut episode bootstraps, a terminated one does not");
    }
}

#[test]
fn without_last_observations_only_the_cut_step_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let data = Dataset { final_observations: Vec::new(), ..dataset(0.0) };
    let store = import(&data, &dir.path().join("buffer"), LAYOUT).unwrap();
    assert_eq!(store.transitions(), 10);
    assert_eq!(transitions(store).iter().filter(|t| t.3 == 1.0).count(), 2);
}

#[test]
fn another_robot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wider = Layout { action_dim: 2, ..LAYOUT };
    let refused = import(&dataset(0.0), &dir.path().join("buffer"), wider);
    assert!(matches!(refused, Err(ReplayError::LayoutMismatch { .. })));
    assert!(!dir.path().join("buffer").exists());
}

#[test]
fn a_data_set_is_imported_once_and_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (dir.path().join("walk.npz"), dir.path().join("run"));
    let inode = || {
        let file = std::fs::metadata(cache.join("offline-walk/trans.rrb")).unwrap();
        std::os::unix::fs::MetadataExt::ino(&file)
    };
    let first = |store: &Store| {
        let mut found = StepRecord::default();
        store.record(1, &mut found).unwrap();
        found.observation[0]
    };
    write_npz(&path, &dataset(0.0)).unwrap();
    let store = open_offline(&path, LAYOUT, &cache).unwrap();
    let imported = inode();
    // Readers share, and nothing is done twice.
    let second = open_offline(&path, LAYOUT, &cache).unwrap();
    assert_eq!((first(&store), first(&second), inode()), (0.0, 0.0, imported));
    // Touched but the same.
    let touched = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(touched).unwrap();
    open_offline(&path, LAYOUT, &cache).unwrap();
    assert_eq!(inode(), imported);
    // Another content, another robot.
    write_npz(&path, &dataset(7.0)).unwrap();
    assert_eq!(first(&open_offline(&path, LAYOUT, &cache).unwrap()), 7.0);
    assert_ne!(inode(), imported);
    assert_eq!(first(&store), 0.0, "the reader of the old one keeps it");
    let renamed = Layout { schema_hash: 4, ..LAYOUT };
    assert_eq!(open_offline(&path, renamed, &cache).unwrap().layout(), renamed);
    // A leftover of an import that was killed is no obstacle, and nothing else is left behind.
    drop((store, second));
    std::fs::remove_file(cache.join("offline-walk/meta.json")).unwrap();
    std::fs::create_dir(cache.join("offline-walk.new-1")).unwrap();
    open_offline(&path, LAYOUT, &cache).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["offline-walk", "offline-walk.new-1"]);
    // A folder is opened as it is.
    assert_eq!(open_offline(&cache.join("offline-walk"), LAYOUT, &cache).unwrap().len(), 14);
    assert!(open_offline(&dir.path().join("absent.npz"), LAYOUT, &cache).is_err());
}

#[test]
fn a_real_locomotion_data_set_becomes_a_buffer() {
    let Some(path) = places::shared("datasets/halfcheetah_medium_v5.npz") else { return };
    let data = episode::read(&path, &Choices::default()).unwrap();
    let returns = data.returns();
    let mean = returns.iter().sum::<f64>() / returns.len() as f64;
    assert_eq!((data.steps(), returns.len()), (100_000, 100));
    assert!((mean - 4591.9).abs() < 0.1, "mean return {mean}");
    let layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 1 };
    let dir = tempfile::tempdir().unwrap();
    let store = open_offline(&path, layout, dir.path()).unwrap();
    assert_eq!((store.len(), store.transitions()), (100_100, 100_000));
    let online = Store::in_memory(layout, 10).unwrap();
    let mut replay = Replay::new(Some(store), online, &ReplayConfig::default()).unwrap();
    let mut batch = Minibatch::default();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..50 {
        replay.sample_source(Source::Offline, 256, &mut rng, &mut batch).unwrap();
        for row in 0..batch.rows {
            // Slot k of an import holds step k, shifted by one for each last observation before it.
            let (episode, step) = (batch.leaf[row] as usize / 1001, batch.leaf[row] as usize % 1001);
            let index = episode * 1000 + step;
            let next = if step == 999 {
                &data.final_observations[episode * 17..][..17]
            } else {
                &data.observations[(index + 1) * 17..][..17]
            };
            assert_eq!(batch.observation[row * 17..][..17], data.observations[index * 17..][..17]);
            assert_eq!(batch.next_observation[row * 17..][..17], *next);
            assert_eq!(batch.action[row * 6..][..6], data.actions[index * 6..][..6]);
            assert_eq!((batch.reward[row], batch.terminated[row]), (data.rewards[index], 0.0));
        }
    }
}
