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
    // A robot is never late because this machine is busy.
    let _ = Command::new("chrt").args(["--fifo", "--pid", "81", &simulator.id().to_string()]).status();
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

/// Every so many of the samples: enough to see a slope.
fn thinned(resident: &[u64]) -> Vec<u64> {
    resident.iter().step_by(resident.len().div_ceil(30)).copied().collect()
}

fn judge(report: &Path, resident: &[u64], seconds: u64, clean: bool) {
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let number = |key: &str| report[key].as_u64().unwrap();
    let (early, late) = (resident[resident.len() / 3], resident[resident.len() - 2]);
    // A tick ends a step, or finds nothing fresh, or waits for a reset, or begins after lost states; every step is in
    // the replay, or was replaced there by a newer one.
    let adds_up = number("ticks") >= number("steps") + number("stale_ticks")
        && number("online_transitions") + number("overwritten") >= number("steps")
        && number("steps") >= seconds * HZ;
    let keys = [
        "steps",
        "ticks",
        "late_ticks",
        "stale_ticks",
        "missed_states",
        "dropped",
        "online_transitions",
        "overwritten",
    ];
    let keys = keys.into_iter().chain(["updates", "swaps", "page_faults", "wake", "max_work_us", "robot_link"]);
    let mut summary: serde_json::Map<_, _> = keys.map(|key| (key.to_owned(), report[key].clone())).collect();
    summary.insert("seconds".into(), seconds.into());
    summary.insert("hz".into(), HZ.into());
    summary.insert("adds_up".into(), adds_up.into());
    summary.insert("resident_kb".into(), thinned(resident).into());
    summary.insert("resident_kb_after_a_third".into(), early.into());
    summary.insert("resident_kb_at_the_end".into(), late.into());
    eprintln!("{}", Value::from(summary));
    assert!(clean, "{report}");
    assert_eq!(number("dropped"), 0);
    assert!(adds_up, "{report}");
    assert!(number("updates") > 0 && number("swaps") > 0, "{report}");
    assert!(late <= early + early / 10 + 16_384, "memory grows: {early} kB, then {late} kB");
}

#[test]
fn a_minute_loses_nothing() {
    soak(60);
}

#[test]
#[ignore = "long: half an hour; cargo test --release --test soak -- --ignored --nocapture"]
fn half_an_hour_loses_nothing() {
    soak(1800);
}
