//! How a loop keeps its rate: ours, and the sleeping schemes of other software, with the same work in each tick.

use std::thread::Builder;
use std::time::Duration;

use serde::Serialize;

use super::cyclictest::{self, Cyclictest};
use super::rig::{BusyLearner, Rig, ensemble, spaces};
use crate::clock::{Clock, precise};
use crate::config::{Overrun, PolicyConfig, RealtimeConfig};
use crate::control::{Offer, Pacer};
use crate::nn::weights::EnsembleWeights;
use crate::policy::prepare;
use crate::runtime::parts::RuntimeError;
use crate::runtime::rights;
use crate::telemetry::{Histogram, LatencySummary};

/// Share of the period that a tick works: one control step, then idle arithmetic.
const WORK_SHARE: f64 = 0.2;

/// How a loop waits for its next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Absolute deadlines, whole periods skipped when late: this program.
    Deadlines,
    /// `sleep(period)` after the work.
    SleepAfterWork,
    /// `sleep(period - elapsed)`.
    SleepRemainder,
    /// `sleep(period - elapsed)` with the elapsed time cut to whole milliseconds.
    SleepRemainderMs,
}

impl Scheme {
    /// All of them, ours first.
    pub const ALL: [Self; 4] = [Self::Deadlines, Self::SleepAfterWork, Self::SleepRemainder, Self::SleepRemainderMs];
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct PacingOptions {
    /// Ticks per second.
    pub hz: f64,
    /// Length of the measurement of each scheme.
    pub seconds: f64,
    /// Processor of the loop; -1: the last one.
    pub cpu: i32,
    /// Whether a learner works on the other processors.
    pub learner: bool,
    /// The schemes.
    pub schemes: Vec<Scheme>,
    /// Whether cyclictest runs after them, where it is installed.
    pub cyclictest: bool,
}

/// One scheme at one rate.
#[derive(Clone, Debug, Serialize)]
pub struct PacingRow {
    /// Which.
    pub scheme: Scheme,
    /// Ticks per second.
    pub hz: f64,
    /// Whether a learner worked beside it.
    pub learner: bool,
    /// Ticks done.
    pub ticks: u64,
    /// Wake-up after the time the scheme asked for.
    pub wake: LatencySummary,
    /// Length of the time between two ticks compared with the period, in percent. Skipped periods are not drift.
    pub drift_percent: f64,
    /// Periods without a tick.
    pub missed: u64,
    /// Real-time settings that the machine refused.
    pub refused_settings: Vec<String>,
}

/// One rate, with or without a learner.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pacing {
    /// The schemes.
    pub rows: Vec<PacingRow>,
    /// The machine without our code, where cyclictest is installed.
    pub cyclictest: Option<Cyclictest>,
    /// Updates per second of the learner beside all of it.
    pub learner_updates_per_second: Option<f64>,
}

