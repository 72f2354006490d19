//! A configuration against the machine: policy, engine, learner's device, offline data, robot.

use std::time::Duration;

use fieldtune::clock::Clock;
use fieldtune::config::{Config, DeviceKind};
use fieldtune::policy::{AnyBundle, PolicyError, checks};
use fieldtune::robot::{FirmwareRobot, Robot, RobotError, link};
use fieldtune::runtime::open_offline;

use super::{Finding, Level, Root};

/// Longest wait for a robot that is asked who it is.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn look(root: &Root<'_>, config: &Config) -> Vec<Finding> {
    let mut findings = policy(config);
    findings.push(cuda(root, config.learner.device));
    findings.push(offline(config));
    if !config.robot.address.is_empty() {
        findings.push(robot(config));
    }
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
