//! Minari data sets, in HDF5 or Parquet: a folder with `metadata.json` beside the data, or the folder around it.
//!
//! In Parquet every episode has a folder `K` with a file that has one row more than the episode has steps: the last
//! observation, with zeros for the rest. (Their HDF5: `hdf5.rs`.)

use std::path::{Path, PathBuf};

use super::array::Arrays;
use super::dataset::Dataset;
use super::error::EpisodeError;
use super::table::{Choices, Table, choose};
use super::{hdf5, parquet};

const HDF5: &str = "main_data.hdf5";

/// The folder with the data, where `folder` is such a set.
pub(super) fn data_folder(folder: &Path) -> Option<PathBuf> {
    [folder.join("data"), folder.to_owned()]
        .into_iter()
        .find(|data| data.join("metadata.json").is_file() || data.join(HDF5).is_file())
}

/// Reads the set in a [`data_folder`].
///
/// # Errors
/// When a file cannot be read, or a question is left open.
pub(super) fn read(folder: &Path, choices: &Choices) -> Result<Dataset, EpisodeError> {
    let file = folder.join(HDF5);
    if file.is_file() {
        return hdf5::read(&file, choices);
    }
    let mut table = Table { truncated: Some(Vec::new()), rewards: Some(Vec::new()), ..Table::default() };
    for number in 0.. {
        let file = folder.join(number.to_string()).join("part-0.parquet");
        if !file.is_file() {
            break;
        }
        append(&mut table, number, file, choices)?;
    }
    if table.ended.is_empty() {
        let reason =
            String::from("has neither main_data.hdf5 nor 0/part-0.parquet (Minari's Arrow files are not read)");
        return Err(EpisodeError::Format { path: folder.to_owned(), reason });
    }
    table.into_dataset(folder, choices)
}

fn append(table: &mut Table, number: i64, path: PathBuf, choices: &Choices) -> Result<(), EpisodeError> {
    let mut file = parquet::Table::new(vec![path.clone()]);
    let names = file.names()?;
    let observations: Vec<String> = names
        .iter()
        .filter_map(|name| Some(name.strip_prefix("observations")?.trim_start_matches('.').to_owned()))
        .collect();
    let chosen: Vec<String> = match &observations[..] {
        [only] if only.is_empty() => choose(&path, &[String::from("observations")], choices)?,
        several => choose(&path, several, choices)?.iter().map(|name| format!("observations.{name}")).collect(),
    };
    let (dim, observations) = file.side_by_side(&chosen)?;
    let (action_dim, actions) = file.matrix("actions")?;
    let ended = file.needed("terminations")?.to_flags();
    let steps = ended.len().saturating_sub(1);
    let fits = observations.len() == (steps + 1) * dim && actions.len() == (steps + 1) * action_dim;
    let same = number == 0 || (dim, action_dim) == (table.observation_dim, table.action_dim);
    if !fits || !same {
        let reason = String::from("its columns differ in length, or its widths from those of the first episode");
        return Err(EpisodeError::Format { path, reason });
    }
    (table.observation_dim, table.action_dim) = (dim, action_dim);
    table.observations.extend_from_slice(&observations[..steps * dim]);
    table.next_observations.extend_from_slice(&observations[dim.min(observations.len())..]);
    table.actions.extend_from_slice(&actions[..steps * action_dim]);
    table.ended.extend_from_slice(&ended[..steps]);
    table.rewards.get_or_insert_default().extend(file.needed("rewards")?.to_f32().iter().take(steps));
    table.truncated.get_or_insert_default().extend(file.needed("truncations")?.to_flags().iter().take(steps));
    table.episode.get_or_insert_default().extend(std::iter::repeat_n(number, steps));
    Ok(())
}
