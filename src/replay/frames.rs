//! The frame file: what the camera saw, 8 bits per channel, each frame stored once (`docs/replay-format.md`).

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::budget::Budget;
use super::error::{HeaderProblem, ReplayError};
use super::files::{self, io_error};
use super::header::{ENDIAN, MAJOR};
use super::layout::{FrameRef, put, u32_at, u64_at};
use super::region::{Ahead, Mapped, Region, write_checked};
use crate::spaces::FrameShape;

/// Name of the frame file in a buffer's folder.
pub(crate) const FRAME_FILE: &str = "frames.rrb";
const MAGIC: [u8; 8] = *b"\x89FTI\r\n\x1a\n";
/// Bytes in front of the first slot.
const FRAMES_AT: usize = 4096;
const HEADER: usize = 64;
const CHECKSUM_AT: usize = HEADER - 4;
/// Slots start at a cache line. A multiple of 512 would cost 3.7 % of a 48 x 48 x 3 frame; a frame needs no sector
/// of its own, because a torn sector changes nothing of the neighbour that shares it.
const ALIGN: usize = 64;
/// Bytes of frames in memory while a file is read from one end to the other.
const SCAN: usize = 256 << 20;
/// The system maps so many bytes around the one that is looked at.
const AROUND: usize = 1 << 16;
/// Most bytes of a frame: 1024 x 1024 x 4.
const MAX_FRAME: usize = 1 << 22;

impl FrameShape {
    /// Bytes that a stored frame takes.
    pub fn slot_bytes(self) -> usize {
        (HEADER + self.bytes()).next_multiple_of(ALIGN)
    }

    fn check(self) -> Result<Self, ReplayError> {
        let fits = (1..=MAX_FRAME).contains(&self.bytes());
        if fits { Ok(self) } else { Err(ReplayError::FrameShape { shape: self, most: MAX_FRAME }) }
    }

    /// Length of a file of `capacity` frames; `None` when it does not fit this machine's address range.
    pub(crate) fn file_len(self, capacity: u64) -> Option<u64> {
        let slots = capacity.checked_mul(self.slot_bytes() as u64)?;
        slots.checked_add(FRAMES_AT as u64).filter(|n| isize::try_from(*n).is_ok())
    }
}

/// What the camera had when a record was made.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// A frame that is not in the buffer yet.
    New {
        /// Its bytes, as many as the shape says.
        pixels: &'a [u8],
        /// When it was taken, nanoseconds of the run's clock.
        capture_ns: u64,
    },
    /// The frame of the record before: the camera is slower than the control loop.
    Same,
}

/// A ring of frames. Frame `n`, counted from 1, lies in slot `(n - 1) mod capacity`.
///
/// There are as many slots as records, so no frame is replaced while a record that may be sampled needs it.
#[derive(Debug)]
pub(crate) struct Frames {
    region: Box<dyn Region>,
    shape: FrameShape,
    capacity: u64,
    /// Slots whose checksum was found right, or that were written by this process.
    whole: Vec<bool>,
    /// Number of the frame before the next one.
    last: u64,
    /// The newest frame of this process.
    newest: Option<FrameRef>,
    ahead: Ahead,
    resident: Resident,
}

/// Keeps the frames that are in memory within a bound.
#[derive(Debug)]
struct Resident {
    most: usize,
    /// Bytes that may have come into memory since it was last let go of.
    touched: AtomicUsize,
}

impl Resident {
    fn touch(&self, region: &dyn Region, bytes: usize) {
        let more = bytes + 2 * AROUND;
        if self.touched.fetch_add(more, Relaxed) + more > self.most {
            region.release();
            self.touched.store(more, Relaxed);
        }
    }
}

impl Frames {
    /// Creates the file with all of its disk space.
    pub(crate) fn create(dir: &Path, shape: FrameShape, capacity: u64, schema_hash: u64) -> Result<Self, ReplayError> {
        let shape = shape.check()?;
        let len =
            shape.file_len(capacity).ok_or(ReplayError::Capacity { capacity, least: 1, most: u32::MAX.into() })?;
        let mut header = vec![0; FRAMES_AT];
        write_header(&mut header, shape, capacity, schema_hash);
        // A frame file without a record file is what a crash while creating a buffer leaves behind.
        let (file, path) = files::create(dir, FRAME_FILE, len, true, |file| {
            std::io::Write::write_all(file, &header).map_err(io_error("write the header in", dir))
        })?;
        let region = Mapped::new(file, true).map_err(io_error("map", &path))?;
        Self::start(Box::new(region), &path, schema_hash, capacity)
    }

