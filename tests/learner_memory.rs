//! Promise: what a learner is said to take of the memory is a little above what it takes.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it measured")]

mod learner_problem;

use std::sync::Mutex;

use fieldtune::config::{LearnerConfig, SamplerKind};
use fieldtune::learner::{Dims, Learner, LearnerMemory, random_store};
use fieldtune::replay::Replay;
use learner_problem::{ensemble, replay_config};

/// Bytes of a line of /proc/self/status.
fn own(field: &str) -> u64 {
    fieldtune::telemetry::meminfo(&std::fs::read_to_string("/proc/self/status").unwrap(), field).unwrap()
}

/// Bytes taken above `before` and estimated, of a learner with `members` of 256 x 256.
fn compare(before: u64, members: usize, config: &LearnerConfig) -> (u64, u64) {
    let dims = Dims { observation: 17, action: 6 };
    let store = |seed| random_store(dims, None, 4000, seed).unwrap();
    let replay = Mutex::new(Replay::new(Some(store(1)), store(2), &replay_config(SamplerKind::Balanced)).unwrap());
    let weights = ensemble(members, dims, &[256, 256], 3);
    let mut learner = Learner::new(&weights, dims, config, &replay_config(SamplerKind::Balanced), 0).unwrap();
    for _ in 0..3 {
        learner.update(&replay).unwrap();
    }
    let copy = learner.weights().unwrap();
    let measured = own("VmHWM:") - before;
    assert!(copy.critic1.members == members);
    (measured, LearnerMemory::new(&weights, dims, config).total())
}

#[test]
fn the_estimate_covers_what_is_taken_and_not_much_more() {
    // The largest last: the peak is that of the process, and the allocator keeps what was freed.
    let before = own("VmRSS:");
    for (members, config) in [
        (2, LearnerConfig::default()),
        (5, LearnerConfig::default()),
        (10, LearnerConfig { critic_steps: 4, ..LearnerConfig::default() }),
    ] {
        let (measured, estimated) = compare(before, members, &config);
        let ratio = estimated as f64 / measured as f64;
        eprintln!(
            "{members} members, {} steps: {:.1} MB taken, {:.1} MB estimated",
            config.critic_steps,
            measured as f64 / 1e6,
            estimated as f64 / 1e6
        );
        assert!((0.85..2.0).contains(&ratio), "{members} members: {measured} bytes taken, {estimated} estimated");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_hardly_fits_is_said() {
    let weights = ensemble(5, Dims { observation: 17, action: 6 }, &[256, 256], 3);
    let need = LearnerMemory::new(&weights, Dims { observation: 17, action: 6 }, &LearnerConfig::default());
    let memory = |bytes: u64| format!("MemTotal: 8000000 kB\nMemAvailable: {} kB\n", bytes / 1024);
    let board = "NVIDIA Jetson Orin Nano Developer Kit\0";
    assert_eq!(need.check(&memory(2 * need.total()), board).unwrap(), None);
    assert_eq!(need.check("", "").unwrap(), None, "a system that does not say is not asked");
    let warning = need.check(&memory(need.total() * 5 / 4), board).unwrap().unwrap();
    assert!(warning.contains("Orin Nano") && warning.contains("share the memory"), "{warning}");
    let refusal = need.check(&memory(need.total() / 2), "").unwrap_err().to_string();
    assert!(refusal.contains("lower learner.members") && refusal.contains("the machine has"), "{refusal}");
}
