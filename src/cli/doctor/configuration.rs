//! A configuration against the machine: policy, engine, learner's device, offline data, robot.

use std::time::Duration;

use fieldtune::camera::{self, CameraError, View};
use fieldtune::clock::{Clock, monotonic};
use fieldtune::config::{CameraSource, Config, DeviceKind};
use fieldtune::policy::{AnyBundle, PolicyError, checks};
use fieldtune::robot::{FirmwareRobot, Robot, RobotError, link};
use fieldtune::runtime::open_offline;

use super::{Finding, Level, Root};

/// Longest wait for a robot that is asked who it is.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a camera is looked at.
const LOOK: Duration = Duration::from_secs(2);

pub(super) fn look(root: &Root<'_>, config: &Config) -> Vec<Finding> {
    let mut findings = policy(config);
    findings.push(cuda(root, config.learner.device));
    findings.push(offline(config));
    if !config.robot.address.is_empty() {
        findings.push(robot(config));
    }
    findings
        .extend(config.camera.source.0.iter().filter(|s| **s != CameraSource::Simulator).map(|s| camera(config, s)));
    findings
}

fn policy(config: &Config) -> Vec<Finding> {
    let spaces = &config.robot.spaces;
    let bundle = AnyBundle::load(&config.policy.bundle)
        .and_then(|bundle| Ok(checks::names(bundle.spaces(), spaces).map(|()| bundle)?));
    let mut findings = vec![Finding::new(
        "policy bundle",
        Level::mend_unless(bundle.is_ok()),
        bundle.as_ref().map_or_else(PolicyError::to_string, |_| config.policy.bundle.display().to_string()),
        "fieldtune policy verify FOLDER says more; choose another policy.bundle",
    )];
    if let Ok(bundle) = bundle {
        let prepared = bundle.source().prepare(spaces, &config.policy);
        findings.push(Finding::new(
            "inference engine",
            Level::mend_unless(prepared.is_ok()),
            prepared.map_or_else(|error| error.to_string(), |prepared| prepared.report.to_string()),
            "tools/setup-native fetches ONNX Runtime; then policy.onnxruntime = \".native/libonnxruntime.so\"",
        ));
    }
    findings
}

fn cuda(root: &Root<'_>, device: DeviceKind) -> Finding {
    let folders =
        ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu/nvidia", "usr/lib64"];
    let driver = folders.iter().map(|folder| format!("{folder}/libcuda.so.1")).find(|path| root.exists(path));
    let nodes = ["dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu/igpu0"];
    let found = match (&driver, nodes.iter().any(|node| root.exists(node))) {
        (Some(path), true) => format!("driver /{path}"),
        (Some(path), false) => format!("driver /{path}, but no GPU in /dev"),
        (None, _) => "no CUDA driver".into(),
    };
    let there = driver.is_some() && nodes.iter().any(|node| root.exists(node));
    let wanted = device == DeviceKind::Cuda;
    Finding::new(
        "CUDA",
        Level::mend_unless(there || !wanted),
        match device {
            DeviceKind::Cuda => found,
            DeviceKind::Cpu => format!("{found}; not needed: learner.device = \"cpu\""),
            DeviceKind::Auto => format!("{found}; not needed: learner.device = \"auto\""),
        },
        "install the NVIDIA driver (Jetson: sudo apt install nvidia-jetpack), or set learner.device = \"cpu\"",
    )
}

fn offline(config: &Config) -> Finding {
    let offline = open_offline(config);
    Finding::new(
        "offline data",
        Level::mend_unless(offline.is_ok()),
        offline.map_or_else(
            |error| error.to_string(),
            |store| store.map_or("none".into(), |store| format!("{} transitions", store.transitions())),
        ),
        "fieldtune data inspect FILE says more; choose another replay.offline",
    )
}

/// Looks at a camera for a while.
fn camera(config: &Config, source: &CameraSource) -> Finding {
    let camera = &config.camera;
    let (found, good) = match look_at(config, source) {
        Err(error) => (format!("{source}: {error}"), false),
        Ok((0, refused)) => (format!("{source}: no image within {} s, {refused} refused", LOOK.as_secs()), false),
        Ok((images, refused)) => {
            let rate = f64::from(images) / LOOK.as_secs_f64();
            let found = format!("{source}: {rate:.1} images per second of {:.1}, {refused} refused", camera.rate_hz);
            (found, refused == 0 && rate >= 0.8 * camera.rate_hz)
        }
    };
    Finding::new(
        "camera",
        Level::mend_unless(good),
        found,
        "start the camera; compare [camera] with what it sends (docs/camera.md)",
    )
}

/// Images that came, the overtaken ones included, and images that were refused.
fn look_at(config: &Config, source: &CameraSource) -> Result<(u32, u32), CameraError> {
    let recorded = |folder: &std::path::Path| Err(format!("{} is played when the run begins", folder.display()));
    let mut camera = camera::open(source, &config.camera, &Clock::Monotonic, recorded)?;
    let mut view = View::new(&config.camera);
    let mut pixels = vec![0; view.bytes()];
    let (mut images, mut refused) = (0, 0);
    let mut end = None;
    loop {
        let wait = end.unwrap_or_else(|| monotonic().plus(LOOK)).since(monotonic());
        if wait.is_zero() {
            return Ok((images, refused));
        }
        match camera.newest(wait, &mut view, &mut pixels) {
            // The time counts from the first image: a camera needs a while to begin.
            Ok(Some(capture)) if end.is_some() => images += 1 + capture.overtaken,
            Ok(Some(_)) => end = Some(monotonic().plus(LOOK)),
            Ok(None) => return Ok((images, refused)),
            Err(CameraError::Image(_)) => {
                refused += 1;
                end = end.or_else(|| Some(monotonic().plus(LOOK)));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks the robot who it is; it is not armed.
fn robot(config: &Config) -> Finding {
    let robot = &config.robot;
    let period = Duration::from_secs_f64(1.0 / robot.control_hz);
    let answer = link::open(robot.link, &robot.address, robot.baud).and_then(|link| {
        let clock = Clock::Monotonic;
        FirmwareRobot::connect(link, &robot.spaces, period, false, robot.command_valid_ms, PATIENCE, clock)
    });
    let found = answer.as_ref().map_or_else(RobotError::to_string, |robot| {
        let is = robot.description();
        format!("firmware {}, {} ms watchdog, agrees with the configuration", is.firmware, is.watchdog.as_millis())
    });
    Finding::new(
        "robot",
        Level::mend_unless(answer.is_ok()),
        found,
        "switch the robot on; compare [robot] with its firmware",
    )
}
