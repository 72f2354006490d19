//! What a simulated robot can do: the [`Task`] trait and the list of tasks.
//!
//! A task is physics and reward, nothing else: it knows no frames, no clock and no time limit. The same seed gives
//! the same start state on every machine.

use std::path::Path;

use anyhow::bail;

use crate::gantry::{self, Gantry};
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

/// Size of a camera's image, in pixels of three bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Pixels in a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl ImageSize {
    /// How many pixels it has.
    pub fn pixels(self) -> usize {
        usize::from(self.width) * usize::from(self.height)
    }
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

    /// From the next [`Task::reset`] on, a script of the robot's own says what it wants ([`Task::wanted`]), with noise
    /// of a standard deviation that every episode draws from `noise`.
    ///
    /// # Errors
    /// When there is no script for this robot.
    fn follow_script(&mut self, _noise: &[f64]) -> anyhow::Result<()> {
        bail!("there is no script for this robot; there is one for the gantry's tasks")
    }

    /// The action that the script wants in the present state, where one is followed.
    fn wanted(&self) -> Option<&[f32]> {
        None
    }

    /// Opens the robot's camera; `native` is the folder that `tools/setup-native` fills. Returns the size of its image.
    ///
    /// # Errors
    /// When the robot has none, or what it needs is missing.
    fn open_camera(&mut self, _native: &Path) -> anyhow::Result<ImageSize> {
        bail!("this robot has no camera; the gantry has one")
    }

    /// What the open camera sees of the present state: RGB, rows from top to bottom.
    fn draw(&self, _pixels: &mut [u8]) {}
}

/// The names that [`make`] knows.
pub fn tasks() -> &'static [&'static str] {
    &["pendulum", "halfcheetah", "hopper", "walker2d", "gantry-pickplace", "gantry-closed", "gantry-blocked"]
}

/// Names of the observation and action entries of `task`, or `None` for an unknown task. Needs no native files.
pub fn spaces(task: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    let names = match task {
        "pendulum" => pendulum::NAMES,
        _ if gantry::goal(task).is_some() => gantry::NAMES,
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
    if let Some(goal) = gantry::goal(task) {
        return Ok(Box::new(Gantry::load(goal, native)?));
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
