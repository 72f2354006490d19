//! The parts of a run and how they are put together.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};

use super::camera::{self, CameraThread, Window};
use super::child::Simulator;
use super::effort::EffortStatus;
use super::event::Event;
use crate::clock::{self, Clock};
use crate::config::{Bound, CameraSource, Config, Exploration, MOST_TRIAL_EPISODES, RewardSource};
use crate::control::{
    ControlLoop, ControlSettings, Fault, Limits, Pace, Person, PersonSlot, Range, Rules, Sight, Verdict,
};
use crate::fleet::{FleetCounters, FleetError};
use crate::learner::LearnerError;
use crate::nn::weights::EnsembleWeights;
use crate::policy::PolicyError;
use crate::replay::{Budget, Layout, Replay, ReplayError, Store};
use crate::robot::{FirmwareRobot, Robot, RobotError, link};
use crate::telemetry::{ControlCounters, EpisodeReturn};

/// Why a run could not begin, or how it broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The simulated robot did not start.
    #[error("the simulated robot `{task}` did not start: {reason}")]
    Simulator {
        /// Its task.
        task: String,
        /// What it said.
        reason: String,
    },
    /// The robot or the way to it.
    #[error(transparent)]
    Robot(#[from] RobotError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The success classifier.
    #[error("episode.classifier {path} cannot be used: {reason}")]
    Classifier {
        /// The model.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The replay buffer or the offline data.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The learner.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// A fault outside a run, in an evaluation.
    #[error("the robot was stopped: {0}")]
    Stopped(#[from] Fault),
    /// A real-time setting was refused although it is required.
    #[error("realtime.required is set, but: {}", .0.join("; "))]
    Rights(Vec<String>),
    /// The run folder holds a run already.
    #[error(
        "{path} already holds a run (run.existing = \"refuse\"): choose another run.directory, or \"resume\" or \"fresh\""
    )]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The run folder has done all its steps.
    #[error("{path} has done {done} of {steps} steps: raise run.steps to go on, or set run.existing = \"fresh\"")]
    Complete {
        /// The folder.
        path: PathBuf,
        /// Steps done.
        done: u64,
        /// Steps asked for.
        steps: u64,
    },
    /// The live page cannot be served.
    #[error("cannot serve the live page on {address}: {source}")]
    Serve {
        /// Where.
        address: std::net::SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Pretraining is done already.
    #[error(
        "{path} holds {done} of {updates} updates: raise pretrain.updates to go on, or set run.existing = \"fresh\""
    )]
    Pretrained {
        /// Its folder.
        path: PathBuf,
        /// Updates done.
        done: u64,
        /// Updates asked for.
        updates: u64,
    },
    /// The fleet.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Learning without a learner.
    #[error("learner.enabled is false: learning from recorded episodes needs it")]
    NoLearner,
    /// Pretraining without data.
    #[error("replay.offline is empty: pretraining needs a data set")]
    NoData,
    /// Files of the run.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// With the path that the system's answer lacks.
    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Name of the random stream of the exploration noise.
pub(super) const EXPLORATION: &str = "exploration";

/// What all threads of a run share: counters and the wish to stop.
pub(super) struct Shared {
    /// Counters of the control thread.
    pub counters: Arc<ControlCounters>,
    /// Set once, by a signal, the socket or the end: every thread leaves.
    pub stop: Arc<AtomicBool>,
    /// Transitions of this run folder, earlier processes included.
    pub online_steps: AtomicU64,
    /// Transitions at which the run is complete.
    pub total_steps: AtomicU64,
    /// What an operator says about the episode under way.
    pub verdict: Arc<Verdict>,
    /// What a person commands.
    pub person: Arc<PersonSlot>,
    /// What is to be seen of the cameras.
    pub camera: Arc<Window>,
    /// Commands of a person that were refused.
    pub refused_commands: AtomicU64,
    /// The newest whole episodes, oldest first, at most five times [`MOST_TRIAL_EPISODES`].
    pub returns: Mutex<VecDeque<EpisodeReturn>>,
    /// Networks that the learner is to go on from; the learner empties it.
    pub adoption: Mutex<Option<Box<EnsembleWeights>>>,
    /// Whether there are some; false when the learner's next policies come from them.
    pub adopting: AtomicBool,
    /// The way to and from a learner elsewhere.
    pub fleet: FleetCounters,
    /// Folder of a policy from there that waits for the publisher; the publisher empties it.
    pub offered: Mutex<Option<PathBuf>>,
    /// Learner updates so far.
    pub updates: AtomicU64,
    /// What the learner is doing and may do.
    pub effort: Mutex<EffortStatus>,
    /// Step records the recorder could not write.
    pub unrecorded: AtomicU64,
    /// Events nobody took in time.
    pub lost_events: AtomicU64,
    events: Sender<Event>,
    failures: Mutex<Vec<String>>,
    refused_settings: Mutex<Vec<String>>,
}

