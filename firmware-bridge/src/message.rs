//! What frames say. The layout of every payload is in the tables of the crate documentation.

use heapless::Vec;

use crate::bytes::{Reader, Writer};
use crate::frame::{DecodeError, MAX_PAYLOAD, wire_bytes};

/// Longest observation a STATE frame may carry.
pub const MAX_OBSERVATION: usize = 48;
/// Longest action a COMMAND or STATE frame may carry.
pub const MAX_ACTION: usize = 24;
/// Most values, observation and action together, that fit into one STATE frame. Eight payload bytes stay free.
pub const MAX_STATE_VALUES: usize = 49;
/// Bytes of a STATE payload in front of its values.
const STATE_FIXED: usize = 28;
/// Bytes of a COMMAND payload in front of its values.
const COMMAND_FIXED: usize = 8;
/// Bytes of a TIME_REPLY payload.
const TIME_REPLY: usize = 24;

/// Bytes per second on a stream in the busier direction, at `control_hz` control periods and `time_hz` exchanges of
/// the time per second.
pub fn stream_load(n_observation: usize, n_action: usize, control_hz: f64, time_hz: f64) -> f64 {
    let command = wire_bytes(COMMAND_FIXED + 4 * n_action);
    let state = wire_bytes(STATE_FIXED + 4 * (n_action + n_observation));
    control_hz * command.max(state) as f64 + time_hz * wire_bytes(TIME_REPLY) as f64
}
const _: () = assert!(STATE_FIXED + 4 * MAX_STATE_VALUES <= MAX_PAYLOAD);

/// Host to robot: who are you, and who will talk to you.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`crate::schema_hash`] of the host's configuration.
    pub schema_hash: u64,
    /// Session that the host will arm with.
    pub session: u32,
}

/// The robot's answer to [`Hello`]; sent whatever the hash is, so that the host can name the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAck {
    /// [`crate::schema_hash`] of the firmware.
    pub schema_hash: u64,
    /// Version of the firmware.
    pub firmware: u32,
    /// Differs after every start of the robot.
    pub boot_id: u32,
    /// Control period, microseconds.
    pub control_period_us: u32,
    /// First stage of the robot's watchdog, milliseconds.
    pub watchdog_ms: u16,
    /// Entries of an observation.
    pub n_observation: u8,
    /// Entries of an action.
    pub n_action: u8,
    /// State of the drive now.
    pub drive: DriveState,
}

/// Host to robot: the action until the next command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Command {
    /// Session of the [`Message::Arm`] that made the drive listen.
    pub session: u32,
    /// How long the action holds without a fresh command, milliseconds. The robot's own limit may be shorter.
    pub valid_ms: u8,
    /// One value per action entry, in `[-1, 1]`.
    pub action: Vec<f32, MAX_ACTION>,
}

/// Robot to host: the state at the end of a control period, and what happened during that period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Control periods since the episode's reset.
    pub tick: u32,
    /// Episode of the last RESET.
    pub episode: u32,
    /// State of the drive.
    pub drive: DriveState,
    /// Why the drive stands still.
    pub faults: Faults,
    /// Facts about the task.
    pub task: TaskFlags,
    /// Reward of the step from tick - 1 to tick; counts only with [`TaskFlags::REWARD_VALID`].
    pub reward: f32,
    /// What the robot has refused or missed since its start.
    pub counters: Counters,
    /// Action really applied between tick - 1 and tick.
    pub applied: Vec<f32, MAX_ACTION>,
    /// Observation at tick.
    pub observation: Vec<f32, MAX_OBSERVATION>,
}

/// Robot to host: alive, and in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// State of the drive.
    pub drive: DriveState,
    /// Differs after every start of the robot.
    pub boot_id: u32,
}

/// State of the drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum DriveState {
    /// Deaf to commands.
    #[default]
    Disarmed = 0,
    /// Waits for the first command of its session; output zero.
    Armed = 1,
    /// Follows commands.
    Run = 2,
    /// The last command ran out; output zero; a fresh command goes on.
    Hold = 3,
    /// Latched; output zero.
    Fault = 4,
}

impl DriveState {
    const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Disarmed,
            1 => Self::Armed,
            2 => Self::Run,
            3 => Self::Hold,
            4 => Self::Fault,
            _ => return None,
        })
    }
}

/// Why a drive is in [`DriveState::Fault`], as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub u16);

