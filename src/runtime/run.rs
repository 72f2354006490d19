//! A whole run: folder, parts, learning phase, evaluation before and after, report.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use rand::RngCore;

use super::camera::CameraThread;
use super::child::Simulator;
use super::classifier::Classifier;
use super::evaluate::evaluate;
use super::event::{Event, Observer, UpdateLine};
use super::notify::{Notify, ServiceManager};
use super::parts::{
    EXPLORATION, RuntimeError, Shared, budget, control_settings, lock, longest_age, move_aside, open_replay, period,
    reach_robot, with_camera,
};
use super::person::PersonListener;
use super::publisher::Publisher;
use super::recorder::Recorder;
use super::remote::Remote;
use super::shadow::Kept;
use super::socket::{Asked, Labels, Server};
use super::source::ActionSource;
use super::trainer::Trainer;
use super::{lockstep, realtime, web};
use crate::clock::{self, Clock};
use crate::config::{ClockKind, Config, Existing, Exploration};
use crate::control::{ControlLoop, Fault, Offer, StepConsumer, policy_slot, step_queue};
use crate::learner::stream;
use crate::nn::weights::EnsembleWeights;
use crate::policy::manifest::{Description, Residual};
use crate::policy::residual::{Frozen, ResidualError};
use crate::policy::{AnyBundle, Bundle, PolicyBackend, PolicyError, Prepared, Source, checks};
use crate::replay::Replay;
use crate::telemetry::{EpisodeReturn, FileSink, LatencySummary, Report, Sink};

/// What a run needs besides its configuration.
pub struct RunOptions {
    /// The program to start as `PROGRAM simulate ...` for a simulated robot: this one.
    pub program: PathBuf,
    /// Set by a signal: end orderly.
    pub stop: Arc<AtomicBool>,
    /// Where to serve the live page, if anywhere.
    pub serve: Option<SocketAddr>,
    /// Who chooses the actions.
    pub source: ActionSource,
    /// The service manager that started this process, if one did.
    pub manager: Option<ServiceManager>,
}

impl RunOptions {
    /// Without a live page, with the policy of the configuration.
    pub fn new(program: PathBuf, stop: Arc<AtomicBool>) -> Self {
        Self { program, stop, serve: None, source: ActionSource::Policy, manager: None }
    }
}

/// The parts of the learning phase.
pub(super) struct Work {
    pub control: ControlLoop,
    pub steps: StepConsumer,
    pub recorder: Recorder,
    pub trainer: Option<Trainer>,
    pub publisher: Publisher,
    pub asked: Receiver<Asked>,
    pub shared: Arc<Shared>,
    pub period: Duration,
    pub clock: Clock,
    /// Steps of this process at which the run is complete.
    pub last_step: u64,
}

/// What has to outlive the control loop.
struct World {
    _simulator: Option<Simulator>,
    _camera: Option<CameraThread>,
}

/// Ways in from other processes, and to them.
struct Doors {
    socket: Server,
    person: Option<PersonListener>,
    remote: Option<Remote>,
}

/// How the learning phase ended.
pub(super) struct Ended {
    /// The learner, unless it failed.
    pub trainer: Option<Trainer>,
    /// The fault for which the robot was stopped.
    pub stopped: Option<Fault>,
}

/// Where events go: to the observer, to the metrics file, into the report.
pub(super) struct Outlet<'a> {
    events: Receiver<Event>,
    observer: &'a mut dyn Observer,
    metrics: Box<dyn Sink>,
    report: Report,
    manager: Option<Notify>,
}

impl<'a> Outlet<'a> {
    pub(super) fn new(
        events: Receiver<Event>,
        observer: &'a mut dyn Observer,
        metrics: Box<dyn Sink>,
        report: Report,
    ) -> Self {
        Self { events, observer, metrics, report, manager: None }
    }

    /// With a service manager that is to know how the run is.
    fn telling(self, manager: Option<&ServiceManager>) -> Self {
        Self { manager: manager.and_then(Notify::to), ..self }
    }

    /// What is known so far.
    pub(super) fn report_mut(&mut self) -> &mut Report {
        &mut self.report
    }

    /// At the end.
    pub(super) fn into_report(self) -> Report {
        self.report
    }

