//! A microcontroller in memory: the firmware's board in front of axes that follow it exactly, in lockstep.
//!
//! For tests, examples and measurements that want a whole robot without a process or a socket. [`LoopbackLink`]
//! answers a frame before `send` returns and allocates nothing; frames pass through the byte format both ways.
//! [`ModelRobot`] alone is frames in, frames out, for any other link.

use std::time::Duration;

use firmware_bridge::{
    Board, BoardConfig, DriveState, Frame, Header, Limits, MAX_ACTION, MAX_FRAME, MAX_OBSERVATION, Message, Outcome,
    Plant, Reply,
};
use heapless::Deque;

use super::link::{Intake, Link, LinkCounters, LinkError};
use crate::spaces::Spaces;

/// Distance from the origin at which an episode ends.
pub const END_STOP: f32 = 1.0;
/// Answers that wait to be received; the oldest gives way.
const ANSWERS: usize = 8;

/// Axes that follow exactly: every action entry is the velocity of one, the observation is their positions, again and
/// again up to its length.
#[derive(Clone, Debug)]
struct Axes {
    position: [f32; MAX_ACTION],
    count: usize,
    period: Duration,
}

impl Plant for Axes {
    fn reset(&mut self, seed: u64) {
        for (axis, position) in self.position.iter_mut().enumerate() {
            // Any spread over [-0.5, 0.5) that differs with seed and axis: Knuth's multiplicative hash.
            let hash = (seed.wrapping_add(axis as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *position = (hash >> 40) as f32 / (1_u32 << 24) as f32 - 0.5;
        }
    }

    fn step(&mut self, action: &[f32]) -> Outcome {
        let dt = self.period.as_secs_f32();
        for (position, velocity) in self.position.iter_mut().zip(action) {
            *position = (*position + velocity * dt).clamp(-END_STOP, END_STOP);
        }
        let axes = &self.position[..self.count];
        Outcome {
            reward: -axes.iter().map(|position| position * position).sum::<f32>(),
            terminated: axes.iter().any(|position| position.abs() >= END_STOP),
        }
    }

    fn observe(&self, out: &mut [f32]) {
        for (out, position) in out.iter_mut().zip(self.position[..self.count].iter().cycle()) {
            *out = *position;
        }
    }
}

/// A model robot: every action entry is the velocity of one axis, the observation is the positions of the axes, again
/// and again up to its length.
///
/// Reward: minus the sum of the squared positions. The task ends when an axis reaches [`END_STOP`]. Time moves by
/// one control period per command.
#[derive(Clone, Debug)]
pub struct ModelRobot {
    board: Board<Axes>,
    period: Duration,
    now_us: u64,
    seq: u16,
}

impl ModelRobot {
    /// A model that fits `spaces`; its watchdog holds after `watchdog` and faults after five times that.
    pub fn new(spaces: &Spaces, period: Duration, watchdog: Duration) -> Self {
        let n_action = spaces.action_dim().min(MAX_ACTION);
        let config = BoardConfig {
            schema_hash: spaces.schema_hash(),
            n_observation: spaces.observation_dim().min(MAX_OBSERVATION),
            n_action,
            limits: Limits { magnitude: 1.0, slew: 2.0 },
            firmware: 1,
            boot_id: 1,
            period_us: period.as_micros() as u32,
            watchdog_ms: watchdog.as_millis() as u16,
            fault_ms: 5 * watchdog.as_millis() as u32,
        };
        let axes = Axes { position: [0.0; MAX_ACTION], count: n_action, period };
        Self { board: Board::new(axes, config), period, now_us: 0, seq: 0 }
    }

    /// State of the drive.
    pub fn drive(&self) -> DriveState {
        self.board.drive()
    }

    /// Lets simulated time pass without a command.
    pub fn wait(&mut self, time: Duration) {
        self.now_us += time.as_micros() as u64;
        self.board.poll(self.now_us);
    }

    /// Takes one frame and returns the answer, if there is one.
    pub fn handle(&mut self, frame: &Frame) -> Option<Frame> {
        let reply = self.board.take(frame, self.now_us);
        if reply == Reply::Step {
            self.board.period(self.now_us);
            self.wait(self.period);
        }
        let (message, ack) = match reply {
            Reply::Silence => return None,
            Reply::HelloAck => (Message::HelloAck(self.board.hello_ack()), frame.header.seq),
            Reply::Time { t1_us } => {
                (Message::TimeReply { t1_us, t2_us: self.now_us, t3_us: self.now_us }, frame.header.seq)
            }
            Reply::Step | Reply::State | Reply::LastState => (Message::State(self.board.state()), self.board.ack()),
        };
        self.seq = self.seq.wrapping_add(1);
        let header = Header { flags: 0, seq: self.seq, ack, t_us: self.now_us as u32 };
        Some(Frame { header, message })
    }
}

/// A link to a [`ModelRobot`] in the same thread.
#[derive(Debug)]
pub struct LoopbackLink {
    pub(super) robot: ModelRobot,
    answers: Deque<Frame, ANSWERS>,
    intake: Intake,
}

impl LoopbackLink {
    /// A link to `robot`.
    pub fn new(robot: ModelRobot) -> Self {
        Self { robot, answers: Deque::new(), intake: Intake::default() }
    }
}

impl Link for LoopbackLink {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let mut bytes = [0; MAX_FRAME];
        let len = frame.encode(&mut bytes)?;
        self.intake.counters.sent += 1;
        let answer = Frame::decode(&bytes[..len]).ok().and_then(|frame| self.robot.handle(&frame));
        if let Some(answer) = answer {
            if self.answers.is_full() {
                self.answers.pop_front();
            }
            let _ = self.answers.push_back(answer);
        }
        Ok(())
    }

    fn receive(&mut self, _wait: Duration) -> Result<Option<Frame>, LinkError> {
        let Some(answer) = self.answers.pop_front() else { return Ok(None) };
        let mut bytes = [0; MAX_FRAME];
        let len = answer.encode(&mut bytes)?;
        Ok(self.intake.judge(Frame::decode(&bytes[..len])))
    }

    fn counters(&self) -> LinkCounters {
        self.intake.counters
    }
}
