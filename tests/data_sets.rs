//! Data sets of others, made by their own packages (`tools/interop/data_sets.py`), through `fieldtune data`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fieldtune::episode::{Choices, Dataset, read};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sets").join(name)
}

/// Runs `fieldtune data VERB SOURCE --out OUT OPTIONS`.
fn data(verb: &str, source: &Path, out: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
    command.arg("data").arg(verb).arg(source).arg("--out").arg(out).args(options).output().unwrap()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sources with what must be said about them, and the `.npz` with the values that the package wrote.
const SETS: [(&str, &str, &[&str]); 6] = [
    ("d4rl.hdf5", "d4rl.npz", &[]),
    ("d4rl_v0.hdf5", "d4rl_v0.npz", &["--ends", "8"]),
    (
        "robomimic.hdf5",
        "robomimic.npz",
        &["--ends", "terminated", "--observation", "robot0_eef_pos", "--observation", "object"],
    ),
    ("minari_hdf5", "minari_hdf5.npz", &[]),
    ("minari_parquet", "minari_parquet.npz", &[]),
    ("lerobot_made", "lerobot_made.npz", &["--ends", "truncated"]),
];

fn expected(npz: &str) -> Dataset {
    read(&fixture(npz), &Choices::default()).unwrap()
}

#[test]
fn every_set_has_the_values_that_its_package_wrote() {
    let folder = tempfile::tempdir().unwrap();
    for (source, npz, options) in SETS {
        let out = folder.path().join("read.npz");
        let said = good(&data("import", &fixture(source), &out, options));
        assert!(said.contains("20 steps of 3 episodes"), "{source}: {said}");
        assert_eq!(read(&out, &Choices::default()).unwrap(), expected(npz), "{source}");
    }
}

#[test]
fn what_a_set_does_not_say_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("read.npz");
    let refusal = |source: &str, options: &[&str]| {
        let output = data("import", &fixture(source), &out, options);
        assert!(!output.status.success() && !out.exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refusal("d4rl_v0.hdf5", &[]).contains("no timeouts"));
    assert!(refusal("d4rl.hdf5", &["--ends", "8"]).contains("--ends is not to be given"));
    assert!(refusal("d4rl.hdf5", &["--observation", "qpos"]).contains("no observation `qpos`"));
    assert!(refusal("robomimic.hdf5", &[]).contains("object, robot0_eef_pos"));
    assert!(refusal("robomimic.hdf5", &["--observation", "object"]).contains("`done`"));
    assert!(refusal("robomimic.hdf5", &["--observation", "wrist"]).contains("no observation `wrist`"));
    assert!(refusal("lerobot_made", &[]).contains("--ends"));
    assert!(refusal("d4rl.npz", &["--success-reward", "1"]).contains("it has rewards"));
}

/// SHA-256 of the values, as `data inspect` says it.
fn hash(source: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
    let output = command.arg("data").arg("inspect").arg(source).arg("--json").output().unwrap();
    let facts: Value = serde_json::from_str(&good(&output)).unwrap();
    facts["values_sha256"].as_str().unwrap().to_owned()
}

#[test]
fn round_trips_keep_every_value() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // With all last observations, so that a log holds all steps; with stamps (LeRobot's) and without.
    let mut hashes = Vec::new();
    for (source, _, options) in SETS.into_iter().filter(|set| set.0 != "d4rl.hdf5" && set.0 != "lerobot_made") {
        let first = at(&format!("{source}.npz"));
        good(&data("import", &fixture(source), &first, options));
        for format in ["again.npz", "log.mcap", "lerobot"] {
            let rate: &[&str] = if format == "again.npz" { &[] } else { &["--control-hz", "50"] };
            let name = source.replace('.', "_");
            // A folder has no extension.
            let dot = if format == "lerobot" { '_' } else { '.' };
            let (there, back) = (at(&format!("{name}{dot}{format}")), at(&format!("{name}_{format}_back.npz")));
            good(&data("export", &first, &there, rate));
            good(&data("import", &there, &back, &[]));
            assert_eq!(hash(&back), hash(&first), "{source} through {format}");
        }
        hashes.push(hash(&first));
    }
    hashes.sort();
    hashes.dedup();
    assert!(hashes.len() >= 3, "different sets have different hashes");
}

#[test]
fn stamps_are_those_of_the_recording_and_never_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // A recording with jitter.
    let mut recorded = expected("robomimic.npz");
    recorded.capture_us = (0..20).map(|i| 5_000_000 + i * 50_000 + (i * i * 37) % 900).collect();
    fieldtune::episode::write_npz(&at("jitter.npz"), &recorded).unwrap();
    for out in ["jitter.mcap", "jitter_lerobot"] {
        good(&data("export", &at("jitter.npz"), &at(out), &[]));
        good(&data("import", &at(out), &at("back.npz"), &[]));
        assert_eq!(read(&at("back.npz"), &Choices::default()).unwrap(), recorded, "{out}");
        let refused = data("export", &at("jitter.npz"), &at(&format!("x{out}")), &["--control-hz", "20"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("own stamp"));
    }
    // Without stamps there is no rate unless somebody says one.
    let refused = data("export", &fixture("robomimic.npz"), &at("none"), &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--control-hz") && !at("none").exists());
}