    /// Passes on what has come.
    pub(super) fn pump(&mut self, shared: &Shared) {
        while let Ok(event) = self.events.try_recv() {
            self.take(&event);
        }
        self.observer.counters(&shared.counters, shared.updates.load(Relaxed));
        if let Some(manager) = &mut self.manager {
            manager.alive(shared.counters.ticks.load(Relaxed));
        }
    }

    /// Waits a moment for events.
    pub(super) fn wait(&mut self, shared: &Shared) {
        if let Ok(event) = self.events.recv_timeout(self.observer.patience()) {
            self.take(&event);
        }
        self.pump(shared);
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Episode(episode) => {
                self.metrics.record("episode", episode);
                self.report.episodes.push(*episode);
            }
            Event::Update { updates, metrics } => {
                self.metrics.record("update", &UpdateLine { updates: *updates, metrics });
            }
            Event::Diagnosis(diagnosis) => {
                self.metrics.record("diagnosis", diagnosis);
                self.report.diagnoses.push(serde_json::json!(diagnosis));
            }
            Event::Heat { heat, celsius } => {
                self.metrics.record("heat", &serde_json::json!({"heat": heat, "celsius": celsius}));
            }
            Event::Published { generation, prepare_ms } => {
                self.metrics
                    .record("published", &serde_json::json!({"generation": generation, "prepare_ms": prepare_ms}));
            }
            Event::Refused { reason } => {
                self.report.refused_policies += 1;
                self.metrics.record("refused", &serde_json::json!({"reason": reason}));
            }
            Event::RolledBack { generation, reason } => {
                self.report.rolled_back.push(reason.clone());
                self.metrics.record("rolled_back", &serde_json::json!({"generation": generation, "reason": reason}));
            }
            Event::Evaluated { when, returns } => {
                self.metrics.record("evaluated", &serde_json::json!({"when": when, "returns": returns}));
                match *when {
                    "before" => self.report.before.clone_from(returns),
                    _ => self.report.after.clone_from(returns),
                }
            }
            Event::Note(_) | Event::Serving { .. } | Event::Begin { .. } | Event::Evaluating { .. } => {}
        }
        self.observer.event(event);
    }
}

/// A run that has begun: its folder, what it learns from and with.
pub(super) struct Begun<'a> {
    pub shared: Arc<Shared>,
    pub outlet: Outlet<'a>,
    /// Unless something else than a policy chooses the actions.
    pub bundle: Option<AnyBundle>,
    pub replay: Arc<Mutex<Replay>>,
    pub trainer: Option<Trainer>,
    /// Steps an earlier process did.
    pub done: u64,
    pub _page: Option<web::Page>,
}

/// Makes or reopens the folder and everything in it.
pub(super) fn begin<'a>(
    config: &Config,
    options: &RunOptions,
    observer: &'a mut dyn Observer,
) -> Result<Begun<'a>, RuntimeError> {
    let (sender, events) = bounded(4096);
    let shared = Shared::new(sender, Arc::clone(&options.stop));
    shared.total_steps.store(config.run.steps, Relaxed);
    prepare_folder(config, &shared)?;
    let folder = &config.run.directory;
    let page = options.serve.map(|address| web::serve(address, folder, &shared)).transpose()?;
    let bundle = match options.source {
        ActionSource::Policy => Some(AnyBundle::load(&config.policy.bundle)?),
        _ => None,
    };
    if let Some(bundle) = &bundle {
        checks::names(bundle.spaces(), &config.robot.spaces).map_err(PolicyError::from)?;
        if bundle.residual().is_none() && !config.policy.base.as_os_str().is_empty() {
            return Err(PolicyError::from(ResidualError::NoResidual { path: config.policy.bundle.clone() }).into());
        }
    }
    let metrics_path = folder.join("metrics.jsonl");
    let metrics = Box::new(FileSink::append(&metrics_path).map_err(RuntimeError::file(&metrics_path))?);
    let report = Report { robot: config.robot.name.clone(), seed: config.run.seed, ..Report::default() };
    let outlet = Outlet::new(events, observer, metrics, report).telling(options.manager.as_ref());

    let replay = open_replay(config)?;
    if let Some(budget) = budget(config, &replay) {
        shared.tell(Event::Note(budget));
    }
    let replay = Arc::new(Mutex::new(replay));
    let done = lock(&replay).online_transitions();
    if done >= config.run.steps {
        return Err(RuntimeError::Complete { path: folder.clone(), done, steps: config.run.steps });
    }
    shared.online_steps.store(done, Relaxed);
    let trainer = match bundle.as_ref().filter(|_| config.learner.enabled && !config.learner.remote) {
        Some(bundle) => {
            let weights = ensemble(bundle)?.weights();
            let on = bundle.residual().map(|on| Frozen::new(on, &config.robot.spaces, &config.policy)).transpose()?;
            Some(Trainer::new(weights, on, config, Arc::clone(&replay), Arc::clone(&shared))?)
        }
        None => None,
    };
    Ok(Begun { shared, outlet, bundle, replay, trainer, done, _page: page })
}

