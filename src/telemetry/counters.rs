//! Counters of the control thread: atomics, written without waiting, read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use super::Histogram;
use super::robot_counters::RobotCounters;

/// Everything the control thread counts.
#[derive(Debug, Default)]
pub struct ControlCounters {
    /// Ticks.
    pub ticks: AtomicU64,
    /// Control steps that became step records.
    pub steps: AtomicU64,
    /// Whole periods that were skipped because a tick started or ended too late.
    pub late: AtomicU64,
    /// Step records that found the queue full.
    pub dropped_steps: AtomicU64,
    /// Ticks without a fresh observation.
    pub stale: AtomicU64,
    /// Control steps without an image to act on: none came, it was too old, or the same again and again.
    pub blind: AtomicU64,
    /// Robot steps that never arrived.
    pub missed_states: AtomicU64,
    /// Actions that were not finite and became zero.
    pub bad_actions: AtomicU64,
    /// Actions that a limit changed.
    pub limited_actions: AtomicU64,
    /// Actions in which a person had a part.
    pub person_steps: AtomicU64,
    /// Actions that were zero because the person in control was silent.
    pub person_silent: AtomicU64,
    /// Policies taken over.
    pub swaps: AtomicU64,
    /// Roll-backs to the policy before.
    pub rollbacks: AtomicU64,
    /// Offered policies that failed their last run and were handed back.
    pub refused_policies: AtomicU64,
    /// Generation of the policy in use.
    pub generation: AtomicU64,
    /// Number of the episode under way.
    pub episode: AtomicU64,
    /// Episodes begun.
    pub episodes: AtomicU64,
    /// Episodes that ended as a success by the rules of `[episode]` or by an operator's word.
    pub successes: AtomicU64,
    /// And as a failure.
    pub failures: AtomicU64,
    /// Longest tick, microseconds of work.
    pub max_work_us: AtomicU64,
    /// Sum of the work of all ticks, microseconds.
    pub work_us: AtomicU64,
    /// Page faults of the control thread from the end of its first tick to the end of the run.
    pub page_faults: AtomicU64,
    /// What requests of the publisher took on the control thread, without the first run of a new policy.
    pub swap_exchange: Histogram,
    /// First runs of new policies.
    pub swap_first_run: Histogram,
    /// From the camera's stamp of an image until the action on it was sent; real time only.
    pub image_to_action: Histogram,
    /// The link and the robot's end of it.
    pub robot: RobotCounters,
    wake: Histogram,
}

/// Wake-up latency of the control thread in microseconds, each at most 12.5 % too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatencySummary {
    /// Half of the ticks woke up earlier than this after their deadline.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p999_us: u64,
    /// The latest, exactly.
    pub max_us: u64,
}

impl ControlCounters {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// One tick: how late it woke up and how long it worked.
    pub fn tick(&self, wake: Duration, work: Duration) {
        Self::count(&self.ticks);
        self.wake.add(wake);
        let work = work.as_micros() as u64;
        self.work_us.fetch_add(work, Relaxed);
        self.max_work_us.fetch_max(work, Relaxed);
    }

    /// One request of the publisher: the exchange, and the first run of a new policy (zero when there was none).
    pub fn swap(&self, exchange: Duration, first_run: Duration) {
        self.swap_exchange.add(exchange);
        if !first_run.is_zero() {
            self.swap_first_run.add(first_run);
        }
    }

    /// Wake-up latency so far.
    pub fn latency(&self) -> LatencySummary {
        LatencySummary::from(&self.wake)
    }
}

impl From<&Histogram> for LatencySummary {
    fn from(histogram: &Histogram) -> Self {
        let us = |duration: Duration| (duration.as_nanos() as u64).div_ceil(1000);
        Self {
            p50_us: us(histogram.quantile(0.5)),
            p99_us: us(histogram.quantile(0.99)),
            p999_us: us(histogram.quantile(0.999)),
            max_us: us(histogram.longest()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_bounds_hold() {
        let counters = ControlCounters::default();
        assert_eq!(counters.latency(), LatencySummary::default());
        for us in 1..=1000 {
            counters.tick(Duration::from_micros(us), Duration::from_micros(1));
        }
        let latency = counters.latency();
        assert!((500..=563).contains(&latency.p50_us), "{latency:?}");
        assert!((990..=1000).contains(&latency.p99_us), "{latency:?}");
        assert!((999..=1000).contains(&latency.p999_us), "{latency:?}");
        assert_eq!(latency.max_us, 1000);
    }
}
