//! Cameras (layer 2): the [`Camera`] trait, its sources, and what turns an image into a frame.
//!
//! A camera hands over its newest image; what came before it and was not taken is overtaken, never queued. Images are
//! checked, cropped and reduced to the policy's size by a [`View`] on the way. A camera that is gone says
//! [`CameraError::Lost`] and is opened anew by its owner, the camera thread of `runtime`; the control thread never
//! touches one. Sources, formats and faults: `docs/camera.md`.

mod area;
mod image;
mod paced;
mod ring;
mod splitter;
mod stream;
#[cfg(feature = "camera-v4l2")]
mod v4l2;

use std::io;
use std::time::Duration;

use firmware_bridge::ImageError;

use crate::clock::{Clock, Stamp};
use crate::config::{CameraConfig, CameraSource};

pub use image::{Image, View};
pub use paced::{NextFrame, Recording, pattern};
pub use ring::RingWriter;

/// Where images come from.
pub trait Camera: Send {
    /// The newest image that was not taken yet, as `view` shows it, into `into`
    /// ([`CameraConfig::width`] x [`CameraConfig::height`] x 3 bytes); `None` when none comes within `wait`.
    ///
    /// # Errors
    /// [`CameraError::Image`] when the image, or what came in place of one, is of no use: the camera goes on.
    /// [`CameraError::Lost`] when the camera is gone: it has to be opened anew.
    fn newest(&mut self, wait: Duration, view: &mut View, into: &mut [u8]) -> Result<Option<Capture>, CameraError>;
}

/// What is known of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// When it was taken, on the run's clock.
    pub taken: Stamp,
    /// The camera's number of it.
    pub sequence: u32,
    /// Numbers between the image seen before and this one that never came.
    pub missing: u32,
    /// Images that came and were overtaken by this one.
    pub overtaken: u32,
}

/// Why an image is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// It ends before its last row.
    #[error("the image is cut off")]
    Truncated,
    /// The decoder refuses it.
    #[error("the image is damaged: {0}")]
    Damaged(String),
    /// Not the size that was configured, or that the images before had.
    #[error("an image of {found:?} instead of {wanted:?} pixels; set camera.source_size, or the source")]
    Size {
        /// Its width and height.
        found: (u16, u16),
        /// Those expected.
        wanted: (u16, u16),
    },
    /// Smaller than what is made of it.
    #[error(
        "an image of {found:?} pixels has no crop of {crop:?} for a frame of {wanted:?}: images are never enlarged"
    )]
    Small {
        /// Its width and height.
        found: (u16, u16),
        /// x, y, width, height.
        crop: [u16; 4],
        /// Width and height of a frame.
        wanted: (u16, u16),
    },
    /// Not of the format it is said to be.
    #[error("the image is no {0}")]
    Format(&'static str),
    /// Bytes between images that are none.
    #[error("bytes that are no image: {0}")]
    Stream(ImageError),
}

/// Failure of a camera.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CameraError {
    /// This image; the next may be good.
    #[error(transparent)]
    Image(#[from] ImageFault),
    /// The camera is not there, or not any more.
    #[error("{action}: {source}")]
    Lost {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It is there and cannot be used.
    #[error("{0}")]
    Unfit(String),
}

/// The camera is lost because `action` failed.
fn lost<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> CameraError {
    move |source| CameraError::Lost { action, source: source.into() }
}

/// Opens a camera. Recordings are opened by `record`.
///
/// # Errors
/// When it is not there or cannot be used.
pub fn open(
    source: &CameraSource,
    config: &CameraConfig,
    clock: &Clock,
    record: impl FnOnce(&std::path::Path) -> Result<Recording, String>,
) -> Result<Box<dyn Camera>, CameraError> {
    Ok(match source {
        CameraSource::Unix(path) => Box::new(stream::Stream::unix(path, config, clock)?),
        CameraSource::Tcp(address) => Box::new(stream::Stream::tcp(address, config, clock)?),
        CameraSource::Pipe(command) => Box::new(stream::Stream::pipe(command, config, clock)?),
        CameraSource::Shared(path) => Box::new(ring::Ring::open(path, config, clock)?),
        CameraSource::Synthetic => Box::new(paced::Paced::synthetic(config, clock)),
        CameraSource::Playback(folder) => {
            let recording = record(folder).map_err(CameraError::Unfit)?;
            Box::new(paced::Paced::playback(recording, config, clock))
        }
        #[cfg(feature = "camera-v4l2")]
        CameraSource::V4l2(path) => Box::new(v4l2::Device::open(path, config, clock)?),
        #[cfg(not(feature = "camera-v4l2"))]
        CameraSource::V4l2(_) => {
            return Err(CameraError::Unfit("this build has no V4L2; build with --features camera-v4l2".into()));
        }
        CameraSource::Simulator => {
            return Err(CameraError::Unfit("this run starts no simulator with a camera; use unix:PATH".into()));
        }
    })
}

/// Finds holes in the numbers of a camera.
#[derive(Debug, Default)]
struct Numbers(Option<u32>);

impl Numbers {
    /// Numbers between the one before and this one; 0 for the first, and for one that is not newer: a camera that
    /// has begun anew.
    fn missing_before(&mut self, sequence: u32) -> u32 {
        let step = self.0.replace(sequence).map_or(1, |last| sequence.wrapping_sub(last));
        if step <= 1 << 31 { step.saturating_sub(1) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_in_the_numbers_are_counted() {
        let mut numbers = Numbers::default();
        let found: Vec<u32> = [7, 8, 11, 11, 2, u32::MAX, 0, 2].map(|n| numbers.missing_before(n)).to_vec();
        assert_eq!(found, [0, 0, 2, 0, 0, 0, 0, 1]);
    }
}
