//! `fieldtune data` on buffers: damage is named, repair keeps what is verified, samples tell the truth.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use fieldtune::replay::{Access, Layout, Seen, Store, open_damaged, repair};
use fieldtune::spaces::{FrameShape, StepFlags, StepRecord};
use serde_json::Value;

const LAYOUT: Layout = Layout { observation_dim: 3, action_dim: 1, schema_hash: 5 };
const RECORDS_AT: usize = 8192;
/// Bytes of a record of this layout.
const RECORD: usize = 64;

/// Step `index` of a robot with episodes of 9 steps and a last observation.
fn record(index: u64) -> StepRecord {
    let (episode, step) = ((index / 10) as u32, (index % 10) as u32);
    let mut record = StepRecord { episode, step, capture_us: index, use_us: index + 3, ..StepRecord::default() };
    record.observation.extend([index as f32, 0.5, -1.0]);
    if step == 9 {
        record.flags = StepFlags::OBSERVATION_ONLY;
        return record;
    }
    if step == 8 {
        record.flags = StepFlags::TERMINATED;
    }
    record.reward = index as f32 * 0.5;
    record.action.push(0.25).unwrap();
    record
}

/// A ring of 100 that went round once and has 150 records behind it.
fn ring(dir: &Path) -> Store {
    let mut store = Store::create(dir, LAYOUT, 100).unwrap();
    (0..150).for_each(|index| _ = store.append(&record(index)).unwrap());
    store
}

fn damage(dir: &Path, file: &str, at: usize) {
    let path = dir.join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn fieldtune(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fieldtune")).arg("data").args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// All records of a store by what they say, so that their numbers do not matter.
fn content(store: &Store) -> BTreeMap<u64, StepRecord> {
    let mut all = BTreeMap::new();
    let mut found = StepRecord::default();
    for sequence in store.first_sequence()..=store.last_sequence() {
        if store.record(sequence, &mut found).is_ok() {
            all.insert(found.capture_us, found.clone());
        }
    }
    all
}

#[test]
fn repair_keeps_every_verified_record_and_joins_nothing_across_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    drop(ring(&old));
    // In the middle of episodes: the records of index 103, 104 and 77.
    for slot in [3, 4, 77] {
        damage(&old, "trans.rrb", RECORDS_AT + slot * RECORD + 20);
    }
    let before = std::fs::read(old.join("trans.rrb")).unwrap();
    let damaged = open_damaged(&old).unwrap();
    assert_eq!((damaged.len(), damaged.bad_records().checksum), (97, 3));
    let repaired = repair(&damaged, &new).unwrap();
    assert_eq!((repaired.len(), repaired.last_sequence(), repaired.capacity()), (97, 97, 100));
    // One more: the oldest record of a full ring is about to be overwritten, that of the new buffer is not.
    assert_eq!(repaired.transitions(), damaged.transitions() + 1);
    let (was, is) = (content(&damaged), content(&repaired));
    for (index, kept) in &is {
        let mut wanted = was[index].clone();
        if [105, 78].contains(index) {
            wanted.flags.insert(StepFlags::GAP);
        }
        assert_eq!(*kept, wanted);
    }
    drop((repaired, damaged));
    assert!(before == std::fs::read(old.join("trans.rrb")).unwrap(), "the old buffer is untouched");
    assert_eq!(Store::open(&new, Access::ReadOnly).unwrap().bad_records().total(), 0);
    let again = open_damaged(&old).unwrap();
    assert!(repair(&again, &new).is_err(), "an existing buffer is not written over");
}

#[test]
fn a_file_that_was_cut_is_repaired_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    drop(ring(&old));
    let file = std::fs::File::options().write(true).open(old.join("trans.rrb")).unwrap();
    file.set_len((RECORDS_AT + 60 * RECORD + 17) as u64).unwrap();
    assert!(Store::open(&old, Access::ReadOnly).is_err());
    let cut = open_damaged(&old).unwrap();
    // Slots 0 to 49 hold the records 100 to 149, slots 50 to 59 the records 50 to 59, and slot 60 a piece of one.
    assert_eq!((cut.len(), cut.bad_records().total()), (60, 1));
    let repaired = repair(&cut, &new).unwrap();
    assert_eq!(content(&repaired).keys().copied().collect::<Vec<_>>(), (50..60).chain(100..150).collect::<Vec<_>>());
    assert_eq!(repaired.transitions(), 9 + 45);
}

#[test]
fn frames_are_repaired_with_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let shape = FrameShape { width: 4, height: 4, channels: 3 };
    let mut store = Store::create_with_frames(&old, LAYOUT, 100, shape).unwrap();
    for index in 0..50_u64 {
        let pixels = vec![(index / 2) as u8; 48];
        let seen = if index % 2 == 0 { Seen::New { pixels: &pixels, capture_ns: index } } else { Seen::Same };
        store.append_with_frame(&record(index), seen).unwrap();
    }
    drop(store);
    // The frame of the records 6 and 7, and the record file's record 20.
    damage(&old, "frames.rrb", 4096 + 3 * shape.slot_bytes() + 70);
    let with_frame = (std::fs::metadata(old.join("trans.rrb")).unwrap().len() as usize - RECORDS_AT) / 100;
    damage(&old, "trans.rrb", RECORDS_AT + 20 * with_frame);
    let damaged = open_damaged(&old).unwrap();
    assert_eq!((damaged.bad_records().frame, damaged.bad_records().checksum), (2, 1));
    let repaired = repair(&damaged, &new).unwrap();
    assert_eq!(repaired.len(), 47);
    let mut found = StepRecord::default();
    for sequence in 1..=47 {
        repaired.record(sequence, &mut found).unwrap();
        let (_, _, pixels) = repaired.frame(sequence).unwrap();
        assert!(pixels.iter().all(|p| u64::from(*p) == found.capture_us / 2));
    }
    assert_eq!(repaired.frame(47).unwrap().0, 24, "25 frames, one of them damaged, each stored once");
}

