//! The robot's clock on the host's: offset and drift from TIME_REQUEST and TIME_REPLY.
//!
//! A request that travels without waiting anywhere arrives at `t1 + delay`; every queue on the way only adds to that.
//! So of each [`WINDOW`] exchanges the one whose request was fastest counts, and a line through these points is the
//! offset over time. The delay itself cannot be seen from one end: it is taken as half of the shortest round trip. The
//! stated uncertainty is that half, or how far the points lie from the line where that is more; it is no bound for a
//! link that has become slower since. Answers may wait for the next control tick: only the shortest round trip needs one
//! that did not. No operating system, no heap.

use heapless::Deque;

use crate::clock::Stamp;

/// Exchanges of which the fastest counts.
const WINDOW: u32 = 64;
/// Windows that the line goes through: 100 s at ten exchanges a second.
const POINTS: usize = 16;
/// Two windows closer than this say more about noise than about drift.
const SHORTEST_FIT_US: f64 = 1e6;

/// The four stamps of a TIME_REQUEST and its TIME_REPLY, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Host clock when the request was sent.
    pub t1_us: u64,
    /// Robot clock when it came.
    pub t2_us: u64,
    /// Robot clock when the reply was sent.
    pub t3_us: u64,
    /// Host clock when it came.
    pub t4_us: u64,
}

/// What is known about the robot's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClockEstimate {
    /// Host time minus robot time at the last exchange, microseconds.
    pub offset_us: f64,
    /// How much faster the host's clock runs, parts per million.
    pub drift_ppm: f64,
    /// Half of the shortest round trip, or the scatter of the windows about their line where that is more: the offset is
    /// not further off unless every request takes longer than it did then.
    pub uncertainty_us: u64,
    /// Exchanges so far.
    pub exchanges: u64,
}

/// Offset at a time, as seen through the fastest request of a window.
#[derive(Clone, Copy, Debug)]
struct Point {
    robot_us: u64,
    /// Host clock at sending minus robot clock at receipt: the offset less the delay.
    offset_us: f64,
}

/// Follows the clock of one robot.
#[derive(Clone, Debug, Default)]
pub struct TimeSync {
    points: Deque<Point, POINTS>,
    window: u32,
    best: Option<Point>,
    shortest_us: Option<u64>,
    drift: f64,
    /// Largest distance of a window from the line.
    scatter_us: f64,
    exchanges: u64,
}

impl TimeSync {
    /// Knows nothing yet.
    pub const fn new() -> Self {
        Self {
            points: Deque::new(),
            window: 0,
            best: None,
            shortest_us: None,
            drift: 0.0,
            scatter_us: 0.0,
            exchanges: 0,
        }
    }

    /// Takes an exchange; one whose stamps contradict each other is ignored.
    pub fn take(&mut self, exchange: Exchange) {
        let Exchange { t1_us, t2_us, t3_us, t4_us } = exchange;
        let (Some(away_us), Some(there_us)) = (t4_us.checked_sub(t1_us), t3_us.checked_sub(t2_us)) else { return };
        let Some(round_us) = away_us.checked_sub(there_us) else { return };
        self.exchanges += 1;
        self.shortest_us = Some(self.shortest_us.map_or(round_us, |shortest| shortest.min(round_us)));
        let point = Point { robot_us: t2_us, offset_us: t1_us as f64 - t2_us as f64 };
        // The delay makes the offset look smaller, so the largest one, drift aside, was the fastest.
        if self.best.is_none_or(|best| point.offset_us >= self.moved(best, t2_us)) {
            self.best = Some(point);
        }
        self.window += 1;
        if self.window == WINDOW {
            self.close_window();
        }
    }

    fn close_window(&mut self) {
        let Some(best) = self.best.take() else { return };
        self.window = 0;
        if self.points.is_full() {
            self.points.pop_front();
        }
        let _ = self.points.push_back(best);
        self.fit();
    }

    /// Least squares of the offset over time.
    fn fit(&mut self) {
        let Some(newest) = self.points.back().copied() else { return };
        let n = self.points.len() as f64;
        let at = |point: &Point| (point.robot_us as f64 - newest.robot_us as f64, point.offset_us - newest.offset_us);
        let (sum_t, sum_o) = self.points.iter().map(at).fold((0.0, 0.0), |sum, (t, o)| (sum.0 + t, sum.1 + o));
        let (mean_t, mean_o) = (sum_t / n, sum_o / n);
        let (mut spread, mut together) = (0.0, 0.0);
        for (t, o) in self.points.iter().map(at) {
            spread += (t - mean_t) * (t - mean_t);
            together += (t - mean_t) * (o - mean_o);
        }
        if spread > SHORTEST_FIT_US * SHORTEST_FIT_US {
            self.drift = together / spread;
        }
        let distance = |(t, o): (f64, f64)| (o - mean_o - self.drift * (t - mean_t)).abs();
        self.scatter_us = self.points.iter().map(at).map(distance).fold(0.0, f64::max);
    }

    fn moved(&self, point: Point, robot_us: u64) -> f64 {
        point.offset_us + self.drift * (robot_us as f64 - point.robot_us as f64)
    }

