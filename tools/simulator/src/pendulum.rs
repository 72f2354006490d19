//! Pendulum swing-up with the equations of gymnasium's `Pendulum-v1`: needs no native files.

use std::f64::consts::PI;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::task::{Names, StepOutcome, Task};

pub(crate) const NAMES: Names = Names { observation: &["cos_theta", "sin_theta", "theta_rad_s"], action: &["torque"] };

const GRAVITY_M_S2: f64 = 10.0;
const MASS_KG: f64 = 1.0;
const LENGTH_M: f64 = 1.0;
const PERIOD_S: f64 = 0.05;
const MAX_TORQUE_N_M: f64 = 2.0;
const MAX_SPEED_RAD_S: f64 = 8.0;

/// A pendulum with a motor that is too weak to lift it in one go. Angle 0 is upright; it never terminates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pendulum {
    theta_rad: f64,
    theta_rad_s: f64,
}

impl Task for Pendulum {
    fn names(&self) -> Names {
        NAMES
    }

    fn control_hz(&self) -> f64 {
        1.0 / PERIOD_S
    }

    fn reset(&mut self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.theta_rad = rng.random_range(-PI..PI);
        self.theta_rad_s = rng.random_range(-1.0..1.0);
    }

    fn step(&mut self, action: &[f32]) -> StepOutcome {
        let torque = MAX_TORQUE_N_M * f64::from(action[0]).clamp(-1.0, 1.0);
        let angle = (self.theta_rad + PI).rem_euclid(2.0 * PI) - PI;
        let cost = angle.powi(2) + 0.1 * self.theta_rad_s.powi(2) + 0.001 * torque.powi(2);
        let acceleration =
            3.0 * GRAVITY_M_S2 / (2.0 * LENGTH_M) * self.theta_rad.sin() + 3.0 / (MASS_KG * LENGTH_M.powi(2)) * torque;
        self.theta_rad_s = (self.theta_rad_s + acceleration * PERIOD_S).clamp(-MAX_SPEED_RAD_S, MAX_SPEED_RAD_S);
        self.theta_rad += self.theta_rad_s * PERIOD_S;
        StepOutcome { reward: -cost, terminated: false }
    }

    fn observation(&self, out: &mut [f64]) {
        out[0] = self.theta_rad.cos();
        out[1] = self.theta_rad.sin();
        out[2] = self.theta_rad_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // env = gymnasium.make("Pendulum-v1").unwrapped; env.reset(seed=0); env.state = np.array([2.5, -0.75])
    // for u in [2.0, -2.0, 0.5, 1.25, -1.0]: o, r, *_ = env.step(np.array([u])); print(env.state.tolist(), r)
    #[test]
    fn equals_gymnasium() {
        let mut pendulum = Pendulum { theta_rad: 2.5, theta_rad_s: -0.75 };
        let witness = [
            (2.0, 2.499_942_705_403_898_3, -0.001_145_891_922_032_515_9, -6.310_25),
            (-2.0, 2.507_329_837_469_853_4, 0.147_742_641_319_100_06, -6.253_713_661_608_989),
            (0.5, 2.540_688_864_561_599_5, 0.667_180_541_834_919_1, -6.289_135_702_672_999),
            (1.25, 2.604_624_948_101_736, 1.278_721_670_802_726_7, -6.501_175_394_047_624),
            (-1.0, 2.680_243_511_890_193, 1.512_371_275_769_136_5, -6.948_584_031_412_024),
        ];
        for (torque, theta, speed, reward) in witness {
            let outcome = pendulum.step(&[torque / 2.0]);
            assert!((pendulum.theta_rad - theta).abs() < 1e-12);
            assert!((pendulum.theta_rad_s - speed).abs() < 1e-12);
            assert!((outcome.reward - reward).abs() < 1e-12, "{}", outcome.reward);
        }
        pendulum = Pendulum { theta_rad: 3.1, theta_rad_s: 7.9 };
        assert!((pendulum.step(&[1.0]).reward + 15.855).abs() < 1e-12);
        assert_eq!((pendulum.theta_rad, pendulum.theta_rad_s), (3.5, 8.0));
    }

    #[test]
    fn a_seed_names_one_start_state() {
        let start = |seed| {
            let mut pendulum = Pendulum::default();
            pendulum.reset(seed);
            let mut observation = [0.0; 3];
            pendulum.observation(&mut observation);
            observation
        };
        assert_eq!(start(7), start(7));
        assert_ne!(start(7), start(8));
    }
}
