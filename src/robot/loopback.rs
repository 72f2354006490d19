//! A microcontroller in memory: the firmware's drive in front of axes that follow it exactly, in lockstep.
//!
//! For tests, examples and measurements that want a whole robot without a process or a socket. [`LoopbackLink`]
//! answers a frame before `send` returns and allocates nothing; frames pass through the byte format both ways.
//! [`ModelRobot`] alone is frames in, frames out, for any other link.

use std::time::Duration;

use firmware_bridge::{
    Drive, DriveConfig, DriveState, Frame, Header, HelloAck, MAX_ACTION, MAX_FRAME, MAX_OBSERVATION, Message, State,
    TaskFlags, is_newer,
};
use heapless::Deque;

use super::link::{Intake, Link, LinkCounters, LinkError};
use crate::spaces::Spaces;

/// Distance from the origin at which an episode ends.
pub const END_STOP: f32 = 1.0;
/// Answers that wait to be received; the oldest gives way.
const ANSWERS: usize = 8;

/// A model robot: every action entry is the velocity of one axis, the observation is the positions of the axes, again
/// and again up to its length.
///
/// Reward: minus the sum of the squared positions. The task ends when an axis reaches [`END_STOP`]. Time moves by
/// one control period per command.
#[derive(Clone, Debug)]
pub struct ModelRobot {
    schema_hash: u64,
    period: Duration,
    watchdog: Duration,
    n_observation: usize,
    n_action: usize,
    drive: Drive,
    session: Option<u32>,
    now_us: u64,
    seq: u16,
    position: [f32; MAX_ACTION],
    state: State,
    /// Number of the last COMMAND or RESET taken.
    ack: Option<u16>,
}

impl ModelRobot {
    /// A model that fits `spaces`; its watchdog holds after `watchdog` and faults after five times that.
    pub fn new(spaces: &Spaces, period: Duration, watchdog: Duration) -> Self {
        let config = DriveConfig {
            n_action: spaces.action_dim(),
            action_limit: 1.0,
            watchdog_us: watchdog.as_micros() as u64,
            fault_us: 5 * watchdog.as_micros() as u64,
        };
        Self {
            schema_hash: spaces.schema_hash(),
            period,
            watchdog,
            n_observation: spaces.observation_dim().min(MAX_OBSERVATION),
            n_action: spaces.action_dim().min(MAX_ACTION),
            drive: Drive::new(config),
            session: None,
            now_us: 0,
            seq: 0,
            position: [0.0; MAX_ACTION],
            state: State::default(),
            ack: None,
        }
    }

    /// State of the drive.
    pub fn drive(&self) -> DriveState {
        self.drive.state()
    }

    /// Lets simulated time pass without a command.
    pub fn wait(&mut self, time: Duration) {
        self.now_us += time.as_micros() as u64;
        self.drive.poll(self.now_us);
    }

    /// Takes one frame and returns the answer, if there is one.
    pub fn handle(&mut self, frame: &Frame) -> Option<Frame> {
        let seq = frame.header.seq;
        let message = match &frame.message {
            Message::Hello(_) => Message::HelloAck(self.hello_ack()),
            Message::Arm { session } => {
                if self.drive.on_arm(*session, self.now_us).is_ok() && self.session.replace(*session) != Some(*session)
                {
                    self.ack = None;
                }
                return None;
            }
            Message::Reset { episode, seed } => {
                if self.ack.is_none_or(|last| is_newer(seq, last)) {
                    self.reset(*episode, *seed);
                    self.ack = Some(seq);
                }
                Message::State(self.report())
            }
            Message::Command(command) => {
                if self.drive.on_command(command, seq, self.now_us).is_ok() {
                    self.ack = Some(seq);
                    if !self.state.task.contains(TaskFlags::TERMINATED) {
                        self.step();
                    }
                }
                Message::State(self.report())
            }
            Message::Estop => return self.quietly(Drive::on_estop),
            Message::FaultReset => return self.quietly(Drive::on_fault_reset),
            Message::Disarm => return self.quietly(Drive::on_disarm),
            _ => return None,
        };
        self.seq = self.seq.wrapping_add(1);
        let header = Header { flags: 0, seq: self.seq, ack: self.ack.unwrap_or_default(), t_us: self.now_us as u32 };
        Some(Frame { header, message })
    }

    fn quietly(&mut self, change: fn(&mut Drive)) -> Option<Frame> {
        change(&mut self.drive);
        None
    }

    fn hello_ack(&self) -> HelloAck {
        HelloAck {
            schema_hash: self.schema_hash,
            firmware: 1,
            boot_id: 1,
            control_period_us: self.period.as_micros() as u32,
            watchdog_ms: self.watchdog.as_millis() as u16,
            n_observation: self.n_observation as u8,
            n_action: self.n_action as u8,
            drive: self.drive.state(),
        }
    }

    fn reset(&mut self, episode: u32, seed: u64) {
        self.drive.on_reset(self.now_us);
        for (axis, position) in self.position.iter_mut().enumerate() {
            // Any spread over [-0.5, 0.5) that differs with seed and axis: Knuth's multiplicative hash.
            let hash = (seed.wrapping_add(axis as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *position = (hash >> 40) as f32 / (1_u32 << 24) as f32 - 0.5;
        }
        self.state = State { episode, task: TaskFlags::REWARD_VALID, ..State::default() };
        let _ = self.state.applied.resize(self.n_action, 0.0);
    }

    fn step(&mut self) {
        let dt = self.period.as_secs_f32();
        self.state.applied.clear();
        let _ = self.state.applied.extend_from_slice(self.drive.output());
        for (position, velocity) in self.position.iter_mut().zip(&self.state.applied) {
            *position = (*position + velocity * dt).clamp(-END_STOP, END_STOP);
        }
        let axes = &self.position[..self.n_action];
        self.state.tick += 1;
        self.state.reward = -axes.iter().map(|position| position * position).sum::<f32>();
        if axes.iter().any(|position| position.abs() >= END_STOP) {
            self.state.task.insert(TaskFlags::TERMINATED);
        }
        self.wait(self.period);
    }

    fn report(&mut self) -> State {
        self.state.drive = self.drive.state();
        self.state.faults = self.drive.faults();
        self.state.counters = self.drive.counters();
        self.state.observation =
            self.position[..self.n_action].iter().copied().cycle().take(self.n_observation).collect();
        self.state.clone()
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
