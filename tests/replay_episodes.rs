//! Promises of `fieldtune replay`: the recorded policy gives the recorded actions again, bit for bit, whatever clock
//! and threads do; one changed bit is seen; the learner learns from recorded episodes what it learned in the run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use fieldtune::clock::{Clock, Stamp, monotonic};
use fieldtune::config::{self, Config};
use fieldtune::policy::AnyBundle;
use fieldtune::replay::open_damaged;
use fieldtune::runtime::{Replayed, replay};
use fieldtune::spaces::{StepFlags, StepRecord};
use serde_json::Value;

fn fieldtune(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_fieldtune");
    Command::new(program).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap()
}

/// A run of the quickstart's pendulum in `folder`.
fn record(folder: &Path, settings: &[&str]) -> Output {
    let directory = format!("run.directory={}", folder.display());
    let all =
        ["run.evaluate_episodes=0", "episode.max_steps=60", &directory].into_iter().chain(settings.iter().copied());
    let settings: Vec<&str> = all.flat_map(|setting| ["--set", setting]).collect();
    let output = fieldtune(&[&["run", "--config", "config/quickstart.toml", "--quiet"][..], &settings].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn records(folder: &Path) -> Vec<StepRecord> {
    let store = open_damaged(&folder.join("replay")).unwrap();
    let one = |sequence| {
        let mut record = StepRecord::default();
        store.record(sequence, &mut record).unwrap();
        record
    };
    (store.first_sequence()..=store.last_sequence()).map(one).collect()
}

fn replayed(config: &Config, records: &[StepRecord], clock: &Clock) -> Replayed {
    let bundle = AnyBundle::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(&config.policy.bundle)).unwrap();
    replay(config, bundle.source(), &records.to_vec().into(), clock, &mut |_| {}).unwrap()
}

fn steps(records: &[StepRecord]) -> u64 {
    records.iter().filter(|record| !record.flags.contains(StepFlags::OBSERVATION_ONLY)).count() as u64
}

/// 200 steps in lockstep, with exploration noise; the last episode is cut.
fn recorded(folder: &Path, slew: f32) -> (Config, Vec<StepRecord>) {
    let slew = format!("safety.slew_per_step={slew}");
    let settings = ["run.clock=lockstep", "run.steps=200", "learner.enabled=false", &slew];
    record(folder, &settings);
    (config::load(&folder.join("config.toml"), &[]).unwrap(), records(folder))
}

#[test]
fn the_recorded_policy_gives_the_same_bits_whatever_clock_and_threads_do() {
    let folder = tempfile::tempdir().unwrap();
    let (config, records) = recorded(&folder.path().join("run"), 0.4);
    let plain = replayed(&config, &records, &Clock::lockstep());
    assert_eq!((plain.all.equal, plain.all.steps), (steps(&records), 200), "{plain:?}");
    assert!(plain.episodes.iter().all(|e| e.first.is_none() && e.not_reached == 0 && e.stopped.is_none()));
    assert!(plain.episodes.iter().map(|e| e.limited).sum::<u64>() > 20, "the limits act");

    // A clock that jumps by itself, and one that is the machine's.
    let (over, clock) = (Arc::new(AtomicBool::new(false)), Clock::lockstep());
    let jumping = {
        let (over, clock) = (Arc::clone(&over), clock.clone());
        let body = move || {
            let mut jump = 1;
            while !over.load(Relaxed) {
                clock.advance(Duration::from_micros(jump));
                jump = jump * 31 % 100_003;
                Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_micros(jump % 200)));
            }
        };
        std::thread::Builder::new().spawn(body).unwrap()
    };
    let perturbed = replayed(&config, &records, &clock);
    over.store(true, Relaxed);
    jumping.join().unwrap();
    assert!(clock.now() > Stamp(0));
    assert_eq!(perturbed.episodes, plain.episodes);
    assert_eq!(replayed(&config, &records, &Clock::Monotonic).episodes, plain.episodes);

    // Several at a time, in the way of each other.
    let together: Vec<Replayed> = std::thread::scope(|scope| {
        let one = || replayed(&config, &records, &Clock::Monotonic);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(together.iter().all(|other| other.episodes == plain.episodes));
}

#[test]
fn one_changed_bit_of_an_observation_is_seen_in_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let (config, records) = recorded(&folder.path().join("run"), 2.0);
    for at in [0, 70, 130] {
        let mut changed = records.clone();
        let value = &mut changed[at].observation[2];
        *value = f32::from_bits(value.to_bits() ^ 1 << 20);
        let found = replayed(&config, &changed, &Clock::lockstep());
        let first = found.episodes.iter().find_map(|e| e.first.clone().map(|first| (e.episode, first.step)));
        assert_eq!(first, Some((records[at].episode, records[at].step)));
    }
    // Another seed is other noise.
    let other = Config { run: config::RunConfig { seed: 1, ..config.run.clone() }, ..config.clone() };
    assert!(replayed(&other, &records, &Clock::lockstep()).all.equal < 10);
}

