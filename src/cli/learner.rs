//! `fieldtune learner`.

use fieldtune::runtime::{self, RunOptions};

use super::progress::Progress;
use super::{ConfigArgs, run, stop_on_signal, this_program, write_json};

const EXAMPLE: &str = "\
A learner and two robots, from the same robot.toml; --features fleet when building:
  fieldtune learner --config robot.toml --set run.directory=runs/learner
  fieldtune run --config robot.toml --learner remote --set fleet.robot=arm-1 --set run.directory=runs/arm-1
  fieldtune run --config robot.toml --learner remote --set fleet.robot=arm-2 --set run.directory=runs/arm-2

On other machines, with keys: a zenoh configuration for either end in fleet.zenoh (an example is in docs/fleet.md).

What they do, key `fleet`; on the learner's side with the newest counters of every robot:
  fieldtune status --run runs/learner";

/// Learn for several robots: take their steps, offer them policies.
///
/// Robots are `fieldtune run --learner remote` with the same [fleet] and robot.spaces. Everything is kept in
/// run.directory as by `run`; a learner that was killed goes on from there. Ctrl-C ends it;
/// run.steps does not count. By default it listens on this machine only (docs/fleet.md).
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLE)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// No progress, only the summary.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let config = args.config.load()?;
    let mut progress = Progress::new(args.quiet);
    let options = RunOptions::new(this_program()?, stop_on_signal()?);
    let outcome = runtime::learn_for_fleet(&config, &options, &mut progress);
    progress.finish();
    let report = outcome?;
    run::summary(&report);
    write_json(&config.run.directory.join("report.json"), &report)?;
    Ok(report.is_clean())
}
