//! A robot on a line that fails on purpose, and policies that do.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firmware_bridge::{DriveState, Frame, MAX_FRAME, Message};

use crate::clock::{Clock, Stamp};
use crate::config::Exploration;
use crate::control::{
    ControlLoop, ControlSettings, FrameProducer, Limits, Offer, Pace, Person, PolicyHandover, Rules, Sight,
    StepConsumer, frame_queue, policy_slot, step_queue,
};
use crate::learner::stream;
use crate::policy::{PolicyBackend, PolicyError, PolicyOutput};
use crate::robot::loopback::ModelRobot;
use crate::robot::{FirmwareRobot, Link, LinkCounters, LinkError};
use crate::runtime::parts::lock;
use crate::spaces::{Frame as CameraFrame, FrameShape, Spaces};
use crate::telemetry::{CameraCounters, ControlCounters};

pub(super) const PERIOD: Duration = Duration::from_millis(5);
pub(super) const STALE_STEPS: u32 = 2;
pub(super) const LOST_STEPS: u32 = 10;

/// What becomes of the state that the robot sends in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Good,
    Lost,
    /// Comes this many periods later.
    Late(u32),
    Damaged,
    /// Comes after the next one.
    Overtaken,
    /// The state before comes again.
    Repeated,
    /// The observation holds a NaN.
    NotFinite,
    /// The observation holds a subnormal number.
    Subnormal,
    /// One entry too many.
    Longer,
    /// And the command of this period comes damaged.
    CommandDamaged,
    /// The robot restarts.
    Restart,
    /// The drive faults by itself.
    DriveFault,
}

/// The robot's end of the line.
pub(super) struct World {
    pub robot: ModelRobot,
    /// What happens in a period.
    line: fn(u32) -> Line,
    /// Periods since the robot was armed.
    pub tick: u32,
    sent: u16,
    commanded: bool,
    /// Answer to what came in this period.
    answer: Option<Frame>,
    /// The newest state of the robot.
    last: Option<Frame>,
    /// The state that went out last.
    shown: Option<Frame>,
    /// Due period, place among those of the same period, bytes.
    under_way: Vec<(u32, u32, Vec<u8>)>,
    /// Commands as they came: period and action.
    pub commands: Vec<(u32, Vec<f32>)>,
    /// Periods in which ESTOP came.
    pub estops: Vec<u32>,
    /// Damaged frames that the host refused.
    pub refused: u64,
}

fn spaces() -> Spaces {
    Spaces { observation: ["a", "b", "c"].map(String::from).to_vec(), action: vec!["u".into()] }
}

fn model() -> ModelRobot {
    ModelRobot::new(&spaces(), PERIOD, Duration::from_millis(50))
}

