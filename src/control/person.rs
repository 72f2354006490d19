//! Human intervention: a person takes the robot over, and control passes from and back to the policy over a time.
//!
//! Runs on the control thread, on every action, between policy and limits: the limits hold for a person, too. What
//! happens when the commands of a person in control stop coming is a setting, [`PersonLost`].

use std::sync::Arc;
use std::time::Duration;

use super::person_slot::{PersonCommand, PersonSlot};
use crate::clock::Stamp;
use crate::config::PersonLost;

/// Who chose an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The policy alone.
    Policy,
    /// A person, or a person and the policy while control passes over.
    Person,
    /// Nobody: the person in control is silent, the action is zero.
    Nobody,
    /// Nobody, and the robot is to be stopped.
    Stop,
}

/// A person's part in the control of the robot. The default: nobody commands it.
#[derive(Clone, Debug, Default)]
pub struct Person {
    /// Where the commands come from.
    pub slot: Arc<PersonSlot>,
    /// A command in force that is older than this counts as silence.
    pub longest_age: Duration,
    /// Steps over which control passes over, in either direction.
    pub blend_steps: u32,
    /// What happens at silence.
    pub lost: PersonLost,
    /// The newest whole command.
    pub newest: PersonCommand,
    /// The person's part in the last action, in `[0, 1]`.
    pub share: f32,
    /// The last action in force, which fades out after the person has let go.
    pub last: PersonCommand,
}

impl Person {
    /// Mixes the person's command into the policy's `action`: `share * person + (1 - share) * policy`, where the share
    /// moves by `1 / blend_steps` per step. Real time.
    pub fn mix(&mut self, now: Stamp, action: &mut [f32]) -> Chosen {
        // A command that is being written counts in the next step.
        self.newest = self.slot.read().unwrap_or(self.newest);
        let in_force = self.newest.len as usize == action.len();
        let silent = in_force && now.since(Stamp(self.newest.at_us)) > self.longest_age;
        match self.lost {
            PersonLost::Stop if silent => return Chosen::Stop,
            PersonLost::Hold if silent => {
                action.fill(0.0);
                // Whoever takes over next starts from standing still.
                (self.last, self.share) = (PersonCommand::default(), 1.0);
                return Chosen::Nobody;
            }
            _ => {}
        }
        let step = 1.0 / self.blend_steps.max(1) as f32;
        if in_force && !silent {
            self.last = self.newest;
            self.share = (self.share + step).min(1.0);
        } else {
            self.share = (self.share - step).max(0.0);
        }
        // What is left of many steps' rounding is no part.
        if self.share < step / 2.0 {
            self.share = 0.0;
            return Chosen::Policy;
        }
        for (entry, person) in action.iter_mut().zip(self.last.action) {
            *entry = self.share * person.clamp(-1.0, 1.0) + (1.0 - self.share) * *entry;
        }
        Chosen::Person
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(lost: PersonLost) -> Person {
        Person { longest_age: Duration::from_millis(50), blend_steps: 4, lost, ..Person::default() }
    }

    /// The action of the next step where the policy wants -1.
    fn next(person: &mut Person, ms: u64) -> (Chosen, f32) {
        let mut action = [-1.0];
        let chosen = person.mix(Stamp(1000 * ms), &mut action);
        (chosen, action[0])
    }

    #[test]
    fn control_passes_over_and_back_in_equal_parts() {
        let mut person = person(PersonLost::Hold);
        assert_eq!(next(&mut person, 0), (Chosen::Policy, -1.0));
        person.slot.command(&[1.0], 0).unwrap();
        for wanted in [-0.5, 0.0, 0.5, 1.0, 1.0] {
            assert_eq!(next(&mut person, 10), (Chosen::Person, wanted));
        }
        person.slot.release(20_000).unwrap();
        for wanted in [0.5, 0.0, -0.5] {
            assert_eq!(next(&mut person, 20), (Chosen::Person, wanted));
        }
        for _ in 0..3 {
            assert_eq!(next(&mut person, 1000), (Chosen::Policy, -1.0), "letting go is no silence");
        }
    }

    #[test]
    fn silence_is_answered_as_configured() {
        for (lost, at_once, later) in [
            (PersonLost::Hold, (Chosen::Nobody, 0.0), (Chosen::Nobody, 0.0)),
            (PersonLost::Policy, (Chosen::Person, 0.5), (Chosen::Policy, -1.0)),
            (PersonLost::Stop, (Chosen::Stop, -1.0), (Chosen::Stop, -1.0)),
        ] {
            let mut person = person(lost);
            person.slot.command(&[1.0], 0).unwrap();
            for _ in 0..4 {
                next(&mut person, 50);
            }
            assert_eq!(next(&mut person, 51), at_once, "{lost:?}");
            (0..3).for_each(|_| _ = next(&mut person, 51));
            assert_eq!(next(&mut person, 51), later, "{lost:?}");
        }
    }

    #[test]
    fn after_a_silence_the_policy_starts_from_standing_still() {
        let mut person = person(PersonLost::Hold);
        person.slot.command(&[1.0], 0).unwrap();
        assert_eq!(next(&mut person, 60), (Chosen::Nobody, 0.0));
        person.slot.release(60_000).unwrap();
        for wanted in [-0.25, -0.5, -0.75] {
            assert_eq!(next(&mut person, 60), (Chosen::Person, wanted));
        }
        assert_eq!(next(&mut person, 60), (Chosen::Policy, -1.0));
    }

    #[test]
    fn what_is_no_action_is_refused_and_the_one_before_stays() {
        use crate::control::NotTaken;
        let slot = PersonSlot::<2>::default();
        slot.command(&[0.5, -0.5], 7).unwrap();
        assert_eq!(slot.command(&[0.0; 3], 8), Err(NotTaken::Length(3)));
        assert_eq!(slot.command(&[], 8), Err(NotTaken::Length(0)));
        assert_eq!(slot.command(&[0.0, f32::NAN], 8), Err(NotTaken::NotFinite(1)));
        assert_eq!(slot.read(), Some(PersonCommand { at_us: 7, len: 2, action: [0.5, -0.5] }));
    }
}
