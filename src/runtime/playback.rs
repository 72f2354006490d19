//! Recorded observations through the control loop: the same tick as on the robot, over a [`PlaybackRobot`].
//!
//! Policy, exploration noise, limits and rules of the configuration decide anew at every recorded observation; what
//! they decide is compared with what was recorded. The noise of a step depends on seed, episode and step alone, so the
//! actions of the policy that was recorded come out with the same bits, whatever the clock and the threads do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use firmware_bridge::MAX_ACTION;
use serde::Serialize;

use super::parts::{EXPLORATION, RuntimeError, control_settings, period};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::control::{
    ControlLoop, Fault, FrameProducer, Offer, Pace, Sight, StepConsumer, frame_queue, policy_slot, step_queue,
};
use crate::learner::stream;
use crate::policy::{PolicyError, PolicyOutput, Source, checks};
use crate::replay::Recording;
use crate::robot::{PlaybackRobot, RobotDescription, RobotError};
use crate::spaces::{StepFlags, StepRecord};
use crate::telemetry::{ControlCounters, Histogram};

/// How far two ways of acting are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Steps compared.
    pub steps: u64,
    /// Of them with the same bits in every entry.
    pub equal: u64,
    /// Largest difference of an entry.
    pub largest: f32,
    /// Mean difference of an entry.
    pub mean: f64,
}

impl Agreement {
    /// Adds a step.
    fn compare(&mut self, recorded: &[f32], replayed: &[f32]) {
        let differences = || recorded.iter().zip(replayed).map(|(a, b)| (a - b).abs());
        let same =
            recorded.len() == replayed.len() && recorded.iter().zip(replayed).all(|(a, b)| a.to_bits() == b.to_bits());
        let sum: f64 = differences().map(f64::from).sum();
        self.steps += 1;
        self.equal += u64::from(same);
        self.largest = differences().fold(self.largest, f32::max);
        self.mean += (sum / recorded.len().max(1) as f64 - self.mean) / self.steps as f64;
    }

    /// Both together.
    fn add(&mut self, other: &Self) {
        let steps = self.steps + other.steps;
        let sum = self.mean * self.steps as f64 + other.mean * other.steps as f64;
        let mean = sum / steps.max(1) as f64;
        *self = Self { steps, equal: self.equal + other.equal, largest: self.largest.max(other.largest), mean };
    }
}

/// A step whose action came out differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Step within the episode.
    pub step: u32,
    /// Place in the action.
    pub entry: usize,
    /// What was applied then.
    pub recorded: f32,
    /// What would be applied now.
    pub replayed: f32,
}

/// One recorded episode, replayed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EpisodeReplay {
    /// Its number.
    pub episode: u32,
    /// Sum of the recorded rewards.
    pub recorded_return: f64,
    /// Actions now and then.
    pub agreement: Agreement,
    /// The first step with other bits.
    pub first: Option<Difference>,
    /// The step with the largest difference.
    pub worst: Option<Difference>,
    /// Mean over steps and entries of `|atanh(recorded) - mean| / std`: how likely the recorded actions are.
    pub deviations: f64,
    /// Steps in which the limits changed the action.
    pub limited: u64,
    /// Largest change of an entry by the limits.
    pub limited_by: f32,
    /// Steps whose action was not finite and became zero.
    pub bad_actions: u64,
    /// Steps in which a person chose the action; not compared.
    pub person: u64,
    /// Recorded steps that the replay has not come to, because the rules ended the episode or the robot was stopped.
    pub not_reached: u64,
    /// The fault for which the robot would have been stopped.
    pub stopped: Option<String>,
}

/// Everything that was replayed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Replayed {
    /// Engine that ran the policy.
    pub engine: String,
    /// All compared steps.
    pub all: Agreement,
    /// By recorded policy generation.
    pub generations: BTreeMap<u32, Agreement>,
    /// The episodes.
    pub episodes: Vec<EpisodeReplay>,
    /// Time of one tick in microseconds: median, 99 of 100, the longest.
    pub tick_us: [f64; 3],
}

