//! Who chooses the actions when no bundle does: chance, a table, a person's hand, the robot itself.
//!
//! Each is a [`PolicyBackend`], so that limits, faults, swaps and records are those of every policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use firmware_bridge::MAX_ACTION;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::config::Config;
use crate::learner::stream;
use crate::policy::{PolicyBackend, PolicyError, PolicyOutput};
use crate::spaces::Spaces;

/// Who chooses the actions.
#[derive(Clone, Debug, Default)]
pub enum ActionSource {
    /// The policy of the configuration.
    #[default]
    Policy,
    /// Chance, uniform in `[-1, 1]`.
    Uniform,
    /// A table, one row per step, `(action_dim)` values in `[-1, 1]`; it begins again at its end.
    Script(Vec<Vec<f32>>),
    /// A person.
    Hand(Arc<Hand>),
    /// The robot itself, which reports what it did: the commands are zero.
    Robot,
}

impl ActionSource {
    /// The source as a policy; of [`ActionSource::Policy`], one that keeps still. Chance depends on the seed and on the
    /// first episode.
    pub(super) fn backend(&self, config: &Config, first_episode: u32) -> Box<dyn PolicyBackend> {
        let choice = match self {
            Self::Policy | Self::Robot => Choice::Script(Vec::new(), 0),
            Self::Uniform => {
                let name = format!("uniform actions from episode {first_episode}");
                Choice::Uniform(Box::new(stream(config.run.seed, &name)))
            }
            Self::Script(rows) => Choice::Script(rows.clone(), 0),
            Self::Hand(hand) => Choice::Hand(Arc::clone(hand)),
        };
        Box::new(Chosen { choice, spaces: config.robot.spaces.clone() })
    }

    /// Whether a person chooses.
    pub(super) fn is_person(&self) -> bool {
        matches!(self, Self::Hand(_))
    }
}

/// Where a person's hand is: an action that any thread sets and the control loop reads.
#[derive(Debug)]
pub struct Hand([AtomicU32; MAX_ACTION]);

impl Default for Hand {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Hand {
    /// Moves one entry to `value` in `[-1, 1]`; entries are independent of each other. One that is not there is
    /// ignored.
    pub fn put(&self, entry: usize, value: f32) {
        if let Some(entry) = self.0.get(entry) {
            entry.store(value.to_bits(), Relaxed);
        }
    }

    /// Where an entry is; real time.
    pub fn at(&self, entry: usize) -> f32 {
        self.0.get(entry).map_or(0.0, |entry| f32::from_bits(entry.load(Relaxed)))
    }
}

enum Choice {
    Uniform(Box<ChaCha8Rng>),
    /// Rows and the next one.
    Script(Vec<Vec<f32>>, usize),
    Hand(Arc<Hand>),
}

struct Chosen {
    choice: Choice,
    spaces: Spaces,
}

impl PolicyBackend for Chosen {
    fn infer(&mut self, _observation: &[f32], _image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        out.action_dim = self.spaces.action_dim();
        out.std.fill(0.0);
        let count = out.action_dim.min(MAX_ACTION);
        for (entry, mean) in out.mean[..count].iter_mut().enumerate() {
            let action = match &mut self.choice {
                Choice::Uniform(rng) => rng.random_range(-1.0..=1.0),
                Choice::Script(rows, at) => rows.get(*at).and_then(|row| row.get(entry)).copied().unwrap_or(0.0),
                Choice::Hand(hand) => hand.at(entry),
            };
            *mean = before_tanh(action);
        }
        if let Choice::Script(rows, at) = &mut self.choice {
            *at = if *at + 1 < rows.len() { *at + 1 } else { 0 };
        }
        Ok(())
    }

    fn engine(&self) -> &'static str {
        match self.choice {
            Choice::Uniform(_) => "chance",
            Choice::Script(..) => "a script",
            Choice::Hand(_) => "a person",
        }
    }

    fn observation_dim(&self) -> usize {
        self.spaces.observation_dim()
    }

    fn action_dim(&self) -> usize {
        self.spaces.action_dim()
    }
}

/// What `tanh` makes `action` of again. `tanh(10)` is 1 in single precision.
fn before_tanh(action: f32) -> f32 {
    action.atanh().clamp(-10.0, 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Actions of a source in its first steps, as the control loop takes them.
    fn actions(source: &ActionSource, first_episode: u32, steps: usize) -> Vec<f32> {
        let mut backend = source.backend(&Config::default(), first_episode);
        let mut out = PolicyOutput::default();
        let mut act = || {
            backend.infer(&[0.0; 3], &[], &mut out).unwrap();
            assert_eq!((out.mean().len(), out.std()), (1, &[0.0][..]));
            out.mean[0].tanh()
        };
        (0..steps).map(|_| act()).collect()
    }

    #[test]
    fn each_source_does_what_its_name_says() {
        let script = ActionSource::Script(vec![vec![-1.0], vec![0.25], vec![1.0]]);
        let near = |found: Vec<f32>, wanted: &[f32]| {
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        };
        near(actions(&script, 0, 4), &[-1.0, 0.25, 1.0, -1.0]);
        let hand = Arc::new(Hand::default());
        hand.put(0, -0.5);
        hand.put(99, 1.0);
        near(actions(&ActionSource::Hand(hand), 0, 2), &[-0.5, -0.5]);
        near(actions(&ActionSource::Robot, 0, 2), &[0.0, 0.0]);
    }

    #[test]
    fn chance_is_uniform_and_differs_from_start_to_start() {
        let drawn = actions(&ActionSource::Uniform, 0, 4000);
        let mean = drawn.iter().sum::<f32>() / 4000.0;
        let square = drawn.iter().map(|a| a * a).sum::<f32>() / 4000.0;
        assert!(mean.abs() < 0.05 && (square - 1.0 / 3.0).abs() < 0.02, "{mean} {square}");
        assert_eq!(drawn[..9], actions(&ActionSource::Uniform, 0, 9));
        assert_ne!(drawn[..9], actions(&ActionSource::Uniform, 7, 9));
    }
}
