//! A policy from outside on trial: whether it collapses, judged by the limits and by the return.
//!
//! Pure: it is shown counters and returns and gives a verdict, once. Rules are those of `[swap]`.

use crate::config::SwapConfig;
use crate::telemetry::EpisodeReturn;

/// Steps over which the share of limited ones is taken.
const WINDOW: u64 = 100;

/// A trial ends after this many times its episodes, however few of them are whole.
const GAPPED: usize = 4;

/// What the control loop has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Generation of the policy in use.
    pub generation: u64,
    /// Steps.
    pub steps: u64,
    /// Actions that a limit changed.
    pub limited: u64,
    /// Actions that were not finite.
    pub bad: u64,
}

/// How a trial stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It goes on.
    Open,
    /// The policy stays.
    Passed,
    /// It has to go back, because of this.
    Collapsed(String),
}

/// A trial.
pub(super) struct Trial {
    rules: SwapConfig,
    generation: u32,
    /// Mean return before the swap, where it is known.
    before: Option<f64>,
    /// Whether the first episode began with the policy before.
    straddles: bool,
    /// What was counted when the window began; none before the policy is in use.
    window: Option<Counted>,
    /// Actions that were not finite when it came into use.
    bad: u64,
}

impl Trial {
    /// Of the policy with this generation, after `returns`; `straddles`: it came in the middle of an episode.
    pub(super) fn new(rules: SwapConfig, generation: u32, returns: &[EpisodeReturn], straddles: bool) -> Self {
        let whole: Vec<f64> = returns.iter().filter(|e| !e.gapped).map(|e| e.episode_return).collect();
        let count = rules.trial_episodes as usize;
        let before = (whole.len() >= count && count > 0).then(|| mean(&whole[whole.len() - count..]));
        Self { rules, generation, before, straddles, window: None, bad: 0 }
    }

    /// The present verdict; `returns` are the newest episodes, oldest first.
    pub(super) fn look(&mut self, now: Counted, returns: &[EpisodeReturn]) -> Verdict {
        if now.generation != u64::from(self.generation) {
            return Verdict::Open;
        }
        let window = *self.window.get_or_insert_with(|| {
            self.bad = now.bad;
            now
        });
        if now.bad > self.bad {
            return Verdict::Collapsed("an action was not finite".into());
        }
        let (steps, limited) = (now.steps - window.steps, now.limited - window.limited);
        if steps >= WINDOW {
            let share = limited as f64 / steps as f64;
            if share > self.rules.limited_share {
                return Verdict::Collapsed(format!(
                    "the limits changed {:.0} % of its last {steps} actions (swap.limited_share)",
                    100.0 * share.min(1.0)
                ));
            }
            self.window = Some(now);
        }
        self.judge_returns(returns)
    }

    fn judge_returns(&self, returns: &[EpisodeReturn]) -> Verdict {
        let own = returns.iter().filter(|e| e.policy_generation == self.generation).skip(usize::from(self.straddles));
        let own: Vec<_> = own.collect();
        let whole: Vec<f64> = own.iter().filter(|e| !e.gapped).map(|e| e.episode_return).collect();
        let wanted = self.rules.trial_episodes as usize;
        if whole.len() < wanted && own.len() < GAPPED * wanted {
            return Verdict::Open;
        }
        let after = mean(&whole);
        match self.before.filter(|_| !whole.is_empty()) {
            Some(before) if self.rules.return_drop > 0.0 && after < before - self.rules.return_drop * before.abs() => {
                Verdict::Collapsed(format!(
                    "its mean return is {after:.1}, before it was {before:.1} (swap.return_drop)"
                ))
            }
            _ => Verdict::Passed,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returns(generation: u32, values: &[f64]) -> Vec<EpisodeReturn> {
        let episode = |value: &f64| EpisodeReturn {
            episode: 0,
            at_step: 0,
            length: 10,
            episode_return: *value,
            terminated: false,
            gapped: *value == 9999.0,
            policy_generation: generation,
        };
        values.iter().map(episode).collect()
    }

    fn rules() -> SwapConfig {
        SwapConfig { trial_episodes: 2, ..SwapConfig::default() }
    }

    fn counted(steps: u64, limited: u64) -> Counted {
        Counted { generation: 7, steps, limited, bad: 0 }
    }

    /// Verdict after returns before and after.
    fn judged(before: &[f64], after: &[f64], straddles: bool) -> Verdict {
        let mut all = returns(6, before);
        let mut trial = Trial::new(rules(), 7, &all, straddles);
        all.extend(returns(7, after));
        trial.look(counted(0, 0), &all)
    }

    #[test]
    fn a_return_that_drops_too_far_is_a_collapse_and_half_an_episode_is_not_judged() {
        let collapsed = |verdict| matches!(verdict, Verdict::Collapsed(why) if why.contains("swap.return_drop"));
        assert_eq!(judged(&[-900.0, -100.0, -100.0], &[-140.0], false), Verdict::Open);
        assert_eq!(judged(&[-900.0, -100.0, -100.0], &[-149.0, -149.0], false), Verdict::Passed);
        assert!(collapsed(judged(&[-900.0, -100.0, -100.0], &[-151.0, -151.0], false)));
        assert!(collapsed(judged(&[100.0, 100.0], &[0.0, 90.0], false)));
        assert_eq!(judged(&[100.0, 100.0], &[0.0, 90.0], true), Verdict::Open, "the first began with the old policy");
        assert_eq!(judged(&[100.0, 100.0], &[0.0, 90.0, 90.0], true), Verdict::Passed);
        assert_eq!(judged(&[100.0, 100.0], &[9999.0, 9999.0], false), Verdict::Open, "steps are missing");
        assert_eq!(judged(&[100.0, 100.0], &[9999.0; 8], false), Verdict::Passed, "nearly all have steps missing");
        assert_eq!(judged(&[100.0], &[0.0, 0.0], false), Verdict::Passed, "nothing to compare with");
    }

    #[test]
    fn limits_that_act_all_the_time_are_a_collapse_and_count_from_the_swap_on() {
        let start = |counts: &[(u64, u64)]| {
            let mut trial = Trial::new(rules(), 7, &[], false);
            let old = Counted { generation: 6, steps: 500, limited: 500, bad: 3 };
            assert_eq!(trial.look(old, &[]), Verdict::Open, "not in use yet");
            let verdicts = counts.iter().map(|(s, l)| trial.look(Counted { bad: 3, ..counted(500 + s, 500 + l) }, &[]));
            verdicts.collect::<Vec<_>>().pop()
        };
        assert_eq!(start(&[(0, 0), (99, 99)]), Some(Verdict::Open));
        assert!(matches!(start(&[(0, 0), (100, 95)]), Some(Verdict::Collapsed(_))));
        assert_eq!(start(&[(0, 0), (100, 90)]), Some(Verdict::Open));
        assert!(matches!(start(&[(0, 0), (100, 0), (150, 50), (200, 95)]), Some(Verdict::Collapsed(_))));
        let mut trial = Trial::new(rules(), 7, &[], false);
        assert_eq!(trial.look(counted(0, 0), &[]), Verdict::Open);
        assert!(matches!(trial.look(Counted { bad: 1, ..counted(1, 0) }, &[]), Verdict::Collapsed(_)));
    }
}
