//! `fieldtune swap`, `fieldtune label` and `fieldtune status`: talking to a running process.

use std::path::{Path, PathBuf};

use anyhow::Context;
use fieldtune::config::{self, SwapAt};
use fieldtune::replay::{Access, Store};
use fieldtune::runtime::{Reply, Request, ask};
use fieldtune::spaces::Outcome;

/// Change the policy of a running process between two ticks.
///
/// The bundle is verified, checked against the robot, warmed up and tried beside the policy in use on the newest
/// observations by the running process before the loop takes it; a bundle that fails is refused and the policy in use
/// stays. A policy that collapses within its first episodes goes back by itself ([swap] of the configuration). After a
/// swap or a roll-back the learner's own policies are held back until --follow.
#[derive(clap::Args)]
pub(super) struct SwapArgs {
    /// Folder of the run (run.directory).
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// The bundle to swap in.
    #[arg(required_unless_present_any = ["rollback", "follow"], conflicts_with_all = ["rollback", "follow"])]
    bundle: Option<PathBuf>,
    /// When it is applied, instead of swap.at of the configuration.
    #[arg(long, value_enum, requires = "bundle")]
    at: Option<At>,
    /// Whether the learner keeps its own networks or, once the policy has passed its trial, goes on from this bundle's.
    #[arg(long, value_enum, default_value_t = LearnerGoesOn::Keep, requires = "bundle")]
    learner: LearnerGoesOn,
    /// Only say how its actions differ from those of the policy in use.
    #[arg(long, requires = "bundle")]
    dry_run: bool,
    /// Go back to the policy before.
    #[arg(long, conflicts_with = "follow")]
    rollback: bool,
    /// Take the learner's policies again.
    #[arg(long)]
    follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum At {
    Tick,
    Episode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LearnerGoesOn {
    Keep,
    Adopt,
}

/// Ask a running process how it is.
#[derive(clap::Args)]
pub(super) struct StatusArgs {
    /// Folder of the run (run.directory).
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Ask it to end orderly.
    #[arg(long)]
    stop: bool,
}

/// Say that an episode was a success or a failure.
///
/// The episode under way ends with it. One that has ended is labelled in the replay buffer, after the run as well: its
/// last step becomes terminated and gets the reward of the outcome (episode.success_reward, episode.failure_reward), in
/// place of that of an outcome it had before. When the end of the episode is not in the buffer, the label is refused.
#[derive(clap::Args)]
pub(super) struct LabelArgs {
    /// Folder of the run (run.directory).
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// An episode that has ended; without it the one under way.
    #[arg(long, value_name = "NUMBER")]
    episode: Option<u32>,
    /// What it was.
    outcome: Word,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Word {
    Success,
    Failure,
}

fn question(run: &Path, request: &Request) -> anyhow::Result<Reply> {
    ask(run, request).with_context(|| format!("no process runs in {}", run.display()))
}

pub(super) fn swap(args: &SwapArgs) -> anyhow::Result<bool> {
    let request = match &args.bundle {
        // The running process has its own working directory.
        Some(bundle) => Request::Swap {
            bundle: std::path::absolute(bundle)?,
            at: args.at.map(|at| match at {
                At::Tick => SwapAt::Tick,
                At::Episode => SwapAt::Episode,
            }),
            adopt: args.learner == LearnerGoesOn::Adopt,
            try_only: args.dry_run,
        },
        None if args.rollback => Request::RollBack,
        None => Request::Follow,
    };
    let reply = question(&args.run, &request)?;
    say!("{}: {}", if reply.ok { "done" } else { "refused" }, reply.message);
    Ok(reply.ok)
}

pub(super) fn label(args: &LabelArgs) -> anyhow::Result<bool> {
    let outcome = match args.outcome {
        Word::Success => Outcome::Success,
        Word::Failure => Outcome::Failure,
    };
    let reply = match (ask(&args.run, &Request::Label { outcome, episode: args.episode }), args.episode) {
        (Err(_), Some(episode)) => return label_stored(&args.run, episode, outcome),
        (reply, _) => reply.with_context(|| {
            format!("no process runs in {}; an episode that is stored there is named by --episode", args.run.display())
        })?,
    };
    say!("{}: {}", if reply.ok { "done" } else { "refused" }, reply.message);
    Ok(reply.ok)
}

/// A word on an episode of a run that is over, worth what its configuration says. The buffer refuses while any process
/// has it open.
fn label_stored(run: &Path, episode: u32, outcome: Outcome) -> anyhow::Result<bool> {
    let episodes = config::load(&run.join("config.toml"), &[])?.episode;
    let mut store = Store::open(&run.join("replay"), Access::ReadWrite)?;
    let before = store.label(episode, outcome, |outcome| episodes.worth(outcome))?;
    store.sync()?;
    let before = before.map_or(String::new(), |before| format!(", no more a {before:?}").to_lowercase());
    say!("done: episode {episode} is labelled a {}{before}; the run is over", format!("{outcome:?}").to_lowercase());
    Ok(true)
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<bool> {
    let request = if args.stop { Request::Stop } else { Request::Status };
    let reply = question(&args.run, &request)?;
    if args.json {
        say!("{}", serde_json::to_string(&reply)?);
        return Ok(reply.ok);
    }
    say!("{}", reply.message);
    for (key, value) in reply.status.as_object().into_iter().flatten() {
        say!("  {key:<18} {value}");
    }
    Ok(reply.ok)
}
