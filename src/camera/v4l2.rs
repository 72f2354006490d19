//! V4L2 devices, by the kernel's interface alone: the crates for it need libclang to build.
//!
//! The third place of the crate with `unsafe`, only with the feature `camera-v4l2`: the device's calls, and the map of
//! the buffers that it fills.
#![allow(unsafe_code, reason = "ioctl and mmap; each block says why it is sound")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use firmware_bridge::ImageFormat;
use memmap2::{Mmap, MmapOptions};

use super::image::{Image, View};
use super::{Camera, CameraError, Capture, ImageFault, Numbers, lost};
use crate::clock::{Clock, Stamp, monotonic, wait_readable};
use crate::config::{CameraConfig, CaptureStamps, ImageStream};

/// Buffers that are asked for.
const BUFFERS: u32 = 4;
/// V4L2_BUF_TYPE_VIDEO_CAPTURE.
const CAPTURE: u32 = 1;
/// V4L2_MEMORY_MMAP.
const MAPPED: u32 = 1;
/// V4L2_CAP_VIDEO_CAPTURE and V4L2_CAP_STREAMING.
const NEEDED: u32 = 0x1 | 0x0400_0000;
/// V4L2_CAP_DEVICE_CAPS: the capabilities of this node stand apart from those of the whole device.
const NODE_CAPABILITIES: u32 = 0x8000_0000;
/// V4L2_BUF_FLAG_ERROR.
const DAMAGED: u32 = 0x40;
/// V4L2_BUF_FLAG_TIMESTAMP_MASK and the one that means CLOCK_MONOTONIC.
const STAMP: (u32, u32) = (0xe000, 0x2000);
/// V4L2_FIELD_NONE: whole images, not every other row.
const PROGRESSIVE: u32 = 1;

/// What a device may offer and this understands, the cheapest first.
const FORMATS: [(ImageStream, ImageFormat, [u8; 4]); 4] = [
    (ImageStream::Yuyv, ImageFormat::Yuyv, *b"YUYV"),
    (ImageStream::Mjpeg, ImageFormat::Jpeg, *b"MJPG"),
    (ImageStream::Mjpeg, ImageFormat::Jpeg, *b"JPEG"),
    (ImageStream::Rgb, ImageFormat::Rgb8, *b"RGB3"),
];

#[repr(C)]
#[derive(Default)]
struct Capability {
    names: [[u32; 4]; 5],
    version: u32,
    capabilities: u32,
    device_caps: u32,
    reserved: [u32; 3],
}

#[repr(C, align(8))]
struct Format {
    kind: u32,
    gap: u32,
    width: u32,
    height: u32,
    pixelformat: u32,
    field: u32,
    bytesperline: u32,
    sizeimage: u32,
    rest: [u32; 44],
}

#[repr(C)]
struct Parameters {
    kind: u32,
    capability: u32,
    mode: u32,
    numerator: u32,
    denominator: u32,
    rest: [u32; 46],
}

#[repr(C)]
#[derive(Default)]
struct RequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    rest: [u32; 2],
}

#[repr(C)]
#[derive(Default)]
struct Buffer {
    index: u32,
    kind: u32,
    bytesused: u32,
    flags: u32,
    field: u32,
    gap: u32,
    seconds: i64,
    microseconds: i64,
    timecode: [u32; 4],
    sequence: u32,
    memory: u32,
    offset: u64,
    length: u32,
    reserved: [u32; 3],
}

const _: () = {
    assert!(size_of::<usize>() == 8, "the layouts below are those of 64-bit kernels");
    assert!(size_of::<Capability>() == 104 && size_of::<Format>() == 208 && size_of::<Parameters>() == 204);
    assert!(size_of::<RequestBuffers>() == 20 && size_of::<Buffer>() == 88);
};

/// Which way the argument of a call goes.
#[derive(Clone, Copy)]
enum Way {
    Write = 1,
    Read = 2,
    Both = 3,
}

