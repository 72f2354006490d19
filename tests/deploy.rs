//! Promise: the commands of the README's section on the Jetson that can be run here do what it says, and so does the
//! service of the package.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::config;

/// First words of commands that need the board, its package or its service manager.
const ON_THE_BOARD: &[&str] =
    &["echo", "apt", "reboot", "nvpmodel", "jetson_clocks", "systemctl", "scp", "sudoedit", "journalctl"];

/// Commands of the section, without `sudo`, one each.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, behind) = readme.split_once("## Deploy to a Jetson").unwrap();
    let (section, _) = behind.split_once("\n## ").unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split_once("```").unwrap().0);
    let lines: Vec<String> = blocks.flat_map(|block| block.lines().map(String::from).collect::<Vec<_>>()).collect();
    let parts = lines.iter().flat_map(|line| line.split(" && "));
    parts.map(|part| part.trim_start_matches("sudo ").trim_start_matches("-u fieldtune ").to_owned()).collect()
}

/// The folders of an installed package, somewhere else.
struct Board {
    folder: tempfile::TempDir,
}

impl Board {
    fn installed() -> Self {
        let board = Self { folder: tempfile::tempdir().unwrap() };
        let text = std::fs::read_to_string(repository().join("tools/jetson/robot.toml")).unwrap();
        std::fs::write(board.folder.path().join("robot.toml"), board.here(&text)).unwrap();
        board
    }

    fn here(&self, text: &str) -> String {
        let folder = self.folder.path().display();
        text.replace("/etc/fieldtune", &folder.to_string())
            .replace("/var/lib/fieldtune", &folder.to_string())
            .replace("/usr/share/fieldtune", &repository().display().to_string())
    }

    /// The program with the words of a command behind its name.
    fn command(&self, line: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
        command.current_dir(self.folder.path()).args(self.here(line).split_whitespace().skip(1)).args(more);
        command
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the unit starts, and whether its `LINE` is there.
fn unit(line: &str) -> (String, bool) {
    let text = std::fs::read_to_string(repository().join("tools/jetson/fieldtune.service")).unwrap();
    let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap().to_owned();
    (start, text.lines().any(|found| found == line))
}

#[test]
fn the_commands_that_can_be_run_here_do_what_they_should() {
    let board = Board::installed();
    let commands = commands();
    let (mut run, mut left) = (0, 0);
    for line in &commands {
        let first = line.split_whitespace().next().unwrap();
        if ON_THE_BOARD.contains(&first) {
            left += 1;
            continue;
        }
        run += 1;
        match line.split_whitespace().nth(1) {
            // A machine of any kind may have something to mend; what it has is said.
            Some("doctor") => {
                let output = board.command(line, &[]).output().unwrap();
                let said = said(&output);
                assert!(said.contains("real-time priority") && !said.contains("error:"), "{line}\n{said}");
                assert_eq!(said.contains("policy bundle"), line.contains("--config"), "{line}\n{said}");
            }
            // In simulated time: the same steps in seconds.
            Some("run") => {
                let short = ["--quiet", "--set", "run.clock=lockstep", "--set", "run.steps=400"];
                let output = board.command(line, &short).output().unwrap();
                assert!(output.status.success(), "{line}\n{}", said(&output));
                assert!(board.folder.path().join("first/bundle/weights.safetensors").exists(), "it learned");
            }
            Some("report") => {
                assert!(board.command(line, &[]).status().unwrap().success(), "{line}");
                assert!(board.folder.path().join("first/report.html").exists(), "{line}");
            }
            Some("status") => as_a_service(&board, line),
            // What it lacks on this machine it names.
            _ if line.starts_with("tools/package-jetson") => {
                let output =
                    Command::new("bash").current_dir(repository()).args(["-c", "tools/package-jetson need"]).output();
                let output = output.unwrap();
                assert!(output.status.success() || said(&output).contains("missing:"), "{}", said(&output));
            }
            _ => panic!("{line}: neither run here nor known to need the board"),
        }
    }
    assert!(run >= 6 && left >= 6, "{run} run, {left} left out of {commands:?}");
}

#[test]
fn what_the_board_is_told_to_install_and_start_is_what_the_package_brings() {
    let package = format!("fieldtune_{}_arm64.deb", env!("CARGO_PKG_VERSION"));
    let read = |file: &str| std::fs::read_to_string(repository().join(file)).unwrap();
    assert!(read("tools/package-jetson").contains("out/fieldtune_${version}_arm64.deb"));
    let commands = commands();
    let with = |start: &str| commands.iter().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    let copied = with("scp ");
    assert!(copied.len() == 1 && copied[0].contains(&format!(" target/jetson/{package} ")), "{copied:?}");
    assert!(commands.contains(&format!("apt install ./{package}")), "{commands:?}");
    for command in ["systemctl enable --now fieldtune", "journalctl -u fieldtune"] {
        assert!(commands.iter().any(|line| line == command), "{command}");
    }
    assert!(read("tools/package-jetson").contains("tools/jetson/fieldtune.service"), "the unit is in the package");
    // `sudo -u fieldtune`, with the folder that the commands write into.
    assert!(unit("User=fieldtune").1 && unit("StateDirectory=fieldtune").1);
    assert!(read("tools/jetson/sysusers.conf").lines().any(|line| line.starts_with("u fieldtune ")));
    assert_eq!(with("sudoedit "), ["sudoedit /etc/fieldtune/robot.toml"]);
    assert!(read("tools/package-jetson").contains("etc/fieldtune/robot.toml"));
}

/// The command of the unit as systemd starts it, and the README's question to it.
fn as_a_service(board: &Board, question: &str) {
    let (start, notifies) = unit("Type=notify");
    assert!(notifies);
    let quick = ["--set", "run.steps=100000"];
    let service = board.command(&start, &quick).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = monotonic();
    let answer = loop {
        let output = board.command(question, &[]).output().unwrap();
        if output.status.success() || monotonic().since(begin) > Duration::from_secs(30) {
            break output;
        }
        Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(100)));
    };
    assert!(said(&answer).contains("late_ticks"), "{}", said(&answer));
    assert!(board.command(question, &["--stop"]).status().unwrap().success());
    let ended = service.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", said(&ended));
}

#[test]
fn the_installed_configuration_and_unit_keep_what_the_documents_say() {
    let board = Board::installed();
    let config = config::load(&board.folder.path().join("robot.toml"), &[]).unwrap();
    assert_eq!(config.run.existing, config::Existing::Resume, "a restart goes on");
    assert!(config.robot.address.is_empty(), "as installed nothing moves");
    for line in
        ["LimitRTPRIO=90", "LimitMEMLOCK=infinity", "CapabilityBoundingSet=", "Restart=on-abnormal", "WatchdogSec=10"]
    {
        assert!(unit(line).1, "{line}");
    }
    let highest = config.realtime.priority;
    assert!(highest <= 90, "priority {highest} is above the unit's limit");
}
