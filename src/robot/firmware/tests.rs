//! The host's half of the protocol against a model microcontroller, over memory, sockets and a pty.

use super::*;
use crate::config::LinkKind;
use crate::robot::loopback::{LoopbackLink, ModelRobot};
use crate::robot::{LinkError, open};
use firmware_bridge::{Faults, StreamDecoder};
use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

const PERIOD: Duration = Duration::from_millis(50);
const WATCHDOG: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);

fn spaces() -> Spaces {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    Spaces { observation: names("x_m_", 3), action: names("v_m_s_", 2) }
}

fn model() -> ModelRobot {
    ModelRobot::new(&spaces(), PERIOD, WATCHDOG)
}

fn connect(link: impl Link + 'static, lockstep: bool, timeout: Duration) -> Result<FirmwareRobot, RobotError> {
    FirmwareRobot::connect(Box::new(link), &spaces(), PERIOD, lockstep, 150, timeout, Clock::lockstep())
}

/// A model in another hand: the test looks at it while the robot uses it.
struct Shared(Arc<Mutex<LoopbackLink>>);

impl Link for Shared {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.0.lock().unwrap().send(frame)
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        self.0.lock().unwrap().receive(wait)
    }

    fn counters(&self) -> LinkCounters {
        self.0.lock().unwrap().counters()
    }
}

fn shared() -> (Arc<Mutex<LoopbackLink>>, FirmwareRobot) {
    let link = Arc::new(Mutex::new(LoopbackLink::new(model())));
    let robot = connect(Shared(link.clone()), true, PATIENCE).unwrap();
    (link, robot)
}

fn drive(link: &Arc<Mutex<LoopbackLink>>) -> DriveState {
    link.lock().unwrap().robot.drive()
}

/// Loses every `n`th frame of each direction.
struct Lossy<L> {
    link: L,
    n: u32,
    sent: u32,
    received: u32,
}

impl<L> Lossy<L> {
    fn new(link: L, n: u32) -> Self {
        Self { link, n, sent: 0, received: 0 }
    }
}

impl<L: Link> Link for Lossy<L> {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.sent += 1;
        if self.sent.is_multiple_of(self.n) { Ok(()) } else { self.link.send(frame) }
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        let frame = self.link.receive(wait)?;
        self.received += u32::from(frame.is_some());
        Ok(frame.filter(|_| !self.received.is_multiple_of(self.n)))
    }

    fn counters(&self) -> LinkCounters {
        self.link.counters()
    }
}

impl Link for Box<dyn Link> {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.as_mut().send(frame)
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        self.as_mut().receive(wait)
    }

    fn counters(&self) -> LinkCounters {
        self.as_ref().counters()
    }
}

/// A model behind a Unix socket; it ends with the empty datagram.
fn serve(path: &Path) -> JoinHandle<()> {
    let socket = UnixDatagram::bind(path).unwrap();
    let serve = move || {
        let (mut robot, mut bytes) = (model(), [0; 300]);
        while let Ok((len @ 1.., host)) = socket.recv_from(&mut bytes) {
            let answer = robot.handle(&Frame::decode(&bytes[..len]).unwrap());
            if let Some(answer) = answer {
                let len = answer.encode(&mut bytes).unwrap();
                let _ = socket.send_to_addr(&bytes[..len], &host);
            }
        }
    };
    Builder::new().spawn(serve).unwrap()
}

fn end(path: &Path, robot: JoinHandle<()>) {
    UnixDatagram::unbound().unwrap().send_to(&[], path).unwrap();
    robot.join().unwrap();
}