#[test]
fn holes_and_missing_beginnings_leave_the_other_steps_equal() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, mut records) = recorded(&folder.path().join("run"), 0.4);
    // Without a memory in the limits every step stands for itself.
    config.safety.slew_per_step = 2.0;
    let whole = replayed(&config, &records, &Clock::lockstep());
    records.drain(100..107);
    records.drain(0..5);
    let cut = replayed(&config, &records, &Clock::lockstep());
    assert_eq!((cut.all.steps, cut.episodes.len()), (steps(&records), whole.episodes.len()));
    assert_eq!(cut.episodes[2..], whole.episodes[2..], "episodes that were left alone");
    // The rules may end an episode earlier than they did: the rest is not reached.
    config.episode.max_steps = 50;
    let shorter = replayed(&config, &records, &Clock::lockstep());
    assert!(shorter.episodes[1].not_reached > 0 && shorter.episodes[1].stopped.is_none());
}

#[test]
fn a_real_time_recording_is_equal_but_for_what_came_too_late() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = ["run.steps=70", "learner.enabled=false", "realtime.priority=0"];
    record(&run, &settings);
    let output = fieldtune(&["replay", run.to_str().unwrap(), "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(run.join("report.json")).unwrap()).unwrap();
    let late: u64 = ["/late_ticks", "/stale_ticks", "/missed_states", "/robot_link/robot_late_commands"]
        .iter()
        .map(|pointer| report.pointer(pointer).and_then(Value::as_u64).unwrap())
        .sum();
    let count = |name: &str| found["all"][name].as_u64().unwrap();
    assert!(count("steps") >= 60 && count("equal") + 2 * late >= count("steps"), "{late} late: {}", found["all"]);
}

#[test]
fn the_learner_learns_from_recorded_episodes_what_it_learned_in_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (run, again) = (folder.path().join("run"), folder.path().join("again"));
    let settings = [
        "run.clock=lockstep",
        "run.steps=150",
        "learner.batch_size=32",
        "learner.utd_ratio=2",
        "policy.publish_every=10",
    ];
    record(&run, &settings);
    let output = fieldtune(&["replay", run.to_str().unwrap(), "--learn", again.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["bundle/weights.safetensors", "bundle/policy.onnx"] {
        assert!(std::fs::read(run.join(file)).unwrap() == std::fs::read(again.join(file)).unwrap(), "{file}");
    }
    let start = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pendulum-cql/policy.onnx");
    assert!(std::fs::read(run.join("bundle/policy.onnx")).unwrap() != std::fs::read(start).unwrap());
    // The generation of the start is equal, those of the learner are not this bundle.
    let output = fieldtune(&["replay", run.to_str().unwrap(), "--tolerance", "0", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let first = &found["generations"]["0"];
    assert!(first["steps"].as_u64().unwrap() > 100 && first["steps"] == first["equal"], "{first}");
    assert!(!output.status.success() && found["all"]["steps"] != found["all"]["equal"]);
    let output = fieldtune(&["replay", run.to_str().unwrap(), "--learn", run.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("that is the recording itself"));
}
