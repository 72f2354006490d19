//! A task as the plant of a `firmware_bridge::Board`: the microcontroller's own code in front of simulated physics.

use firmware_bridge::{BoardConfig, Limits, MAX_OBSERVATION, Outcome, Plant, schema_hash};

use crate::task::Task;

/// Version of this "firmware" in HELLO_ACK.
const FIRMWARE: u32 = 1;

/// Time settings of a board.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Control period.
    pub(crate) period_us: u32,
    /// First stage of the watchdog.
    pub(crate) watchdog_ms: u16,
    /// Second stage of the watchdog.
    pub(crate) fault_ms: u32,
}

/// The board of a simulated robot.
pub(crate) type Board = firmware_bridge::Board<Simulated>;

/// The physics of a task.
pub(crate) struct Simulated(pub(crate) Box<dyn Task>);

impl Plant for Simulated {
    fn reset(&mut self, seed: u64) {
        self.0.reset(seed);
    }

    fn step(&mut self, action: &[f32]) -> Outcome {
        let outcome = self.0.step(action);
        Outcome { reward: outcome.reward as f32, terminated: outcome.terminated }
    }

    fn observe(&self, out: &mut [f32]) {
        let mut exact = [0.0; MAX_OBSERVATION];
        self.0.observation(&mut exact[..out.len()]);
        for (out, exact) in out.iter_mut().zip(exact) {
            *out = exact as f32;
        }
    }
}

/// A disarmed board with `task` in the start state of seed 0.
pub(crate) fn board(task: Box<dyn Task>, timing: Timing, boot_id: u32) -> Board {
    let names = task.names();
    let config = BoardConfig {
        schema_hash: schema_hash(names.observation.iter().copied(), names.action.iter().copied()),
        n_observation: names.observation.len(),
        n_action: names.action.len(),
        limits: Limits { magnitude: 1.0, slew: 2.0 },
        firmware: FIRMWARE,
        boot_id,
        period_us: timing.period_us,
        watchdog_ms: timing.watchdog_ms,
        fault_ms: timing.fault_ms,
    };
    Board::new(Simulated(task), config)
}

#[cfg(test)]
mod tests;
