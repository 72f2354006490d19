//! Promises of the control loop with a camera: every step has its image, in the policy's eyes and in the replay; the same
//! bytes give the same actions again; a policy that looks at other images is refused, at the start and while it runs.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it measured")]

mod places;
mod sight;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::replay::{Access, Store};
use fieldtune::spaces::{FrameShape, Spaces, StepFlags, StepRecord};
use npyz::WriterBuilder;
use serde_json::Value;

const SHAPE: FrameShape = FrameShape { width: 24, height: 20, channels: 3 };

fn fieldtune(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_fieldtune");
    Command::new(program).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap()
}

/// A bundle for the pendulum whose actors see the image, and the angle if `proprioception`.
fn bundle(folder: &Path, shape: FrameShape, proprioception: bool, seed: u64) {
    let spaces = Spaces {
        observation: ["cos_theta", "sin_theta", "theta_rad_s"].map(String::from).to_vec(),
        action: vec!["torque".into()],
    };
    let actor = sight::actor(3, sight::eyes(1, shape, 3, proprioception, seed), 1, seed);
    sight::bundle(actor, spaces).save(folder).unwrap();
}

/// A run of the pendulum in `folder/run` with the synthetic camera and the bundle in `folder/bundle`.
fn record(folder: &Path, settings: &[&str]) -> Output {
    let set = |key: &str, place: &str| format!("{key}={}", folder.join(place).display());
    let (run, bundle) = (set("run.directory", "run"), set("policy.bundle", "bundle"));
    let given = [&run[..], &bundle, "camera.source=synthetic", "camera.source_size=[80, 60]", "camera.width=24"];
    let given = given.into_iter().chain(["camera.height=20", "learner.enabled=false", "replay.offline="]);
    let given = given.chain(["replay.sampler=online", "episode.max_steps=40", "replay.capacity=2000"]);
    let settings: Vec<&str> = given.chain(settings.iter().copied()).flat_map(|setting| ["--set", setting]).collect();
    let report = folder.join("report.json").display().to_string();
    let command = ["run", "--config", "config/quickstart.toml", "--quiet", "--report", &report];
    fieldtune(&[&command[..], &settings].concat())
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_recorded_run_with_a_camera_gives_the_same_bits_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    bundle(&folder.join("bundle"), SHAPE, true, 1);
    let ran = record(folder, &["run.clock=lockstep", "run.steps=130", "run.evaluate_episodes=1"]);
    assert!(ran.status.success(), "{}", says(&ran));
    let report = report(folder);
    assert_eq!((&report["steps"], &report["blind_steps"]), (&130.into(), &0.into()));
    assert_eq!(report["before"].as_array().map(Vec::len), Some(1), "evaluated with a camera");

    let store = Store::open(&folder.join("run/replay"), Access::ReadOnly).unwrap();
    assert_eq!(store.frame_shape(), Some(SHAPE));
    let (mut record_, mut images) = (StepRecord::default(), Vec::new());
    for sequence in 1..=store.last_sequence() {
        store.record_with_frame(sequence, &mut record_).unwrap();
        assert!(!record_.flags.contains(StepFlags::STALE));
        images.push(record_.frame.clone().unwrap());
    }
    assert!(images.windows(2).all(|w| w[1].sequence == w[0].sequence + 1), "every observation has an image of its own");
    assert!(images.windows(2).all(|w| w[1].pixels != w[0].pixels), "the pattern moves");
    drop(store);

    let run = folder.join("run").display().to_string();
    let again = fieldtune(&["replay", &run, "--tolerance", "0"]);
    assert!(again.status.success() && says(&again).contains("130 of 130 steps have the same bits"), "{}", says(&again));
    // Another encoder in front of the same stack acts differently: the images count.
    bundle(&folder.join("other"), SHAPE, true, 2);
    let other = folder.join("other").display().to_string();
    let differs = fieldtune(&["replay", &run, "--policy", &other, "--tolerance", "0"]);
    assert!(!differs.status.success() && !says(&differs).contains("130 of 130"), "{}", says(&differs));
    assert!(fieldtune(&["data", "verify", &run]).status.success());
    let set = folder.join("set.npz").display().to_string();
    assert!(fieldtune(&["data", "export", &run, "--out", &set]).status.success());
    let again = fieldtune(&["replay", &set, "--config", &format!("{run}/config.toml"), "--tolerance", "0"]);
    assert!(
        again.status.success() && says(&again).contains("the same bits"),
        "the images of a data set: {}",
        says(&again)
    );
}

#[test]
fn in_real_time_the_way_from_the_image_to_the_action_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    bundle(&folder.path().join("bundle"), SHAPE, false, 1);
    let settings = ["run.clock=realtime", "run.steps=45", "run.evaluate_episodes=0", "camera.rate_hz=60"];
    let ran = record(folder.path(), &settings);
    assert!(ran.status.success(), "{}", says(&ran));
    let report = report(folder.path());
    let latency = &report["image_to_action"];
    eprintln!("from the camera's stamp to the action: {latency}; {} blind steps", report["blind_steps"]);
    assert!(latency["p50_us"].as_u64() > Some(0) && latency["max_us"].as_u64() >= latency["p50_us"].as_u64());
    assert!(report["camera"]["frames"].as_u64() > Some(45), "{report}");
}

