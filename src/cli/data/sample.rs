//! Real draws in a file, so that anyone can judge the sampler with their own statistics.

use std::path::PathBuf;

use anyhow::Context;
use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::episode::{Column, Numbers, write_columns};
use fieldtune::replay::{Access, Replay, Store};
use fieldtune::spaces::{Minibatch, Source};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::folder;
use crate::cli::ConfigArgs;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// A run folder or a replay folder.
    source: PathBuf,
    /// Rows to draw.
    #[arg(long, default_value_t = 100_000)]
    n: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
    /// Rows of a minibatch; the last one has what is left.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Sampler instead of the configured one: balanced, uniform, online, symmetric.
    #[arg(long, value_parser = sampler)]
    sampler: Option<SamplerKind>,
    /// Configuration of the run: sampler and offline data come from it. Without one, the buffer is all there is.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key on top of the file; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The name of a sampler as the configuration spells it.
fn sampler(name: &str) -> Result<SamplerKind, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// Columns of all rows.
#[derive(Default)]
struct Rows {
    leaf: Vec<i64>,
    offline: Vec<bool>,
    probability: Vec<f64>,
    observation: Vec<f32>,
    action: Vec<f32>,
    reward: Vec<f32>,
    terminated: Vec<bool>,
    next_observation: Vec<f32>,
}

impl Rows {
    fn add(&mut self, batch: &Minibatch, probability: &[f64]) {
        self.leaf.extend(batch.leaf.iter().map(|leaf| i64::from(*leaf)));
        self.offline.extend(batch.source.iter().map(|s| *s == Source::Offline));
        self.probability.extend_from_slice(probability);
        self.observation.extend_from_slice(&batch.observation);
        self.action.extend_from_slice(&batch.action);
        self.reward.extend_from_slice(&batch.reward);
        self.terminated.extend(batch.terminated.iter().map(|t| *t > 0.0));
        self.next_observation.extend_from_slice(&batch.next_observation);
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let online = Store::open(&folder(&args.source), Access::ReadOnly)?;
    let layout = online.layout();
    let (config, offline) = match &args.config {
        Some(file) => {
            let config = ConfigArgs { config: file.clone(), method: None, overrides: args.overrides.clone() }.load()?;
            (config.replay.clone(), fieldtune::runtime::open_offline(&config)?)
        }
        None => (ReplayConfig::default(), None),
    };
    let kind = args.sampler.unwrap_or(config.sampler);
    let mut replay = Replay::new(offline, online, &config)?;
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let (mut batch, mut probability, mut rows) = (Minibatch::default(), Vec::new(), Rows::default());
    let mut left = args.n;
    while left > 0 {
        let now = left.min(args.batch as usize);
        replay.sample(kind, now, &mut rng, &mut batch)?;
        replay.probabilities(kind, now, &batch.leaf, &mut probability);
        rows.add(&batch, &probability);
        left -= now;
    }
    // 0: offline, 1: online.
    let source: Vec<i64> = rows.offline.iter().map(|offline| i64::from(!*offline)).collect();
    let columns = [
        Column::flat("index", Numbers::I64(&rows.leaf)),
        Column::rows("observation", layout.observation_dim, Numbers::F32(&rows.observation)),
        Column::rows("action", layout.action_dim, Numbers::F32(&rows.action)),
        Column::flat("reward", Numbers::F32(&rows.reward)),
        Column::flat("terminated", Numbers::Bool(&rows.terminated)),
        Column::rows("next_observation", layout.observation_dim, Numbers::F32(&rows.next_observation)),
        Column::flat("source", Numbers::I64(&source)),
        Column::flat("probability", Numbers::F64(&rows.probability)),
    ];
    write_columns(&args.out, &columns).context("the sample was not written")?;
    let offline = rows.offline.iter().filter(|o| **o).count();
    let stats = replay.stats();
    if args.json {
        let value = json!({"rows": args.n, "seed": args.seed, "sampler": kind, "offline_rows": offline,
            "offline_transitions": stats.offline_transitions, "online_transitions": stats.online_transitions,
            "out": args.out});
        say!("{value}");
    } else {
        say!(
            "{} rows, {offline} of them offline, of {} offline and {} online transitions written to {}",
            args.n,
            stats.offline_transitions,
            stats.online_transitions,
            args.out.display()
        );
    }
    Ok(())
}
