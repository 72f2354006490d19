//! The learner in its place: how many updates are due, when a policy goes out, when a checkpoint is written.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::effort::Effort;
use super::event::Event;
use super::parts::{RuntimeError, Shared, lock};
use crate::clock;
use crate::config::{Cadence, Config, DeviceKind, LearnerConfig};
use crate::learner::{Dims, Learner, LearnerError, LearnerMemory, Schedule, UpdateMetrics, advise, choose};
use crate::nn::weights::{ActorWeights, EnsembleWeights};
use crate::policy::residual::Frozen;
use crate::replay::Replay;
use crate::spaces::FrameShape;

/// Updates the summary of losses looks back on.
const WINDOW: usize = 100;

/// A learner with its schedule.
pub(super) struct Trainer {
    learner: Learner,
    schedule: Schedule,
    effort: Effort,
    replay: Arc<Mutex<Replay>>,
    shared: Arc<Shared>,
    checkpoint: PathBuf,
    checkpoint_every: u64,
    diagnose_every: u64,
    advice: Vec<String>,
    publish_every: u64,
    burst: bool,
    unpublished: u64,
    recent: VecDeque<UpdateMetrics>,
    first_update: u64,
    cpu: Duration,
    wall: Duration,
}

/// `[learner]` with a device that has made an update, in the place of "auto" as well.
fn settings(
    weights: &EnsembleWeights,
    dims: Dims,
    config: &Config,
    shared: &Shared,
) -> Result<LearnerConfig, RuntimeError> {
    if config.learner.device == DeviceKind::Cpu {
        return Ok(config.learner.clone());
    }
    let chosen = choose(weights, dims, &config.learner, &config.replay)?;
    shared.tell(Event::Note(chosen.why));
    Ok(LearnerConfig { device: chosen.device, ..config.learner.clone() })
}

/// Refuses networks that see where the replay has nothing to see, or where they stand on a policy of its own.
fn sight(weights: &EnsembleWeights, residual: bool, stored: Option<FrameShape>) -> Result<(), LearnerError> {
    let Some(eyes) = &weights.actor.eyes else { return Ok(()) };
    let refuse = |key, reason: String| Err(LearnerError::Setting { key, reason });
    if residual {
        return refuse("policy.base", "a residual that sees images cannot learn; use policies without a base".into());
    }
    if stored != Some(eyes.shape) {
        let FrameShape { width, height, channels } = eyes.shape;
        let found = stored.map_or_else(|| "none".into(), |s| format!("{} x {} x {}", s.width, s.height, s.channels));
        let reason = format!(
            "the networks see images of {width} x {height} x {channels}, the replay has {found}: offline data and camera \
             must both have the size of the bundle's images"
        );
        return refuse("learner.trunk", reason);
    }
    Ok(())
}

/// [`LearnerMemory::check`] on this machine.
fn room(need: &LearnerMemory) -> Result<Option<String>, RuntimeError> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    Ok(need.check(&read("/proc/meminfo"), &read("/proc/device-tree/model"))?)
}

impl Trainer {
    /// From the checkpoint of the run folder where there is one, else from the bundle's weights; on `base` if they are a
    /// residual.
    pub(super) fn new(
        weights: &EnsembleWeights,
        base: Option<Frozen>,
        config: &Config,
        replay: Arc<Mutex<Replay>>,
        shared: Arc<Shared>,
    ) -> Result<Self, RuntimeError> {
        let spaces = &config.robot.spaces;
        let checkpoint = config.run.directory.join("checkpoint");
        let dims = Dims::from(spaces);
        sight(weights, base.is_some(), lock(&replay).frame_shape())?;
        if let Some(warning) = room(&LearnerMemory::new(weights, dims, &config.learner))? {
            shared.tell(Event::Note(warning));
        }
        let settings = settings(weights, dims, config, &shared)?;
        let learner = if checkpoint.exists() {
            let (learner, state) = Learner::load(&checkpoint, dims, &settings, &config.replay, base)?;
            lock(&replay).restore(&state)?;
            shared.tell(Event::Note(format!("learner goes on at update {}", learner.updates())));
            learner
        } else {
            Learner::new(weights, dims, &settings, &config.replay, config.run.seed)?.on_base(base)
        };
        shared.updates.store(learner.updates(), Relaxed);
        Ok(Self {
            first_update: learner.updates(),
            learner,
            schedule: Schedule::new(&config.learner),
            effort: Effort::new(config, &shared),
            replay,
            shared,
            checkpoint,
            checkpoint_every: config.learner.checkpoint_every,
            diagnose_every: config.learner.diagnose_every,
            advice: Vec::new(),
            publish_every: config.policy.publish_every,
            burst: config.learner.cadence == Cadence::Burst,
            unpublished: 0,
            recent: VecDeque::with_capacity(WINDOW),
            cpu: Duration::ZERO,
            wall: Duration::ZERO,
        })
    }

