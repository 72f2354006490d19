//! Recorded episodes (layer 1): a data set in memory, and the files of the field that hold one.
//!
//! A [`Dataset`] is a list of episodes in flat columns. It knows nothing of replay buffers or networks; it is read
//! and written by import, export and offline training, never by the control thread. Every data set that was read
//! or is written has passed [`Dataset::check`]. What a file leaves open is asked for ([`Choices`]), never guessed.

mod array;
mod dataset;
mod error;
mod hdf5;
mod lerobot;
mod minari;
mod npz;
mod parquet;
mod table;

use std::path::Path;

pub use dataset::{Dataset, DatasetProblem, Images};
pub use error::{ArrayProblem, EpisodeError};
pub use lerobot::{
    About, LerobotCamera, Picture, lerobot_cameras, lerobot_final_images, lerobot_images, write_lerobot,
};
pub use npz::{Column, Numbers, write_columns, write_npz};
pub use table::{Choices, Ends};

/// Reads a data set (`docs/data-sets.md`): `.npz`, HDF5 of D4RL, Minari or robomimic, or the folder of a LeRobot or
/// Minari set.
///
/// # Errors
/// When it cannot be read, contradicts itself, or leaves open what `choices` does not say.
pub fn read(path: &Path, choices: &Choices) -> Result<Dataset, EpisodeError> {
    if lerobot::is_one(path) {
        return lerobot::read(path, choices);
    }
    if path.is_dir() {
        let Some(data) = minari::data_folder(path) else {
            let reason = String::from("is a folder with neither a replay buffer nor a LeRobot or Minari set");
            return Err(EpisodeError::Format { path: path.to_owned(), reason });
        };
        return minari::read(&data, choices);
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("hdf5" | "h5") => hdf5::read(path, choices),
        _ => npz::read(path, choices),
    }
}
