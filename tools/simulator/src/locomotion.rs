//! HalfCheetah, Hopper and Walker2d with the semantics of gymnasium's v5 tasks, on MuJoCo.
//!
//! Numbers equal gymnasium 1.4.0 with MuJoCo 3.17.0 to the last bit; another MuJoCo version drifts, because the
//! HalfCheetah is chaotic. Only the random start states come from a generator of our own.

use std::path::Path;

use anyhow::ensure;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::mujoco::Simulation;
use crate::task::{Names, StepOutcome, Task};

/// Where a walker still counts as upright.
#[derive(Debug)]
struct Healthy {
    /// Open range of the torso's height.
    z_m: (f64, f64),
    /// Largest magnitude of the torso's angle, excluded.
    angle_rad: f64,
    /// Largest magnitude of every entry of (qpos, qvel) from the third on, excluded.
    state: f64,
}

/// How start velocities are drawn; start positions are uniform in `±noise` around the model's own.
#[derive(Debug)]
enum VelocityNoise {
    Uniform,
    Gaussian,
}

/// The constants of one task.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) names: Names,
    task: &'static str,
    file: &'static str,
    substeps: usize,
    period_s: f64,
    control_cost: f64,
    healthy: Option<Healthy>,
    velocity_clip: f64,
    noise: f64,
    velocity_noise: VelocityNoise,
}

#[rustfmt::skip] // one name per line would hide the table
const MODELS: [Model; 3] = [
    Model {
        task: "halfcheetah",
        file: "half_cheetah.xml",
        substeps: 5,
        period_s: 0.05,
        control_cost: 0.1,
        healthy: None,
        velocity_clip: f64::INFINITY,
        noise: 0.1,
        velocity_noise: VelocityNoise::Gaussian,
        names: Names {
            observation: &[
                "rootz_m", "rooty_rad", "bthigh_rad", "bshin_rad", "bfoot_rad", "fthigh_rad", "fshin_rad",
                "ffoot_rad", "rootx_m_s", "rootz_m_s", "rooty_rad_s", "bthigh_rad_s", "bshin_rad_s", "bfoot_rad_s",
                "fthigh_rad_s", "fshin_rad_s", "ffoot_rad_s",
            ],
            action: &[
                "bthigh_torque", "bshin_torque", "bfoot_torque", "fthigh_torque", "fshin_torque", "ffoot_torque",
            ],
        },
    },
    Model {
        task: "hopper",
        file: "hopper.xml",
        substeps: 4,
        period_s: 0.008,
        control_cost: 1e-3,
        healthy: Some(Healthy { z_m: (0.7, f64::INFINITY), angle_rad: 0.2, state: 100.0 }),
        velocity_clip: 10.0,
        noise: 5e-3,
        velocity_noise: VelocityNoise::Uniform,
        names: Names {
            observation: &[
                "rootz_m", "rooty_rad", "thigh_rad", "leg_rad", "foot_rad", "rootx_m_s", "rootz_m_s",
                "rooty_rad_s", "thigh_rad_s", "leg_rad_s", "foot_rad_s",
            ],
            action: &["thigh_torque", "leg_torque", "foot_torque"],
        },
    },
    Model {
        task: "walker2d",
        file: "walker2d_v5.xml",
        substeps: 4,
        period_s: 0.008,
        control_cost: 1e-3,
        healthy: Some(Healthy { z_m: (0.8, 2.0), angle_rad: 1.0, state: f64::INFINITY }),
        velocity_clip: 10.0,
        noise: 5e-3,
        velocity_noise: VelocityNoise::Uniform,
        names: Names {
            observation: &[
                "rootz_m", "rooty_rad", "thigh_rad", "leg_rad", "foot_rad", "thigh_left_rad", "leg_left_rad",
                "foot_left_rad", "rootx_m_s", "rootz_m_s", "rooty_rad_s", "thigh_rad_s", "leg_rad_s", "foot_rad_s",
                "thigh_left_rad_s", "leg_left_rad_s", "foot_left_rad_s",
            ],
            action: &[
                "thigh_torque", "leg_torque", "foot_torque", "thigh_left_torque", "leg_left_torque",
                "foot_left_torque",
            ],
        },
    },
];

