//! Promises of `fieldtune collect`: what was recorded survives a kill, goes on from there, and serves everybody.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::replay::open_damaged;
use fieldtune::spaces::{StepFlags, StepRecord};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command
}

fn fieldtune(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

/// `collect` of the quickstart's pendulum into `folder`.
fn collect(folder: &Path, settings: &[&str], more: &[&str]) -> Command {
    let directory = format!("run.directory={}", folder.display());
    let all = ["episode.max_steps=50", "realtime.priority=0", "run.existing=resume", &directory];
    let settings: Vec<&str> = all.into_iter().chain(settings.iter().copied()).flat_map(|s| ["--set", s]).collect();
    let mut command = program(&["collect", "--config", "config/quickstart.toml"]);
    command.args(settings).args(more).stdin(Stdio::null());
    command
}

fn done(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn steps(folder: &Path) -> Vec<StepRecord> {
    let store = open_damaged(&folder.join("replay")).unwrap();
    let mut record = StepRecord::default();
    let all = store.first_sequence()..=store.last_sequence();
    let records = all.filter_map(|sequence| store.record(sequence, &mut record).ok().map(|()| record.clone()));
    records.filter(|record| !record.flags.contains(StepFlags::OBSERVATION_ONLY)).collect()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the process in `folder` has recorded so many steps.
fn reach(folder: &Path, wanted: u64) -> u64 {
    for _ in 0..300 {
        let output = fieldtune(&["status", "--run", folder.to_str().unwrap(), "--json"]);
        let reply: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let steps = reply["status"]["steps"].as_u64().unwrap_or(0);
        if steps >= wanted {
            return steps;
        }
        Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(50)));
    }
    panic!("{wanted} steps were not reached");
}

#[test]
fn a_killed_recording_goes_on_and_serves_run_replay_and_export() {
    let folder = tempfile::tempdir().unwrap();
    let (recording, run) = (folder.path().join("recording"), folder.path().join("run"));
    let mut command = collect(&recording, &[], &["--by", "uniform", "--steps", "10000"]);
    let mut killed = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let seen = reach(&recording, 70);
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    let kept = steps(&recording);
    assert!(kept.len() as u64 >= seen, "{} of {seen} steps survived", kept.len());

    let total = (kept.len() + 80).to_string();
    let npz = folder.path().join("data.npz");
    let more = ["--by", "uniform", "--steps", &total, "--out", npz.to_str().unwrap()];
    let text = done(collect(&recording, &["run.clock=lockstep"], &more));
    assert!(text.contains("successes") && npz.exists(), "{text}");
    let all = steps(&recording);
    assert_eq!(all[..kept.len()], kept, "what there was is as it was");
    assert!(all.len() >= kept.len() + 79, "{}", all.len());
    assert!(all[kept.len()].episode > kept[kept.len() - 1].episode);
    let mean = all.iter().map(|step| step.action[0]).sum::<f32>() / all.len() as f32;
    assert!(mean.abs() < 0.3 && all.iter().any(|step| step.action[0].abs() > 0.9));

    let path = recording.to_str().unwrap();
    let offline = format!("replay.offline={path}");
    let directory = format!("run.directory={}", run.display());
    let mut arguments =
        vec!["run", "--config", "config/quickstart.toml", "--quiet", "--set", &offline, "--set", &directory];
    arguments.extend(
        ["run.clock=lockstep", "run.steps=120", "run.evaluate_episodes=0", "learner.batch_size=16"]
            .iter()
            .flat_map(|s| ["--set", s]),
    );
    let text = done(program(&arguments));
    assert!(text.contains(" offline transitions") && !text.contains(" 0 offline transitions"), "{text}");
    let text = done(program(&["replay", path, "--policy", "models/pendulum-cql"]));
    assert!(text.contains(&format!("{} steps of", all.len() - 1)), "all but the one before the kill: {text}");
    assert!(!text.contains("earlier"), "{text}");
    let log = folder.path().join("log.mcap");
    let text = done(program(&["data", "export", path, "--out", log.to_str().unwrap()]));
    assert!(log.exists() && !text.contains("names are not known"), "{text}");
}

#[test]
fn scripts_and_noise_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.csv");
    std::fs::write(&script, "# torque\n0.5\n-0.25\n1\n").unwrap();
    let scripted = folder.path().join("scripted");
    let lockstep = ["run.clock=lockstep"];
    done(collect(&scripted, &lockstep, &["--by", "script", "--script", script.to_str().unwrap(), "--steps", "60"]));
    for (step, wanted) in steps(&scripted).iter().zip([0.5, -0.25, 1.0].iter().cycle()) {
        assert!((step.action[0] - wanted).abs() < 1e-6 && !step.flags.contains(StepFlags::INTERVENTION));
    }
    let noisy = folder.path().join("noisy");
    done(collect(&noisy, &lockstep, &["--noise", "0.05", "--steps", "60"]));
    let text = done(program(&["replay", noisy.to_str().unwrap(), "--tolerance", "0"]));
    assert!(text.contains("60 of 60 steps have the same bits"), "{text}");
    let quiet = ["replay", noisy.to_str().unwrap(), "--json", "--set", "policy.exploration=deterministic"];
    let found: Value = serde_json::from_str(&done(program(&quiet))).unwrap();
    let mean = found["all"]["mean"].as_f64().unwrap();
    assert!(mean > 0.001 && mean < 0.05, "noise of 0.05 before tanh moves actions by {mean}");
}

