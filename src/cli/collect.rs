//! `fieldtune collect`.

use std::path::PathBuf;

use anyhow::bail;
use fieldtune::episode::write_npz;
use fieldtune::runtime::{self, RunOptions};

use super::progress::Progress;
use super::{ConfigArgs, stop_on_signal, this_program};

/// Record episodes without learning and write them as a data set.
///
/// Every step is durable in run.directory as it happens; a recording that was interrupted goes on from there.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Steps to record in all, instead of run.steps.
    #[arg(long)]
    steps: Option<u64>,
    /// The data set to write.
    #[arg(long, value_name = "FILE.npz")]
    out: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let mut config = args.config.load()?;
    config.learner.enabled = false;
    config.run.evaluate_episodes = 0;
    config.run.steps = args.steps.unwrap_or(config.run.steps);
    if config.run.steps + u64::from(config.run.steps as u32 / config.episode.max_steps) + 1 > config.replay.capacity {
        bail!(
            "replay.capacity ({}) is too small for {} steps: the oldest would be overwritten",
            config.replay.capacity,
            config.run.steps
        );
    }
    let options = RunOptions { program: this_program()?, stop: stop_on_signal()?, serve: None };
    let mut progress = Progress::new(false);
    let outcome = runtime::run(&config, &options, &mut progress);
    progress.finish();
    let report = outcome?;
    let (data, _) = super::data::read(&config.run.directory)?;
    write_npz(&args.out, &data)?;
    say!("{} steps of {} episodes written to {}", data.steps(), data.episode_ends.len(), args.out.display());
    if let Some(reason) = &report.stopped {
        say!("the robot was stopped: {reason}");
    }
    Ok(report.is_clean())
}