/// 100 steps that go to and fro; every tick comes once, with the action that was sent for it.
fn run_100_steps(robot: &mut FirmwareRobot) {
    let mut seen = Observed::default();
    robot.arm().unwrap();
    robot.request_reset(3, 42).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    assert_eq!((seen.tick, seen.episode, seen.drive, seen.reward), (0, 3, DriveState::Armed, 0.0));
    let mut position = [seen.observation[0], seen.observation[1]];
    for tick in 1..=100 {
        let action = [(tick as f32).sin(), (tick as f32).cos()];
        robot.apply(&action).unwrap();
        assert!(robot.observe(&mut seen).unwrap());
        assert_eq!((seen.tick, seen.skipped, seen.drive), (tick, 0, DriveState::Run));
        assert_eq!(seen.applied, action);
        for axis in 0..2 {
            position[axis] = (position[axis] + action[axis] * PERIOD.as_secs_f32()).clamp(-1.0, 1.0);
        }
        assert_eq!(seen.observation, [position[0], position[1], position[0]]);
        assert_eq!(seen.reward, -(position[0] * position[0] + position[1] * position[1]));
        assert!(seen.reward_valid && !seen.terminated);
    }
    assert!(!robot.observe(&mut seen).unwrap(), "nothing is under way");
}

#[test]
fn a_run_in_lockstep_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("robot");
    let thread = serve(&path);
    let mut robot = connect(open(LinkKind::Unix, path.to_str().unwrap(), 0).unwrap(), true, PATIENCE).unwrap();
    let description = robot.description();
    assert_eq!((description.observation_dim, description.action_dim, description.watchdog), (3, 2, WATCHDOG));
    run_100_steps(&mut robot);
    robot.disarm();
    assert_eq!((robot.counters().sequence_gaps, robot.counters().crc_errors), (0, 0));
    end(&path, thread);
}

#[test]
fn lost_datagrams_are_repeated_and_step_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("robot");
    let thread = serve(&path);
    let link = Lossy::new(open(LinkKind::Unix, path.to_str().unwrap(), 0).unwrap(), 7);
    let mut robot = connect(link, true, PATIENCE).unwrap();
    run_100_steps(&mut robot);
    // 100 commands, and one repeat for each of the lost answers: both ways lost frames.
    assert!(robot.counters().sent > 115, "{:?}", robot.counters());
    end(&path, thread);
}

#[test]
fn a_run_over_a_pty_with_garbage_between_the_frames() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let line = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&line).unwrap();
    unlockpt(&line).unwrap();
    let path = ptsname(&line, Vec::new()).unwrap().into_string().unwrap();
    let link = open(LinkKind::Serial, &path, 3_000_000).unwrap();
    let serve = move || {
        let (mut robot, mut decoder, mut bytes, mut noise) = (model(), StreamDecoder::new(), [0; 300], 1_u32);
        // The line ends when the host closes its side.
        while let Ok(len @ 1..) = rustix::io::read(&line, &mut bytes) {
            let answers =
                bytes[..len].iter().filter_map(|byte| decoder.push(*byte)?.ok()).filter_map(|f| robot.handle(&f));
            let mut out = Vec::new();
            for answer in answers {
                for _ in 0..noise % 40 {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    out.push((noise >> 24) as u8);
                }
                let mut wire = [0; firmware_bridge::MAX_WIRE];
                let len = answer.encode_stream(&mut wire).unwrap();
                out.extend_from_slice(&wire[..len]);
                noise = noise.wrapping_add(1);
            }
            let _ = rustix::io::write(&line, &out);
        }
    };
    let thread = Builder::new().spawn(serve).unwrap();
    let mut robot = connect(link, true, PATIENCE).unwrap();
    run_100_steps(&mut robot);
    robot.disarm();
    let counters = robot.counters();
    assert!(counters.malformed + counters.crc_errors > 50, "{counters:?}");
    assert_eq!((counters.sequence_gaps, counters.send_dropped), (0, 0));
    drop(robot);
    thread.join().unwrap();
}

