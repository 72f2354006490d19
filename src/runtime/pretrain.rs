//! Offline training from start to end: folder, checkpoints, resume, evaluations, the best ensemble.
//!
//! ```text
//! run.directory/pretraining/checkpoint/        the newest checkpoint
//! run.directory/pretraining/best/              bundle of the best evaluation
//! run.directory/pretraining/evaluations.json   all evaluations
//! ```
//!
//! Everything happens on the caller's thread, but for the kernels of the networks.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RunOptions;
use super::evaluate::evaluate;
use super::parts::{RuntimeError, move_aside, open_offline};
use crate::clock;
use crate::config::{Config, Existing, Exploration, PretrainMethod};
use crate::learner::checkpoint::latest;
use crate::learner::pretrain::{PretrainMetrics, Pretrainer};
use crate::learner::{Dims, LearnerError};
use crate::nn::weights::EnsembleWeights;
use crate::policy::manifest::Description;
use crate::policy::residual::ResidualError;
use crate::policy::{Bundle, PolicyError, Source, checks};
use crate::replay::{Replay, Store};
use crate::spaces::FrameShape;

/// What pretraining tells while it works.
#[derive(Clone, Debug)]
pub enum PretrainEvent {
    /// It begins, or goes on, with so many updates done.
    Begin {
        /// Updates before.
        done: u64,
        /// Agents.
        members: usize,
        /// Transitions of the data.
        transitions: u64,
        /// Where an earlier pretraining was moved to.
        moved_to: Option<PathBuf>,
    },
    /// An update is done.
    Update {
        /// Updates done.
        updates: u64,
        /// Its numbers.
        metrics: PretrainMetrics,
    },
    /// An evaluation is done.
    Evaluated(PretrainEvaluation),
}

/// Returns of the ensemble after so many updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PretrainEvaluation {
    /// Updates done.
    pub updates: u64,
    /// Returns of deterministic episodes.
    pub returns: Vec<f64>,
    /// Processor time of training so far, seconds; of this process alone.
    pub cpu_seconds: f64,
}

impl PretrainEvaluation {
    /// Mean return.
    pub fn mean(&self) -> f64 {
        self.returns.iter().sum::<f64>() / self.returns.len().max(1) as f64
    }
}

/// What pretraining made.
#[derive(Clone, Debug)]
pub struct Pretrained {
    /// The last ensemble.
    pub last: EnsembleWeights,
    /// The ensemble of the best evaluation, if there was one.
    pub best: Option<EnsembleWeights>,
    /// Evaluations, those before a resume included.
    pub evaluations: Vec<PretrainEvaluation>,
    /// Updates done.
    pub updates: u64,
    /// Numbers of the last update of this process.
    pub metrics: PretrainMetrics,
    /// Processor time per update of this process, milliseconds.
    pub cpu_ms_per_update: f64,
}

/// What training begins with, where there is no checkpoint to go on from.
#[derive(Clone, Copy, Debug)]
pub enum PretrainStart<'a> {
    /// Random networks.
    Random,
    /// The ensemble of a bundle: actors, critics, target networks and encoders.
    Ensemble(&'a Bundle),
    /// The actors of a bundle, which stay as they are; critics are fitted to them.
    CriticsFor(&'a Bundle),
}

impl<'a> PretrainStart<'a> {
    fn bundle(self) -> Option<&'a Bundle> {
        match self {
            Self::Random => None,
            Self::Ensemble(bundle) | Self::CriticsFor(bundle) => Some(bundle),
        }
    }
}

/// Trains what `[pretrain]` describes on the data of `replay.offline`, or goes on with it. Stops early, with a
/// checkpoint, when `options.stop` is set.
///
/// # Errors
/// When there are no data, the folder is refused or complete, a loss is not finite, the robot of an evaluation
/// fails, or the disk does.
pub fn pretrain(
    config: &Config,
    start: PretrainStart,
    options: &RunOptions,
    tell: &mut dyn FnMut(PretrainEvent),
) -> Result<Pretrained, RuntimeError> {
    let folder = config.run.directory.join("pretraining");
    let store = open_offline(config)?.ok_or(RuntimeError::NoData)?;
    let moved_to = prepare_folder(&folder, config.run.existing)?;
    let mut work = Work::new(config, start, store.frame_shape(), folder)?;
    let done = work.pretrainer.updates();
    let (members, transitions) = (work.pretrainer.members(), store.transitions());
    tell(PretrainEvent::Begin { done, members, transitions, moved_to });
    // Nothing comes in online: the smallest buffer does.
    let nothing = Store::in_memory(store.layout(), 1024)?;
    let mut replay = Replay::new(Some(store), nothing, &config.replay)?;
    work.train(&mut replay, options, tell)
}

