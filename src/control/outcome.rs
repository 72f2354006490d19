//! Success and failure: when an episode is over although the robot does not say so, and what that is worth.
//!
//! Runs on the control thread, on every observation of an episode. An operator's word ([`Verdict`]) and the
//! conditions of the configuration end an episode as terminated: nothing is bootstrapped behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

pub use crate::spaces::Outcome;

/// What an operator or a classifier says about an episode that is under way; the newest word counts, once, and for
/// no other episode than the one it was said about.
#[derive(Debug, Default)]
pub struct Verdict {
    /// 0: nothing was said. Else the episode above two bits, 1 for a success, 2 for a failure.
    said: AtomicU64,
    /// Words that came after their episode had ended, or were replaced by a newer one.
    pub unheard: AtomicU64,
}

impl Verdict {
    /// Says it.
    pub fn say(&self, episode: u32, outcome: Outcome) {
        let before = self.said.swap(u64::from(episode) << 2 | (1 + outcome as u64), AcqRel);
        self.unheard.fetch_add(u64::from(before != 0), Relaxed);
    }

    /// Hears what was said about `episode`; anything else is forgotten and counted. Real time.
    fn take(&self, episode: u32) -> Option<Outcome> {
        // The common case costs a load.
        if self.said.load(Relaxed) == 0 {
            return None;
        }
        let said = self.said.swap(0, AcqRel);
        match said & 3 {
            1 | 2 if said >> 2 != u64::from(episode) => {
                self.unheard.fetch_add(1, Relaxed);
                None
            }
            1 => Some(Outcome::Success),
            2 => Some(Outcome::Failure),
            _ => None,
        }
    }
}

/// An entry of the observation and the range that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Place in the observation.
    pub entry: usize,
    /// Lower end, inclusive.
    pub min: f32,
    /// Upper end, inclusive.
    pub max: f32,
}

impl Range {
    /// Written so that NaN is outside.
    fn holds(&self, observation: &[f32]) -> bool {
        observation.get(self.entry).is_some_and(|value| *value >= self.min && *value <= self.max)
    }
}

/// The rules of an episode. The default leaves everything to the robot.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// All of them together are a success; none: never.
    pub success: Vec<Range>,
    /// Any of them is a failure.
    pub failure: Vec<Range>,
    /// Steps in a row for which a condition has to hold.
    pub hold_steps: u32,
    /// Reward of every step in place of the robot's.
    pub step_reward: Option<f32>,
    /// Added in the step that succeeds.
    pub success_reward: f32,
    /// Added in the step that fails.
    pub failure_reward: f32,
    /// What an operator says.
    pub verdict: Arc<Verdict>,
    /// Steps in a row so far: success, failure. Starts at zero.
    pub held: [u32; 2],
}

impl Rules {
    /// At the start of an episode: what was held before does not count.
    pub fn reset(&mut self) {
        self.held = [0; 2];
    }

    /// On every observation of an episode. A failure outweighs a success of the same step, a word outweighs both.
    pub fn judge(&mut self, episode: u32, observation: &[f32]) -> Option<Outcome> {
        let success = !self.success.is_empty() && self.success.iter().all(|range| range.holds(observation));
        let failure = self.failure.iter().any(|range| range.holds(observation));
        for (held, holds) in self.held.iter_mut().zip([success, failure]) {
            *held = if holds { held.saturating_add(1) } else { 0 };
        }
        let long = self.hold_steps.max(1);
        let [success, failure] = self.held.map(|held| held >= long);
        let seen = if failure { Some(Outcome::Failure) } else { success.then_some(Outcome::Success) };
        self.verdict.take(episode).or(seen)
    }

    /// Reward of a step: `robots` is what the robot says, if it says anything. `None`: there is no reward.
    pub fn reward(&self, robots: Option<f32>, outcome: Option<Outcome>) -> Option<f32> {
        let ending = match outcome {
            None => 0.0,
            Some(Outcome::Success) => self.success_reward,
            Some(Outcome::Failure) => self.failure_reward,
        };
        self.step_reward.or(robots).map(|reward| reward + ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            success: vec![Range { entry: 0, min: 0.9, max: 1.0 }, Range { entry: 1, min: -0.1, max: 0.1 }],
            failure: vec![Range { entry: 1, min: 5.0, max: f32::INFINITY }],
            hold_steps: 2,
            success_reward: 10.0,
            failure_reward: -3.0,
            ..Rules::default()
        }
    }

    #[test]
    fn a_condition_has_to_hold_and_all_parts_of_a_success_have_to() {
        let mut rules = rules();
        for observation in [[0.95, 0.0], [0.95, 0.2], [0.95, 0.0], [f32::NAN, 0.0], [0.95, 0.0]] {
            assert_eq!(rules.judge(0, &observation), None);
        }
        assert_eq!(rules.judge(0, &[1.0, 0.1]), Some(Outcome::Success));
        rules.reset();
        assert_eq!(rules.judge(0, &[0.0, 9.0]), None);
        assert_eq!(rules.judge(0, &[0.0, 9.0]), Some(Outcome::Failure));
        assert_eq!(Rules::default().judge(0, &[0.0, 0.0]), None);
    }

    #[test]
    fn a_word_counts_once_and_for_its_own_episode_only() {
        let mut rules = rules();
        let unheard = |rules: &Rules| rules.verdict.unheard.load(Relaxed);
        rules.verdict.say(0, Outcome::Success);
        assert_eq!(rules.judge(0, &[0.0, 0.0]), Some(Outcome::Success));
        assert_eq!(rules.judge(0, &[0.0, 0.0]), None);
        assert_eq!(unheard(&rules), 0);
        for (episode, said) in [(7, 6), (7, 8), (u32::MAX, 0)] {
            rules.verdict.say(said, Outcome::Failure);
            assert_eq!(rules.judge(episode, &[0.0, 0.0]), None, "{said} in {episode}");
        }
        rules.verdict.say(u32::MAX, Outcome::Success);
        rules.verdict.say(u32::MAX, Outcome::Failure);
        assert_eq!(rules.judge(u32::MAX, &[0.0, 0.0]), Some(Outcome::Failure), "the newest");
        assert_eq!(unheard(&rules), 4);
    }

    #[test]
    fn rewards_add_up() {
        let mut rules = rules();
        assert_eq!(rules.reward(Some(0.5), None), Some(0.5));
        assert_eq!(rules.reward(Some(0.5), Some(Outcome::Success)), Some(10.5));
        assert_eq!(rules.reward(None, Some(Outcome::Success)), None, "a robot without rewards needs step_reward");
        rules.step_reward = Some(-0.1);
        assert_eq!(rules.reward(Some(0.5), Some(Outcome::Failure)), Some(-3.1));
        assert_eq!(rules.reward(None, None), Some(-0.1));
    }
}
