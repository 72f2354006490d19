//! A curve of bounded size: means of buckets that grow as more points come.

/// Buckets a series keeps at most; twice as many are merged pairwise.
const KEPT: usize = 1024;

/// Consecutive points of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Where it begins.
    pub from: f64,
    /// Where it ends: the place of its last point.
    pub to: f64,
    /// Smallest value.
    pub low: f64,
    /// Mean.
    pub mean: f64,
    /// Largest value.
    pub high: f64,
    /// Points in it.
    pub points: u64,
}

impl Bucket {
    /// Of one point.
    pub fn of(x: f64, y: f64) -> Self {
        Self { from: x, to: x, low: y, mean: y, high: y, points: 1 }
    }

    fn join(&mut self, other: &Bucket) {
        let points = self.points + other.points;
        self.mean += (other.mean - self.mean) * other.points as f64 / points as f64;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.to = other.to;
        self.points = points;
    }
}

/// A curve; however long the run, it holds between 1024 and 2048 buckets at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    buckets: Vec<Bucket>,
    /// Points of a full bucket.
    stride: u64,
    newest: Option<f64>,
}

impl Default for Series {
    fn default() -> Self {
        Self { buckets: Vec::new(), stride: 1, newest: None }
    }
}

impl Series {
    /// Adds a point. One at or before the place of the last replaces all from there on: the run went back to a
    /// checkpoint.
    pub fn push(&mut self, x: f64, y: f64) {
        if self.buckets.last().is_some_and(|b| b.to >= x) {
            self.buckets.retain(|b| b.to < x);
        }
        let point = Bucket::of(x, y);
        match self.buckets.last_mut().filter(|b| b.points < self.stride) {
            Some(open) => open.join(&point),
            None => self.buckets.push(point),
        }
        self.newest = Some(y);
        if self.buckets.len() == 2 * KEPT {
            self.buckets = condense(&self.buckets, KEPT);
            self.stride *= 2;
        }
    }

    /// The curve.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The last point's value.
    pub fn newest(&self) -> Option<f64> {
        self.newest
    }

    /// All points as one bucket.
    pub fn whole(&self) -> Option<Bucket> {
        condense(&self.buckets, 1).pop()
    }

    /// The last tenth of the points as one bucket.
    pub fn last_tenth(&self) -> Option<Bucket> {
        let tenth = self.buckets.len().div_ceil(10);
        condense(&self.buckets[self.buckets.len() - tenth..], 1).pop()
    }
}

/// At most `most` buckets, each of equally many of the given ones.
pub(super) fn condense(buckets: &[Bucket], most: usize) -> Vec<Bucket> {
    let size = buckets.len().div_ceil(most.max(1)).max(1);
    let join = |group: &[Bucket]| {
        let mut joined = group[0];
        group[1..].iter().for_each(|b| joined.join(b));
        joined
    };
    buckets.chunks(size).map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_stays_small_and_keeps_mean_and_extremes() {
        let mut series = Series::default();
        let n = 1_000_000;
        for i in 0..n {
            series.push(i as f64, if i == 77 { 5000.0 } else { (i % 10) as f64 });
        }
        assert!((KEPT..2 * KEPT).contains(&series.buckets().len()), "{}", series.buckets().len());
        let all = series.whole().unwrap();
        assert_eq!((all.from, all.to, all.low, all.high), (0.0, (n - 1) as f64, 0.0, 5000.0));
        assert!((all.mean - (4.5 + (5000.0 - 7.0) / n as f64)).abs() < 1e-6, "{}", all.mean);
        assert_eq!(all.points, n);
        assert_eq!(series.newest(), Some(9.0));
    }

    #[test]
    fn a_run_that_went_back_overwrites_what_it_repeats() {
        let mut series = Series::default();
        for x in [10.0, 20.0, 30.0] {
            series.push(x, 1.0);
        }
        series.push(20.0, 7.0);
        let found: Vec<_> = series.buckets().iter().map(|b| (b.from, b.mean)).collect();
        assert_eq!(found, [(10.0, 1.0), (20.0, 7.0)]);
    }
}
