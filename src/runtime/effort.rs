//! The learner thread's effort: rests as [`Pace`] says, reads the temperature, and tells both to who asks.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::event::Event;
use super::parts::{Shared, lock};
use crate::clock::{Stamp, monotonic};
use crate::config::Config;
use crate::learner::{Heat, Pace};
use crate::telemetry::Zones;

/// What the learner is doing and may do, for `status` and the report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct EffortStatus {
    /// Whether heat holds it back.
    pub heat: Heat,
    /// Share of the time it may compute.
    pub allowed: f64,
    /// Share of the time it did, since the run began.
    pub utilisation: f64,
    /// Updates that wait.
    pub due: u64,
    /// Seconds for which heat has slowed or paused it.
    pub held_back_s: f64,
    /// Temperature of the hottest sensor, degrees Celsius.
    pub celsius: Option<f64>,
    /// Its name.
    pub sensor: String,
}

/// Says when the learner thread works. Only that thread uses it; the files it reads are the kernel's.
pub(super) struct Effort {
    pace: Pace,
    zones: Zones,
    every: Duration,
    looked: Option<Stamp>,
    begun: Option<Stamp>,
    busy: Duration,
    told: EffortStatus,
    shared: Arc<Shared>,
}

impl Effort {
    /// As configured.
    pub(super) fn new(config: &Config, shared: &Arc<Shared>) -> Self {
        let thermal = &config.thermal;
        Self {
            pace: Pace::new(&config.learner, thermal),
            zones: Zones::open(&thermal.zones, &thermal.ignore),
            every: Duration::from_secs_f64(thermal.read_every_s),
            looked: None,
            begun: None,
            busy: Duration::ZERO,
            told: EffortStatus::default(),
            shared: Arc::clone(shared),
        }
    }

    /// Time until the learner may begin one of the `due` updates, zero for now. `None`: not before it is cooler.
    pub(super) fn rest(&mut self, due: u64) -> Option<Duration> {
        let now = monotonic();
        let since = self.looked.map_or(self.every, |looked| now.since(looked));
        if since >= self.every {
            self.looked = Some(now);
            self.look(since);
        }
        self.told.due = due;
        self.told.allowed = self.pace.share();
        self.told.utilisation =
            self.busy.as_secs_f64() / now.since(*self.begun.get_or_insert(now)).as_secs_f64().max(1e-6);
        lock(&self.shared.effort).clone_from(&self.told);
        self.pace.rest(now)
    }

    /// Notes that the learner has computed since `begin`.
    pub(super) fn worked(&mut self, begin: Stamp) {
        let end = monotonic();
        self.busy += end.since(begin);
        self.pace.worked(begin, end);
    }

    /// A temperature that can no longer be read leaves everything as it is: what is too hot stays slow.
    fn look(&mut self, since: Duration) {
        if self.pace.heat() > Heat::Cool {
            self.told.held_back_s += since.as_secs_f64();
        }
        let Some((sensor, celsius)) = self.zones.hottest() else {
            if self.told.celsius.take().is_some() {
                log::warn!("no temperature can be read any more: the learner stays {}", word(self.pace.heat()));
            }
            return;
        };
        self.told.celsius = Some(celsius);
        sensor.clone_into(&mut self.told.sensor);
        if let Some(heat) = self.pace.feel(celsius) {
            log::warn!("{sensor} is at {celsius:.1} degrees: the learner is {}", word(heat));
            self.told.heat = heat;
            self.shared.tell(Event::Heat { heat, celsius });
        }
    }
}

fn word(heat: Heat) -> &'static str {
    match heat {
        Heat::Cool => "at its full share of the time",
        Heat::Warm => "slowed",
        Heat::Hot => "paused",
    }
}
