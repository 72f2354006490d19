//! `fieldtune pretrain` as people use it: evaluations, the best ensemble, stop and resume, critics for given actors.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use fieldtune::policy::Bundle;
use serde_json::Value;

fn pretrain(folder: &Path, out: &str, settings: &[&str], flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["pretrain", "--config", "config/pendulum-pretrain.toml"]);
    command.arg("--out").arg(folder.join(out)).arg("--report").arg(folder.join(out).with_extension("json"));
    let run = format!("run.directory={}", folder.join("run").display());
    let small = ["run.existing=resume", "pretrain.hidden=[16, 16]", "pretrain.ensemble_size=2"];
    for setting in [run.as_str()].iter().chain(&small).chain(settings) {
        command.args(["--set", setting]);
    }
    command.args(flags).output().unwrap()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn report(folder: &Path, out: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(out).with_extension("json")).unwrap()).unwrap()
}

#[test]
fn a_training_in_parts_ends_like_one_at_a_stretch() {
    let (parts, stretch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let evaluated = ["pretrain.evaluate_every=20", "run.evaluate_episodes=1"];
    let with = |updates: &'static str| [evaluated.as_slice(), &[updates]].concat();
    good(&pretrain(parts.path(), "half", &with("pretrain.updates=20"), &[]));
    let said = good(&pretrain(parts.path(), "whole", &with("pretrain.updates=40"), &[]));
    assert!(said.contains("20 updates done"), "{said}");
    good(&pretrain(stretch.path(), "whole", &with("pretrain.updates=40"), &["--best"]));
    let load = |folder: &Path, name: &str| Bundle::load(&folder.join(name)).unwrap().into_weights();
    // At a stretch the best was asked for: it is the ensemble of one of the evaluations.
    let best = load(stretch.path(), "whole");
    assert_eq!(best, load(stretch.path(), "run/pretraining/best"));
    assert_eq!(best, load(parts.path(), "run/pretraining/best"));
    let evaluations = |folder: &Path| {
        let report = report(folder, "whole");
        let pair = |e: &Value| (e["updates"].as_u64().unwrap(), e["returns"][0].as_f64().unwrap());
        report["evaluations"].as_array().unwrap().iter().map(pair).collect::<Vec<_>>()
    };
    let found = evaluations(parts.path());
    assert_eq!(found, evaluations(stretch.path()));
    assert_eq!(found.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 20, 40]);

    let again = pretrain(parts.path(), "whole", &with("pretrain.updates=40"), &[]);
    let words = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && words.contains("pretrain.updates"), "{words}");
    let last = load(parts.path(), "whole");
    good(&pretrain(stretch.path(), "last", &["pretrain.updates=40", "run.existing=fresh"], &[]));
    assert_eq!(last, load(stretch.path(), "last"));
    assert!(stretch.path().join("run/pretraining.1").exists());
}

#[test]
fn critics_can_be_made_for_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["pretrain.updates=5", "policy.bundle=models/pendulum-cql"];
    good(&pretrain(folder.path(), "fqe", &settings, &["--critic-only"]));
    let made = Bundle::load(&folder.path().join("fqe")).unwrap();
    let given = Bundle::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pendulum-cql")).unwrap();
    assert_eq!(made.weights().actor, given.weights().actor);
    assert_ne!(made.weights().critic1, given.weights().critic1);
    assert!(made.manifest().description.algorithm.contains("FQE"));
}
