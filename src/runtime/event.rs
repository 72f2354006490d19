//! What the runtime tells the outside while it works.

use std::time::Duration;

use serde::Serialize;

use crate::learner::{Diagnosis, Heat, UpdateMetrics};
use crate::telemetry::{ControlCounters, EpisodeReturn};

/// Something happened. Events may be dropped (and counted) when nobody takes them fast enough.
#[derive(Clone, Debug)]
pub enum Event {
    /// A sentence for people.
    Note(String),
    /// The live page is served.
    Serving {
        /// Its address, with the token where one is needed.
        url: String,
    },
    /// The run begins: steps before it and at its end.
    Begin {
        /// Steps an earlier process did.
        done: u64,
        /// Steps at the end.
        total: u64,
    },
    /// An episode ended.
    Episode(EpisodeReturn),
    /// The learner did an update.
    Update {
        /// Updates so far.
        updates: u64,
        /// Its numbers.
        metrics: UpdateMetrics,
    },
    /// The learner looked at the newest steps: after the warm-up, every `learner.diagnose_every` updates, at the end.
    Diagnosis(Diagnosis),
    /// Heat slows or pauses the learner, or does so no more.
    Heat {
        /// The new level.
        heat: Heat,
        /// Temperature of the hottest sensor, degrees Celsius.
        celsius: f64,
    },
    /// The control loop got a new policy.
    Published {
        /// Its generation.
        generation: u32,
        /// Milliseconds from snapshot to hand-over.
        prepare_ms: f64,
    },
    /// A policy was refused; the one in use stays.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// A policy from outside collapsed: the one before is in use again.
    RolledBack {
        /// Its generation.
        generation: u32,
        /// What collapsed.
        reason: String,
    },
    /// One of the deterministic episodes before or after learning was run.
    Evaluating {
        /// `before` or `after`.
        when: &'static str,
        /// Episodes run.
        done: u32,
        /// Of how many.
        total: u32,
    },
    /// Deterministic episodes were run.
    Evaluated {
        /// `before` or `after`.
        when: &'static str,
        /// Their returns.
        returns: Vec<f64>,
    },
}

/// Takes events as they come. Called on the thread that called [`super::run`].
pub trait Observer {
    /// One event.
    fn event(&mut self, event: &Event);
    /// The counters, a few times per second.
    fn counters(&mut self, counters: &ControlCounters, updates: u64);
    /// Longest time between two calls of [`Observer::counters`] in a real-time run.
    fn patience(&self) -> Duration {
        Duration::from_millis(100)
    }
}

/// The fields of an [`Event::Update`] in the metrics file.
#[derive(Serialize)]
pub(super) struct UpdateLine<'a> {
    /// Updates so far.
    pub updates: u64,
    /// Its numbers.
    #[serde(flatten)]
    pub metrics: &'a UpdateMetrics,
}
