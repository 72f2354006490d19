//! The simulated motor microcontroller: drive, task and the numbers of a STATE, without sockets and without a clock.
//!
//! Time comes in as an argument, so lockstep, real time and tests drive the same code. Rules of the conversation:
//! `docs/firmware-protocol.md`. Invariants: the physics moves only in [`Board::period`]; a COMMAND or RESET frame is
//! executed at most once; after the end of the task nothing moves until a RESET.

use firmware_bridge::{
    Arrival, Command, Counters, Drive, DriveConfig, DriveState, Frame, HelloAck, MAX_ACTION, MAX_OBSERVATION, Message,
    Sequence, State, TaskFlags, is_newer, schema_hash,
};

use crate::task::{StepOutcome, Task};

/// Version of this "firmware" in HELLO_ACK.
const FIRMWARE: u32 = 1;

/// Time settings of a board.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Control period.
    pub(crate) period_us: u32,
    /// First stage of the watchdog.
    pub(crate) watchdog_ms: u16,
    /// Second stage of the watchdog.
    pub(crate) fault_ms: u32,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Control periods of physics.
    pub steps: u64,
    /// RESET frames executed.
    pub episodes: u64,
    /// COMMAND frames taken.
    pub commands: u64,
    /// COMMAND frames refused.
    pub rejected: u64,
    /// COMMAND and RESET frames that came again or too late.
    pub repeated: u64,
    /// Frames that were not a valid frame.
    pub invalid: u64,
    /// First stages of the watchdog.
    pub holds: u64,
    /// Second stages of the watchdog.
    pub faults: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In the start state, until the first command.
    Standing,
    /// The physics runs.
    Moving,
    /// The task has ended; the last state stays.
    Over,
}

/// What a frame asks the server to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing.
    Silence,
    /// [`Board::hello_ack`].
    HelloAck,
    /// A TIME_REPLY.
    Time {
        /// Copied from the request.
        t1_us: u64,
    },
    /// In lockstep one control period, then its STATE.
    Step,
    /// In lockstep the present STATE.
    State,
    /// The bytes of the last STATE once more.
    LastState,
}

/// A microcontroller with a robot on it.
pub(crate) struct Board {
    task: Box<dyn Task>,
    timing: Timing,
    drive: Drive,
    boot_id: u32,
    phase: Phase,
    tick: u32,
    episode: u32,
    outcome: StepOutcome,
    applied: heapless::Vec<f32, MAX_ACTION>,
    /// Session of the last HELLO and of the last accepted ARM.
    hello: Option<u32>,
    armed: Option<u32>,
    /// Number of the last COMMAND or RESET taken in this session.
    taken: Option<u16>,
    arrivals: Sequence,
    /// The link's share of the counters; the drive keeps its own.
    counters: Counters,
    totals: Totals,
}

impl Board {
    /// A disarmed board with the task in the start state of seed 0.
    pub(crate) fn new(mut task: Box<dyn Task>, timing: Timing, boot_id: u32) -> Self {
        task.reset(0);
        let drive = Drive::new(DriveConfig {
            n_action: task.names().action.len(),
            action_limit: 1.0,
            watchdog_us: u64::from(timing.watchdog_ms) * 1000,
            fault_us: u64::from(timing.fault_ms) * 1000,
        });
        let mut board = Self {
            task,
            timing,
            drive,
            boot_id,
            phase: Phase::Standing,
            tick: 0,
            episode: 0,
            outcome: StepOutcome::default(),
            applied: heapless::Vec::new(),
            hello: None,
            armed: None,
            taken: None,
            arrivals: Sequence::new(),
            counters: Counters::default(),
            totals: Totals::default(),
        };
        board.stand();
        board
    }

    /// Takes a valid frame.
    pub(crate) fn take(&mut self, frame: &Frame, now_us: u64) -> Reply {
        self.poll(now_us);
        self.count_gaps(frame);
        let seq = frame.header.seq;
        match &frame.message {
            Message::Hello(_) => return Reply::HelloAck,
            Message::TimeRequest { t1_us } => return Reply::Time { t1_us: *t1_us },
            Message::Command(command) => return self.command(command, seq, now_us),
            Message::Reset { episode, seed } => return self.reset(*episode, *seed, seq, now_us),
            Message::Arm { session } => self.arm(*session, now_us),
            Message::Estop => self.drive.on_estop(),
            Message::FaultReset => self.drive.on_fault_reset(),
            Message::Disarm => self.drive.on_disarm(),
            // Kinds that only robots send.
            Message::HelloAck(_) | Message::State(_) | Message::Heartbeat(_) | Message::TimeReply { .. } => {}
        }
        Reply::Silence
    }

    /// Counts bytes that were not a frame.
    pub(crate) fn take_invalid(&mut self) {
        self.counters.crc_errors = self.counters.crc_errors.wrapping_add(1);
        self.totals.invalid += 1;
    }

