//! `fieldtune bench`: measurements on this machine.

use anyhow::Context;
use fieldtune::runtime::measure::{
    Cyclictest, Pacing, PacingOptions, PacingRow, Scheme, SwapOptions, measure_camera, measure_pacing, measure_swaps,
    median,
};
use fieldtune::telemetry::LatencySummary;
use serde::Serialize;

use super::{bench_fleet, bench_learner};

/// Measure this program on this machine.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// How the control loop keeps its deadlines, beside cyclictest and three other ways to sleep.
    ///
    /// One control step and idle arithmetic fill a fifth of every period. Asked: p99 at most twice that of cyclictest
    /// plus 20 us, drift at most 0.05 %, p99 with a learner at most twice that without.
    Loop {
        /// Seconds per measurement.
        #[arg(long, default_value_t = 2.0, value_name = "S")]
        seconds: f64,
        /// Rounds; the one with the median p99 counts.
        #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Ticks per second; may be repeated.
        #[arg(long, default_values_t = [200.0, 500.0, 1000.0], value_name = "HZ")]
        hz: Vec<f64>,
        /// Processor of the loop; -1: the last one.
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        cpu: i32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// End with exit code 1 when what is asked for is not reached.
        #[arg(long)]
        check: bool,
    },
    /// What a swap of policies costs the control thread while a learner works.
    Swap {
        /// Policies to swap in, at most one per tick.
        #[arg(long, default_value_t = 10_000, value_name = "N")]
        swaps: u64,
        /// Ticks per second.
        #[arg(long, default_value_t = 200.0)]
        hz: f64,
        /// Processor of the loop; -1: the last one.
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        cpu: i32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    Learner(bench_learner::Args),
    /// What an image of a camera costs: decode, reduce to a frame.
    Camera {
        /// A JPEG to time as well; may be repeated.
        #[arg(long, value_name = "FILE")]
        jpeg: Vec<std::path::PathBuf>,
        /// Images of each kind; their median counts.
        #[arg(long, default_value_t = 200, value_name = "N")]
        repeat: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    Fleet(bench_fleet::Args),
}

pub(super) fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Loop { seconds, rounds, hz, cpu, json, check } => {
            let report = measure_loops(*seconds, *rounds, hz, *cpu)?;
            show_loops(&report, *json, *check)
        }
        Command::Swap { swaps, hz, cpu, json } => bench_swap(*swaps, *hz, *cpu, *json),
        Command::Learner(args) => bench_learner::run(args).map(|()| true),
        Command::Camera { jpeg, repeat, json } => bench_camera(jpeg, *repeat, *json).map(|()| true),
        Command::Fleet(args) => bench_fleet::run(args).map(|()| true),
    }
}

