//! `fieldtune bench fleet`: robots and a learner elsewhere, over loopback.

use std::path::PathBuf;
use std::time::Duration;

use fieldtune::runtime::measure::{FleetOptions, measure_fleet, play_robots};

use super::this_program;

/// Steps to a learner elsewhere and policies back, over loopback (docs/fleet.md).
///
/// Steps are those of HalfCheetah, 1 to 500 in a message, timed until the learner has them in its replay; policies of 0.3,
/// 3 and 20 MB, timed until the robot has them whole and their hash is right. The learner's side is this process, the
/// robots' another one. With several robots: 100 steps in a message, policies of 3 MB.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Messages of each robot, and policies, per row.
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2000))]
    rounds: u32,
    /// Robots at once; may be repeated.
    #[arg(long, default_values_t = [1], value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    robots: Vec<u32>,
    /// Milliseconds from one message of a robot to its next; 0: the next follows the answer.
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u32).range(..=10_000))]
    every_ms: u32,
    /// A new folder for the learner's replay.
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// A free port.
    #[arg(long, default_value_t = 17447)]
    port: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Be the robots of another process.
    #[arg(long, hide = true)]
    play_robots: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { folder, port, .. } = args;
    if args.play_robots {
        let orders = std::io::stdin().lines().map_while(Result::ok);
        return Ok(play_robots(folder, *port, args.robots[0], orders, |line| say!("{line}"))?);
    }
    let rows = measure_fleet(&FleetOptions {
        rounds: args.rounds,
        robots: args.robots.clone(),
        every: Duration::from_millis(args.every_ms.into()),
        folder: folder.clone(),
        port: *port,
        robots_program: this_program()?,
    })?;
    if args.json {
        say!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    say!("robots  message              p50 ms    p99 ms  kept ms     together   learner's processor");
    for row in rows {
        let (size, unit, each) = match row.what {
            "steps" => (row.size as f64, "steps", "step"),
            _ => (row.size as f64 / 1e6, "MB", "policy"),
        };
        say!(
            "{:>6}  {:<6} {size:>6} {unit:<5} {:>9.3} {:>9.3} {:>8.3} {:>10.0} {unit}/s {:>10.2} us per {each}",
            row.robots,
            row.what,
            row.p50_ms,
            row.p99_ms,
            row.blocked_p50_ms,
            row.per_second,
            row.learner_us
        );
    }
    Ok(())
}
