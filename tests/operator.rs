//! Promises to the operator of a running process: swaps, refusals, restarts after a kill.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::config::LinkKind;
use fieldtune::policy::manifest::{Manifest, sha256};
use fieldtune::replay::{Access, Store};
use fieldtune::robot::link;
use fieldtune::spaces::{StepFlags, StepRecord};
use firmware_bridge::{DriveState, Frame, Header, Hello, Message};
use rustix::process::{Pid, Signal, kill_process};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fieldtune");

/// A real-time run of the pendulum at 100 Hz, killed when dropped.
struct Running {
    child: Child,
    folder: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pause(ms: u64) {
    Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(ms)));
}

impl Running {
    fn start(folder: &Path, settings: &[&str]) -> Self {
        let run = folder.join("run");
        let child = Command::new(PROGRAM)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["run", "--config", "config/quickstart.toml", "--quiet"])
            .args(["--set", &format!("run.directory={}", run.display())])
            .args(["--set", "run.steps=100000", "--set", "run.evaluate_episodes=0", "--set", "run.existing=resume"])
            .args(settings.iter().flat_map(|s| ["--set", s]))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder: run }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(&arguments[..1])
            .arg("--run")
            .arg(&self.folder)
            .args(&arguments[1..])
            .output()
            .unwrap()
    }

    fn status(&self) -> Option<Value> {
        let output = self.ask(&["status", "--json"]);
        let reply: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(reply["status"].clone())
    }

    /// Waits until `key` of the status is at least `value`.
    fn reach(&mut self, key: &str, value: u64) -> Value {
        for _ in 0..600 {
            if let Some(status) = self.status()
                && status[key].as_u64().unwrap() >= value
            {
                return status;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the run ended: {}", self.last_words());
            pause(100);
        }
        panic!("{key} did not reach {value}: {:?}", self.status());
    }

    fn last_words(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = self.child.stderr.as_mut() {
            let _ = std::io::Read::read_to_string(stderr, &mut text);
        }
        text
    }
}