    /// One control period: watchdog, output, physics.
    pub(crate) fn period(&mut self, now_us: u64) {
        self.poll(now_us);
        match self.phase {
            Phase::Standing => {}
            // Nobody needs to command a robot whose episode is over: the watchdog rests as it does after a RESET.
            Phase::Over => self.drive.on_reset(now_us),
            Phase::Moving => {
                self.set_applied();
                self.outcome = self.task.step(&self.applied);
                self.tick = self.tick.wrapping_add(1);
                self.totals.steps += 1;
                if self.outcome.terminated {
                    self.phase = Phase::Over;
                }
            }
        }
    }

    /// The answer to a HELLO.
    pub(crate) fn hello_ack(&self) -> HelloAck {
        let names = self.task.names();
        HelloAck {
            schema_hash: self.schema_hash(),
            firmware: FIRMWARE,
            boot_id: self.boot_id,
            control_period_us: self.timing.period_us,
            watchdog_ms: self.timing.watchdog_ms,
            n_observation: names.observation.len() as u8,
            n_action: names.action.len() as u8,
            drive: self.drive.state(),
        }
    }

    /// The present STATE.
    pub(crate) fn state(&self) -> State {
        let mut exact = [0.0; MAX_OBSERVATION];
        let exact = &mut exact[..self.task.names().observation.len()];
        self.task.observation(exact);
        let mut task = TaskFlags::REWARD_VALID;
        if self.phase == Phase::Over {
            task.insert(TaskFlags::TERMINATED);
        }
        State {
            tick: self.tick,
            episode: self.episode,
            drive: self.drive.state(),
            faults: self.drive.faults(),
            task,
            reward: self.outcome.reward as f32,
            counters: self.counters(),
            applied: self.applied.clone(),
            observation: exact.iter().map(|value| *value as f32).collect(),
        }
    }

    /// Number of the last COMMAND or RESET taken, for the header of a STATE.
    pub(crate) fn ack(&self) -> u16 {
        self.taken.unwrap_or(0)
    }

    /// Hash of the names of the task.
    pub(crate) fn schema_hash(&self) -> u64 {
        let names = self.task.names();
        schema_hash(names.observation.iter().copied(), names.action.iter().copied())
    }

    /// What happened since the start.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    fn counters(&self) -> Counters {
        let drive = self.drive.counters();
        Counters {
            late_commands: self.counters.late_commands.wrapping_add(drive.late_commands),
            rejected_commands: drive.rejected_commands,
            ..self.counters
        }
    }

    fn poll(&mut self, now_us: u64) {
        let before = self.drive.state();
        let after = self.drive.poll(now_us);
        if before != after {
            self.totals.holds += u64::from(after == DriveState::Hold);
            self.totals.faults += u64::from(after == DriveState::Fault);
        }
    }

    fn count_gaps(&mut self, frame: &Frame) {
        if let Message::Hello(hello) = &frame.message
            && self.hello != Some(hello.session)
        {
            self.hello = Some(hello.session);
            self.arrivals = Sequence::new();
        }
        if let Arrival::After(missing) = self.arrivals.observe(frame.header.seq) {
            self.counters.sequence_gaps = self.counters.sequence_gaps.wrapping_add(missing);
        }
    }

    fn arm(&mut self, session: u32, now_us: u64) {
        if self.drive.on_arm(session, now_us).is_ok() && self.armed != Some(session) {
            self.armed = Some(session);
            self.taken = None;
        }
    }

    /// Whether `seq` may be executed. A repeated number is a host that misses an answer; an older one came late.
    fn is_fresh(&mut self, seq: u16) -> bool {
        let Some(taken) = self.taken else { return true };
        let fresh = is_newer(seq, taken);
        if !fresh {
            self.totals.repeated += 1;
            self.counters.late_commands = self.counters.late_commands.wrapping_add(u16::from(seq != taken));
        }
        fresh
    }

    fn command(&mut self, command: &Command, seq: u16, now_us: u64) -> Reply {
        if !self.is_fresh(seq) {
            return Reply::LastState;
        }
        if self.drive.on_command(command, seq, now_us).is_err() {
            self.totals.rejected += 1;
            return Reply::State;
        }
        self.taken = Some(seq);
        self.totals.commands += 1;
        if self.phase == Phase::Standing {
            self.phase = Phase::Moving;
        }
        Reply::Step
    }

    fn reset(&mut self, episode: u32, seed: u64, seq: u16, now_us: u64) -> Reply {
        if !self.is_fresh(seq) {
            return Reply::LastState;
        }
        self.taken = Some(seq);
        self.totals.episodes += 1;
        self.drive.on_reset(now_us);
        self.task.reset(seed);
        self.episode = episode;
        self.stand();
        Reply::State
    }

    fn stand(&mut self) {
        self.phase = Phase::Standing;
        self.tick = 0;
        self.outcome = StepOutcome::default();
        self.applied.clear();
        // A zero per motor: as many as the task has, which the vector holds by the check of the task's names.
        let _ = self.applied.resize_default(self.task.names().action.len());
    }

    fn set_applied(&mut self) {
        for (applied, output) in self.applied.iter_mut().zip(self.drive.output()) {
            *applied = *output;
        }
    }
}

#[cfg(test)]
mod tests;
