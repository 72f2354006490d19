//! Limits that hold whatever the policy or the host says. Pure arithmetic on the action.
//!
//! The control thread of the host and the drive of the microcontroller run this same code; it uses comparison,
//! addition and subtraction only, so both get the same bits.

use crate::message::MAX_ACTION;

/// Limits of every action entry, in the policy's units (`[-1, 1]`). A limit that is negative or NaN counts as zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest magnitude.
    pub magnitude: f32,
    /// Largest change from one action to the next.
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
    pub const fn new(limits: Limits) -> Self {
        let Limits { magnitude, slew } = limits;
        Self { limits: Limits { magnitude: usable(magnitude), slew: usable(slew) }, last: [0.0; MAX_ACTION] }
    }

    /// The limits it holds.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// The last action, [`MAX_ACTION`] entries.
    pub const fn last(&self) -> &[f32; MAX_ACTION] {
        &self.last
    }

    /// Back to rest, at the start of an episode.
    pub const fn reset(&mut self) {
        self.last = [0.0; MAX_ACTION];
    }

    /// Changes `action` in place so that every entry is finite, small enough and near enough to the last one. An
    /// entry beyond [`MAX_ACTION`] becomes zero.
    pub fn limit(&mut self, action: &mut [f32]) -> Limited {
        if action.iter().any(|a| !a.is_finite()) {
            action.fill(0.0);
            self.reset();
            return Limited::NotFinite;
        }
        let mut limited = Limited::No;
        let Limits { magnitude, slew } = self.limits;
        let mut last = self.last.iter_mut();
        for entry in action {
            let allowed = match last.next() {
                Some(last) => {
                    *last = between(-magnitude, between(*last - slew, *entry, *last + slew), magnitude);
                    *last
                }
                None => 0.0,
            };
            if allowed != *entry {
                limited = Limited::Yes;
            }
            *entry = allowed;
        }
        limited
    }
}

const fn usable(limit: f32) -> f32 {
    if limit >= 0.0 { limit } else { 0.0 }
}

/// `clamp` that cannot panic, and leaves the sign of a zero alone.
const fn between(low: f32, value: f32, high: f32) -> f32 {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unusable_limits_and_too_many_entries_mean_zero() {
        for limits in [Limits { magnitude: f32::NAN, slew: 1.0 }, Limits { magnitude: 1.0, slew: -1.0 }] {
            let mut action = [0.5, -0.5];
            assert_eq!(Limiter::new(limits).limit(&mut action), Limited::Yes);
            assert_eq!(action, [0.0, 0.0]);
        }
        let mut action = std::vec![0.5; MAX_ACTION + 3];
        assert_eq!(Limiter::new(Limits { magnitude: 1.0, slew: 2.0 }).limit(&mut action), Limited::Yes);
        assert_eq!((action[MAX_ACTION - 1], action[MAX_ACTION]), (0.5, 0.0));
    }

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
