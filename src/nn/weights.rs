//! Host copies of stacked networks: what files hold and what crosses threads. No candle types.

use serde::{Deserialize, Serialize};

/// One dense layer of `members` networks, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerWeights {
    /// Input width.
    pub inputs: usize,
    /// Output width.
    pub outputs: usize,
    /// `(members, inputs, outputs)`: `y = x W + b`.
    pub weight: Vec<f32>,
    /// `(members, outputs)`.
    pub bias: Vec<f32>,
    /// Layer norm behind this layer and before its ReLU: scale and bias, each `(members, outputs)`.
    pub layer_norm: Option<(Vec<f32>, Vec<f32>)>,
}

/// A stack of equal multi-layer perceptrons: ReLU between layers, linear output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StackWeights {
    /// Number of networks.
    pub members: usize,
    /// From input to output.
    pub layers: Vec<LayerWeights>,
}

impl StackWeights {
    /// Input width, 0 for an empty stack.
    pub fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |l| l.inputs)
    }

    /// Output width, 0 for an empty stack.
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |l| l.outputs)
    }

    /// Whether hidden layers have a layer norm; `None` when some have and some have not, or there are no hidden layers.
    pub fn layer_norm(&self) -> Option<bool> {
        let (_, hidden) = self.layers.split_last()?;
        let first = hidden.first()?.layer_norm.is_some();
        hidden.iter().all(|l| l.layer_norm.is_some() == first).then_some(first)
    }

    /// The first `members` networks.
    #[must_use]
    pub fn first(&self, members: usize) -> Self {
        let take = |numbers: &[f32]| numbers[..numbers.len() / self.members.max(1) * members].to_vec();
        let layers = self.layers.iter().map(|l| LayerWeights {
            inputs: l.inputs,
            outputs: l.outputs,
            weight: take(&l.weight),
            bias: take(&l.bias),
            layer_norm: l.layer_norm.as_ref().map(|(scale, shift)| (take(scale), take(shift))),
        });
        Self { members, layers: layers.collect() }
    }

    /// The last layer of each network: weights and bias.
    fn heads(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.layers.last().into_iter().flat_map(|last| {
            last.weight.chunks_exact(last.inputs * last.outputs).zip(last.bias.chunks_exact(last.outputs))
        })
    }

    /// Whether all networks of all `stacks` have the same last layer.
    pub fn share_heads(stacks: &[&Self]) -> bool {
        let mut heads = stacks.iter().flat_map(|stack| stack.heads());
        let first = heads.next();
        heads.all(|head| Some(head) == first)
    }

    /// Gives every network the last layer of the first one of `from`.
    pub fn take_head(&mut self, from: &Self) {
        let Some((weight, bias)) = from.heads().next() else { return };
        if let Some(last) = self.layers.last_mut() {
            (last.weight, last.bias) = (weight.repeat(self.members), bias.repeat(self.members));
        }
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> bool {
        self.layers.iter().all(|l| {
            let norm = l.layer_norm.iter().flat_map(|(s, b)| s.iter().chain(b));
            l.weight.iter().chain(&l.bias).chain(norm).all(|v| v.is_finite())
        })
    }
}

/// Bounds of a member's log standard deviation: `sigma = exp(clamp(log_std, min, max))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogStdBounds {
    /// Lower bound.
    pub min: f32,
    /// Upper bound.
    pub max: f32,
}

impl Default for LogStdBounds {
    fn default() -> Self {
        Self { min: -20.0, max: 2.0 }
    }
}

/// Actors of an ensemble. Output of each: `action_dim` means, then `action_dim` log standard deviations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActorWeights {
    /// The stacked networks, output width `2 * action_dim`.
    pub stack: StackWeights,
    /// Clamp of the log standard deviation.
    pub log_std: LogStdBounds,
}

/// Everything a pretrained ensemble brings: `N` actors, `N` twin critics, optionally their targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnsembleWeights {
    /// `N` actors.
    pub actor: ActorWeights,
    /// First critics `Q1_i`, input observation ++ action, output 1. Empty for a bundle with only an actor.
    pub critic1: StackWeights,
    /// Second critics `Q2_i`.
    pub critic2: StackWeights,
    /// Target networks of the two; `None`: copies of the critics.
    pub targets: Option<(StackWeights, StackWeights)>,
    /// `ln` of the entropy temperature; `None`: start at 0.
    pub log_alpha: Option<f32>,
}