/// Runs what the configuration describes; events go to `observer`.
///
/// # Errors
/// When the run cannot begin. Once it has begun, failures are in the report.
pub fn run(config: &Config, options: &RunOptions, observer: &mut dyn Observer) -> Result<Report, RuntimeError> {
    let Begun { shared, mut outlet, bundle, replay, trainer, done, _page } = begin(config, options, observer)?;
    let learned = trainer.as_ref().map(Trainer::weights).transpose()?;
    let residual = bundle.as_ref().and_then(AnyBundle::residual);
    let start = match (&learned, &bundle) {
        (Some(weights), _) => Some(Source::Ensemble(&weights.actor, residual)),
        (None, bundle) => bundle.as_ref().map(AnyBundle::source),
    };
    outlet.pump(&shared);
    if let Some(start) = start.filter(|_| done == 0) {
        measure("before", config, start, options, &mut outlet)?;
    }
    shared.tell(Event::Begin { done, total: config.run.steps });
    let prepared = match start {
        Some(policy) => seeing(config, policy.prepare(&config.robot.spaces, &config.policy)?)?,
        None => options.source.backend(config, lock(&replay).online().next_episode()),
    };
    let in_use = start.map(Kept::from);
    let (work, world, doors) =
        assemble(config, options, &shared, &replay, trainer, (prepared, in_use), residual, done, &mut outlet.report)?;
    let begin = clock::monotonic();
    let ended = learn(work, config, doors, &mut outlet)?;
    outlet.manager.iter_mut().for_each(Notify::stopping);
    outlet.report.seconds = clock::monotonic().since(begin).as_secs_f64();
    drop(world);
    finish(config, options, bundle.as_ref(), &shared, &replay, ended, &mut outlet)?;
    outlet.pump(&shared);
    shared.stop.store(true, Relaxed);
    Ok(outlet.report)
}

/// The policy, if the cameras give what it looks at.
fn seeing(config: &Config, prepared: Prepared) -> Result<Box<dyn PolicyBackend>, PolicyError> {
    checks::frame(prepared.report.frame, config.camera.shape())?;
    Ok(prepared.backend)
}

/// The ensemble that learning goes on from.
fn ensemble(bundle: &AnyBundle) -> Result<&Bundle, PolicyError> {
    Ok(bundle.ensemble()?)
}

/// Makes the run folder; an earlier run in it is kept.
fn prepare_folder(config: &Config, shared: &Shared) -> Result<(), RuntimeError> {
    let folder = &config.run.directory;
    if folder.join("replay").exists() {
        match config.run.existing {
            Existing::Refuse => return Err(RuntimeError::Exists { path: folder.clone() }),
            Existing::Resume => shared.tell(Event::Note(format!("going on with the run in {}", folder.display()))),
            Existing::Fresh => {
                if let Some(aside) = move_aside(folder)? {
                    shared.tell(Event::Note(format!("the earlier run was moved to {}", aside.display())));
                }
            }
        }
    }
    std::fs::create_dir_all(folder).map_err(RuntimeError::file(folder))?;
    let path = folder.join("config.toml");
    std::fs::write(&path, config.to_toml()).map_err(RuntimeError::file(&path))
}

