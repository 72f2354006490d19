//! A recorded run as a robot: it answers every action with the next recorded step.

use crate::clock::Clock;
use crate::spaces::{StepFlags, StepRecord};
use firmware_bridge::DriveState;

use super::{LinkCounters, Observed, Robot, RobotDescription, RobotError};

/// Plays recorded episodes in their order, in lockstep; a reset goes on to the next one and wraps at the end.
///
/// Actions count as ticks of the clock, their values are ignored: `Observed::applied` is what was recorded. No
/// heap is touched after [`PlaybackRobot::new`].
pub struct PlaybackRobot {
    description: RobotDescription,
    clock: Clock,
    records: Vec<StepRecord>,
    /// Index of the record that is the present state.
    at: usize,
    /// First record of the episode that the next reset plays.
    next_episode: usize,
    episode: u32,
    tick: u32,
    drive: DriveState,
    fresh: bool,
}

impl PlaybackRobot {
    /// Plays `records`, whose episodes lie one behind the other.
    ///
    /// # Errors
    /// When there are none, or their dimensions differ from those of `description`.
    pub fn new(records: Vec<StepRecord>, description: RobotDescription, clock: Clock) -> Result<Self, RobotError> {
        let fits = |record: &StepRecord| {
            record.observation.len() == description.observation_dim
                && (record.action.len() == description.action_dim || record.flags.contains(StepFlags::OBSERVATION_ONLY))
        };
        if records.is_empty() || !records.iter().all(fits) {
            return Err(RobotError::EmptyRecording);
        }
        Ok(Self {
            description,
            clock,
            records,
            at: 0,
            next_episode: 0,
            episode: 0,
            tick: 0,
            drive: DriveState::Disarmed,
            fresh: false,
        })
    }

    /// The record in front of the present one, when it belongs to the same episode: the step that led here.
    fn step_here(&self) -> Option<&StepRecord> {
        let before = self.records.get(self.at.checked_sub(1)?)?;
        (self.tick > 0 && before.episode == self.records[self.at].episode).then_some(before)
    }
}

impl Robot for PlaybackRobot {
    fn description(&self) -> &RobotDescription {
        &self.description
    }

    fn arm(&mut self) -> Result<(), RobotError> {
        self.drive = DriveState::Armed;
        Ok(())
    }

    fn request_reset(&mut self, episode: u32, _seed: u64) -> Result<(), RobotError> {
        self.at = self.next_episode;
        let recorded = self.records[self.at].episode;
        let length = self.records[self.at..].iter().take_while(|record| record.episode == recorded).count();
        self.next_episode = (self.at + length) % self.records.len();
        (self.episode, self.tick, self.fresh) = (episode, 0, true);
        Ok(())
    }

    fn observe(&mut self, into: &mut Observed) -> Result<bool, RobotError> {
        if !std::mem::take(&mut self.fresh) {
            return Ok(false);
        }
        into.clone_from(&Observed {
            tick: self.tick,
            episode: self.episode,
            capture: self.clock.now(),
            drive: self.drive,
            reward_valid: true,
            observation: self.records[self.at].observation.clone(),
            ..Observed::default()
        });
        match self.step_here() {
            Some(step) => {
                into.applied.clone_from(&step.action);
                into.reward = step.reward;
                into.terminated = step.flags.contains(StepFlags::TERMINATED);
            }
            None => drop(into.applied.resize(self.description.action_dim, 0.0)),
        }
        Ok(true)
    }

    fn apply(&mut self, action: &[f32]) -> Result<(), RobotError> {
        let expected = self.description.action_dim;
        if action.len() != expected {
            return Err(RobotError::ActionLength { expected, got: action.len() });
        }
        if matches!(self.drive, DriveState::Disarmed | DriveState::Fault) {
            return Ok(());
        }
        let here = self.records[self.at].episode;
        if self.records.get(self.at + 1).is_none_or(|next| next.episode != here) {
            return Err(RobotError::EndOfRecording { episode: here, step: self.tick });
        }
        self.drive = DriveState::Run;
        (self.at, self.tick, self.fresh) = (self.at + 1, self.tick + 1, true);
        Ok(())
    }

    fn stop(&mut self) {
        self.drive = DriveState::Fault;
    }

    fn disarm(&mut self) {
        self.drive = DriveState::Disarmed;
    }

    fn counters(&self) -> LinkCounters {
        LinkCounters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(episode: u32, step: u32, flags: StepFlags) -> StepRecord {
        let value = (10 * episode + step) as f32;
        StepRecord {
            episode,
            step,
            flags,
            reward: value,
            observation: heapless::Vec::from_slice(&[value, -value]).unwrap(),
            action: heapless::Vec::from_slice(&[value / 100.0]).unwrap(),
            ..StepRecord::default()
        }
    }

    /// Episode 1: two steps, the second terminates. Episode 2: one step, cut.
    fn robot() -> PlaybackRobot {
        let records = vec![
            record(1, 0, StepFlags::default()),
            record(1, 1, StepFlags::TERMINATED),
            record(1, 2, StepFlags::OBSERVATION_ONLY),
            record(2, 0, StepFlags::TRUNCATED),
            record(2, 1, StepFlags::OBSERVATION_ONLY),
        ];
        let description = RobotDescription {
            observation_dim: 2,
            action_dim: 1,
            control_period: Duration::from_millis(50),
            watchdog: Duration::from_millis(100),
            firmware: 0,
            boot_id: 0,
        };
        PlaybackRobot::new(records, description, Clock::lockstep()).unwrap()
    }

    #[test]
    fn episodes_come_back_as_they_were_recorded() {
        let (mut robot, mut seen) = (robot(), Observed::default());
        robot.arm().unwrap();
        assert!(!robot.observe(&mut seen).unwrap());
        for (episode, recorded, ticks) in [(7, 1, 2), (8, 2, 1), (9, 1, 2)] {
            robot.request_reset(episode, 0).unwrap();
            for tick in 0..=ticks {
                assert!(robot.observe(&mut seen).unwrap());
                assert_eq!((seen.episode, seen.tick), (episode, tick));
                assert_eq!(seen.observation[0], (10 * recorded + tick) as f32);
                let step = tick.checked_sub(1).map_or(0.0, |step| (10 * recorded + step) as f32);
                assert_eq!((seen.reward, seen.applied.as_slice()), (step, [step / 100.0].as_slice()));
                assert_eq!(seen.terminated, recorded == 1 && tick == 2);
                assert!(!robot.observe(&mut seen).unwrap());
                assert_eq!(robot.apply(&[0.0]).is_ok(), tick < ticks);
            }
        }
    }

    #[test]
    fn a_stopped_recording_stands_still_and_an_empty_one_is_refused() {
        let (mut robot, mut seen) = (robot(), Observed::default());
        robot.arm().unwrap();
        robot.request_reset(0, 0).unwrap();
        assert!(robot.observe(&mut seen).unwrap());
        robot.stop();
        robot.apply(&[0.0]).unwrap();
        assert!(!robot.observe(&mut seen).unwrap());
        let description = robot.description.clone();
        assert!(PlaybackRobot::new(Vec::new(), description.clone(), Clock::lockstep()).is_err());
        let wide = RobotDescription { observation_dim: 3, ..description };
        assert!(PlaybackRobot::new(robot.records.clone(), wide, Clock::lockstep()).is_err());
    }
}
