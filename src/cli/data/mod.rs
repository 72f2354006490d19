//! `fieldtune data`.

mod inspect;
mod log;
mod sample;
mod verify;

use std::path::{Path, PathBuf};

use fieldtune::episode::{Dataset, read_npz, write_npz};
use fieldtune::replay::{Store, export, open_damaged};
use fieldtune::spaces::StepRecord;

use super::ConfigArgs;

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
    /// Write a replay buffer or data set as .npz, or the steps of a replay buffer as an MCAP log.
    Export {
        /// A run folder, a replay folder or an .npz file.
        source: PathBuf,
        /// File to write; .mcap makes a log for Foxglove, PlotJuggler or Rerun.
        #[arg(long)]
        out: PathBuf,
        /// Bundle or run folder whose names the entries get in an MCAP log; the source itself where it is a run.
        #[arg(long, value_name = "BUNDLE")]
        names: Option<PathBuf>,
    },
    /// Say what is in a data set or replay buffer: episodes, returns, ranges, histograms.
    Inspect {
        /// A run folder, a replay folder or an .npz file.
        source: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check every record of a replay buffer; fails when one is bad.
    Verify {
        /// A run folder or a replay folder.
        source: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the verified records of a damaged buffer into a new one; the old one is not touched.
    Repair {
        /// A run folder or a replay folder.
        source: PathBuf,
        /// Folder of the new buffer.
        #[arg(long)]
        out: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Draw rows as the learner does and write them as .npz, for your own statistics.
    Sample(sample::Args),
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
        Command::Export { source, out, names } if out.extension().is_some_and(|e| e == "mcap") => {
            log::export(source, out, names.as_deref())
        }
        Command::Export { source, out, .. } => {
            let (data, _) = read(source)?;
            write_npz(out, &data)?;
            say!("{} steps of {} episodes written to {}", data.steps(), data.episode_ends.len(), out.display());
            Ok(true)
        }
        Command::Inspect { source, json } => inspect::run(source, *json),
        Command::Verify { source, json } => verify::verify(source, *json),
        Command::Repair { source, out, json } => verify::repair(source, out, *json),
        Command::Sample(args) => sample::run(args).map(|()| true),
    }
}

/// The step records of a run folder, a replay folder or a data set, oldest first. Damaged ones are left out, and said.
pub(super) fn records(source: &Path) -> anyhow::Result<Vec<StepRecord>> {
    if source.is_file() {
        let (data, _) = read(source)?;
        return Ok((0..data.episode_ends.len()).flat_map(|episode| data.to_records(episode)).collect());
    }
    let store = open_damaged(&folder(source))?;
    let mut records = Vec::with_capacity(store.len() as usize);
    let mut record = StepRecord::default();
    let all = if store.is_empty() { 0..0 } else { store.first_sequence()..store.last_sequence() + 1 };
    let expected = all.end - all.start;
    records.extend(all.filter_map(|sequence| store.record(sequence, &mut record).ok().map(|()| record.clone())));
    let bad = expected - records.len() as u64;
    if bad > 0 {
        say!("{bad} bad records are left out");
    }
    Ok(records)
}

/// The replay folder that a path means: a run folder has it inside.
fn folder(source: &Path) -> PathBuf {
    let inner = source.join("replay");
    if inner.is_dir() { inner } else { source.to_owned() }
}

/// A buffer behind a path, or the data set in a file, with a description of the buffer.
pub(super) fn read(source: &Path) -> anyhow::Result<(Dataset, Option<Store>)> {
    if source.is_file() {
        return Ok((read_npz(source)?, None));
    }
    let store = open_damaged(&folder(source))?;
    Ok((export(&store)?, Some(store)))
}
