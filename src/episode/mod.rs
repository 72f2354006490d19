//! Recorded episodes (layer 1): a data set in memory, and its `.npz` file.
//!
//! A [`Dataset`] is a list of episodes in flat columns. It knows nothing of replay buffers or networks; it is read
//! and written by import, export and offline training, never by the control thread. Every data set that was read
//! or is written has passed [`Dataset::check`].

mod dataset;
mod npz;

pub use dataset::{Dataset, DatasetProblem};
pub use npz::{ArrayProblem, Column, EpisodeError, Numbers, read_npz, write_columns, write_npz};