#[test]
fn a_robot_that_does_not_fit_is_refused_and_both_sides_are_named() {
    let refusal = |spaces: &Spaces, period_ms: u64, valid_ms: u8| {
        let link = Box::new(LoopbackLink::new(model()));
        let period = Duration::from_millis(period_ms);
        FirmwareRobot::connect(link, spaces, period, true, valid_ms, PATIENCE, Clock::lockstep()).err().unwrap()
    };
    let mut renamed = spaces();
    renamed.observation.swap(0, 1);
    let error = refusal(&renamed, 50, 150);
    assert!(matches!(error, RobotError::Schema { .. }));
    for hash in [renamed.schema_hash(), spaces().schema_hash()] {
        assert!(error.to_string().contains(&format!("{hash:#018x}")), "{error}");
    }
    let mut longer = spaces();
    longer.action.push("v_m_s_2".into());
    let error = refusal(&longer, 50, 150);
    assert!(matches!(error, RobotError::Dimensions { ours: (3, 3), theirs: (3, 2) }), "{error}");
    let error = refusal(&spaces(), 20, 150).to_string();
    assert!(error.contains("20000 us") && error.contains("50000 us"), "{error}");
    assert!(matches!(refusal(&spaces(), 50, 50), RobotError::Validity { .. }));
}

#[test]
fn a_silent_robot_is_an_error_after_the_timeout() {
    let link = Lossy::new(LoopbackLink::new(model()), 1);
    let error = connect(link, true, Duration::from_millis(30)).err().unwrap();
    assert!(matches!(error, RobotError::NoAnswer { waiting_for: "HELLO_ACK", .. }), "{error}");

    let (link, _) = shared();
    let mut robot = connect(Shared(link.clone()), true, Duration::from_millis(120)).unwrap();
    robot.arm().unwrap();
    robot.request_reset(0, 0).unwrap();
    while link.lock().unwrap().receive(Duration::ZERO).unwrap().is_some() {}
    link.lock().unwrap().robot = ModelRobot::new(&spaces(), PERIOD, WATCHDOG);
    let mut seen = Observed::default();
    assert!(robot.observe(&mut seen).unwrap(), "the repeated RESET is answered");
    robot.apply(&[0.0, 0.0]).unwrap();
    assert!(matches!(robot.observe(&mut seen), Err(RobotError::NoAnswer { waiting_for: "STATE", .. })));
}

#[test]
fn stop_latches_until_the_robot_is_armed_again() {
    let (link, mut robot) = shared();
    let mut seen = Observed::default();
    robot.arm().unwrap();
    robot.request_reset(0, 0).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    robot.apply(&[0.5, 0.5]).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    robot.stop();
    assert_eq!(drive(&link), DriveState::Fault);
    robot.apply(&[0.5, 0.5]).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    assert_eq!((seen.drive, seen.faults, seen.tick), (DriveState::Fault, Faults::ESTOP, 1));
    assert_eq!(seen.counters.rejected_commands, 1);

    robot.arm().unwrap();
    assert_eq!(drive(&link), DriveState::Armed);
    robot.request_reset(1, 0).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    robot.apply(&[0.5, 0.5]).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    assert_eq!((seen.drive, seen.tick, seen.episode), (DriveState::Run, 1, 1));
    robot.disarm();
    assert_eq!(drive(&link), DriveState::Disarmed);
}

#[test]
fn the_watchdog_of_the_robot_shows_on_the_host() {
    let (link, mut robot) = shared();
    let mut seen = Observed::default();
    robot.arm().unwrap();
    robot.request_reset(0, 0).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    robot.apply(&[0.5, 0.5]).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    link.lock().unwrap().robot.wait(5 * WATCHDOG);
    robot.apply(&[0.5, 0.5]).unwrap();
    assert!(robot.observe(&mut seen).unwrap());
    assert_eq!((seen.drive, seen.faults, seen.tick), (DriveState::Fault, Faults::WATCHDOG, 1));
}

#[test]
fn a_robot_dropped_while_armed_is_stopped_and_a_disarmed_one_is_left_alone() {
    for (orderly, expected) in [(false, DriveState::Fault), (true, DriveState::Disarmed)] {
        let (link, mut robot) = shared();
        robot.arm().unwrap();
        if orderly {
            robot.disarm();
        }
        drop(robot);
        assert_eq!(drive(&link), expected);
    }
}

