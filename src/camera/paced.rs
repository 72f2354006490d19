//! Cameras that keep a rate by themselves: a moving pattern, and recorded frames.

use std::time::Duration;

use firmware_bridge::ImageFormat;

use super::image::{Image, View};
use super::{Camera, CameraError, Capture};
use crate::clock::{Clock, Stamp, monotonic};
use crate::config::CameraConfig;
use crate::spaces::FrameShape;

/// Size of the pattern where none is configured.
const PATTERN: (u16, u16) = (640, 480);

/// Puts the next frame of a recording into the vector.
pub type NextFrame = Box<dyn FnMut(&mut Vec<u8>) + Send>;

/// Recorded frames, which begin again at their end.
pub struct Recording {
    /// Their size; several cameras lie behind each other in a pixel.
    pub shape: FrameShape,
    /// Puts the next one, [`FrameShape::bytes`] bytes, into the vector.
    pub next: NextFrame,
}

enum Content {
    Pattern,
    Recording(Recording),
}

/// An image every period of the run's clock; in lockstep one for every time that the clock shows.
pub(super) struct Paced {
    content: Content,
    size: (u16, u16),
    clock: Clock,
    period: Duration,
    next: Option<Stamp>,
    sequence: u32,
    pixels: Vec<u8>,
}

impl Paced {
    pub(super) fn synthetic(config: &CameraConfig, clock: &Clock) -> Self {
        let [width, height] = config.source_size;
        Self::new(Content::Pattern, if width > 0 { (width, height) } else { PATTERN }, config, clock)
    }

    /// The first camera of the recording.
    pub(super) fn playback(recording: Recording, config: &CameraConfig, clock: &Clock) -> Self {
        let size = (recording.shape.width, recording.shape.height);
        Self::new(Content::Recording(recording), size, config, clock)
    }

    fn new(content: Content, size: (u16, u16), config: &CameraConfig, clock: &Clock) -> Self {
        let period = Duration::from_secs_f64(1.0 / config.rate_hz);
        Self { content, size, clock: clock.clone(), period, next: None, sequence: 0, pixels: Vec::new() }
    }

    /// The time of the next image once it has come, with the images that were due before it.
    fn due(&mut self, wait: Duration) -> Option<(Stamp, u32)> {
        let now = self.clock.now();
        let next = *self.next.get_or_insert(now);
        if next > now {
            // In lockstep somebody else moves the clock; either way the wait itself is real.
            let sleep = if self.clock.is_lockstep() { Duration::from_micros(200) } else { next.since(now) };
            Clock::Monotonic.sleep_until(monotonic().plus(sleep.min(wait)));
        }
        let now = self.clock.now();
        if next > now {
            return None;
        }
        if self.clock.is_lockstep() {
            self.next = Some(Stamp(now.0 + 1));
            return Some((now, 0));
        }
        let late = (now.since(next).as_micros() / self.period.as_micros().max(1)) as u32;
        let taken = next.plus(self.period * late);
        self.next = Some(taken.plus(self.period));
        Some((taken, late))
    }
}

impl Camera for Paced {
    fn newest(&mut self, wait: Duration, view: &mut View, into: &mut [u8]) -> Result<Option<Capture>, CameraError> {
        let Some((taken, overtaken)) = self.due(wait) else { return Ok(None) };
        self.sequence = self.sequence.wrapping_add(1 + overtaken);
        match &mut self.content {
            Content::Pattern => pattern(self.sequence, self.size, &mut self.pixels),
            Content::Recording(recording) => {
                (recording.next)(&mut self.pixels);
                let channels = usize::from(recording.shape.channels);
                if channels > 3 {
                    self.pixels = self.pixels.chunks_exact(channels).flat_map(|pixel| &pixel[..3]).copied().collect();
                }
            }
        }
        view.take(&Image { format: ImageFormat::Rgb8, size: Some(self.size), bytes: &self.pixels }, into)?;
        Ok(Some(Capture { taken, sequence: self.sequence, missing: 0, overtaken }))
    }
}

/// The synthetic image with this number, RGB8: a gradient that moves, and a square that crosses it.
pub fn pattern(sequence: u32, (width, height): (u16, u16), into: &mut Vec<u8>) {
    let (width, height) = (u32::from(width), u32::from(height));
    let side = (height / 6).max(1);
    let left = sequence.wrapping_mul(side) % width.max(1);
    into.clear();
    for y in 0..height {
        for x in 0..width {
            let square = (left..left + side).contains(&x) && (height / 3..height / 3 + side).contains(&y);
            let gradient = [x + 4 * (sequence % 64), y, x + y].map(|value| value as u8);
            into.extend(if square { [255, 32, 32] } else { gradient });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CameraSource;

    fn camera(source: &CameraSource, config: &CameraConfig, clock: &Clock) -> Box<dyn Camera> {
        let record = |_: &std::path::Path| {
            let mut at = 0;
            let next = move |into: &mut Vec<u8>| {
                at = at % 3 + 1;
                *into = (0..4).flat_map(|_| [at, at, at, 99, 99, 99]).collect();
            };
            Ok(Recording { shape: FrameShape { width: 2, height: 2, channels: 6 }, next: Box::new(next) })
        };
        super::super::open(source, config, clock, record).unwrap()
    }

    #[test]
    fn in_lockstep_every_moment_has_its_image() {
        let clock = Clock::lockstep();
        let config = CameraConfig { width: 2, height: 2, ..CameraConfig::default() };
        let (mut view, mut into) = (View::new(&config), [0; 12]);
        let mut camera = camera(&CameraSource::Playback("a".into()), &config, &clock);
        for step in 0..7u32 {
            let capture = camera.newest(Duration::ZERO, &mut view, &mut into).unwrap().unwrap();
            assert_eq!((capture.taken, capture.sequence), (clock.now(), step + 1));
            assert_eq!(into, [step as u8 % 3 + 1; 12], "the first camera, from the start again");
            assert_eq!(camera.newest(Duration::ZERO, &mut view, &mut into).unwrap(), None);
            clock.advance(Duration::from_millis(50));
        }
    }

    #[test]
    fn the_pattern_keeps_its_rate_and_is_the_same_every_time() {
        let config = CameraConfig { rate_hz: 200.0, source_size: [64, 48], ..CameraConfig::default() };
        let (mut view, mut into) = (View::new(&config), vec![0; 48 * 48 * 3]);
        let mut camera = camera(&CameraSource::Synthetic, &config, &Clock::Monotonic);
        let mut before: Option<Capture> = None;
        for _ in 0..20 {
            let Some(capture) = camera.newest(Duration::from_millis(50), &mut view, &mut into).unwrap() else {
                continue;
            };
            if let Some(before) = before {
                let periods = u64::from(capture.sequence - before.sequence);
                assert_eq!(capture.taken.0 - before.taken.0, 5000 * periods);
                assert_eq!(u64::from(capture.overtaken) + 1, periods);
            }
            before = Some(capture);
            let (mut pixels, mut again) = (Vec::new(), vec![0; into.len()]);
            pattern(capture.sequence, (64, 48), &mut pixels);
            let image = Image { format: ImageFormat::Rgb8, size: Some((64, 48)), bytes: &pixels };
            View::new(&config).take(&image, &mut again).unwrap();
            assert_eq!(into, again);
        }
        assert!(before.is_some());
    }
}
