//! `fieldtune data`.

use std::path::{Path, PathBuf};

use fieldtune::episode::{Dataset, read_npz, write_npz};
use fieldtune::replay::{Access, Store, export};

use super::{ConfigArgs, mean};

/// Work with data sets and replay buffers.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Import an .npz data set as the offline buffer of a configuration.
    Import {
        #[command(flatten)]
        config: ConfigArgs,
        /// The data set: observations, actions, rewards, terminals, timeouts and their kin.
        file: PathBuf,
    },
    /// Write a replay buffer or data set as .npz.
    Export {
        /// A run folder, a replay folder or an .npz file.
        source: PathBuf,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Say what is in a data set or replay buffer.
    Inspect {
        /// A run folder, a replay folder or an .npz file.
        source: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Import { config, file } => {
            let mut config = config.load()?;
            config.replay.offline.clone_from(file);
            let store = fieldtune::runtime::open_offline(&config)?;
            let transitions = store.map_or(0, |s| s.transitions());
            say!("{transitions} transitions imported; use it with --set replay.offline={}", file.display());
            Ok(true)
        }
        Command::Export { source, out } => {
            let (data, _) = read(source)?;
            write_npz(out, &data)?;
            say!("{} steps of {} episodes written to {}", data.steps(), data.episode_ends.len(), out.display());
            Ok(true)
        }
        Command::Inspect { source, json } => inspect(source, *json),
    }
}

/// A buffer behind a path, or the data set in a file, with a description of the buffer.
pub(super) fn read(source: &Path) -> anyhow::Result<(Dataset, Option<Store>)> {
    if source.is_file() {
        return Ok((read_npz(source)?, None));
    }
    let inner = source.join("replay");
    let store = Store::open(if inner.is_dir() { &inner } else { source }, Access::ReadOnly)?;
    Ok((export(&store)?, Some(store)))
}

fn inspect(source: &Path, json: bool) -> anyhow::Result<bool> {
    let (data, store) = read(source)?;
    let returns = data.returns();
    let bad = store.as_ref().map_or(0, |s| s.bad_records().total());
    let terminated = data.terminated.iter().filter(|t| **t).count();
    let extreme = |f: fn(f64, f64) -> f64, start: f64| returns.iter().copied().fold(start, f);
    if json {
        let buffer = store.as_ref().map(|s| {
            serde_json::json!({"records": s.len(), "capacity": s.capacity(), "transitions": s.transitions(),
                "overwritten": s.overwritten(), "bad_records": bad, "closed_cleanly": s.was_closed_cleanly()})
        });
        let value = serde_json::json!({
            "steps": data.steps(), "episodes": returns.len(), "observation_dim": data.observation_dim,
            "action_dim": data.action_dim, "terminated": terminated, "return_mean": mean(&returns),
            "returns": returns, "buffer": buffer,
        });
        say!("{value}");
        return Ok(bad == 0);
    }
    say!("{}", source.display());
    say!("  {} steps, {} episodes ({terminated} ended by the task)", data.steps(), returns.len());
    say!("  observation {} entries, action {}", data.observation_dim, data.action_dim);
    if !returns.is_empty() {
        say!(
            "  return mean {:.1}, min {:.1}, max {:.1}",
            mean(&returns),
            extreme(f64::min, f64::INFINITY),
            extreme(f64::max, f64::NEG_INFINITY)
        );
    }
    ranges("observation", &data.observations, data.observation_dim);
    ranges("action", &data.actions, data.action_dim);
    if let Some(store) = &store {
        let end =
            if store.was_closed_cleanly() { "closed cleanly" } else { "not closed cleanly; every record was verified" };
        say!(
            "  buffer: {} of {} records, {} overwritten, {bad} bad, {end}",
            store.len(),
            store.capacity(),
            store.overwritten()
        );
        if bad > 0 {
            say!("  bad records are skipped, never repaired: {:?}", store.bad_records());
        }
    }
    Ok(bad == 0)
}

fn ranges(name: &str, values: &[f32], width: usize) {
    for column in 0..width {
        let entries = values.iter().skip(column).step_by(width).copied();
        let (low, high) = entries.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low <= high {
            say!("  {name}[{column}] in [{low:.3}, {high:.3}]");
        }
    }
}
