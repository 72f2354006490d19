//! Faults of cameras, each with its reaction.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use firmware_bridge::{ImageFormat, ImageHeader};

use super::*;
use crate::config::Cameras;
use crate::telemetry::CameraSummary;

/// Cameras behind Unix sockets, with the thread that watches them.
struct Stage {
    _folder: tempfile::TempDir,
    listeners: Vec<UnixListener>,
    cameras: Vec<UnixStream>,
    frames: FrameConsumer,
    window: Arc<Window>,
    _thread: CameraThread,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn stage(cameras: usize, change: impl FnOnce(&mut CameraConfig)) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..cameras).map(|n| folder.path().join(n.to_string())).collect();
    let listeners: Vec<_> = paths.iter().map(|path| UnixListener::bind(path).unwrap()).collect();
    let source = Cameras(paths.into_iter().map(CameraSource::Unix).collect());
    let mut config = CameraConfig { source, width: 4, height: 4, ..CameraConfig::default() };
    change(&mut config);
    let window = Arc::<Window>::default();
    let (frames, thread) = start(&config, &Clock::Monotonic, None, &window, None).unwrap().unwrap();
    let accepted = listeners.iter().map(|listener| listener.accept().unwrap().0).collect();
    Stage { _folder: folder, listeners, cameras: accepted, frames, window, _thread: thread }
}

fn image(sequence: u32, capture_us: u64, side: u16) -> Vec<u8> {
    let payload_len = ImageFormat::Rgb8.payload(side, side);
    let header =
        ImageHeader { format: ImageFormat::Rgb8, width: side, height: side, payload_len, sequence, capture_us };
    [header.encode().unwrap().to_vec(), vec![sequence as u8; payload_len as usize]].concat()
}

impl Stage {
    fn send(&mut self, camera: usize, bytes: &[u8]) {
        self.cameras[camera].write_all(bytes).unwrap();
    }

    fn counters(&self) -> CameraSummary {
        self.window.counters.summary()
    }

    /// Waits until the counters are so.
    fn until(&self, so: impl Fn(&CameraSummary) -> bool) {
        let end = monotonic().plus(PATIENCE);
        while !so(&self.counters()) {
            assert!(monotonic() < end, "{:?}", self.counters());
            Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(1)));
        }
    }

    fn frame(&mut self) -> Arc<Frame> {
        self.frames.follow();
        Arc::clone(self.frames.newest().unwrap())
    }
}

#[test]
fn frames_come_with_their_numbers_and_stamps() {
    let mut stage = stage(1, |_| {});
    let now = monotonic().0;
    for n in 1..=3u32 {
        stage.send(0, &image(2 * n, now + u64::from(n), 8));
        stage.until(|c| c.frames == u64::from(n));
        let frame = stage.frame();
        assert_eq!((frame.sequence, frame.capture_ns), (n.into(), (now + u64::from(n)) * 1000));
        assert_eq!((&*frame.pixels, frame.shape.bytes()), (&[2 * n as u8; 48][..], 48));
    }
    assert_eq!((stage.counters().sequence_gaps, stage.counters().connected), (2, 1));
    assert_eq!(stage.window.newest().map(|frame| frame.sequence), Some(3));
}

#[test]
fn every_bad_input_is_counted_by_its_name_and_the_camera_goes_on() {
    let mut stage = stage(1, |_| {});
    let now = monotonic().0;
    stage.send(0, &image(1, now, 8));
    stage.until(|c| c.frames == 1);
    stage.send(0, &image(2, now + 1, 9));
    stage.until(|c| c.wrong_size == 1);
    let jpeg = |bytes: &[u8]| {
        let header = ImageHeader {
            format: ImageFormat::Jpeg,
            width: 8,
            height: 8,
            payload_len: bytes.len() as u32,
            sequence: 3,
            capture_us: now + 2,
        };
        [&header.encode().unwrap()[..], bytes].concat()
    };
    stage.send(0, &jpeg(b"no JPEG"));
    stage.until(|c| c.wrong_format == 1);
    stage.send(0, &jpeg(&[0xff, 0xd8, 0xff, 0xdb, 0, 9]));
    stage.until(|c| c.truncated == 1);
    stage.send(0, &jpeg(&[0xff, 0xd8, 0xff, 0xdb, 0, 9, 1, 2, 0xff, 0xd9]));
    stage.until(|c| c.damaged == 1);
    stage.send(0, b"noise that is no header of any image");
    stage.until(|c| c.stream_errors > 0);
    stage.send(0, &image(4, now - 1_000_000, 8));
    stage.until(|c| c.clock_backwards == 1);
    stage.send(0, &image(5, now + 3_600_000_000, 8));
    stage.until(|c| c.clock_ahead == 1);
    assert_eq!(stage.counters().frames, 1, "none of them became a frame");
    stage.send(0, &image(6, now + 5, 8));
    stage.until(|c| c.frames == 2);
    assert_eq!((stage.frame().pixels[0], stage.counters().reconnects), (6, 0));
}

