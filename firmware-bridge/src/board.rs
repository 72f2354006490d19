//! The robot's end of the conversation: drive, plant and the numbers of a STATE, without a link and without a clock.
//!
//! Time comes in as an argument, so a microcontroller, a simulator in lockstep or real time, and tests drive the same
//! code. Rules of the conversation: `docs/firmware-protocol.md`. Invariants: the plant moves only in
//! [`Board::period`]; a COMMAND or RESET frame is executed at most once; after the end of the task nothing moves until
//! a RESET.

use heapless::Vec;

use crate::drive::{Drive, DriveConfig};
use crate::frame::Frame;
use crate::limits::Limits;
use crate::message::{Command, Counters, DriveState, HelloAck, MAX_ACTION, Message, State, TaskFlags};
use crate::sequence::{Arrival, Sequence, is_newer};

/// What the drive moves: motors with sensors, or a model of them, and the task on them.
pub trait Plant {
    /// Goes to the start state that belongs to `seed`, where the plant can choose one.
    fn reset(&mut self, seed: u64);

    /// Applies `action` (one value in `[-1, 1]` per action name) for one control period.
    fn step(&mut self, action: &[f32]) -> Outcome;

    /// Writes the present observation into `out` (one value per observation name).
    fn observe(&self, out: &mut [f32]);
}

/// What one control period brought.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Reward of the step.
    pub reward: f32,
    /// Whether the task ended in the state after the step.
    pub terminated: bool,
}

/// What a board is.
#[derive(Clone, Copy, Debug)]
pub struct BoardConfig {
    /// [`crate::schema_hash`] of the names.
    pub schema_hash: u64,
    /// Entries of an observation, at most [`crate::MAX_OBSERVATION`].
    pub n_observation: usize,
    /// Entries of an action, at most [`MAX_ACTION`].
    pub n_action: usize,
    /// Limits of the drive.
    pub limits: Limits,
    /// Version of the firmware.
    pub firmware: u32,
    /// Differs after every start of the robot.
    pub boot_id: u32,
    /// Control period.
    pub period_us: u32,
    /// First stage of the watchdog.
    pub watchdog_ms: u16,
    /// Second stage of the watchdog.
    pub fault_ms: u32,
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

/// What a frame asks the owner of the link to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
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

/// A microcontroller with a robot on it. `P` is the robot: a [`Plant`].
#[derive(Clone, Debug)]
pub struct Board<P> {
    plant: P,
    config: BoardConfig,
    drive: Drive,
    phase: Phase,
    tick: u32,
    episode: u32,
    outcome: Outcome,
    applied: Vec<f32, MAX_ACTION>,
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

impl<P: Plant> Board<P> {
    /// A disarmed board with the plant in the start state of seed 0.
    pub fn new(mut plant: P, config: BoardConfig) -> Self {
        plant.reset(0);
        let drive = Drive::new(DriveConfig {
            n_action: config.n_action,
            limits: config.limits,
            watchdog_us: u64::from(config.watchdog_ms) * 1000,
            fault_us: u64::from(config.fault_ms) * 1000,
        });
        let mut board = Self {
            plant,
            config,
            drive,
            phase: Phase::Standing,
            tick: 0,
            episode: 0,
            outcome: Outcome::default(),
            applied: Vec::new(),
            hello: None,
            armed: None,
            taken: None,
            arrivals: Sequence::new(),
            counters: Counters::NONE,
            totals: Totals::default(),
        };
        board.stand();
        board
    }

    /// Takes a valid frame.
    pub fn take(&mut self, frame: &Frame, now_us: u64) -> Reply {
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
    pub fn take_invalid(&mut self) {
        self.counters.crc_errors = self.counters.crc_errors.wrapping_add(1);
        self.totals.invalid += 1;
    }

    /// Counts bytes that came too fast.
    pub fn take_overruns(&mut self, bytes: u16) {
        self.counters.overruns = self.counters.overruns.wrapping_add(bytes);
    }

    /// One control period: watchdog, output, physics.
    pub fn period(&mut self, now_us: u64) {
        self.poll(now_us);
        match self.phase {
            Phase::Standing => {}
            // Nobody needs to command a robot whose episode is over: the watchdog rests as it does after a RESET.
            Phase::Over => self.drive.on_reset(now_us),
            Phase::Moving => {
                self.set_applied();
                self.outcome = self.plant.step(&self.applied);
                self.tick = self.tick.wrapping_add(1);
                self.totals.steps += 1;
                if self.outcome.terminated {
                    self.phase = Phase::Over;
                }
            }
        }
    }

    /// The answer to a HELLO.
    pub fn hello_ack(&self) -> HelloAck {
        let config = &self.config;
        HelloAck {
            schema_hash: config.schema_hash,
            firmware: config.firmware,
            boot_id: config.boot_id,
            control_period_us: config.period_us,
            watchdog_ms: config.watchdog_ms,
            n_observation: config.n_observation as u8,
            n_action: config.n_action as u8,
            drive: self.drive.state(),
        }
    }

    /// The present STATE.
    pub fn state(&self) -> State {
        let mut task = TaskFlags::REWARD_VALID;
        if self.phase == Phase::Over {
            task.insert(TaskFlags::TERMINATED);
        }
        let mut observation = Vec::new();
        // Longer than a frame holds is cut to nothing, which the host refuses by name.
        let _ = observation.resize(self.config.n_observation, 0.0);
        self.plant.observe(&mut observation);
        State {
            tick: self.tick,
            episode: self.episode,
            drive: self.drive.state(),
            faults: self.drive.faults(),
            task,
            reward: self.outcome.reward,
            counters: self.counters(),
            applied: self.applied.clone(),
            observation,
        }
    }

    /// Number of the last COMMAND or RESET taken, for the header of a STATE.
    pub fn ack(&self) -> u16 {
        self.taken.unwrap_or(0)
    }

    /// Hash of the names.
    pub fn schema_hash(&self) -> u64 {
        self.config.schema_hash
    }

    /// The robot.
    pub fn plant(&self) -> &P {
        &self.plant
    }

    /// State of the drive.
    pub fn drive(&self) -> DriveState {
        self.drive.state()
    }

    /// What happened since the start.
    pub fn totals(&self) -> Totals {
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

    /// The watchdog alone, between two periods.
    pub fn poll(&mut self, now_us: u64) {
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
        self.plant.reset(seed);
        self.episode = episode;
        self.stand();
        Reply::State
    }

    fn stand(&mut self) {
        self.phase = Phase::Standing;
        self.tick = 0;
        self.outcome = Outcome::default();
        self.applied.clear();
        let _ = self.applied.resize(self.config.n_action, 0.0);
    }

    fn set_applied(&mut self) {
        for (applied, output) in self.applied.iter_mut().zip(self.drive.output()) {
            *applied = *output;
        }
    }
}