/// Call `number` of V4L2 with its argument.
fn call<T>(device: &File, way: Way, number: u8, argument: &mut T) -> io::Result<()> {
    let request = (way as u64) << 30 | (size_of::<T>() as u64) << 16 | u64::from(b'V') << 8 | u64::from(number);
    loop {
        // SAFETY: the size of the argument is part of the request, so the kernel touches no byte behind it, and refuses a
        // size that is not its own (ENOTTY). The arguments of this file are plain integers for which every bit pattern
        // is valid, and none holds an address that the kernel would follow: memory is MAPPED in every call.
        let answer = unsafe { libc::ioctl(device.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
        if answer >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A device that streams.
pub(super) struct Device {
    // Unmapped before the device is closed.
    buffers: Vec<Mmap>,
    file: File,
    format: ImageFormat,
    size: (u16, u16),
    numbers: Numbers,
    clock: Clock,
    stamps: CaptureStamps,
}

impl Device {
    pub(super) fn open(path: &Path, config: &CameraConfig, clock: &Clock) -> Result<Self, CameraError> {
        let unfit = |what: String| CameraError::Unfit(format!("{}: {what}", path.display()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(lost("opening"))?;
        let mut capability = Capability::default();
        call(&file, Way::Read, 0, &mut capability).map_err(|_| unfit("is no V4L2 device".into()))?;
        let whole = capability.capabilities;
        let here = if whole & NODE_CAPABILITIES == 0 { whole } else { capability.device_caps };
        if here & NEEDED != NEEDED {
            return Err(unfit("does not stream images; another /dev/video* of the camera may".into()));
        }
        let (format, size) = agree(&file, config).map_err(unfit)?;
        ask_rate(&file, config.rate_hz);
        let mut device = Self {
            buffers: Vec::new(),
            file,
            format,
            size,
            numbers: Numbers::default(),
            clock: clock.clone(),
            stamps: config.stamps,
        };
        device.start().map_err(lost("starting the camera"))?;
        Ok(device)
    }

    fn start(&mut self) -> io::Result<()> {
        let mut request = RequestBuffers { count: BUFFERS, kind: CAPTURE, memory: MAPPED, ..RequestBuffers::default() };
        call(&self.file, Way::Both, 8, &mut request)?;
        for index in 0..request.count {
            let mut buffer = Buffer { index, kind: CAPTURE, memory: MAPPED, ..Buffer::default() };
            call(&self.file, Way::Both, 9, &mut buffer)?;
            let place = u64::from(buffer.offset as u32);
            // SAFETY: the memory is the driver's and keeps its length while the device is open. The driver writes into a
            // buffer only between QBUF and DQBUF; `newest` reads it only between DQBUF and QBUF.
            let map = unsafe { MmapOptions::new().offset(place).len(buffer.length as usize).map(&self.file)? };
            self.buffers.push(map);
            self.give_back(index)?;
        }
        call(&self.file, Way::Write, 18, &mut (CAPTURE as i32))
    }

    fn give_back(&self, index: u32) -> io::Result<()> {
        call(&self.file, Way::Both, 15, &mut Buffer { index, kind: CAPTURE, memory: MAPPED, ..Buffer::default() })
    }

    /// The oldest filled buffer, if there is one.
    fn filled(&self) -> io::Result<Option<Buffer>> {
        let mut buffer = Buffer { kind: CAPTURE, memory: MAPPED, ..Buffer::default() };
        match call(&self.file, Way::Both, 17, &mut buffer) {
            Ok(()) => Ok(Some(buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The newest filled buffer; older ones go back, and their number is returned.
    fn newest_filled(&self) -> io::Result<Option<(Buffer, u32)>> {
        let mut newest = None;
        let mut overtaken = 0;
        while let Some(buffer) = self.filled()? {
            if let Some(Buffer { index, .. }) = newest.replace(buffer) {
                overtaken += 1;
                self.give_back(index)?;
            }
        }
        Ok(newest.map(|buffer| (buffer, overtaken)))
    }

    fn show(&self, buffer: &Buffer, view: &mut View, into: &mut [u8]) -> Result<(), ImageFault> {
        let bytes = self.buffers.get(buffer.index as usize).and_then(|map| map.get(..buffer.bytesused as usize));
        match bytes {
            _ if buffer.flags & DAMAGED != 0 => Err(ImageFault::Damaged("the device says so".into())),
            None => Err(ImageFault::Truncated),
            Some(bytes) => view.take(&Image { format: self.format, size: Some(self.size), bytes }, into),
        }
    }
}

impl Camera for Device {
    fn newest(&mut self, wait: Duration, view: &mut View, into: &mut [u8]) -> Result<Option<Capture>, CameraError> {
        let until = monotonic().plus(wait);
        let mut found = self.newest_filled().map_err(lost("reading from the camera"))?;
        if found.is_none() && wait_readable(&self.file, until).map_err(lost("waiting for the camera"))? {
            found = self.newest_filled().map_err(lost("reading from the camera"))?;
        }
        let Some((buffer, overtaken)) = found else { return Ok(None) };
        let arrival = self.clock.now();
        let shown = self.show(&buffer, view, into);
        self.give_back(buffer.index).map_err(lost("reading from the camera"))?;
        let passed = self.numbers.missing_before(buffer.sequence);
        shown?;
        let own = self.stamps == CaptureStamps::Source && buffer.flags & STAMP.0 == STAMP.1;
        let taken = Stamp(buffer.seconds as u64 * 1_000_000 + buffer.microseconds as u64);
        Ok(Some(Capture {
            taken: if own { taken } else { arrival },
            sequence: buffer.sequence,
            missing: passed.saturating_sub(overtaken),
            overtaken,
        }))
    }
}

/// Sets the first format that the configuration allows and the device takes, in exactly the configured size.
fn agree(file: &File, config: &CameraConfig) -> Result<(ImageFormat, (u16, u16)), String> {
    let [width, height] = config.source_size;
    let mut offered = Vec::new();
    for (stream, format, code) in FORMATS {
        if config.format != ImageStream::Headers && config.format != stream {
            continue;
        }
        let code = u32::from_le_bytes(code);
        let mut wanted = Format {
            kind: CAPTURE,
            gap: 0,
            width: width.into(),
            height: height.into(),
            pixelformat: code,
            field: PROGRESSIVE,
            bytesperline: 0,
            sizeimage: 0,
            rest: [0; 44],
        };
        if call(file, Way::Both, 5, &mut wanted).is_err() || wanted.pixelformat != code {
            continue;
        }
        let row = format.payload(width, 1);
        if (wanted.width, wanted.height) != (u32::from(width), u32::from(height)) {
            offered.push(format!("{}x{} {stream:?}", wanted.width, wanted.height));
        } else if format != ImageFormat::Jpeg && wanted.bytesperline != row {
            offered.push(format!("{stream:?} with rows of {} bytes instead of {row}", wanted.bytesperline));
        } else {
            return Ok((format, (width, height)));
        }
    }
    let offered = if offered.is_empty() { "no format that is understood".into() } else { offered.join(", ") };
    Err(format!("offers {offered}, not camera.source_size = [{width}, {height}] in camera.format"))
}

/// Asks for a rate; a device that has another keeps it.
fn ask_rate(file: &File, rate_hz: f64) {
    let (numerator, denominator) = (1000, (rate_hz * 1000.0).round() as u32);
    let mut wanted = Parameters { kind: CAPTURE, capability: 0, mode: 0, numerator, denominator, rest: [0; 46] };
    if let Err(error) = call(file, Way::Both, 22, &mut wanted) {
        log::info!("the camera does not take a rate: {error}");
    }
}
