//! The learner on recorded episodes alone, without a robot: recorder, schedule and learner of a run in lockstep.
//!
//! The records come in the order and in the portions in which the control loop handed them over, so that the episodes
//! of a lockstep run give the same learner again, to the byte.

use std::time::Duration;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::bounded;

use super::event::{Event, Observer};
use super::parts::{RuntimeError, Shared};
use super::realtime;
use super::recorder::Recorder;
use super::run::{Begun, Ended, Outlet, RunOptions, begin, finish, measure};
use super::socket::{Labels, Server};
use super::trainer::Trainer;
use crate::clock;
use crate::config::Config;
use crate::policy::{AnyBundle, Source};
use crate::replay::Recording;
use crate::spaces::{StepFlags, StepRecord};
use crate::telemetry::Report;

/// Feeds a recording, oldest first, to the learner of `config` and leaves the folder of a run. An interrupted one goes
/// on; `config.run.steps` does not count.
///
/// # Errors
/// When it cannot begin, or the configuration has no learner.
pub fn learn_recorded(
    config: &Config,
    recording: &Recording,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Report, RuntimeError> {
    let mut config = config.clone();
    config.run.steps = steps(recording.records()).max(1);
    let begun = begin(&config, options, observer)?;
    let Begun { shared, mut outlet, bundle, replay, trainer, done, _page } = begun;
    let trainer = trainer.ok_or(RuntimeError::NoLearner)?;
    outlet.pump(&shared);
    if done == 0 {
        measure(
            "before",
            &config,
            Source::Ensemble(&trainer.weights()?.actor, bundle.as_ref().and_then(AnyBundle::residual)),
            options,
            &mut outlet,
        )?;
    }
    shared.tell(Event::Begin { done, total: config.run.steps });
    // Whoever watches is answered; there is no policy to swap.
    let server = Server::bind(&config.run.directory, Arc::clone(&shared), bounded(0).0, Labels::new(&config, &replay))?;
    let serving = realtime::spawn("socket", &shared, move || server.serve())?;
    let recorder = Recorder::new(
        Arc::clone(&replay),
        Arc::clone(&shared),
        Duration::from_secs_f64(config.replay.sync_every_s),
        None,
    );
    let started = clock::monotonic();
    let trainer = feed(recording, done, recorder, trainer, &shared, &mut outlet);
    outlet.report_mut().seconds = clock::monotonic().since(started).as_secs_f64();
    let ended = Ended { trainer, stopped: None };
    finish(&config, options, bundle.as_ref(), &shared, &replay, ended, &mut outlet)?;
    outlet.pump(&shared);
    shared.stop.store(true, Relaxed);
    let _ = serving.join();
    Ok(outlet.into_report())
}

/// Steps that are transitions.
fn steps(records: &[StepRecord]) -> u64 {
    records.iter().filter(|record| !record.flags.contains(StepFlags::OBSERVATION_ONLY)).count() as u64
}

/// The trainer, unless it failed.
fn feed(
    recording: &Recording,
    done: u64,
    mut recorder: Recorder,
    mut trainer: Trainer,
    shared: &Shared,
    outlet: &mut Outlet<'_>,
) -> Option<Trainer> {
    let mut taken = 0;
    // The last observation of an episode came in the tick of the step that ended it.
    let is = |record: &StepRecord, flag| record.flags.contains(flag);
    let over = |record: &StepRecord| is(record, StepFlags::TERMINATED) || is(record, StepFlags::TRUNCATED);
    let (mut record, mut next) = (StepRecord::default(), 0);
    for tick in recording.records().chunk_by(|a, b| over(a) && is(b, StepFlags::OBSERVATION_ONLY)) {
        let first = next;
        next += tick.len();
        taken += steps(tick);
        if taken <= done {
            continue;
        }
        for index in first..next {
            if let Err(error) = recording.get(index, &mut record) {
                shared.fail(format!("the recording cannot be read: {error}"));
                return None;
            }
            recorder.take(&record);
        }
        shared.counters.steps.fetch_add(steps(tick), Relaxed);
        while trainer.due() > 0 && !shared.stopping() {
            if let Err(error) = trainer.update() {
                shared.fail(format!("the learner stopped: {error}"));
                return None;
            }
            outlet.pump(shared);
        }
        outlet.pump(shared);
        if shared.stopping() {
            break;
        }
    }
    recorder.sync();
    Some(trainer)
}