/// Runs the records of whole or partial episodes, which lie one behind the other, through the control loop that
/// `config` describes, each with its camera frame where it has one. `clock` may be any: nothing that is compared depends
/// on it.
///
/// # Errors
/// When the policy is refused, or the records do not fit the robot.
pub fn replay(
    config: &Config,
    policy: Source<'_>,
    recording: &Recording,
    clock: &Clock,
    each: &mut dyn FnMut(&EpisodeReplay),
) -> Result<Replayed, RuntimeError> {
    let prepared = policy.prepare(&config.robot.spaces, &config.policy)?;
    checks::frame(prepared.report.frame, recording.frame_shape()).map_err(PolicyError::from)?;
    let records = recording.records();
    let engine = prepared.report.engine.to_owned();
    let (slot, _handover) = policy_slot(Offer { policy: prepared.backend, generation: 0 });
    let description = RobotDescription {
        observation_dim: config.robot.spaces.observation_dim(),
        action_dim: config.robot.spaces.action_dim(),
        control_period: period(config),
        watchdog: Duration::from_millis(u64::from(config.robot.command_valid_ms)),
        firmware: 0,
        boot_id: 0,
    };
    let robot = PlaybackRobot::new(records.to_vec(), description, clock.clone())?;
    let (producer, steps) = step_queue();
    let first = records.first().map_or(0, |record| record.episode);
    let (frames, sight) = frame_queue();
    let mut control = ControlLoop::new(
        Box::new(robot),
        slot,
        producer,
        Arc::new(ControlCounters::default()),
        clock.clone(),
        control_settings(config, config.policy.exploration, first, 0, &Arc::default(), &Arc::default()),
        stream(config.run.seed, EXPLORATION),
    );
    if recording.frame_shape().is_some() {
        control = control.with_camera(Sight::new(sight, Arc::default(), Pace::Newest(Duration::MAX)));
    }
    let times = Histogram::default();
    let mut player = Player {
        control,
        steps,
        recording,
        frames,
        record: StepRecord::default(),
        clock,
        period: period(config),
        times,
    };
    player.show(0)?;
    player.control.start()?;
    let mut replayed = Replayed { engine, ..Replayed::default() };
    let mut first = 0;
    for episode in records.chunk_by(|a, b| a.episode == b.episode) {
        let found = player.episode(first, episode, &mut replayed.generations)?;
        first += episode.len();
        replayed.all.add(&found.agreement);
        each(&found);
        replayed.episodes.push(found);
    }
    let us = |share| player.times.quantile(share).as_secs_f64() * 1e6;
    replayed.tick_us = [us(0.5), us(0.99), player.times.longest().as_secs_f64() * 1e6];
    Ok(replayed)
}

/// The control loop and what is seen of it.
struct Player<'a> {
    control: ControlLoop,
    steps: StepConsumer,
    recording: &'a Recording,
    frames: FrameProducer,
    /// The record that is played, and a share of its frame.
    record: StepRecord,
    clock: &'a Clock,
    period: Duration,
    times: Histogram,
}

/// What the policy said and wanted in a tick.
#[derive(Default)]
struct Wanted {
    output: PolicyOutput,
    action: Vec<f32>,
}

