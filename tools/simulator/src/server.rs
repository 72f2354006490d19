//! One simulated robot on one link: receives frames, keeps the time, sends answers. Runs on one thread.
//!
//! In lockstep a COMMAND makes the time of one control period pass. In real time periods begin at absolute
//! deadlines; whole periods that were missed are skipped and counted, so the phase stays.

use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use firmware_bridge::{Frame, Header, IMAGE_HEADER, MAX_WIRE, Message, Reply, StreamDecoder, Totals};
use rustix::time::{ClockId, clock_gettime};

use crate::board::{Board, Timing, board};
use crate::camera::{Camera, CameraFaults, Images};
use crate::endpoint::{Endpoint, Peer};
use crate::faults::{Badness, Injected, Injector};
use crate::options::{Args, ClockMode};
use crate::task;

/// Longest wait before the stop flag is looked at again.
const LONGEST_WAIT_US: u64 = 500_000;
/// Most frames taken in real time before the deadline is looked at again.
const FRAMES_PER_WAKE: usize = 16;

/// What a server has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Counts of the robot.
    pub totals: Totals,
    /// Faults that were injected on purpose.
    pub injected: Injected,
    /// Control periods that were missed in real time.
    pub late_ticks: u64,
    /// Frames that the link did not take.
    pub unsent: u64,
    /// The camera's images, and faults that were injected into them.
    pub camera: (Images, Injected),
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (t, (images, spoilt)) = (&self.totals, &self.camera);
        write!(
            f,
            "{} steps in {} episodes; {} commands taken, {} refused",
            t.steps, t.episodes, t.commands, t.rejected
        )?;
        for (count, what) in [
            (t.repeated, "frames came again or too late"),
            (t.invalid, "invalid frames"),
            (t.holds, "times held by the watchdog"),
            (t.faults, "times in fault by the watchdog"),
            (self.late_ticks, "control periods missed"),
            (self.unsent, "frames not sent"),
            (self.injected.dropped, "frames dropped on purpose"),
            (self.injected.corrupted, "frames damaged on purpose"),
            (self.injected.delayed, "frames delayed on purpose"),
            (images.sent, "images sent"),
            (images.unsent, "images left out for a slow viewer"),
            (spoilt.dropped, "images dropped on purpose"),
            (spoilt.corrupted, "images damaged on purpose"),
            (spoilt.delayed, "images delayed on purpose"),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// A simulated robot that listens on a link.
pub struct Server {
    endpoint: Endpoint,
    board: Board,
    camera: Option<Camera>,
    clock: ClockMode,
    period_us: u64,
    idle_exit_us: Option<u64>,
    quiet: bool,
    incoming: Injector,
    outgoing: Injector,
    decoder: StreamDecoder,
    /// Sender and session of the last HELLO.
    host: Option<Peer>,
    session: Option<u32>,
    /// Time of a lockstep robot.
    simulated_us: u64,
    heard_us: u64,
    seq: u16,
    last_state: heapless::Vec<u8, MAX_WIRE>,
    late_ticks: u64,
    unsent: u64,
}

impl Server {
    /// Builds the robot and opens the link.
    ///
    /// # Errors
    /// When the task cannot be loaded, the link cannot be opened or the options contradict each other.
    pub fn bind(args: &Args) -> anyhow::Result<Self> {
        ensure!(
            args.fault_ms > u32::from(args.watchdog_ms),
            "--fault-ms {} has to be longer than --watchdog-ms {}: the drive holds first and faults later",
            args.fault_ms,
            args.watchdog_ms
        );
        let mut task = task::make(&args.task, &args.native)?;
        if !args.script.is_empty() {
            task.follow_script(&args.script)?;
        }
        let badness = Badness {
            drop: args.drop,
            corrupt: args.corrupt,
            delay: args.delay,
            delay_us: u64::from(args.delay_ms) * 1000,
            reach: usize::MAX,
        };
        let camera = match &args.camera {
            Some(path) => Some(Camera::bind(path, task.open_camera(&args.native)?, camera_faults(args, badness))?),
            None => None,
        };
        let period_us = (1e6 / args.rate_hz.unwrap_or(task.control_hz())).round() as u32;
        let timing = Timing { period_us, watchdog_ms: args.watchdog_ms, fault_ms: args.fault_ms };
        Ok(Self {
            endpoint: Endpoint::bind(&args.listen)?,
            board: board(task, timing, boot_id()),
            camera,
            clock: args.clock,
            period_us: u64::from(period_us),
            idle_exit_us: (args.idle_exit_s > 0.0).then_some((args.idle_exit_s * 1e6) as u64),
            quiet: args.quiet,
            incoming: Injector::new(badness, args.fault_seed, 0),
            outgoing: Injector::new(badness, args.fault_seed, 1),
            decoder: StreamDecoder::new(),
            host: None,
            session: None,
            simulated_us: 0,
            heard_us: 0,
            seq: 0,
            last_state: heapless::Vec::new(),
            late_ticks: 0,
            unsent: 0,
        })
    }

    /// The address that a host connects to: `unix:PATH`, `udp:HOST:PORT` or `serial:PATH`.
    pub fn address(&self) -> String {
        self.endpoint.to_string()
    }

    /// Serves until `stop` is set or no frame came for too long.
    ///
    /// # Errors
    /// When the link breaks.
    pub fn run(&mut self, stop: &AtomicBool) -> anyhow::Result<Summary> {
        self.heard_us = monotonic_us();
        let mut next_tick_us = self.heard_us + self.period_us;
        while !stop.load(Ordering::Relaxed) {
            let now_us = monotonic_us();
            if self.idle_exit_us.is_some_and(|limit| now_us.saturating_sub(self.heard_us) >= limit) {
                break;
            }
            if self.clock == ClockMode::Realtime && now_us >= next_tick_us {
                let missed = (now_us - next_tick_us) / self.period_us;
                self.late_ticks += missed;
                next_tick_us += (1 + missed) * self.period_us;
                self.board.period(now_us);
                self.send_state();
            }
            self.release_delayed(now_us);
            let wake_us = self.wake_us(next_tick_us);
            let door = self.camera.as_ref().and_then(Camera::door);
            self.endpoint.wait(door, Duration::from_micros(wake_us.saturating_sub(monotonic_us())))?;
            if let Some(camera) = &mut self.camera {
                camera.greet(&*self.board.plant().0);
            }
            self.receive().context("the link is broken")?;
        }
        Ok(self.summary())
    }

    fn summary(&self) -> Summary {
        let (a, b) = (self.incoming.injected(), self.outgoing.injected());
        Summary {
            totals: self.board.totals(),
            injected: Injected {
                dropped: a.dropped + b.dropped,
                corrupted: a.corrupted + b.corrupted,
                delayed: a.delayed + b.delayed,
            },
            late_ticks: self.late_ticks,
            unsent: self.unsent,
            camera: self.camera.as_ref().map(Camera::counts).unwrap_or_default(),
        }
    }

    /// When something is due at the latest.
    fn wake_us(&self, next_tick_us: u64) -> u64 {
        let tick = (self.clock == ClockMode::Realtime).then_some(next_tick_us);
        let idle = self.idle_exit_us.map(|limit| self.heard_us + limit);
        let image = self.camera.as_ref().and_then(Camera::due_us);
        [tick, idle, self.incoming.due_us(), self.outgoing.due_us(), image]
            .into_iter()
            .flatten()
            .fold(monotonic_us() + LONGEST_WAIT_US, u64::min)
    }

    /// Takes what has come. In lockstep a host sends one frame at a time; in real time several may wait, and a tick
    /// that takes long must not keep an emergency stop out.
    fn receive(&mut self) -> std::io::Result<()> {
        let most = if self.clock == ClockMode::Lockstep { 1 } else { FRAMES_PER_WAKE };
        let mut buffer = [0; 2 * MAX_WIRE];
        for _ in 0..most {
            let Some((len, peer)) = self.endpoint.receive(&mut buffer)? else {
                break;
            };
            let bytes = &mut buffer[..len];
            if self.incoming.pass(bytes, &peer, monotonic_us()) {
                self.decode(bytes, &peer);
            }
        }
        Ok(())
    }

    fn release_delayed(&mut self, now_us: u64) {
        while let Some((bytes, peer)) = self.incoming.release(now_us) {
            self.decode(&bytes, &peer);
        }
        while let Some((bytes, peer)) = self.outgoing.release(now_us) {
            self.unsent += u64::from(!self.endpoint.send(&bytes, &peer));
        }
        if let Some(camera) = &mut self.camera {
            camera.release(now_us);
        }
    }

    fn decode(&mut self, bytes: &[u8], peer: &Peer) {
        if !self.endpoint.is_stream() {
            return self.take(Frame::decode(bytes).ok(), peer);
        }
        for byte in bytes {
            if let Some(frame) = self.decoder.push(*byte) {
                self.take(frame.ok(), peer);
            }
        }
    }

    fn take(&mut self, frame: Option<Frame>, peer: &Peer) {
        let Some(mut frame) = frame else {
            return self.board.take_invalid();
        };
        self.heard_us = monotonic_us();
        if let Message::Hello(hello) = &frame.message {
            self.greet(hello.session, hello.schema_hash, peer);
        }
        // A stranger may say who he is, or stop the robot.
        let stranger = self.host.as_ref() != Some(peer);
        if stranger && frame.message != Message::Estop {
            return;
        }
        if let (Message::Command(command), Some(wanted)) = (&mut frame.message, self.board.plant().0.wanted())
            && command.action.len() == wanted.len()
        {
            command.action.copy_from_slice(wanted);
        }
        let now_us = self.now_us();
        let reply = self.board.take(&frame, now_us);
        self.answer(reply, &frame.header, now_us);
    }

    fn greet(&mut self, session: u32, schema_hash: u64, peer: &Peer) {
        self.host = Some(peer.clone());
        if self.session.replace(session) == Some(session) {
            return;
        }
        self.say(format_args!("a host has connected with session {session:08x}"));
        if schema_hash != self.board.schema_hash() {
            self.say(format_args!(
                "the host expects other observation or action names than this robot has; compare robot.spaces in its configuration"
            ));
        }
    }

    fn answer(&mut self, reply: Reply, header: &Header, now_us: u64) {
        let lockstep = self.clock == ClockMode::Lockstep;
        match reply {
            Reply::HelloAck => self.send(Message::HelloAck(self.board.hello_ack()), header.seq, now_us),
            Reply::Time { t1_us } => {
                let (t2_us, t3_us) = (now_us, self.now_us());
                self.send(Message::TimeReply { t1_us, t2_us, t3_us }, header.seq, t3_us);
            }
            // Every STATE has a time of its own, by which its image is known.
            Reply::Step | Reply::State if lockstep => {
                if reply == Reply::Step {
                    self.board.period(now_us);
                }
                self.simulated_us += self.period_us;
                self.send_state();
            }
            Reply::LastState => {
                let mut bytes = self.last_state.clone();
                self.put(&mut bytes);
            }
            Reply::Step | Reply::State | Reply::Silence => {}
        }
    }

    /// The present STATE, and its image.
    fn send_state(&mut self) {
        let now_us = self.now_us();
        if self.host.is_some() {
            self.send(Message::State(self.board.state()), self.board.ack(), now_us);
        }
        if let Some(camera) = &mut self.camera {
            camera.shoot(&*self.board.plant().0, now_us, monotonic_us());
        }
    }

    fn send(&mut self, message: Message, ack: u16, now_us: u64) {
        let is_state = matches!(message, Message::State(_));
        let header = Header { flags: 0, seq: self.seq, ack, t_us: now_us as u32 };
        self.seq = self.seq.wrapping_add(1);
        let frame = Frame { header, message };
        let mut bytes = heapless::Vec::<u8, MAX_WIRE>::from_array([0; MAX_WIRE]);
        let encoded =
            if self.endpoint.is_stream() { frame.encode_stream(&mut bytes) } else { frame.encode(&mut bytes) };
        // The names of every task fit into a frame (tested), so this does not fail.
        let Ok(len) = encoded else { return };
        bytes.truncate(len);
        if is_state {
            self.last_state.clone_from(&bytes);
        }
        self.put(&mut bytes);
    }

    fn put(&mut self, bytes: &mut [u8]) {
        let Some(host) = &self.host else { return };
        if self.outgoing.pass(bytes, host, monotonic_us()) {
            self.unsent += u64::from(!self.endpoint.send(bytes, host));
        }
    }

    /// The robot's clock.
    fn now_us(&self) -> u64 {
        match self.clock {
            ClockMode::Lockstep => self.simulated_us,
            ClockMode::Realtime => monotonic_us(),
        }
    }

    fn say(&self, text: fmt::Arguments<'_>) {
        if !self.quiet {
            // A closed stderr must not stop the robot.
            let _ = writeln!(std::io::stderr(), "simulator: {text}");
        }
    }
}

fn camera_faults(args: &Args, link: Badness) -> CameraFaults {
    CameraFaults {
        badness: Badness {
            drop: args.camera_drop,
            corrupt: args.camera_corrupt,
            delay: args.camera_delay,
            // Damage to the pixels is no fault that a viewer could see.
            reach: IMAGE_HEADER,
            ..link
        },
        seed: args.fault_seed,
        frozen: args.camera_frozen.clone().unwrap_or_default(),
        gone: args.camera_gone.clone().unwrap_or_default(),
    }
}

fn monotonic_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Differs between any two starts that a host could mix up.
fn boot_id() -> u32 {
    let time = clock_gettime(ClockId::Realtime);
    (time.tv_sec as u32).rotate_left(20) ^ (time.tv_nsec as u32) ^ std::process::id().rotate_left(8)
}
