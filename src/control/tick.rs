//! One control step.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use firmware_bridge::{DriveState, Limited, Limiter, Limits, MAX_ACTION};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::outcome::{Outcome, Rules};
use super::person::{Chosen, Person};
use super::queue::StepProducer;
use super::sight::Sight;
use super::swap::{PolicySlot, Swapped};
use crate::clock::{Clock, Stamp};
use crate::config::Exploration;
use crate::policy::PolicyOutput;
use crate::robot::{Observed, Robot, RobotError};
use crate::spaces::{StepFlags, StepRecord};
use crate::telemetry::{ControlCounters, RobotSummary};

/// Settings of a control loop.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// One control period.
    pub period: Duration,
    /// Time limit of an episode, in steps.
    pub max_steps: u32,
    /// How actions are taken from the policy.
    pub exploration: Exploration,
    /// Limits of every action.
    pub limits: Limits,
    /// When an episode is a success or a failure, and what a step is worth.
    pub rules: Rules,
    /// A person who may take over.
    pub person: Person,
    /// Ticks without a fresh observation before the action is held at zero.
    pub stale_steps: u32,
    /// Ticks without a fresh observation before the robot is stopped.
    pub lost_steps: u32,
    /// Ticks a reset may take.
    pub reset_steps: u32,
    /// Number of the first episode.
    pub first_episode: u32,
    /// Seed of the start states; episode `e` starts from `start_seed + e`.
    pub start_seed: u64,
}

/// Why the robot had to be stopped. Constructible without the heap.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The link or the robot's answer failed.
    #[error("robot: {0}")]
    Robot(#[from] RobotError),
    /// The robot's drive latched a fault by itself.
    #[error("the robot's drive is in FAULT (bits {bits:#06x}); clear the cause, then start again")]
    Drive {
        /// Fault bits of the STATE frame.
        bits: u16,
    },
    /// No fresh observation for too long.
    #[error("no fresh observation for {ticks} control steps (safety.lost_steps); check the link")]
    Lost {
        /// Ticks without one.
        ticks: u32,
    },
    /// The robot did not come back from a reset.
    #[error("the robot did not start episode {episode} within {ticks} control steps")]
    Reset {
        /// The episode asked for.
        episode: u32,
        /// Ticks waited.
        ticks: u32,
    },
    /// The robot sends something that is not a finite number.
    #[error("the robot's {what} is not a finite number; look at its sensors, then start again")]
    NotFinite {
        /// What it is.
        what: &'static str,
    },
    /// The drive is disarmed although nobody here asked for it.
    #[error(
        "the robot's drive was disarmed during an episode: its microcontroller has restarted, or another host has \
         taken it; check its power, then start again"
    )]
    Restarted,
    /// The person in control is silent, and the robot is to be stopped then.
    #[error(
        "the commands of the person in control stopped coming (intervention.lost = \"stop\"); look at the source and \
         its link, then start again"
    )]
    PersonLost,
    /// No image to act on for too long.
    #[error(
        "no image to act on for {ticks} control steps (safety.lost_steps): the camera sends none, old ones, or the same again and again; check it, then start again"
    )]
    Blind {
        /// Ticks without one.
        ticks: u32,
    },
    /// The policy failed; the action before was not repeated.
    #[error("the policy failed on a fresh observation")]
    Policy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for the robot to stand at the start of the episode.
    Resetting,
    /// In an episode.
    Running,
}

/// The robot, stopped when this is dropped while it may still move: on a fault, a panic, any early return.
struct Guarded {
    robot: Box<dyn Robot>,
    moving: bool,
}

