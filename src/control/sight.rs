//! What the control loop sees: the newest camera frame, and whether it may be acted on.
//!
//! In real time the newest frame counts, and nobody waits for a better one. In lockstep the loop waits, a bounded time,
//! for the frame that belongs to its observation. A frame that is too old, one of a camera whose image stands still, or
//! none at all make the loop blind; `docs/safety.md` says what it does then.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::frame_queue::FrameConsumer;
use crate::clock::{Clock, Stamp, monotonic};
use crate::spaces::Frame;
use crate::telemetry::CameraCounters;

/// Between two looks for the frame of an observation, in lockstep.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Which frame is the one of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The newest, if it is not older than this: real time.
    Newest(Duration),
    /// A new one, taken with the observation or later on the run's clock; waited for this long. Lockstep.
    WithRun(Duration),
    /// The same on the robot's clock: a simulated robot with a camera. Lockstep.
    WithRobot(Duration),
}

/// The camera as the control loop sees it.
pub struct Sight {
    frames: FrameConsumer,
    camera: Arc<CameraCounters>,
    pace: Pace,
    /// Sequence of the frame of the observation before.
    used: Option<u64>,
    /// Ticks in a row without an image to act on.
    blind: u32,
}

impl Sight {
    /// Nothing was seen yet. `camera` says whether its image stands still although it counts on.
    pub fn new(frames: FrameConsumer, camera: Arc<CameraCounters>, pace: Pace) -> Self {
        Self { frames, camera, pace, used: None, blind: 0 }
    }

    /// Waits for the first image; whether one came. Not real time.
    pub fn open(&mut self, patience: Duration) -> bool {
        self.wait(patience, |_| true)
    }

    /// The frame of a new observation, which the robot took at `robot_us` of its clock, for a use at `now`. Counts
    /// ticks without an image to act on.
    pub fn look(&mut self, now: Stamp, robot_us: u32) {
        let used = self.used;
        // Two observations may have the same stamp: the last of an episode and the first of the next.
        let is_next = move |frame: &Frame| used.is_none_or(|used| frame.sequence > used);
        let fits = match self.pace {
            Pace::Newest(oldest) => {
                self.follow();
                self.frame().is_some_and(|frame| now.since(capture(frame)) <= oldest)
            }
            Pace::WithRun(patience) => self.wait(patience, |frame| is_next(frame) && capture(frame) >= now),
            Pace::WithRobot(patience) => self.wait(patience, |frame| {
                // The robot's clock has 32 bits and goes round every 71 minutes.
                let later = (frame.capture_ns / 1000) as u32;
                is_next(frame) && later.wrapping_sub(robot_us) as i32 >= 0
            }),
        };
        self.used = self.frame().map(|frame| frame.sequence);
        self.blind = if fits && self.camera.frozen.load(Relaxed) == 0 { 0 } else { self.blind.saturating_add(1) };
    }

    /// Ticks in a row without an image to act on, the present one included; 0: sees.
    pub fn blind(&self) -> u32 {
        self.blind
    }

    /// The newest frame.
    pub fn frame(&self) -> Option<&Arc<Frame>> {
        self.frames.newest()
    }

    /// How long ago the frame was taken; `None` in lockstep, where its stamp is not the run's clock.
    pub fn age(&self, now: Stamp) -> Option<Duration> {
        let frame = self.frame().filter(|_| matches!(self.pace, Pace::Newest(_)))?;
        Some(now.since(capture(frame)))
    }

    /// Takes what came, so that the queue never fills while nobody looks. Real time.
    pub fn follow(&mut self) {
        self.frames.follow();
    }

    fn wait(&mut self, patience: Duration, fits: impl Fn(&Frame) -> bool) -> bool {
        // Measured on the machine's clock even in lockstep.
        let until = monotonic().plus(patience);
        loop {
            self.follow();
            if self.frame().is_some_and(|frame| fits(frame)) {
                return true;
            }
            if monotonic() >= until {
                return false;
            }
            Clock::Monotonic.sleep_until(monotonic().plus(LOOK_AGAIN));
        }
    }
}

/// When a frame was taken, on the run's clock.
fn capture(frame: &Frame) -> Stamp {
    Stamp(frame.capture_ns / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::frame_queue::frame_queue;

    fn frame(sequence: u64, capture_us: u64) -> Arc<Frame> {
        Arc::new(Frame { sequence, capture_ns: 1000 * capture_us, ..Frame::default() })
    }

    #[test]
    fn in_real_time_the_newest_counts_until_it_is_too_old() {
        let (mut camera, frames) = frame_queue();
        let counters = Arc::<CameraCounters>::default();
        let mut sight = Sight::new(frames, Arc::clone(&counters), Pace::Newest(Duration::from_micros(100)));
        let blind = |sight: &mut Sight, now: u64| {
            sight.look(Stamp(now), 0);
            sight.blind()
        };
        assert_eq!(blind(&mut sight, 0), 1, "nothing came yet");
        for sequence in 1..4 {
            assert!(camera.push(frame(sequence, 10 * sequence)));
        }
        assert_eq!(blind(&mut sight, 130), 0);
        assert_eq!(sight.frame().map(|f| f.sequence), Some(3));
        assert_eq!(sight.age(Stamp(130)), Some(Duration::from_micros(100)));
        assert_eq!([131, 132].map(|now| blind(&mut sight, now)), [1, 2]);
        camera.push(frame(4, 200));
        assert_eq!(blind(&mut sight, 150), 0, "a stamp of the future is no old one");
        counters.frozen.store(1, Relaxed);
        assert_eq!([151, 152].map(|now| blind(&mut sight, now)), [1, 2]);
        counters.frozen.store(0, Relaxed);
        assert_eq!(blind(&mut sight, 153), 0);
    }

    #[test]
    fn in_lockstep_each_observation_has_its_own_frame() {
        let (mut camera, frames) = frame_queue();
        let mut sight = Sight::new(frames, Arc::default(), Pace::WithRobot(Duration::from_millis(1)));
        camera.push(frame(1, 500));
        sight.look(Stamp(0), 500);
        assert_eq!((sight.blind(), sight.age(Stamp(0))), (0, None));
        sight.look(Stamp(0), 500);
        assert_eq!(sight.blind(), 1, "the frame of the observation before");
        camera.push(frame(2, 499));
        sight.look(Stamp(0), 500);
        assert_eq!(sight.blind(), 2, "taken before the observation");
        camera.push(frame(3, (1 << 32) + 5));
        sight.look(Stamp(0), u32::MAX);
        assert_eq!(sight.blind(), 0, "the robot's clock went round");
    }

    #[test]
    fn in_lockstep_the_loop_waits_for_the_frame() {
        let (mut camera, frames) = frame_queue();
        let mut sight = Sight::new(frames, Arc::default(), Pace::WithRun(Duration::from_mins(1)));
        let late = std::thread::Builder::new().spawn(move || {
            Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(5)));
            camera.push(frame(8, 6)) && camera.push(frame(9, 7))
        });
        sight.look(Stamp(7), 0);
        assert_eq!((sight.blind(), sight.frame().map(|f| f.sequence)), (0, Some(9)));
        assert!(late.unwrap().join().unwrap());
    }
}
