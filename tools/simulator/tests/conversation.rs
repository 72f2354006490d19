//! A host talks to a simulated robot over real links: every answer equals the task stepped directly, whatever the
//! link does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use clap::Parser;
use firmware_bridge::{
    Command, DriveState, Faults, Frame, Header, Hello, HelloAck, IMAGE_HEADER, ImageError, ImageHeader, MAX_WIRE,
    Message, State, StreamDecoder, TaskFlags,
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

/// A gantry with its camera at a path, and the first connection to it.
fn gantry(options: &str) -> Option<(Robot, Host, PathBuf)> {
    let native = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.native"));
    let mut task = native.join("libmujoco.so").exists().then(|| make("gantry-pickplace", native).unwrap());
    if let Some(Err(error)) = task.as_mut().map(|task| task.open_camera(native)) {
        println!("skipped: the gantry's camera: {error:#}");
        return None;
    }
    task.or_else(|| {
        println!("skipped: MuJoCo is missing; tools/setup-native fetches it");
        None
    })?;
    let camera = socket_path("camera");
    let options =
        format!("--task gantry-pickplace --native {} --camera unix:{} {options}", native.display(), camera.display());
    let robot = Robot::start(&unix(), &options);
    let mut host = Host::connect(&robot.address);
    host.arm();
    Some((robot, host, camera))
}

fn move_by(action: [f32; 4]) -> Message {
    Message::Command(Command { session: SESSION, valid_ms: 255, action: action.into_iter().collect() })
}

/// The next image: its header, or why it is none, and its pixels.
fn image(viewer: &mut UnixStream) -> Option<(Result<ImageHeader, ImageError>, Vec<u8>)> {
    viewer.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut header, mut pixels) = ([0; IMAGE_HEADER], vec![0; 3 * 48 * 48]);
    viewer.read_exact(&mut header).ok()?;
    viewer.read_exact(&mut pixels).ok()?;
    Some((ImageHeader::decode(&header), pixels))
}

/// One process draws with one camera at a time, so this is one test.
#[test]
fn every_state_of_the_gantry_has_its_image() {
    every_state_has_an_image_with_its_time();
    who_comes_later_sees_the_present();
    images_get_lost_damaged_frozen_and_the_camera_unplugged();
    a_viewer_that_does_not_look_gets_whole_images_and_stops_nobody();
    a_camera_in_real_time();
    a_script_commands_the_gantry();
}

fn every_state_has_an_image_with_its_time() {
    let Some((robot, mut host, path)) = gantry("") else { return };
    let mut viewer = UnixStream::connect(&path).unwrap();
    let mut seen = Vec::new();
    for step in 0..60 {
        // A reset every twenty steps: its state has a time and an image of its own, too.
        let message = match step % 20 {
            0 => Message::Reset { episode: step, seed: step.into() },
            _ => move_by([(step as f32).sin(), 0.5, -0.5, 1.0]),
        };
        let (seq, stamp) = host.ask(&message, |frame| {
            matches!(frame.message, Message::State(_)).then_some((frame.header.seq, frame.header.t_us))
        });
        let (header, pixels) = image(&mut viewer).unwrap();
        let header = header.unwrap();
        assert_eq!((header.width, header.height, header.sequence), (48, 48, step), "{seq}");
        assert_eq!(header.capture_us as u32, stamp, "step {step}");
        seen.push((header.capture_us, pixels));
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 + 100_000 == pair[1].0 && pair[0].1 != pair[1].1));
    drop((viewer, host));
    let summary = robot.stop();
    assert_eq!((summary.camera.0.sent, summary.camera.0.unsent), (60, 0), "{summary}");
    assert!(!path.exists(), "the socket is removed");
}

fn who_comes_later_sees_the_present() {
    let Some((robot, mut host, path)) = gantry("") else { return };
    host.state(&Message::Reset { episode: 1, seed: 1 });
    host.state(&move_by([1.0; 4]));
    for _ in 0..2 {
        let (header, _) = image(&mut UnixStream::connect(&path).unwrap()).unwrap();
        let header = header.unwrap();
        assert_eq!((header.sequence, header.capture_us), (1, 200_000));
    }
    drop(host);
    robot.stop();
}

/// Header and pixels of what lies in the stream. The robot has answered a HELLO before, so it has sent its images.
fn waiting(host: &mut Host, viewer: &mut UnixStream) -> Option<(Result<ImageHeader, ImageError>, Vec<u8>)> {
    host.hello();
    viewer.set_nonblocking(true).unwrap();
    let found = image(viewer);
    viewer.set_nonblocking(false).unwrap();
    found
}