#[test]
fn a_policy_that_looks_at_other_images_is_refused_before_the_robot_moves() {
    let folder = tempfile::tempdir().unwrap();
    bundle(&folder.path().join("bundle"), FrameShape { width: 28, ..SHAPE }, true, 1);
    let steps = ["run.clock=lockstep", "run.steps=10", "run.evaluate_episodes=0"];
    let refused = record(folder.path(), &steps);
    let wanted = "looks at images of 28 x 20 x 3, the camera gives images of 24 x 20 x 3";
    assert!(!refused.status.success() && says(&refused).contains(wanted), "{}", says(&refused));
    let blind = record(folder.path(), &[&steps[..], &["camera.source=", "run.existing=fresh"]].concat());
    assert!(!blind.status.success() && says(&blind).contains("the camera gives no images"), "{}", says(&blind));
}

#[test]
fn a_run_that_goes_on_needs_the_camera_it_was_recorded_with() {
    let folder = tempfile::tempdir().unwrap();
    bundle(&folder.path().join("bundle"), SHAPE, true, 1);
    let lockstep = ["run.clock=lockstep", "run.evaluate_episodes=0", "run.existing=resume"];
    assert!(record(folder.path(), &[&lockstep[..], &["run.steps=30"]].concat()).status.success());
    let on = record(folder.path(), &[&lockstep[..], &["run.steps=60"]].concat());
    assert!(on.status.success(), "{}", says(&on));
    let other = record(folder.path(), &[&lockstep[..], &["run.steps=90", "camera.width=20"]].concat());
    assert!(
        !other.status.success() && says(&other).contains("the cameras give images of 20 x 20 x 3"),
        "{}",
        says(&other)
    );
}

#[test]
fn a_running_loop_takes_a_policy_that_fits_its_camera_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    bundle(&folder.join("bundle"), SHAPE, true, 1);
    bundle(&folder.join("next"), SHAPE, true, 2);
    bundle(&folder.join("wide"), FrameShape { width: 28, ..SHAPE }, true, 2);
    let settings = ["run.clock=realtime", "run.steps=100000", "run.evaluate_episodes=0", "camera.rate_hz=60"];
    let run = folder.join("run").display().to_string();
    let ask = |what: &str, arguments: &[&str]| fieldtune(&[&[what, "--run", &run][..], arguments].concat());
    let place = folder.to_owned();
    let running = std::thread::Builder::new().spawn(move || record(&place, &settings)).unwrap();
    let until = monotonic().plus(Duration::from_mins(1));
    let reach = |key: &str, value: u64| {
        let reached = || {
            let reply: Value = serde_json::from_slice(&ask("status", &["--json"]).stdout).ok()?;
            reply["status"][key].as_u64()
        };
        while reached() < Some(value) && monotonic() < until {
            Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(100)));
        }
    };
    reach("steps", 10);
    let wide = ask("swap", &[&folder.join("wide").display().to_string()]);
    let next = ask("swap", &[&folder.join("next").display().to_string()]);
    reach("swaps", 1);
    let stopped = ask("status", &["--stop"]);
    let ran = running.join().unwrap();
    assert!(stopped.status.success() && ran.status.success(), "{}{}", says(&stopped), says(&ran));
    assert!(!wide.status.success() && says(&wide).contains("looks at images of 28 x 20 x 3"), "{}", says(&wide));
    assert!(next.status.success(), "{}", says(&next));
    assert!(
        says(&next).contains("its action differs from that of the policy in use"),
        "tried on images: {}",
        says(&next)
    );
    assert_eq!(report(folder)["swaps"], 1);
}

#[test]
fn commands_know_policies_with_eyes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (made, frames) = (at("new"), at("frames.npy"));
    let settings = ["camera.source=synthetic", "camera.width=24", "camera.height=20", "pretrain.ensemble_size=2"];
    let settings = settings.into_iter().chain(["pretrain.hidden=[16]", "learner.trunk_channels=[8,8]"]);
    let settings: Vec<&str> = settings.flat_map(|setting| ["--set", setting]).collect();
    let new = ["policy", "new", "--config", "config/quickstart.toml", "--out", &made];
    let new = fieldtune(&[&new[..], &settings].concat());
    assert!(says(&new).contains("sees images of 24 x 20 x 3: one encoder for all"), "{}", says(&new));
    let verified = fieldtune(&["policy", "verify", &made]);
    assert!(verified.status.success() && says(&verified).contains("images of 24 x 20 x 3"), "{}", says(&verified));
    if let Some(library) = places::onnxruntime() {
        let both = fieldtune(&["policy", "verify", &made, "--onnxruntime", &library.display().to_string()]);
        assert!(says(&both).contains("equal to the built-in pass"), "{}", says(&both));
    }
    let write = |shape: &[u64]| {
        let mut npy = npyz::WriteOptions::new()
            .default_dtype()
            .shape(shape)
            .writer(std::fs::File::create(&frames).unwrap())
            .begin_nd()
            .unwrap();
        npy.extend((0..shape.iter().product()).map(|i: u64| (i * 7 % 256) as u8)).unwrap();
        npy.finish().unwrap();
    };
    let act = |arguments: &[&str]| fieldtune(&[&["policy", "act", &made, "--linspace"][..], arguments].concat());
    write(&[20, 24, 3]);
    assert!(says(&act(&["--frames", &frames])).contains("action ["), "{}", says(&act(&["--frames", &frames])));
    assert!(says(&act(&[])).contains("--frames FILE.npy"));
    write(&[24, 20, 3]);
    let turned = act(&["--frames", &frames]);
    assert!(!turned.status.success() && says(&turned).contains("[20, 24, 3]"), "{}", says(&turned));
    let onnx = at("policy.onnx");
    assert!(fieldtune(&["policy", "export", &made, "--onnx", &onnx]).status.success());
}
