//! `fieldtune evaluate`.

use std::path::PathBuf;

use fieldtune::config::Exploration;
use fieldtune::policy::{AnyBundle, checks};
use fieldtune::runtime;

use super::{ConfigArgs, mean, stop_on_signal, this_program};

/// Run deterministic episodes with a policy and print their returns.
///
/// A simulated robot is taken in lockstep. The start states depend on run.seed alone, so two evaluations compare.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// The bundle; without it, policy.bundle of the configuration.
    #[arg(long, value_name = "FOLDER")]
    policy: Option<PathBuf>,
    /// Number of episodes.
    #[arg(long, default_value_t = 5)]
    episodes: u32,
    /// Sample actions as while learning, instead of tanh(mean).
    #[arg(long)]
    stochastic: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let bundle = AnyBundle::load(args.policy.as_ref().unwrap_or(&config.policy.bundle))?;
    checks::names(bundle.spaces(), &config.robot.spaces)?;
    let exploration = if args.stochastic { Exploration::Stochastic } else { Exploration::Deterministic };
    let stop = stop_on_signal()?;
    let mut each = |e: &fieldtune::telemetry::EpisodeReturn| {
        if !args.json {
            let end = if e.terminated { "ended by the task" } else { "time limit" };
            say!("episode {:>3}  return {:>9.1}  length {:>4}  {end}", e.episode, e.episode_return, e.length);
        }
    };
    let found =
        runtime::evaluate(&config, bundle.source(), args.episodes, exploration, &this_program()?, &stop, &mut each)?;
    if args.json {
        say!("{}", serde_json::to_string(&found)?);
    } else {
        let returns = found.returns();
        say!("mean return {:.2} over {} episodes, policy by {}", mean(&returns), returns.len(), found.engine);
    }
    Ok(())
}