#[test]
fn the_commands_name_the_damage_and_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("run/replay"), dir.path().join("new"));
    drop(ring(&old));
    let run = dir.path().join("run").display().to_string();
    let new = new.display().to_string();
    let sound = fieldtune(&["verify", &run]);
    assert!(sound.status.success(), "{}", String::from_utf8_lossy(&sound.stdout));
    damage(&old, "trans.rrb", RECORDS_AT + 7 * RECORD);
    let bad = fieldtune(&["verify", &run, "--json"]);
    assert!(!bad.status.success());
    let bad = json(&bad);
    assert_eq!((&bad["records"], &bad["bad"]["checksum"]), (&99.into(), &1.into()));
    assert_eq!(bad["bad"]["first"][0], serde_json::json!([7, "checksum"]));
    let text = String::from_utf8(fieldtune(&["verify", &run]).stdout).unwrap();
    assert!(text.contains("slot 7: the checksum does not fit"), "{text}");
    let inspected = fieldtune(&["inspect", &run, "--json"]);
    assert!(!inspected.status.success(), "a bad record is an exit code");
    let repaired = fieldtune(&["repair", &run, "--out", &new, "--json"]);
    assert!(repaired.status.success());
    assert_eq!(json(&repaired)["to"]["records"], 99);
    assert!(fieldtune(&["verify", &new]).status.success());
    let inspected = json(&fieldtune(&["inspect", &new, "--json"]));
    for (histogram, count) in [("return", "episodes"), ("length", "episodes"), ("reward", "steps"), ("action", "steps")]
    {
        let counts = inspected["histograms"][histogram]["counts"].as_array().unwrap();
        let sum: u64 = counts.iter().map(|c| c.as_u64().unwrap()).sum();
        assert_eq!(inspected[count], sum, "{histogram}");
    }
    let text = String::from_utf8(fieldtune(&["inspect", &new]).stdout).unwrap();
    assert!(text.contains("reward of a step") && text.contains("####"), "{text}");
    // What no reader can use is said in JSON, too.
    std::fs::write(old.join("trans.rrb"), "nothing").unwrap();
    let refused = fieldtune(&["verify", &run, "--json"]);
    assert!(!refused.status.success());
    assert_eq!(json(&refused)["usable"], false);
}

/// One array of an `.npz` file.
fn array<T: npyz::Deserialize>(path: &Path, name: &str) -> Vec<T> {
    let mut npz = npyz::npz::NpzArchive::open(path).unwrap();
    npz.by_name(name).unwrap().unwrap().into_vec().unwrap()
}

#[test]
fn a_sample_holds_real_transitions_with_the_frequency_it_states() {
    let dir = tempfile::tempdir().unwrap();
    drop(ring(dir.path()));
    let out = dir.path().join("sample.npz");
    let (source, file) = (dir.path().display().to_string(), out.display().to_string());
    let arguments = ["sample", &source, "--n", "100000", "--seed", "3", "--out", &file, "--json"];
    for sampler in ["balanced", "uniform", "online"] {
        let output = fieldtune(&[&arguments[..], &["--sampler", sampler]].concat());
        let said = json(&output);
        assert_eq!((&said["rows"], &said["sampler"]), (&100_000.into(), &sampler.into()));
        let index: Vec<i64> = array(&out, "index");
        let probability: Vec<f64> = array(&out, "probability");
        let (observation, next): (Vec<f32>, Vec<f32>) = (array(&out, "observation"), array(&out, "next_observation"));
        let (reward, terminated): (Vec<f32>, Vec<bool>) = (array(&out, "reward"), array(&out, "terminated"));
        assert!(array::<i64>(&out, "source").iter().all(|s| *s == 1), "all rows are online");
        let mut counts: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
        for row in 0..100_000 {
            let step = observation[3 * row];
            assert_eq!(next[3 * row], step + 1.0);
            assert_eq!((reward[row], terminated[row]), (step * 0.5, step % 10.0 == 8.0));
            let count = counts.entry(index[row]).or_insert((0.0, probability[row]));
            count.0 += 1.0;
        }
        let total: f64 = counts.values().map(|(_, p)| p).sum();
        assert!((total - 1.0).abs() < 1e-6, "the probabilities of all transitions are 1 together: {total}");
        let chi: f64 = counts.values().map(|(count, p)| (count - 1e5 * p).powi(2) / (1e5 * p)).sum();
        assert!(chi < 140.0, "{sampler}: chi-square {chi} of {} degrees", counts.len() - 1);
    }
    let first: Vec<i64> = array(&out, "index");
    fieldtune(&[&arguments[..], &["--sampler", "online"]].concat());
    assert!(first == array::<i64>(&out, "index"), "the seed decides");
    let refused = fieldtune(&[&arguments[..], &["--sampler", "best"]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("balanced"), "the choices are named");
}
