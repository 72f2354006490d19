//! Two joints whose motors follow a velocity, and what a host has to know about them. No device, no clock.

use firmware_bridge::{BoardConfig, Limits, Outcome, Plant, schema_hash};

/// Observation entries.
pub(crate) const OBSERVATION: [&str; 4] = ["shoulder_rad", "elbow_rad", "shoulder_rad_s", "elbow_rad_s"];
/// Action entries: velocities as a share of one rad/s.
pub(crate) const ACTION: [&str; 2] = ["shoulder_velocity", "elbow_velocity"];
/// Control period.
pub(crate) const PERIOD_US: u32 = 10_000;
/// First stage of the watchdog.
pub(crate) const WATCHDOG_MS: u16 = 100;
/// Second stage.
pub(crate) const FAULT_MS: u32 = 200;
/// Largest change of a velocity from one command to the next.
pub(crate) const SLEW: f32 = 1.0;

/// What the board says about itself.
pub(crate) fn config(boot_id: u32) -> BoardConfig {
    BoardConfig {
        schema_hash: schema_hash(OBSERVATION, ACTION),
        n_observation: OBSERVATION.len(),
        n_action: ACTION.len(),
        limits: Limits { magnitude: 1.0, slew: SLEW },
        firmware: 1,
        boot_id,
        period_us: PERIOD_US,
        watchdog_ms: WATCHDOG_MS,
        fault_ms: FAULT_MS,
    }
}

/// The joints.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Joints {
    position_rad: [f32; 2],
    velocity_rad_s: [f32; 2],
}

impl Plant for Joints {
    fn reset(&mut self, _seed: u64) {
        *self = Self::default();
    }

    fn step(&mut self, action: &[f32]) -> Outcome {
        let joints = self.position_rad.iter_mut().zip(&mut self.velocity_rad_s);
        for ((position, velocity), action) in joints.zip(action) {
            *velocity = *action;
            *position += *action * (PERIOD_US as f32 * 1e-6);
        }
        Outcome {
            reward: -self.position_rad.iter().map(|position| position * position).sum::<f32>(),
            terminated: false,
        }
    }

    fn observe(&self, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(self.position_rad.iter().chain(&self.velocity_rad_s)) {
            *out = *value;
        }
    }
}