/// The constants of `task`, if it is one of these.
pub(crate) fn model(task: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.task == task)
}

/// A walker in MuJoCo.
#[derive(Debug)]
pub(crate) struct Locomotion {
    model: &'static Model,
    simulation: Simulation,
    /// Start state of the model file: qpos then qvel.
    start: Vec<f64>,
    /// Present state: qpos then qvel.
    state: Vec<f64>,
    /// The action in the physics' precision.
    control: Vec<f64>,
}

impl Locomotion {
    /// Loads MuJoCo and the task's model file from `native`.
    ///
    /// # Errors
    /// When either is missing, or when the model's dimensions are not the task's.
    pub(crate) fn load(model: &'static Model, native: &Path) -> anyhow::Result<Self> {
        let simulation = Simulation::load(native, model.file)?;
        let (n_observation, n_action) = (model.names.observation.len(), model.names.action.len());
        // The observation is qpos without the way along x, and qvel.
        ensure!(
            simulation.positions() + simulation.velocities() == n_observation + 1 && simulation.controls() == n_action,
            "{} describes {} positions, {} velocities and {} motors, which is not the {}; run tools/setup-native again",
            native.join(model.file).display(),
            simulation.positions(),
            simulation.velocities(),
            simulation.controls(),
            model.task
        );
        let mut start = vec![0.0; n_observation + 1];
        simulation.read_state(&mut start);
        Ok(Self { model, simulation, state: start.clone(), start, control: vec![0.0; n_action] })
    }

    /// Places the walker in a given state: qpos then qvel, in the model's order.
    fn place(&mut self, state: &[f64]) {
        self.simulation.place(state);
        self.simulation.read_state(&mut self.state);
    }

    /// One control period with the motors at `control`.
    fn advance(&mut self) -> StepOutcome {
        let x_m = self.state[0];
        self.simulation.step(&self.control, self.model.substeps);
        self.simulation.read_state(&mut self.state);
        let speed_m_s = (self.state[0] - x_m) / self.model.period_s;
        let cost = self.model.control_cost * self.control.iter().map(|u| u * u).sum::<f64>();
        let healthy = self.model.healthy.as_ref().map(|healthy| healthy.holds(&self.state));
        let survival = f64::from(u8::from(healthy == Some(true)));
        StepOutcome { reward: speed_m_s + survival - cost, terminated: healthy == Some(false) }
    }
}

impl Healthy {
    fn holds(&self, state: &[f64]) -> bool {
        let (z_m, angle_rad) = (state[1], state[2]);
        self.z_m.0 < z_m
            && z_m < self.z_m.1
            && angle_rad.abs() < self.angle_rad
            && state[2..].iter().all(|value| value.abs() < self.state)
    }
}

impl Task for Locomotion {
    fn names(&self) -> Names {
        self.model.names
    }

    fn control_hz(&self) -> f64 {
        1.0 / self.model.period_s
    }

    fn reset(&mut self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let noise = self.model.noise;
        let mut state = self.start.clone();
        let (positions, velocities) = state.split_at_mut(self.simulation.positions());
        for position in positions {
            *position += rng.random_range(-noise..noise);
        }
        for velocity in velocities {
            *velocity += match self.model.velocity_noise {
                VelocityNoise::Uniform => rng.random_range(-noise..noise),
                VelocityNoise::Gaussian => noise * rng.sample::<f64, _>(StandardNormal),
            };
        }
        self.place(&state);
    }

    fn step(&mut self, action: &[f32]) -> StepOutcome {
        for (control, action) in self.control.iter_mut().zip(action) {
            *control = f64::from(*action);
        }
        self.advance()
    }

