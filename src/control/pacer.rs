//! Absolute deadlines: next deadline = last deadline + period, so that work never moves the phase.
//!
//! What happens when a deadline has passed already is a setting. [`Overrun::Skip`] leaves out whole periods and
//! counts them: the phase stays, and a late tick is never followed by a burst. [`Overrun::AtOnce`] runs the next
//! tick at once and counts on from there: for robots that set the pace themselves and lose a cycle that is skipped.
//! It also follows their clock: [`Pacer::follow`].

use std::time::Duration;

use crate::clock::{Clock, Stamp};
use crate::config::Overrun;

/// States whose mean age is what later ones are kept at.
const REFERENCE: u32 = 64;
/// Weight of a new age in the running mean.
const NEW: f64 = 1.0 / 32.0;
/// Part of the deviation that one deadline is moved by.
const PULL: f64 = 1.0 / 64.0;
/// Most that one deadline is moved by, in periods: ten times what clocks drift, and no jitter to speak of.
const MOST: f64 = 1e-3;

/// Absolute deadlines on one clock.
#[derive(Clone, Debug)]
pub struct Pacer {
    due: Stamp,
    period: Duration,
    overrun: Overrun,
    /// Ages seen, their mean in the first of them, and the running mean; microseconds.
    ages: (u32, f64, f64),
}

impl Pacer {
    /// First deadline at `first`. The period counts in whole microseconds, as the robot's does.
    pub fn new(first: Stamp, period: Duration, overrun: Overrun) -> Self {
        let period = Duration::from_micros((period.as_micros() as u64).max(1));
        Self { due: first, period, overrun, ages: (0, 0.0, 0.0) }
    }

    /// Sleeps until the deadline; returns how late the wake-up was.
    pub fn wait(&self, clock: &Clock) -> Duration {
        clock.sleep_until(self.due);
        clock.now().since(self.due)
    }

    /// Keeps the phase to a robot that sets the pace ([`Overrun::AtOnce`]): `age` is how old its state was when this
    /// tick used it. A clock that runs differently makes it grow or shrink; the next deadline is moved against that.
    pub fn follow(&mut self, age: Duration) {
        let age = age.as_micros() as f64;
        let (seen, wanted, mean) = &mut self.ages;
        if *seen < REFERENCE {
            *seen += 1;
            *wanted += (age - *wanted) / f64::from(*seen);
            *mean = *wanted;
        } else if self.overrun == Overrun::AtOnce {
            *mean += NEW * (age - *mean);
            let most = (MOST * self.period.as_micros() as f64).max(1.0);
            let shift = ((*wanted - *mean) * PULL).clamp(-most, most) as i64;
            self.due = Stamp(self.due.0.saturating_add_signed(shift));
        }
    }

    /// Sets the next deadline at `now`; returns how many deadlines passed in the meantime.
    pub fn advance(&mut self, now: Stamp) -> u64 {
        self.due = self.due.plus(self.period);
        let late = now.since(self.due).as_micros();
        // Ending on the deadline is in time.
        let missed = late.div_ceil(self.period.as_micros()) as u64;
        self.due = match self.overrun {
            Overrun::Skip => self.due.plus(self.period * missed as u32),
            Overrun::AtOnce => self.due.max(now),
        };
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_is_kept_and_whole_periods_are_skipped() {
        let period = Duration::from_millis(10);
        let mut pacer = Pacer::new(Stamp(10_000), period, Overrun::Skip);
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
        let mut pacer = Pacer::new(Stamp(1000), Duration::from_millis(1), Overrun::Skip);
        for _ in 0..1000 {
            assert_eq!(pacer.wait(&clock), Duration::ZERO);
            clock.advance(Duration::from_micros(700));
            assert_eq!(pacer.advance(clock.now()), 0);
        }
        assert_eq!(pacer.due, Stamp(1_001_000));
    }

    /// Deadlines of the next ticks when each tick takes the given time.
    fn deadlines(overrun: Overrun, work_us: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let clock = Clock::lockstep();
        let mut pacer = Pacer::new(Stamp(10_000), Duration::from_millis(10), overrun);
        let (mut starts, mut missed) = (Vec::new(), Vec::new());
        for work in work_us {
            pacer.wait(&clock);
            starts.push(clock.now().0);
            clock.advance(Duration::from_micros(*work));
            missed.push(pacer.advance(clock.now()));
        }
        pacer.wait(&clock);
        starts.push(clock.now().0);
        (starts, missed)
    }

    /// States that are repeated or lost in half an hour at 200 Hz, when the robot's clock runs this much differently.
    fn slips(overrun: Overrun, ppm: f64) -> u64 {
        let clock = Clock::lockstep();
        let period = Duration::from_millis(5);
        let robots = 5000.0 * (1.0 + ppm * 1e-6);
        let mut pacer = Pacer::new(Stamp(1_000_000 + 2_500), period, overrun);
        let (mut before, mut slips) = (0, 0);
        for tick in 0..360_000u64 {
            pacer.wait(&clock);
            // Some tens of microseconds late, as a thread is.
            clock.advance(Duration::from_micros(20 + tick * 7 % 40));
            let since = clock.now().0 as f64 - 1_000_000.0;
            let newest = (since / robots).floor();
            slips += u64::from(tick > 0 && newest as i64 != before + 1);
            before = newest as i64;
            pacer.follow(Duration::from_micros((since - newest * robots) as u64));
            pacer.advance(clock.now());
        }
        slips
    }

    #[test]
    fn the_loop_follows_a_robot_whose_clock_drifts() {
        for ppm in [0.0, 20.0, -20.0, 100.0, -100.0, 500.0, -500.0] {
            assert_eq!(slips(Overrun::AtOnce, ppm), 0, "{ppm} parts per million");
        }
        // Half an hour holds 360,000 periods and 36 of drift; while the two are close, jitter makes it more.
        assert!(slips(Overrun::Skip, 100.0) >= 35, "the grid of the own clock slips");
    }

    // The cases in which the sleeping policies of ros2_control differ: in time, exactly one period, a little over
    // one, exactly two, and several; each followed by a short tick that shows whether the phase was kept.
    const WORK_US: [u64; 9] = [3_000, 10_000, 1_000, 10_001, 1_000, 20_000, 1_000, 34_567, 1_000];

    #[test]
    fn skipping_keeps_the_phase_and_never_bursts() {
        let (starts, missed) = deadlines(Overrun::Skip, &WORK_US);
        assert_eq!(missed, [0, 0, 0, 1, 0, 1, 0, 3, 0]);
        assert_eq!(
            starts,
            [10_000, 20_000, 30_000, 40_000, 60_000, 70_000, 90_000, 100_000, 140_000, 150_000],
            "every start lies on the grid of the first deadline"
        );
        assert!(starts.windows(2).all(|w| w[1] - w[0] >= 10_000), "no tick follows the one before too soon");
    }

    #[test]
    fn running_at_once_loses_no_time_and_never_bursts() {
        let (starts, missed) = deadlines(Overrun::AtOnce, &WORK_US);
        assert_eq!(missed, [0, 0, 0, 1, 0, 1, 0, 3, 0]);
        assert_eq!(
            starts,
            [10_000, 20_000, 30_000, 40_000, 50_001, 60_001, 80_001, 90_001, 124_568, 134_568],
            "a late tick is followed at once, the one after it a period later"
        );
    }
}
