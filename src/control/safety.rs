//! Limits that hold whatever the policy says. Pure arithmetic on the action, in the control thread.

use firmware_bridge::MAX_ACTION;

/// Limits of every action entry, in the policy's units (`[-1, 1]`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest magnitude.
    pub magnitude: f32,
    /// Largest change per step.
    pub slew: f32,
}

/// What [`Limiter::limit`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Nothing.
    No,
    /// At least one entry was changed.
    Yes,
    /// An entry was not finite: the whole action became zero.
    NotFinite,
}

/// Keeps the last action, for the slew limit.
#[derive(Clone, Debug)]
pub struct Limiter {
    limits: Limits,
    last: [f32; MAX_ACTION],
}

impl Limiter {
    /// A limiter at rest: the last action is zero.
    pub fn new(limits: Limits) -> Self {
        Self { limits, last: [0.0; MAX_ACTION] }
    }

    /// Back to rest, at the start of an episode.
    pub fn reset(&mut self) {
        self.last = [0.0; MAX_ACTION];
    }

    /// Changes `action` in place so that every entry is finite, small enough and near enough to the last one.
    pub fn limit(&mut self, action: &mut [f32]) -> Limited {
        if action.iter().any(|a| !a.is_finite()) {
            action.fill(0.0);
            self.remember(action);
            return Limited::NotFinite;
        }
        let mut limited = Limited::No;
        let Limits { magnitude, slew } = self.limits;
        for (entry, last) in action.iter_mut().zip(&self.last) {
            let allowed = entry.clamp(last - slew, last + slew).clamp(-magnitude, magnitude);
            if allowed != *entry {
                *entry = allowed;
                limited = Limited::Yes;
            }
        }
        self.remember(action);
        limited
    }

    fn remember(&mut self, action: &[f32]) {
        self.last[..action.len()].copy_from_slice(action);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn not_finite_becomes_zero() {
        let mut limiter = Limiter::new(Limits { magnitude: 1.0, slew: 2.0 });
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut action = [0.5, bad];
            assert_eq!(limiter.limit(&mut action), Limited::NotFinite);
            assert_eq!(action, [0.0, 0.0]);
        }
    }

    proptest! {
        #[test]
        fn limits_hold_for_any_actions(
            actions in prop::collection::vec(prop::array::uniform3(prop::num::f32::ANY), 1..50),
            magnitude in 0.01f32..1.0,
            slew in 0.01f32..2.0,
        ) {
            let mut limiter = Limiter::new(Limits { magnitude, slew });
            let mut last = [0.0f32; 3];
            for mut action in actions {
                let finite = action.iter().all(|a| a.is_finite());
                let outcome = limiter.limit(&mut action);
                prop_assert!(action.iter().all(|a| a.abs() <= magnitude));
                prop_assert_eq!(outcome == Limited::NotFinite, !finite);
                if finite {
                    for (now, before) in action.iter().zip(&last) {
                        prop_assert!((now - before).abs() <= slew * 1.000_001);
                    }
                }
                last = action;
            }
        }
    }
}
