//! The numbers of balanced replay (Off2OnRL, Eq. 6 and the published code).

use super::error::ReplayError;
use crate::config::ReplayConfig;

/// New samples over which `initial_online_share` is defined.
const FIRST_ONLINE_SAMPLES: f64 = 1000.0;
/// Guard of the normaliser, from the published code.
const NORMALISER_GUARD: f32 = 1e-10;
/// Priority of offline data before its first update.
pub(crate) const OFFLINE_PRIORITY: f32 = 1.0;

/// Settings of balanced replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalancedSettings {
    /// `rho0`: share of the first 1000 online samples in all draws when they arrive, in `[0, 1)`.
    pub initial_online_share: f64,
    /// Share of offline rows in every minibatch of the symmetric sampler, in `[0, 1]`.
    pub offline_share: f64,
    /// `T` in `w^(1/T)`, above 0.
    pub priority_temperature: f64,
    /// Written priorities are clamped to at least this.
    pub priority_min: f32,
    /// Written priorities are clamped to at most this.
    pub priority_max: f32,
}

impl From<&ReplayConfig> for BalancedSettings {
    fn from(config: &ReplayConfig) -> Self {
        Self {
            initial_online_share: config.initial_online_share,
            offline_share: config.offline_share,
            priority_temperature: config.priority_temperature,
            priority_min: config.priority_min,
            priority_max: config.priority_max,
        }
    }
}

impl BalancedSettings {
    /// Refuses values for which the formulas have no meaning.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn check(&self) -> Result<(), ReplayError> {
        let wrong = |key, value, range| Err(ReplayError::Setting { key, value, range });
        if !(0.0..1.0).contains(&self.initial_online_share) {
            return wrong("initial_online_share", self.initial_online_share, "at least 0 and below 1");
        }
        if !(self.priority_temperature > 0.0 && self.priority_temperature.is_finite()) {
            return wrong("priority_temperature", self.priority_temperature, "above 0");
        }
        if !(self.priority_min >= 0.0 && self.priority_min.is_finite()) {
            return wrong("priority_min", self.priority_min.into(), "at least 0");
        }
        if !(self.priority_max >= self.priority_min && self.priority_max.is_finite()) {
            return wrong("priority_max", self.priority_max.into(), "at least `priority_min`");
        }
        Ok(())
    }

    /// `P0 = M rho0 / ((1 - rho0) 1000)`, the priority of new samples beside `offline_transitions` = M of priority 1.
    ///
    /// With `rho0` or M of 0 the formula gives 0, and online data would never be drawn; then it is 1.
    pub fn initial_priority(&self, offline_transitions: u64) -> f32 {
        let rho = self.initial_online_share;
        let priority = offline_transitions as f64 * rho / ((1.0 - rho) * FIRST_ONLINE_SAMPLES);
        if priority > 0.0 { priority as f32 } else { OFFLINE_PRIORITY }
    }

    /// Priorities from density ratios: `clamp(w^(1/T) / (mean over the offline minibatch of w^(1/T) + 1e-10))`.
    ///
    /// `ratio`: of the reinforcement-learning minibatch, `offline_ratio`: of the offline minibatch of the same
    /// iteration, both with the density network from before its step. NaN stays NaN, and [`super::Replay`]
    /// refuses it. Source: Off2OnRL, Eq. 6.
    pub fn priorities(&self, ratio: &[f32], offline_ratio: &[f32], into: &mut Vec<f32>) {
        let exponent = (1.0 / self.priority_temperature) as f32;
        let sum: f32 = offline_ratio.iter().map(|w| w.powf(exponent)).sum();
        let normaliser = sum / offline_ratio.len().max(1) as f32 + NORMALISER_GUARD;
        into.clear();
        into.extend(ratio.iter().map(|w| self.clamp(w.powf(exponent) / normaliser)));
    }

    pub(crate) fn clamp(&self, priority: f32) -> f32 {
        // Not `f32::clamp`: that panics for a NaN bound.
        if priority.is_nan() { priority } else { priority.min(self.priority_max).max(self.priority_min) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> BalancedSettings {
        BalancedSettings::from(&ReplayConfig::default())
    }

    #[test]
    fn a_thousand_new_samples_get_the_initial_share() {
        let priority = settings().initial_priority(1_000_000);
        assert_eq!(priority, 3000.0);
        assert_eq!(settings().initial_priority(100_000), 300.0);
        let online = 1000.0 * priority;
        assert!((online / (online + 1e6) - 0.75).abs() < 1e-6);
        assert_eq!(settings().initial_priority(0), 1.0);
    }

    #[test]
    fn priorities_are_normalised_by_the_offline_minibatch_and_clamped() {
        let mut priorities = Vec::new();
        // T = 5: 32^(1/5) = 2 and the offline mean of 1 and 2 is 1.5.
        settings().priorities(&[32.0, 1.0, 0.0, 1e30], &[1.0, 32.0], &mut priorities);
        let expected = [2.0 / 1.5, 1.0 / 1.5, 1e-3, 1e3];
        for (priority, expected) in priorities.iter().zip(expected) {
            assert!((priority - expected).abs() < 1e-5 * expected, "{priority} instead of {expected}");
        }
        settings().priorities(&[f32::NAN], &[1.0], &mut priorities);
        assert!(priorities[0].is_nan());
    }

    #[test]
    fn settings_without_a_meaning_are_refused() {
        assert!(settings().check().is_ok());
        assert!(BalancedSettings { initial_online_share: 1.0, ..settings() }.check().is_err());
        assert!(BalancedSettings { initial_online_share: f64::NAN, ..settings() }.check().is_err());
        assert!(BalancedSettings { priority_temperature: 0.0, ..settings() }.check().is_err());
        assert!(BalancedSettings { priority_min: 2.0, priority_max: 1.0, ..settings() }.check().is_err());
        assert!(BalancedSettings { priority_max: f32::INFINITY, ..settings() }.check().is_err());
    }
}
