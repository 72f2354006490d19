//! Numbers of the way to and from the learner.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use serde_json::{Value, json};

use super::MOST_SPOOLS;

/// Counted on either side; what has no meaning there stays 0.
#[derive(Debug, Default)]
pub struct FleetCounters {
    /// Whether the process belongs to a fleet.
    pub enabled: AtomicBool,
    /// Whether the other side answers; on the learner's, whether it is open.
    pub linked: AtomicBool,
    /// Times the link was lost.
    pub lost_links: AtomicU64,
    /// Robots known to the learner.
    pub robots: AtomicU64,
    /// Records sent, those sent again included; on the learner's side, records taken.
    pub records: AtomicU64,
    /// Records the learner has not got yet.
    pub pending: AtomicU64,
    /// Records that the robot's replay replaced before the learner had them.
    pub missed: AtomicU64,
    /// Policies fetched; on the learner's side, policies offered.
    pub policies: AtomicU64,
    /// Messages refused: damaged, of another robot, too long.
    pub refused: AtomicU64,
    /// Generation of the learner's newest policy.
    pub generation: AtomicU64,
    /// What robots last said about themselves, as far as it arrived.
    reports: Mutex<BTreeMap<String, Value>>,
}

impl FleetCounters {
    /// Keeps what a robot says about itself, of so many robots as a learner can tell apart.
    pub fn hear(&self, robot: &str, report: Value) {
        let mut reports = self.reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if reports.len() < MOST_SPOOLS as usize || reports.contains_key(robot) {
            reports.insert(robot.to_owned(), report);
        }
    }

    /// As JSON, for status and report; null where there is no fleet.
    pub fn summary(&self) -> Value {
        if !self.enabled.load(Relaxed) {
            return Value::Null;
        }
        let reports = self.reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        json!({
            "reports": *reports,
            "linked": self.linked.load(Relaxed), "lost_links": self.lost_links.load(Relaxed),
            "robots": self.robots.load(Relaxed), "records": self.records.load(Relaxed),
            "pending": self.pending.load(Relaxed), "missed": self.missed.load(Relaxed),
            "policies": self.policies.load(Relaxed), "refused": self.refused.load(Relaxed),
            "generation": self.generation.load(Relaxed),
        })
    }
}