impl World {
    pub(super) fn new(line: fn(u32) -> Line) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            robot: model(),
            line,
            tick: 0,
            sent: 0,
            commanded: false,
            answer: None,
            last: None,
            shown: None,
            under_way: Vec::new(),
            commands: Vec::new(),
            estops: Vec::new(),
            refused: 0,
        }))
    }

    /// The end of a control period: the robot sends its state.
    pub(super) fn period(&mut self) {
        let event = (self.line)(self.tick);
        match event {
            Line::Restart => {
                self.robot = model();
                // A fresh robot's state, as it stands there.
                let reset = Message::Reset { episode: 0, seed: 0 };
                self.answer = self.robot.handle(&Frame { header: firmware_bridge::Header::default(), message: reset });
            }
            Line::DriveFault => _ = self.robot.handle(&frame(Message::Estop)),
            _ => {}
        }
        if !std::mem::take(&mut self.commanded) {
            self.robot.wait(PERIOD);
        }
        self.last = self.answer.take().or_else(|| self.last.take());
        if event != Line::Repeated {
            self.shown.clone_from(&self.last);
        }
        let Some(mut shown) = self.shown.clone() else { return self.tick += 1 };
        let drive = self.robot.drive();
        if let Message::State(state) = &mut shown.message {
            state.drive = drive;
            state.faults = firmware_bridge::Faults(u16::from(drive == DriveState::Fault));
            match event {
                Line::NotFinite => state.observation[0] = f32::NAN,
                Line::Subnormal => state.observation[0] = f32::MIN_POSITIVE / 2.0,
                Line::Longer => _ = state.observation.push(0.0),
                _ => {}
            }
        }
        self.send(shown, event);
        self.tick += 1;
    }

    fn send(&mut self, mut frame: Frame, event: Line) {
        self.sent = self.sent.wrapping_add(1);
        frame.header.seq = self.sent;
        let mut bytes = encode(&frame);
        let (delay, place) = match event {
            Line::Lost => return,
            Line::Late(periods) => (periods, 0),
            Line::Overtaken => (1, 2),
            _ => (0, 1),
        };
        if event == Line::Damaged {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        self.under_way.push((self.tick + delay, place, bytes));
        self.under_way.sort_by_key(|(due, place, _)| (*due, *place));
    }

    /// A frame of the host.
    fn take(&mut self, frame: &Frame) {
        let mut bytes = encode(frame);
        if matches!(frame.message, Message::Command(_)) && (self.line)(self.tick) == Line::CommandDamaged {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x01;
        }
        let Ok(frame) = Frame::decode(&bytes) else {
            self.refused += 1;
            return;
        };
        match &frame.message {
            Message::Command(command) => {
                self.commands.push((self.tick, command.action.to_vec()));
                self.commanded = true;
            }
            Message::Estop => self.estops.push(self.tick),
            _ => {}
        }
        let answer = self.robot.handle(&frame);
        match &frame.message {
            // Not part of a tick: answered at once.
            Message::Hello(_) => {
                if let Some(answer) = answer {
                    self.under_way.insert(0, (0, 0, encode(&answer)));
                }
            }
            _ => self.answer = answer.or(self.answer.take()),
        }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let due = self.under_way.first().is_some_and(|(due, ..)| *due < self.tick || *due == 0);
        due.then(|| self.under_way.remove(0).2)
    }
}

fn frame(message: Message) -> Frame {
    Frame { header: firmware_bridge::Header::default(), message }
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = [0; MAX_FRAME];
    let len = frame.encode(&mut bytes).unwrap();
    bytes[..len].to_vec()
}

/// The host's end of the line.
struct FaultyLink(Arc<Mutex<World>>);

impl Link for FaultyLink {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        lock(&self.0).take(frame);
        Ok(())
    }

    fn receive(&mut self, _wait: Duration) -> Result<Option<Frame>, LinkError> {
        let mut world = lock(&self.0);
        while let Some(bytes) = world.next() {
            match Frame::decode(&bytes) {
                Ok(frame) => return Ok(Some(frame)),
                Err(_) => world.refused += 1,
            }
        }
        Ok(None)
    }

    fn counters(&self) -> LinkCounters {
        LinkCounters::default()
    }
}

/// What a policy answers in its n-th run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Answer {
    Mean(f32),
    Error,
    Panic,
    Wider,
    /// Looks at images, of a size that the camera may not have.
    Sees(FrameShape),
}

/// A policy that answers as it is told.
pub(super) struct Scripted {
    pub answer: fn(u32) -> Answer,
    pub actions: usize,
    pub runs: u32,
}

impl PolicyBackend for Scripted {
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        assert!(!observation.iter().any(|value| value.is_subnormal()), "{observation:?}");
        let answer = (self.answer)(self.runs);
        self.runs += 1;
        out.action_dim = self.actions;
        out.std.fill(0.0);
        match answer {
            Answer::Mean(mean) => out.mean[0] = mean,
            Answer::Error => return Err(PolicyError::ObservationNotFinite { index: 0 }),
            Answer::Panic => panic!("injected"),
            Answer::Sees(shape) if image.len() != shape.bytes() => {
                return Err(PolicyError::ImageLength { expected: shape.bytes(), got: image.len() });
            }
            Answer::Sees(_) => out.mean[0] = f32::from(image[20]),
            Answer::Wider => out.action_dim = self.actions + 1,
        }
        Ok(())
    }

    fn engine(&self) -> &'static str {
        "scripted"
    }

    fn observation_dim(&self) -> usize {
        3
    }

    fn action_dim(&self) -> usize {
        self.actions
    }
}

