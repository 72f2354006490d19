//! Writing a LeRobot set.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::dataset::{Dataset, Images};
use super::super::error::EpisodeError;
use super::super::parquet::{self, Values};
use super::{FINAL_IMAGES, INFO, NEXT_STATE, NOMINAL, STATE, io};
use crate::pixels;
use crate::spaces::Spaces;

/// Cameras of a set that is written have this name, and a number where there are several.
const CAMERA: &str = "observation.images.camera";

/// What a set says about itself beside its steps.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Names of the entries.
    pub spaces: &'a Spaces,
    /// Steps per second that stamps are made from where the data have none.
    pub nominal_hz: Option<f64>,
    /// The task, in words.
    pub task: &'a str,
}

/// Writes a set into a new folder, images as PNG in the data file. The folder appears whole or not at all.
///
/// # Errors
/// When the folder exists, the data contradict themselves, have stamps and a rate or neither, or cannot be written.
pub fn write_lerobot(folder: &Path, data: &Dataset, about: &About<'_>) -> Result<(), EpisodeError> {
    data.check().map_err(|problem| EpisodeError::Content { path: folder.to_owned(), problem })?;
    if folder.exists() {
        let reason = String::from("exists; choose another folder");
        return Err(EpisodeError::Format { path: folder.to_owned(), reason });
    }
    let cameras = data.images.as_ref().map_or(Some(0), |images| pixels::cameras(images.shape.channels));
    let Some(cameras) = cameras else {
        let reason = String::from("its images are not of cameras (3 channels each); only .npz takes them");
        return Err(EpisodeError::Format { path: folder.to_owned(), reason });
    };
    let names = camera_names(cameras);
    let stamps = data.stamps(about.nominal_hz, folder)?;
    let mut unnamed = folder.as_os_str().to_owned();
    unnamed.push(".new");
    let unnamed = PathBuf::from(unnamed);
    // A leftover of a process that was killed.
    let _ = fs::remove_dir_all(&unnamed);
    let written = write_into(&unnamed, data, &stamps, &names, about)
        .and_then(|()| fs::rename(&unnamed, folder).map_err(|e| io("name", folder, e)));
    if written.is_err() {
        let _ = fs::remove_dir_all(&unnamed);
    }
    written
}

/// Features of the cameras, in the order of the channels; sorted, they stay in it.
fn camera_names(cameras: usize) -> Vec<String> {
    match cameras {
        1 => vec![String::from(CAMERA)],
        several => (0..several).map(|camera| format!("{CAMERA}_{camera:02}")).collect(),
    }
}

/// Columns of images, one for each camera.
fn png<'a>(images: &'a Images, names: &'a [String], frames: &'a [u8]) -> impl Iterator<Item = (&'a str, Values<'a>)> {
    let size = (images.shape.width, images.shape.height);
    let column = move |camera| Values::Png { size, camera, cameras: names.len(), frames };
    names.iter().enumerate().map(move |(camera, name)| (name.as_str(), column(camera)))
}

fn write_into(
    folder: &Path,
    data: &Dataset,
    stamps: &[u64],
    cameras: &[String],
    about: &About<'_>,
) -> Result<(), EpisodeError> {
    for part in ["data/chunk-000", "meta/episodes/chunk-000"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).map_err(|e| io("make", &part, e))?;
    }
    let features = Columns::of(data, stamps, about).write(
        &folder.join("data/chunk-000/file-000.parquet"),
        data,
        cameras,
        about,
    )?;
    if let Some(images) = data.images.as_ref().filter(|images| !images.finals.is_empty()) {
        let columns: Vec<_> = png(images, cameras, &images.finals).collect();
        parquet::write(&folder.join(FINAL_IMAGES), &columns, &[])?;
    }
    write_episodes(&folder.join("meta/episodes/chunk-000/file-000.parquet"), data, about.task)?;
    write_tasks(&folder.join("meta/tasks.parquet"), about.task)?;
    let episodes = data.episode_ends.len();
    let mut info = json!({
        "codebase_version": "v3.0", "robot_type": Value::Null, "total_episodes": episodes,
        "total_frames": data.steps(), "total_tasks": 1, "chunks_size": 1000, "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500, "fps": rate(data, stamps), "splits": {"train": format!("0:{episodes}")},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": Value::Null,
        "features": features,
    });
    if about.nominal_hz.is_some() {
        info[NOMINAL] = true.into();
    }
    for (name, value) in [(INFO, info), ("meta/stats.json", statistics(data, cameras))] {
        let path = folder.join(name);
        fs::write(&path, format!("{value:#}")).map_err(|e| io("write", &path, e))?;
    }
    Ok(())
}

