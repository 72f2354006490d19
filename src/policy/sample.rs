//! Networks for tests, and their answers by plain loops.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::native::LAYER_NORM_EPSILON;
use crate::nn::weights::{ActorWeights, EnsembleWeights, Eyes, LayerWeights, LogStdBounds, StackWeights};
use crate::nn::{ConvEncoder, ConvEncoderWeights, ConvWeights};
use crate::spaces::{FrameShape, Spaces};

/// Random networks with critics.
pub(super) fn ensemble(members: usize, observation: usize, hidden: &[usize], action: usize) -> EnsembleWeights {
    let mut random = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(members as u64));
    let mut stack = |inputs: usize, outputs: usize| {
        let widths: Vec<usize> = [inputs].iter().chain(hidden).chain(&[outputs]).copied().collect();
        let layers = widths.windows(2).map(|w| {
            let scale = 1.0 / (w[0] as f32).sqrt();
            let mut draw = |n: usize| random.by_ref().take(n).map(|v: f32| v * scale).collect::<Vec<f32>>();
            let (weight, bias) = (draw(members * w[0] * w[1]), draw(members * w[1]));
            LayerWeights { inputs: w[0], outputs: w[1], weight, bias, layer_norm: None }
        });
        StackWeights { members, layers: layers.collect() }
    };
    let critics: [StackWeights; 4] = std::array::from_fn(|_| stack(observation + action, 1));
    let actor = ActorWeights { stack: stack(observation, 2 * action), log_std: LogStdBounds::default(), eyes: None };
    let [critic1, critic2, target1, target2] = critics;
    EnsembleWeights { actor, critic1, critic2, targets: Some((target1, target2)), log_alpha: Some(-0.5), encoder: None }
}

/// A random encoder of images of this size.
pub(super) fn encoder(shape: FrameShape, channels: &[u16], features: usize, seed: u64) -> ConvEncoderWeights {
    let mut random = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let mut draw = |n: usize, inputs: usize| {
        let scale = 1.0 / (inputs as f32).sqrt();
        random.by_ref().take(n).map(|v: f32| v * scale).collect::<Vec<f32>>()
    };
    let widths: Vec<usize> = [shape.channels].iter().chain(channels).map(|n| usize::from(*n)).collect();
    let convolutions = widths.windows(2).map(|w| ConvWeights {
        inputs: w[0],
        outputs: w[1],
        weight: draw(9 * w[0] * w[1], 9 * w[0]),
        bias: draw(w[1], 9 * w[0]),
    });
    let convolutions: Vec<_> = convolutions.collect();
    let halved = |n: u16| usize::from(n) >> (channels.len() - 1);
    let flat = widths[channels.len()] * halved(shape.width) * halved(shape.height);
    let (dense_weight, dense_bias) = (draw(flat * features, flat), draw(features, flat));
    ConvEncoderWeights { convolutions, dense: (flat, features), dense_weight, dense_bias }
}

/// Random networks with critics whose actors see an image; `encoders`: 1 for all members, or one for each.
pub(super) fn seeing(members: usize, encoders: usize, proprioception: bool) -> EnsembleWeights {
    let (shape, observation_dim, features) = (FrameShape { width: 12, height: 9, channels: 3 }, 4, 10);
    let mut weights = ensemble(members, features + if proprioception { observation_dim } else { 0 }, &[16], 2);
    let encoders = (0..encoders).map(|e| encoder(shape, &[5, 4], features, e as u64)).collect();
    weights.actor.eyes = Some(Eyes { shape, encoders, observation_dim, proprioception });
    weights
}

/// Puts a layer norm behind every hidden layer.
pub(super) fn normed(actor: &mut ActorWeights) {
    let last = actor.stack.layers.len() - 1;
    for layer in &mut actor.stack.layers[..last] {
        let wave = |phase: f32| (0..layer.bias.len()).map(|i| (i as f32 + phase).sin()).collect();
        layer.layer_norm = Some((wave(0.0), wave(0.5)));
    }
}

pub(super) fn spaces(observation: usize, action: usize) -> Spaces {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    Spaces { observation: names("o", observation), action: names("a", action) }
}

/// Features of an image, by the learner's encoder.
pub(super) fn encode(encoder: &ConvEncoderWeights, shape: FrameShape, image: &[u8]) -> Vec<f32> {
    let dims = (1, usize::from(shape.height), usize::from(shape.width), usize::from(shape.channels));
    let image = Tensor::from_slice(image, dims, &Device::Cpu).unwrap();
    let encoder = ConvEncoder::from_weights(encoder, &Device::Cpu).unwrap();
    encoder.forward(&image).unwrap().features.flatten_all().unwrap().to_vec1().unwrap()
}

/// The ensemble's moments by plain loops in f64.
pub(super) fn reference(actor: &ActorWeights, observation: &[f32]) -> (Vec<f64>, Vec<f64>) {
    reference_of(actor, &[observation.to_vec()])
}

/// The same; `inputs`: what all members see, or each.
pub(super) fn reference_of(actor: &ActorWeights, inputs: &[Vec<f32>]) -> (Vec<f64>, Vec<f64>) {
    let heads: Vec<Vec<f64>> = (0..actor.stack.members)
        .map(|m| {
            let mut x: Vec<f64> = inputs[m % inputs.len()].iter().map(|v| f64::from(*v)).collect();
            for (index, layer) in actor.stack.layers.iter().enumerate() {
                let weight = &layer.weight[m * layer.inputs * layer.outputs..];
                let mut y: Vec<f64> = (0..layer.outputs)
                    .map(|o| {
                        let sum: f64 =
                            x.iter().enumerate().map(|(i, v)| v * f64::from(weight[i * layer.outputs + o])).sum();
                        sum + f64::from(layer.bias[m * layer.outputs + o])
                    })
                    .collect();
                if let Some((scale, shift)) = &layer.layer_norm {
                    let n = y.len() as f64;
                    let mean = y.iter().sum::<f64>() / n;
                    let var = y.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                    for (o, v) in y.iter_mut().enumerate() {
                        let at = m * layer.outputs + o;
                        *v = (*v - mean) / (var + f64::from(LAYER_NORM_EPSILON)).sqrt() * f64::from(scale[at])
                            + f64::from(shift[at]);
                    }
                }
                if index + 1 < actor.stack.layers.len() {
                    y = y.into_iter().map(|v| v.max(0.0)).collect();
                }
                x = y;
            }
            x
        })
        .collect();
    let (n, a) = (heads.len() as f64, heads[0].len() / 2);
    let bounds = actor.log_std;
    let sigma = |h: &Vec<f64>, d: usize| h[a + d].clamp(f64::from(bounds.min), f64::from(bounds.max)).exp();
    let mean: Vec<f64> = (0..a).map(|d| heads.iter().map(|h| h[d]).sum::<f64>() / n).collect();
    let std = (0..a)
        .map(|d| heads.iter().map(|h| sigma(h, d).powi(2) + (h[d] - mean[d]).powi(2)).sum::<f64>() / n)
        .map(f64::sqrt)
        .collect();
    (mean, std)
}
