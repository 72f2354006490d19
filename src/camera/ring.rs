//! A ring of images in a file that two processes share, on a file system in memory (`/dev/shm`).
//!
//! Both ends read and write the file instead of mapping it: a map of a file that another process may shorten is one
//! signal away from the end of the robot's process, and the copy of an image costs microseconds.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use firmware_bridge::{IMAGE_HEADER, ImageHeader};

use super::image::{Image, View};
use super::{Camera, CameraError, Capture, ImageFault, Numbers, lost};
use crate::clock::{Clock, Stamp, monotonic};
use crate::config::{CameraConfig, CaptureStamps};

const MAGIC: [u8; 8] = *b"FTRING\r\n";
const VERSION: u32 = 1;
/// Offset of the number of images written.
const WRITTEN_AT: u64 = 24;
const HEAD: u64 = 64;
/// Bytes of a slot in front of its payload.
const SLOT_HEAD: usize = 64;
const MOST_SLOTS: u32 = 1024;
/// Largest slot: an image of 4096 x 4096 RGB8 and its heads.
const MOST_SLOT: u32 = 4096 * 4096 * 3 + (1 << 16) + 64;
/// Time between two looks at the ring.
const LOOK: Duration = Duration::from_micros(500);

/// Where the slot of image `number`, counted from 1, begins.
fn slot_at(number: u64, slots: u32, slot_bytes: u32) -> u64 {
    HEAD + (number.wrapping_sub(1) % u64::from(slots.max(1))) * u64::from(slot_bytes)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The writing end, for a camera process in Rust; `docs/camera.md` says what one in another language does.
#[derive(Debug)]
pub struct RingWriter {
    file: File,
    slots: u32,
    slot_bytes: u32,
    written: u64,
}

impl RingWriter {
    /// A new ring of `slots` images of at most `largest` bytes; it takes the place of one that is there.
    ///
    /// # Errors
    /// When the numbers are out of range or the system refuses.
    pub fn create(path: &Path, slots: u32, largest: u32) -> io::Result<Self> {
        let slot_bytes = largest.saturating_add(SLOT_HEAD as u32).next_multiple_of(64);
        if !(2..=MOST_SLOTS).contains(&slots) || slot_bytes > MOST_SLOT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a ring has 2 to 1024 slots of at most 48 MiB"));
        }
        let mut head = [0; HEAD as usize];
        head[..8].copy_from_slice(&MAGIC);
        for (at, value) in [(8, VERSION), (12, slots), (16, slot_bytes)] {
            head[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        // A reader sees the whole ring or none.
        let temporary = path.with_extension("new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            HEAD + u64::from(slots) * u64::from(slot_bytes),
        )?;
        file.write_all_at(&head, 0)?;
        std::fs::rename(&temporary, path)?;
        Ok(Self { file, slots, slot_bytes, written: 0 })
    }

    /// Puts an image over the oldest.
    ///
    /// # Errors
    /// When the header does not fit the payload, the payload not the slot, or the system refuses.
    pub fn write(&mut self, header: &ImageHeader, payload: &[u8]) -> io::Result<()> {
        let head = header.encode().map_err(io::Error::other)?;
        let fits =
            payload.len() == header.payload_len as usize && payload.len() + SLOT_HEAD <= self.slot_bytes as usize;
        if !fits {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image does not fit the slot or its header"));
        }
        let number = self.written + 1;
        let at = slot_at(number, self.slots, self.slot_bytes);
        let mut front = [0; SLOT_HEAD];
        front[..8].copy_from_slice(&(2 * number - 1).to_le_bytes());
        front[8..12].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        front[16..16 + IMAGE_HEADER].copy_from_slice(&head);
        self.file.write_all_at(&front, at)?;
        self.file.write_all_at(payload, at + SLOT_HEAD as u64)?;
        self.file.write_all_at(&(2 * number).to_le_bytes(), at)?;
        self.file.write_all_at(&number.to_le_bytes(), WRITTEN_AT)?;
        self.written = number;
        Ok(())
    }
}

/// The reading end.
pub(super) struct Ring {
    file: File,
    path: PathBuf,
    slots: u32,
    slot_bytes: u32,
    seen: u64,
    numbers: Numbers,
    clock: Clock,
    stamps: CaptureStamps,
    payload: Vec<u8>,
}

impl Ring {
    pub(super) fn open(path: &Path, config: &CameraConfig, clock: &Clock) -> Result<Self, CameraError> {
        let file = File::open(path).map_err(lost("opening the camera's ring"))?;
        let mut head = [0; HEAD as usize];
        file.read_exact_at(&mut head, 0).map_err(lost("reading the camera's ring"))?;
        let [version, slots, slot_bytes] = [8, 12, 16].map(|at| u32::from_le_bytes(number(&head, at)));
        let sound = (2..=MOST_SLOTS).contains(&slots) && (SLOT_HEAD as u32..=MOST_SLOT).contains(&slot_bytes);
        if head[..8] != MAGIC || version != VERSION || !sound {
            let path = path.display();
            return Err(CameraError::Unfit(format!(
                "{path} is no ring of images of version {VERSION} (docs/camera.md)"
            )));
        }
        let (path, clock) = (path.to_owned(), clock.clone());
        let (numbers, stamps) = (Numbers::default(), config.stamps);
        Ok(Self { file, path, slots, slot_bytes, seen: 0, numbers, clock, stamps, payload: Vec::new() })
    }

    fn written(&self) -> Result<u64, CameraError> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, WRITTEN_AT).map_err(lost("reading the camera's ring"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads image `number` into `self.payload`; `None` when it was overwritten meanwhile.
    fn read(&mut self, number_wanted: u64) -> Result<Option<ImageHeader>, CameraError> {
        let at = slot_at(number_wanted, self.slots, self.slot_bytes);
        let mut front = [0; SLOT_HEAD];
        self.file.read_exact_at(&mut front, at).map_err(lost("reading the camera's ring"))?;
        let lock = number::<8>(&front, 0);
        if u64::from_le_bytes(lock) != 2 * number_wanted {
            return Ok(None);
        }
        let header = ImageHeader::decode(&number(&front, 16)).map_err(ImageFault::Stream)?;
        let length = header.payload_len as usize;
        if length + SLOT_HEAD > self.slot_bytes as usize {
            return Err(ImageFault::Truncated.into());
        }
        self.payload.resize(length, 0);
        let read = self.file.read_exact_at(&mut self.payload, at + SLOT_HEAD as u64);
        read.map_err(lost("reading the camera's ring"))?;
        let mut after = [0; 8];
        self.file.read_exact_at(&mut after, at).map_err(lost("reading the camera's ring"))?;
        if after != lock {
            return Ok(None);
        }
        if crc32c::crc32c(&self.payload).to_le_bytes() != number::<4>(&front, 8) {
            return Err(ImageFault::Damaged("its checksum in the ring is wrong".into()).into());
        }
        Ok(Some(header))
    }

    /// Whether another ring lies at the path now, or none.
    fn replaced(&self) -> bool {
        let ours = self.file.metadata().map(|meta| meta.ino());
        let theirs = std::fs::metadata(&self.path).map(|meta| meta.ino());
        !matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours == theirs)
    }
}

impl Camera for Ring {
    fn newest(&mut self, wait: Duration, view: &mut View, into: &mut [u8]) -> Result<Option<Capture>, CameraError> {
        let until = monotonic().plus(wait);
        loop {
            let newest = self.written()?;
            if newest != self.seen && newest > 0 {
                let overtaken = newest.saturating_sub(self.seen + 1).min(u32::MAX.into()) as u32;
                let arrival = self.clock.now();
                let header = self.read(newest);
                if !matches!(header, Ok(None)) {
                    self.seen = newest;
                }
                if let Some(header) = header? {
                    let passed = self.numbers.missing_before(header.sequence);
                    let (format, size) = (header.format, Some((header.width, header.height)));
                    view.take(&Image { format, size, bytes: &self.payload }, into)?;
                    let own = self.stamps == CaptureStamps::Source;
                    let taken = if own { Stamp(header.capture_us) } else { arrival };
                    let missing = passed.saturating_sub(overtaken);
                    return Ok(Some(Capture { taken, sequence: header.sequence, missing, overtaken }));
                }
            }
            if monotonic() >= until {
                let gone = self.replaced();
                return if gone {
                    Err(lost("reading the camera's ring")(io::Error::from(io::ErrorKind::NotFound)))
                } else {
                    Ok(None)
                };
            }
            Clock::Monotonic.sleep_until(monotonic().plus(LOOK).min(until));
        }
    }
}

#[cfg(test)]
mod tests {
    use firmware_bridge::ImageFormat;

    use super::*;

    fn header(sequence: u32) -> ImageHeader {
        let payload_len = ImageFormat::Rgb8.payload(4, 4);
        let capture_us = u64::from(sequence) * 1000;
        ImageHeader { format: ImageFormat::Rgb8, width: 4, height: 4, payload_len, sequence, capture_us }
    }

    fn config() -> CameraConfig {
        CameraConfig { width: 2, height: 2, ..CameraConfig::default() }
    }

    #[test]
    fn the_newest_image_comes_through_and_a_new_writer_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eye");
        let mut writer = RingWriter::create(&path, 3, 48).unwrap();
        let mut ring = Ring::open(&path, &config(), &Clock::Monotonic).unwrap();
        let (mut view, mut into) = (View::new(&config()), [0; 12]);
        assert_eq!(ring.newest(Duration::ZERO, &mut view, &mut into).unwrap(), None);
        for sequence in [1, 2, 3, 4, 7] {
            writer.write(&header(sequence), &[sequence as u8; 48]).unwrap();
        }
        let capture = ring.newest(Duration::ZERO, &mut view, &mut into).unwrap().unwrap();
        assert_eq!((capture.sequence, capture.taken, capture.overtaken, into), (7, Stamp(7000), 4, [7; 12]));
        writer.write(&header(9), &[9; 48]).unwrap();
        let capture = ring.newest(Duration::ZERO, &mut view, &mut into).unwrap().unwrap();
        assert_eq!((capture.missing, capture.overtaken), (1, 0));
        assert!(writer.write(&header(10), &[0; 47]).is_err());
        assert_eq!(ring.newest(Duration::from_millis(2), &mut view, &mut into).unwrap(), None);
        drop(writer);
        let _again = RingWriter::create(&path, 3, 48).unwrap();
        assert!(matches!(ring.newest(Duration::ZERO, &mut view, &mut into), Err(CameraError::Lost { .. })));
    }

    /// A writer that is half-way through a slot, a damaged payload, a file that was cut: each is what it is.
    #[test]
    fn what_is_not_whole_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eye");
        let mut writer = RingWriter::create(&path, 2, 48).unwrap();
        let mut ring = Ring::open(&path, &config(), &Clock::Monotonic).unwrap();
        let (mut view, mut into) = (View::new(&config()), [0; 12]);
        let mut look = |ring: &mut Ring| ring.newest(Duration::ZERO, &mut view, &mut into);
        writer.write(&header(1), &[1; 48]).unwrap();
        writer.file.write_all_at(&3u64.to_le_bytes(), HEAD).unwrap();
        assert_eq!(look(&mut ring).unwrap(), None, "being written");
        writer.write(&header(2), &[2; 48]).unwrap();
        writer.file.write_all_at(&[9], HEAD + u64::from(writer.slot_bytes) + SLOT_HEAD as u64).unwrap();
        assert!(matches!(look(&mut ring), Err(CameraError::Image(ImageFault::Damaged(_)))));
        assert_eq!(look(&mut ring).unwrap(), None, "once");
        writer.write(&header(3), &[3; 48]).unwrap();
        writer.file.set_len(100).unwrap();
        assert!(matches!(look(&mut ring), Err(CameraError::Lost { .. })));
        std::fs::write(&path, [0; 64]).unwrap();
        assert!(matches!(Ring::open(&path, &config(), &Clock::Monotonic), Err(CameraError::Unfit(_))));
    }
}
