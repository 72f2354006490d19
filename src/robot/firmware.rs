//! The robot behind a microcontroller: the host's half of `docs/firmware-protocol.md`.
//!
//! Keeps sessions and frame numbers, repeats what went unanswered, and sorts the states that come back. It does
//! not limit actions (the microcontroller and `control` do) and does not decide when an episode ends.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use firmware_bridge::{Command, DriveState, Frame, Header, Hello, HelloAck, Message, State, TaskFlags, is_newer};

use super::{ClockEstimate, Exchange, Link, LinkCounters, Observed, Robot, RobotDescription, RobotError, TimeSync};
use crate::clock::{Clock, Stamp, monotonic};
use crate::spaces::Spaces;

/// Silence after which a frame that wants an answer is sent again.
const REPEAT_AFTER: Duration = Duration::from_millis(50);
/// States drained in one real-time call; more can only wait there after a long stall.
const MOST_FRAMES_PER_CALL: u32 = 64;
/// Time between two TIME_REQUEST frames.
const TIME_REQUEST_EVERY: Duration = Duration::from_millis(100);
/// Exchanges in which nothing but the answer is waited for, when the robot is armed.
const FIRST_EXCHANGES: u32 = 16;
/// Pause between these: the robot has gone to sleep when the next one comes, as it will have in the run.
const BETWEEN_FIRST: Duration = Duration::from_millis(3);
/// A state that claims to be this much older than its arrival was not stamped by the clock we know.
const OLDEST_STATE: Duration = Duration::from_secs(1);
/// Longest wait of [`Robot::disarm`] for a robot that may be gone.
const DISARM_WAIT: Duration = Duration::from_millis(500);
/// ESTOP frames per stop, because one may be lost.
const ESTOP_FRAMES: u32 = 3;

/// A robot behind a link that speaks the firmware protocol.
pub struct FirmwareRobot {
    link: Box<dyn Link>,
    clock: Clock,
    schema_hash: u64,
    description: RobotDescription,
    lockstep: bool,
    valid_ms: u8,
    timeout: Duration,
    session: u32,
    armed: bool,
    seq: u16,
    /// The frame that has to be answered: in lockstep a COMMAND or RESET, else a RESET.
    unanswered: Option<Frame>,
    sent_at: Stamp,
    /// Frame number of the newest STATE.
    newest: Option<u16>,
    /// Episode and tick of the state that `observe` delivered last.
    delivered: Option<(u32, u32)>,
    sync: TimeSync,
    time_asked: Stamp,
}

impl FirmwareRobot {
    /// Asks the robot who it is and compares it with the configuration.
    ///
    /// `period` is the control period of the configuration, `valid_ms` how long a command holds without a fresh
    /// one, `timeout` the longest wait for any answer, here and later. `clock` stamps the states; waits are
    /// measured on the machine's clock even in lockstep.
    ///
    /// # Errors
    /// When the robot does not answer, or differs in schema, dimensions or control period, or would stop between
    /// any two commands.
    pub fn connect(
        link: Box<dyn Link>,
        spaces: &Spaces,
        period: Duration,
        lockstep: bool,
        valid_ms: u8,
        timeout: Duration,
        clock: Clock,
    ) -> Result<Self, RobotError> {
        let mut robot = Self {
            link,
            clock,
            schema_hash: spaces.schema_hash(),
            description: RobotDescription {
                observation_dim: spaces.observation_dim(),
                action_dim: spaces.action_dim(),
                control_period: period,
                watchdog: Duration::ZERO,
                firmware: 0,
                boot_id: 0,
            },
            lockstep,
            valid_ms,
            timeout,
            // Random, so that a restarted host does not repeat a session that the robot remembers.
            session: RandomState::new().build_hasher().finish() as u32,
            armed: false,
            seq: 0,
            unanswered: None,
            sent_at: Stamp::default(),
            newest: None,
            delivered: None,
            sync: TimeSync::new(),
            time_asked: Stamp::default(),
        };
        let ack = robot.ask(None, timeout)?;
        robot.check(&ack)?;
        Ok(robot)
    }

