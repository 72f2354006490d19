//! Promise: from a d3rlpy checkpoint and a file in the layout of D4RL to a fine-tuning run, with the README's commands.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The README's commands, one per line.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, behind) = readme.split_once("## From your agent and your data to a run").unwrap();
    let (_, block) = behind.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block.replace("\\\n", " ").lines().filter(|line| line.starts_with("fieldtune ")).map(String::from).collect()
}

#[test]
fn the_commands_of_the_readme_lead_from_agent_and_data_to_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let runs = format!("{}/", folder.path().display());
    // A short run in steps instead of real time; everything else is as it stands in the README.
    let short = format!(
        "--quiet --set run.directory={runs}run --set run.clock=lockstep --set run.steps=400 --set run.evaluate_episodes=1"
    );
    let commands = commands();
    assert!((2..=5).contains(&commands.len()), "{commands:?}");
    for command in &commands {
        let mut words = command
            .replace("agent.d3", "tests/data/newcomer/agent.d3")
            .replace("set.hdf5", "tests/data/newcomer/set.hdf5")
            .replace("robot.toml", "config/quickstart.toml")
            .replace("runs/", &runs);
        if words.contains(" run ") {
            words = format!("{words} {short}");
        }
        let output = Command::new(env!("CARGO_BIN_EXE_fieldtune"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(words.split_whitespace().skip(1))
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(report["steps"], 400);
    assert!(report["updates"].as_u64().unwrap() > 100, "it learned: {report}");
    assert!(report["swaps"].as_u64().unwrap() > 0, "what it learned was run");
}