fn images_get_lost_damaged_frozen_and_the_camera_unplugged() {
    let faults = "--camera-drop 0.2 --camera-corrupt 0.2 --camera-frozen 50..60 --camera-gone 80..90 --fault-seed 4";
    let Some((robot, mut host, path)) = gantry(faults) else { return };
    let mut viewer = UnixStream::connect(&path).unwrap();
    let (mut good, mut bad, mut frozen, mut last) = (0, 0, 0, Vec::new());
    host.state(&Message::Reset { episode: 1, seed: 1 });
    for number in 0..120 {
        while let Some((header, pixels)) = waiting(&mut host, &mut viewer) {
            // The greeting of the second connection is looked at one step later.
            good += u64::from(header.is_ok_and(|header| number - header.sequence == u32::from(header.sequence == 90)));
            bad += u64::from(header.is_err());
            frozen += u64::from(pixels == last);
            last = pixels;
        }
        let gone = (80..90).contains(&number);
        assert_eq!(path.exists(), !gone, "image {number}");
        if number == 90 {
            viewer = UnixStream::connect(&path).unwrap();
        }
        host.state(&move_by([(number as f32).sin(), 0.5, -0.5, 1.0]));
    }
    drop(host);
    let summary = robot.stop();
    let (images, spoilt) = summary.camera;
    assert!(good > 50 && bad > 10 && (5..=10).contains(&frozen), "{good} {bad} {frozen} {summary}");
    assert!(spoilt.dropped > 10 && spoilt.corrupted >= bad, "{summary}");
    // The image of the last step is lost or was not looked at.
    assert!(images.unsent == 0 && images.sent - (good + bad) <= 1, "{good} {bad} {summary}");
}

fn a_viewer_that_does_not_look_gets_whole_images_and_stops_nobody() {
    let Some((robot, mut host, path)) = gantry("") else { return };
    let mut viewer = UnixStream::connect(&path).unwrap();
    host.state(&Message::Reset { episode: 1, seed: 1 });
    for _ in 0..200 {
        host.state(&move_by([0.0; 4]));
    }
    let mut numbers = Vec::new();
    while let Some((header, _)) = waiting(&mut host, &mut viewer) {
        numbers.push(header.unwrap().sequence);
    }
    host.state(&move_by([0.0; 4]));
    numbers.extend(waiting(&mut host, &mut viewer).map(|(header, _)| header.unwrap().sequence));
    assert!(numbers.is_sorted() && numbers.last() == Some(&201) && numbers.len() < 150, "{numbers:?}");
    drop(host);
    assert!(robot.stop().camera.0.unsent > 50);
}

fn a_camera_in_real_time() {
    let Some((robot, mut host, path)) = gantry("--clock realtime --rate-hz 50") else { return };
    let mut viewer = UnixStream::connect(&path).unwrap();
    let mut stamps = Vec::new();
    while stamps.len() < 10 {
        let state = host.receive().filter(|frame| matches!(frame.message, Message::State(_)));
        stamps.extend(state.map(|state| state.header.t_us));
    }
    let mut seen = 0;
    while let Some((Ok(header), _)) = waiting(&mut host, &mut viewer) {
        seen += usize::from(stamps.contains(&(header.capture_us as u32)));
    }
    assert!(seen >= 8, "{seen} of {} states have an image", stamps.len());
    drop(host);
    robot.stop();
}

fn a_script_commands_the_gantry() {
    let Some((robot, mut host, _)) = gantry("--script 0.05") else { return };
    let solved = |host: &mut Host, episode: u32| {
        host.state(&Message::Reset { episode, seed: episode.into() });
        (0..40).any(|_| {
            let state = host.state(&move_by([0.0; 4]));
            assert!(state.applied.iter().any(|entry| *entry != 0.0), "what was done is reported");
            state.task.contains(TaskFlags::TERMINATED) && state.reward == 1.0
        })
    };
    assert_eq!((0..5).filter(|episode| solved(&mut host, *episode)).count(), 5);
    // An ESTOP holds for the script as for everybody.
    host.state(&Message::Reset { episode: 9, seed: 9 });
    host.tell(&Message::Estop);
    host.tell(&move_by([0.0; 4]));
    let stopped = host.next_state().unwrap();
    assert_eq!((stopped.drive, &stopped.applied[..]), (DriveState::Fault, &[0.0; 4][..]));
    drop(host);
    robot.stop();
}