/// Whole steps per second, by the middle of all periods; LeRobot takes no fractions.
fn rate(data: &Dataset, stamps: &[u64]) -> u64 {
    let mut periods: Vec<u64> =
        data.episodes().flat_map(|steps| stamps[steps].windows(2).map(|pair| pair[1].abs_diff(pair[0]))).collect();
    periods.sort_unstable();
    let middle = periods.get(periods.len() / 2).copied().unwrap_or_default();
    (1e6 / middle.max(1) as f64).round().clamp(1.0, 1e6) as u64
}

/// The columns that a data set does not have in this form.
struct Columns {
    timestamp: Vec<f32>,
    capture_us: Vec<i64>,
    frame: Vec<i64>,
    episode: Vec<i64>,
    index: Vec<i64>,
    task: Vec<i64>,
    done: Vec<bool>,
    next: Vec<f32>,
}

impl Columns {
    fn of(data: &Dataset, stamps: &[u64], about: &About<'_>) -> Self {
        let (steps, dim) = (data.steps(), data.observation_dim);
        let mut columns = Self {
            timestamp: Vec::with_capacity(steps),
            capture_us: stamps.iter().filter(|_| about.nominal_hz.is_none()).map(|t| *t as i64).collect(),
            frame: Vec::with_capacity(steps),
            episode: Vec::with_capacity(steps),
            index: (0..steps as i64).collect(),
            task: vec![0; steps],
            done: vec![false; steps],
            next: Vec::new(),
        };
        for (number, range) in data.episodes().enumerate() {
            let first = stamps[range.start];
            columns.timestamp.extend(stamps[range.clone()].iter().map(|t| ((*t as f64 - first as f64) * 1e-6) as f32));
            columns.frame.extend(0..range.len() as i64);
            columns.episode.extend(std::iter::repeat_n(number as i64, range.len()));
            columns.done[range.end - 1] = true;
            if let Some(last) = data.final_observations.get(number * dim..(number + 1) * dim) {
                columns.next.extend_from_slice(&data.observations[(range.start + 1) * dim..range.end * dim]);
                columns.next.extend_from_slice(last);
            }
        }
        columns
    }