    fn check(&self, ack: &HelloAck) -> Result<(), RobotError> {
        let ours = (self.description.observation_dim, self.description.action_dim);
        let theirs = (usize::from(ack.n_observation), usize::from(ack.n_action));
        if ours != theirs {
            return Err(RobotError::Dimensions { ours, theirs });
        }
        if ack.schema_hash != self.schema_hash {
            return Err(RobotError::Schema { ours: self.schema_hash, theirs: ack.schema_hash });
        }
        let period = Duration::from_micros(u64::from(ack.control_period_us));
        // The robot counts whole microseconds.
        if self.description.control_period.abs_diff(period) > Duration::from_micros(1) {
            return Err(RobotError::Period { ours: self.description.control_period, theirs: period });
        }
        let valid = Duration::from_millis(u64::from(ack.watchdog_ms).min(u64::from(self.valid_ms)));
        if valid <= period {
            return Err(RobotError::Validity { valid, period });
        }
        Ok(())
    }

    /// Sends `message`, if any, and HELLO, again and again until the robot answers HELLO_ACK.
    fn ask(&mut self, message: Option<&Message>, wait: Duration) -> Result<HelloAck, RobotError> {
        // Answers to earlier questions.
        while self.link.receive(Duration::ZERO)?.is_some() {}
        let started = monotonic();
        loop {
            if let Some(message) = message {
                self.send(message.clone())?;
            }
            self.send(Message::Hello(Hello { schema_hash: self.schema_hash, session: self.session }))?;
            let asked = monotonic();
            while let Some(left) = REPEAT_AFTER.checked_sub(monotonic().since(asked)) {
                let Some(frame) = self.link.receive(left)? else { break };
                if let Message::HelloAck(ack) = frame.message {
                    self.description.watchdog = Duration::from_millis(ack.watchdog_ms.into());
                    self.description.firmware = ack.firmware;
                    self.description.boot_id = ack.boot_id;
                    return Ok(ack);
                }
            }
            let waited = monotonic().since(started);
            if waited >= wait {
                return Err(RobotError::NoAnswer { waiting_for: "HELLO_ACK", waited });
            }
        }
    }

    /// Numbers and sends a message; returns its frame.
    fn send(&mut self, message: Message) -> Result<Frame, RobotError> {
        self.seq = self.seq.wrapping_add(1);
        self.sent_at = monotonic();
        let header =
            Header { flags: 0, seq: self.seq, ack: self.newest.unwrap_or_default(), t_us: self.sent_at.0 as u32 };
        let frame = Frame { header, message };
        self.link.send(&frame)?;
        Ok(frame)
    }

    /// Sends the unanswered frame again, with its old number, when the robot has been silent for long enough.
    fn repeat(&mut self) -> Result<(), RobotError> {
        if let Some(frame) = &self.unanswered
            && monotonic().since(self.sent_at) >= REPEAT_AFTER
        {
            self.sent_at = monotonic();
            self.link.send(frame)?;
        }
        Ok(())
    }

    fn observe_newest(&mut self, into: &mut Observed) -> Result<bool, RobotError> {
        let mut newer = false;
        for _ in 0..MOST_FRAMES_PER_CALL {
            let Some(frame) = self.link.receive(Duration::ZERO)? else { break };
            self.take_time(&frame.message);
            let Message::State(state) = &frame.message else { continue };
            if self.newest.is_some_and(|newest| !is_newer(frame.header.seq, newest)) {
                continue;
            }
            newer |= self.take(frame.header, state, into)?;
        }
        self.repeat()?;
        if monotonic().since(self.time_asked) >= TIME_REQUEST_EVERY {
            self.ask_time()?;
        }
        Ok(newer)
    }

