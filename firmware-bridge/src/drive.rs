//! When a drive may move: states, sessions, limits and the watchdog. Time comes in as an argument.
//!
//! The drive does not read frames and does not touch hardware; the board (or the simulator) hands it what came
//! and applies [`Drive::output`]. Invariants: the output is zero in every state but [`DriveState::Run`];
//! [`DriveState::Fault`] is left by [`Drive::on_fault_reset`] alone; a session arms once.

use core::fmt;

use crate::limits::{Limiter, Limits};
use crate::message::{Command, Counters, DriveState, Faults};
use crate::sequence::is_newer;

/// Sessions that cannot come back. More than the number of hosts whose late frames may still be under way.
const REMEMBERED_SESSIONS: usize = 8;

/// Limits of a drive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriveConfig {
    /// Entries of an action, at most [`crate::MAX_ACTION`].
    pub n_action: usize,
    /// A command beyond the magnitude is refused, a change beyond the slew is cut.
    pub limits: Limits,
    /// Time without a fresh command after which the output is zero, microseconds.
    pub watchdog_us: u64,
    /// Time without a fresh command after which the drive is in [`DriveState::Fault`], microseconds.
    pub fault_us: u64,
}

/// The state machine of a drive.
#[derive(Clone, Debug)]
pub struct Drive {
    config: DriveConfig,
    state: DriveState,
    faults: Faults,
    session: u32,
    sessions: [Option<u32>; REMEMBERED_SESSIONS],
    last_seq: Option<u16>,
    fresh_us: u64,
    valid_us: u64,
    limiter: Limiter,
    counters: Counters,
}

impl Drive {
    /// A disarmed drive.
    pub const fn new(config: DriveConfig) -> Self {
        Self {
            config,
            state: DriveState::Disarmed,
            faults: Faults(0),
            session: 0,
            sessions: [None; REMEMBERED_SESSIONS],
            last_seq: None,
            fresh_us: 0,
            valid_us: 0,
            limiter: Limiter::new(config.limits),
            counters: Counters::NONE,
        }
    }

    /// ARM: listens to the commands of `session`, with the output at zero until the first one. Said twice it
    /// changes nothing. A new session takes the drive over from an older one.
    ///
    /// # Errors
    /// In [`DriveState::Fault`], and for a session that was armed before.
    pub fn on_arm(&mut self, session: u32, now_us: u64) -> Result<(), Rejection> {
        match self.poll(now_us) {
            DriveState::Fault => return Err(Rejection::Faulted),
            DriveState::Armed | DriveState::Run | DriveState::Hold if session == self.session => return Ok(()),
            _ if self.sessions.contains(&Some(session)) => return Err(Rejection::SessionReused),
            _ => {}
        }
        self.sessions.rotate_right(1);
        self.sessions[0] = Some(session);
        self.session = session;
        self.last_seq = None;
        self.stand_still(DriveState::Armed);
        Ok(())
    }

    /// COMMAND of frame number `seq`: becomes the output, within the slew limit, until it runs out.
    ///
    /// # Errors
    /// Unless drive, session, number, length and every value are right; the refusal is counted.
    pub fn on_command(&mut self, command: &Command, seq: u16, now_us: u64) -> Result<(), Rejection> {
        self.poll(now_us);
        if let Err(rejection) = self.judge(command, seq) {
            let counter = match rejection {
                Rejection::OldSequence => &mut self.counters.late_commands,
                _ => &mut self.counters.rejected_commands,
            };
            *counter = counter.wrapping_add(1);
            return Err(rejection);
        }
        self.state = DriveState::Run;
        self.last_seq = Some(seq);
        self.fresh_us = now_us;
        self.valid_us = self.config.watchdog_us.min(u64::from(command.valid_ms) * 1000);
        let mut action = command.action.clone();
        self.limiter.limit(&mut action);
        Ok(())
    }

