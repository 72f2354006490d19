//! Host copies of stacked networks: what files hold and what crosses threads. No candle types.

use serde::{Deserialize, Serialize};

use super::conv::ConvEncoderWeights;
use crate::spaces::FrameShape;

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

/// What actors see an image with. Behind the encoders' features, if `proprioception`, stands the observation: both
/// together are the input of the stack.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Eyes {
    /// Size of the image.
    pub shape: FrameShape,
    /// One encoder for all actors, or one for each.
    pub encoders: Vec<ConvEncoderWeights>,
    /// Length of the robot's observation.
    pub observation_dim: usize,
    /// Whether the actors see it.
    pub proprioception: bool,
}

impl Eyes {
    /// Width of an encoder's output.
    pub fn features(&self) -> usize {
        self.encoders.first().map_or(0, |encoder| encoder.dense.1)
    }
}

/// Actors of an ensemble. Output of each: `action_dim` means, then `action_dim` log standard deviations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActorWeights {
    /// The stacked networks, output width `2 * action_dim`.
    pub stack: StackWeights,
    /// Clamp of the log standard deviation.
    pub log_std: LogStdBounds,
    /// What stands between an image and the stack; `None`: the stack sees the observation alone.
    pub eyes: Option<Eyes>,
}

impl ActorWeights {
    /// Length of the robot's observation.
    pub fn observation_dim(&self) -> usize {
        self.eyes.as_ref().map_or(self.stack.inputs(), |eyes| eyes.observation_dim)
    }

    /// Length of an action.
    pub fn action_dim(&self) -> usize {
        self.stack.outputs() / 2
    }

    /// Size of the image, of actors that have eyes.
    pub fn frame(&self) -> Option<FrameShape> {
        self.eyes.as_ref().map(|eyes| eyes.shape)
    }
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
    /// What the critics see an image with, where the actors have eyes; `None`: the actors' one encoder.
    pub encoder: Option<Encoders>,
}

/// What critics see an image with, beside the actors' [`Eyes`]. All encoders of an ensemble have one shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoders {
    /// The actors' one encoder, and its slow copy for the target critics; `None`: start as a copy.
    Shared {
        /// The slow copy.
        target: Option<ConvEncoderWeights>,
    },
    /// One for each network and member.
    Separate {
        /// Those of the first critics.
        critic1: Vec<ConvEncoderWeights>,
        /// Those of the second critics.
        critic2: Vec<ConvEncoderWeights>,
        /// Those of the target critics; `None`: copies.
        targets: Option<(Vec<ConvEncoderWeights>, Vec<ConvEncoderWeights>)>,
    },
}

impl Encoders {
    /// All encoders by the network that they belong to.
    pub fn by_network(&self) -> Vec<(&'static str, &[ConvEncoderWeights])> {
        match self {
            Self::Shared { target } => target.iter().map(|one| ("target", std::slice::from_ref(one))).collect(),
            Self::Separate { critic1, critic2, targets } => {
                let mut all = vec![("critic1", &critic1[..]), ("critic2", critic2)];
                all.extend(targets.iter().flat_map(|(one, two)| [("target1", &one[..]), ("target2", two)]));
                all
            }
        }
    }

    /// The encoders of a file by network; `None` where there are none.
    pub fn from_networks(mut take: impl FnMut(&'static str) -> Vec<ConvEncoderWeights>) -> Option<Self> {
        let target = take("target");
        if !target.is_empty() {
            return Some(Self::Shared { target: target.into_iter().next() });
        }
        let [critic1, critic2, one, two] = ["critic1", "critic2", "target1", "target2"].map(take);
        let targets = (!one.is_empty() || !two.is_empty()).then_some((one, two));
        let separate = !critic1.is_empty() || !critic2.is_empty() || targets.is_some();
        separate.then_some(Self::Separate { critic1, critic2, targets })
    }
}