impl Player<'_> {
    /// Puts the frame of a record in front of the control loop.
    fn show(&mut self, index: usize) -> Result<(), RuntimeError> {
        self.recording.get(index, &mut self.record)?;
        if let Some(frame) = &self.record.frame {
            // The loop takes it in every tick.
            let _ = self.frames.push(Arc::clone(frame));
        }
        Ok(())
    }

    /// `first`: index of the episode's first record.
    fn episode(
        &mut self,
        first: usize,
        recorded: &[StepRecord],
        generations: &mut BTreeMap<u32, Agreement>,
    ) -> Result<EpisodeReplay, RuntimeError> {
        let number = recorded[0].episode;
        let mut found = EpisodeReplay { episode: number, ..EpisodeReplay::default() };
        self.control.go_to(number, recorded[0].step)?;
        while self.steps.pop().is_some() {}
        let is_step = |record: &&StepRecord| !record.flags.contains(StepFlags::OBSERVATION_ONLY);
        // What followed the last record is not known.
        found.not_reached = recorded[..recorded.len() - 1].iter().filter(is_step).count() as u64;
        let mut wanted = Wanted::default();
        for index in first.. {
            self.show(index.min(first + recorded.len() - 1))?;
            let begin = clock::precise();
            let ticked = self.control.tick();
            self.times.add(clock::precise().saturating_sub(begin));
            self.clock.advance(self.period);
            while let Some(step) = self.steps.pop() {
                let at = recorded.binary_search_by_key(&step.step, |record| record.step).ok();
                let then = at.map(|at| &recorded[at]).filter(is_step);
                if let Some(then) = then.filter(|_| !step.action.is_empty()) {
                    found.not_reached -= 1;
                    found.take(then, &step.action, &wanted, generations);
                }
            }
            wanted.take(&self.control);
            match ticked {
                Ok(()) if self.control.episode() == number => {}
                Ok(()) | Err(Fault::Robot(RobotError::EndOfRecording { .. })) => break,
                Err(fault) => {
                    found.stopped = Some(fault.to_string());
                    break;
                }
            }
        }
        Ok(found)
    }
}

impl Wanted {
    fn take(&mut self, control: &ControlLoop) {
        let (output, action) = control.chosen();
        (self.output, self.action) = (output.clone(), action.to_vec());
    }
}

impl EpisodeReplay {
    fn take(&mut self, then: &StepRecord, action: &[f32], wanted: &Wanted, generations: &mut BTreeMap<u32, Agreement>) {
        self.recorded_return += f64::from(then.reward);
        let limits = || wanted.action.iter().zip(action).map(|(wanted, sent)| (wanted - sent).abs());
        if wanted.action.iter().all(|value| value.is_finite()) {
            self.limited += u64::from(limits().any(|change| change > 0.0));
            self.limited_by = limits().fold(self.limited_by, f32::max);
        } else {
            self.bad_actions += 1;
        }
        if then.flags.contains(StepFlags::INTERVENTION) {
            self.person += 1;
            return;
        }
        let largest = self.agreement.largest;
        self.agreement.compare(&then.action, action);
        generations.entry(then.policy_generation).or_default().compare(&then.action, action);
        let mut entries = then.action.iter().zip(action).enumerate();
        let different = |(entry, (recorded, replayed)): (usize, (&f32, &f32))| Difference {
            step: then.step,
            entry,
            recorded: *recorded,
            replayed: *replayed,
        };
        if self.agreement.largest > largest || self.worst.is_none() {
            self.worst = entries.clone().max_by(|a, b| gap(a.1).total_cmp(&gap(b.1))).map(different);
        }
        if self.first.is_none() {
            self.first = entries.find(|(_, (a, b))| a.to_bits() != b.to_bits()).map(different);
        }
        let deviation = |entry: usize, action: f32| {
            let PolicyOutput { mean, std, base, scale, .. } = &wanted.output;
            let own = (action - base[entry]) / scale;
            let before_tanh = own.clamp(-0.999_999, 0.999_999).atanh();
            f64::from((before_tanh - mean[entry]).abs() / std[entry].max(f32::MIN_POSITIVE))
        };
        let count = then.action.len().min(wanted.output.action_dim).min(MAX_ACTION);
        let mean: f64 = (0..count).map(|entry| deviation(entry, then.action[entry])).sum::<f64>() / count.max(1) as f64;
        self.deviations += (mean - self.deviations) / self.agreement.steps as f64;
    }
}

fn gap((recorded, replayed): (&f32, &f32)) -> f32 {
    (recorded - replayed).abs()
}
