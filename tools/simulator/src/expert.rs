//! A script that solves the gantry's tasks. It sees what no policy sees: where the cube and the handles are.
//!
//! A task is a row of legs; a leg moves the fingertips to a point until they are near enough or it has taken too long.
//! Noise on the actions makes the data broad. After the last leg the gantry stands still.

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::gantry::{REACH_M, TRAY};

type Point = [f64; 3];

/// What the script sees, in metres.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) tip: Point,
    pub(crate) cube: Point,
    pub(crate) lower_handle: Point,
    pub(crate) upper_handle: Point,
}

/// One movement.
struct Leg {
    /// Where to; looked at once, when the leg begins, or in every step.
    aim: fn(&Scene) -> Point,
    follow: bool,
    /// Above 0 the gripper opens.
    grip: f64,
    /// It ends this near to its aim, or after so many steps.
    near_m: f64,
    most_steps: u32,
}

/// No entry is larger: at 1 the density of a squashed Gaussian has no bound, which an imitation may follow rather than
/// the task.
const MOST: f64 = 0.9;
const OPEN: f64 = MOST;
const SHUT: f64 = -MOST;
/// Height over everything that stands on the table.
const ABOVE_M: f64 = 0.22;
/// Height of the drawer handle's middle, and how far a drawer is pulled.
const HANDLE_M: f64 = 0.028;
const PULL_M: f64 = 0.185;

const fn to(grip: f64, near_m: f64, aim: fn(&Scene) -> Point) -> Leg {
    Leg { aim, follow: false, grip, near_m, most_steps: 25 }
}

const fn after(grip: f64, near_m: f64, aim: fn(&Scene) -> Point) -> Leg {
    Leg { follow: true, ..to(grip, near_m, aim) }
}

/// Stands still for some steps: an aim that is never reached.
const fn wait(grip: f64, steps: u32) -> Leg {
    Leg { most_steps: steps, ..after(grip, 0.0, |scene| scene.tip) }
}

const UP: Leg = after(OPEN, 0.02, |s| [s.tip[0], s.tip[1], s.tip[2].max(ABOVE_M)]);

const GRASP: [Leg; 3] = [
    to(OPEN, 0.015, |s| [s.cube[0], s.cube[1], 0.12]),
    after(OPEN, 0.008, |s| [s.cube[0], s.cube[1], (s.cube[2] - 0.012).max(0.004)]),
    wait(SHUT, 2),
];
const INTO_TRAY: [Leg; 3] =
    [to(SHUT, 0.02, |s| [s.cube[0], s.cube[1], 0.14]), to(SHUT, 0.015, |_| [TRAY[0], TRAY[1], 0.12]), wait(OPEN, 4)];
const LIFT: [Leg; 1] = [to(SHUT, 0.02, |s| [s.cube[0], s.cube[1], 0.16])];
const PULL_LOWER: [Leg; 7] = [
    UP,
    to(OPEN, 0.02, |s| [s.lower_handle[0], s.lower_handle[1] + 0.002, ABOVE_M]),
    to(OPEN, 0.01, |s| [s.lower_handle[0], s.lower_handle[1] + 0.002, HANDLE_M]),
    wait(SHUT, 1),
    Leg { most_steps: 9, ..to(SHUT, 0.015, |s| [s.lower_handle[0], s.lower_handle[1] - PULL_M, HANDLE_M]) },
    wait(OPEN, 1),
    after(OPEN, 0.02, |s| [s.tip[0], s.tip[1], 0.11]),
];
/// The open upper drawer, pushed shut from the front.
const PUSH_UPPER: [Leg; 5] = [
    UP,
    to(OPEN, 0.02, |s| [s.upper_handle[0], s.upper_handle[1] - 0.05, ABOVE_M]),
    to(SHUT, 0.015, |s| [s.upper_handle[0], s.upper_handle[1] - 0.05, 0.115]),
    Leg { most_steps: 12, ..to(SHUT, 0.012, |s| [s.upper_handle[0], 0.073, 0.115]) },
    to(SHUT, 0.025, |s| [s.tip[0], s.tip[1] - 0.06, 0.13]),
];

/// The parts of each task.
const PICKPLACE: &[&[Leg]] = &[&GRASP, &INTO_TRAY];
const CLOSED: &[&[Leg]] = &[&PULL_LOWER, &GRASP, &LIFT];
const BLOCKED: &[&[Leg]] = &[&PUSH_UPPER, &PULL_LOWER, &GRASP, &LIFT];

/// The task that a script solves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The cube lies in the tray.
    PickPlace,
    /// The cube is out of the lower drawer, which is shut at first.
    Closed,
    /// The same, and the upper drawer stands open over the lower one's handle.
    Blocked,
}

/// The script of one task.
#[derive(Debug)]
pub(crate) struct Expert {
    goal: Goal,
    levels: Vec<f64>,
    /// Of this episode: standard deviation on every direction of movement.
    noise: f64,
    rng: ChaCha8Rng,
    /// The leg, the steps spent in it, and where it goes.
    leg: usize,
    steps: u32,
    aim: Option<Point>,
}

impl Expert {
    /// A script whose every episode draws its noise from `levels`; none means no noise.
    pub(crate) fn new(goal: Goal, levels: &[f64]) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(0);
        Self { goal, levels: levels.to_vec(), noise: 0.0, rng, leg: 0, steps: 0, aim: None }
    }

    /// Begins again; the noise depends on `seed` alone.
    pub(crate) fn reset(&mut self, seed: u64) {
        self.rng = ChaCha8Rng::seed_from_u64(seed);
        // The start state is drawn from the first stream of this seed.
        self.rng.set_stream(1);
        self.noise = self.levels.choose(&mut self.rng).copied().unwrap_or(0.0);
        (self.leg, self.steps, self.aim) = (0, 0, None);
    }

    /// The action of the next step: dx, dy, dz, gripper.
    pub(crate) fn act(&mut self, scene: &Scene) -> [f32; 4] {
        while let Some(leg) = self.present() {
            let aim = if leg.follow { (leg.aim)(scene) } else { *self.aim.get_or_insert_with(|| (leg.aim)(scene)) };
            let way: Point = std::array::from_fn(|axis| aim[axis] - scene.tip[axis]);
            if self.steps < leg.most_steps && norm(way) >= leg.near_m {
                self.steps += 1;
                return self.noisy(way, leg.grip);
            }
            (self.leg, self.steps, self.aim) = (self.leg + 1, 0, None);
        }
        [0.0, 0.0, 0.0, if self.goal == Goal::PickPlace { OPEN } else { SHUT } as f32]
    }

    fn present(&self) -> Option<&'static Leg> {
        let parts = match self.goal {
            Goal::PickPlace => PICKPLACE,
            Goal::Closed => CLOSED,
            Goal::Blocked => BLOCKED,
        };
        parts.iter().copied().flatten().nth(self.leg)
    }

    fn noisy(&mut self, way: Point, grip: f64) -> [f32; 4] {
        let mut action = [grip as f32; 4];
        for (entry, way) in action.iter_mut().zip(way) {
            let noise = self.noise * self.rng.sample::<f64, _>(StandardNormal);
            *entry = ((way / REACH_M).clamp(-MOST, MOST) + noise).clamp(-MOST, MOST) as f32;
        }
        action
    }
}

/// Length of `way`.
pub(crate) fn norm(way: Point) -> f64 {
    way.iter().map(|d| d * d).sum::<f64>().sqrt()
}
