//! Promise: a run at 200 Hz with the learner on loses nothing, its counters add up, and its memory does not grow.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it measured")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fieldtune");
const HZ: u64 = 200;

/// Resident memory of a process in kilobytes.
fn resident_kb(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn soak(seconds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let robot = folder.path().join("robot.sock").display().to_string();
    let mut simulator = Command::new(PROGRAM)
        .args(["simulate", "--clock", "realtime", "--idle-exit-s", "0", "--quiet", "--die-with-parent"])
        .args(["--rate-hz", &HZ.to_string(), "--listen", &format!("unix:{robot}")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(simulator.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let report_path = folder.path().join("report.json");
    let mut run = Command::new(PROGRAM)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--config", "config/quickstart.toml", "--quiet", "--report"])
        .arg(&report_path)
        .args(["--set", &format!("run.directory={}", folder.path().join("run").display())])
        .args(["--set", &format!("run.steps={}", seconds * HZ), "--set", "run.evaluate_episodes=0"])
        // Two seconds: a shared machine may stall the robot's process, which is not what this looks for.
        .args(["--set", "safety.lost_steps=400"])
        .args(["--set", &format!("robot.address={robot}"), "--set", &format!("robot.control_hz={HZ}")])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut resident = Vec::new();
    let begin = monotonic();
    while run.try_wait().unwrap().is_none() {
        assert!(monotonic().since(begin) < Duration::from_secs(4 * seconds + 60), "it does not come to an end");
        resident.extend(resident_kb(run.id()));
        Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(100)));
    }
    let code = run.wait().unwrap();
    let _ = simulator.kill();
    let _ = simulator.wait();
    judge(&report_path, &resident, seconds, code.success());
}

fn judge(report: &Path, resident: &[u64], seconds: u64, clean: bool) {
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let number = |key: &str| report[key].as_u64().unwrap();
    let (early, late) = (resident[resident.len() / 3], resident[resident.len() - 2]);
    eprintln!(
        "{} s at {HZ} Hz: {} steps, {} ticks, {} late, {} stale, {} missed states, {} dropped, {} updates, {} swaps, \
         {} page faults, wake {}, resident {early} kB after a third, {late} kB at the end",
        seconds,
        number("steps"),
        number("ticks"),
        number("late_ticks"),
        number("stale_ticks"),
        number("missed_states"),
        number("dropped"),
        number("updates"),
        number("swaps"),
        report["page_faults"],
        report["wake"],
    );
    assert!(clean, "{report}");
    assert_eq!(number("dropped"), 0);
    assert!(number("steps") >= seconds * HZ && number("online_transitions") >= number("steps"), "{report}");
    // A tick ends a step, or finds nothing fresh, or waits for a reset, or begins after lost states.
    assert!(number("ticks") >= number("steps") + number("stale_ticks"), "{report}");
    assert!(number("updates") > 0 && number("swaps") > 0, "{report}");
    assert!(late <= early + early / 10 + 16_384, "memory grows: {early} kB, then {late} kB");
}

#[test]
fn twenty_seconds_lose_nothing() {
    soak(20);
}

#[test]
#[ignore = "long: half an hour; cargo test --release --test soak -- --ignored --nocapture"]
fn half_an_hour_loses_nothing() {
    soak(1800);
}