#[test]
fn what_the_robot_does_by_itself_is_recorded() {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join(".native/libmujoco.so").exists() {
        return eprintln!("skipped: MuJoCo is missing; tools/setup-native fetches it");
    }
    let folder = tempfile::tempdir().unwrap();
    let directory = format!("run.directory={}", folder.path().join("gantry").display());
    let begin = |more: &[&str]| {
        let settings =
            ["camera.source=", "replay.offline=", "replay.sampler=online", "run.existing=resume", &directory];
        let mut command = program(&["collect", "--config", "config/gantry-pickplace.toml"]);
        command.args(settings.iter().flat_map(|s| ["--set", s])).args(more).stdin(Stdio::null());
        done(command)
    };
    begin(&["--by", "robot", "--set", "simulator.script=[0.05]", "--steps", "300"]);
    let scripted = steps(&folder.path().join("gantry"));
    assert!(scripted.iter().filter(|step| step.reward == 1.0).count() >= 8, "the script succeeds");
    let moved = |step: &StepRecord| step.action.iter().any(|entry| *entry != 0.0);
    assert!(scripted.iter().all(moved), "what was done is recorded, not the commands");

    // Random data of the same set, without reward.
    let still = ["--set", "episode.reward=outcome", "--set", "episode.success_reward=0"];
    begin(&[&["--by", "uniform", "--steps", "500"], &still[..]].concat());
    let all = steps(&folder.path().join("gantry"));
    assert_eq!(all[..scripted.len()], scripted);
    assert!(all.len() >= 499 && all[scripted.len()..].iter().all(|step| step.reward == 0.0));
}

/// Camera frames of a recording of the gantry, one for every record; `None` where there is no OSMesa.
fn seen(folder: &Path) -> Option<Vec<Vec<u8>>> {
    let directory = format!("run.directory={}", folder.display());
    let settings = ["replay.offline=", "replay.sampler=online", "simulator.script=[0.3]", &directory];
    let mut command = program(&["collect", "--config", "config/gantry-closed.toml", "--by", "robot", "--steps", "120"]);
    command.args(settings.iter().flat_map(|s| ["--set", s])).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && (said.contains("OSMesa") || said.contains("MuJoCo")) {
        eprintln!("skipped: the gantry's camera: {said}");
        return None;
    }
    assert!(output.status.success(), "{said}");
    let store = open_damaged(&folder.join("replay")).unwrap();
    let all = store.first_sequence()..=store.last_sequence();
    Some(all.map(|sequence| store.frame(sequence).unwrap().2.to_vec()).collect())
}

#[test]
fn every_record_has_the_image_of_its_observation_and_a_repetition_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let Some(first) = seen(&folder.path().join("first")) else { return };
    let again = seen(&folder.path().join("again")).unwrap();
    assert!(first == again, "in lockstep the same seed gives the same images");
    // 120 steps, and what ended the episodes.
    assert!(first.len() > 121 && first.iter().all(|image| image.len() == 48 * 48 * 3));
    let moved = first.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(moved + 3 >= first.len(), "{moved} of {} images differ from the one before", first.len());
}

#[test]
fn a_person_at_the_keyboard_drives_and_judges() {
    let folder = tempfile::tempdir().unwrap();
    let recording = folder.path().join("recording");
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let stdin = File::options().read(true).write(true).open(Path::new(name.to_str().unwrap())).unwrap();
    let mut keyboard = File::from(terminal);
    let mut command = collect(&recording, &["episode.max_steps=2000"], &["--by", "keyboard", "--steps", "5000"]);
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Killed(command.spawn().unwrap());
    let mut steps_seen = reach(&recording, 2);
    for _ in 0..3 {
        keyboard.write_all(b"\x1b[D").unwrap();
    }
    steps_seen = reach(&recording, steps_seen + 4);
    keyboard.write_all(b"s").unwrap();
    reach(&recording, steps_seen + 10);
    keyboard.write_all(b"q").unwrap();
    assert!(running.0.wait().unwrap().success());
    let mut text = String::new();
    running.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("1 successes, 0 failures"), "{text}");
    let steps = steps(&recording);
    assert!(steps.iter().all(|step| step.flags.contains(StepFlags::INTERVENTION)));
    let pushed = steps.iter().map(|step| step.action[0]).fold(0.0, f32::min);
    assert!((pushed + 0.75).abs() < 1e-6, "three keys to the left: {pushed}");
    assert!(steps.iter().any(|step| step.flags.contains(StepFlags::TERMINATED)));
    assert_eq!(steps[steps.len() - 1].action[0], 0.0, "it sprang back");
}
