//! Actors with eyes for tests: random numbers from a seed, small enough for anything.
#![allow(dead_code, reason = "no test needs all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use fieldtune::nn::weights::{ActorWeights, EnsembleWeights, Eyes, LayerWeights, LogStdBounds, StackWeights};
use fieldtune::nn::{ConvEncoderWeights, ConvWeights};
use fieldtune::policy::Bundle;
use fieldtune::policy::manifest::Description;
use fieldtune::spaces::{FrameShape, Spaces};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Output channels of the convolutions.
pub(crate) const CHANNELS: [usize; 3] = [16, 5, 4];
/// Width of the dense layer.
const FEATURES: usize = 9;

/// What the actors see: `encoders` is 1 or the number of members.
pub(crate) fn eyes(
    encoders: usize,
    shape: FrameShape,
    observation_dim: usize,
    proprioception: bool,
    seed: u64,
) -> Eyes {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: usize, bound: f32| (0..n).map(|_| rng.random_range(-bound..bound)).collect::<Vec<f32>>();
    let flat = CHANNELS[2] * usize::from(shape.width / 4) * usize::from(shape.height / 4);
    let mut encoder = || {
        let mut inputs = usize::from(shape.channels);
        let convolutions = CHANNELS.map(|outputs| {
            let weight = draw(9 * inputs * outputs, 0.4);
            ConvWeights { inputs: std::mem::replace(&mut inputs, outputs), outputs, weight, bias: draw(outputs, 0.1) }
        });
        let (dense_weight, dense_bias) = (draw(flat * FEATURES, 0.3), draw(FEATURES, 0.1));
        ConvEncoderWeights { convolutions: convolutions.to_vec(), dense: (flat, FEATURES), dense_weight, dense_bias }
    };
    let encoders = (0..encoders).map(|_| encoder()).collect();
    Eyes { shape, encoders, observation_dim, proprioception }
}

/// Actors behind `eyes`.
pub(crate) fn actor(members: usize, eyes: Eyes, action_dim: usize, seed: u64) -> ActorWeights {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let inputs = FEATURES + if eyes.proprioception { eyes.observation_dim } else { 0 };
    let layers = [inputs, 20, 2 * action_dim]
        .windows(2)
        .map(|d| LayerWeights {
            inputs: d[0],
            outputs: d[1],
            weight: (0..members * d[0] * d[1]).map(|_| rng.random_range(-0.3..0.3)).collect(),
            bias: (0..members * d[1]).map(|_| rng.random_range(-0.1..0.1)).collect(),
            layer_norm: None,
        })
        .collect();
    ActorWeights { stack: StackWeights { members, layers }, log_std: LogStdBounds::default(), eyes: Some(eyes) }
}

/// A bundle of actors alone.
pub(crate) fn bundle(actor: ActorWeights, spaces: Spaces) -> Bundle {
    let description = Description {
        name: "sees".into(),
        control_hz: 20.0,
        algorithm: "none".into(),
        discount: 0.99,
        training_log_std: None,
        residual: None,
        spaces,
        provenance: BTreeMap::new(),
    };
    Bundle::new(description, EnsembleWeights { actor, ..EnsembleWeights::default() }).unwrap()
}
