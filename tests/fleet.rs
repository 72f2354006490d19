//! Promises of a fleet on loopback, with processes: every step once, policies come back, either side may die.
#![cfg(feature = "fleet")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it skips")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::config::{Config, FleetConfig};
use fieldtune::fleet::{Batch, FleetError, Link, MAX_MESSAGE, Side, episode_of};
use fieldtune::replay::{Access, Layout, Store};
use fieldtune::runtime::{Request, ask_within};
use fieldtune::spaces::{StepFlags, StepRecord};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fieldtune");

fn pause(ms: u64) {
    Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(ms)));
}

/// A process of the fleet, killed when dropped.
struct Member {
    child: Child,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Member {
    fn start(folder: &Path, command: &str, settings: &[String]) -> Self {
        let common =
            ["run.evaluate_episodes=0", "run.existing=resume", "learner.warmup_steps=20", "swap.trial_episodes=0"];
        let mut program = Command::new(PROGRAM);
        program.current_dir(env!("CARGO_MANIFEST_DIR"));
        program.args([command, "--config", "config/quickstart.toml", "--quiet"]);
        program.args(["--set", &format!("run.directory={}", folder.display())]);
        program.args(common.iter().map(ToString::to_string).chain(settings.to_vec()).flat_map(|s| ["--set".into(), s]));
        Self { child: program.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap() }
    }

    fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "a member of the fleet failed");
    }
}

/// Waits until the status of the process in `folder` satisfies `reached`.
fn until(folder: &Path, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
    let mut seen = Value::Null;
    for _ in 0..1200 {
        if let Ok(reply) = ask_within(folder, &Request::Status, Duration::from_secs(5)) {
            seen = reply.status;
            if reached(&seen) {
                return seen;
            }
        }
        pause(50);
    }
    panic!("{what} did not happen: {seen}");
}

/// Every record of a buffer that is no seam.
fn records(folder: &Path) -> (Vec<StepRecord>, u64) {
    let store = Store::open(&folder.join("replay"), Access::ReadOnly).unwrap();
    let mut record = StepRecord::default();
    let all = (store.first_sequence()..=store.last_sequence())
        .map(|sequence| store.record(sequence, &mut record).map(|()| record.clone()).unwrap())
        .filter(|record| !record.flags.contains(StepFlags::SEAM));
    (all.collect(), store.transitions())
}

#[test]
fn two_robots_and_a_learner_on_loopback_lose_nothing_when_one_of_each_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = format!("tcp/127.0.0.1:{port}");
    let (hub, arms) = (folder.path().join("hub"), ["a", "b"].map(|name| folder.path().join(name)));
    let learner = || Member::start(&hub, "learner", &[format!("fleet.listen={place}")]);
    let robot = |i: usize| {
        let own = [
            format!("fleet.connect={place}"),
            format!("fleet.robot=arm-{i}"),
            "learner.remote=true".into(),
            "fleet.send_every_ms=50".into(),
            "fleet.timeout_ms=500".into(),
            "run.steps=100000".into(),
        ];
        Member::start(&arms[i], "run", &own)
    };
    // A robot begins without its learner.
    let mut robots = vec![robot(0), robot(1)];
    until(&arms[0], "recording alone", |s| s["fleet"]["pending"].as_u64().is_some() && s["steps"].as_u64() > Some(20));
    let first = learner();
    for arm in &arms {
        until(arm, "a policy of the learner in use", |s| {
            s["generation"].as_u64() > Some(0) && s["fleet"]["linked"] == true
        });
    }
    drop(first); // SIGKILL
    until(&arms[0], "noticing that the learner is gone", |s| s["fleet"]["linked"] == false);
    drop(robots.pop()); // SIGKILL
    pause(300);
    let second = learner();
    robots.push(robot(1));
    let known = until(&hub, "both robots again", |s| s["fleet"]["robots"] == 2 && s["updates"].as_u64() > Some(20));
    assert_eq!(known["fleet"]["refused"], 0, "{known}");
    until(&arms[1], "the robot that was killed, linked again", |s| s["fleet"]["linked"] == true);
    for robot in robots {
        robot.stop();
    }
    second.stop();

    let (arrived, transitions) = records(&hub);
    let mut by_robot: BTreeMap<u32, Vec<StepRecord>> = BTreeMap::new();
    for mut record in arrived {
        let (robot, episode) = episode_of(&record);
        record.episode = episode;
        by_robot.entry(robot).or_default().push(record);
    }
    let mut made = arms.each_ref().map(|arm| records(arm));
    let sum: u64 = made.iter().map(|(_, transitions)| transitions).sum();
    assert_eq!(transitions, sum);
    made.sort_by_key(|(records, _)| records.len());
    let mut found: Vec<_> = by_robot.into_values().collect();
    found.sort_by_key(Vec::len);
    for (found, (mut wanted, _)) in found.into_iter().zip(made) {
        if !wanted.last().unwrap().flags.contains(StepFlags::OBSERVATION_ONLY) {
            wanted.pop();
        }
        assert_eq!(found.len(), wanted.len());
        assert!(found == wanted, "records differ");
    }
}

