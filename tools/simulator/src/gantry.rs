//! A gantry arm with two fingers over a table with a cube, a tray and a cabinet with two drawers, on MuJoCo: three
//! manipulation tasks with a sparse reward.
//!
//! The action moves the fingertips: its first three entries are the way to the next target in units of [`REACH_M`], the
//! fourth opens the gripper above 0 and shuts it otherwise. Reward 1 and the end of the episode come with success. The
//! observation is the tip and the gripper's opening; the rest is to be seen in the camera.

use std::path::Path;

use anyhow::{Context as _, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::expert::{Expert, Goal, Scene, norm};
use crate::mujoco::Simulation;
use crate::task::{ImageSize, Names, StepOutcome, Task};

pub(crate) const NAMES: Names =
    Names { observation: &["tip_x_m", "tip_y_m", "tip_z_m", "opening_m"], action: &["dx", "dy", "dz", "gripper"] };

/// How far ahead of the tip an action of 1 puts the target; in one period the tip travels about half of it.
pub(crate) const REACH_M: f64 = 0.06;
/// Middle of the tray.
pub(crate) const TRAY: [f64; 2] = [-0.16, 0.10];

const MODEL: &str = include_str!("gantry_drawers.xml");
const IMAGE: ImageSize = ImageSize { width: 48, height: 48 };
const CONTROL_HZ: f64 = 10.0;
const SUBSTEPS: usize = 25;
/// Height of the tip where the joint of the vertical axis is 0.
const TIP_M: f64 = 0.32;
/// Half the opening of the gripper, open and shut; shut asks for more than there is, so that it presses.
const FINGER_M: [f64; 2] = [0.03, -0.005];
/// Range of the three axes' targets.
const AXES_M: [(f64, f64); 3] = [(-0.3, 0.3), (-0.25, 0.3), (-0.31, 0.0)];

// Places in qpos, in the order of the model's joints.
const LOWER: usize = 0;
const UPPER: usize = 1;
const CUBE: usize = 2;
const AXES: usize = 9;
const FINGERS: usize = 12;
const POSITIONS: usize = 14;
const VELOCITIES: usize = 13;

/// The task of a name, if it is one of these.
pub(crate) fn goal(task: &str) -> Option<Goal> {
    match task {
        "gantry-pickplace" => Some(Goal::PickPlace),
        "gantry-closed" => Some(Goal::Closed),
        "gantry-blocked" => Some(Goal::Blocked),
        _ => None,
    }
}

/// The gantry with one of its tasks.
#[derive(Debug)]
pub(crate) struct Gantry {
    goal: Goal,
    simulation: Simulation,
    /// State of the model as it is built: qpos then qvel.
    start: Vec<f64>,
    /// Present state: qpos then qvel.
    state: Vec<f64>,
    script: Option<Expert>,
    /// What the script wants next.
    wanted: Option<[f32; 4]>,
}

impl Gantry {
    /// Loads MuJoCo from `native`; the model is part of this program.
    ///
    /// # Errors
    /// When MuJoCo is missing or unfit.
    pub(crate) fn load(goal: Goal, native: &Path) -> anyhow::Result<Self> {
        let simulation = Simulation::parse(native, MODEL).context("the gantry's model")?;
        ensure!(
            (simulation.positions(), simulation.velocities(), simulation.controls()) == (POSITIONS, VELOCITIES, 5),
            "this MuJoCo lays the gantry's model out in another way; tools/setup-native fetches 3.17.0"
        );
        let mut start = vec![0.0; POSITIONS + VELOCITIES];
        simulation.read_state(&mut start);
        Ok(Self { goal, simulation, state: start.clone(), start, script: None, wanted: None })
    }

    /// Stands in a given state: qpos then qvel.
    fn place(&mut self, state: &[f64]) {
        self.simulation.place(state);
        self.simulation.read_state(&mut self.state);
    }

    fn tip(&self) -> [f64; 3] {
        [self.state[AXES], self.state[AXES + 1], TIP_M + self.state[AXES + 2]]
    }

    fn cube(&self) -> [f64; 3] {
        [self.state[CUBE], self.state[CUBE + 1], self.state[CUBE + 2]]
    }

    /// Where the handles are follows from the model: the drawers slide against y.
    fn scene(&self) -> Scene {
        Scene {
            tip: self.tip(),
            cube: self.cube(),
            lower_handle: [0.12, 0.02 - self.state[LOWER], 0.048],
            upper_handle: [0.12, 0.085 - self.state[UPPER], 0.125],
        }
    }

    fn success(&self) -> bool {
        let (cube, tip) = (self.cube(), self.tip());
        let away_m = norm(std::array::from_fn(|axis| tip[axis] - cube[axis]));
        match self.goal {
            Goal::PickPlace => {
                let inside = (0..2).all(|axis| (cube[axis] - TRAY[axis]).abs() < 0.066);
                inside && cube[2] < 0.05 && away_m > 0.05
            }
            Goal::Closed | Goal::Blocked => cube[2] > 0.10 && away_m < 0.05,
        }
    }

    fn ask_script(&mut self) {
        let scene = self.scene();
        self.wanted = self.script.as_mut().map(|script| script.act(&scene));
    }
}

impl Task for Gantry {
    fn names(&self) -> Names {
        NAMES
    }

    fn control_hz(&self) -> f64 {
        CONTROL_HZ
    }

    fn reset(&mut self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut state = self.start.clone();
        state[AXES] = rng.random_range(-0.1..0.05);
        state[AXES + 1] = rng.random_range(-0.15..-0.1);
        state[AXES + 2] = -0.10;
        state[FINGERS..FINGERS + 2].fill(FINGER_M[0]);
        let cube = match self.goal {
            Goal::PickPlace => [rng.random_range(-0.22..0.0), rng.random_range(-0.16..-0.02), 0.016],
            // In the lower drawer.
            Goal::Closed | Goal::Blocked => {
                [0.12 + rng.random_range(-0.04..0.04), 0.165 + rng.random_range(-0.015..0.015), 0.026]
            }
        };
        state[CUBE..CUBE + 3].copy_from_slice(&cube);
        if self.goal == Goal::Blocked {
            state[UPPER] = rng.random_range(0.10..0.15);
        }
        self.place(&state);
        if let Some(script) = &mut self.script {
            script.reset(seed);
        }
        self.ask_script();
    }

    fn step(&mut self, action: &[f32]) -> StepOutcome {
        let tip = self.tip();
        let above = [0.0, 0.0, TIP_M];
        let finger = FINGER_M[usize::from(action[3] <= 0.0)];
        let mut control = [finger; 5];
        for axis in 0..3 {
            let (low, high) = AXES_M[axis];
            let target = tip[axis] - above[axis] + REACH_M * f64::from(action[axis]).clamp(-1.0, 1.0);
            control[axis] = target.clamp(low, high);
        }
        self.simulation.step(&control, SUBSTEPS);
        self.simulation.read_state(&mut self.state);
        self.ask_script();
        let success = self.success();
        StepOutcome { reward: f64::from(u8::from(success)), terminated: success }
    }

    fn observation(&self, out: &mut [f64]) {
        out[..3].copy_from_slice(&self.tip());
        out[3] = self.state[FINGERS] + self.state[FINGERS + 1];
    }

    fn follow_script(&mut self, noise: &[f64]) -> anyhow::Result<()> {
        self.script = Some(Expert::new(self.goal, noise));
        Ok(())
    }

    fn wanted(&self) -> Option<&[f32]> {
        self.wanted.as_ref().map(<[f32; 4]>::as_slice)
    }

    fn open_camera(&mut self, native: &Path) -> anyhow::Result<ImageSize> {
        self.simulation.open_view(native, IMAGE)?;
        Ok(IMAGE)
    }

    fn draw(&self, pixels: &mut [u8]) {
        self.simulation.draw(pixels);
    }
}

#[cfg(test)]
mod tests {
    use npyz::npz::NpzArchive;

    use super::*;
    use crate::recorded::{array, native, shared};

    /// Task, recording, limit of its episodes, and the least successes of 20 episodes of the script without noise.
    const TASKS: [(&str, &str, u32, usize); 3] = [
        ("gantry-pickplace", "gantry_pickplace.npz", 40, 20),
        ("gantry-closed", "gantry_closed.npz", 50, 9),
        ("gantry-blocked", "gantry_blocked.npz", 80, 9),
    ];

    fn load(task: &str) -> Option<Gantry> {
        Some(Gantry::load(goal(task).unwrap(), native()?).unwrap())
    }

    fn proprioception(gantry: &Gantry) -> [f32; 4] {
        let mut observation = [0.0; 4];
        gantry.observation(&mut observation);
        observation.map(|value| value as f32)
    }

    /// Recorded actions again, from the recorded starts: observations and rewards to the last bit, and what the camera
    /// sees in the first episodes.
    #[test]
    fn replays_what_was_recorded() {
        const EPISODES: usize = 50;
        const SEEN: usize = 3;
        for (task, file, ..) in TASKS {
            let (Some(path), Some(mut gantry)) = (shared(file), load(task)) else { return };
            let mut archive = NpzArchive::open(path).unwrap();
            let camera = gantry.open_camera(native().unwrap());
            let camera = camera.inspect_err(|error| eprintln!("skipped: the gantry's images: {error:#}")).is_ok();
            let starts: Vec<f64> = array(&mut archive, "episode_qpos0", usize::MAX);
            let ends: Vec<i64> = array(&mut archive, "episode_ends", usize::MAX);
            let observations: Vec<f32> = array(&mut archive, "proprio", usize::MAX);
            let actions: Vec<f32> = array(&mut archive, "actions", usize::MAX);
            let rewards: Vec<f32> = array(&mut archive, "rewards", usize::MAX);
            let terminals: Vec<bool> = array(&mut archive, "terminals", usize::MAX);
            let bytes = 3 * IMAGE.pixels();
            let images: Vec<u8> = array(&mut archive, "images", ends[SEEN - 1] as usize * bytes);
            let (mut pixels, mut off, mut seen, mut step) = (vec![0; bytes], 0, 0, 0);
            for (start, end) in starts.chunks(POSITIONS).zip(&ends).take(EPISODES) {
                gantry.place(&[start, &[0.0; VELOCITIES]].concat());
                while step < *end as usize {
                    assert_eq!(proprioception(&gantry), observations[4 * step..][..4], "{task}, step {step}");
                    if let Some(recorded) = images.get(step * bytes..(step + 1) * bytes).filter(|_| camera) {
                        gantry.draw(&mut pixels);
                        off += pixels.iter().zip(recorded).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
                        seen += 1;
                    }
                    let outcome = gantry.step(&actions[4 * step..][..4]);
                    let recorded = StepOutcome { reward: rewards[step].into(), terminated: terminals[step] };
                    assert_eq!(outcome, recorded, "{task}, step {step}");
                    step += 1;
                }
            }
            let off = off as f64 / images.len() as f64;
            println!("{task}: {step} steps again, {seen} images, whose pixels differ by {off} of 255 on average");
            assert!(step > 1000 && (seen > 50 || !camera) && off < 0.5, "{task}: {step}, {seen}, {off}");
        }
    }

    #[test]
    fn the_script_solves_the_tasks() {
        for (task, _, limit, wanted) in TASKS {
            let Some(mut gantry) = load(task) else { return };
            let solved = |gantry: &mut Gantry, seed| {
                gantry.reset(seed);
                (0..limit).any(|_| {
                    let action = gantry.wanted.unwrap();
                    gantry.step(&action).terminated
                })
            };
            gantry.follow_script(&[]).unwrap();
            let found = (0..20).filter(|seed| solved(&mut gantry, *seed)).count();
            gantry.follow_script(&[0.6]).unwrap();
            let noisy = (0..20).filter(|seed| solved(&mut gantry, *seed)).count();
            println!("{task}: the script succeeds in {found} of 20 episodes, with noise of 0.6 in {noisy}");
            assert!(found >= wanted && noisy < found, "{task}: {found}, {noisy}");
        }
    }

    #[test]
    fn start_states_follow_the_seed_and_the_script_with_them() {
        for (task, ..) in TASKS {
            let Some(mut gantry) = load(task) else { return };
            gantry.follow_script(&[0.1, 0.3]).unwrap();
            let mut start = |seed| {
                gantry.reset(seed);
                (gantry.state.clone(), gantry.wanted)
            };
            let (first, other, again) = (start(3), start(4), start(3));
            assert_eq!(first, again, "{task}");
            assert_ne!((first.0, first.1), other, "{task}");
        }
    }
}