pub(super) fn offer(answer: fn(u32) -> Answer, actions: usize, generation: u32) -> Offer {
    Offer { policy: Box::new(Scripted { answer, actions, runs: 0 }), generation }
}

/// What the camera does in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shot {
    Good,
    /// No image comes.
    Missing,
    /// The image stands still, and the camera thread has noticed.
    Frozen,
    /// Rows of the image are damaged.
    Damaged,
}

/// Size of the images.
pub(super) const SHAPE: FrameShape = FrameShape { width: 4, height: 4, channels: 3 };

/// A camera, and the share of its frames that keeps their memory.
pub(super) struct TestCamera {
    frames: FrameProducer,
    pub counters: Arc<CameraCounters>,
    pool: Vec<Arc<CameraFrame>>,
    sequence: u64,
}

impl TestCamera {
    /// A camera and what the control loop sees of it; images older than `oldest` are stale.
    pub(super) fn new(oldest: Duration) -> (Self, Sight) {
        let (frames, sight) = frame_queue();
        let counters = Arc::<CameraCounters>::default();
        let sight = Sight::new(sight, Arc::clone(&counters), Pace::Newest(oldest));
        (Self { frames, counters, pool: Vec::new(), sequence: 0 }, sight)
    }

    /// What happens in a period at `now`.
    pub(super) fn shoot(&mut self, shot: Shot, now: Stamp) {
        self.sequence += 1;
        self.counters.frozen.store(u64::from(shot == Shot::Frozen), Relaxed);
        if shot == Shot::Missing {
            return;
        }
        let mut pixels = vec![self.sequence as u8; SHAPE.bytes()];
        if shot == Shot::Damaged {
            pixels[12..36].iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 97) as u8);
        }
        let (sequence, capture_ns) = (self.sequence, now.0 * 1000);
        let frame = Arc::new(CameraFrame { shape: SHAPE, sequence, capture_ns, pixels: pixels.into() });
        assert!(self.frames.push(Arc::clone(&frame)), "the loop takes every frame");
        self.pool.push(frame);
    }
}

/// A control loop on a line.
pub(super) struct Rig {
    pub world: Arc<Mutex<World>>,
    pub control: ControlLoop,
    pub handover: PolicyHandover,
    pub steps: StepConsumer,
    pub counters: Arc<ControlCounters>,
    pub clock: Clock,
}

pub(super) fn settings(max_steps: u32, limits: Limits, person: Person) -> ControlSettings {
    ControlSettings {
        period: PERIOD,
        max_steps,
        rules: Rules::default(),
        person,
        exploration: Exploration::Deterministic,
        limits,
        stale_steps: STALE_STEPS,
        lost_steps: LOST_STEPS,
        reset_steps: 10,
        first_episode: 0,
        start_seed: 0,
    }
}

pub(super) fn rig(
    line: fn(u32) -> Line,
    answer: fn(u32) -> Answer,
    settings: ControlSettings,
    clock: Clock,
    counters: Arc<ControlCounters>,
    sight: Option<Sight>,
) -> Rig {
    let world = World::new(line);
    let link = Box::new(FaultyLink(Arc::clone(&world)));
    let timeout = Duration::from_millis(300);
    let robot = FirmwareRobot::connect(link, &spaces(), PERIOD, false, 100, timeout, clock.clone()).unwrap();
    let (slot, handover) = policy_slot(offer(answer, 1, 0));
    let (producer, steps) = step_queue();
    let rng = stream(0, "fault matrix");
    let mut control =
        ControlLoop::new(Box::new(robot), slot, producer, Arc::clone(&counters), clock.clone(), settings, rng);
    if let Some(sight) = sight {
        control = control.with_camera(sight);
    }
    control.start().unwrap();
    Rig { world, control, handover, steps, counters, clock }
}
