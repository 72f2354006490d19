//! Promise: heat and `learner.max_utilisation` hold the learner back, never the control loop; a service manager hears of
//! the loop's life; a learner that the memory cannot hold is refused.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::runtime::{Request, ask};
use serde_json::Value;

/// A run in real time that ends with the test.
struct Run {
    folder: tempfile::TempDir,
    process: Child,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Run {
    fn start(folder: tempfile::TempDir, settings: &[&str], surroundings: &[(&str, &str)]) -> Self {
        let errors = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_fieldtune"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["run", "--quiet", "--config", "config/quickstart.toml", "--set", "run.evaluate_episodes=0"])
            .args(["--set", &format!("run.directory={}", folder.path().join("run").display())])
            .args(["--set", "learner.warmup_steps=10", "--set", "run.steps=100000"])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .envs(surroundings.iter().copied())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Self { folder, process }
    }

    fn status(&self) -> Option<Value> {
        ask(&self.folder.path().join("run"), &Request::Status).ok().map(|reply| reply.status)
    }

    /// The status once it is as wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = monotonic();
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(monotonic().since(begin) < Duration::from_mins(1), "not {what}: {status:?}\n{log}");
            assert!(self.process.try_wait().unwrap().is_none(), "it ended: {log}");
            Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(50)));
        }
    }

    /// Ends it orderly; its report and its log.
    fn end(mut self) -> (Value, String) {
        ask(&self.folder.path().join("run"), &Request::Stop).unwrap();
        assert!(self.process.wait().unwrap().success());
        let report = std::fs::read_to_string(self.folder.path().join("run/report.json")).unwrap();
        (serde_json::from_str(&report).unwrap(), std::fs::read_to_string(self.folder.path().join("log")).unwrap())
    }
}

fn zone(folder: &Path, celsius: f64) {
    let zone = folder.join("thermal_zone0");
    std::fs::create_dir_all(&zone).unwrap();
    std::fs::write(zone.join("type"), "cpu-thermal\n").unwrap();
    std::fs::write(zone.join("temp"), format!("{:.0}\n", celsius * 1000.0)).unwrap();
}

fn count(status: &Value, pointer: &str) -> u64 {
    status.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} in {status}"))
}

#[test]
fn heat_slows_then_pauses_the_learner_and_the_loop_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let zones = folder.path().join("thermal");
    zone(&zones, 50.0);
    let settings = [format!("thermal.zones={}", zones.display()), "thermal.read_every_s=0.02".into()];
    let mut run = Run::start(folder, &settings.each_ref().map(String::as_str), &[]);
    let heat = |wanted: &'static str| move |status: &Value| status["learner"]["heat"] == wanted;
    run.until("learning", |status| count(status, "/updates") > 20);
    zone(&zones, 92.0);
    let warm = run.until("slowed", heat("warm"));
    assert_eq!(warm["learner"]["allowed"], 0.25, "{warm}");
    zone(&zones, 97.5);
    let hot = run.until("paused", heat("hot"));
    assert_eq!((&hot["learner"]["celsius"], &hot["learner"]["sensor"]), (&97.5.into(), &"cpu-thermal".into()), "{hot}");
    // The loop makes steps, the learner at most the update that was under way.
    let later = run.until("going on", |status| count(status, "/steps") >= count(&hot, "/steps") + 40);
    assert!(count(&later, "/updates") <= count(&hot, "/updates") + 1, "{hot}\n{later}");
    assert!(count(&later, "/learner/due") >= 100, "what is due waits: {later}");
    // Nobody knows whether it is cooler: it stays paused.
    std::fs::remove_file(zones.join("thermal_zone0/temp")).unwrap();
    let blind = run.until("blind", |status| status["learner"]["celsius"].is_null());
    assert_eq!(blind["learner"]["heat"], "hot", "{blind}");
    zone(&zones, 60.0);
    run.until("at work again", |status| {
        status["learner"]["heat"] == "cool" && count(status, "/updates") > count(&later, "/updates") + 100
    });
    let (report, log) = run.end();
    assert_eq!(report["dropped"], 0, "{report}");
    assert!(report["learner_held_back_s"].as_f64().unwrap() >= 2.0, "{report}");
    let lines: Vec<_> = log.lines().filter(|line| line.contains("degrees: the learner is")).collect();
    assert_eq!(lines.len(), 3, "a line for every change: {log}");
}

#[test]
fn the_learner_keeps_to_its_share_of_the_time() {
    let settings = ["learner.max_utilisation=0.3", "learner.utd_ratio=200", "thermal.zones="];
    let mut run = Run::start(tempfile::tempdir().unwrap(), &settings, &[]);
    let status = run.until("learning", |status| count(status, "/steps") >= 100);
    assert!(count(&status, "/learner/due") > 100, "it has more to do than it may: {status}");
    let (report, _) = run.end();
    let utilisation = report["learner_utilisation"].as_f64().unwrap();
    assert!(utilisation > 0.1 && utilisation <= 0.31, "{utilisation}");
    assert!(report["realised_utd_ratio"].as_f64().unwrap() < 1.0, "{report}");
}

#[test]
fn a_service_manager_hears_ready_life_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let surroundings = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    let run = Run::start(folder, &["learner.enabled=false"], &surroundings);
    let hear = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert!(hear().starts_with("READY=1\n"));
    assert_eq!((hear().as_str(), hear().as_str()), ("WATCHDOG=1", "WATCHDOG=1"));
    run.end();
    let last = std::iter::repeat_with(hear).find(|word| word != "WATCHDOG=1").unwrap();
    assert!(last.starts_with("STOPPING=1\n"), "{last}");
}

#[test]
fn a_learner_that_does_not_fit_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fieldtune"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--quiet", "--config", "config/quickstart.toml", "--set", "learner.batch_size=2000000000"])
        .args(["--set", &format!("run.directory={}", folder.path().join("run").display())])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("the learner needs") && error.contains("lower learner.members"), "{error}");
}