impl Shared {
    /// With `events` as the way to the observer.
    pub(super) fn new(events: Sender<Event>, stop: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            counters: Arc::default(),
            stop,
            online_steps: AtomicU64::new(0),
            total_steps: AtomicU64::new(0),
            verdict: Arc::default(),
            person: Arc::default(),
            camera: Arc::default(),
            refused_commands: AtomicU64::new(0),
            returns: Mutex::default(),
            adoption: Mutex::default(),
            adopting: AtomicBool::new(false),
            fleet: FleetCounters::default(),
            offered: Mutex::default(),
            updates: AtomicU64::new(0),
            effort: Mutex::default(),
            unrecorded: AtomicU64::new(0),
            lost_events: AtomicU64::new(0),
            events,
            failures: Mutex::default(),
            refused_settings: Mutex::default(),
        })
    }

    /// Keeps the return of an episode.
    pub(super) fn ended(&self, episode: EpisodeReturn) {
        let mut returns = lock(&self.returns);
        if returns.len() >= 5 * MOST_TRIAL_EPISODES as usize {
            returns.pop_front();
        }
        returns.push_back(episode);
    }

    /// Tells the observer; counts when it is not listening.
    pub(super) fn tell(&self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            self.lost_events.fetch_add(1, Relaxed);
        }
    }

    /// Notes that a part failed; the run goes on as far as it can and ends with a non-zero exit code.
    pub(super) fn fail(&self, failure: String) {
        log::error!("{failure}");
        self.tell(Event::Note(failure.clone()));
        lock(&self.failures).push(failure);
    }

    /// All failures so far.
    pub(super) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    /// Notes what the machine refused to the control thread, one line each.
    pub(super) fn refuse(&self, settings: &[String]) {
        for line in settings {
            log::warn!("{line}");
        }
        lock(&self.refused_settings).extend_from_slice(settings);
    }

    /// Real-time settings that the machine refused.
    pub(super) fn refused_settings(&self) -> Vec<String> {
        lock(&self.refused_settings).clone()
    }

    /// Whether the run should end.
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// Locks a mutex whose data stays usable when another thread panicked with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Where the robot is: the configured address, or a simulator that this starts.
pub(super) fn reach_robot(
    config: &Config,
    program: &Path,
    lockstep: bool,
    clock: &Clock,
) -> Result<(Box<dyn Robot>, Option<Simulator>), RuntimeError> {
    let (address, simulator) = if config.robot.address.is_empty() {
        let name = format!("fieldtune-{}-{}.sock", std::process::id(), unique());
        let simulator = Simulator::start(program, config, lockstep, std::env::temp_dir().join(name))?;
        (simulator.address(), Some(simulator))
    } else {
        (config.robot.address.clone(), None)
    };
    let link = link::open(config.robot.link, &address, config.robot.baud)?;
    let robot = FirmwareRobot::connect(
        link,
        &config.robot.spaces,
        period(config),
        lockstep,
        config.robot.command_valid_ms,
        Duration::from_millis(u64::from(config.robot.timeout_ms)),
        clock.clone(),
    )?;
    Ok((Box::new(robot), simulator))
}

