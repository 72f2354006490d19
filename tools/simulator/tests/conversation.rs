//! A host talks to a simulated robot over real links: every answer equals the task stepped directly, whatever the
//! link does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use clap::Parser;
use firmware_bridge::{
    Command, DriveState, Faults, Frame, Header, Hello, HelloAck, MAX_WIRE, Message, State, StreamDecoder, TaskFlags,
};
use simulator::{Args, Server, Summary, make};

const SESSION: u32 = 77;
const RESEND_AFTER: Duration = Duration::from_millis(15);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// A robot on its own thread.
struct Robot {
    address: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Summary>,
}

impl Robot {
    fn start(listen: &str, options: &str) -> Self {
        let line = format!("simulator --quiet --listen {listen} {options}");
        let args = Cli::try_parse_from(line.split_whitespace()).unwrap().args;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, wait) = sync_channel(1);
        let flag = Arc::clone(&stop);
        let thread = Builder::new()
            .name("robot".into())
            .spawn(move || {
                let mut server = Server::bind(&args).unwrap();
                ready.send(server.address()).unwrap();
                server.run(&flag).unwrap()
            })
            .unwrap();
        Self { address: wait.recv().unwrap(), stop, thread }
    }

    fn stop(self) -> Summary {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn socket_path(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("simulator-{}-{number}-{name}", std::process::id()))
}

fn unix() -> String {
    format!("unix:{}", socket_path("robot").display())
}

enum Line {
    Unix(UnixDatagram, PathBuf),
    Udp(UdpSocket),
    Serial(File, Box<StreamDecoder>),
}

/// A host that repeats a frame until its answer comes.
struct Host {
    line: Line,
    seq: u16,
    inbox: VecDeque<Frame>,
    resent: u32,
    damaged: u32,
}

impl Host {
    fn connect(address: &str) -> Self {
        let (kind, rest) = address.split_once(':').unwrap();
        let line = match kind {
            "unix" => {
                let path = socket_path("host");
                let socket = UnixDatagram::bind(&path).unwrap();
                socket.connect(rest).unwrap();
                socket.set_read_timeout(Some(RESEND_AFTER)).unwrap();
                Line::Unix(socket, path)
            }
            "udp" => {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(rest).unwrap();
                socket.set_read_timeout(Some(RESEND_AFTER)).unwrap();
                Line::Udp(socket)
            }
            "serial" => {
                let file = File::options().read(true).write(true).open(rest).unwrap();
                let mut settings = rustix::termios::tcgetattr(&file).unwrap();
                settings.special_codes[rustix::termios::SpecialCodeIndex::VMIN] = 0;
                settings.special_codes[rustix::termios::SpecialCodeIndex::VTIME] = 1; // a tenth of a second
                rustix::termios::tcsetattr(&file, rustix::termios::OptionalActions::Now, &settings).unwrap();
                Line::Serial(file, Box::default())
            }
            _ => panic!("{address}"),
        };
        Self { line, seq: 0, inbox: VecDeque::new(), resent: 0, damaged: 0 }
    }

    fn send(&mut self, seq: u16, message: &Message) {
        let frame = Frame { header: Header { seq, ..Header::default() }, message: message.clone() };
        let mut bytes = [0; MAX_WIRE];
        let len = match &self.line {
            Line::Serial(..) => frame.encode_stream(&mut bytes),
            _ => frame.encode(&mut bytes),
        };
        let bytes = &bytes[..len.unwrap()];
        match &mut self.line {
            Line::Unix(socket, _) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            Line::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            Line::Serial(file, _) => file.write_all(bytes).unwrap(),
        }
    }

