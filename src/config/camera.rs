//! Where images come from, and in which form.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CameraConfig;
use crate::spaces::FrameShape;

/// A camera, or what takes its place; in a file `KIND:PLACE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CameraSource {
    /// A Unix stream socket that a camera process listens at.
    Unix(PathBuf),
    /// The same over TCP: `host:port`.
    Tcp(String),
    /// The standard output of a shell command.
    Pipe(String),
    /// A ring of images in shared memory.
    Shared(PathBuf),
    /// A V4L2 device.
    V4l2(PathBuf),
    /// The frames of a replay buffer, again and again.
    Playback(PathBuf),
    /// The simulated robot's camera; the run starts both.
    Simulator,
    /// A moving pattern.
    Synthetic,
}

impl TryFrom<String> for CameraSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, place) = text.split_once(':').unwrap_or((&text, ""));
        Ok(match (kind, place.is_empty()) {
            ("unix", false) => Self::Unix(place.into()),
            ("tcp", false) if place.contains(':') => Self::Tcp(place.into()),
            ("pipe", false) => Self::Pipe(place.into()),
            ("shm", false) => Self::Shared(place.into()),
            ("v4l2", false) => Self::V4l2(place.into()),
            ("playback", false) => Self::Playback(place.into()),
            ("simulator", true) => Self::Simulator,
            ("synthetic", true) => Self::Synthetic,
            _ => {
                return Err(format!(
                    "{text:?} is no camera: unix:PATH, tcp:HOST:PORT, pipe:COMMAND, shm:PATH, v4l2:DEVICE, \
                     playback:FOLDER, simulator, synthetic, or empty"
                ));
            }
        })
    }
}

impl From<CameraSource> for String {
    fn from(source: CameraSource) -> Self {
        match source {
            CameraSource::Unix(path) => format!("unix:{}", path.display()),
            CameraSource::Tcp(address) => format!("tcp:{address}"),
            CameraSource::Pipe(command) => format!("pipe:{command}"),
            CameraSource::Shared(path) => format!("shm:{}", path.display()),
            CameraSource::V4l2(path) => format!("v4l2:{}", path.display()),
            CameraSource::Playback(path) => format!("playback:{}", path.display()),
            CameraSource::Simulator => "simulator".into(),
            CameraSource::Synthetic => "synthetic".into(),
        }
    }
}

impl std::fmt::Display for CameraSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from(self.clone()))
    }
}

/// The cameras of a robot; in a file one source, a list of sources, or an empty text for none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OneOrMore", into = "OneOrMore")]
pub struct Cameras(pub Vec<CameraSource>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl TryFrom<OneOrMore> for Cameras {
    type Error = String;

    fn try_from(text: OneOrMore) -> Result<Self, String> {
        let list = match text {
            OneOrMore::One(text) if text.is_empty() => Vec::new(),
            OneOrMore::One(text) => vec![text],
            OneOrMore::More(list) => list,
        };
        list.into_iter().map(CameraSource::try_from).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Cameras> for OneOrMore {
    fn from(cameras: Cameras) -> Self {
        let mut list: Vec<String> = cameras.0.into_iter().map(String::from).collect();
        match list.len() {
            0 => Self::One(String::new()),
            1 => Self::One(list.remove(0)),
            _ => Self::More(list),
        }
    }
}

/// What comes over a stream, and what a V4L2 device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageStream {
    /// Images behind headers; from a V4L2 device whatever it offers.
    Headers,
    /// JPEG behind JPEG, nothing between them.
    Mjpeg,
    /// Raw RGB8 images.
    Rgb,
    /// Raw YUYV images.
    Yuyv,
}

/// How an image becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// The mean over the area of a pixel, parts of pixels by their share (OpenCV's INTER_AREA).
    Area,
    /// Triangle as wide as the reduction (Pillow and torchvision with antialias).
    Bilinear,
}

/// Whose word counts for when an image was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureStamps {
    /// The source's, where it says so; else the arrival.
    Source,
    /// The arrival.
    Arrival,
}

impl CameraConfig {
    /// Size of the frames that a policy sees; `None` without a camera.
    pub fn shape(&self) -> Option<FrameShape> {
        let channels = 3 * self.source.0.len() as u16;
        (channels > 0).then_some(FrameShape { width: self.width, height: self.height, channels })
    }

    /// Age at which a frame is stale: 2.5 intervals of the camera, or `stale_ms` where that is more.
    pub fn stale_after(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64((2.5 / self.rate_hz).max(f64::from(self.stale_ms) / 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CameraConfig, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn sources_come_back_as_they_were_written() {
        for text in [
            "unix:run/cam.sock",
            "tcp:robot:7000",
            "pipe:gst-launch-1.0 a ! b",
            "shm:/dev/shm/eye",
            "v4l2:/dev/video0",
            "playback:runs/a",
            "synthetic",
            "simulator",
        ] {
            assert_eq!(CameraSource::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:robot", "usb:0", "synthetic:3", "camera"] {
            let refused = CameraSource::try_from(text.to_owned()).unwrap_err();
            assert!(refused.contains("pipe:COMMAND"), "{refused}");
        }
    }

    #[test]
    fn one_camera_several_and_none() {
        assert_eq!(read("source = \"\"").unwrap(), CameraConfig::default());
        assert_eq!(CameraConfig::default().shape(), None);
        let one = read("source = \"synthetic\"").unwrap();
        assert_eq!(one, read("source = [\"synthetic\"]").unwrap());
        assert_eq!(one.shape().map(|shape| shape.channels), Some(3));
        let two = read("source = [\"synthetic\", \"unix:a\"]\nwidth = 64").unwrap();
        assert_eq!(two.shape(), Some(FrameShape { width: 64, height: 48, channels: 6 }));
        assert_eq!(toml::from_str::<CameraConfig>(&toml::to_string(&two).unwrap()).unwrap(), two);
        assert!(read("source = [\"usb:0\"]").is_err());
    }

    #[test]
    fn stale_is_two_and_a_half_intervals_or_what_was_set() {
        let config = CameraConfig { rate_hz: 25.0, ..CameraConfig::default() };
        assert_eq!(config.stale_after().as_millis(), 100);
        assert_eq!(CameraConfig { stale_ms: 300, ..config }.stale_after().as_millis(), 300);
    }
}
