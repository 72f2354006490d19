//! The camera thread: images of one or several cameras into frames for the control thread.
//!
//! It owns a fixed pool of frames and writes only into those of which nobody else holds a share. A camera that is lost is
//! opened again and again; nothing here ends a run. What goes wrong is counted by name (`docs/camera.md`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::event::Event;
use super::parts::{RuntimeError, Shared, lock};
use crate::camera::{self, Camera, CameraError, Capture, ImageFault, Recording, View};
use crate::clock::{Clock, Stamp, monotonic};
use crate::config::{CameraConfig, CameraSource};
use crate::control::{FrameConsumer, FrameProducer, frame_queue};
use crate::pixels;
use crate::replay::{Access, Store};
use crate::spaces::Frame;
use crate::telemetry::CameraCounters;

/// Frames that may be on their way to the recorder at a time; what comes when all are is dropped and counted.
const POOL: usize = 64;
/// Longest wait for the camera that is behind the others.
const SLICE: Duration = Duration::from_millis(10);
/// Time between two attempts to reach a camera.
const RETRY: Duration = Duration::from_millis(500);
/// A stamp that lies further ahead is of another clock.
const AHEAD: Duration = Duration::from_secs(1);
/// Stamps in a row that go back and mean that the source has begun anew.
const MOST_BACKWARDS: u32 = 10;

/// What everybody may see of the cameras.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// What the camera thread counts.
    pub counters: Arc<CameraCounters>,
    newest: Mutex<Option<Arc<Frame>>>,
}

impl Window {
    /// A share of the newest frame. Not for the control thread.
    pub(super) fn newest(&self) -> Option<Arc<Frame>> {
        lock(&self.newest).clone()
    }
}

/// The running thread; ends with this value. It has to outlive the control loop: it keeps the memory of the frames.
pub(super) struct CameraThread {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for CameraThread {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Starts the cameras of a configuration, if it has any. They need not be there yet. `simulator` is the socket of the
/// simulated robot's camera; notes and a panic go to `shared`, where there is one.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn start(
    config: &CameraConfig,
    clock: &Clock,
    simulator: Option<&Path>,
    window: &Arc<Window>,
    shared: Option<&Arc<Shared>>,
) -> Result<Option<(FrameConsumer, CameraThread)>, RuntimeError> {
    if config.source.0.is_empty() {
        return Ok(None);
    }
    let (frames, consumer) = frame_queue();
    let over = Arc::new(AtomicBool::new(false));
    let mut bridge = Bridge::new(config, clock, simulator, frames, Arc::clone(window), shared.cloned());
    let end = Arc::clone(&over);
    let body = move || {
        let panicked = catch_unwind(AssertUnwindSafe(|| bridge.watch(&end))).is_err();
        match &bridge.shared {
            Some(shared) if panicked => shared.fail("the camera thread panicked".into()),
            _ if panicked => log::error!("the camera thread panicked"),
            _ => {}
        }
        // The pool stays until the control loop is gone, whatever happened here.
        while !end.load(Relaxed) {
            Clock::Monotonic.sleep_until(monotonic().plus(SLICE));
        }
    };
    let thread = Builder::new().name("camera".into()).spawn(body).map_err(RuntimeError::file("camera".as_ref()))?;
    Ok(Some((consumer, CameraThread { over, thread: Some(thread) })))
}

/// One camera, or the place of one that is lost.
struct Eye {
    source: CameraSource,
    camera: Option<Box<dyn Camera>>,
    /// Whether it was there before.
    was_there: bool,
    next_try: Stamp,
    view: View,
    /// The newest image, `(height, width, 3)`.
    plane: Vec<u8>,
    /// When it was taken; `None` before the first.
    taken: Option<Stamp>,
    /// Not in a frame yet.
    fresh: bool,
    backwards: u32,
    checksum: u32,
    unchanged: u32,
    /// The last complaint, which is not repeated.
    said: String,
}

impl Eye {
    fn new(source: CameraSource, config: &CameraConfig) -> Self {
        let view = View::new(config);
        let plane = vec![0; view.bytes()];
        Self {
            source,
            camera: None,
            was_there: false,
            next_try: Stamp(0),
            view,
            plane,
            taken: None,
            fresh: false,
            backwards: 0,
            checksum: 0,
            unchanged: 0,
            said: String::new(),
        }
    }
}

struct Bridge {
    config: CameraConfig,
    clock: Clock,
    eyes: Vec<Eye>,
    pool: Vec<Arc<Frame>>,
    sequence: u64,
    frames: FrameProducer,
    window: Arc<Window>,
    shared: Option<Arc<Shared>>,
    newest: Option<Stamp>,
}

fn count(counter: &AtomicU64, by: u32) {
    counter.fetch_add(by.into(), Relaxed);
}

impl Bridge {
    fn new(
        config: &CameraConfig,
        clock: &Clock,
        simulator: Option<&Path>,
        frames: FrameProducer,
        window: Arc<Window>,
        shared: Option<Arc<Shared>>,
    ) -> Self {
        let reached = |source: &CameraSource| match (source, simulator) {
            (CameraSource::Simulator, Some(path)) => CameraSource::Unix(path.to_owned()),
            _ => source.clone(),
        };
        let eyes: Vec<_> = config.source.0.iter().map(|source| Eye::new(reached(source), config)).collect();
        window.counters.cameras.store(eyes.len() as u64, Relaxed);
        let shape = config.shape().unwrap_or_default();
        let frame = || Arc::new(Frame { shape, pixels: vec![0; shape.bytes()].into(), ..Frame::default() });
        Self {
            config: config.clone(),
            clock: clock.clone(),
            eyes,
            pool: (0..POOL).map(|_| frame()).collect(),
            sequence: 0,
            frames,
            window,
            shared,
            newest: None,
        }
    }