    fn judge(&self, command: &Command, seq: u16) -> Result<(), Rejection> {
        match self.state {
            DriveState::Disarmed => return Err(Rejection::NotArmed),
            DriveState::Fault => return Err(Rejection::Faulted),
            DriveState::Armed | DriveState::Run | DriveState::Hold => {}
        }
        if command.session != self.session {
            return Err(Rejection::WrongSession);
        }
        if self.last_seq.is_some_and(|last| !is_newer(seq, last)) {
            return Err(Rejection::OldSequence);
        }
        if command.action.len() != self.config.n_action {
            return Err(Rejection::WrongLength);
        }
        // Written so that NaN fails.
        if !command.action.iter().all(|value| value.abs() <= self.limiter.limits().magnitude) {
            return Err(Rejection::OutOfRange);
        }
        Ok(())
    }

    /// RESET: an armed drive stands still and waits for the first command of the episode.
    pub fn on_reset(&mut self, now_us: u64) {
        if matches!(self.poll(now_us), DriveState::Run | DriveState::Hold) {
            self.stand_still(DriveState::Armed);
        }
    }

    /// ESTOP: [`DriveState::Fault`], from every state.
    pub fn on_estop(&mut self) {
        self.fault(Faults::ESTOP);
    }

    /// FAULT_RESET: leaves [`DriveState::Fault`] for [`DriveState::Disarmed`]; nothing in any other state.
    pub fn on_fault_reset(&mut self) {
        if self.state == DriveState::Fault {
            self.faults = Faults::default();
            self.state = DriveState::Disarmed;
        }
    }

    /// DISARM: deaf to commands. A fault stays.
    pub fn on_disarm(&mut self) {
        if self.state != DriveState::Fault {
            self.stand_still(DriveState::Disarmed);
        }
    }

    /// The watchdog: call it once per control period, before [`Drive::output`] is applied.
    pub fn poll(&mut self, now_us: u64) -> DriveState {
        if matches!(self.state, DriveState::Run | DriveState::Hold) {
            let silent_us = now_us.saturating_sub(self.fresh_us);
            if silent_us >= self.config.fault_us {
                self.fault(Faults::WATCHDOG);
            } else if silent_us >= self.valid_us {
                self.stand_still(DriveState::Hold);
            }
        }
        self.state
    }

    fn fault(&mut self, fault: Faults) {
        self.faults.insert(fault);
        self.stand_still(DriveState::Fault);
    }

    fn stand_still(&mut self, state: DriveState) {
        self.state = state;
        self.limiter.reset();
    }

    /// The action to apply now, `n_action` values; zeros unless the drive runs.
    pub fn output(&self) -> &[f32] {
        let output = self.limiter.last();
        output.get(..self.config.n_action).unwrap_or(output)
    }

    /// The state after the last call.
    pub fn state(&self) -> DriveState {
        self.state
    }

    /// Why the drive is in [`DriveState::Fault`].
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// Commands refused so far. The counters of the link are zero here: the board adds them.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

/// Why a drive refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The drive is disarmed.
    NotArmed,
    /// The drive is in [`DriveState::Fault`].
    Faulted,
    /// The session was armed before.
    SessionReused,
    /// The command belongs to another session.
    WrongSession,
    /// The frame number is not newer than that of the last command.
    OldSequence,
    /// The command has another number of entries than the drive.
    WrongLength,
    /// An entry is beyond the limit or not a finite number.
    OutOfRange,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotArmed => "the drive is disarmed; arm it first",
            Self::Faulted => "the drive is in fault; reset the fault and arm it with a new session",
            Self::SessionReused => "the session was armed before; choose a new one",
            Self::WrongSession => "the command belongs to another session than the armed one",
            Self::OldSequence => "the command is not newer than the last one",
            Self::WrongLength => "the command has another number of entries than the drive",
            Self::OutOfRange => "an entry of the command is beyond the drive's limit or not finite",
        })
    }
}

impl core::error::Error for Rejection {}

#[cfg(test)]
mod tests;
