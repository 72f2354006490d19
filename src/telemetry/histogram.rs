//! A histogram of durations that one thread writes without waiting and others read: 8 buckets per octave.
//!
//! A quantile is the upper bound of its bucket, at most 12.5 % above the true value. From 1 ns to 18 minutes;
//! what is longer falls into the last bucket, and the longest is kept exactly.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets per octave, as a power of two.
const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;
/// Highest octave: `[2^39, 2^40)` nanoseconds.
const OCTAVES: usize = 40;
const BUCKETS: usize = (OCTAVES - SUB_BITS as usize + 1) * SUB;

/// Counts of durations.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    longest_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), longest_ns: AtomicU64::new(0) }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < SUB as u64 {
        return ns as usize;
    }
    let shift = ns.ilog2() - SUB_BITS;
    let place = (shift as usize + 1) * SUB + (ns >> shift) as usize - SUB;
    place.min(BUCKETS - 1)
}

/// The smallest duration beyond bucket `index`.
fn end(index: usize) -> u64 {
    if index < SUB {
        return index as u64 + 1;
    }
    let (shift, sub) = (index / SUB - 1, index % SUB);
    ((SUB + sub + 1) as u64) << shift
}

impl Histogram {
    /// Adds one. Real time: two atomic operations.
    pub fn add(&self, duration: Duration) {
        let ns = duration.as_nanos() as u64;
        self.counts[bucket(ns)].fetch_add(1, Relaxed);
        self.longest_ns.fetch_max(ns, Relaxed);
    }

    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|n| n.load(Relaxed)).sum()
    }

    /// The longest; zero when there is none.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.load(Relaxed))
    }

    /// At least `share` of all durations are not longer than this; zero when there is none.
    pub fn quantile(&self, share: f64) -> Duration {
        let counts: [u64; BUCKETS] = std::array::from_fn(|i| self.counts[i].load(Relaxed));
        let wanted = share * counts.iter().sum::<u64>() as f64;
        let mut seen = 0;
        let found = counts.iter().position(|n| {
            seen += n;
            seen > 0 && seen as f64 >= wanted
        });
        found.map_or(Duration::ZERO, |index| Duration::from_nanos(end(index) - 1).min(self.longest()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(end(index) - 1), index);
            assert_eq!(bucket(end(index)), index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_an_eighth_too_long(mut values in prop::collection::vec(1u64..10_000_000_000, 1..300)) {
            let histogram = Histogram::default();
            for ns in &values {
                histogram.add(Duration::from_nanos(*ns));
            }
            values.sort_unstable();
            for share in [0.5, 0.99, 1.0] {
                let exact = values[((share * values.len() as f64).ceil() as usize).max(1) - 1];
                let found = histogram.quantile(share).as_nanos() as u64;
                prop_assert!(found >= exact && found as f64 <= exact as f64 * 1.125, "{share}: {exact} {found}");
            }
            prop_assert_eq!(histogram.count(), values.len() as u64);
        }
    }
}