/// Runs openssl in `folder`; false where it is not there.
fn openssl(folder: &Path, arguments: &str) -> bool {
    let run = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

/// The learner's configuration of docs/fleet.md, with these end points and this folder of certificates.
fn documented(place: &str, folder: &Path) -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fleet.md")).unwrap();
    let (_, rest) = text.split_once("```json5\n").unwrap();
    let mut block = rest.split_once("```").unwrap().0.replace("tls/0.0.0.0:7447", place);
    for file in ["ca.pem", "learner.pem", "learner.key"] {
        block = block.replace(file, folder.join(file).to_str().unwrap());
    }
    block
}

#[test]
fn with_the_documented_access_control_a_robot_speaks_under_the_name_in_its_certificate_only() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path();
    let fresh = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    if !openssl(keys, &format!("req -x509 {fresh} -keyout ca.key -out ca.pem -subj /CN=ca -days 2")) {
        println!("skipped: TLS, for there is no openssl");
        return;
    }
    std::fs::write(keys.join("extensions"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    for name in ["learner", "arm-1", "arm-2"] {
        assert!(openssl(keys, &format!("req {fresh} -keyout {name}.key -out {name}.csr -subj /CN={name}")));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions";
        assert!(openssl(keys, &format!("x509 -req -in {name}.csr {sign} -out {name}.pem")));
    }
    let place = format!("tls/localhost:{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let (hub, learner) = (keys.join("hub"), keys.join("learner.json5"));
    std::fs::write(&learner, documented(&place, keys)).unwrap();
    let learner = Member::start(&hub, "learner", &[format!("fleet.zenoh={}", learner.display())]);
    until(&hub, "listening", |s| s["fleet"]["linked"] == true);
    let path = |file: String| keys.join(file).display().to_string();
    let answered = |certificate: Option<&str>, name: &str| {
        let mut tls = serde_json::json!({ "root_ca_certificate": path("ca.pem".into()) });
        if let Some(own) = certificate {
            tls["connect_certificate"] = path(format!("{own}.pem")).into();
            tls["connect_private_key"] = path(format!("{own}.key")).into();
            tls["enable_mtls"] = true.into();
        }
        let none = serde_json::json!({ "enabled": false });
        let robot = serde_json::json!({ "mode": "peer", "connect": { "endpoints": [place] }, "listen": { "endpoints": [] },
            "scouting": { "multicast": none, "gossip": none }, "transport": { "link": { "tls": tls } } });
        let file = keys.join("robot.json5");
        std::fs::write(&file, robot.to_string()).unwrap();
        let link = Link::open(&FleetConfig { zenoh: file, ..FleetConfig::default() }, Side::Robot).unwrap();
        let question = Batch::encode([7; 16], None, Layout::from(&Config::default().robot.spaces), &[]);
        (0..6).any(|_| {
            pause(300);
            link.ask(&format!("records/{name}"), question.clone(), Duration::from_millis(500)).is_ok()
        })
    };
    assert!(answered(Some("arm-1"), "arm-1"), "its own name");
    assert!(!answered(Some("arm-2"), "arm-1"), "another's name");
    assert!(!answered(Some("arm-2"), "arm-2"), "a name without a rule");
    assert!(!answered(None, "arm-1"), "no certificate");
    learner.stop();
}

#[test]
fn messages_that_nobody_should_send_are_refused_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = format!("tcp/127.0.0.1:{port}");
    let hub = folder.path().join("hub");
    let learner = Member::start(&hub, "learner", &[format!("fleet.listen={place}")]);
    until(&hub, "listening", |s| s["fleet"]["linked"] == true);
    let link = Link::open(&FleetConfig { connect: place, ..FleetConfig::default() }, Side::Robot).unwrap();
    let ask = |name: &str, message: Vec<u8>| link.ask(name, message, Duration::from_secs(2));
    let refused = |name: &str, message: Vec<u8>| {
        // The first ones may come before the session is there.
        let answers =
            (0..50).map(|_| ask(name, message.clone())).find(|a| !matches!(a, Err(FleetError::Silent { .. })));
        assert!(matches!(answers, Some(Err(FleetError::Refused(_)))), "{name}: {answers:?}");
    };
    refused("records/nobody", b"GET / HTTP/1.1".to_vec());
    refused("policy", vec![0; 48]);
    let other = Layout { observation_dim: 3, action_dim: 1, schema_hash: 1 };
    refused("records/nobody", Batch::encode([1; 16], None, other, &[]));
    link.tell("status/nobody", b"{".to_vec());
    // Longer than the link carries: no answer, and the learner goes on.
    assert!(ask("records/nobody", vec![0; 2 * MAX_MESSAGE]).is_err());
    let counted = until(&hub, "counting", |s| s["fleet"]["refused"].as_u64() >= Some(4));
    assert_eq!((&counted["fleet"]["robots"], &counted["steps"]), (&Value::from(0), &Value::from(0)));
    drop(link);
    learner.stop();
}
