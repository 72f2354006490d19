//! `fieldtune replay`.

use std::path::PathBuf;

use anyhow::{bail, ensure};
use fieldtune::clock::Clock;
use fieldtune::config::{self, Config, Exploration};
use fieldtune::policy::AnyBundle;
use fieldtune::policy::checks;
use fieldtune::replay::Recording;
use fieldtune::runtime::{self, Agreement, Difference, EpisodeReplay, Replayed, RunOptions};

use super::progress::Progress;
use super::{stop_on_signal, this_program, write_json};

/// Run recorded observations through the control loop with a policy and compare its actions with the recorded ones.
///
/// Observation, policy, exploration noise, limits and rules are those of the configuration; in a run folder, of the
/// run. The policy of the recording gives the recorded actions again, bit for bit. Says where and by how much actions
/// differ, what the limits did, which faults would have stopped the robot, and how long a tick takes.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A run folder, a replay folder or a data set.
    episodes: PathBuf,
    /// The bundle; without it, policy.bundle of the configuration.
    #[arg(long, value_name = "FOLDER")]
    policy: Option<PathBuf>,
    /// Configuration file; without it that of the run folder, else the defaults with the spaces of the bundle and
    /// without exploration noise.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key on top of the file; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Fail when an action differs by more than this; 0: the same bits.
    #[arg(long, value_name = "DIFFERENCE", conflicts_with = "learn")]
    tolerance: Option<f32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Learn from the recorded episodes alone instead, with the learner of the configuration, and leave the folder of
    /// a run here: the fine-tuned bundle is FOLDER/bundle.
    #[arg(long, value_name = "FOLDER")]
    learn: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let recording = super::data::recording(&args.episodes)?;
    ensure!(!recording.records().is_empty(), "{} holds no steps", args.episodes.display());
    let mut config = configuration(args)?;
    if let Some(folder) = &args.learn {
        config.run.directory.clone_from(folder);
        return learn(config, &recording, args);
    }
    let bundle = AnyBundle::load(&config.policy.bundle)?;
    checks::names(bundle.spaces(), &config.robot.spaces)?;
    let mut each = |episode: &EpisodeReplay| {
        if !args.json {
            say_episode(episode, &config);
        }
    };
    let replayed = runtime::replay(&config, bundle.source(), &recording, &Clock::lockstep(), &mut each)?;
    if args.json {
        say!("{}", serde_json::to_string(&replayed)?);
    } else {
        summary(&replayed);
    }
    let stopped = replayed.episodes.iter().any(|episode| episode.stopped.is_some());
    let equal = match args.tolerance {
        None => true,
        Some(0.0) => replayed.all.equal == replayed.all.steps,
        Some(most) => replayed.all.largest <= most,
    };
    Ok(equal && !stopped)
}

/// What the recording ran with, as far as it says so.
fn configuration(args: &Args) -> anyhow::Result<Config> {
    let beside = args.episodes.join("config.toml");
    let mut overrides = args.overrides.clone();
    if let Some(bundle) = &args.policy {
        overrides.push(format!("policy.bundle={}", bundle.display()));
    }
    if let Some(file) = args.config.as_ref().or_else(|| beside.is_file().then_some(&beside)) {
        return Ok(config::load(file, &overrides)?);
    }
    let Some(folder) = &args.policy else {
        bail!("{} does not say which policy it was made with: name one with --policy", args.episodes.display());
    };
    let bundle = AnyBundle::load(folder)?;
    let mut config = config::parse("defaults", "", &overrides)?;
    config.robot.spaces = bundle.spaces().clone();
    config.policy.exploration = Exploration::Deterministic;
    config.episode.max_steps = u32::MAX;
    Ok(config)
}

fn learn(mut config: Config, recording: &Recording, args: &Args) -> anyhow::Result<bool> {
    config.learner.enabled = true;
    // Before and after are measured where that moves no real robot.
    if config.simulator.task.is_empty() || !config.robot.address.is_empty() {
        config.run.evaluate_episodes = 0;
    }
    ensure!(
        std::path::absolute(&config.run.directory)? != std::path::absolute(&args.episodes)?,
        "--learn {}: that is the recording itself",
        config.run.directory.display()
    );
    let options = RunOptions::new(this_program()?, stop_on_signal()?);
    let mut progress = Progress::new(args.json);
    let outcome = runtime::learn_recorded(&config, recording, &options, &mut progress);
    progress.finish();
    let report = outcome?;
    write_json(&config.run.directory.join("report.json"), &report)?;
    if args.json {
        say!("{}", serde_json::to_string(&report)?);
    } else {
        super::run::summary(&report);
        say!("fine-tuned bundle: {}", config.run.directory.join("bundle").display());
    }
    Ok(report.is_clean())
}

fn say_episode(e: &EpisodeReplay, config: &Config) {
    let Agreement { steps, equal, largest, mean } = e.agreement;
    let compared = if equal == steps {
        "the same bits".to_owned()
    } else {
        format!("{equal} with the same bits, differs by {mean:.2e}, at most {largest:.2e}")
    };
    say!("episode {:>4}  {steps:>5} steps  return {:>9.1}  {compared}", e.episode, e.recorded_return);
    let name = |d: &Difference| config.robot.spaces.action.get(d.entry).cloned().unwrap_or_default();
    let at = |d: &Difference| format!("step {} {}: recorded {}, now {}", d.step, name(d), d.recorded, d.replayed);
    if let (Some(first), Some(worst)) = (&e.first, &e.worst) {
        say!("    first at {}; worst at {}", at(first), at(worst));
        say!("    the recorded actions are {:.2} standard deviations of this policy from its mean", e.deviations);
    }
    if e.limited + e.bad_actions > 0 {
        say!(
            "    limits would have changed {} actions, by at most {:.3}; {} were not finite",
            e.limited,
            e.limited_by,
            e.bad_actions
        );
    }
    if e.person > 0 {
        say!("    {} steps in which a person chose the action are not compared", e.person);
    }
    match &e.stopped {
        Some(fault) => {
            say!("    THE ROBOT WOULD HAVE BEEN STOPPED, {} recorded steps before the end: {fault}", e.not_reached);
        }
        None if e.not_reached > 0 => say!("    the rules would have ended it {} steps earlier", e.not_reached),
        None => {}
    }
}

fn summary(r: &Replayed) {
    for (generation, Agreement { steps, equal, largest, mean }) in &r.generations {
        say!(
            "recorded with policy generation {generation}: {equal} of {steps} steps have the same bits; mean difference {mean:.2e}, largest {largest:.2e}"
        );
    }
    let limited: u64 = r.episodes.iter().map(|episode| episode.limited).sum();
    let [half, most, longest] = r.tick_us;
    say!(
        "{} steps of {} episodes, policy by {}; {limited} actions limited; a tick takes {half:.0} us (p50), {most:.0} us (p99), at most {longest:.0} us",
        r.all.steps,
        r.episodes.len(),
        r.engine
    );
}
