//! LeRobot data sets, version 3: `meta/info.json`, `data/chunk-*/file-*.parquet`, `meta/episodes`, `meta/tasks.parquet`,
//! and images in the data files, in files of their own or in `videos/`.
//!
//! Of a set of others are read `action`, `next.reward`, `next.done`, `timestamp` and the chosen observations; LeRobot does
//! not tell a task that ended from an episode that was cut, and has no observation after the last action. What is
//! written here has columns for both (`next.terminated`, `next.truncated`, `next.observation.state`) and for the stamp
//! (`capture_us`), which LeRobot takes as further features. `timestamp` is the true time since the first observation of
//! the episode. Observations after the last steps have their images in `meta/final_images.parquet`, which LeRobot leaves
//! alone.

mod images;
mod video;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::array::Arrays;
use super::dataset::Dataset;
use super::error::EpisodeError;
use super::parquet;
use super::table::{Choices, Table, choose};

pub use images::{LerobotCamera, Picture, lerobot_cameras, lerobot_final_images, lerobot_images};
pub use write::{About, write_lerobot};

const INFO: &str = "meta/info.json";
const STATE: &str = "observation.state";
const NEXT_STATE: &str = "next.observation.state";
/// In `meta/info.json` of a set whose stamps were made from a rate.
const NOMINAL: &str = "nominal_timestamps";
/// Images of the observations after the last steps, one row for each episode.
const FINAL_IMAGES: &str = "meta/final_images.parquet";

/// Whether a folder is such a set.
pub(super) fn is_one(folder: &Path) -> bool {
    folder.join(INFO).is_file()
}

/// Reads a set; images are left to [`lerobot_images`].
///
/// # Errors
/// When a file cannot be read, the version is another one, or a question is left open.
pub(super) fn read(folder: &Path, choices: &Choices) -> Result<Dataset, EpisodeError> {
    let info = info(folder)?;
    let mut data = parquet::Table::new(data_files(folder)?);
    let names = data.names()?;
    let observations: Vec<String> = names.iter().filter(|name| name.starts_with("observation")).cloned().collect();
    let chosen = choose(folder, &observations, choices)?;
    let (observation_dim, observations) = data.side_by_side(&chosen)?;
    let (action_dim, actions) = data.matrix("action")?;
    let mut numbers = |name| data.optional(name);
    let episode: Vec<i64> =
        numbers("episode_index")?.map_or_else(Vec::new, |a| a.numbers.iter().map(|v| *v as i64).collect());
    let (done, terminated) = (numbers("next.done")?, numbers("next.terminated")?);
    let truncated = numbers("next.truncated")?.filter(|_| terminated.is_some());
    let next = numbers(NEXT_STATE)?.filter(|_| chosen == [STATE]);
    let stamps = match numbers("capture_us")? {
        _ if info[NOMINAL] == Value::Bool(true) => Vec::new(),
        Some(exact) => exact.numbers.iter().map(|us| *us as u64).collect(),
        None => {
            let seconds = numbers("timestamp")?.map_or_else(Vec::new, |a| a.numbers);
            seconds.iter().map(|s| (s * 1e6).round() as u64).collect()
        }
    };
    let table = Table {
        observation_dim,
        action_dim,
        rewards: numbers("next.reward")?.map(|a| a.to_f32()),
        ended: terminated.or(done).map_or_else(|| vec![false; episode.len()], |a| a.to_flags()),
        truncated: truncated.map(|a| a.to_flags()),
        episode: Some(episode),
        next_observations: next.map_or_else(Vec::new, |a| a.to_f32()),
        capture_us: stamps,
        observations,
        actions,
    };
    table.into_dataset(folder, choices)
}

/// What `meta/info.json` says, of a set of version 3.
fn info(folder: &Path) -> Result<Value, EpisodeError> {
    let path = folder.join(INFO);
    let text = fs::read(&path).map_err(|e| io("read", &path, e))?;
    let format = |reason: String| EpisodeError::Format { path: path.clone(), reason };
    let info: Value = serde_json::from_slice(&text).map_err(|e| format(e.to_string()))?;
    let version = info["codebase_version"].as_str().unwrap_or("without a version");
    if !version.starts_with("v3.") {
        return Err(format(format!("version {version} of LeRobot's format, read is v3; LeRobot converts older ones")));
    }
    Ok(info)
}

/// `data/chunk-*/file-*.parquet`, in order.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>, EpisodeError> {
    let mut files = Vec::new();
    for chunk in entries(&folder.join("data"))? {
        files.extend(entries(&chunk)?.into_iter().filter(|file| file.extension().is_some_and(|e| e == "parquet")));
    }
    if files.is_empty() {
        let reason = String::from("has no data/chunk-*/file-*.parquet");
        return Err(EpisodeError::Format { path: folder.to_owned(), reason });
    }
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, EpisodeError> {
    let listed = fs::read_dir(folder).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect());
    let mut paths: Vec<PathBuf> = listed.map_err(|e| io("list", folder, e))?;
    paths.sort();
    Ok(paths)
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> EpisodeError {
    EpisodeError::Io { action, path: path.to_owned(), source }
}