    /// Frames in memory, gone when dropped.
    pub(crate) fn in_memory(shape: FrameShape, capacity: u64, schema_hash: u64) -> Result<Self, ReplayError> {
        let shape = shape.check()?;
        let len =
            shape.file_len(capacity).ok_or(ReplayError::Capacity { capacity, least: 1, most: u32::MAX.into() })?;
        let mut bytes = vec![0; len as usize];
        write_header(&mut bytes[..FRAMES_AT], shape, capacity, schema_hash);
        Self::start(Box::new(bytes), Path::new("(memory)"), schema_hash, capacity)
    }

    /// Opens the file and reads all frames once.
    pub(crate) fn open(dir: &Path, write: bool, schema_hash: u64, capacity: u64) -> Result<Self, ReplayError> {
        let (file, path) = files::open(dir, FRAME_FILE, write)?;
        let region = Mapped::new(file, write).map_err(io_error("map", &path))?;
        Self::start(Box::new(region), &path, schema_hash, capacity)
    }

    /// Opens what `region` holds; the record file wants `capacity` frames of a robot with `schema_hash`.
    pub(crate) fn start(
        region: Box<dyn Region>,
        path: &Path,
        schema_hash: u64,
        capacity: u64,
    ) -> Result<Self, ReplayError> {
        let bytes = region.bytes();
        let refuse = |reason| Err(ReplayError::Header { path: path.to_owned(), reason });
        let (shape, found_capacity, found_hash) = match read_header(bytes) {
            Ok(header) => header,
            Err(reason) => return refuse(reason),
        };
        if found_capacity != capacity || found_hash != schema_hash {
            return refuse(HeaderProblem::Foreign);
        }
        let (needed, found) = (shape.file_len(capacity).unwrap_or(u64::MAX), bytes.len() as u64);
        if found < needed {
            return Err(ReplayError::Truncated { path: path.to_owned(), needed, found });
        }
        let slots = bytes[FRAMES_AT..].chunks_exact(shape.slot_bytes()).take(capacity as usize);
        let resident = Resident { most: SCAN, touched: AtomicUsize::new(0) };
        let mut look = |slot| {
            resident.touch(&*region, shape.slot_bytes());
            is_whole(slot, shape)
        };
        let whole = slots.map(&mut look).collect();
        let resident = Resident { most: Budget::RESIDENT as usize, touched: AtomicUsize::new(SCAN) };
        Ok(Self { region, shape, capacity, whole, last: 0, newest: None, ahead: Ahead::default(), resident })
    }

    /// Keeps at most so many bytes of frames in memory.
    pub(crate) fn keep_resident(&mut self, most: u64) {
        self.resident.most = usize::try_from(most).unwrap_or(usize::MAX);
    }

    pub(crate) fn shape(&self) -> FrameShape {
        self.shape
    }

    /// Whether the frame is here, undamaged.
    pub(crate) fn holds(&self, frame: FrameRef) -> bool {
        let Some(slot) = self.slot(frame.number) else { return false };
        let bytes = &self.region.bytes()[self.range(slot)];
        self.whole[slot] && u64_at(bytes, 0) == frame.number && u32_at(bytes, CHECKSUM_AT) == frame.checksum
    }

    /// Counts on from the frame of the last record. Frames that a dead writer left behind it are replaced.
    pub(crate) fn go_on_after(&mut self, last: FrameRef) {
        self.last = last.number;
    }

    /// Refuses what [`Frames::take`] could not store.
    pub(crate) fn check(&self, seen: Seen<'_>) -> Result<(), ReplayError> {
        match seen {
            Seen::New { pixels, .. } if pixels.len() != self.shape.bytes() => {
                Err(ReplayError::Shape { what: "frame", found: pixels.len(), wanted: self.shape.bytes() })
            }
            Seen::Same if self.newest.is_none() => Err(ReplayError::NoFrame),
            _ => Ok(()),
        }
    }