    /// The next valid frame, or `None` after a while.
    fn receive(&mut self) -> Option<Frame> {
        let mut bytes = [0; 1024];
        while self.inbox.is_empty() {
            let received = match &mut self.line {
                Line::Unix(socket, _) => socket.recv(&mut bytes),
                Line::Udp(socket) => socket.recv(&mut bytes),
                Line::Serial(file, _) => file.read(&mut bytes),
            };
            let bytes = match received {
                Ok(0) => return None,
                Ok(n) => &bytes[..n],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return None;
                }
                Err(error) => panic!("{error}"),
            };
            let frames: Vec<_> = match &mut self.line {
                Line::Serial(_, decoder) => bytes.iter().filter_map(|byte| decoder.push(*byte)).collect(),
                _ => vec![Frame::decode(bytes)],
            };
            for frame in frames {
                match frame {
                    Ok(frame) => self.inbox.push_back(frame),
                    Err(_) => self.damaged += 1,
                }
            }
        }
        self.inbox.pop_front()
    }

    /// Sends `message` until `answer` likes a frame that acknowledges it.
    fn ask<T>(&mut self, message: &Message, answer: impl Fn(Frame) -> Option<T>) -> T {
        self.seq = self.seq.wrapping_add(1);
        for attempt in 0..400 {
            self.resent += u32::from(attempt > 0);
            self.send(self.seq, message);
            while let Some(frame) = self.receive() {
                if frame.header.ack == self.seq
                    && let Some(answer) = answer(frame)
                {
                    return answer;
                }
            }
        }
        panic!("no answer to {message:?}");
    }

    fn tell(&mut self, message: &Message) {
        self.seq = self.seq.wrapping_add(1);
        self.send(self.seq, message);
    }

    fn hello(&mut self) -> HelloAck {
        let hello = Message::Hello(Hello { schema_hash: 1, session: SESSION });
        self.ask(&hello, |frame| match frame.message {
            Message::HelloAck(ack) => Some(ack),
            _ => None,
        })
    }

    fn arm(&mut self) {
        self.hello();
        for _ in 0..100 {
            self.tell(&Message::Arm { session: SESSION });
            if self.hello().drive == DriveState::Armed {
                return;
            }
        }
        panic!("the robot does not arm");
    }

    fn state(&mut self, message: &Message) -> State {
        self.ask(message, |frame| match frame.message {
            Message::State(state) => Some(state),
            _ => None,
        })
    }

    fn next_state(&mut self) -> Option<State> {
        loop {
            if let Message::State(state) = self.receive()?.message {
                return Some(state);
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Line::Unix(_, path) = &self.line {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn command(torque: f32) -> Message {
    Message::Command(Command { session: SESSION, valid_ms: 255, action: [torque].into_iter().collect() })
}

fn torque(step: u32) -> f32 {
    (step as f32 * 0.37).sin()
}

/// Plays `steps` of an episode and compares every state with the pendulum stepped here.
fn play(host: &mut Host, steps: u32) {
    let mut pendulum = make("pendulum", Path::new("")).unwrap();
    let mut observation = [0.0; 3];
    pendulum.reset(42);
    let state = host.state(&Message::Reset { episode: 6, seed: 42 });
    pendulum.observation(&mut observation);
    assert_eq!((state.tick, state.episode, state.reward), (0, 6, 0.0));
    assert_eq!(state.observation[..], observation.map(|x| x as f32));
    for step in 1..=steps {
        let state = host.state(&command(torque(step)));
        let outcome = pendulum.step(&[torque(step)]);
        pendulum.observation(&mut observation);
        assert_eq!((state.tick, state.episode, state.drive), (step, 6, DriveState::Run));
        assert_eq!(state.observation[..], observation.map(|x| x as f32), "step {step}");
        assert_eq!((state.reward, state.applied[0]), (outcome.reward as f32, torque(step)), "step {step}");
        assert_eq!(state.task, TaskFlags::REWARD_VALID);
    }
}

#[test]
fn a_lockstep_episode_equals_the_task() {
    let robot = Robot::start(&unix(), "");
    let mut host = Host::connect(&robot.address);
    let ack = host.hello();
    assert_eq!((ack.n_observation, ack.n_action, ack.control_period_us), (3, 1, 50_000));
    host.arm();
    play(&mut host, 300);
    drop(host);
    let summary = robot.stop();
    assert_eq!((summary.totals.steps, summary.totals.commands, summary.totals.episodes), (300, 300, 1));
    assert_eq!((summary.totals.invalid, summary.totals.rejected, summary.totals.holds), (0, 0, 0));
}

#[test]
fn every_link_carries_the_same_episode() {
    for listen in ["udp:127.0.0.1:0", "pty"] {
        let robot = Robot::start(listen, "");
        let mut host = Host::connect(&robot.address);
        host.arm();
        play(&mut host, 100);
        drop(host);
        assert_eq!(robot.stop().totals.steps, 100, "{listen}");
    }
}

#[test]
fn one_percent_damage_lets_no_bad_frame_through() {
    let robot = Robot::start(&unix(), "--corrupt 0.01 --fault-seed 5");
    let mut host = Host::connect(&robot.address);
    host.arm();
    play(&mut host, 2000);
    assert!(host.damaged > 0 && host.resent > 0);
    drop(host);
    let summary = robot.stop();
    assert_eq!((summary.totals.steps, summary.totals.commands), (2000, 2000));
    assert!(summary.totals.invalid > 0, "{summary}");
    assert!(summary.injected.corrupted >= 20, "{summary}");
}

#[test]
fn lost_damaged_and_late_frames_do_not_change_an_episode() {
    for (listen, steps) in [(unix(), 300), ("pty".into(), 60)] {
        let faults = "--drop 0.03 --corrupt 0.03 --delay 0.03 --delay-ms 30 --fault-seed 8";
        let robot = Robot::start(&listen, faults);
        let mut host = Host::connect(&robot.address);
        host.arm();
        play(&mut host, steps);
        drop(host);
        let summary = robot.stop();
        assert_eq!((summary.totals.steps, summary.totals.episodes), (u64::from(steps), 1), "{listen}");
        assert!(summary.totals.repeated > 0, "{summary}");
        assert!(summary.injected.dropped > 0 && summary.injected.delayed > 0, "{summary}");
    }
}

#[test]
fn a_repeated_command_is_answered_with_the_same_bytes() {
    let robot = Robot::start(&unix(), "");
    let mut host = Host::connect(&robot.address);
    host.arm();
    host.state(&Message::Reset { episode: 0, seed: 1 });
    host.seq += 1;
    host.send(host.seq, &command(1.0));
    let first = host.receive().unwrap();
    host.send(host.seq, &command(1.0));
    assert_eq!(host.receive().unwrap(), first);
    let state = host.state(&command(1.0));
    assert_eq!(state.tick, 2);
    drop(host);
    let summary = robot.stop();
    assert_eq!((summary.totals.steps, summary.totals.repeated), (2, 1));
}

#[test]
fn a_refused_command_is_answered_and_moves_nothing() {
    let robot = Robot::start(&unix(), "");
    let mut host = Host::connect(&robot.address);
    host.arm();
    host.state(&Message::Reset { episode: 0, seed: 1 });
    host.tell(&command(f32::NAN));
    let state = host.next_state().unwrap();
    assert_eq!((state.tick, state.counters.rejected_commands), (0, 1));
    drop(host);
    assert_eq!(robot.stop().totals.steps, 0);
}

#[test]
fn fifty_ticks_in_real_time() {
    let robot = Robot::start(&unix(), "--clock realtime --rate-hz 100 --watchdog-ms 5000 --fault-ms 9000");
    let mut host = Host::connect(&robot.address);
    assert_eq!(host.hello().control_period_us, 10_000);
    host.arm();
    host.tell(&Message::Reset { episode: 2, seed: 3 });
    // It stands until the first command, and says so every period.
    let mut standing = 0;
    while standing < 3 {
        let Some(state) = host.next_state() else {
            continue;
        };
        assert_eq!(state.tick, 0);
        standing += u32::from(state.episode == 2);
    }
    host.tell(&command(0.5));
    let mut ticks = Vec::new();
    while ticks.len() < 50 {
        let Some(state) = host.next_state() else {
            continue;
        };
        if state.tick > 0 {
            assert_eq!((state.drive, state.applied[0]), (DriveState::Run, 0.5));
            ticks.push(state.tick);
            host.tell(&command(0.5));
        }
    }
    assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
    drop(host);
    let summary = robot.stop();
    // Only a full socket, never the robot, leaves a tick out.
    assert!(u64::from(ticks[49]) <= 50 + summary.unsent, "{ticks:?} {summary}");
    assert!(summary.totals.steps >= 50 && summary.totals.holds == 0, "{summary}");
}

#[test]
fn a_silent_host_is_held_and_then_faulted() {
    let robot = Robot::start(&unix(), "--clock realtime --rate-hz 200 --watchdog-ms 100 --fault-ms 1500");
    let mut host = Host::connect(&robot.address);
    host.arm();
    host.tell(&Message::Reset { episode: 2, seed: 3 });
    host.tell(&command(0.5));
    let mut seen = vec![];
    while seen.last() != Some(&DriveState::Fault) {
        let Some(state) = host.next_state() else {
            continue;
        };
        if state.tick > 0 && seen.last() != Some(&state.drive) {
            seen.push(state.drive);
            assert_eq!(state.applied[0] != 0.0, state.drive == DriveState::Run);
            assert_eq!(state.faults.contains(Faults::WATCHDOG), state.drive == DriveState::Fault);
        }
    }
    assert!(seen.ends_with(&[DriveState::Hold, DriveState::Fault]), "{seen:?}");
    drop(host);
    let summary = robot.stop();
    assert_eq!((summary.totals.holds, summary.totals.faults), (1, 1));
}

#[test]
fn a_stranger_can_only_stop_the_robot() {
    let robot = Robot::start(&unix(), "");
    let mut host = Host::connect(&robot.address);
    let mut stranger = Host::connect(&robot.address);
    host.arm();
    host.state(&Message::Reset { episode: 0, seed: 1 });
    host.state(&command(0.5));
    stranger.seq = host.seq;
    stranger.tell(&command(-1.0));
    stranger.tell(&Message::Disarm);
    assert!(stranger.receive().is_none());
    assert_eq!(host.state(&command(0.5)).tick, 2);
    stranger.tell(&Message::Estop);
    assert!(stranger.receive().is_none());
    assert_eq!(host.hello().drive, DriveState::Fault);
    drop((host, stranger));
    robot.stop();
}

#[test]
fn a_robot_without_a_host_goes_home() {
    let robot = Robot::start(&unix(), "--idle-exit-s 0.05");
    assert_eq!(robot.thread.join().unwrap(), Summary::default());
    let path = robot.address.split_once(':').unwrap().1;
    assert!(!Path::new(path).exists(), "the socket is removed");
}
