//! `fieldtune pretrain`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use fieldtune::config::{Config, Exploration};
use fieldtune::learner::Dims;
use fieldtune::learner::pretrain::{PretrainMetrics, Pretrainer};
use fieldtune::nn::weights::EnsembleWeights;
use fieldtune::policy::Bundle;
use fieldtune::policy::manifest::Description;
use fieldtune::replay::{Replay, Store};
use fieldtune::runtime;
use indicatif::{ProgressBar, ProgressStyle};

use super::{ConfigArgs, mean, stop_on_signal, this_program};

/// Train a first ensemble offline, with CQL on the data set of replay.offline, and write it as a bundle.
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
    /// Evaluate at the end over so many episodes, with the configured robot.
    #[arg(long, default_value_t = 0)]
    evaluate: u32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let store = runtime::open_offline(&config)?.context("replay.offline is empty: pretraining needs a data set")?;
    say!("{} offline transitions, ensemble of {}", store.transitions(), config.pretrain.ensemble_size);
    let stop = stop_on_signal()?;
    let spaces = &config.robot.spaces;
    let dims = Dims::from(spaces);
    let mut pretrainer = Pretrainer::new(dims, &config.pretrain, &config.learner, config.run.seed)?;
    // Nothing comes in online: the smallest buffer does.
    let nothing = Store::in_memory(store.layout(), 1024)?;
    let mut replay = Replay::new(Some(store), nothing, &config.replay)?;
    let bar = ProgressBar::new(config.pretrain.updates);
    bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} updates, {eta} left  {msg}")?);
    for update in 1..=config.pretrain.updates {
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
        let metrics = pretrainer.step(&mut replay)?;
        bar.set_position(update);
        if update % 100 == 0 {
            bar.set_message(describe(&metrics));
        }
        if update % (config.pretrain.updates / 10).max(1) == 0 {
            bar.suspend(|| say!("update {update:>7}  {}", describe(&metrics)));
        }
    }
    bar.finish_and_clear();
    let weights = pretrainer.weights()?;
    let bundle = Bundle::new(description(args, &config), weights.clone())?;
    bundle.save(&args.out)?;
    say!("bundle written to {}", args.out.display());
    evaluate(args.evaluate, &config, &weights, &stop)
}

fn describe(m: &PretrainMetrics) -> String {
    format!(
        "Bellman error {:.3}, CQL penalty {:.3}, Q on the data {:.1}, actor loss {:.2}, alpha {:.3}",
        m.bellman_error, m.penalty, m.q_mean, m.actor_loss, m.temperature
    )
}

fn description(args: &Args, config: &Config) -> Description {
    let p = &config.pretrain;
    let provenance = BTreeMap::from([
        ("data".to_owned(), config.replay.offline.display().to_string()),
        ("seed".to_owned(), config.run.seed.to_string()),
    ]);
    Description {
        name: args.name.clone().unwrap_or_else(|| format!("{} CQL", config.robot.name)),
        control_hz: config.robot.control_hz,
        algorithm: format!("CQL(H), weight {}, {} updates, batch {}", p.cql_weight, p.updates, p.batch_size),
        discount: config.learner.discount,
        training_log_std: Some(p.log_std),
        spaces: config.robot.spaces.clone(),
        provenance,
    }
}

fn evaluate(
    episodes: u32,
    config: &Config,
    weights: &EnsembleWeights,
    stop: &std::sync::atomic::AtomicBool,
) -> anyhow::Result<()> {
    if episodes > 0 {
        let program = this_program()?;
        let found = runtime::evaluate(
            config,
            &weights.actor,
            episodes,
            Exploration::Deterministic,
            &program,
            stop,
            &mut |_| {},
        )?;
        say!("mean return {:.1} over {episodes} episodes", mean(&found.returns()));
    }
    Ok(())
}
