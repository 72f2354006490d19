//! Images of a LeRobot set: in the data files (bytes beside a path), as files of their own, or in videos.

use std::fs;
use std::path::{Component, Path};

use firmware_bridge::{ImageFormat, MAX_IMAGE_SIDE};
use serde_json::Value;

use super::super::array::{Array, Arrays};
use super::super::error::{ArrayProblem, EpisodeError};
use super::super::parquet;
use super::video::{Video, Wanted};
use super::{FINAL_IMAGES, INFO, data_files, entries, info, io};
use crate::pixels;

/// A camera that a set has images of.
#[derive(Clone, Debug, PartialEq)]
pub struct LerobotCamera {
    /// Its feature (`observation.images.front`).
    pub name: String,
    /// Width and height of its images.
    pub size: (u16, u16),
    /// Images per second of its videos, where it has some.
    video_fps: Option<f64>,
}

/// One image, in pixels or as JPEG.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// [`ImageFormat::Rgb8`] or [`ImageFormat::Jpeg`].
    pub format: ImageFormat,
    /// Width and height; what a JPEG says of itself is still to be held against it.
    pub size: (u16, u16),
    /// Rows from top to bottom without gaps, or the JPEG.
    pub bytes: &'a [u8],
}

/// Takes a picture, or says why not.
type Take<'a> = dyn FnMut(Picture<'_>) -> Result<(), String> + 'a;

/// The cameras of a set, by name; none of a folder that is no LeRobot set.
///
/// # Errors
/// When `meta/info.json` cannot be read, or states no size for a camera.
pub fn lerobot_cameras(folder: &Path) -> Result<Vec<LerobotCamera>, EpisodeError> {
    if !super::is_one(folder) {
        return Ok(Vec::new());
    }
    let info = info(folder)?;
    let features = info["features"].as_object();
    let pictured = |feature: &Value| matches!(feature["dtype"].as_str(), Some("image" | "video"));
    let cameras = features.into_iter().flatten().filter(|(_, feature)| pictured(feature));
    cameras
        .map(|(name, feature)| {
            let Some(size) = size(feature) else {
                let reason =
                    format!("states no size (height, width, 3 channels; at most {MAX_IMAGE_SIDE}) for `{name}`");
                return Err(EpisodeError::Format { path: folder.join(INFO), reason });
            };
            let fps = feature["info"]["video.fps"].as_f64().or(info["fps"].as_f64()).filter(|fps| *fps > 0.0);
            let video_fps = fps.filter(|_| feature["dtype"] == "video");
            Ok(LerobotCamera { name: name.clone(), size, video_fps })
        })
        .collect()
}

/// Width and height of a feature, whose axes have names.
fn size(feature: &Value) -> Option<(u16, u16)> {
    let names = feature["names"].as_array()?;
    let side = |axis: &str| {
        let at = names.iter().position(|name| name.as_str().is_some_and(|name| name.starts_with(axis)))?;
        feature["shape"][at].as_u64()
    };
    let pixels = |axis| side(axis).and_then(|n| u16::try_from(n).ok()).filter(|n| (1..=MAX_IMAGE_SIDE).contains(n));
    (side("channel")? == 3).then_some((pixels("width")?, pixels("height")?))
}