impl Guarded {
    fn stop(&mut self) {
        if std::mem::take(&mut self.moving) {
            self.robot.stop();
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The control loop: everything one tick needs, allocated once. Dropping it stops the robot.
pub struct ControlLoop {
    robot: Guarded,
    slot: PolicySlot,
    steps: StepProducer,
    counters: Arc<ControlCounters>,
    clock: Clock,
    settings: ControlSettings,
    rng: ChaCha8Rng,
    limiter: Limiter,
    sight: Option<Sight>,
    observed: Observed,
    output: PolicyOutput,
    pending: Option<StepRecord>,
    phase: Phase,
    episode: u32,
    /// Where an episode begins: 0, but for recordings that begin within one.
    first_tick: u32,
    without_fresh: u32,
    gap: bool,
    age: Option<Duration>,
    /// The newest action before the limits.
    wanted: [f32; MAX_ACTION],
}

impl ControlLoop {
    /// A loop that has not moved yet; [`ControlLoop::start`] arms the robot.
    ///
    /// The noise of a step is a function of `rng`'s key, episode and step alone: whatever happened before, the same
    /// step with the same policy gives the same action.
    pub fn new(
        robot: Box<dyn Robot>,
        slot: PolicySlot,
        steps: StepProducer,
        counters: Arc<ControlCounters>,
        clock: Clock,
        settings: ControlSettings,
        rng: ChaCha8Rng,
    ) -> Self {
        let limiter = Limiter::new(settings.limits);
        let episode = settings.first_episode;
        counters.generation.store(u64::from(slot.generation()), Relaxed);
        Self {
            robot: Guarded { robot, moving: false },
            slot,
            steps,
            counters,
            clock,
            settings,
            rng,
            limiter,
            sight: None,
            observed: Observed::default(),
            output: PolicyOutput::default(),
            pending: None,
            phase: Phase::Resetting,
            episode,
            first_tick: 0,
            without_fresh: 0,
            gap: false,
            age: None,
            wanted: [0.0; MAX_ACTION],
        }
    }

    /// With a camera: its image belongs to every observation.
    #[must_use]
    pub fn with_camera(mut self, sight: Sight) -> Self {
        self.sight = Some(sight);
        self
    }

    /// Arms the robot, sends it to the start of the first episode and waits for the first image of a camera. Not part of
    /// a tick: it may wait.
    ///
    /// # Errors
    /// When the robot does not answer or refuses, or no image comes within the reset time.
    pub fn start(&mut self) -> Result<(), Fault> {
        self.robot.moving = true;
        self.robot.robot.arm()?;
        self.robot.robot.request_reset(self.episode, self.start_seed())?;
        let patience = self.settings.period * self.settings.reset_steps;
        if self.sight.as_mut().is_some_and(|sight| !sight.open(patience)) {
            return Err(Fault::Blind { ticks: self.settings.reset_steps });
        }
        self.count_episode();
        Ok(())
    }

    /// Leaves the episode under way, whose last step is no transition, for step `tick` of `episode`. For robots that
    /// play recordings.
    ///
    /// # Errors
    /// When the robot refuses.
    pub fn go_to(&mut self, episode: u32, tick: u32) -> Result<(), Fault> {
        (self.episode, self.first_tick) = (episode, tick);
        (self.pending, self.gap) = (None, false);
        self.await_reset();
        Ok(self.robot.robot.request_reset(episode, self.start_seed())?)
    }

    /// Waits until the robot stands at the start of the episode and returns when its answer arrived, so that
    /// the first deadline can be put between two of its own. Only before the first tick.
    ///
    /// # Errors
    /// When it does not come within the reset time.
    pub fn find_phase(&mut self) -> Result<Stamp, Fault> {
        let until = self.clock.now().plus(self.settings.period * self.settings.reset_steps);
        let mut seen = 0;
        while self.clock.now() < until {
            self.sight.iter_mut().for_each(Sight::follow);
            if self.robot.robot.observe(&mut self.observed)? && self.observed.episode == self.episode {
                seen += 1;
                // The first may have waited in the socket; the second arrives as the robot sends it.
                if seen == 2 {
                    return Ok(self.clock.now());
                }
            }
            self.clock.sleep_until(self.clock.now().plus(Duration::from_micros(500)));
        }
        Err(Fault::Reset { episode: self.episode, ticks: self.settings.reset_steps })
    }

    /// One control step: observe, record the step that ended, act, take a waiting policy.
    ///
    /// # Errors
    /// The fault for which the robot has to be stopped; the caller calls [`ControlLoop::stop`].
    #[cfg_attr(feature = "rtsan", rtsan_standalone::nonblocking)]
    pub fn tick(&mut self) -> Result<(), Fault> {
        let before = (self.observed.episode, self.observed.tick);
        let fresh = self.robot.robot.observe(&mut self.observed)?;
        self.sight.iter_mut().for_each(Sight::follow);
        self.count_link();
        if fresh {
            self.accept()?;
        }
        let advanced = fresh && before != (self.observed.episode, self.observed.tick);
        let clocked = advanced && self.robot.robot.clock_estimate().is_some();
        self.age = clocked.then(|| self.clock.now().since(self.observed.capture));
        match self.phase {
            Phase::Resetting => self.await_start()?,
            Phase::Running if advanced => {
                self.without_fresh = 0;
                self.look()?;
                self.close_step();
                if self.phase == Phase::Running {
                    self.act()?;
                }
            }
            Phase::Running => self.without_observation()?,
        }
        self.take_policy();
        Ok(())
    }

    /// How old the state was that the last tick used; `None` without a new one, or while the robot's clock is not known.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Stops the robot after a fault; it stays stopped.
    pub fn stop(&mut self) {
        self.robot.stop();
    }

    /// Ends orderly: the step in flight is not a transition, the drive is disarmed.
    pub fn finish(mut self) {
        if let Some(mut last) = self.pending.take() {
            last.flags.insert(StepFlags::OBSERVATION_ONLY);
            self.push(last);
        }
        if std::mem::take(&mut self.robot.moving) {
            self.robot.robot.disarm();
        }
    }

    /// Number of the present episode.
    pub fn episode(&self) -> u32 {
        self.episode
    }

    /// What the policy said last, and the action drawn from it before the limits, `(action_dim)`.
    pub fn chosen(&self) -> (&PolicyOutput, &[f32]) {
        (&self.output, &self.wanted[..self.output.action_dim.min(MAX_ACTION)])
    }

    fn start_seed(&self) -> u64 {
        self.settings.start_seed.wrapping_add(u64::from(self.episode))
    }

    /// Whether a fresh state may be acted on.
    fn accept(&mut self) -> Result<(), Fault> {
        let observed = &mut self.observed;
        match observed.drive {
            DriveState::Fault => return Err(Fault::Drive { bits: observed.faults.0 }),
            DriveState::Disarmed if self.phase == Phase::Running => return Err(Fault::Restarted),
            _ => {}
        }
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        for (what, is_finite) in [
            ("observation", finite(&observed.observation)),
            ("applied action", finite(&observed.applied)),
            ("reward", !observed.reward_valid || observed.reward.is_finite()),
        ] {
            if !is_finite {
                return Err(Fault::NotFinite { what });
            }
        }
        // Arithmetic with subnormal numbers can take a hundred times as long.
        observed.observation.iter_mut().filter(|value| value.is_subnormal()).for_each(|value| *value = 0.0);
        Ok(())
    }

    fn await_start(&mut self) -> Result<(), Fault> {
        let arrived = !self.observed.observation.is_empty();
        if arrived && self.observed.episode == self.episode && self.observed.tick == self.first_tick {
            self.phase = Phase::Running;
            self.without_fresh = 0;
            self.limiter.reset();
            self.settings.rules.reset();
            self.look()?;
            return self.act();
        }
        self.without_fresh += 1;
        if self.without_fresh > self.settings.reset_steps {
            return Err(Fault::Reset { episode: self.episode, ticks: self.without_fresh });
        }
        Ok(())
    }

    /// The image of a new observation.
    fn look(&mut self) -> Result<(), Fault> {
        let Some(sight) = &mut self.sight else { return Ok(()) };
        sight.look(self.clock.now(), self.observed.robot_us);
        let ticks = sight.blind();
        self.counters.blind.fetch_add(u64::from(ticks > 0), Relaxed);
        if ticks >= self.settings.lost_steps { Err(Fault::Blind { ticks }) } else { Ok(()) }
    }

    /// Whether the action is held at zero for want of an image.
    fn holds_for_sight(&self) -> bool {
        self.sight.as_ref().is_some_and(|sight| sight.blind() >= self.settings.stale_steps)
    }

    /// The step that started at the observation before has ended in this one: it becomes a record with the
    /// action and reward that the robot reports. While the action is held for want of an image there are no
    /// transitions: nobody knows what would have been seen. Ends the episode where the task or the time limit does.
    fn close_step(&mut self) {
        let blind = self.holds_for_sight();
        let (observed, rules) = (&self.observed, &mut self.settings.rules);
        let outcome = if observed.terminated { None } else { rules.judge(self.episode, &observed.observation) };
        let terminated = observed.terminated || outcome.is_some();
        let over = terminated || observed.tick >= self.settings.max_steps;
        if let Some(mut step) = self.pending.take() {
            let reward = rules.reward(observed.reward_valid.then_some(observed.reward), outcome);
            if let Some(reward) = reward.filter(|_| observed.tick == step.step + 1 && !blind) {
                step.action.clear();
                let _ = step.action.extend_from_slice(&observed.applied);
                step.reward = reward;
                step.flags.insert(outcome.map(Outcome::flag).unwrap_or_default());
                if terminated {
                    step.flags.insert(StepFlags::TERMINATED);
                } else if over {
                    step.flags.insert(StepFlags::TRUNCATED);
                }
            } else {
                // States in between are lost: what was applied then is not known, so no transition is made.
                let missed = u64::from(observed.tick.saturating_sub(step.step + 1));
                self.counters.missed_states.fetch_add(missed, Relaxed);
                step.flags.insert(StepFlags::OBSERVATION_ONLY);
                self.gap = true;
            }
            self.push(step);
        }
        match outcome {
            Some(Outcome::Success) => ControlCounters::count(&self.counters.successes),
            Some(Outcome::Failure) => ControlCounters::count(&self.counters.failures),
            None => {}
        }
        if over {
            let mut last = self.record();
            last.flags.insert(StepFlags::OBSERVATION_ONLY);
            self.push(last);
            self.begin_episode();
        }
    }

    fn begin_episode(&mut self) {
        self.episode += 1;
        self.first_tick = 0;
        self.await_reset();
        // A send that fails shows as a reset that does not come: `Fault::Reset`.
        let _ = self.robot.robot.request_reset(self.episode, self.start_seed());
        self.count_episode();
    }

    fn count_episode(&self) {
        ControlCounters::count(&self.counters.episodes);
        self.counters.episode.store(u64::from(self.episode), Relaxed);
    }

    fn await_reset(&mut self) {
        self.phase = Phase::Resetting;
        self.without_fresh = 0;
    }

    /// Policy, limits, robot.
    fn act(&mut self) -> Result<(), Fault> {
        if self.holds_for_sight() {
            return self.hold();
        }
        let image = self.sight.as_ref().and_then(Sight::frame).map_or(&[][..], |frame| &frame.pixels);
        let inferred = self.slot.policy().infer(&self.observed.observation, image, &mut self.output);
        inferred.map_err(|_| Fault::Policy)?;
        self.rng.set_stream(u64::from(self.episode) << 32 | u64::from(self.observed.tick));
        self.rng.set_word_pos(0);
        let mut action = [0.0f32; MAX_ACTION];
        let action = &mut action[..self.output.action_dim];
        for (d, entry) in action.iter_mut().enumerate() {
            // Eq. 5: one Gaussian for the ensemble, squashed once.
            let noise: f32 = match self.settings.exploration {
                Exploration::Stochastic => StandardNormal.sample(&mut self.rng),
                Exploration::Deterministic => 0.0,
            };
            *entry = self.output.action(d, noise);
        }
        let chosen = self.settings.person.mix(self.clock.now(), action);
        match chosen {
            Chosen::Policy => {}
            Chosen::Person => ControlCounters::count(&self.counters.person_steps),
            Chosen::Nobody => ControlCounters::count(&self.counters.person_silent),
            Chosen::Stop => return Err(Fault::PersonLost),
        }
        self.wanted[..action.len()].copy_from_slice(action);
        match self.limiter.limit(action) {
            Limited::No => {}
            Limited::Yes => ControlCounters::count(&self.counters.limited_actions),
            Limited::NotFinite => ControlCounters::count(&self.counters.bad_actions),
        }
        self.robot.robot.apply(action)?;
        if let Some(age) = self.sight.as_ref().and_then(|sight| sight.age(self.clock.now())) {
            self.counters.image_to_action.add(age);
        }
        let mut step = self.record();
        if chosen == Chosen::Person {
            step.flags.insert(StepFlags::INTERVENTION);
        }
        let _ = step.action.extend_from_slice(action);
        self.pending = Some(step);
        Ok(())
    }

    fn without_observation(&mut self) -> Result<(), Fault> {
        ControlCounters::count(&self.counters.stale);
        self.without_fresh += 1;
        if self.without_fresh >= self.settings.lost_steps {
            return Err(Fault::Lost { ticks: self.without_fresh });
        }
        if self.without_fresh >= self.settings.stale_steps { self.hold() } else { Ok(()) }
    }

    /// The action is zero.
    fn hold(&mut self) -> Result<(), Fault> {
        let zero = [0.0f32; MAX_ACTION];
        Ok(self.robot.robot.apply(&zero[..self.slot.policy().action_dim().min(MAX_ACTION)])?)
    }

    /// What both ends of the link counted, for whoever asks.
    fn count_link(&self) {
        let (link, robot) = (self.robot.robot.counters(), self.observed.counters);
        let clock = self.robot.robot.clock_estimate().unwrap_or_default();
        self.counters.robot.store(RobotSummary {
            sent: link.sent,
            send_dropped: link.send_dropped,
            received: link.received,
            crc_errors: link.crc_errors,
            malformed: link.malformed,
            sequence_gaps: link.sequence_gaps,
            robot_crc_errors: robot.crc_errors.into(),
            robot_sequence_gaps: robot.sequence_gaps.into(),
            robot_late_commands: robot.late_commands.into(),
            robot_rejected_commands: robot.rejected_commands.into(),
            robot_overruns: robot.overruns.into(),
            clock_offset_us: clock.offset_us as i64,
            clock_drift_ppb: (clock.drift_ppm * 1e3) as i64,
            clock_uncertainty_us: clock.uncertainty_us,
            clock_exchanges: clock.exchanges,
        });
    }

    fn take_policy(&mut self) {
        if self.observed.observation.is_empty() {
            return;
        }
        let between_episodes = self.phase == Phase::Resetting;
        let image = self.sight.as_ref().and_then(Sight::frame).map_or(&[][..], |frame| &frame.pixels);
        let answer = self.slot.poll(&self.observed.observation, image, &mut self.output, between_episodes);
        let Some((swapped, cost)) = answer else { return };
        self.counters.swap(cost.exchange, cost.first_run);
        ControlCounters::count(match swapped {
            Swapped::Taken => &self.counters.swaps,
            Swapped::RolledBack => &self.counters.rollbacks,
            Swapped::Refused => &self.counters.refused_policies,
        });
        self.counters.generation.store(u64::from(self.slot.generation()), Relaxed);
    }

    /// A record that starts at the present observation.
    fn record(&self) -> StepRecord {
        let mut flags = StepFlags::default();
        if self.without_fresh > 0 || self.sight.as_ref().is_some_and(|sight| sight.blind() > 0) {
            flags.insert(StepFlags::STALE);
        }
        StepRecord {
            episode: self.episode,
            step: self.observed.tick,
            flags,
            policy_generation: self.slot.generation(),
            capture_us: self.observed.capture.0,
            use_us: self.clock.now().0,
            reward: 0.0,
            observation: self.observed.observation.clone(),
            action: heapless::Vec::new(),
            frame: self.sight.as_ref().and_then(Sight::frame).cloned(),
        }
    }

    fn push(&mut self, mut step: StepRecord) {
        if self.gap && !step.flags.contains(StepFlags::OBSERVATION_ONLY) {
            step.flags.insert(StepFlags::GAP);
            self.gap = false;
        }
        let transition = !step.flags.contains(StepFlags::OBSERVATION_ONLY);
        if self.steps.push(step) {
            self.counters.steps.fetch_add(u64::from(transition), Relaxed);
        } else {
            ControlCounters::count(&self.counters.dropped_steps);
            self.gap = true;
        }
    }
}