    /// Goes on from the networks that were put into its place, if there are any; a snapshot made before is of no use
    /// then. Networks that do not fit leave the learner as it is.
    pub(super) fn adopt(&mut self) -> bool {
        let Some(weights) = lock(&self.shared.adoption).take() else { return false };
        let updates = self.learner.updates();
        self.shared.tell(Event::Note(match self.learner.adopt(&weights) {
            Ok(()) => format!("the learner goes on from the policy that was swapped in, at update {updates}"),
            Err(error) => format!("the learner keeps its own networks: {error}"),
        }));
        self.unpublished = 0;
        true
    }

    /// Updates due for the steps so far.
    pub(super) fn due(&self) -> u64 {
        let steps = self.shared.online_steps.load(Relaxed);
        self.schedule.due(steps, self.learner.updates())
    }

    /// Time until the next update may begin, zero for now; `None` when none is due or it is too hot. Only a run in real
    /// time asks.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        let due = self.due();
        self.effort.rest(due).filter(|_| due > 0)
    }

    /// One update; returns the actors when it is time to publish them.
    pub(super) fn update(&mut self) -> Result<Option<ActorWeights>, RuntimeError> {
        let begin = clock::monotonic();
        let made = self.make();
        self.effort.worked(begin);
        made
    }

    fn make(&mut self) -> Result<Option<ActorWeights>, RuntimeError> {
        if self.learner.updates() == 0 {
            self.diagnose(true);
        }
        let (cpu, wall) = (clock::thread_cpu(), clock::monotonic());
        let metrics = self.learner.update(&self.replay)?;
        self.cpu += clock::thread_cpu().saturating_sub(cpu);
        self.wall += clock::monotonic().since(wall);
        let updates = self.learner.updates();
        self.shared.updates.store(updates, Relaxed);
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(metrics);
        if updates.is_multiple_of(10) {
            self.shared.tell(Event::Update { updates, metrics });
        }
        if self.diagnose_every > 0 && updates.is_multiple_of(self.diagnose_every) {
            self.diagnose(false);
        }
        if self.checkpoint_every > 0 && updates.is_multiple_of(self.checkpoint_every) {
            self.save()?;
        }
        self.unpublished += 1;
        // A burst ends with the policy that the next steps are collected with.
        let burst_over = self.burst && self.due() == 0;
        if self.unpublished >= self.publish_every && !self.burst || burst_over {
            self.unpublished = 0;
            return Ok(Some(self.learner.actor()?));
        }
        Ok(None)
    }

    /// Looks at the newest steps; the first time, `start`, it says in words what it found. A look that fails is no
    /// reason to stop learning.
    pub(super) fn diagnose(&mut self, start: bool) {
        match self.learner.diagnose(&self.replay, start) {
            Ok(Some(diagnosis)) => {
                if start {
                    self.advice = advise(&diagnosis).lines;
                    self.shared.tell(Event::Note("after the warm-up:".into()));
                    self.advice.iter().for_each(|line| self.shared.tell(Event::Note(format!("  {line}"))));
                }
                self.shared.tell(Event::Diagnosis(diagnosis));
            }
            Ok(None) => {}
            Err(error) => log::warn!("no diagnosis at update {}: {error}", self.learner.updates()),
        }
    }

    /// What the diagnosis after the warm-up said.
    pub(super) fn advice(&self) -> Vec<String> {
        self.advice.clone()
    }

    /// Writes the checkpoint.
    pub(super) fn save(&mut self) -> Result<(), RuntimeError> {
        let state = {
            let mut replay = lock(&self.replay);
            replay.save_priorities()?;
            replay.state()
        };
        self.learner.save(&self.checkpoint, &state)?;
        Ok(())
    }

    /// The ensemble as it is.
    pub(super) fn weights(&self) -> Result<EnsembleWeights, RuntimeError> {
        Ok(self.learner.weights()?)
    }

    /// Updates done by updates allowed.
    pub(super) fn realised_ratio(&self) -> f64 {
        let steps = self.shared.online_steps.load(Relaxed);
        self.learner.updates() as f64 / self.schedule.total(steps).max(1) as f64
    }

    /// Updates per second of wall time and of CPU time, over the updates of this process.
    pub(super) fn rates(&self) -> (f64, f64) {
        let updates = (self.learner.updates() - self.first_update) as f64;
        let rate = |time: Duration| if time.is_zero() { 0.0 } else { updates / time.as_secs_f64() };
        (rate(self.wall), rate(self.cpu))
    }

    /// Means over the last updates, and the offline share among them.
    pub(super) fn losses(&self) -> (Value, f64) {
        let n = self.recent.len().max(1) as f64;
        let mean = |f: fn(&UpdateMetrics) -> f32| self.recent.iter().map(|m| f64::from(f(m))).sum::<f64>() / n;
        // Over the updates that have the number.
        let mean_of = |f: fn(&UpdateMetrics) -> Option<f32>| {
            let found: Vec<f64> = self.recent.iter().filter_map(f).map(f64::from).collect();
            (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
        };
        let ages: Vec<f64> = (0..self.recent.front().map_or(0, |m| m.age_shares.len()))
            .map(|class| self.recent.iter().map(|m| f64::from(m.age_shares[class])).sum::<f64>() / n)
            .collect();
        let values = json!({
            "critic": mean(|m| m.critic_loss),
            "actor": mean(|m| m.actor_loss),
            "temperature": mean(|m| m.temperature),
            "entropy": mean(|m| m.entropy),
            "q_mean": mean(|m| m.q_mean),
            "penalty": mean(|m| m.penalty),
            "action_saturation": mean(|m| m.action_saturation),
            "disagreement_share": mean(|m| m.disagreement_share),
            "td_error_offline": mean_of(|m| m.td_error_offline),
            "td_error_online": mean_of(|m| m.td_error_online),
            "zero_share": mean_of(|m| m.density.map(|d| d.zero_share)),
            "clipped_low_share": mean_of(|m| m.density.map(|d| d.clipped_low_share)),
            "clipped_high_share": mean_of(|m| m.density.map(|d| d.clipped_high_share)),
            "age_shares": ages,
            "density": mean(|m| m.density.map_or(0.0, |d| d.loss)),
            "js_estimate": mean(|m| m.density.map_or(0.0, |d| d.js_estimate)),
        });
        (values, mean(|m| m.offline_share))
    }

    /// CPU milliseconds per update of each part.
    pub(super) fn parts_ms(&self) -> Value {
        let t = self.learner.timings();
        let updates = (self.learner.updates() - self.first_update).max(1) as f64;
        let ms = |part: Duration| part.as_secs_f64() * 1000.0 / updates;
        json!({
            "sampling": ms(t.sampling), "density": ms(t.density), "target": ms(t.target),
            "critic_forward": ms(t.critic_forward), "critic_backward": ms(t.critic_backward),
            "actor": ms(t.actor), "optimiser": ms(t.optimiser),
        })
    }
}