pub(super) fn measure(
    when: &'static str,
    config: &Config,
    policy: Source<'_>,
    options: &RunOptions,
    outlet: &mut Outlet<'_>,
) -> Result<(), RuntimeError> {
    let episodes = config.run.evaluate_episodes;
    if episodes == 0 {
        return Ok(());
    }
    let never = AtomicBool::new(false);
    let mut done = 0;
    let mut each = |_: &EpisodeReturn| {
        done += 1;
        outlet.take(&Event::Evaluating { when, done, total: episodes });
    };
    let found = evaluate(config, policy, episodes, Exploration::Deterministic, &options.program, &never, &mut each)?;
    outlet.report.engine.clone_from(&found.engine);
    outlet.take(&Event::Evaluated { when, returns: found.returns() });
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename the arguments")]
fn assemble(
    config: &Config,
    options: &RunOptions,
    shared: &Arc<Shared>,
    replay: &Arc<Mutex<Replay>>,
    trainer: Option<Trainer>,
    (policy, in_use): (Box<dyn PolicyBackend>, Option<Kept>),
    residual: Option<&Residual>,
    done: u64,
    report: &mut Report,
) -> Result<(Work, World, Doors), RuntimeError> {
    let in_lockstep = config.run.clock == ClockKind::Lockstep;
    let clock = if in_lockstep { Clock::lockstep() } else { Clock::Monotonic };
    policy.engine().clone_into(&mut report.engine);
    let (slot, handover) = policy_slot(Offer { policy, generation: 0 });
    let (robot, simulator) = reach_robot(config, &options.program, in_lockstep, &clock)?;
    let (producer, steps) = step_queue();
    let seed = config.run.seed;
    let first_episode = lock(replay).online().next_episode();
    let start_seed = stream(seed, "start states").next_u64();
    let control = ControlLoop::new(
        robot,
        slot,
        producer,
        Arc::clone(&shared.counters),
        clock.clone(),
        control_settings(config, config.policy.exploration, first_episode, start_seed, &shared.verdict, &shared.person),
        stream(seed, EXPLORATION),
    );
    let (mut control, camera) = with_camera(control, config, &clock, simulator.as_ref(), &shared.camera, Some(shared))?;
    let person = PersonListener::bind(
        &config.intervention.listen,
        shared,
        &clock,
        config.robot.spaces.action_dim(),
        longest_age(config),
    )?;
    let classifier = Classifier::load(config, &shared.verdict)?;
    let elsewhere = config.learner.enabled && config.learner.remote && matches!(options.source, ActionSource::Policy);
    let remote = elsewhere.then(|| Remote::open(config, replay, shared)).transpose()?;
    control.start()?;
    let (ask, asked) = bounded(4);
    let labels = Labels::new(config, replay);
    let socket = Server::bind(&config.run.directory, Arc::clone(shared), ask, labels)?;
    let publisher = Publisher::new(config.robot.spaces.clone(), config.policy.clone(), handover, Arc::clone(shared))
        .with_swaps(&config.swap, Arc::clone(replay), in_use, trainer.is_some())
        .on_base(residual)
        .with_camera(config.camera.shape());
    let sync_every = Duration::from_secs_f64(config.replay.sync_every_s);
    let mut recorder = Recorder::new(Arc::clone(replay), Arc::clone(shared), sync_every, classifier);
    recorder.mark_person(options.source.is_person());
    let last_step = config.run.steps - done;
    let period = period(config);
    let work = Work {
        control,
        steps,
        recorder,
        trainer,
        publisher,
        asked,
        shared: Arc::clone(shared),
        period,
        clock,
        last_step,
    };
    Ok((work, World { _simulator: simulator, _camera: camera }, Doors { socket, person, remote }))
}

fn learn(work: Work, config: &Config, doors: Doors, outlet: &mut Outlet<'_>) -> Result<Ended, RuntimeError> {
    let shared = Arc::clone(&work.shared);
    let Doors { socket, person, remote } = doors;
    let serving = realtime::spawn("socket", &shared, move || socket.serve())?;
    let hearing = person.map(|person| realtime::spawn("person", &shared, move || person.serve())).transpose()?;
    let (running, over) = bounded::<()>(0);
    let sending = remote.map(|remote| realtime::spawn("fleet", &shared, move || remote.serve(&over))).transpose()?;
    let ended = match config.run.clock {
        ClockKind::Lockstep => lockstep::drive(work, outlet),
        ClockKind::Realtime => {
            outlet.report.page_faults = Some(0);
            realtime::drive(work, &config.realtime, outlet)?
        }
    };
    shared.stop.store(true, Relaxed);
    drop(running);
    let _ = sending.map(std::thread::JoinHandle::join);
    let _ = serving.join();
    let _ = hearing.map(std::thread::JoinHandle::join);
    Ok(ended)
}

/// Saves what was learned, evaluates it, and completes the report.
pub(super) fn finish(
    config: &Config,
    options: &RunOptions,
    bundle: Option<&AnyBundle>,
    shared: &Arc<Shared>,
    replay: &Arc<Mutex<Replay>>,
    ended: Ended,
    outlet: &mut Outlet<'_>,
) -> Result<(), RuntimeError> {
    let complete = shared.online_steps.load(Relaxed) >= config.run.steps;
    if let Some((mut trainer, bundle)) = ended.trainer.zip(bundle) {
        trainer.save()?;
        trainer.diagnose(false);
        let weights = trainer.weights()?;
        save_bundle(config, ensemble(bundle)?, weights.clone(), shared.updates.load(Relaxed))?;
        if complete && ended.stopped.is_none() {
            measure("after", config, Source::Ensemble(&weights.actor, bundle.residual()), options, outlet)?;
        }
        let report = &mut outlet.report;
        (report.updates_per_second, report.updates_per_cpu_second) = trainer.rates();
        report.realised_utd_ratio = trainer.realised_ratio();
        (report.losses, report.offline_share) = trainer.losses();
        report.advice = trainer.advice();
        report.update_parts_ms = trainer.parts_ms();
    }
    fill(&mut outlet.report, shared, &lock(replay));
    outlet.report.stopped = ended.stopped.map(|fault| fault.to_string());
    if outlet.metrics.lost() > 0 {
        outlet.report.failures.push(format!("{} metric records were lost", outlet.metrics.lost()));
    }
    Ok(())
}

fn fill(report: &mut Report, shared: &Shared, replay: &Replay) {
    let c = &shared.counters;
    report.ticks = c.ticks.load(Relaxed);
    report.late_ticks = c.late.load(Relaxed);
    report.stale_ticks = c.stale.load(Relaxed);
    report.missed_states = c.missed_states.load(Relaxed);
    report.blind_steps = c.blind.load(Relaxed);
    report.image_to_action = LatencySummary::from(&c.image_to_action);
    report.camera = (shared.camera.counters.cameras.load(Relaxed) > 0).then(|| shared.camera.counters.summary());
    report.steps = c.steps.load(Relaxed);
    report.dropped = c.dropped_steps.load(Relaxed) + shared.unrecorded.load(Relaxed);
    report.updates = shared.updates.load(Relaxed);
    (report.successes, report.task_failures) = (c.successes.load(Relaxed), c.failures.load(Relaxed));
    report.swaps = c.swaps.load(Relaxed);
    report.refused_policies += c.refused_policies.load(Relaxed);
    report.offline_transitions = replay.offline_transitions();
    report.online_transitions = replay.online_transitions();
    let kept = replay.stats();
    report.overwritten = kept.overwritten;
    report.not_kept = kept.not_kept;
    report.wake = c.latency();
    report.robot_link = c.robot.summary();
    report.max_work_us = c.max_work_us.load(Relaxed);
    report.fleet = shared.fleet.summary();
    report.page_faults = report.page_faults.map(|_| c.page_faults.load(Relaxed));
    report.refused_settings = shared.refused_settings();
    let effort = lock(&shared.effort).clone();
    (report.learner_utilisation, report.learner_held_back_s) = (effort.utilisation, effort.held_back_s);
    report.failures = shared.failures();
}

/// The fine-tuned ensemble as a bundle in the run folder.
fn save_bundle(config: &Config, start: &Bundle, weights: EnsembleWeights, updates: u64) -> Result<(), RuntimeError> {
    let mut description =
        Description { name: format!("{} fine-tuned", config.robot.name), ..start.manifest().description.clone() };
    description.algorithm = format!("{}; then {updates} SAC updates online", description.algorithm);
    description.training_log_std = None;
    description.discount = config.learner.discount;
    description.provenance.insert("fine-tuned from".into(), config.policy.bundle.display().to_string());
    Ok(Bundle::new(description, weights)?.save(&config.run.directory.join("bundle"))?)
}
