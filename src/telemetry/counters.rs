//! Counters of the control thread: atomics, written without waiting, read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

/// Buckets of the wake-up histogram: bucket `i` holds latencies of `[2^i, 2^(i+1))` microseconds.
const BUCKETS: usize = 24;

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
    /// Robot steps that never arrived.
    pub missed_states: AtomicU64,
    /// Actions that were not finite and became zero.
    pub bad_actions: AtomicU64,
    /// Actions that a limit changed.
    pub limited_actions: AtomicU64,
    /// Policies taken over.
    pub swaps: AtomicU64,
    /// Roll-backs to the policy before.
    pub rollbacks: AtomicU64,
    /// Offered policies that failed their last run and were handed back.
    pub refused_policies: AtomicU64,
    /// Generation of the policy in use.
    pub generation: AtomicU64,
    /// Episodes begun.
    pub episodes: AtomicU64,
    /// Longest tick, microseconds of work.
    pub max_work_us: AtomicU64,
    /// Sum of the work of all ticks, microseconds.
    pub work_us: AtomicU64,
    wake: [AtomicU64; BUCKETS],
    max_wake_us: AtomicU64,
}

/// Wake-up latency of the control thread: bounds of histogram buckets, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatencySummary {
    /// Half of the ticks woke up earlier than this after their deadline.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// The latest.
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
        let wake = wake.as_micros() as u64;
        let bucket = (wake.max(1).ilog2() as usize).min(BUCKETS - 1);
        Self::count(&self.wake[bucket]);
        self.max_wake_us.fetch_max(wake, Relaxed);
        let work = work.as_micros() as u64;
        self.work_us.fetch_add(work, Relaxed);
        self.max_work_us.fetch_max(work, Relaxed);
    }

    /// Wake-up latency so far.
    pub fn latency(&self) -> LatencySummary {
        let counts: [u64; BUCKETS] = std::array::from_fn(|i| self.wake[i].load(Relaxed));
        let total: u64 = counts.iter().sum();
        let bound = |share: f64| {
            let mut seen = 0;
            let bucket = counts.iter().position(|n| {
                seen += n;
                seen as f64 >= share * total as f64
            });
            bucket.map_or(0, |b| 2u64 << b)
        };
        let max_us = self.max_wake_us.load(Relaxed);
        let (p50_us, p99_us) = if total == 0 { (0, 0) } else { (bound(0.5), bound(0.99)) };
        LatencySummary { p50_us: p50_us.min(max_us), p99_us: p99_us.min(max_us), max_us }
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
        assert!(latency.p50_us >= 500 && latency.p50_us <= 1000, "{latency:?}");
        assert!(latency.p99_us >= 990, "{latency:?}");
        assert_eq!(latency.max_us, 1000);
    }
}
