//! `fieldtune pretrain`.

use std::path::PathBuf;

use fieldtune::config::{Config, Exploration};
use fieldtune::learner::pretrain::PretrainMetrics;
use fieldtune::policy::{Bundle, Source};
use fieldtune::runtime::{self, PretrainEvent, PretrainStart, Pretrained, RunOptions};
use indicatif::{ProgressBar, ProgressStyle};

use super::{ConfigArgs, mean, stop_on_signal, this_program, write_json};

/// Train a first ensemble offline on the data set of replay.offline and write it as a bundle.
///
/// [pretrain] of the configuration names method and settings. Checkpoints, evaluations and the best ensemble are kept
/// in run.directory/pretraining; with run.existing = "resume" an interrupted training goes on from there, to the byte
/// as if it had never stopped. Ctrl-C stops it with a checkpoint.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder of the new bundle.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Name of the bundle.
    #[arg(long)]
    name: Option<String>,
    /// Go on with actors, critics and encoders of policy.bundle instead of random ones; with learner.trunk = "frozen"
    /// its encoders stay, and an update costs a fraction.
    #[arg(long, conflicts_with = "critic_only")]
    from_bundle: bool,
    /// Keep the actors of policy.bundle and fit new critics to them (fitted Q evaluation).
    #[arg(long)]
    critic_only: bool,
    /// Write the ensemble of the best evaluation instead of the last one; needs pretrain.evaluate_every.
    #[arg(long)]
    best: bool,
    /// Evaluate the written ensemble over so many episodes, with the configured robot.
    #[arg(long, default_value_t = 0)]
    evaluate: u32,
    /// Write evaluations and losses to this file, as JSON.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let config = args.config.load()?;
    anyhow::ensure!(!args.best || config.pretrain.evaluate_every > 0, "--best needs pretrain.evaluate_every");
    let wanted = args.from_bundle || args.critic_only;
    let bundle = wanted.then(|| Bundle::load(&config.policy.bundle)).transpose()?;
    let start = match &bundle {
        None => PretrainStart::Random,
        Some(bundle) if args.critic_only => PretrainStart::CriticsFor(bundle),
        Some(bundle) => PretrainStart::Ensemble(bundle),
    };
    let options = RunOptions::new(this_program()?, stop_on_signal()?);
    let bar = ProgressBar::new(config.pretrain.updates);
    bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} updates, {eta} left  {msg}")?);
    let every = (config.pretrain.updates / 10).max(1);
    let made = runtime::pretrain(&config, start, &options, &mut |event| show(&bar, every, &event));
    bar.finish_and_clear();
    let made = made?;
    let complete = made.updates >= config.pretrain.updates;
    if !complete {
        say!("stopped after {} of {} updates", made.updates, config.pretrain.updates);
    }
    if let Some(path) = &args.report {
        write_json(path, &report(&config, &made))?;
    }
    let weights = made.best.as_ref().filter(|_| args.best).unwrap_or(&made.last);
    let mut description = runtime::pretrained_description(&config, start, made.updates);
    if let Some(name) = &args.name {
        description.name.clone_from(name);
    }
    Bundle::new(description, weights.clone())?.save(&args.out)?;
    say!("bundle written to {} ({:.1} ms of CPU per update)", args.out.display(), made.cpu_ms_per_update);
    if args.evaluate > 0 && complete {
        let found = runtime::evaluate(
            &config,
            Source::Ensemble(&weights.actor, None),
            args.evaluate,
            Exploration::Deterministic,
            &options.program,
            &options.stop,
            &mut |_| {},
        )?;
        say!("mean return {:.2} over {} episodes", mean(&found.returns()), args.evaluate);
    }
    Ok(complete)
}

fn show(bar: &ProgressBar, every: u64, event: &PretrainEvent) {
    match event {
        PretrainEvent::Begin { done, members, transitions, moved_to } => {
            bar.set_position(*done);
            say!("{transitions} offline transitions, ensemble of {members}, {done} updates done");
            if let Some(path) = moved_to {
                say!("an earlier pretraining was moved to {}", path.display());
            }
        }
        PretrainEvent::Update { updates, metrics } => {
            bar.set_position(*updates);
            if updates.is_multiple_of(100) {
                bar.set_message(describe(metrics));
            }
            if updates.is_multiple_of(every) {
                bar.suspend(|| say!("update {updates:>7}  {}", describe(metrics)));
            }
        }
        PretrainEvent::Evaluated(found) => bar.suspend(|| {
            say!("update {:>7}  mean return {:.2} over {} episodes", found.updates, found.mean(), found.returns.len());
        }),
    }
}

fn describe(m: &PretrainMetrics) -> String {
    format!(
        "Bellman error {:.3}, CQL penalty {:.3}, Q on the data {:.1}, actor loss {:.2}, alpha {:.3}",
        m.bellman_error, m.penalty, m.q_mean, m.actor_loss, m.temperature
    )
}

fn report(config: &Config, made: &Pretrained) -> serde_json::Value {
    serde_json::json!({
        "seed": config.run.seed,
        "data": config.replay.offline.file_name().map(|name| name.to_string_lossy()),
        "updates": made.updates,
        "settings": config.pretrain,
        "evaluations": made.evaluations,
        "last_update": made.metrics,
        "cpu_ms_per_update": made.cpu_ms_per_update,
    })
}