    fn watch(&mut self, over: &AtomicBool) {
        while !over.load(Relaxed) {
            let behind = (0..self.eyes.len()).min_by_key(|at| (self.eyes[*at].fresh, self.eyes[*at].taken));
            for at in 0..self.eyes.len() {
                let wait = if Some(at) == behind { SLICE } else { Duration::ZERO };
                self.look(at, wait);
            }
            self.publish();
            if let Some(newest) = self.newest {
                let age = self.clock.now().since(newest);
                self.window.counters.age_us.store(age.as_micros() as u64, Relaxed);
            }
        }
    }

    /// Takes the newest image of a camera, waiting at most `wait`; opens it when it is lost.
    fn look(&mut self, at: usize, wait: Duration) {
        let eye = &mut self.eyes[at];
        let Some(camera) = &mut eye.camera else {
            if monotonic() >= eye.next_try {
                return self.open(at);
            }
            return Clock::Monotonic.sleep_until(monotonic().plus(wait));
        };
        match camera.newest(wait, &mut eye.view, &mut eye.plane) {
            Ok(None) => {}
            Ok(Some(capture)) => self.take(at, capture),
            Err(CameraError::Image(fault)) => {
                // The plane is undefined now.
                eye.fresh = false;
                self.count(&fault);
                self.say(at, &format!("an image was refused: {fault}"));
            }
            Err(error) => self.lose(at, &error.to_string()),
        }
    }

    fn open(&mut self, at: usize) {
        let eye = &mut self.eyes[at];
        eye.next_try = monotonic().plus(RETRY);
        match camera::open(&eye.source, &self.config, &self.clock, recording) {
            Ok(camera) => {
                eye.camera = Some(camera);
                (eye.taken, eye.backwards, eye.unchanged) = (None, 0, 0);
                let again = std::mem::replace(&mut eye.was_there, true);
                count(&self.window.counters.connected, 1);
                count(&self.window.counters.reconnects, again.into());
                self.say(at, if again { "is there again" } else { "is there" });
            }
            Err(error) => self.say(at, &format!("is not there, and is looked for: {error}")),
        }
    }

    fn lose(&mut self, at: usize, why: &str) {
        let eye = &mut self.eyes[at];
        (eye.camera, eye.fresh) = (None, false);
        eye.next_try = monotonic().plus(RETRY / 10);
        self.window.counters.connected.fetch_sub(1, Relaxed);
        self.unfreeze(at);
        self.say(at, &format!("is lost, and is looked for: {why}"));
    }

    fn count(&self, fault: &ImageFault) {
        let c = &self.window.counters;
        let counter = match fault {
            ImageFault::Truncated => &c.truncated,
            ImageFault::Damaged(_) => &c.damaged,
            ImageFault::Size { .. } | ImageFault::Small { .. } => &c.wrong_size,
            ImageFault::Format(_) => &c.wrong_format,
            ImageFault::Stream(_) => &c.stream_errors,
        };
        count(counter, 1);
    }