/// Measures one scheme after the other, on a thread with the rights of the control thread, and cyclictest right after
/// the first: what a shared machine does changes within seconds.
///
/// # Errors
/// When the control loop or the learner cannot be built.
pub fn measure_pacing(options: &PacingOptions) -> Result<Pacing, RuntimeError> {
    let cpu = if options.cpu < 0 { rights::last_processor() } else { options.cpu };
    let weights = ensemble()?;
    let learner = options.learner.then(|| BusyLearner::start(&weights, cpu)).transpose()?;
    let row = |scheme: &Scheme| {
        std::thread::scope(|scope| {
            let measured = Builder::new().name("control".into()).spawn_scoped(scope, || {
                let config = RealtimeConfig { cpu, ..RealtimeConfig::default() };
                let rights = rights::acquire(&config);
                measure(*scheme, options, &weights, rights.refused.clone())
            });
            let measured = measured.map_err(RuntimeError::file("control".as_ref()))?;
            measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    };
    let mut rows = options.schemes.iter().take(1).map(row).collect::<Result<Vec<_>, _>>()?;
    let other = || cyclictest::run(options.hz, options.seconds, cpu, options.learner);
    let cyclictest = options.cyclictest.then(other).flatten();
    for scheme in options.schemes.iter().skip(1) {
        rows.push(row(scheme)?);
    }
    Ok(Pacing { rows, cyclictest, learner_updates_per_second: learner.map(BusyLearner::rate) })
}

/// Of several rounds of the same measurement, each row with the median p99; its maximum is that of all rounds.
pub fn median(rounds: Vec<Pacing>) -> Pacing {
    fn middle<T>(all: impl Iterator<Item = T>, wake: fn(&mut T) -> &mut LatencySummary) -> Option<T> {
        let mut all: Vec<_> = all.map(|mut one| (*wake(&mut one), one)).collect();
        all.sort_by_key(|(seen, _)| seen.p99_us);
        let max_us = all.iter().map(|(seen, _)| seen.max_us).max()?;
        let (_, mut one) = all.swap_remove(all.len() / 2);
        wake(&mut one).max_us = max_us;
        Some(one)
    }
    let mut median = Pacing::default();
    for scheme in Scheme::ALL {
        let rows = rounds.iter().flat_map(|round| &round.rows).filter(|row| row.scheme == scheme).cloned();
        median.rows.extend(middle(rows, |row| &mut row.wake));
    }
    median.cyclictest = middle(rounds.into_iter().filter_map(|round| round.cyclictest), |c| &mut c.wake);
    median
}

/// The work of a tick.
struct Work {
    rig: Rig,
    length: Duration,
}

impl Work {
    fn tick(&mut self) -> Result<(), RuntimeError> {
        let until = precise() + self.length;
        self.rig.control.tick()?;
        while self.rig.steps.pop().is_some() {}
        while precise() < until {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

fn measure(
    scheme: Scheme,
    options: &PacingOptions,
    weights: &EnsembleWeights,
    refused_settings: Vec<String>,
) -> Result<PacingRow, RuntimeError> {
    let period = Duration::from_secs_f64(1.0 / options.hz);
    let prepared = prepare(&weights.actor, &spaces(), &PolicyConfig::default())?;
    let rig = Rig::new(period, Offer { policy: prepared.backend, generation: 0 })?;
    let mut work = Work { rig, length: period.mul_f64(WORK_SHARE) };
    for _ in 0..20 {
        work.tick()?;
    }
    let length = Duration::from_secs_f64(options.seconds);
    let histogram = Histogram::default();
    let run = if scheme == Scheme::Deadlines { deadlines } else { sleeps };
    let Span { ticks, first, last, skipped } = run(scheme, period, length, &histogram, &mut work)?;
    work.rig.control.finish();
    let span = last.saturating_sub(first).as_secs_f64() / period.as_secs_f64();
    let between = (ticks.max(2) - 1) as f64;
    let missed = skipped.unwrap_or((span - between).max(0.0) as u64);
    let drift_percent = 100.0 * (span / (between + skipped.unwrap_or(0) as f64) - 1.0);
    let wake = LatencySummary::from(&histogram);
    let (hz, learner) = (options.hz, options.learner);
    Ok(PacingRow { scheme, hz, learner, ticks, wake, drift_percent, missed, refused_settings })
}

/// Beginnings of the first and the last tick, and periods that the scheme left out on purpose.
struct Span {
    ticks: u64,
    first: Duration,
    last: Duration,
    skipped: Option<u64>,
}

fn deadlines(
    _: Scheme,
    period: Duration,
    length: Duration,
    histogram: &Histogram,
    work: &mut Work,
) -> Result<Span, RuntimeError> {
    let clock = Clock::Monotonic;
    let mut pacer = Pacer::new(clock.now().plus(period), period, Overrun::Skip);
    let mut span = Span { ticks: 0, first: Duration::ZERO, last: Duration::ZERO, skipped: None };
    let (mut missed, mut missed_before) = (0, 0);
    while span.ticks == 0 || span.last.saturating_sub(span.first) < length {
        histogram.add(pacer.wait(&clock));
        span.last = precise();
        if span.ticks == 0 {
            span.first = span.last;
        }
        span.ticks += 1;
        missed_before = missed;
        work.tick()?;
        missed += pacer.advance(clock.now());
    }
    // Skipped up to the last tick that began.
    span.skipped = Some(missed_before);
    Ok(span)
}

fn sleeps(
    scheme: Scheme,
    period: Duration,
    length: Duration,
    histogram: &Histogram,
    work: &mut Work,
) -> Result<Span, RuntimeError> {
    let first = precise();
    let mut span = Span { ticks: 0, first, last: first, skipped: None };
    while span.last.saturating_sub(first) < length {
        span.last = precise();
        span.ticks += 1;
        work.tick()?;
        let end = precise();
        let elapsed = end.saturating_sub(span.last);
        let wish = match scheme {
            Scheme::Deadlines | Scheme::SleepAfterWork => period,
            Scheme::SleepRemainder => period.saturating_sub(elapsed),
            Scheme::SleepRemainderMs => period.saturating_sub(Duration::from_millis(elapsed.as_millis() as u64)),
        };
        std::thread::sleep(wish);
        histogram.add(precise().saturating_sub(end + wish));
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_round_counts_and_the_largest_maximum() {
        let round = |p99_us, max_us| {
            let wake = LatencySummary { p99_us, max_us, ..LatencySummary::default() };
            Pacing { cyclictest: Some(Cyclictest { hz: 1.0, learner: false, wake }), ..Pacing::default() }
        };
        let wake = median(vec![round(50, 60), round(7000, 9000), round(40, 10_000)]).cyclictest.unwrap().wake;
        assert_eq!((wake.p99_us, wake.max_us), (50, 10_000));
        assert!(median(Vec::new()).cyclictest.is_none());
    }

    #[test]
    fn deadlines_do_not_drift_and_sleeping_after_the_work_does() {
        let schemes = vec![Scheme::Deadlines, Scheme::SleepAfterWork];
        let options = PacingOptions { hz: 200.0, seconds: 0.5, cpu: -1, learner: false, schemes, cyclictest: true };
        let rows = measure_pacing(&options).unwrap().rows;
        if rows.iter().any(|row| row.refused_settings.iter().any(|line| line.contains("SCHED_FIFO"))) {
            eprintln!("skipped: this machine refuses SCHED_FIFO; without it drift says nothing");
            return;
        }
        // Half a second: a wake-up that is 1 ms late at the end is 0.2 %.
        assert!(rows[0].drift_percent.abs() < 1.0, "{rows:?}");
        assert!(rows[1].drift_percent > 100.0 * WORK_SHARE * 0.9, "{rows:?}");
    }
}
