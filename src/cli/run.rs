//! `fieldtune run`.

use std::path::PathBuf;
use std::time::Duration;

use fieldtune::runtime::{self, RunOptions, ServiceManager};
use fieldtune::telemetry::{LatencySummary, Report};

use super::progress::Progress;
use super::{ConfigArgs, stop_on_signal, this_program, write_json};

/// Control the robot and learn from what it does.
///
/// Loads the bundle, measures it, then controls the robot while the learner updates the ensemble in the background
/// and hands new policies to the loop between two ticks. Everything is kept in run.directory: replay/ (survives a
/// power cut), checkpoint/, bundle/ (the fine-tuned ensemble), metrics.jsonl, report.json. A run that was
/// interrupted goes on from there. Ctrl-C ends it orderly, the robot first.
///
/// The exit code is 0 only when no step was lost and the robot did not have to be stopped.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the learner is: here, or remote (`fieldtune learner`, docs/fleet.md); short for --set learner.remote=...
    #[arg(long, value_name = "WHERE")]
    learner: Option<Place>,
    /// Write everything the run counted to this file, as JSON.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Serve a live page, for example on 127.0.0.1:8765. An address that other machines reach needs the token that
    /// is printed at start.
    #[arg(long, value_name = "ADDRESS:PORT")]
    serve: Option<std::net::SocketAddr>,
    /// No progress, only the summary.
    #[arg(long, short)]
    quiet: bool,
}

/// Where the learner is.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// In this process.
    Here,
    /// In a `fieldtune learner`.
    Remote,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let place = args.learner.map(|place| format!("learner.remote={}", place == Place::Remote));
    let config = args.config.load_with(place)?;
    let options = RunOptions {
        serve: args.serve,
        manager: service_manager(),
        ..RunOptions::new(this_program()?, stop_on_signal()?)
    };
    let mut progress = Progress::new(args.quiet);
    let outcome = runtime::run(&config, &options, &mut progress);
    progress.finish();
    let report = outcome?;
    summary(&report);
    write_json(&config.run.directory.join("report.json"), &report)?;
    if let Some(path) = &args.report {
        write_json(path, &report)?;
    }
    Ok(report.is_clean())
}

/// systemd's way to say where it listens: sd_notify(3), sd_watchdog_enabled(3).
fn service_manager() -> Option<ServiceManager> {
    let socket = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|process| process == u64::from(std::process::id()));
    let watchdog = number("WATCHDOG_USEC").filter(|us| meant && *us > 0).map(Duration::from_micros);
    Some(ServiceManager { socket, watchdog })
}

pub(super) fn summary(r: &Report) {
    say!("{} (seed {}), policy by {}", r.robot, r.seed, r.engine);
    if let Some((before, after)) = r.improvement() {
        say!("  return     {before:.2} before, {after:.2} after ({:+.2})", after - before);
    } else {
        say!("  return     not measured before and after");
    }
    say!(
        "  control    {} ticks, {} late, {} without a fresh observation, {} robot steps missed",
        r.ticks,
        r.late_ticks,
        r.stale_ticks,
        r.missed_states
    );
    say!(
        "             wake-up p50 {} us, p99 {} us, p99.9 {} us, max {} us; longest tick {} us",
        r.wake.p50_us,
        r.wake.p99_us,
        r.wake.p999_us,
        r.wake.max_us,
        r.max_work_us
    );
    if let Some(faults) = r.page_faults {
        say!("             {faults} page faults on the control thread after its first tick");
    }
    if let Some(camera) = &r.camera {
        let LatencySummary { p50_us, p99_us, .. } = r.image_to_action;
        say!("  camera     {} frames, {} dropped, {} blind steps", camera.frames, camera.dropped, r.blind_steps);
        if p99_us > 0 {
            say!("             from the image to the action on it: p50 {p50_us} us, p99 {p99_us} us");
        }
    }
    say!(
        "  replay     {} online and {} offline transitions, {} dropped",
        r.online_transitions,
        r.offline_transitions,
        r.dropped
    );
    if r.overwritten + r.not_kept > 0 {
        say!("             {} old records replaced by newer ones, {} not kept", r.overwritten, r.not_kept);
    }
    say!(
        "  learner    {} updates ({:.1} per second, {:.1} per CPU second), {:.0} % of those allowed, {:.0} % offline rows at the end",
        r.updates,
        r.updates_per_second,
        r.updates_per_cpu_second,
        100.0 * r.realised_utd_ratio,
        100.0 * r.offline_share
    );
    if r.learner_held_back_s > 0.0 {
        say!("             slowed or paused by heat for {:.0} s", r.learner_held_back_s);
    }
    if let Some(parts) = r.update_parts_ms.as_object() {
        let total: f64 = parts.values().filter_map(serde_json::Value::as_f64).sum();
        let shares: Vec<_> = parts
            .iter()
            .filter_map(|(k, v)| Some(format!("{k} {:.0} %", 100.0 * v.as_f64()? / total.max(1e-12))))
            .collect();
        say!("             {total:.2} ms of CPU per update: {}", shares.join(", "));
    }
    say!("  policies   {} swaps, {} refused", r.swaps, r.refused_policies);
    if let Some(number) = r.fleet.as_object().map(|fleet| |key: &str| fleet[key].as_u64().unwrap_or(0)) {
        say!(
            "  fleet      {} records passed on, {} pending, {} replaced before they were; {} policies, {} messages refused",
            number("records"),
            number("pending"),
            number("missed"),
            number("policies"),
            number("refused")
        );
    }
    for reason in &r.rolled_back {
        say!("             one went back by itself: {reason}");
    }
    for line in &r.refused_settings {
        say!("  real time  {line}");
    }
    for failure in &r.failures {
        say!("  FAILURE    {failure}");
    }
    if let Some(reason) = &r.stopped {
        say!("  STOPPED    {reason}");
    }
}