    fn ask_time(&mut self) -> Result<(), RobotError> {
        self.time_asked = monotonic();
        self.send(Message::TimeRequest { t1_us: self.time_asked.0 })?;
        Ok(())
    }

    /// Whether `message` was an answer about the time.
    fn take_time(&mut self, message: &Message) -> bool {
        let Message::TimeReply { t1_us, t2_us, t3_us } = *message else { return false };
        self.sync.take(Exchange { t1_us, t2_us, t3_us, t4_us: monotonic().0 });
        true
    }

    /// A handful of exchanges whose answers do not wait for a tick. A robot that does not answer keeps its time to
    /// itself: its states then count from their arrival.
    fn synchronise(&mut self) -> Result<(), RobotError> {
        self.sync = TimeSync::new();
        for _ in 0..FIRST_EXCHANGES {
            Clock::Monotonic.sleep_until(monotonic().plus(BETWEEN_FIRST));
            while self.link.receive(Duration::ZERO)?.is_some() {}
            self.ask_time()?;
            let mut answered = false;
            while let Some(left) = REPEAT_AFTER.checked_sub(monotonic().since(self.time_asked)) {
                let Some(frame) = self.link.receive(left)? else { break };
                answered = self.take_time(&frame.message);
                if answered {
                    break;
                }
            }
            if !answered && self.sync.estimate().is_none() {
                break;
            }
        }
        Ok(())
    }

    /// When the robot sent a frame, on the run's clock.
    fn stamp(&mut self, t_us: u32) -> Stamp {
        let now = self.clock.now();
        if self.lockstep {
            return now;
        }
        let Some(sent) = self.sync.whole(t_us).and_then(|robot_us| self.sync.host_time(robot_us)) else { return now };
        if now.since(sent) > OLDEST_STATE || sent.since(now) > OLDEST_STATE {
            // Another clock: the robot has started anew.
            self.sync = TimeSync::new();
            return now;
        }
        sent.min(now)
    }

    fn observe_answer(&mut self, into: &mut Observed) -> Result<bool, RobotError> {
        let started = monotonic();
        while let Some(unanswered) = &self.unanswered {
            let seq = unanswered.header.seq;
            let left = REPEAT_AFTER.saturating_sub(monotonic().since(self.sent_at));
            if let Some(frame) = self.link.receive(left)?
                && let Message::State(state) = &frame.message
                // A drive in fault takes no command, so its state is all the answer there will be.
                && (frame.header.ack == seq || state.drive == DriveState::Fault)
            {
                self.unanswered = None;
                return self.take(frame.header, state, into);
            }
            self.repeat()?;
            let waited = monotonic().since(started);
            if waited >= self.timeout {
                return Err(RobotError::NoAnswer { waiting_for: "STATE", waited });
            }
        }
        Ok(false)
    }

    fn take(&mut self, header: Header, state: &State, into: &mut Observed) -> Result<bool, RobotError> {
        let theirs = (state.observation.len(), state.applied.len());
        let ours = (self.description.observation_dim, self.description.action_dim);
        if theirs != ours {
            return Err(RobotError::Dimensions { ours, theirs });
        }
        self.newest = Some(header.seq);
        if let Some(frame) = &self.unanswered
            && let Message::Reset { episode, .. } = frame.message
            && episode == state.episode
            && !is_newer(frame.header.seq, header.ack)
        {
            self.unanswered = None;
        }
        into.tick = state.tick;
        into.episode = state.episode;
        into.ack = header.ack;
        into.capture = self.stamp(header.t_us);
        into.robot_us = header.t_us;
        into.drive = state.drive;
        into.faults = state.faults;
        into.terminated = state.task.contains(TaskFlags::TERMINATED);
        into.reward = state.reward;
        into.reward_valid = state.task.contains(TaskFlags::REWARD_VALID);
        into.counters = state.counters;
        into.applied.clone_from(&state.applied);
        into.observation.clone_from(&state.observation);
        Ok(true)
    }