/// How long the loop waits in lockstep for the image of an observation.
const IMAGE_PATIENCE: Duration = Duration::from_secs(1);

/// Puts the configured cameras, if there are any, in front of a control loop; in real time as in lockstep. The thread has
/// to outlive the loop.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn with_camera(
    control: ControlLoop,
    config: &Config,
    clock: &Clock,
    simulator: Option<&Simulator>,
    window: &Arc<Window>,
    shared: Option<&Arc<Shared>>,
) -> Result<(ControlLoop, Option<CameraThread>), RuntimeError> {
    let socket = simulator.map(Simulator::camera);
    let Some((frames, thread)) = camera::start(&config.camera, clock, socket.as_deref(), window, shared)? else {
        return Ok((control, None));
    };
    let cameras = &config.camera.source.0;
    let runs = |source: &CameraSource| matches!(source, CameraSource::Synthetic | CameraSource::Playback(_));
    let pace = match clock.is_lockstep() {
        false => Pace::Newest(config.camera.stale_after()),
        true if cameras.iter().all(runs) => Pace::WithRun(IMAGE_PATIENCE),
        true => Pace::WithRobot(IMAGE_PATIENCE),
    };
    // A simulated robot sends its first image with the answer to the reset, to the cameras that are there.
    let until = clock::monotonic().plus(Duration::from_millis(config.robot.timeout_ms.into()));
    while window.counters.connected.load(Relaxed) < cameras.len() as u64 && clock::monotonic() < until {
        Clock::Monotonic.sleep_until(clock::monotonic().plus(Duration::from_millis(2)));
    }
    Ok((control.with_camera(Sight::new(frames, Arc::clone(&window.counters), pace)), Some(thread)))
}

fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// Moves a folder to the first free of `FOLDER.1`, `FOLDER.2`, ... and tells where it is now.
pub(super) fn move_aside(folder: &Path) -> Result<Option<PathBuf>, RuntimeError> {
    let aside = (1..10_000).map(|n| PathBuf::from(format!("{}.{n}", folder.display()))).find(|p| !p.exists());
    if let Some(aside) = &aside {
        std::fs::rename(folder, aside).map_err(RuntimeError::file(folder))?;
    }
    Ok(aside)
}

/// One control period.
pub(super) fn period(config: &Config) -> Duration {
    Duration::from_secs_f64(1.0 / config.robot.control_hz)
}

/// The control loop's view of the configuration.
pub(super) fn control_settings(
    config: &Config,
    exploration: Exploration,
    first_episode: u32,
    start_seed: u64,
    verdict: &Arc<Verdict>,
    person: &Arc<PersonSlot>,
) -> ControlSettings {
    let reset_s = f64::from(config.robot.timeout_ms) / 1000.0;
    ControlSettings {
        period: period(config),
        max_steps: config.episode.max_steps,
        rules: rules(config, verdict),
        person: Person {
            slot: Arc::clone(person),
            longest_age: longest_age(config),
            blend_steps: (f64::from(config.intervention.blend_ms) / 1000.0 * config.robot.control_hz).round() as u32,
            lost: config.intervention.lost,
            ..Person::default()
        },
        exploration,
        limits: Limits { magnitude: config.safety.action_limit, slew: config.safety.slew_per_step },
        stale_steps: config.safety.stale_steps,
        lost_steps: config.safety.lost_steps,
        reset_steps: (reset_s * config.robot.control_hz).ceil() as u32 + 1,
        first_episode,
        start_seed,
    }
}

/// Age at which a person's command counts as silence.
pub(super) fn longest_age(config: &Config) -> Duration {
    Duration::from_millis(config.intervention.max_age_ms.into())
}