fn copy_bundle(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pendulum-cql")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A copy of the bundle with other bytes in its weights, behind the header.
fn change_weights(bundle: &Path, change: impl FnOnce(&mut [u8])) {
    copy_bundle(bundle);
    let file = bundle.join("weights.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    change(&mut bytes[header..]);
    std::fs::write(file, bytes).unwrap();
}

/// Hashes and seal made to fit the changed weights, as a careless tool would.
fn seal_again(bundle: &Path) {
    let file = bundle.join("manifest.toml");
    let mut manifest = Manifest::from_text(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let weights = std::fs::read(bundle.join("weights.safetensors")).unwrap();
    manifest.files.get_mut("weights.safetensors").unwrap().sha256 = sha256(&weights);
    std::fs::write(file, manifest.to_text().unwrap()).unwrap();
}

#[test]
fn good_bundles_are_swapped_in_and_bad_ones_refused_while_the_loop_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(folder.path(), &["learner.enabled=false"]);
    running.reach("steps", 20);
    let good = folder.path().join("good");
    copy_bundle(&good);

    let swapped = running.ask(&["swap", good.to_str().unwrap()]);
    assert!(swapped.status.success(), "{}", String::from_utf8_lossy(&swapped.stdout));
    running.reach("swaps", 1);
    assert!(running.ask(&["swap", "--rollback"]).status.success());
    running.reach("rollbacks", 1);

    let path = |name: &str| folder.path().join(name);
    let truncated = path("truncated");
    copy_bundle(&truncated);
    let onnx = std::fs::read(truncated.join("policy.onnx")).unwrap();
    std::fs::write(truncated.join("policy.onnx"), &onnx[..onnx.len() / 2]).unwrap();
    let flipped = path("flipped");
    change_weights(&flipped, |weights| weights[0] ^= 0x40);
    let sealed_nan = path("nan");
    change_weights(&sealed_nan, |weights| weights[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    seal_again(&sealed_nan);
    let other_robot = path("other-robot");
    let spaces = "robot.spaces={ observation = [\"a\", \"b\", \"c\", \"d\"], action = [\"torque\"] }";
    let config = ["--config", "config/quickstart.toml", "--set", spaces, "--set", "pretrain.hidden=[8, 8]"];
    let made = Command::new(PROGRAM)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["policy", "new"])
        .args(config)
        .arg("--out")
        .arg(&other_robot)
        .output();
    assert!(made.unwrap().status.success());
    for (bundle, word) in [
        (&truncated, "policy.onnx"),
        (&flipped, "weights.safetensors"),
        (&sealed_nan, "NaN"),
        (&other_robot, "observation"),
        (&path("none"), "none"),
    ] {
        let refused = running.ask(&["swap", bundle.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&refused.stdout).into_owned();
        eprintln!("{}", text.trim());
        assert!(!refused.status.success() && text.contains("refused") && text.contains(word), "{word}: {text}");
    }
    let before = running.status().unwrap();
    pause(500);
    let after = running.status().unwrap();
    assert!(after["steps"].as_u64() > before["steps"].as_u64(), "the loop runs on");
    assert_eq!(after["swaps"], 1);
    assert_eq!(after["dropped"], 0);

    assert!(running.ask(&["status", "--stop"]).status.success());
    let ended = running.child.wait().unwrap();
    assert!(ended.success(), "{}", running.last_words());
}

/// A bundle whose every member acts by `tanh(gain * theta_rad_s + bias)`, nearly without noise.
fn linear_policy(folder: &Path, name: &str, gain: f32, bias: f32) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pendulum-cql/weights.safetensors");
    let bytes = std::fs::read(shipped).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    // Member after member: inputs in rows, units in columns.
    let places = |key: &str| -> &[(usize, f32)] {
        match key {
            "actor.w0" => &[(2 * 64, 1.0), (2 * 64 + 1, -1.0)],
            "actor.w1" => &[(0, 1.0), (64 + 1, 1.0)],
            "actor.w2" => &[(0, 1.0), (2, -1.0)],
            "actor.b2" => &[(0, 1.0), (1, -5.0)],
            _ => &[],
        }
    };
    let changed = tensors.iter().map(|(key, tensor)| {
        let mut data = tensor.data().to_vec();
        if key.starts_with("actor") {
            data.fill(0);
            let member = data.len() / 5;
            for (at, value) in places(key) {
                let value = match (key, at) {
                    ("actor.w2", _) => value * gain,
                    ("actor.b2", 0) => value * bias,
                    _ => *value,
                };
                (0..5).for_each(|k| data[k * member + 4 * at..][..4].copy_from_slice(&value.to_le_bytes()));
            }
        }
        (key.to_owned(), tensor.shape().to_vec(), data)
    });
    let changed: Vec<_> = changed.collect();
    let views =
        changed.iter().map(|(key, shape, data)| (key, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let (file, bundle) = (folder.join(format!("{name}.safetensors")), folder.join(name));
    std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    let mut command = Command::new(PROGRAM);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["policy", "import", "--raw-state", "--out"]).arg(&bundle);
    let made = command.args(["--config", "config/quickstart.toml"]).arg(file).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    bundle
}

/// Swaps the bad policy in for one that damps the swing, and waits until the process goes back by itself.
fn goes_back(settings: &[&str], gain: f32, bias: f32, reason: &str) {
    let folder = tempfile::tempdir().unwrap();
    let good = linear_policy(folder.path(), "good", -0.2, 0.0);
    let bad = linear_policy(folder.path(), "bad", gain, bias);
    let bundle = format!("policy.bundle={}", good.display());
    let all = [&["learner.enabled=false", "policy.exploration=deterministic", &bundle][..], settings].concat();
    let mut running = Running::start(folder.path(), &all);
    let before = running.reach("episodes", 3);
    let swapped = running.ask(&["swap", bad.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&swapped.stdout).into_owned();
    assert!(swapped.status.success() && said.contains("goes back by itself"), "it passes every check: {said}");
    running.reach("swaps", 1);
    let back = running.reach("rollbacks", 1);
    let number = |status: &Value, key: &str| status[key].as_u64().unwrap();
    running.reach("steps", number(&back, "steps") + 20);
    let after = running.status().unwrap();
    assert_eq!(after["generation"], before["generation"], "the policy before is in use: {after}");
    let counts = ["swaps", "rollbacks", "dropped"].map(|key| number(&after, key));
    assert_eq!(counts, [1, 1, 0], "once, and nothing is lost: {after}");
    // Every step of the loop found its deadline or was counted: none was skipped over a swap.
    let passed = number(&after, "ticks") - number(&before, "ticks");
    assert!(passed >= number(&after, "steps") - number(&before, "steps"), "{before} {after}");
    let metrics = std::fs::read_to_string(running.folder.join("metrics.jsonl")).unwrap();
    let told: Vec<&str> = metrics.lines().filter(|line| line.contains("rolled_back")).collect();
    assert!(told.len() == 1 && told[0].contains(reason), "{told:?}");
    assert!(running.ask(&["status", "--stop"]).status.success());
    assert!(running.child.wait().unwrap().success(), "{}", running.last_words());
}

/// The bad one pumps the swing up until it turns over at full speed, which ends an episode as a failure.
#[test]
fn a_policy_whose_return_collapses_goes_back_by_itself() {
    let failing = "episode.failure=[{entry=\"theta_rad_s\",min=7.9,max=9.0},{entry=\"theta_rad_s\",min=-9.0,max=-7.9}]";
    let settings = ["episode.max_steps=100", failing, "episode.failure_reward=-10000.0", "swap.trial_episodes=2"];
    goes_back(&settings, 5.0, 0.0, "swap.return_drop");
}

#[test]
fn a_policy_that_leans_on_the_limits_goes_back_by_itself() {
    goes_back(
        &["episode.max_steps=20", "safety.action_limit=0.8", "swap.trial_episodes=32"],
        0.2,
        4.0,
        "swap.limited_share",
    );
}

#[test]
fn a_killed_run_goes_on_with_everything_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["learner.checkpoint_every=20", "policy.publish_every=20"];
    let mut running = Running::start(folder.path(), &settings);
    let before = running.reach("updates", 60);
    running.child.kill().unwrap();
    running.child.wait().unwrap();

    let mut again = Running::start(folder.path(), &settings);
    let after = again.reach("swaps", 1);
    assert!(after["steps"].as_u64().unwrap() >= before["steps"].as_u64().unwrap() - 1, "{before} {after}");
    assert!(after["updates"].as_u64().unwrap() >= 40, "the learner goes on from its checkpoint: {after}");
    assert!(again.ask(&["status", "--stop"]).status.success());
    assert!(again.child.wait().unwrap().success());
    let inspected = Command::new(PROGRAM).args(["data", "inspect", "--json"]).arg(&again.folder).output().unwrap();
    let data: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(data["buffer"]["bad_records"], 0, "{data}");
}

/// The simulated robot reads the same clock as the host: the true offset is zero.
#[test]
fn both_ends_of_the_link_are_counted_and_the_robots_clock_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(folder.path(), &["learner.enabled=false"]);
    let status = running.reach("steps", 60);
    let robot = |name: &str| status["robot"][name].as_i64().unwrap_or_else(|| panic!("{name}: {status}"));
    assert!(robot("received") >= 60 && robot("sent") >= 60, "{status}");
    assert_eq!((robot("crc_errors"), robot("malformed"), robot("robot_crc_errors")), (0, 0, 0));
    assert_eq!(robot("robot_rejected_commands"), 0);
    assert!(robot("robot_overruns") >= 0, "the robot's late ticks are reported: {status}");
    assert!(robot("clock_exchanges") >= 20, "{status}");
    let (offset_us, uncertainty_us) = (robot("clock_offset_us"), robot("clock_uncertainty_us"));
    // 20 ms for a machine on which the robot's process wakes up later than it did at the start; a clock that was not
    // found is off by seconds.
    assert!(offset_us.abs() <= uncertainty_us + 20_000, "{offset_us} {uncertainty_us}");
}

/// A simulated robot that outlives the runs that control it.
struct SimulatedRobot {
    child: Child,
    address: String,
}

impl Drop for SimulatedRobot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl SimulatedRobot {
    fn start(folder: &Path) -> Self {
        let address = folder.join("robot.sock").display().to_string();
        let mut child = Command::new(PROGRAM)
            .args(["simulate", "--clock", "realtime", "--idle-exit-s", "0", "--quiet", "--die-with-parent"])
            .args(["--listen", &format!("unix:{address}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready"), "{ready}");
        Self { child, address }
    }

    /// Asks it for the state of its drive.
    fn drive(&self) -> DriveState {
        let mut link = link::open(LinkKind::Unix, &self.address, 0).unwrap();
        let hello = Message::Hello(Hello { schema_hash: 0, session: 0 });
        for _ in 0..100 {
            link.send(&Frame { header: Header::default(), message: hello.clone() }).unwrap();
            while let Some(frame) = link.receive(Duration::from_millis(50)).unwrap() {
                if let Message::HelloAck(ack) = frame.message {
                    return ack.drive;
                }
            }
        }
        panic!("the robot does not answer");
    }
}

#[test]
fn a_terminated_run_disarms_the_robot_and_a_killed_one_leaves_it_in_fault() {
    let folder = tempfile::tempdir().unwrap();
    let robot = SimulatedRobot::start(folder.path());
    let address = format!("robot.address={}", robot.address);
    let settings = ["learner.enabled=false", &address];
    let mut running = Running::start(folder.path(), &settings);
    let status = running.reach("steps", 10);
    assert!(status["refused_settings"].is_array(), "{status}");
    kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
    let ended = running.child.wait().unwrap();
    assert!(ended.success(), "{ended} {}", running.last_words());
    assert_eq!(robot.drive(), DriveState::Disarmed, "after SIGTERM");

    let mut again = Running::start(folder.path(), &settings);
    again.reach("steps", 30);
    again.child.kill().unwrap();
    again.child.wait().unwrap();
    // The robot's own watchdog: zero after 150 ms, FAULT after a second.
    pause(3000);
    assert_eq!(robot.drive(), DriveState::Fault, "after SIGKILL");
}

#[test]
fn a_required_right_that_is_refused_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let robot = SimulatedRobot::start(folder.path());
    let address = format!("robot.address={}", robot.address);
    let settings = ["learner.enabled=false", &address, "realtime.cpu=1023", "realtime.required=true"];
    let mut running = Running::start(folder.path(), &settings);
    let ended = running.child.wait().unwrap();
    let words = running.last_words();
    assert_eq!(ended.code(), Some(1), "{words}");
    assert!(words.contains("realtime.required") && words.contains("processor 1023 refused"), "{words}");
    assert_eq!(robot.drive(), DriveState::Disarmed);
}

#[test]
fn episodes_end_by_an_operators_word_and_by_conditions() {
    let folder = tempfile::tempdir().unwrap();
    // A state in which the pendulum always is: every episode fails in its fifth step.
    let failing = "episode.failure=[{entry=\"cos_theta\",min=-2.0,max=2.0}]";
    let mut running = Running::start(folder.path(), &["learner.enabled=false"]);
    let before = running.reach("steps", 5);
    let answer = running.ask(&["label", "success"]);
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stdout));
    let after = running.reach("successes", 1);
    assert!(after["episodes"].as_u64() > before["episodes"].as_u64(), "{before} {after}");
    assert_eq!(after["task_failures"], 0);
    let ended = (after["episode"].as_u64().unwrap() - 1).to_string();
    let answer = running.ask(&["label", "failure", "--episode", &ended]);
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success() && said.contains("labelled a failure, no more a success"), "{said}");
    let answer = running.ask(&["label", "failure", "--episode", "4000"]);
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(!answer.status.success() && said.contains("nothing was labelled"), "{said}");
    assert!(running.ask(&["status", "--stop"]).status.success());
    assert!(running.child.wait().unwrap().success());
    // The run is over: the word goes straight into its buffer, and nobody's else.
    let answer = running.ask(&["label", "success", "--episode", &ended]);
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success() && said.contains("labelled a success, no more a failure"), "{said}");
    let answer = running.ask(&["label", "success", "--episode", "4000"]);
    assert!(!answer.status.success() && String::from_utf8_lossy(&answer.stderr).contains("4000"));
    let answer = running.ask(&["label", "success"]);
    assert!(!answer.status.success() && String::from_utf8_lossy(&answer.stderr).contains("--episode"));
    let store = Store::open(&running.folder.join("replay"), Access::ReadOnly).unwrap();
    let mut record = StepRecord::default();
    let labelled = (store.first_sequence()..=store.last_sequence())
        .filter(|sequence| store.record(*sequence, &mut record).is_ok() && record.flags.contains(StepFlags::SUCCESS));
    assert_eq!(labelled.count(), 1, "the label is on the disk");
    drop(store);

    let mut failing = Running::start(folder.path(), &["learner.enabled=false", failing, "episode.hold_steps=5"]);
    let after = failing.reach("task_failures", 3);
    // Five steps and the way to the next start, which a busy machine makes longer; without the rule it is 200.
    let (ticks, failures) = (after["ticks"].as_u64().unwrap(), after["task_failures"].as_u64().unwrap());
    assert!(ticks >= 5 * failures && ticks <= 50 * (failures + 1), "{after}");
    assert!(failing.ask(&["status", "--stop"]).status.success());
    assert!(failing.child.wait().unwrap().success());
}
