//! Named random streams.
//!
//! Every consumer of randomness owns one stream, derived from the run's seed and the consumer's name, so that a
//! consumer that draws more or less leaves the others alone. A stream serialises with its position.

use candle_core::{Device, Result, Shape, Tensor};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The stream of `name` under `seed`: ChaCha8 keyed with SHA-256 of `seed` (8 bytes, little-endian) and `name`.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let key = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name.as_bytes()).finalize();
    ChaCha8Rng::from_seed(key.into())
}

/// The learner's streams, one per consumer of randomness.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Streams {
    pub(super) minibatch: ChaCha8Rng,
    /// `a ~ pi(s)` of the actor's loss.
    pub(super) noise: ChaCha8Rng,
    /// `a' ~ pi(s')` of the targets.
    pub(super) next_noise: ChaCha8Rng,
    /// `a' ~ pi(s')` of the temperature's loss.
    pub(super) temperature_noise: ChaCha8Rng,
    /// Which target critics REDQ takes.
    pub(super) subset: ChaCha8Rng,
    /// Sampled actions of the conservative penalty.
    pub(super) penalty: ChaCha8Rng,
    /// By how much images are moved.
    pub(super) crops: ChaCha8Rng,
}

impl Streams {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            minibatch: stream(seed, "learner minibatch"),
            noise: stream(seed, "learner action noise"),
            next_noise: stream(seed, "learner next action noise"),
            temperature_noise: stream(seed, "learner temperature noise"),
            subset: stream(seed, "learner critic subset"),
            penalty: stream(seed, "learner penalty actions"),
            crops: stream(seed, "learner crops"),
        }
    }
}

/// `count` draws of the standard normal distribution.
pub(super) fn normal(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    StandardNormal.sample_iter(rng).take(count).collect()
}

/// Standard normal noise of `shape`, row-major in the order of the draws.
pub(super) fn noise(rng: &mut ChaCha8Rng, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::from_vec(normal(rng, shape.elem_count()), shape, device)
}

/// Standard normal noise of the shape of `t`.
pub(super) fn noise_like(t: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    noise(rng, t.shape(), t.device())
}

#[cfg(test)]
mod tests {
    use rand::RngCore;

    use super::*;

    #[test]
    fn streams_differ_by_seed_and_by_name() {
        let first = |seed, name| stream(seed, name).next_u64();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }

    #[test]
    fn a_serialised_stream_goes_on_where_it_was() {
        let mut rng = stream(3, "noise");
        normal(&mut rng, 37);
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(&rng, config).unwrap();
        let (mut copy, _): (ChaCha8Rng, _) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
        assert_eq!(normal(&mut rng, 100), normal(&mut copy, 100));
    }
}
