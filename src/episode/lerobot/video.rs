//! Pixels out of a video, by `ffmpeg` as a child process: a decoder for every codec that LeRobot writes (AV1, H.264, HEVC)
//! is no small thing to carry along.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::super::error::EpisodeError;
use super::io;

/// An image of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wanted {
    /// Number of the chunk and of the file in it.
    pub file: [u64; 2],
    /// Number of the image in the file.
    pub number: u64,
}

/// A video that is being decoded, from its begin to its end.
pub(super) struct Video {
    path: PathBuf,
    child: Child,
    pixels: ChildStdout,
    /// The newest image, and how many there have been.
    image: Vec<u8>,
    count: u64,
}

impl Drop for Video {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Video {
    /// Begins; images come at `fps` per second, and have this width and height.
    ///
    /// # Errors
    /// When the file or `ffmpeg` is not there.
    pub(super) fn open(path: &Path, (width, height): (u16, u16), fps: f64) -> Result<Self, EpisodeError> {
        if !path.is_file() {
            return Err(io("read", path, ErrorKind::NotFound.into()));
        }
        let started = Command::new("ffmpeg")
            // Stops at the first damage, so that what it says of it fits the pipe.
            .args(["-nostdin", "-v", "error", "-xerror", "-i"])
            .arg(path)
            .args(["-map", "0:v:0", "-r", &fps.to_string(), "-s", &format!("{width}x{height}")])
            .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let format = |reason: String| EpisodeError::Format { path: path.to_owned(), reason };
        let mut child = started.map_err(|error| match error.kind() {
            ErrorKind::NotFound => format(String::from(
                "is a video, and there is no `ffmpeg` on the PATH to decode it: install ffmpeg, or leave the images out \
                 with --camera none",
            )),
            _ => format(format!("cannot start ffmpeg: {error}")),
        })?;
        let pixels = child.stdout.take().ok_or_else(|| format(String::from("ffmpeg has no output")))?;
        let image = vec![0; usize::from(width) * usize::from(height) * 3];
        Ok(Self { path: path.to_owned(), child, pixels, image, count: 0 })
    }

    /// The RGB image with this number, which is not below the one before.
    ///
    /// # Errors
    /// When the video ends before, or is damaged.
    pub(super) fn frame(&mut self, number: u64) -> Result<&[u8], EpisodeError> {
        if number + 1 < self.count {
            let reason = format!("its image {number} is asked for after image {}", self.count - 1);
            return Err(EpisodeError::Format { path: self.path.clone(), reason });
        }
        while self.count <= number {
            if let Err(error) = self.pixels.read_exact(&mut self.image) {
                return Err(self.ended(number, &error));
            }
            self.count += 1;
        }
        Ok(&self.image)
    }

    fn ended(&mut self, number: u64, error: &std::io::Error) -> EpisodeError {
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            // What cannot be read is not said.
            let _ = stderr.read_to_string(&mut said);
        }
        let said = said.lines().next().map_or_else(|| error.to_string(), str::to_owned);
        let reason = format!("ends after {} images, wanted is number {number}: {said}", self.count);
        EpisodeError::Format { path: self.path.clone(), reason }
    }
}