fn bench_camera(jpegs: &[std::path::PathBuf], repeat: u32, json: bool) -> anyhow::Result<()> {
    let read =
        |path: &std::path::PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let rows = measure_camera(&jpegs.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?, repeat)?;
    if json {
        say!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    say!("{:<6} {:<10} frame      ms of processor time", "format", "image");
    for row in rows {
        say!("{:<6} {:<10} {:>3} x {:<3} {:>9.3}", row.format, row.image, row.side, row.side, row.ms);
    }
    Ok(())
}

#[derive(Serialize)]
struct LoopReport {
    measured: Vec<Pacing>,
    failed: Vec<String>,
}

fn measure_loops(seconds: f64, rounds: u32, rates: &[f64], cpu: i32) -> anyhow::Result<LoopReport> {
    let mut report = LoopReport { measured: Vec::new(), failed: Vec::new() };
    for learner in [false, true] {
        for hz in rates.iter().copied() {
            let schemes = Scheme::ALL.to_vec();
            let options = PacingOptions { hz, seconds, cpu, learner, schemes, cyclictest: true };
            let rounds = (0..rounds).map(|_| measure_pacing(&options)).collect::<Result<_, _>>()?;
            report.measured.push(median(rounds));
        }
    }
    report.failed = judge(&report.measured);
    Ok(report)
}

fn show_loops(report: &LoopReport, json: bool, check: bool) -> anyhow::Result<bool> {
    if json {
        say!("{}", serde_json::to_string(report)?);
    } else {
        print_loops(report);
    }
    Ok(!check || report.failed.is_empty())
}

fn ours(pacing: &Pacing) -> Option<&PacingRow> {
    pacing.rows.iter().find(|row| row.scheme == Scheme::Deadlines)
}

/// What is asked for and was not reached, in words. Maxima are reported, not judged.
fn judge(measured: &[Pacing]) -> Vec<String> {
    let mut failed = Vec::new();
    for pacing in measured {
        let Some(row) = ours(pacing) else { continue };
        let at = format!("{} Hz{}", row.hz, if row.learner { " with a learner" } else { "" });
        failed.extend(row.refused_settings.iter().map(|line| format!("{at}: {line}")));
        if row.drift_percent.abs() > 0.05 {
            failed.push(format!("{at}: drift {:.3} %, asked: 0.05 %", row.drift_percent));
        }
        let p99 = row.wake.p99_us;
        match &pacing.cyclictest {
            Some(other) if p99 > 2 * other.wake.p99_us + 20 => {
                failed.push(format!("{at}: p99 {p99} us, cyclictest {} us", other.wake.p99_us));
            }
            _ => {}
        }
        let without = measured.iter().filter_map(ours).find(|other| !other.learner && other.hz == row.hz);
        match without {
            Some(without) if row.learner && p99 > 2 * without.wake.p99_us => {
                failed.push(format!("{at}: p99 {p99} us, {} us without", without.wake.p99_us));
            }
            _ => {}
        }
    }
    failed
}

fn print_loops(report: &LoopReport) {
    say!("{:>6} {:<8} {:<22} p50 us  p99 us  p99.9   max us   drift %  missed", "Hz", "learner", "scheme");
    for pacing in &report.measured {
        for row in &pacing.rows {
            let name = match row.scheme {
                Scheme::Deadlines => "fieldtune",
                Scheme::SleepAfterWork => "sleep(T)",
                Scheme::SleepRemainder => "sleep(T - elapsed)",
                Scheme::SleepRemainderMs => "sleep(T - elapsed ms)",
            };
            let wake = row.wake;
            let learner = if row.learner { "yes" } else { "no" };
            say!(
                "{:>6} {learner:<8} {name:<22} {:>6} {:>7} {:>6} {:>8} {:>+9.3} {:>7}",
                row.hz,
                wake.p50_us,
                wake.p99_us,
                wake.p999_us,
                wake.max_us,
                row.drift_percent,
                row.missed
            );
        }
        if let Some(Cyclictest { hz, learner, wake }) = &pacing.cyclictest {
            let learner = if *learner { "yes" } else { "no" };
            let LatencySummary { p50_us, p99_us, p999_us, max_us } = wake;
            let name = "cyclictest";
            say!("{hz:>6} {learner:<8} {name:<22} {p50_us:>6} {p99_us:>7} {p999_us:>6} {max_us:>8}         -       -");
        }
    }
    if report.measured.iter().all(|pacing| pacing.cyclictest.is_none()) {
        say!("cyclictest is not installed or was refused its rights (Debian, Ubuntu: apt-get install rt-tests)");
    }
    for line in &report.failed {
        say!("NOT REACHED  {line}");
    }
}

fn bench_swap(swaps: u64, hz: f64, cpu: i32, json: bool) -> anyhow::Result<bool> {
    let report = measure_swaps(&SwapOptions { hz, swaps, cpu, learner: true })?;
    let clean = report.swaps == swaps && report.mixed_generations == 0 && report.rolled_back_in_one_tick;
    if json {
        say!("{}", serde_json::to_string(&report)?);
        return Ok(clean);
    }
    let r = &report;
    say!("{} swaps in {} ticks at {hz} Hz, {:.1} s, {} updates beside", r.swaps, r.ticks, r.seconds, r.learner_updates);
    say!(
        "  exchange   p50 {} ns, p99 {} ns, max {} ns on the control thread",
        r.exchange_p50_ns,
        r.exchange_p99_ns,
        r.exchange_max_ns
    );
    say!(
        "  first run  p50 {} us, p99 {} us, max {} us of the new policy, in the same tick",
        r.first_run.p50_us,
        r.first_run.p99_us,
        r.first_run.max_us
    );
    say!(
        "  late       {} ticks, {} of them by a swap (the others woke too late)",
        r.late_ticks,
        r.late_ticks_by_a_swap
    );
    say!("  wake-up    p50 {} us, p99 {} us, max {} us", r.wake.p50_us, r.wake.p99_us, r.wake.max_us);
    say!("  actions    {} checked, {} of another generation", r.actions_checked, r.mixed_generations);
    say!("  roll-back  {}", if r.rolled_back_in_one_tick { "in one tick" } else { "NOT in one tick" });
    say!("  faults     {} page faults on the control thread", r.page_faults);
    for line in &r.refused_settings {
        say!("  real time  {line}");
    }
    Ok(clean)
}