    /// Stores the frame, if it is a new one, and says which it is. [`Frames::check`] has passed.
    pub(crate) fn take(&mut self, seen: Seen<'_>) -> Result<FrameRef, ReplayError> {
        let Seen::New { pixels, capture_ns } = seen else { return self.newest.ok_or(ReplayError::NoFrame) };
        let number = self.last + 1;
        let slot = self.slot(number).unwrap_or_default();
        let range = self.range(slot);
        self.resident.touch(&*self.region, range.len());
        self.ahead.prepare(&mut *self.region, range.clone());
        let mut header = [0; HEADER];
        put(&mut header, 0, &number.to_le_bytes());
        put(&mut header, 8, &capture_ns.to_le_bytes());
        put_shape(&mut header[16..24], self.shape);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKSUM_AT]), pixels);
        self.whole[slot] = false;
        let read_only = || ReplayError::ReadOnly { path: FRAME_FILE.into() };
        let bytes = &mut self.region.bytes_mut().ok_or_else(read_only)?[range];
        let (header_bytes, pixel_bytes) = bytes.split_at_mut(HEADER);
        let (body, checksum_bytes) = header_bytes.split_at_mut(CHECKSUM_AT);
        write_checked(checksum_bytes, &checksum.to_le_bytes(), || {
            body.copy_from_slice(&header[..CHECKSUM_AT]);
            pixel_bytes[..pixels.len()].copy_from_slice(pixels);
        });
        self.whole[slot] = true;
        let frame = FrameRef { number, checksum };
        (self.last, self.newest) = (number, Some(frame));
        Ok(frame)
    }

    /// Pixels of a frame that is held.
    pub(crate) fn pixels(&self, number: u64) -> &[u8] {
        let start = self.range(self.slot(number).unwrap_or_default()).start + HEADER;
        self.resident.touch(&*self.region, self.shape.bytes());
        &self.region.bytes()[start..start + self.shape.bytes()]
    }

    /// When a frame that is held was taken, nanoseconds of the run's clock.
    pub(crate) fn capture_ns(&self, number: u64) -> u64 {
        u64_at(self.region.bytes(), self.range(self.slot(number).unwrap_or_default()).start + 8)
    }

    pub(crate) fn sync(&mut self) -> std::io::Result<()> {
        self.ahead.forget();
        self.region.sync()
    }

    pub(crate) fn unlock_memory(&self) {
        self.region.unlock();
    }

    fn slot(&self, number: u64) -> Option<usize> {
        number.checked_sub(1).map(|n| (n % self.capacity) as usize)
    }

    fn range(&self, slot: usize) -> std::ops::Range<usize> {
        let start = FRAMES_AT + slot * self.shape.slot_bytes();
        start..start + self.shape.slot_bytes()
    }
}

fn put_shape(bytes: &mut [u8], shape: FrameShape) {
    put(bytes, 0, &shape.width.to_le_bytes());
    put(bytes, 2, &shape.height.to_le_bytes());
    put(bytes, 4, &shape.channels.to_le_bytes());
}

fn shape_at(bytes: &[u8], at: usize) -> FrameShape {
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    FrameShape { width: number(at), height: number(at + 2), channels: number(at + 4) }
}

fn is_whole(slot: &[u8], shape: FrameShape) -> bool {
    let checksum = || {
        let pixels = &slot[HEADER..HEADER + shape.bytes()];
        crc32c::crc32c_append(crc32c::crc32c(&slot[..CHECKSUM_AT]), pixels)
    };
    u64_at(slot, 0) != 0 && shape_at(slot, 16) == shape && u32_at(slot, CHECKSUM_AT) == checksum()
}

fn write_header(bytes: &mut [u8], shape: FrameShape, capacity: u64, schema_hash: u64) {
    put(bytes, 0, &MAGIC);
    put(bytes, 8, &MAJOR.to_le_bytes());
    put(bytes, 12, &ENDIAN.to_le_bytes());
    put_shape(&mut bytes[16..24], shape);
    put(bytes, 24, &capacity.to_le_bytes());
    put(bytes, 32, &schema_hash.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    put(bytes, CHECKSUM_AT, &checksum.to_le_bytes());
}

/// Shape of the frames in a frame file.
pub(crate) fn shape_of(bytes: &[u8]) -> Result<FrameShape, HeaderProblem> {
    read_header(bytes).map(|(shape, ..)| shape)
}

/// Shape, capacity and schema hash.
fn read_header(bytes: &[u8]) -> Result<(FrameShape, u64, u64), HeaderProblem> {
    if bytes.len() < FRAMES_AT {
        return Err(HeaderProblem::Short);
    }
    if bytes[..8] != MAGIC {
        return Err(HeaderProblem::Magic);
    }
    if u32_at(bytes, 12) != ENDIAN {
        return Err(HeaderProblem::Endian);
    }
    let major = u16::from_le_bytes([bytes[8], bytes[9]]);
    if major != MAJOR {
        return Err(HeaderProblem::Major(major));
    }
    if u32_at(bytes, CHECKSUM_AT) != crc32c::crc32c(&bytes[..CHECKSUM_AT]) {
        return Err(HeaderProblem::Checksum);
    }
    let shape = shape_at(bytes, 16).check().map_err(|_| HeaderProblem::Geometry)?;
    Ok((shape, u64_at(bytes, 24), u64_at(bytes, 32)))
}
