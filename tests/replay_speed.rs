//! Times of the replay, in CPU time of one thread. Long and dependent on the machine, so not part of a normal run.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::time::Duration;

use fieldtune::clock::thread_cpu;
use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Access, Layout, Replay, Store};
use fieldtune::spaces::{Minibatch, StepFlags, StepRecord};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: u32 = 1_000_000;

/// Median of the CPU time of `repeat` calls.
fn median(repeat: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..repeat)
        .map(|_| {
            let start = thread_cpu();
            work();
            thread_cpu().saturating_sub(start)
        })
        .collect();
    times.sort_unstable();
    times[repeat / 2]
}

fn fill(store: &mut Store, rng: &mut ChaCha8Rng) {
    let mut record = StepRecord::default();
    record.observation.resize(17, 0.0).unwrap();
    record.action.resize(6, 0.0).unwrap();
    for index in 0..ROWS {
        (record.episode, record.step) = (index / 1001, index % 1001);
        record.flags = if record.step == 1000 { StepFlags::OBSERVATION_ONLY } else { StepFlags::default() };
        record.observation.iter_mut().for_each(|v| *v = rng.random());
        store.append(&record).unwrap();
    }
}

#[test]
#[ignore = "long: a million records on disk, times of this machine"]
fn a_million_records_are_fast() {
    let layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 0 };
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut store = Store::create(dir.path(), layout, u64::from(ROWS) + 1).unwrap();
    fill(&mut store, &mut rng);
    drop(store);
    let open = || Store::open(dir.path(), Access::ReadWrite).unwrap();
    let reopen = median(5, || drop(open()));
    let mut replay = Replay::new(None, open(), &ReplayConfig::default()).unwrap();
    let mut batch = Minibatch::default();
    let mut priorities = vec![0.0_f32; 256];
    for _ in 0..20_000 {
        replay.sample(SamplerKind::Uniform, 256, &mut rng, &mut batch).unwrap();
        priorities.fill_with(|| 10.0_f32.powf(rng.random_range(-2.0..2.0)));
        replay.set_priorities(&batch.leaf, &priorities).unwrap();
    }
    for kind in [SamplerKind::Balanced, SamplerKind::Uniform] {
        let time = median(5000, || replay.sample(kind, 256, &mut rng, &mut batch).unwrap());
        eprintln!("sample 256 of {ROWS}, {kind:?}: {time:?}");
        assert!(time < Duration::from_micros(60), "{kind:?}: {time:?}");
    }
    let mut tree = replay.priorities().clone();
    let mut drawn = Vec::new();
    let time = median(5000, || tree.sample_stratified(256, &mut rng, &mut drawn));
    eprintln!("  of that in the tree: {time:?}");
    let mut times = Vec::new();
    for _ in 0..5000 {
        replay.sample(SamplerKind::Balanced, 256, &mut rng, &mut batch).unwrap();
        priorities.fill_with(|| 10.0_f32.powf(rng.random_range(-2.0..2.0)));
        times.push(median(1, || replay.set_priorities(&batch.leaf, &priorities).unwrap()));
    }
    times.sort_unstable();
    eprintln!("256 priorities: {:?}", times[2500]);
    eprintln!("open {ROWS} records, warm: {reopen:?}");
    assert!(times[2500] < Duration::from_micros(10), "{:?}", times[2500]);
    assert!(reopen < Duration::from_millis(100), "{reopen:?}");
}