    fn observation(&self, out: &mut [f64]) {
        out.copy_from_slice(&self.state[1..]);
        let clip = self.model.velocity_clip;
        for velocity in &mut out[self.simulation.positions() - 1..] {
            *velocity = velocity.clamp(-clip, clip);
        }
    }
}

#[cfg(test)]
mod tests {
    use npyz::npz::NpzArchive;

    use super::*;
    use crate::recorded::{array, native, shared};

    fn load(task: &str) -> Option<Locomotion> {
        Some(Locomotion::load(model(task).unwrap(), native()?).unwrap())
    }

    #[test]
    fn equals_gymnasium_to_the_last_bit() {
        let Some(path) = shared("golden_locomotion_mj3.17.0.npz") else {
            return;
        };
        let mut archive = NpzArchive::open(path).unwrap();
        for Model { task, names, .. } in &MODELS {
            let Some(mut walker) = load(task) else { return };
            let mut column = |name: &str| array::<f64>(&mut archive, &format!("{task}_{name}"), usize::MAX);
            let start = [column("qpos0"), column("qvel0")].concat();
            let (actions, observations, rewards) = (column("actions"), column("observations"), column("rewards"));
            let terminated: Vec<bool> = array(&mut archive, &format!("{task}_terminated"), usize::MAX);

            walker.place(&start);
            let (n_observation, n_action) = (names.observation.len(), names.action.len());
            let mut observation = vec![0.0; n_observation];
            for step in 0..rewards.len() {
                walker.control.copy_from_slice(&actions[step * n_action..][..n_action]);
                let outcome = walker.advance();
                walker.observation(&mut observation);
                assert_eq!(observation, observations[step * n_observation..][..n_observation], "{task} {step}");
                assert_eq!(
                    outcome,
                    StepOutcome { reward: rewards[step], terminated: terminated[step] },
                    "{task} {step}"
                );
                if outcome.terminated {
                    walker.place(&start);
                }
            }
            assert_eq!(rewards.len(), 500);
            assert_eq!(terminated.iter().filter(|t| **t).count() > 0, *task != "halfcheetah");
        }
    }

    #[test]
    fn replays_a_stored_episode_exactly() {
        let Some(path) = shared("halfcheetah_medium_v5.npz") else {
            return;
        };
        let Some(mut walker) = load("halfcheetah") else {
            return;
        };
        let mut archive = NpzArchive::open(path).unwrap();
        let mut start: Vec<f64> = array(&mut archive, "episode_qpos0", 9);
        start.extend(array::<f64>(&mut archive, "episode_qvel0", 9));
        let observations: Vec<f32> = array(&mut archive, "observations", 1000 * 17);
        let actions: Vec<f32> = array(&mut archive, "actions", 1000 * 6);
        let rewards: Vec<f32> = array(&mut archive, "rewards", 1000);
        let last: Vec<f32> = array(&mut archive, "final_observations", 17);

        walker.place(&start);
        let mut observation = [0.0; 17];
        for step in 0..1000 {
            walker.observation(&mut observation);
            assert_eq!(observation.map(|x| x as f32), observations[step * 17..][..17], "step {step}");
            assert_eq!(walker.step(&actions[step * 6..][..6]).reward as f32, rewards[step], "step {step}");
        }
        walker.observation(&mut observation);
        assert_eq!(observation.map(|x| x as f32), last[..]);
    }

    #[test]
    fn start_states_stay_within_the_noise_and_follow_the_seed() {
        for Model { task, noise, .. } in &MODELS {
            let Some(mut walker) = load(task) else { return };
            walker.reset(3);
            let first = walker.state.clone();
            let n = walker.simulation.positions();
            assert!(first.iter().zip(&walker.start).take(n).all(|(a, b)| (a - b).abs() <= *noise), "{task}");
            walker.step(&vec![1.0; walker.names().action.len()]);
            walker.reset(4);
            assert_ne!(walker.state, first, "{task}");
            walker.reset(3);
            assert_eq!(walker.state, first, "{task}");
        }
    }
}
