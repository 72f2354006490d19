//! What a simulated robot can do: the [`Task`] trait and the list of tasks.
//!
//! A task is physics and reward, nothing else: it knows no frames, no clock and no time limit. The same seed gives
//! the same start state on every machine.

use std::path::Path;

use crate::locomotion::{self, Locomotion};
use crate::pendulum::{self, Pendulum};

/// What one control step brought.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOutcome {
    /// Reward of the step.
    pub reward: f64,
    /// Whether the task ended in the state after the step.
    pub terminated: bool,
}

/// Names of observation and action entries, in order; they make the schema hash of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// One name with its unit per observation entry.
    pub observation: &'static [&'static str],
    /// One name per action entry; actions lie in `[-1, 1]`.
    pub action: &'static [&'static str],
}

/// A simulated robot with its reward.
pub trait Task {
    /// Names of observation and action entries.
    fn names(&self) -> Names;

    /// Control steps per second of simulated time.
    fn control_hz(&self) -> f64;

    /// Places the robot in the start state that belongs to `seed`.
    fn reset(&mut self, seed: u64);

    /// Applies `action` (one value in `[-1, 1]` per action name) for one control period.
    fn step(&mut self, action: &[f32]) -> StepOutcome;

    /// Writes the present observation into `out` (one value per observation name).
    fn observation(&self, out: &mut [f64]);
}

/// The names that [`make`] knows.
pub fn tasks() -> &'static [&'static str] {
    &["pendulum", "halfcheetah", "hopper", "walker2d"]
}

/// Names of the observation and action entries of `task`, or `None` for an unknown task. Needs no native files.
pub fn spaces(task: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    let names = match task {
        "pendulum" => pendulum::NAMES,
        _ => locomotion::model(task)?.names,
    };
    Some((names.observation, names.action))
}

/// Builds `task`; `native` is the folder that `tools/setup-native` fills, which the pendulum does without.
///
/// # Errors
/// When the task is unknown, or when MuJoCo or the model file is missing or unfit.
pub fn make(task: &str, native: &Path) -> anyhow::Result<Box<dyn Task>> {
    if task == "pendulum" {
        return Ok(Box::new(Pendulum::default()));
    }
    match locomotion::model(task) {
        Some(model) => Ok(Box::new(Locomotion::load(model, native)?)),
        None => anyhow::bail!("there is no simulated robot {task:?}; known are {}", tasks().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_names_that_fit_a_frame() {
        for task in tasks() {
            let (observation, action) = spaces(task).unwrap();
            assert!(observation.len() <= firmware_bridge::MAX_OBSERVATION);
            assert!(action.len() <= firmware_bridge::MAX_ACTION);
            assert!(observation.len() + action.len() <= 49, "a STATE frame holds 49 numbers");
        }
        assert!(spaces("unicycle").is_none());
        let problem = make("unicycle", Path::new("nowhere")).err().unwrap().to_string();
        assert!(problem.contains("pendulum, halfcheetah"), "{problem}");
    }
}