#[test]
fn a_robot_left_running_by_another_host_is_armed_afresh() {
    let (link, mut first) = shared();
    let mut seen = Observed::default();
    first.arm().unwrap();
    first.request_reset(0, 0).unwrap();
    assert!(first.observe(&mut seen).unwrap());
    first.apply(&[0.5, 0.5]).unwrap();
    assert_eq!(drive(&link), DriveState::Run);
    let mut second = connect(Shared(link.clone()), true, PATIENCE).unwrap();
    second.arm().unwrap();
    assert_eq!(drive(&link), DriveState::Armed);
    first.apply(&[0.5, 0.5]).unwrap();
    assert_eq!(drive(&link), DriveState::Armed, "the first host's session is over");
}

#[test]
fn actions_of_a_wrong_length_are_refused_here() {
    let (_link, mut robot) = shared();
    for got in [0, 1, 3, 30] {
        let error = robot.apply(&vec![0.0; got]).unwrap_err();
        assert!(matches!(error, RobotError::ActionLength { expected: 2, got: n } if n == got));
    }
}

/// A link that a test writes by hand.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<(VecDeque<Frame>, Vec<Frame>)>>);

impl Link for Script {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let (incoming, sent) = &mut *self.0.lock().unwrap();
        sent.push(frame.clone());
        if matches!(frame.message, Message::Hello(_)) {
            incoming.extend(model().handle(frame));
        }
        Ok(())
    }

    fn receive(&mut self, _wait: Duration) -> Result<Option<Frame>, LinkError> {
        Ok(self.0.lock().unwrap().0.pop_front())
    }

    fn counters(&self) -> LinkCounters {
        LinkCounters::default()
    }
}

impl Script {
    fn robot(&self) -> FirmwareRobot {
        connect(self.clone(), false, PATIENCE).unwrap()
    }

    fn state(&self, seq: u16, ack: u16, episode: u32, tick: u32) {
        let state = State {
            tick,
            episode,
            drive: DriveState::Run,
            applied: heapless::Vec::from_slice(&[0.0; 2]).unwrap(),
            observation: heapless::Vec::from_slice(&[tick as f32; 3]).unwrap(),
            ..State::default()
        };
        let header = Header { seq, ack, ..Header::default() };
        self.0.lock().unwrap().0.push_back(Frame { header, message: Message::State(state) });
    }

    fn sent_resets(&self) -> Vec<u16> {
        let sent = &self.0.lock().unwrap().1;
        sent.iter().filter(|f| matches!(f.message, Message::Reset { .. })).map(|f| f.header.seq).collect()
    }
}

/// A robot that stands still, and whose clock began somewhere else.
#[derive(Clone, Default)]
struct Clocked {
    script: Script,
    seq: u16,
}

/// Robot clock minus host clock; near the wrap of 32 bits, and the same at both ends of a test.
fn robot_clock(host: Stamp) -> u64 {
    (7_u64 << 32) - 1_000 + host.0.wrapping_sub(monotonic_origin())
}

fn monotonic_origin() -> u64 {
    static ORIGIN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *ORIGIN.get_or_init(|| monotonic().0)
}

impl Link for Clocked {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.script.send(frame)?;
        if let Message::TimeRequest { t1_us } = frame.message {
            let now = robot_clock(monotonic());
            self.seq += 1;
            let header = Header { seq: self.seq, ..Header::default() };
            let message = Message::TimeReply { t1_us, t2_us: now, t3_us: now };
            self.script.0.lock().unwrap().0.push_back(Frame { header, message });
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        self.script.receive(wait)
    }

    fn counters(&self) -> LinkCounters {
        LinkCounters::default()
    }
}

