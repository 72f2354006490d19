//! `fieldtune data`.

mod convert;
mod images;
mod inspect;
mod log;
mod sample;
mod verify;

use std::path::{Path, PathBuf};

use fieldtune::episode::{Choices, Dataset};
use fieldtune::replay::{Recording, Store, open_damaged};

/// Work with data sets and replay buffers.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Read a data set of others (D4RL, Minari, robomimic, LeRobot, NPZ) into a data set or offline buffer of fieldtune.
    Import(convert::Import),
    /// Write a replay buffer or data set as .npz, MCAP log or LeRobot set.
    Export(convert::Export),
    /// Say what is in a data set or replay buffer: episodes, returns, ranges, histograms.
    Inspect {
        /// A run folder, a replay folder or a data set.
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
        Command::Import(args) => convert::import(args),
        Command::Export(args) => convert::export(args),
        Command::Inspect { source, json } => inspect::run(source, *json),
        Command::Verify { source, json } => verify::verify(source, *json),
        Command::Repair { source, out, json } => verify::repair(source, out, *json),
        Command::Sample(args) => sample::run(args).map(|()| true),
    }
}

/// The step records of a run folder, a replay folder or a data set, oldest first. Damaged ones are left out, and said.
pub(super) fn recording(source: &Path) -> anyhow::Result<Recording> {
    if source.is_file() {
        let (data, _) = read(source)?;
        let records: Vec<_> = (0..data.episode_ends.len()).flat_map(|episode| data.to_records(episode)).collect();
        return Ok(records.into());
    }
    let (recording, bad) = Recording::of(open_damaged(&folder(source))?);
    if bad > 0 {
        say!("{bad} bad records are left out");
    }
    Ok(recording)
}

/// The replay folder that a path means: a run folder has it inside.
fn folder(source: &Path) -> PathBuf {
    let inner = source.join("replay");
    if inner.is_dir() { inner } else { source.to_owned() }
}

/// A buffer behind a path, or the data set in a file, with the buffer.
pub(super) fn read(source: &Path) -> anyhow::Result<(Dataset, Option<Store>)> {
    let loaded = convert::load(source, &Choices::default(), &images::Sight::default(), None)?;
    Ok((loaded.data, loaded.store))
}