/// Shows `take` the image of every step of a set, in the order of its steps; returns how many there were.
///
/// # Errors
/// When an image is missing, damaged or of another size than the set says, when `take` refuses it, or a video cannot be
/// decoded.
pub fn lerobot_images(
    folder: &Path,
    camera: &LerobotCamera,
    take: &mut dyn FnMut(Picture<'_>) -> Result<(), String>,
) -> Result<usize, EpisodeError> {
    if camera.video_fps.is_some() {
        return videos(folder, camera, take);
    }
    let mut data = parquet::Table::new(data_files(folder)?);
    if let Some(count) = stored(folder, &data, camera, take)? {
        return Ok(count);
    }
    let (episodes, frames) = (whole(&mut data, "episode_index")?, whole(&mut data, "frame_index")?);
    for (episode, frame) in episodes.iter().zip(&frames) {
        let path = folder.join(format!("images/{}/episode-{episode:06}/frame-{frame:06}.png", camera.name));
        file(&path, camera, take)?;
    }
    Ok(frames.len())
}

/// Shows `take` the image behind the last step of every episode, where the set has them (those of this program do).
///
/// # Errors
/// As [`lerobot_images`].
pub fn lerobot_final_images(
    folder: &Path,
    camera: &LerobotCamera,
    take: &mut dyn FnMut(Picture<'_>) -> Result<(), String>,
) -> Result<usize, EpisodeError> {
    let path = folder.join(FINAL_IMAGES);
    if !path.is_file() {
        return Ok(0);
    }
    Ok(stored(folder, &parquet::Table::new(vec![path]), camera, take)?.unwrap_or_default())
}

/// Images in a column; `None` where there is no such column.
fn stored(
    folder: &Path,
    data: &parquet::Table,
    camera: &LerobotCamera,
    take: &mut Take<'_>,
) -> Result<Option<usize>, EpisodeError> {
    let mut count = 0;
    let column = data.images(&camera.name, &mut |bytes, path| {
        match (bytes, path) {
            (Some(bytes), _) => show(bytes, camera, take).map_err(|reason| {
                let reason = format!("`{}`: the image of step {count} {reason}", camera.name);
                EpisodeError::Format { path: data.path().to_owned(), reason }
            }),
            (None, Some(path)) => file(&inside(folder, path)?, camera, take),
            (None, None) => {
                let reason = format!("`{}`: step {count} has no image", camera.name);
                Err(EpisodeError::Format { path: data.path().to_owned(), reason })
            }
        }?;
        count += 1;
        Ok(())
    })?;
    Ok(column.then_some(count))
}

/// A set names no files but its own.
fn inside(folder: &Path, path: &str) -> Result<std::path::PathBuf, EpisodeError> {
    if Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(folder.join(path));
    }
    let reason = format!("names the image {path:?}, which is no file inside the set");
    Err(EpisodeError::Format { path: folder.to_owned(), reason })
}

fn file(path: &Path, camera: &LerobotCamera, take: &mut Take<'_>) -> Result<(), EpisodeError> {
    let bytes = fs::read(path).map_err(|e| io("read", path, e))?;
    show(&bytes, camera, take).map_err(|reason| EpisodeError::Format { path: path.to_owned(), reason })
}

fn show(bytes: &[u8], camera: &LerobotCamera, take: &mut Take<'_>) -> Result<(), String> {
    let size = camera.size;
    if bytes.starts_with(&[0xff, 0xd8]) {
        return take(Picture { format: ImageFormat::Jpeg, size, bytes });
    }
    if !bytes.starts_with(b"\x89PNG") {
        return Err(String::from("is neither PNG nor JPEG"));
    }
    let rgb = pixels::from_png(bytes, size)?;
    take(Picture { format: ImageFormat::Rgb8, size, bytes: &rgb })
}

fn videos(folder: &Path, camera: &LerobotCamera, take: &mut Take<'_>) -> Result<usize, EpisodeError> {
    let wanted = wanted(folder, camera)?;
    for of_file in wanted.chunk_by(|a, b| a.file == b.file) {
        let [chunk, file] = of_file[0].file;
        let path = folder.join(format!("videos/{}/chunk-{chunk:03}/file-{file:03}.mp4", camera.name));
        let mut video = Video::open(&path, camera.size, camera.video_fps.unwrap_or_default())?;
        for place in of_file {
            let bytes = video.frame(place.number)?;
            let picture = Picture { format: ImageFormat::Rgb8, size: camera.size, bytes };
            take(picture).map_err(|reason| EpisodeError::Format { path: path.clone(), reason })?;
        }
    }
    Ok(wanted.len())
}

/// Where the image of every step is: LeRobot asks a video for the time at which the episode begins in it, and on from
/// there for the step's time in the episode.
fn wanted(folder: &Path, camera: &LerobotCamera) -> Result<Vec<Wanted>, EpisodeError> {
    let mut files = Vec::new();
    for chunk in entries(&folder.join("meta/episodes"))? {
        files.extend(entries(&chunk)?);
    }
    let mut episodes = parquet::Table::new(files);
    let mut of = |name: &str| episodes.needed(&format!("videos/{}/{name}", camera.name));
    let (chunks, files, begins) = (of("chunk_index")?, of("file_index")?, of("from_timestamp")?);
    let mut data = parquet::Table::new(data_files(folder)?);
    let (steps, seconds) = (whole(&mut data, "episode_index")?, data.needed("timestamp")?);
    let place = |(episode, seconds): (&u64, &f64)| {
        let of = |array: &Array| array.numbers.get(*episode as usize).copied();
        let number = ((of(&begins)? + seconds) * camera.video_fps?).round();
        let file = [of(&chunks)?, of(&files)?].map(|n| n as u64);
        (number >= 0.0).then_some(Wanted { file, number: number as u64 })
    };
    let all: Option<Vec<Wanted>> = steps.iter().zip(&seconds.numbers).map(place).collect();
    all.ok_or_else(|| {
        let shape = begins.shape;
        data.problem("episode_index", ArrayProblem::Shape { found: shape, wanted: "an entry for every episode" })
    })
}

fn whole(data: &mut parquet::Table, name: &str) -> Result<Vec<u64>, EpisodeError> {
    Ok(data.needed(name)?.numbers.iter().map(|n| *n as u64).collect())
}
