//! Networks for tests, and their answers by plain loops.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::native::LAYER_NORM_EPSILON;
use crate::nn::weights::{ActorWeights, EnsembleWeights, LayerWeights, LogStdBounds, StackWeights};
use crate::spaces::Spaces;

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
    let actor = ActorWeights { stack: stack(observation, 2 * action), log_std: LogStdBounds::default() };
    let [critic1, critic2, target1, target2] = critics;
    EnsembleWeights { actor, critic1, critic2, targets: Some((target1, target2)), log_alpha: Some(-0.5) }
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

/// The ensemble's moments by plain loops in f64.
pub(super) fn reference(actor: &ActorWeights, observation: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let heads: Vec<Vec<f64>> = (0..actor.stack.members)
        .map(|m| {
            let mut x: Vec<f64> = observation.iter().map(|v| f64::from(*v)).collect();
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
