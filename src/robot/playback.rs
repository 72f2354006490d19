//! A recorded run as a robot: it answers every action with the next recorded observation.

use std::collections::BTreeMap;

use crate::clock::Clock;
use crate::spaces::{StepFlags, StepRecord};
use firmware_bridge::{DriveState, MAX_ACTION};

use super::{LinkCounters, Observed, Robot, RobotDescription, RobotError};

/// Plays recorded episodes in lockstep. A reset goes to the first record of the episode with that number; states
/// have the episode and step numbers of the recording, holes included.
///
/// What follows an action is what was recorded, whatever the action; `Observed::applied` is the action that was sent.
/// No heap is touched after [`PlaybackRobot::new`].
pub struct PlaybackRobot {
    description: RobotDescription,
    clock: Clock,
    records: Vec<StepRecord>,
    /// First record of each episode.
    starts: BTreeMap<u32, usize>,
    /// Index of the record that is the present state.
    at: usize,
    /// The action that led there; empty at the start of an episode.
    applied: heapless::Vec<f32, MAX_ACTION>,
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
        let mut starts = BTreeMap::new();
        for (index, record) in records.iter().enumerate() {
            starts.entry(record.episode).or_insert(index);
        }
        let applied = heapless::Vec::new();
        Ok(Self { description, clock, records, starts, at: 0, applied, drive: DriveState::Disarmed, fresh: false })
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

    /// An episode that was not recorded never comes.
    fn request_reset(&mut self, episode: u32, _seed: u64) -> Result<(), RobotError> {
        let start = self.starts.get(&episode).copied();
        (self.at, self.fresh) = (start.unwrap_or(self.at), start.is_some());
        self.applied.clear();
        Ok(())
    }

    fn observe(&mut self, into: &mut Observed) -> Result<bool, RobotError> {
        if !std::mem::take(&mut self.fresh) {
            return Ok(false);
        }
        let here = &self.records[self.at];
        into.clone_from(&Observed {
            tick: here.step,
            episode: here.episode,
            capture: self.clock.now(),
            drive: self.drive,
            reward_valid: true,
            applied: self.applied.clone(),
            observation: here.observation.clone(),
            ..Observed::default()
        });
        if self.applied.is_empty() {
            let _ = into.applied.resize(self.description.action_dim, 0.0);
        } else {
            let step = &self.records[self.at - 1];
            into.reward = step.reward;
            into.terminated = step.flags.contains(StepFlags::TERMINATED);
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
        let StepRecord { episode, step, .. } = self.records[self.at];
        if self.records.get(self.at + 1).is_none_or(|next| next.episode != episode) {
            return Err(RobotError::EndOfRecording { episode, step });
        }
        self.drive = DriveState::Run;
        (self.at, self.fresh) = (self.at + 1, true);
        self.applied.clear();
        let _ = self.applied.extend_from_slice(action);
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

    /// Episode 1: two steps, the second terminates. Episode 4 begins at step 5 and has a hole behind it.
    fn robot() -> PlaybackRobot {
        let records = vec![
            record(1, 0, StepFlags::default()),
            record(1, 1, StepFlags::TERMINATED),
            record(1, 2, StepFlags::OBSERVATION_ONLY),
            record(4, 5, StepFlags::OBSERVATION_ONLY),
            record(4, 8, StepFlags::OBSERVATION_ONLY),
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
        for (episode, steps) in [(1, &[0, 1, 2][..]), (4, &[5, 8]), (1, &[0, 1, 2])] {
            robot.request_reset(episode, 0).unwrap();
            for (index, step) in steps.iter().enumerate() {
                assert!(robot.observe(&mut seen).unwrap());
                assert_eq!((seen.episode, seen.tick), (episode, *step));
                assert_eq!(seen.observation[0], (10 * episode + step) as f32);
                let before = index.checked_sub(1).map(|index| steps[index]);
                assert_eq!(seen.reward, before.map_or(0.0, |step| (10 * episode + step) as f32));
                assert_eq!(seen.applied.as_slice(), [if index > 0 { 0.25 } else { 0.0 }], "what was sent");
                assert_eq!(seen.terminated, episode == 1 && *step == 2);
                assert!(!robot.observe(&mut seen).unwrap());
                assert_eq!(robot.apply(&[0.25]).is_ok(), index + 1 < steps.len());
            }
        }
        robot.request_reset(2, 0).unwrap();
        assert!(!robot.observe(&mut seen).unwrap(), "an episode that was not recorded never comes");
    }

    #[test]
    fn a_stopped_recording_stands_still_and_an_empty_one_is_refused() {
        let (mut robot, mut seen) = (robot(), Observed::default());
        robot.arm().unwrap();
        robot.request_reset(1, 0).unwrap();
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