impl Faults {
    /// No fresh command within the second limit.
    pub const WATCHDOG: Self = Self(1);
    /// An ESTOP frame came.
    pub const ESTOP: Self = Self(1 << 1);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the bits of `other`.
    pub const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Facts about the task at a tick, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFlags(pub u8);

impl TaskFlags {
    /// The task has ended in this state.
    pub const TERMINATED: Self = Self(1);
    /// The robot computes a reward and `reward` holds it.
    pub const REWARD_VALID: Self = Self(1 << 1);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the bits of `other`.
    pub const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What the robot has refused or missed since its start; each number wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames with a wrong checksum.
    pub crc_errors: u16,
    /// Frame numbers that never came.
    pub sequence_gaps: u16,
    /// Commands whose number was not newer than the last one's.
    pub late_commands: u16,
    /// Commands refused for any other reason.
    pub rejected_commands: u16,
    /// Bytes lost because the robot did not read its line fast enough.
    pub overruns: u16,
}

impl Counters {
    /// Nothing yet.
    pub const NONE: Self =
        Self { crc_errors: 0, sequence_gaps: 0, late_commands: 0, rejected_commands: 0, overruns: 0 };
}

/// The content of a frame.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is no allocator to box the large variants on")]
pub enum Message {
    /// Host to robot; answered with [`Message::HelloAck`].
    Hello(Hello),
    /// Robot to host.
    HelloAck(HelloAck),
    /// Host to robot.
    Command(Command),
    /// Robot to host.
    State(State),
    /// Robot to host.
    Heartbeat(Heartbeat),
    /// Host to robot: the host's clock when it sent this, microseconds.
    TimeRequest {
        /// Host clock at sending.
        t1_us: u64,
    },
    /// Robot to host.
    TimeReply {
        /// Copied from the request.
        t1_us: u64,
        /// Robot clock when the request came.
        t2_us: u64,
        /// Robot clock when this was sent.
        t3_us: u64,
    },
    /// Host to robot: stop and stay stopped. Taken in every state, whatever its frame number.
    Estop,
    /// Host to robot: listen to the commands of this session.
    Arm {
        /// Has to be new to the robot.
        session: u32,
    },
    /// Host to robot: leave [`DriveState::Fault`] for [`DriveState::Disarmed`].
    FaultReset,
    /// Host to robot: go to the start of an episode.
    Reset {
        /// Number of the episode.
        episode: u32,
        /// Seed of the start state, where the robot can choose one.
        seed: u64,
    },
    /// Host to robot: orderly end.
    Disarm,
}

impl Message {
    /// The kind byte of the frame header.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 0x01,
            Self::HelloAck(_) => 0x02,
            Self::Command(_) => 0x10,
            Self::State(_) => 0x11,
            Self::Heartbeat(_) => 0x12,
            Self::TimeRequest { .. } => 0x20,
            Self::TimeReply { .. } => 0x21,
            Self::Estop => 0x30,
            Self::Arm { .. } => 0x31,
            Self::FaultReset => 0x32,
            Self::Reset { .. } => 0x33,
            Self::Disarm => 0x34,
        }
    }

    /// Number of values in the message.
    pub(crate) fn values(&self) -> usize {
        match self {
            Self::Command(command) => command.action.len(),
            Self::State(state) => state.applied.len() + state.observation.len(),
            _ => 0,
        }
    }

    /// Writes the payload; `None` when `out` is full.
    pub(crate) fn write(&self, out: &mut Writer<'_>) -> Option<()> {
        match self {
            Self::Hello(hello) => {
                out.u64(hello.schema_hash)?;
                out.u32(hello.session)
            }
            Self::HelloAck(ack) => ack.write(out),
            Self::Command(command) => command.write(out),
            Self::State(state) => state.write(out),
            Self::Heartbeat(heartbeat) => {
                out.u32(heartbeat.boot_id)?;
                out.u8(heartbeat.drive as u8)
            }
            Self::TimeRequest { t1_us } => out.u64(*t1_us),
            Self::TimeReply { t1_us, t2_us, t3_us } => {
                out.u64(*t1_us)?;
                out.u64(*t2_us)?;
                out.u64(*t3_us)
            }
            Self::Arm { session } => out.u32(*session),
            Self::Reset { episode, seed } => {
                out.u32(*episode)?;
                out.u64(*seed)
            }
            Self::Estop | Self::FaultReset | Self::Disarm => Some(()),
        }
    }

    /// Reads the payload of a frame of `kind`, all of it.
    pub(crate) fn read(kind: u8, payload: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(payload);
        let message = match kind {
            0x01 => Hello::read(&mut input).map(Self::Hello),
            0x02 => HelloAck::read(&mut input).map(Self::HelloAck),
            0x10 => Command::read(&mut input).map(Self::Command),
            0x11 => State::read(&mut input).map(Self::State),
            0x12 => Heartbeat::read(&mut input).map(Self::Heartbeat),
            0x20 => input.u64().map(|t1_us| Self::TimeRequest { t1_us }),
            0x21 => read_time_reply(&mut input),
            0x30 => Some(Self::Estop),
            0x31 => input.u32().map(|session| Self::Arm { session }),
            0x32 => Some(Self::FaultReset),
            0x33 => input.u32().zip(input.u64()).map(|(episode, seed)| Self::Reset { episode, seed }),
            0x34 => Some(Self::Disarm),
            _ => return Err(DecodeError::Kind { got: kind }),
        };
        message.filter(|_| input.end().is_some()).ok_or(DecodeError::Payload { kind })
    }
}