    /// States of the episode that lie between the last delivered one and this one.
    fn skipped(&mut self, observed: &Observed) -> u32 {
        let due = match self.delivered.replace((observed.episode, observed.tick)) {
            Some((episode, tick)) if episode == observed.episode => tick.saturating_add(1),
            _ => 0,
        };
        observed.tick.saturating_sub(due)
    }
}

impl Robot for FirmwareRobot {
    fn description(&self) -> &RobotDescription {
        &self.description
    }

    fn arm(&mut self) -> Result<(), RobotError> {
        self.session = self.session.wrapping_add(1);
        (self.unanswered, self.newest, self.delivered) = (None, None, None);
        let started = monotonic();
        let mut ack = self.ask(None, self.timeout)?;
        let mut asked_to_arm = false;
        // From whatever state another host left it in, by way of DISARMED: only then ARMED means our session.
        loop {
            self.check(&ack)?;
            let next = match ack.drive {
                DriveState::Armed if asked_to_arm => break,
                DriveState::Armed | DriveState::Run | DriveState::Hold => Message::Disarm,
                DriveState::Fault => Message::FaultReset,
                DriveState::Disarmed => Message::Arm { session: self.session },
            };
            if monotonic().since(started) >= self.timeout {
                return Err(RobotError::NotArmed { drive: ack.drive });
            }
            asked_to_arm = matches!(next, Message::Arm { .. });
            let before = std::mem::replace(&mut ack, self.ask(Some(&next), self.timeout)?);
            if ack.drive == before.drive {
                // Lost, or the cause of the fault is still there: the next try has to find something new.
                Clock::Monotonic.sleep_until(monotonic().plus(REPEAT_AFTER));
            }
        }
        self.armed = true;
        if self.lockstep { Ok(()) } else { self.synchronise() }
    }

    fn request_reset(&mut self, episode: u32, seed: u64) -> Result<(), RobotError> {
        self.unanswered = Some(self.send(Message::Reset { episode, seed })?);
        Ok(())
    }

    fn observe(&mut self, into: &mut Observed) -> Result<bool, RobotError> {
        let newer = if self.lockstep { self.observe_answer(into)? } else { self.observe_newest(into)? };
        if newer {
            into.skipped = self.skipped(into);
        }
        Ok(newer)
    }

    fn apply(&mut self, action: &[f32]) -> Result<(), RobotError> {
        let wrong = RobotError::ActionLength { expected: self.description.action_dim, got: action.len() };
        let Ok(entries) = heapless::Vec::from_slice(action) else { return Err(wrong) };
        if action.len() != self.description.action_dim {
            return Err(wrong);
        }
        let command = Command { session: self.session, valid_ms: self.valid_ms, action: entries };
        let frame = self.send(Message::Command(command))?;
        if self.lockstep {
            self.unanswered = Some(frame);
        }
        Ok(())
    }

    fn stop(&mut self) {
        (self.unanswered, self.armed) = (None, false);
        for _ in 0..ESTOP_FRAMES {
            // Nobody is left to tell: the robot's own watchdog stops it when the link is gone.
            let _ = self.send(Message::Estop);
        }
    }

    fn disarm(&mut self) {
        (self.unanswered, self.armed) = (None, false);
        let wait = self.timeout.min(DISARM_WAIT);
        let started = monotonic();
        while let Ok(ack) = self.ask(Some(&Message::Disarm), wait) {
            if matches!(ack.drive, DriveState::Disarmed | DriveState::Fault) || monotonic().since(started) >= wait {
                break;
            }
        }
    }

    fn counters(&self) -> LinkCounters {
        self.link.counters()
    }

    fn clock_estimate(&self) -> Option<ClockEstimate> {
        self.sync.estimate()
    }
}

impl Drop for FirmwareRobot {
    /// Stops a robot that nobody disarmed, on a panic as well.
    fn drop(&mut self) {
        if self.armed {
            self.stop();
        }
    }
}

#[cfg(test)]
mod tests;