/// The rules of `[episode]`; the configuration was checked: every entry has a name of the robot's.
fn rules(config: &Config, verdict: &Arc<Verdict>) -> Rules {
    let names = &config.robot.spaces.observation;
    let range = |bound: &Bound| {
        let entry = names.iter().position(|name| *name == bound.entry)?;
        Some(Range { entry, min: bound.min, max: bound.max })
    };
    let episode = &config.episode;
    Rules {
        success: episode.success.iter().filter_map(range).collect(),
        failure: episode.failure.iter().filter_map(range).collect(),
        hold_steps: episode.hold_steps,
        step_reward: (episode.reward == RewardSource::Outcome).then_some(episode.step_reward),
        success_reward: episode.success_reward,
        failure_reward: episode.failure_reward,
        verdict: Arc::clone(verdict),
        ..Rules::default()
    }
}

/// The layout that both buffers of a run have.
pub(super) fn layout(config: &Config) -> Layout {
    let spaces = &config.robot.spaces;
    Layout {
        observation_dim: spaces.observation_dim(),
        action_dim: spaces.action_dim(),
        schema_hash: spaces.schema_hash(),
    }
}

/// The offline data of the configuration, imported on first use into `run.directory/../offline-*` beside the run.
///
/// # Errors
/// When it cannot be read, has other dimensions, or cannot be stored.
pub fn open_offline(config: &Config) -> Result<Option<Store>, RuntimeError> {
    if config.replay.offline.as_os_str().is_empty() {
        return Ok(None);
    }
    let cache = config.run.directory.parent().unwrap_or(Path::new(".")).join("offline");
    std::fs::create_dir_all(&cache).map_err(RuntimeError::file(&cache))?;
    let mut offline = crate::replay::open_offline(&config.replay.offline, layout(config), &cache)?;
    fits_memory(config, &mut offline)?;
    Ok(Some(offline))
}

/// Most bytes of a buffer's frames that are in memory.
fn resident(config: &Config) -> u64 {
    config.replay.resident_mb << 20
}

/// Bounds the frames that a buffer keeps in memory, and refuses one that does not fit.
fn fits_memory(config: &Config, store: &mut Store) -> Result<(), RuntimeError> {
    store.keep_resident(resident(config));
    Ok(store.budget().with_resident(resident(config)).check_resident()?)
}

/// What the buffers of a run with a camera cost, in words; `None` without frames.
pub(super) fn budget(config: &Config, replay: &Replay) -> Option<String> {
    let each = |(name, store): (&str, &Store)| {
        let shape = store.frame_shape()?;
        Some((format!("{name} {}", store.budget().with_resident(resident(config))), shape))
    };
    let stores = replay.offline().map(|store| ("offline", store)).into_iter().chain([("online", replay.online())]);
    let (each, shapes): (Vec<_>, Vec<_>) = stores.filter_map(each).unzip();
    let shape = shapes.first()?;
    // Bytes of both observations, and the same as numbers of 32 bits.
    let minibatch = 2 * 5 * config.learner.batch_size * shape.bytes();
    let learner = format!("{:.2} GB of the learner's device for the images of a minibatch", minibatch as f64 / 1e9);
    Some(format!("{shape}: {}; {learner}", each.join("; ")))
}

/// The replay of a run: offline data and the online buffer in the run folder, created or reopened.
pub(super) fn open_replay(config: &Config) -> Result<Replay, RuntimeError> {
    // Who learns elsewhere has the offline data there.
    let offline = if config.learner.remote { None } else { open_offline(config)? };
    let folder = config.run.directory.join("replay");
    let (layout, capacity, wanted) = (layout(config), config.replay.capacity, config.camera.shape());
    let mut online = match wanted {
        _ if folder.exists() => Store::open(&folder, crate::replay::Access::ReadWrite)?,
        None => Store::create(&folder, layout, capacity)?,
        Some(shape) => {
            Budget::new(layout, capacity, wanted).with_resident(resident(config)).check(&folder)?;
            Store::create_with_frames(&folder, layout, capacity, shape)?
        }
    };
    let found = online.frame_shape();
    if found != wanted {
        return Err(ReplayError::OtherFrames { path: folder, found, wanted }.into());
    }
    fits_memory(config, &mut online)?;
    Ok(Replay::new(offline, online, &config.replay)?)
}
