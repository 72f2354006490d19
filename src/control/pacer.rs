//! Deadlines that keep their phase: next deadline = last deadline + period, whole periods skipped when late.

use std::time::Duration;

use crate::clock::{Clock, Stamp};

/// Absolute deadlines on one clock.
#[derive(Clone, Debug)]
pub struct Pacer {
    due: Stamp,
    period: Duration,
}

impl Pacer {
    /// First deadline at `first`.
    pub fn new(first: Stamp, period: Duration) -> Self {
        Self { due: first, period }
    }

    /// Sleeps until the deadline; returns how late the wake-up was.
    pub fn wait(&self, clock: &Clock) -> Duration {
        clock.sleep_until(self.due);
        clock.now().since(self.due)
    }

    /// Sets the next deadline at `now`; returns how many whole periods were missed and are skipped.
    pub fn advance(&mut self, now: Stamp) -> u64 {
        self.due = self.due.plus(self.period);
        let missed = now.since(self.due).as_micros() / self.period.as_micros().max(1);
        let missed = missed as u64 + u64::from(now > self.due);
        self.due = self.due.plus(self.period * missed as u32);
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_is_kept_and_whole_periods_are_skipped() {
        let period = Duration::from_millis(10);
        let mut pacer = Pacer::new(Stamp(10_000), period);
        assert_eq!(pacer.advance(Stamp(12_000)), 0);
        assert_eq!(pacer.due, Stamp(20_000));
        assert_eq!(pacer.advance(Stamp(30_000)), 0, "ending on the deadline is in time");
        assert_eq!(pacer.advance(Stamp(40_001)), 1);
        assert_eq!(pacer.due, Stamp(50_000));
        assert_eq!(pacer.advance(Stamp(95_000)), 4);
        assert_eq!(pacer.due, Stamp(100_000));
    }

    #[test]
    fn work_does_not_move_the_phase() {
        let clock = Clock::lockstep();
        let mut pacer = Pacer::new(Stamp(1000), Duration::from_millis(1));
        for _ in 0..1000 {
            assert_eq!(pacer.wait(&clock), Duration::ZERO);
            clock.advance(Duration::from_micros(700));
            assert_eq!(pacer.advance(clock.now()), 0);
        }
        assert_eq!(pacer.due, Stamp(1_001_000));
    }
}
