//! The report at the end of a run (`--report FILE.json`).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CameraSummary, LatencySummary, RobotSummary};

/// One finished episode.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeReturn {
    /// Episode number.
    pub episode: u32,
    /// Control steps of this run when it ended.
    pub at_step: u64,
    /// Steps in the episode.
    pub length: u32,
    /// Undiscounted sum of rewards.
    pub episode_return: f64,
    /// Ended by the task (`false`: by the time limit).
    pub terminated: bool,
    /// Whether steps are missing in it.
    pub gapped: bool,
    /// Generation of the policy at its end.
    pub policy_generation: u32,
}

/// What a run did, in numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Name of the robot.
    pub robot: String,
    /// Seed of the run.
    pub seed: u64,
    /// Engine of the policy.
    pub engine: String,
    /// Returns of the deterministic episodes before learning.
    pub before: Vec<f64>,
    /// And after.
    pub after: Vec<f64>,
    /// Every episode of the run.
    pub episodes: Vec<EpisodeReturn>,
    /// Control ticks, of them late, with stale observation.
    pub ticks: u64,
    /// Whole periods missed.
    pub late_ticks: u64,
    /// Ticks without a fresh observation.
    pub stale_ticks: u64,
    /// Robot steps that never arrived.
    pub missed_states: u64,
    /// Control steps without an image to act on.
    pub blind_steps: u64,
    /// From the camera's stamp of an image until the action on it was sent; in real time.
    pub image_to_action: LatencySummary,
    /// What the camera thread counted, where there is a camera.
    pub camera: Option<CameraSummary>,
    /// Control steps stored.
    pub steps: u64,
    /// Episodes that ended as a success by the rules of `[episode]` or by an operator's word.
    pub successes: u64,
    /// And as a failure.
    pub task_failures: u64,
    /// Step records lost on the way to the replay.
    pub dropped: u64,
    /// Learner updates.
    pub updates: u64,
    /// Updates per second of wall time while learning.
    pub updates_per_second: f64,
    /// Updates per second of the learner thread's CPU time.
    pub updates_per_cpu_second: f64,
    /// Updates done by update allowed, at the end.
    pub realised_utd_ratio: f64,
    /// Share of the time in which the learner computed; 0 in lockstep.
    pub learner_utilisation: f64,
    /// Seconds for which heat slowed or paused it.
    pub learner_held_back_s: f64,
    /// Policies taken over by the control loop.
    pub swaps: u64,
    /// Policies refused.
    pub refused_policies: u64,
    /// Why policies from outside were rolled back by themselves.
    pub rolled_back: Vec<String>,
    /// Transitions in the replay: offline and online.
    pub offline_transitions: u64,
    /// Online.
    pub online_transitions: u64,
    /// Step records that newer ones replaced in the replay (`replay.retention = "ring"`), over the life of the run.
    pub overwritten: u64,
    /// Step records that the full replay did not take (`replay.retention = "keep-all"`).
    pub not_kept: u64,
    /// Mean offline share of the last 100 minibatches.
    pub offline_share: f64,
    /// Mean losses of the last 100 updates.
    pub losses: Value,
    /// What the learner found when it looked at the newest steps: after the warm-up, now and then, at the end.
    pub diagnoses: Vec<Value>,
    /// What the first of them says in words.
    pub advice: Vec<String>,
    /// CPU time per part of an update, milliseconds.
    pub update_parts_ms: Value,
    /// Wake-up latency of the control thread.
    pub wake: LatencySummary,
    /// The link to the robot, counted at both ends, and the robot's clock.
    pub robot_link: RobotSummary,
    /// Longest tick, microseconds of work.
    pub max_work_us: u64,
    /// Page faults of the control thread after its first tick; `None` in lockstep.
    pub page_faults: Option<u64>,
    /// Real-time settings that the machine refused.
    pub refused_settings: Vec<String>,
    /// Wall seconds of the learning phase.
    pub seconds: f64,
    /// The way to and from a learner elsewhere; null without one.
    pub fleet: Value,
    /// Why the robot had to be stopped, if it had to.
    pub stopped: Option<String>,
    /// Other failures: of learner, recorder, metrics.
    pub failures: Vec<String>,
}

impl Report {
    /// Mean of the returns before and after, when both were measured.
    pub fn improvement(&self) -> Option<(f64, f64)> {
        let mean = |r: &[f64]| (!r.is_empty()).then(|| r.iter().sum::<f64>() / r.len() as f64);
        Some((mean(&self.before)?, mean(&self.after)?))
    }

    /// Whether nothing was lost, stopped or failed: the exit code.
    pub fn is_clean(&self) -> bool {
        self.dropped == 0 && self.stopped.is_none() && self.failures.is_empty()
    }
}