#[test]
fn a_camera_that_dies_is_taken_again_and_so_is_one_whose_clock_begins_anew() {
    let mut stage = stage(1, |_| {});
    let now = monotonic().0;
    stage.send(0, &image(9, now, 8));
    stage.until(|c| c.frames == 1);
    stage.send(0, &image(10, now + 1, 8)[..60]);
    stage.cameras.clear();
    stage.until(|c| c.connected == 0 || c.reconnects == 1);
    let (camera, _) = stage.listeners[0].accept().unwrap();
    stage.cameras.push(camera);
    stage.until(|c| c.reconnects == 1 && c.connected == 1);
    stage.send(0, &image(1, now + 7, 8));
    stage.until(|c| c.frames == 2);
    assert_eq!((stage.frame().sequence, stage.frame().pixels[0]), (2, 1));
    for n in 0..MOST_BACKWARDS {
        stage.send(0, &image(2 + n, 1, 8));
        stage.until(|c| c.clock_backwards == u64::from(n) + 1);
    }
    stage.cameras[0] = stage.listeners[0].accept().unwrap().0;
    stage.send(0, &image(3, 2, 8));
    stage.until(|c| c.frames == 3);
    assert_eq!(stage.counters().reconnects, 2);
}

#[test]
fn an_image_that_stands_still_raises_the_alarm_until_it_moves() {
    let mut stage = stage(1, |config| config.frozen_images = 3);
    let now = monotonic().0;
    let still = |n: u32| {
        let mut bytes = image(n, now + u64::from(n), 8);
        bytes[32..].fill(7);
        bytes
    };
    for n in 1..=4 {
        assert_eq!(stage.counters().frozen, 0, "{n}");
        stage.send(0, &still(n));
        stage.until(|c| c.frames == u64::from(n));
    }
    stage.until(|c| c.frozen == 1 && c.frozen_alarms == 1);
    stage.send(0, &image(5, now + 5, 8));
    stage.until(|c| c.frozen == 0 && c.frames == 5);
}

#[test]
fn several_cameras_make_one_frame_of_images_of_one_time() {
    let mut stage = stage(2, |config| config.align_ms = 5);
    let now = monotonic().0;
    stage.send(0, &image(1, now, 8));
    stage.send(1, &image(101, now + 2000, 8));
    stage.until(|c| c.frames == 1);
    let frame = stage.frame();
    assert_eq!((frame.capture_ns, frame.shape.channels), (now * 1000, 6));
    assert!(frame.pixels.chunks(6).all(|pixel| *pixel == [1, 1, 1, 101, 101, 101]));
    stage.send(0, &image(2, now + 10_000, 8));
    stage.send(1, &image(102, now + 20_000, 8));
    stage.until(|c| c.misaligned == 1);
    stage.send(0, &image(3, now + 19_000, 8));
    stage.until(|c| c.frames == 2);
    assert_eq!(stage.frame().pixels[..6], [3, 3, 3, 102, 102, 102]);
}

#[test]
fn a_pool_that_is_used_up_drops_and_counts() {
    let mut stage = stage(1, |_| {});
    let now = monotonic().0;
    let mut held = Vec::new();
    for n in 0..POOL as u32 + 3 {
        stage.send(0, &image(n, now + u64::from(n), 8));
        stage.until(|c| c.frames + c.dropped == u64::from(n) + 1);
        held.push(stage.frame());
    }
    assert_eq!(stage.counters().dropped, 3);
    let last = held.last().map(|frame| frame.sequence);
    assert_eq!(last, Some(POOL as u64), "the frames that are held did not change");
    assert!(held.iter().take(POOL).enumerate().all(|(n, frame)| frame.sequence == n as u64 + 1));
    drop(held);
    stage.send(0, &image(200, now + 999, 8));
    stage.until(|c| c.frames == POOL as u64 + 1);
}

#[test]
fn a_recording_plays_its_frames_again() {
    use crate::replay::{Layout, Seen};
    use crate::spaces::{FrameShape, StepRecord};
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout { observation_dim: 1, action_dim: 1, schema_hash: 1 };
    let shape = FrameShape { width: 4, height: 4, channels: 3 };
    let path = folder.path().join("replay");
    let mut store = Store::create_with_frames(&path, layout, 1024, shape).unwrap();
    for step in 0..6u32 {
        let record = StepRecord {
            step,
            observation: heapless::Vec::from_slice(&[0.0]).unwrap(),
            action: heapless::Vec::from_slice(&[0.0]).unwrap(),
            ..StepRecord::default()
        };
        let pixels = [step as u8; 48];
        let seen = if step % 2 == 0 { Seen::New { pixels: &pixels, capture_ns: 1 } } else { Seen::Same };
        store.append_with_frame(&record, seen).unwrap();
    }
    drop(store);
    let mut found = recording(folder.path()).unwrap();
    let mut pixels = Vec::new();
    let mut next = || {
        (found.next)(&mut pixels);
        pixels[0]
    };
    assert_eq!([next(), next(), next(), next()], [0, 2, 4, 0]);
    assert!(recording(&folder.path().join("none")).is_err());
}
