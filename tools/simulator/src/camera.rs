//! The simulated camera: images on a Unix stream socket, one for every STATE, with its time. Who connects later gets the
//! present one first.
//!
//! Nothing here waits for a viewer. What one cannot take at once is left out for it, whole images only, and counted.
//! Faults are those of a line, and two of a camera's own: a picture that stands still, and a camera that is unplugged for
//! a while.

use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use firmware_bridge::{IMAGE_HEADER, ImageFormat, ImageHeader};

use crate::endpoint::{Peer, remove_stale};
use crate::faults::{Badness, Injected, Injector};
use crate::task::{ImageSize, Task};

/// Images from the first number to before the second; from the first on when the second is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span(Range<u32>);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.split_once("..").and_then(|(from, to)| {
            let to = if to.is_empty() { Some(u32::MAX) } else { to.parse().ok() };
            Some(from.parse().ok()?..to?)
        });
        range.filter(|range| !range.is_empty()).map(Self).ok_or("expected FROM..TO or FROM.., counted in images".into())
    }
}

/// What happens to images on purpose.
#[derive(Clone, Debug)]
pub(crate) struct CameraFaults {
    pub(crate) badness: Badness,
    pub(crate) seed: u64,
    pub(crate) frozen: Span,
    pub(crate) gone: Span,
}

/// What became of the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Taken by a viewer.
    pub sent: u64,
    /// Left out because a viewer was too slow.
    pub unsent: u64,
}

struct Viewer {
    stream: UnixStream,
    /// The end of an image that the stream did not take.
    rest: Vec<u8>,
}

/// An open camera.
pub(crate) struct Camera {
    path: PathBuf,
    listener: Option<UnixListener>,
    viewers: Vec<Viewer>,
    size: ImageSize,
    /// Header and pixels of the last image.
    image: Vec<u8>,
    /// Number of the next image, and time of the last.
    sequence: u32,
    stamp_us: u64,
    faults: CameraFaults,
    line: Injector,
    images: Images,
}

impl Camera {
    /// A camera with images of `size` that listens at `path`.
    ///
    /// # Errors
    /// When the path cannot be used.
    pub(crate) fn bind(path: &Path, size: ImageSize, faults: CameraFaults) -> anyhow::Result<Self> {
        remove_stale(path, |path| UnixStream::connect(path).map(drop))?;
        // The link's directions have streams 0 and 1.
        let line = Injector::new(faults.badness, faults.seed, 2);
        Ok(Self {
            listener: Some(listen(path)?),
            path: path.into(),
            viewers: Vec::new(),
            size,
            image: vec![0; IMAGE_HEADER + 3 * size.pixels()],
            sequence: 0,
            stamp_us: 0,
            faults,
            line,
            images: Images::default(),
        })
    }

    /// What new viewers knock at, while the camera is plugged in.
    pub(crate) fn door(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Lets new viewers in and shows them the present image.
    pub(crate) fn greet(&mut self, task: &dyn Task) {
        let known = self.viewers.len();
        self.accept();
        if self.viewers.len() > known && self.sequence > 0 && self.take(task, self.sequence - 1) {
            self.images.add(send(&mut self.viewers, known, &self.image));
        }
    }

    /// Takes the next image, of what is there at `stamp_us`, and sends it.
    pub(crate) fn shoot(&mut self, task: &dyn Task, stamp_us: u64, now_us: u64) {
        let sequence = self.sequence;
        (self.sequence, self.stamp_us) = (sequence.wrapping_add(1), stamp_us);
        if self.faults.gone.0.contains(&sequence) {
            return self.unplug();
        }
        if self.listener.is_none() {
            // Somebody else may have taken the path meanwhile; the next image tries again.
            self.listener = listen(&self.path).ok();
        }
        self.accept();
        let taken = !self.viewers.is_empty() && self.take(task, sequence);
        if taken && self.line.pass(&mut self.image, &Peer::Line, now_us) {
            self.images.add(send(&mut self.viewers, 0, &self.image));
        }
    }

    /// Draws the image, with its header.
    fn take(&mut self, task: &dyn Task, sequence: u32) -> bool {
        let (head, pixels) = self.image.split_at_mut(IMAGE_HEADER);
        if !self.faults.frozen.0.contains(&sequence) {
            task.draw(pixels);
        }
        let ImageSize { width, height } = self.size;
        let header = ImageHeader {
            format: ImageFormat::Rgb8,
            width,
            height,
            payload_len: pixels.len() as u32,
            sequence,
            capture_us: self.stamp_us,
        };
        // The sizes of all cameras are valid (tested), so this does not fail.
        header.encode().map(|header| head.copy_from_slice(&header)).is_ok()
    }

    /// When the next delayed image is due.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.line.due_us()
    }

    /// Sends delayed images that are due.
    pub(crate) fn release(&mut self, now_us: u64) {
        while let Some((image, _)) = self.line.release(now_us) {
            self.images.add(send(&mut self.viewers, 0, &image));
        }
    }

    /// What became of the images, and what was done to them on purpose.
    pub(crate) fn counts(&self) -> (Images, Injected) {
        (self.images, self.line.injected())
    }

    fn accept(&mut self) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if stream.set_nonblocking(true).is_ok() {
                self.viewers.push(Viewer { stream, rest: Vec::new() });
            }
        }
    }

    fn unplug(&mut self) {
        self.viewers.clear();
        if self.listener.take().is_some() {
            // The file may be gone already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.unplug();
    }
}

impl Images {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.unsent += other.unsent;
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("the camera cannot listen on {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Sends an image to the viewers from number `first` on; those that have gone are forgotten.
fn send(viewers: &mut Vec<Viewer>, first: usize, image: &[u8]) -> Images {
    let (mut images, mut number) = (Images::default(), 0..);
    viewers.retain_mut(|viewer| {
        if number.next() < Some(first) {
            return true;
        }
        let sent = viewer.send(image);
        images.add(Images { sent: u64::from(matches!(sent, Ok(true))), unsent: u64::from(matches!(sent, Ok(false))) });
        sent.is_ok()
    });
    images
}

impl Viewer {
    /// Whether the image is on its way, the end of it perhaps with the next one.
    fn send(&mut self, image: &[u8]) -> io::Result<bool> {
        let written = write(&mut self.stream, &self.rest)?;
        self.rest.drain(..written);
        if !self.rest.is_empty() {
            return Ok(false);
        }
        let written = write(&mut self.stream, image)?;
        if written > 0 {
            self.rest.extend_from_slice(&image[written..]);
        }
        Ok(written > 0)
    }
}

/// How many bytes the stream takes now.
fn write(stream: &mut UnixStream, mut bytes: &[u8]) -> io::Result<usize> {
    let all = bytes.len();
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all - bytes.len())
}