fn read_time_reply(input: &mut Reader<'_>) -> Option<Message> {
    Some(Message::TimeReply { t1_us: input.u64()?, t2_us: input.u64()?, t3_us: input.u64()? })
}

impl Hello {
    fn read(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self { schema_hash: input.u64()?, session: input.u32()? })
    }
}

impl HelloAck {
    fn write(&self, out: &mut Writer<'_>) -> Option<()> {
        out.u64(self.schema_hash)?;
        out.u32(self.firmware)?;
        out.u32(self.boot_id)?;
        out.u32(self.control_period_us)?;
        out.u16(self.watchdog_ms)?;
        out.u8(self.n_observation)?;
        out.u8(self.n_action)?;
        out.u8(self.drive as u8)
    }

    fn read(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            schema_hash: input.u64()?,
            firmware: input.u32()?,
            boot_id: input.u32()?,
            control_period_us: input.u32()?,
            watchdog_ms: input.u16()?,
            n_observation: input.u8()?,
            n_action: input.u8()?,
            drive: DriveState::from_wire(input.u8()?)?,
        })
    }
}

impl Command {
    fn write(&self, out: &mut Writer<'_>) -> Option<()> {
        out.u32(self.session)?;
        out.u8(self.valid_ms)?;
        out.u8(self.action.len() as u8)?;
        out.u16(0)?;
        out.values(&self.action)
    }

    fn read(input: &mut Reader<'_>) -> Option<Self> {
        let (session, valid_ms, count) = (input.u32()?, input.u8()?, input.u8()?);
        input.reserved()?;
        Some(Self { session, valid_ms, action: input.values(count)? })
    }
}

impl State {
    fn write(&self, out: &mut Writer<'_>) -> Option<()> {
        out.u32(self.tick)?;
        out.u32(self.episode)?;
        out.u8(self.drive as u8)?;
        out.u8(self.task.0)?;
        out.u16(self.faults.0)?;
        out.put(self.reward.to_le_bytes())?;
        self.counters.write(out)?;
        out.u8(self.applied.len() as u8)?;
        out.u8(self.observation.len() as u8)?;
        out.u16(self.counters.overruns)?;
        out.values(&self.applied)?;
        out.values(&self.observation)
    }

    fn read(input: &mut Reader<'_>) -> Option<Self> {
        let (tick, episode) = (input.u32()?, input.u32()?);
        let drive = DriveState::from_wire(input.u8()?)?;
        let (task, faults) = (TaskFlags(input.u8()?), Faults(input.u16()?));
        let (reward, mut counters) = (input.f32()?, Counters::read(input)?);
        let (n_applied, n_observation) = (input.u8()?, input.u8()?);
        counters.overruns = input.u16()?;
        if usize::from(n_applied) + usize::from(n_observation) > MAX_STATE_VALUES {
            return None;
        }
        let (applied, observation) = (input.values(n_applied)?, input.values(n_observation)?);
        Some(Self { tick, episode, drive, faults, task, reward, counters, applied, observation })
    }
}

impl Counters {
    /// The first four; `overruns` lies behind the lengths.
    fn write(self, out: &mut Writer<'_>) -> Option<()> {
        out.u16(self.crc_errors)?;
        out.u16(self.sequence_gaps)?;
        out.u16(self.late_commands)?;
        out.u16(self.rejected_commands)
    }

    fn read(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            crc_errors: input.u16()?,
            sequence_gaps: input.u16()?,
            late_commands: input.u16()?,
            rejected_commands: input.u16()?,
            overruns: 0,
        })
    }
}

impl Heartbeat {
    fn read(input: &mut Reader<'_>) -> Option<Self> {
        let boot_id = input.u32()?;
        Some(Self { drive: DriveState::from_wire(input.u8()?)?, boot_id })
    }
}