    /// Writes all columns; returns what `meta/info.json` says about them.
    fn write(&self, path: &Path, data: &Dataset, cameras: &[String], about: &About<'_>) -> Result<Value, EpisodeError> {
        let (observation, action) = (&about.spaces.observation, &about.spaces.action);
        let mut columns = vec![
            (STATE, "float32", observation, Values::F32Lists(data.observation_dim, &data.observations)),
            ("action", "float32", action, Values::F32Lists(data.action_dim, &data.actions)),
        ];
        if !self.next.is_empty() {
            columns.push((NEXT_STATE, "float32", observation, Values::F32Lists(data.observation_dim, &self.next)));
        }
        let one = &Vec::new();
        columns.extend([
            ("next.reward", "float32", one, Values::F32(&data.rewards)),
            ("next.done", "bool", one, Values::Bool(&self.done)),
            ("next.terminated", "bool", one, Values::Bool(&data.terminated)),
            ("next.truncated", "bool", one, Values::Bool(&data.truncated)),
            ("timestamp", "float32", one, Values::F32(&self.timestamp)),
            ("frame_index", "int64", one, Values::I64(&self.frame)),
            ("episode_index", "int64", one, Values::I64(&self.episode)),
            ("index", "int64", one, Values::I64(&self.index)),
            ("task_index", "int64", one, Values::I64(&self.task)),
        ]);
        if !self.capture_us.is_empty() {
            columns.push(("capture_us", "int64", one, Values::I64(&self.capture_us)));
        }
        let feature = |(name, dtype, names, values): &(&str, &str, &Vec<String>, Values<'_>)| {
            let width = if let Values::F32Lists(width, _) = values { *width } else { 1 };
            let names = if names.len() == width && !names.is_empty() { json!(names) } else { Value::Null };
            (String::from(*name), json!({"dtype": dtype, "shape": [width], "names": names}))
        };
        let mut features: Map<String, Value> = columns.iter().map(feature).collect();
        let mut columns: Vec<_> = columns.into_iter().map(|(name, _, _, values)| (name, values)).collect();
        if let Some(images) = &data.images {
            let shape = [images.shape.height, images.shape.width, 3];
            let feature = json!({"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]});
            features.extend(cameras.iter().map(|name| (name.clone(), feature.clone())));
            columns.extend(png(images, cameras, &images.steps));
        }
        parquet::write(path, &columns, &[])?;
        Ok(Value::Object(features))
    }
}

fn write_episodes(path: &Path, data: &Dataset, task: &str) -> Result<(), EpisodeError> {
    let episodes = data.episode_ends.len();
    let of =
        |number: fn(std::ops::Range<usize>) -> usize| data.episodes().map(|r| number(r) as i64).collect::<Vec<_>>();
    let (from, to, length) = (of(|r| r.start), of(|r| r.end), of(|r| r.len()));
    let (index, zero, tasks): (Vec<i64>, _, _) =
        ((0..episodes as i64).collect(), vec![0; episodes], vec![String::from(task); episodes]);
    let columns = [
        ("episode_index", Values::I64(&index)),
        ("tasks", Values::TextLists(&tasks)),
        ("length", Values::I64(&length)),
        ("data/chunk_index", Values::I64(&zero)),
        ("data/file_index", Values::I64(&zero)),
        ("dataset_from_index", Values::I64(&from)),
        ("dataset_to_index", Values::I64(&to)),
        ("meta/episodes/chunk_index", Values::I64(&zero)),
        ("meta/episodes/file_index", Values::I64(&zero)),
    ];
    parquet::write(path, &columns, &[])
}

/// The task is the index of a pandas table, which LeRobot looks it up in.
fn write_tasks(path: &Path, task: &str) -> Result<(), EpisodeError> {
    const INDEX: &str = "__index_level_0__";
    let column = |name: Value, field: &str, pandas: &str, numpy: &str| json!({"name": name, "field_name": field, "pandas_type": pandas, "numpy_type": numpy, "metadata": null});
    let pandas = json!({
        "index_columns": [INDEX], "column_indexes": [],
        "columns": [column("task_index".into(), "task_index", "int64", "int64"),
                    column(Value::Null, INDEX, "unicode", "object")],
    });
    let tasks = [String::from(task)];
    let columns = [("task_index", Values::I64(&[0])), (INDEX, Values::Text(&tasks))];
    parquet::write(path, &columns, &[("pandas", pandas.to_string())])
}

/// Smallest, largest, mean and standard deviation of every entry, which LeRobot normalises with.
fn statistics(data: &Dataset, cameras: &[String]) -> Value {
    let of = |values: &[f32], width: usize| {
        let rows = (values.len() / width.max(1)).max(1) as f64;
        let column = |entry: usize| values.iter().skip(entry).step_by(width).map(|v| f64::from(*v));
        let means: Vec<f64> = (0..width).map(|entry| column(entry).sum::<f64>() / rows).collect();
        let spread =
            |(entry, mean): (usize, &f64)| (column(entry).map(|v| (v - mean).powi(2)).sum::<f64>() / rows).sqrt();
        let all = |f: fn(f64, f64) -> f64, start: f64| (0..width).map(|e| column(e).fold(start, f)).collect::<Vec<_>>();
        json!({"min": all(f64::min, f64::INFINITY), "max": all(f64::max, f64::NEG_INFINITY), "mean": means,
            "std": means.iter().enumerate().map(spread).collect::<Vec<_>>(), "count": [values.len() / width.max(1)]})
    };
    let mut all = json!({
        STATE: of(&data.observations, data.observation_dim),
        "action": of(&data.actions, data.action_dim),
        "next.reward": of(&data.rewards, 1),
    });
    if let Some(images) = &data.images {
        for (camera, name) in cameras.iter().enumerate() {
            all[name] = image_statistics(images, camera);
        }
    }
    all
}

/// The same of the three colours of a camera, in [0, 1], with the axes that LeRobot wants.
fn image_statistics(images: &Images, camera: usize) -> Value {
    let mut seen = [[0_u64; 256]; 3];
    for pixel in images.steps.chunks_exact(usize::from(images.shape.channels).max(1)) {
        for (seen, value) in seen.iter_mut().zip(&pixel[3 * camera..]) {
            seen[usize::from(*value)] += 1;
        }
    }
    let each = |f: &dyn Fn(&[u64; 256]) -> f64| seen.iter().map(|seen| json!([[f(seen)]])).collect::<Vec<_>>();
    let mean_of = |seen: &[u64; 256], value: &dyn Fn(f64) -> f64| {
        let sum: f64 = seen.iter().zip(0..).map(|(count, v)| *count as f64 * value(f64::from(v) / 255.0)).sum();
        sum / seen.iter().sum::<u64>().max(1) as f64
    };
    let mean = |seen: &[u64; 256]| mean_of(seen, &|v| v);
    let end = |at: Option<usize>| at.unwrap_or_default() as f64 / 255.0;
    json!({
        "min": each(&|seen| end(seen.iter().position(|count| *count > 0))),
        "max": each(&|seen| end(seen.iter().rposition(|count| *count > 0))),
        "mean": each(&mean),
        "std": each(&|seen| mean_of(seen, &|v| (v - mean(seen)).powi(2)).sqrt()),
        "count": [images.steps.len() / images.shape.bytes().max(1)],
    })
}