    /// Judges the stamp of an image, and whether the picture moves.
    fn take(&mut self, at: usize, capture: Capture) {
        let c = Arc::clone(&self.window.counters);
        count(&c.sequence_gaps, capture.missing);
        count(&c.overtaken, capture.overtaken);
        let eye = &mut self.eyes[at];
        if eye.taken.is_some_and(|before| capture.taken < before) {
            (eye.fresh, eye.backwards) = (false, eye.backwards + 1);
            count(&c.clock_backwards, 1);
            if eye.backwards >= MOST_BACKWARDS {
                return self.lose(at, "its clock has gone back");
            }
            return self.say(at, "an image is older than the one before and was left out");
        }
        if !self.clock.is_lockstep() && capture.taken.since(self.clock.now()) > AHEAD {
            eye.fresh = false;
            count(&c.clock_ahead, 1);
            return self.say(at, "its stamps are of the future: another machine's clock? camera.stamps = \"arrival\"");
        }
        (eye.taken, eye.fresh, eye.backwards) = (Some(capture.taken), true, 0);
        let checksum = crc32c::crc32c(&eye.plane);
        if std::mem::replace(&mut eye.checksum, checksum) != checksum {
            return self.unfreeze(at);
        }
        eye.unchanged = eye.unchanged.saturating_add(1);
        if eye.unchanged == self.config.frozen_images {
            count(&c.frozen, 1);
            count(&c.frozen_alarms, 1);
            self.say(at, "its image has not changed for camera.frozen_images images");
        }
    }

    /// The picture moves, or the camera is gone.
    fn unfreeze(&mut self, at: usize) {
        let unchanged = std::mem::take(&mut self.eyes[at].unchanged);
        if self.config.frozen_images > 0 && unchanged >= self.config.frozen_images {
            self.window.counters.frozen.fetch_sub(1, Relaxed);
        }
    }

    /// Makes a frame once every camera has a new image and their stamps lie close enough together.
    fn publish(&mut self) {
        if !self.eyes.iter().all(|eye| eye.fresh) {
            return;
        }
        let stamps = || self.eyes.iter().filter_map(|eye| eye.taken);
        let (Some(oldest), Some(newest)) = (stamps().min(), stamps().max()) else { return };
        let c = &self.window.counters;
        if newest.since(oldest) > Duration::from_millis(self.config.align_ms.into()) {
            // The newer ones wait for the next image of those behind.
            count(&c.misaligned, 1);
            self.eyes.iter_mut().for_each(|eye| eye.fresh &= eye.taken == Some(newest));
            return;
        }
        self.eyes.iter_mut().for_each(|eye| eye.fresh = false);
        let Some((at, slot)) = self.pool.iter_mut().enumerate().find_map(|(at, slot)| Some((at, Arc::get_mut(slot)?)))
        else {
            return count(&c.dropped, 1);
        };
        self.sequence += 1;
        (slot.sequence, slot.capture_ns) = (self.sequence, oldest.0 * 1000);
        let cameras = self.eyes.len();
        for (camera, eye) in self.eyes.iter().enumerate() {
            if cameras == 1 {
                slot.pixels.copy_from_slice(&eye.plane);
                break;
            }
            pixels::put_camera(cameras, camera, &eye.plane, &mut slot.pixels);
        }
        if !self.frames.push(Arc::clone(&self.pool[at])) {
            return count(&c.dropped, 1);
        }
        count(&c.frames, 1);
        *lock(&self.window.newest) = Some(Arc::clone(&self.pool[at]));
        self.newest = Some(oldest);
    }

    /// Tells what is wrong with a camera, once.
    fn say(&mut self, at: usize, what: &str) {
        let eye = &mut self.eyes[at];
        if eye.said == what {
            return;
        }
        what.clone_into(&mut eye.said);
        let note = format!("camera {}: {what}", eye.source);
        match &self.shared {
            Some(shared) => shared.tell(Event::Note(note)),
            None => log::info!("{note}"),
        }
    }
}

/// The frames of a replay buffer, or of the run in whose folder it lies, in the order of their records.
fn recording(folder: &Path) -> Result<Recording, String> {
    let inner = folder.join("replay");
    let folder = if inner.is_dir() { inner } else { folder.to_owned() };
    let store = Store::open(&folder, Access::ReadOnly).map_err(|error| error.to_string())?;
    let shape = store.frame_shape().ok_or_else(|| format!("{} holds no camera frames", folder.display()))?;
    let (first, last) = (store.first_sequence(), store.last_sequence());
    let mut at = first;
    let mut before = None;
    let next = move |into: &mut Vec<u8>| {
        // Records of a slow camera share a frame, and a damaged record has none: at most one round.
        for _ in first..=last {
            let found = store.frame(at);
            at = if at < last { at + 1 } else { first };
            if let Ok((number, _, pixels)) = found
                && before.replace(number) != Some(number)
            {
                into.clear();
                into.extend_from_slice(pixels);
                return;
            }
        }
        into.resize(shape.bytes(), 0);
    };
    Ok(Recording { shape, next: Box::new(next) })
}

#[cfg(test)]
#[path = "camera_tests.rs"]
mod tests;
