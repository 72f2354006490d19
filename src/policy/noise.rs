//! A policy whose spread is a setting instead of its own (`policy.action_noise`).

use super::{PolicyBackend, PolicyError, PolicyOutput};
use crate::spaces::FrameShape;

/// The policy with `std` in place of every standard deviation.
pub(super) struct WithNoise {
    pub policy: Box<dyn PolicyBackend>,
    pub std: f32,
}

impl PolicyBackend for WithNoise {
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        self.policy.infer(observation, image, out)?;
        out.std.fill(self.std);
        Ok(())
    }

    fn frame(&self) -> Option<FrameShape> {
        self.policy.frame()
    }

    fn engine(&self) -> &'static str {
        self.policy.engine()
    }

    fn observation_dim(&self) -> usize {
        self.policy.observation_dim()
    }

    fn action_dim(&self) -> usize {
        self.policy.action_dim()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::PolicyConfig;
    use crate::policy::sample::{ensemble, spaces};
    use crate::policy::{PolicyOutput, Source};

    #[test]
    fn the_spread_is_the_setting_and_the_mean_stays() {
        let weights = ensemble(2, 3, &[8], 1).actor;
        let answer = |action_noise| {
            let config = PolicyConfig { action_noise, ..PolicyConfig::default() };
            let mut prepared = Source::Ensemble(&weights, None).prepare(&spaces(3, 1), &config).unwrap();
            let mut out = PolicyOutput::default();
            prepared.backend.infer(&[0.1, -0.2, 0.3], &[], &mut out).unwrap();
            (out.mean[0], out.std[0])
        };
        let own = answer(0.0);
        assert_eq!(answer(0.25), (own.0, 0.25));
        assert!(own.1 != 0.25 && own.1 > 0.0);
    }
}
