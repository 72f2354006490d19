//! How many gradient updates are due.
//!
//! Pure arithmetic: the number of updates a run should have made is a function of its online steps alone, so a
//! learner that stalled catches up, one that resumes goes on where it was, and none ever runs ahead. Called by
//! the learner thread; knows no time and no machine speed.

use crate::config::{Cadence, LearnerConfig};

/// The update-to-data rule of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    cadence: Cadence,
    utd_ratio: f64,
    burst_steps: u64,
    first_burst_multiplier: f64,
    warmup_steps: u64,
}

impl Schedule {
    /// The rule that `[learner]` describes.
    pub fn new(config: &LearnerConfig) -> Self {
        Self {
            cadence: config.cadence,
            utd_ratio: config.utd_ratio,
            burst_steps: config.burst_steps.max(1),
            first_burst_multiplier: config.first_burst_multiplier,
            warmup_steps: config.warmup_steps,
        }
    }

    /// Updates that a run with `online_steps` steps should have made since its start.
    ///
    /// Never decreases when `online_steps` grows. Steps of the warm-up earn nothing, also later.
    ///
    /// - [`Cadence::Stream`]: `floor(utd_ratio * steps)` over the steps after the warm-up; those up to step
    ///   `burst_steps` count `first_burst_multiplier` times.
    /// - [`Cadence::Burst`]: `burst_steps * utd_ratio` for every completed burst that does not end within the
    ///   warm-up; the first of them counts `first_burst_multiplier` times (Off2OnRL's published code: 1000
    ///   steps, then 5000 updates, then 1000 and 1000).
    pub fn total(&self, online_steps: u64) -> u64 {
        let weighted_steps = match self.cadence {
            Cadence::Stream => {
                let steps = online_steps.saturating_sub(self.warmup_steps);
                let first = online_steps.min(self.burst_steps).saturating_sub(self.warmup_steps);
                first as f64 * self.first_burst_multiplier + (steps - first) as f64
            }
            Cadence::Burst => {
                let skipped = self.warmup_steps.saturating_sub(1) / self.burst_steps;
                match (online_steps / self.burst_steps).saturating_sub(skipped) {
                    0 => 0.0,
                    bursts => ((bursts - 1) as f64 + self.first_burst_multiplier) * self.burst_steps as f64,
                }
            }
        };
        // The tolerance keeps 0.1 * 10 = 0.9999999 from losing an update; casting turns NaN into 0.
        (self.utd_ratio * weighted_steps + 1e-9).floor() as u64
    }

    /// Updates to make now: those of [`Schedule::total`] that are not among the `updates_done`.
    pub fn due(&self, online_steps: u64, updates_done: u64) -> u64 {
        self.total(online_steps).saturating_sub(updates_done)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(cadence: Cadence, utd_ratio: f64, burst_steps: u64, multiplier: f64, warmup_steps: u64) -> Schedule {
        Schedule { cadence, utd_ratio, burst_steps, first_burst_multiplier: multiplier, warmup_steps }
    }

    #[test]
    fn published_bursts() {
        let s = schedule(Cadence::Burst, 1.0, 1000, 5.0, 256);
        for (steps, updates) in [(0, 0), (999, 0), (1000, 5000), (1999, 5000), (2000, 6000), (9000, 13_000)] {
            assert_eq!(s.total(steps), updates, "at {steps}");
        }
        assert_eq!(s.due(2500, 5100), 900);
    }

    #[test]
    fn stream_follows_every_step() {
        let s = schedule(Cadence::Stream, 1.0, 1000, 5.0, 256);
        for (steps, updates) in [(256, 0), (257, 5), (1000, 3720), (1001, 3721), (2000, 4720)] {
            assert_eq!(s.total(steps), updates, "at {steps}");
        }
        let s = schedule(Cadence::Stream, 0.1, 1, 1.0, 0);
        assert_eq!((0..=30).map(|n| s.total(n)).filter(|u| *u == 1).count(), 10);
        assert_eq!(s.total(30), 3);
    }

    #[test]
    fn warm_up_steps_never_earn_updates() {
        // WSRL: 5000 steps, then 4 updates per step, no catch-up.
        let s = schedule(Cadence::Stream, 4.0, 1000, 1.0, 5000);
        assert_eq!((s.total(5000), s.total(5001), s.total(6000)), (0, 4, 4000));
        let s = schedule(Cadence::Burst, 1.0, 1000, 5.0, 2500);
        assert_eq!((s.total(2999), s.total(3000), s.total(4000)), (0, 5000, 6000));
        let s = schedule(Cadence::Burst, 1.0, 1000, 5.0, 1000);
        assert_eq!(s.total(1000), 5000);
    }

    fn any_schedule() -> impl Strategy<Value = Schedule> {
        let cadence = prop_oneof![Just(Cadence::Stream), Just(Cadence::Burst)];
        (cadence, 0.0..8.0f64, 1..3000u64, 0.0..12.0f64, 0..6000u64)
            .prop_map(|(cadence, utd, burst, multiplier, warmup)| schedule(cadence, utd, burst, multiplier, warmup))
    }

    proptest! {
        #[test]
        fn monotone_and_zero_in_the_warm_up(s in any_schedule(), steps in 0..20_000u64, more in 0..5000u64) {
            prop_assert!(s.total(steps) <= s.total(steps + more));
            if steps < s.warmup_steps {
                prop_assert_eq!(s.total(steps), 0);
            }
        }

        #[test]
        fn never_runs_ahead_and_catches_up(s in any_schedule(), stalls in prop::collection::vec((1..400u64, 0..50u64), 1..40)) {
            // A learner that at each wake-up makes at most `budget` of the due updates.
            let (mut steps, mut done) = (0, 0);
            for (advance, budget) in stalls {
                steps += advance;
                done += s.due(steps, done).min(budget);
                prop_assert!(done <= s.total(steps));
            }
            done += s.due(steps, done);
            prop_assert_eq!(done, s.total(steps));
            prop_assert_eq!(s.due(steps, done), 0);
        }

        #[test]
        fn ratio_holds_in_the_long_run(s in any_schedule(), extra in 50_000..100_000u64) {
            let (low, high) = (20_000, 20_000 + extra);
            let made = s.total(high) - s.total(low);
            let slack = s.utd_ratio * s.burst_steps as f64 + 1.0;
            prop_assert!((made as f64 - s.utd_ratio * extra as f64).abs() <= slack);
        }
    }
}