    /// Offset less delay at a robot time: the mean of the last windows along the line.
    fn offset_us(&self, robot_us: u64) -> Option<f64> {
        if self.points.is_empty() {
            return self.best.map(|best| self.moved(best, robot_us));
        }
        let sum: f64 = self.points.iter().map(|point| self.moved(*point, robot_us)).sum();
        Some(sum / self.points.len() as f64)
    }

    /// The host's time at a time of the robot's clock, or `None` before the first exchange.
    pub fn host_time(&self, robot_us: u64) -> Option<Stamp> {
        let host_us = robot_us as f64 + self.offset_us(robot_us)? + self.shortest_us? as f64 / 2.0;
        Some(Stamp(host_us.max(0.0).round() as u64))
    }

    /// The robot's whole clock from the 32 bits in a frame header: the time nearest to the last exchange.
    pub fn whole(&self, t_us: u32) -> Option<u64> {
        let near = self.best.or(self.points.back().copied())?.robot_us;
        let ahead = t_us.wrapping_sub(near as u32) as i32;
        near.checked_add_signed(i64::from(ahead))
    }

    /// What is known, or `None` before the first exchange.
    pub fn estimate(&self) -> Option<ClockEstimate> {
        let now = self.best.or(self.points.back().copied())?.robot_us;
        let half = self.shortest_us? as f64 / 2.0;
        Some(ClockEstimate {
            offset_us: self.offset_us(now)? + half,
            drift_ppm: self.drift * 1e6,
            uncertainty_us: half.max(self.scatter_us).ceil() as u64,
            exchanges: self.exchanges,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A robot whose clock began at 2^32 - 3 s, `ppm` slower than the host's, behind queues of any length.
    struct Line {
        rng: ChaCha8Rng,
        ppm: f64,
        polled_us: u64,
    }

    impl Line {
        fn robot(&self, host_us: f64) -> u64 {
            (4_291_967_296.0 + (host_us - 1e9) / (1.0 + self.ppm * 1e-6)).round() as u64
        }

        fn exchange(&mut self, t1_us: u64) -> Exchange {
            let queue = |rng: &mut ChaCha8Rng| 300.0 + 4000.0 * rng.random::<f64>().powi(3);
            let came = t1_us as f64 + queue(&mut self.rng);
            let left = came + 40.0;
            let t4_us = (left + queue(&mut self.rng)) as u64 + self.polled_us;
            Exchange { t1_us, t2_us: self.robot(came), t3_us: self.robot(left), t4_us }
        }
    }

    fn worst_us(ppm: f64, polled_us: u64) -> (f64, ClockEstimate) {
        let mut line = Line { rng: ChaCha8Rng::seed_from_u64(3), ppm, polled_us: 0 };
        let mut sync = TimeSync::new();
        for i in 0..16 {
            sync.take(line.exchange(1_000_000_000 + 5000 * i));
        }
        line.polled_us = polled_us;
        let mut worst = 0.0_f64;
        for i in 1..1200 {
            let t1_us = 1_000_100_000 + 100_000 * i;
            sync.take(line.exchange(t1_us));
            if i > 200 {
                let robot_us = line.robot(t1_us as f64 + 70_000.0);
                let whole = sync.whole(robot_us as u32).unwrap();
                assert_eq!(whole, robot_us, "across the wrap");
                let host = sync.host_time(whole).unwrap().0;
                worst = worst.max((host as f64 - t1_us as f64 - 70_000.0).abs());
            }
        }
        (worst, sync.estimate().unwrap())
    }

    #[test]
    fn stamps_are_right_within_the_stated_uncertainty_whatever_the_drift() {
        for ppm in [0.0, 50.0, -80.0] {
            let (worst, estimate) = worst_us(ppm, 0);
            assert!(worst <= 200.0 && worst <= estimate.uncertainty_us as f64, "{ppm}: {worst} {estimate:?}");
            assert!((estimate.drift_ppm - ppm).abs() < 5.0, "{estimate:?}");
        }
    }

    /// Read by a loop of 20 Hz, an answer is up to 50 ms old: the requests alone carry the estimate.
    #[test]
    fn answers_that_wait_for_a_tick_do_no_harm() {
        let (worst, estimate) = worst_us(30.0, 40_000);
        assert!(worst <= 300.0 && estimate.uncertainty_us < 1000, "{worst} {estimate:?}");
    }

    #[test]
    fn nothing_is_known_before_the_first_exchange_and_nonsense_is_ignored() {
        let mut sync = TimeSync::new();
        assert_eq!((sync.host_time(5), sync.whole(5), sync.estimate()), (None, None, None));
        sync.take(Exchange { t1_us: 100, t2_us: 7, t3_us: 6, t4_us: 200 });
        sync.take(Exchange { t1_us: 100, t2_us: 7, t3_us: 7, t4_us: 99 });
        sync.take(Exchange { t1_us: 100, t2_us: 7, t3_us: 700, t4_us: 200 });
        assert_eq!(sync.estimate(), None);
        sync.take(Exchange { t1_us: 1000, t2_us: 10, t3_us: 20, t4_us: 1110 });
        assert_eq!(sync.host_time(10), Some(Stamp(1050)));
        let expected = ClockEstimate { offset_us: 1040.0, drift_ppm: 0.0, uncertainty_us: 50, exchanges: 1 };
        assert_eq!(sync.estimate(), Some(expected));
    }
}
