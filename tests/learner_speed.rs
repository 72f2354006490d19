//! Where the time of an update goes. Prints; judges nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use std::sync::Mutex;

use fieldtune::clock;
use fieldtune::config::{LearnerConfig, ReplayConfig};
use fieldtune::learner::{Dims, Learner};
use fieldtune::replay::{Layout, Replay, Store};
use fieldtune::spaces::StepRecord;
use learner_problem::ensemble;
use rand::Rng;

const UPDATES: u32 = 100;

fn store(layout: Layout, steps: u32, seed: u64) -> Store {
    let mut store = Store::in_memory(layout, u64::from(steps) + 10).unwrap();
    let rng = &mut fieldtune::learner::stream(seed, "test data");
    for step in 0..steps {
        let mut record =
            StepRecord { episode: step / 1000, step: step % 1000, reward: rng.random(), ..StepRecord::default() };
        record.observation.extend((0..layout.observation_dim).map(|_| rng.random_range(-1.0..1.0f32)));
        record.action.extend((0..layout.action_dim).map(|_| rng.random_range(-1.0..1.0f32)));
        store.append(&record).unwrap();
    }
    store
}

#[test]
#[ignore = "timing: prints milliseconds of processor time per update"]
fn update_speed() {
    let dims = Dims { observation: 17, action: 6 };
    let layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 1 };
    let replay =
        Replay::new(Some(store(layout, 100_000, 1)), store(layout, 20_000, 2), &ReplayConfig::default()).unwrap();
    let replay = Mutex::new(replay);
    let weights = ensemble(5, dims, &[256, 256], 1);
    let mut learner = Learner::new(&weights, dims, &LearnerConfig::default(), &ReplayConfig::default(), 0).unwrap();
    (0..10).for_each(|_| _ = learner.update(&replay).unwrap());
    let (start, before) = (clock::process_cpu(), learner.timings());
    (0..UPDATES).for_each(|_| _ = learner.update(&replay).unwrap());
    let spent = clock::process_cpu().saturating_sub(start) / UPDATES;
    let after = learner.timings();
    eprintln!("17/6, N = 5, 256-256, batch 256: {:.2} ms of processor time per update", spent.as_secs_f64() * 1e3);
    for (part, after, before) in [
        ("sampling", after.sampling, before.sampling),
        ("density", after.density, before.density),
        ("target", after.target, before.target),
        ("critic forward", after.critic_forward, before.critic_forward),
        ("critic backward", after.critic_backward, before.critic_backward),
        ("actor", after.actor, before.actor),
        ("optimiser", after.optimiser, before.optimiser),
        ("polyak", after.polyak, before.polyak),
    ] {
        eprintln!("  {part:16} {:6.2} ms", after.saturating_sub(before).as_secs_f64() * 1e3 / f64::from(UPDATES));
    }
}
