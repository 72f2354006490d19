//! Deterministic episodes: the control loop with `tanh(mean)`, nothing recorded, nothing learned.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::parts::{RuntimeError, control_settings, period, reach_robot, with_camera};
use super::recorder::ReturnTracker;
use crate::clock::Clock;
use crate::config::{ClockKind, Config, Exploration};
use crate::control::{ControlLoop, Offer, Pacer, StepConsumer, policy_slot, step_queue};
use crate::learner::stream;
use crate::policy::{PolicyError, Source, checks};
use crate::telemetry::{ControlCounters, EpisodeReturn};

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Engine that ran the policy.
    pub engine: String,
    /// The episodes.
    pub episodes: Vec<EpisodeReturn>,
}

impl Evaluation {
    /// Their returns.
    pub fn returns(&self) -> Vec<f64> {
        self.episodes.iter().map(|e| e.episode_return).collect()
    }
}

/// Runs `episodes` episodes with `policy`. A simulated robot is taken in lockstep, a real one in real time. The
/// start states depend on the seed alone, so that two evaluations compare.
///
/// # Errors
/// When the policy is refused, or the robot cannot be reached or had to be stopped.
pub fn evaluate(
    config: &Config,
    policy: Source<'_>,
    episodes: u32,
    exploration: Exploration,
    program: &Path,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&EpisodeReturn),
) -> Result<Evaluation, RuntimeError> {
    let simulated = config.robot.address.is_empty();
    let lockstep = simulated || config.run.clock == ClockKind::Lockstep;
    let clock = if lockstep { Clock::lockstep() } else { Clock::Monotonic };
    let prepared = policy.prepare(&config.robot.spaces, &config.policy)?;
    let engine = prepared.report.engine.to_owned();
    checks::frame(prepared.report.frame, config.camera.shape()).map_err(PolicyError::from)?;
    let (slot, _handover) = policy_slot(Offer { policy: prepared.backend, generation: 0 });
    let (robot, simulator) = reach_robot(config, program, lockstep, &clock)?;
    let (producer, mut consumer) = step_queue();
    let seed = config.run.seed;
    let start_seed = rand::RngCore::next_u64(&mut stream(seed, "evaluation start states"));
    let control = ControlLoop::new(
        robot,
        slot,
        producer,
        Arc::new(ControlCounters::default()),
        clock.clone(),
        control_settings(config, exploration, 0, start_seed, &Arc::default(), &Arc::default()),
        stream(seed, "evaluation noise"),
    );
    let window = Arc::default();
    let (mut control, _camera) = with_camera(control, config, &clock, simulator.as_ref(), &window, None)?;
    control.start()?;
    let mut pacer = if lockstep {
        None
    } else {
        Some(Pacer::new(control.find_phase()?.plus(period(config) / 2), period(config), config.realtime.overrun))
    };
    let mut tracker = ReturnTracker::default();
    let mut found = Vec::new();
    while found.len() < episodes as usize && !stop.load(Relaxed) {
        step(&mut control, &clock, pacer.as_mut(), period(config))?;
        collect(&mut consumer, &mut tracker, &mut found, progress);
    }
    control.finish();
    Ok(Evaluation { engine, episodes: found })
}

fn step(
    control: &mut ControlLoop,
    clock: &Clock,
    pacer: Option<&mut Pacer>,
    period: Duration,
) -> Result<(), RuntimeError> {
    if let Some(pacer) = &pacer {
        pacer.wait(clock);
    }
    let ticked = control.tick();
    if ticked.is_err() {
        control.stop();
    }
    match pacer {
        Some(pacer) => drop(pacer.advance(clock.now())),
        None => clock.advance(period),
    }
    Ok(ticked?)
}

fn collect(
    consumer: &mut StepConsumer,
    tracker: &mut ReturnTracker,
    found: &mut Vec<EpisodeReturn>,
    progress: &mut dyn FnMut(&EpisodeReturn),
) {
    while let Some(record) = consumer.pop() {
        if let Some(mut episode) = tracker.take(&record, 0) {
            episode.episode = found.len() as u32;
            progress(&episode);
            found.push(episode);
        }
    }
}