#[test]
fn states_carry_the_time_at_which_the_robot_sent_them() {
    let clocked = Clocked::default();
    let link = Box::new(clocked.clone());
    let mut robot = FirmwareRobot::connect(link, &spaces(), PERIOD, false, 150, PATIENCE, Clock::Monotonic).unwrap();
    robot.synchronise().unwrap();
    let estimate = robot.clock_estimate().unwrap();
    assert_eq!(estimate.exchanges, u64::from(FIRST_EXCHANGES));
    let off = estimate.offset_us + robot_clock(Stamp(0)) as i64 as f64;
    assert!(off.abs() <= estimate.uncertainty_us as f64 + 1.0, "{off} {estimate:?}");

    let mut seen = Observed::default();
    for tick in 1..=20 {
        let sent = monotonic();
        clocked.script.state(tick as u16, 0, 1, tick);
        clocked.script.0.lock().unwrap().0.back_mut().unwrap().header.t_us = robot_clock(sent) as u32;
        Clock::Monotonic.sleep_until(sent.plus(Duration::from_millis(8)));
        assert!(robot.observe(&mut seen).unwrap());
        let off = seen.capture.0.abs_diff(sent.0);
        assert!(off <= estimate.uncertainty_us + 2, "tick {tick}: {off} us, {estimate:?}");
    }
    assert!(robot.clock_estimate().unwrap().exchanges > u64::from(FIRST_EXCHANGES), "it goes on asking");
    // The robot has started anew: its stamps mean nothing, the arrival counts.
    clocked.script.state(21, 0, 1, 21);
    clocked.script.0.lock().unwrap().0.back_mut().unwrap().header.t_us =
        (robot_clock(monotonic()) as u32).wrapping_add(1 << 30);
    let before = monotonic();
    assert!(robot.observe(&mut seen).unwrap());
    assert!(seen.capture >= before);
}

/// States that lie on the link (seq, episode, tick), and what is observed (newer, tick, skipped).
type Case = (&'static [(u16, u32, u32)], (bool, u32, u32));

#[test]
fn in_real_time_the_newest_state_wins_and_missing_ones_are_counted() {
    let script = Script::default();
    let mut robot = script.robot();
    let mut seen = Observed::default();
    let cases: [Case; 8] = [
        (&[], (false, 0, 0)),
        (&[(10, 1, 0)], (true, 0, 0)),
        (&[(11, 1, 0)], (true, 0, 0)),
        (&[(12, 1, 1), (13, 1, 2)], (true, 2, 1)),
        (&[(17, 1, 6), (15, 1, 4)], (true, 6, 3)),
        (&[(16, 1, 5)], (false, 6, 3)),
        (&[(18, 1, 7), (19, 2, 0)], (true, 0, 0)),
        (&[(25, 3, 4)], (true, 4, 4)),
    ];
    for (index, (states, (newer, tick, skipped))) in cases.into_iter().enumerate() {
        for (seq, episode, tick) in states {
            script.state(*seq, 0, *episode, *tick);
        }
        assert_eq!(robot.observe(&mut seen).unwrap(), newer, "case {index}");
        assert_eq!((seen.tick, seen.skipped), (tick, skipped), "case {index}");
        assert_eq!(seen.observation.first(), (index > 0).then_some(&(tick as f32)));
    }
}

#[test]
fn in_real_time_a_reset_is_repeated_until_its_episode_begins() {
    let script = Script::default();
    let mut robot = script.robot();
    let mut seen = Observed::default();
    robot.request_reset(5, 1).unwrap();
    let seq = script.sent_resets()[0];
    let late = || Clock::Monotonic.sleep_until(monotonic().plus(REPEAT_AFTER));
    // A state of another episode is no answer, even when the old numbering makes its ack look like one.
    script.state(1, seq, 4, 17);
    assert!(robot.observe(&mut seen).unwrap());
    assert_eq!(script.sent_resets(), [seq]);
    late();
    assert!(!robot.observe(&mut seen).unwrap());
    assert_eq!(script.sent_resets(), [seq, seq]);
    script.state(2, seq, 5, 0);
    late();
    assert!(robot.observe(&mut seen).unwrap());
    late();
    assert!(!robot.observe(&mut seen).unwrap());
    assert_eq!(script.sent_resets(), [seq, seq]);
}

#[test]
fn a_state_of_other_dimensions_is_an_error() {
    let script = Script::default();
    let mut robot = script.robot();
    let header = Header { seq: 1, ..Header::default() };
    script.0.lock().unwrap().0.push_back(Frame { header, message: Message::State(State::default()) });
    let error = robot.observe(&mut Observed::default()).unwrap_err();
    assert!(matches!(error, RobotError::Dimensions { ours: (3, 2), theirs: (0, 0) }), "{error}");
}