/// Where an earlier pretraining went, if there was one to put aside.
fn prepare_folder(folder: &Path, existing: Existing) -> Result<Option<PathBuf>, RuntimeError> {
    let moved = match existing {
        Existing::Resume => None,
        _ if !folder.exists() => None,
        Existing::Refuse => return Err(RuntimeError::Exists { path: folder.to_owned() }),
        Existing::Fresh => move_aside(folder)?,
    };
    std::fs::create_dir_all(folder).map_err(RuntimeError::file(folder))?;
    Ok(moved)
}

struct Work<'a> {
    config: &'a Config,
    algorithm: String,
    folder: PathBuf,
    pretrainer: Pretrainer,
    evaluations: Vec<PretrainEvaluation>,
    metrics: PretrainMetrics,
    cpu: Duration,
}

impl<'a> Work<'a> {
    fn new(
        config: &'a Config,
        start: PretrainStart,
        frame: Option<FrameShape>,
        folder: PathBuf,
    ) -> Result<Self, RuntimeError> {
        if start.bundle().is_some_and(|bundle| bundle.manifest().description.residual.is_some()) {
            return Err(PolicyError::from(ResidualError::NotAlone { path: config.policy.bundle.clone() }).into());
        }
        let dims = Dims::from(&config.robot.spaces);
        let (settings, learner) = (&config.pretrain, &config.learner);
        if let Some(bundle) = start.bundle() {
            let spaces = &bundle.manifest().description.spaces;
            checks::names(spaces, &config.robot.spaces).map_err(PolicyError::from)?;
        }
        let checkpoint = folder.join("checkpoint");
        let found = latest(&checkpoint).map_err(LearnerError::from)?.is_some();
        let seed = config.run.seed;
        let pretrainer = match start {
            PretrainStart::CriticsFor(_) if found => Pretrainer::load(&checkpoint, dims, settings, learner, true)?,
            _ if found => Pretrainer::load(&checkpoint, dims, settings, learner, false)?,
            PretrainStart::Random => Pretrainer::seeing(frame, dims, settings, learner, seed)?,
            PretrainStart::Ensemble(bundle) => {
                let weights = bundle.weights();
                let seen = weights.actor.eyes.as_ref().map(|eyes| eyes.shape);
                checks::frame(seen, frame).map_err(PolicyError::from)?;
                Pretrainer::from_ensemble(weights, dims, settings, learner, seed)?
            }
            PretrainStart::CriticsFor(bundle) => {
                Pretrainer::critics_for(&bundle.weights().actor, dims, settings, learner, seed)?
            }
        };
        let (done, steps) = (pretrainer.updates(), settings.updates);
        if done >= steps {
            return Err(RuntimeError::Pretrained { path: folder, done, updates: steps });
        }
        let evaluations = read_evaluations(&folder.join("evaluations.json"), done)?;
        let algorithm = describe(config, start);
        let (metrics, cpu) = (PretrainMetrics::default(), Duration::ZERO);
        Ok(Self { config, algorithm, folder, pretrainer, evaluations, metrics, cpu })
    }

    fn train(
        &mut self,
        replay: &mut Replay,
        options: &RunOptions,
        tell: &mut dyn FnMut(PretrainEvent),
    ) -> Result<Pretrained, RuntimeError> {
        let settings = &self.config.pretrain;
        let due =
            |every: u64, updates: u64| every > 0 && (updates.is_multiple_of(every) || updates == settings.updates);
        let first = self.pretrainer.updates();
        if first == 0 && settings.evaluate_every > 0 {
            self.evaluate(options, tell)?;
        }
        while self.pretrainer.updates() < settings.updates && !options.stop.load(Relaxed) {
            let start = clock::process_cpu();
            self.metrics = self.pretrainer.step(replay)?;
            self.cpu += clock::process_cpu().saturating_sub(start);
            let updates = self.pretrainer.updates();
            tell(PretrainEvent::Update { updates, metrics: self.metrics });
            let evaluated = due(settings.evaluate_every, updates);
            if evaluated {
                self.evaluate(options, tell)?;
            }
            if evaluated || due(settings.checkpoint_every, updates) {
                self.pretrainer.save(&self.folder.join("checkpoint"))?;
            }
        }
        let updates = self.pretrainer.updates();
        self.pretrainer.save(&self.folder.join("checkpoint"))?;
        let best = if self.evaluations.is_empty() { None } else { Some(Bundle::load(&self.folder.join("best"))?) };
        Ok(Pretrained {
            last: self.pretrainer.weights()?,
            best: best.map(Bundle::into_weights),
            evaluations: std::mem::take(&mut self.evaluations),
            updates,
            metrics: self.metrics,
            cpu_ms_per_update: self.cpu.as_secs_f64() * 1e3 / (updates - first).max(1) as f64,
        })
    }

