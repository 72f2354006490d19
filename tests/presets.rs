//! Promise: every preset fine-tunes a robot, the simulated pendulum, from start to end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use fieldtune::config::PRESETS;
use serde_json::Value;

/// A short run of a preset: bursts, warm-up and minibatches are small, everything else is the preset's.
const SHORT: &[&str] = &[
    "run.clock=lockstep",
    "run.steps=160",
    "run.evaluate_episodes=1",
    "episode.max_steps=50",
    "replay.capacity=2000",
    "learner.batch_size=16",
    "learner.burst_steps=40",
    "learner.warmup_steps=110",
    "learner.first_burst_multiplier=1",
    "learner.density_hidden=[8]",
    "policy.publish_every=20",
];

fn run(folder: &Path, method: &str, settings: &[&str]) -> (Value, Vec<Value>) {
    let report = folder.join("report.json");
    let config = folder.join("robot.toml");
    std::fs::write(&config, "[run]\nexisting = \"fresh\"\n[policy]\nbundle = \"models/pendulum-cql\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fieldtune"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--quiet", "--config"])
        .arg(&config)
        .args(["--method", method])
        .args(["--set", &format!("run.directory={}", folder.join("run").display())])
        .args(SHORT.iter().chain(settings).flat_map(|s| ["--set", s]))
        .arg("--report")
        .arg(&report)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{method}: {said}");
    let metrics = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap(), lines)
}

#[test]
fn every_preset_runs_on_the_pendulum() {
    for (method, _) in PRESETS {
        let folder = tempfile::tempdir().unwrap();
        let (report, metrics) = run(folder.path(), method, &[]);
        assert_eq!((report["steps"].as_u64(), report["dropped"].as_u64()), (Some(160), Some(0)), "{method}");
        assert!(report["updates"].as_u64().unwrap() >= 40, "{method}: {}", report["updates"]);
        assert!(report["swaps"].as_u64().unwrap() >= 1, "{method}");
        let updates: Vec<&Value> = metrics.iter().filter(|line| line["event"] == "update").collect();
        assert!(updates.len() >= 4, "{method}: {} lines", updates.len());
        for (line, key) in
            updates.iter().flat_map(|l| ["critic_loss", "actor_loss", "temperature", "q_mean"].map(|k| (l, k)))
        {
            assert!(line[key].is_number(), "{method}: `{key}` is {}", line[key]);
        }
        assert!(folder.path().join("run/bundle/weights.safetensors").exists(), "{method}");
    }
}
