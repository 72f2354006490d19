//! What the measurements have in common: a control loop with a robot in memory, and a learner at work beside it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use crate::clock::{Clock, precise};
use crate::config::{Exploration, LearnerConfig, PretrainConfig, ReplayConfig};
use crate::control::{
    ControlLoop, ControlSettings, Limits, Offer, Person, PolicyHandover, Rules, StepConsumer, policy_slot, step_queue,
};
use crate::learner::pretrain::Pretrainer;
use crate::learner::{Dims, Learner, random_store, stream};
use crate::nn::weights::{ActorWeights, EnsembleWeights};
use crate::replay::{Replay, Store};
use crate::robot::FirmwareRobot;
use crate::robot::loopback::{LoopbackLink, ModelRobot};
use crate::runtime::parts::RuntimeError;
use crate::runtime::rights;
use crate::spaces::Spaces;
use crate::telemetry::ControlCounters;

/// HalfCheetah's.
pub(super) const DIMS: Dims = Dims { observation: 17, action: 6 };
/// Transitions of the learner's replay, each of offline and online.
const TRANSITIONS: u32 = 20_000;

pub(super) fn spaces() -> Spaces {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    Spaces { observation: names("o", DIMS.observation), action: names("a", DIMS.action) }
}

/// Five random agents of 256 x 256.
pub(super) fn ensemble() -> Result<EnsembleWeights, RuntimeError> {
    Ok(Pretrainer::new(DIMS, &PretrainConfig::default(), &LearnerConfig::default(), 0)?.weights()?)
}

/// A control loop whose robot answers from memory.
pub(super) struct Rig {
    pub control: ControlLoop,
    pub handover: PolicyHandover,
    pub steps: StepConsumer,
    pub counters: Arc<ControlCounters>,
}

impl Rig {
    pub(super) fn new(period: Duration, first: Offer) -> Result<Self, RuntimeError> {
        let spaces = spaces();
        let watchdog = Duration::from_millis(255).max(2 * period);
        let link = LoopbackLink::new(ModelRobot::new(&spaces, period, watchdog));
        let clock = Clock::Monotonic;
        let timeout = Duration::from_secs(1);
        let robot = FirmwareRobot::connect(Box::new(link), &spaces, period, false, u8::MAX, timeout, clock.clone())?;
        let (slot, handover) = policy_slot(first);
        let (producer, steps) = step_queue();
        let counters = Arc::<ControlCounters>::default();
        let settings = ControlSettings {
            period,
            max_steps: 1000,
            rules: Rules::default(),
            person: Person::default(),
            exploration: Exploration::Deterministic,
            limits: Limits { magnitude: 1.0, slew: 2.0 },
            stale_steps: 2,
            lost_steps: 10,
            reset_steps: 10,
            first_episode: 0,
            start_seed: 0,
        };
        let rng = stream(0, "measurement");
        let mut control =
            ControlLoop::new(Box::new(robot), slot, producer, Arc::clone(&counters), clock, settings, rng);
        control.start()?;
        Ok(Self { control, handover, steps, counters })
    }
}

/// A learner that updates without a pause until this is dropped, off the control loop's processor.
pub(super) struct BusyLearner {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
    since: Duration,
    /// The newest actors.
    pub actors: Receiver<ActorWeights>,
}

impl BusyLearner {
    pub(super) fn start(weights: &EnsembleWeights, off_cpu: i32) -> Result<Self, RuntimeError> {
        let replay = Mutex::new(Replay::new(Some(store(1)?), store(2)?, &ReplayConfig::default())?);
        let config = (LearnerConfig::default(), ReplayConfig::default());
        let mut learner = Learner::new(weights, DIMS, &config.0, &config.1, 0)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, actors) = bounded(1);
        let work = {
            let stop = Arc::clone(&stop);
            move || {
                rights::stay_off(off_cpu.max(0) as usize);
                while !stop.load(Relaxed) {
                    if let Err(error) = learner.update(&replay) {
                        log::error!("the learner of the measurement stopped: {error}");
                        break;
                    }
                    if let Ok(actor) = learner.actor() {
                        let _ = sender.try_send(actor);
                    }
                }
                learner.updates()
            }
        };
        let thread =
            Builder::new().name("learner".into()).spawn(work).map_err(RuntimeError::file("learner".as_ref()))?;
        Ok(Self { stop, thread: Some(thread), since: precise(), actors })
    }

    /// Ends it; returns its updates.
    pub(super) fn finish(mut self) -> u64 {
        self.join()
    }

    /// Ends it; returns its updates per second since its start.
    pub(super) fn rate(self) -> f64 {
        let seconds = precise().saturating_sub(self.since).as_secs_f64();
        self.finish() as f64 / seconds
    }

    fn join(&mut self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for BusyLearner {
    fn drop(&mut self) {
        self.join();
    }
}

/// Random transitions.
pub(super) fn store(seed: u64) -> Result<Store, RuntimeError> {
    Ok(random_store(DIMS, None, TRANSITIONS, seed)?)
}