    /// Evaluates, and keeps the ensemble when it is the best so far. The bundle is written first and the checkpoint
    /// last, so that a resume from an older checkpoint finds the evaluations before it and repeats those after it.
    fn evaluate(&mut self, options: &RunOptions, tell: &mut dyn FnMut(PretrainEvent)) -> Result<(), RuntimeError> {
        let weights = self.pretrainer.weights()?;
        let (config, episodes) = (self.config, self.config.run.evaluate_episodes);
        let deterministic = Exploration::Deterministic;
        let found = evaluate(
            config,
            Source::Ensemble(&weights.actor, None),
            episodes,
            deterministic,
            &options.program,
            &options.stop,
            &mut |_| {},
        )?;
        if found.episodes.len() < episodes as usize {
            return Ok(()); // stopped on the way; the evaluation is repeated after a resume
        }
        let updates = self.pretrainer.updates();
        let found = PretrainEvaluation { updates, returns: found.returns(), cpu_seconds: self.cpu.as_secs_f64() };
        if self.evaluations.iter().all(|e| found.mean() > e.mean()) {
            let description = description(config, &self.algorithm, updates);
            Bundle::new(description, weights)?.save(&self.folder.join("best"))?;
        }
        self.evaluations.push(found.clone());
        write_evaluations(&self.folder.join("evaluations.json"), &self.evaluations)?;
        tell(PretrainEvent::Evaluated(found));
        Ok(())
    }
}

/// The evaluations that a checkpoint of `done` updates knows of.
fn read_evaluations(path: &Path, done: u64) -> Result<Vec<PretrainEvaluation>, RuntimeError> {
    if done == 0 || !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read(path).map_err(RuntimeError::file(path))?;
    let all: Vec<PretrainEvaluation> =
        serde_json::from_slice(&text).map_err(std::io::Error::from).map_err(RuntimeError::file(path))?;
    Ok(all.into_iter().filter(|e| e.updates <= done).collect())
}

fn write_evaluations(path: &Path, evaluations: &[PretrainEvaluation]) -> Result<(), RuntimeError> {
    let temporary = path.with_extension("json.tmp");
    let write = || {
        std::fs::write(&temporary, serde_json::to_vec_pretty(evaluations)?)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(RuntimeError::file(path))
}

/// How the ensemble is made, for people.
fn describe(config: &Config, start: PretrainStart) -> String {
    let p = &config.pretrain;
    if let PretrainStart::CriticsFor(bundle) = start {
        return format!("critics by FQE for the actors of {}", bundle.manifest().description.name);
    }
    let (weight, n) = (p.cql_weight, p.cql_actions);
    let method = match p.method {
        PretrainMethod::Cql => format!("CQL, weight {weight}, {n} actions"),
        PretrainMethod::CalQl => format!("Cal-QL, weight {weight}, {n} actions"),
        PretrainMethod::Sac => "SAC on the data".into(),
        PretrainMethod::BehaviourCloning => "behaviour cloning".into(),
    };
    match start {
        PretrainStart::Ensemble(bundle) => format!("{method}, from {}", bundle.manifest().description.name),
        _ => method,
    }
}

/// What a bundle says of pretraining by `algorithm` after so many updates.
fn description(config: &Config, algorithm: &str, updates: u64) -> Description {
    let p = &config.pretrain;
    let data = config.replay.offline.display().to_string();
    let provenance = [("data", data), ("seed", config.run.seed.to_string())];
    Description {
        name: format!("{} {algorithm}", config.robot.name),
        control_hz: config.robot.control_hz,
        algorithm: format!("{algorithm}, {updates} updates, batch {}", p.batch_size),
        discount: config.learner.discount,
        training_log_std: Some(p.log_std),
        residual: None,
        spaces: config.robot.spaces.clone(),
        provenance: provenance.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}

/// The description of a bundle with what [`pretrain`] made.
pub fn pretrained_description(config: &Config, start: PretrainStart, updates: u64) -> Description {
    let mut made = description(config, &describe(config, start), updates);
    if let Some(bundle) = start.bundle() {
        let before = &bundle.manifest().description;
        let prefix = match start {
            PretrainStart::CriticsFor(_) => {
                made.training_log_std = before.training_log_std;
                "actors"
            }
            _ => "start",
        };
        made.provenance.extend(before.provenance.iter().map(|(k, v)| (format!("{prefix}: {k}"), v.clone())));
    }
    made
}
