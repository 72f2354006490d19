//! Promise: after the first tick, the control thread neither allocates nor frees, swaps included.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]
#![allow(unsafe_code, reason = "a counting global allocator")]

mod places;
mod sight;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fieldtune::clock::{Clock, Stamp};
use fieldtune::config::{Exploration, PolicyConfig};
use fieldtune::control::{
    ControlLoop, ControlSettings, Limits, Offer, Pace, Person, Rules, Sight, SwapRequest, frame_queue, policy_slot,
    step_queue,
};
use fieldtune::nn::weights::{ActorWeights, LayerWeights, LogStdBounds, StackWeights};
use fieldtune::policy::prepare;
use fieldtune::robot::{LinkCounters, Observed, Robot, RobotDescription, RobotError};
use fieldtune::spaces::{Frame, FrameShape, Spaces};
use fieldtune::telemetry::ControlCounters;
use firmware_bridge::DriveState;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    if WATCHED.get() {
        COUNT.set(COUNT.get() + 1);
    }
}

// SAFETY: every call goes to the system allocator unchanged; counting touches thread-local cells only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DESCRIPTION: RobotDescription = RobotDescription {
    observation_dim: 3,
    action_dim: 1,
    control_period: Duration::from_millis(5),
    watchdog: Duration::from_millis(100),
    firmware: 1,
    boot_id: 1,
};

/// A robot that integrates its action, ends an episode by itself now and then, and loses a state now and then.
struct Integrator {
    description: RobotDescription,
    state: [f32; 3],
    action: f32,
    tick: u32,
    episode: u32,
    calls: u32,
}

impl Robot for Integrator {
    fn description(&self) -> &RobotDescription {
        &self.description
    }

    fn arm(&mut self) -> Result<(), RobotError> {
        Ok(())
    }

    fn request_reset(&mut self, episode: u32, _seed: u64) -> Result<(), RobotError> {
        (self.episode, self.tick, self.state, self.action) = (episode, 0, [0.1; 3], f32::NAN);
        Ok(())
    }

    fn observe(&mut self, into: &mut Observed) -> Result<bool, RobotError> {
        self.calls += 1;
        if !self.action.is_nan() {
            self.tick += 1 + u32::from(self.calls.is_multiple_of(97));
            self.state[0] += 0.01 * self.action;
        }
        if self.calls.is_multiple_of(53) {
            return Ok(false);
        }
        into.tick = self.tick;
        into.episode = self.episode;
        into.capture = Stamp(u64::from(self.calls));
        into.drive = DriveState::Run;
        into.terminated = self.tick >= 150;
        into.reward = -self.state[0];
        into.reward_valid = true;
        into.applied.clear();
        into.applied.push(if self.action.is_nan() { 0.0 } else { self.action }).unwrap();
        into.observation.clear();
        into.observation.extend_from_slice(&self.state).unwrap();
        Ok(true)
    }

    fn apply(&mut self, action: &[f32]) -> Result<(), RobotError> {
        self.action = action[0];
        Ok(())
    }

    fn stop(&mut self) {}

    fn disarm(&mut self) {}

    fn counters(&self) -> LinkCounters {
        LinkCounters::default()
    }
}

const SHAPE: FrameShape = FrameShape { width: 12, height: 9, channels: 3 };

fn actor(rng: &mut ChaCha8Rng, sees: bool) -> ActorWeights {
    if sees {
        return sight::actor(5, sight::eyes(1, SHAPE, 3, true, rng.random()), 1, rng.random());
    }
    let members = 5;
    let dims = [3, 64, 64, 2];
    let layers = dims.windows(2).map(|d| LayerWeights {
        inputs: d[0],
        outputs: d[1],
        weight: (0..members * d[0] * d[1]).map(|_| rng.random_range(-0.2..0.2)).collect(),
        bias: vec![0.01; members * d[1]],
        layer_norm: None,
    });
    ActorWeights {
        stack: StackWeights { members, layers: layers.collect() },
        log_std: LogStdBounds::default(),
        eyes: None,
    }
}

fn ticks_without_allocation(config: &PolicyConfig, sees: bool) {
    let spaces = Spaces { observation: ["a", "b", "c"].map(String::from).to_vec(), action: vec!["u".into()] };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let prepared = |rng: &mut ChaCha8Rng| prepare(&actor(rng, sees), &spaces, config).unwrap().backend;
    let (slot, mut handover) = policy_slot(Offer { policy: prepared(&mut rng), generation: 0 });
    let (producer, mut consumer) = step_queue();
    let counters = Arc::new(ControlCounters::default());
    let settings = ControlSettings {
        period: Duration::from_millis(5),
        max_steps: 100,
        rules: Rules::default(),
        person: Person { longest_age: Duration::from_secs(1), blend_steps: 3, ..Person::default() },
        exploration: Exploration::Stochastic,
        limits: Limits { magnitude: 0.8, slew: 0.5 },
        stale_steps: 1,
        lost_steps: 10,
        reset_steps: 10,
        first_episode: 0,
        start_seed: 7,
    };
    let person = Arc::clone(&settings.person.slot);
    let robot =
        Integrator { description: DESCRIPTION, state: [0.1; 3], action: f32::NAN, tick: 0, episode: 0, calls: 0 };
    let clock = Clock::lockstep();
    let mut control = ControlLoop::new(
        Box::new(robot),
        slot,
        producer,
        Arc::clone(&counters),
        clock.clone(),
        settings,
        ChaCha8Rng::seed_from_u64(2),
    );
    let (mut camera, frames) = frame_queue();
    // A share of every frame stays here, as with the camera thread.
    let mut pool: Vec<_> =
        (0..32).map(|_| Arc::new(Frame { pixels: vec![0; SHAPE.bytes()].into(), ..Frame::default() })).collect();
    let mut shoot = |sequence: u32, now: Stamp| {
        let Some(frame) = pool.iter_mut().find_map(|slot| Arc::get_mut(slot).is_some().then_some(slot)) else { return };
        let inner = Arc::get_mut(frame).unwrap();
        (inner.shape, inner.sequence, inner.capture_ns) = (SHAPE, sequence.into(), 1000 * now.0);
        inner.pixels[sequence as usize % SHAPE.bytes()] ^= 0x5a;
        assert!(camera.push(Arc::clone(frame)));
    };
    shoot(0, clock.now());
    if sees {
        let oldest = Duration::from_millis(12);
        control = control.with_camera(Sight::new(frames, Arc::default(), Pace::Newest(oldest)));
    }
    control.start().unwrap();
    control.tick().unwrap();
    COUNT.set(0);
    let mut records = 0;
    for tick in 0..5000u32 {
        if tick % 50 == 0 {
            let offer = Offer { policy: prepared(&mut rng), generation: tick / 50 + 1 };
            assert!(handover.send(SwapRequest::Offer(offer), Duration::ZERO).is_ok());
        } else if tick % 50 == 25 {
            assert!(handover.send(SwapRequest::RollBack, Duration::ZERO).is_ok());
        }
        match tick % 40 {
            0..20 => person.command(&[0.5], clock.now().0).unwrap(),
            20 => person.release(clock.now().0).unwrap(),
            _ => {}
        }
        if sees && tick % 11 > 2 {
            // Several in a tick, and now and then none for so long that the loop is blind.
            (0..=tick % 3).for_each(|n| shoot(10 * tick + n + 1, clock.now()));
        }
        WATCHED.set(true);
        let ticked = control.tick();
        WATCHED.set(false);
        ticked.unwrap();
        clock.advance(Duration::from_millis(5));
        while consumer.pop().is_some() {
            records += 1;
        }
    }
    assert_eq!(COUNT.get(), 0, "heap calls in 5000 ticks");
    assert_eq!(counters.swaps.load(Relaxed), 100);
    assert_eq!(counters.rollbacks.load(Relaxed), 100);
    assert!(counters.episodes.load(Relaxed) > 20, "episodes end and begin inside the watched ticks");
    assert!(counters.stale.load(Relaxed) > 50 && counters.missed_states.load(Relaxed) > 20);
    assert!(counters.person_steps.load(Relaxed) > 2000, "a person takes over and lets go");
    assert!(records > 4000 && (counters.blind.load(Relaxed) > 300) == sees);
}

#[test]
fn the_counter_sees_an_allocation() {
    WATCHED.set(true);
    let boxed = std::hint::black_box(Box::new(1));
    drop(boxed);
    WATCHED.set(false);
    assert_eq!(COUNT.replace(0), 2);
}

#[test]
fn ticks_of_the_built_in_pass_leave_the_heap_alone() {
    ticks_without_allocation(&PolicyConfig::default(), false);
}

#[test]
fn ticks_with_a_camera_leave_the_heap_alone() {
    ticks_without_allocation(&PolicyConfig::default(), true);
}

#[test]
fn ticks_of_onnx_runtime_leave_the_rust_heap_alone() {
    let Some(library) = places::onnxruntime() else { return };
    for sees in [false, true] {
        ticks_without_allocation(&PolicyConfig { onnxruntime: library.clone(), ..PolicyConfig::default() }, sees);
    }
}
