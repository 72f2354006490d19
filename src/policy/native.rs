//! The built-in forward pass: the exported ensemble without any library.
//!
//! Runs [`ActorWeights`] of any number of members and layers at batch 1, without allocation after construction. It
//! runs only what this program exports (dense layers, ReLU, optional layer norm, an encoder of images in front); other
//! graphs need ONNX Runtime.
//!
//! Moments, over members i (Off2OnRL, Eq. 5, in the two-pass form that does not cancel in f32):
//! `mean = mean_i(m_i)`, `var = mean_i(sigma_i^2 + (m_i - mean)^2)`, `std = clamp(sqrt(var), e^-20, e^2)` with
//! `sigma_i = exp(clamp(log_std_i, min, max))`.
//!
//! Built on any thread; [`PolicyBackend::infer`] runs on the control thread.

use super::eye::Eye;
use super::panel::{Kernel, LINE, Line, ROWS, pack};
use super::structure::{StructureError, check_actor};
use super::{PolicyBackend, PolicyError, PolicyOutput, check_image, check_observation, check_output};
use crate::nn::weights::{ActorWeights, LayerWeights};
use crate::spaces::FrameShape;

/// Added to the variance in a layer norm: that of Flax, which the learner uses as well (`nn`).
pub const LAYER_NORM_EPSILON: f32 = 1e-6;

/// `e^-20` and `e^2`: bounds of the ensemble's standard deviation in the published code, whatever the members' bounds.
pub const STD_BOUNDS: (f32, f32) = (2.061_153_6e-9, 7.389_056);

/// One dense layer of all members, packed.
struct Layer {
    rows: usize,
    outputs: usize,
    groups: usize,
    weight: Vec<Line>,
    bias: Vec<Line>,
    norm: Option<(Vec<Line>, Vec<Line>)>,
}

/// What the actors see an image with.
struct Eyes {
    shape: FrameShape,
    /// One for all members, or one for each.
    encoders: Vec<Eye>,
    /// Of the encoder that looked last.
    features: Vec<f32>,
    proprioception: bool,
}

impl Eyes {
    fn look(&mut self, kernel: Kernel, encoder: usize, image: &[u8]) {
        self.features.copy_from_slice(self.encoders[encoder].look(kernel, image));
    }
}

/// An ensemble of actors ready to run.
pub struct NativePolicy {
    kernel: Kernel,
    eyes: Option<Eyes>,
    layers: Vec<Layer>,
    members: usize,
    observation_dim: usize,
    action_dim: usize,
    log_std: (f32, f32),
    /// Input and output of the layer at work, in turn.
    activations: [Vec<[f32; LINE]>; 2],
    /// `(members, 2 * action_dim)`: means and standard deviations.
    heads: Vec<f32>,
}

impl NativePolicy {
    /// Packs the weights.
    ///
    /// # Errors
    /// When the weights are not an ensemble of actors.
    pub fn new(actor: &ActorWeights) -> Result<Self, StructureError> {
        check_actor(actor)?;
        let stack = &actor.stack;
        let widest = stack.layers.iter().map(|l| l.inputs.max(l.outputs)).max().unwrap_or(0);
        let eyes = actor.eyes.as_ref().map(|eyes| Eyes {
            shape: eyes.shape,
            encoders: eyes.encoders.iter().map(|encoder| Eye::new(encoder, eyes.shape)).collect(),
            features: vec![0.0; eyes.features()],
            proprioception: eyes.proprioception,
        });
        Ok(Self {
            kernel: Kernel::detect(),
            eyes,
            layers: stack.layers.iter().map(|layer| Layer::new(layer, stack.members)).collect(),
            members: stack.members,
            observation_dim: actor.observation_dim(),
            action_dim: stack.outputs() / 2,
            log_std: (actor.log_std.min, actor.log_std.max),
            activations: std::array::from_fn(|_| vec![[0.0; LINE]; widest.div_ceil(LINE)]),
            heads: vec![0.0; stack.members * stack.outputs()],
        })
    }

    /// Runs one member; leaves its means and standard deviations in `heads`.
    fn run_member(&mut self, member: usize, observation: &[f32]) {
        let [input, output] = &mut self.activations;
        let (features, observation) = match &self.eyes {
            None => (&[][..], observation),
            Some(eyes) => (&eyes.features[..], if eyes.proprioception { observation } else { &[] }),
        };
        let (seen, rest) = input.as_flattened_mut().split_at_mut(features.len());
        seen.copy_from_slice(features);
        rest[..observation.len()].copy_from_slice(observation);
        // Rows beyond the input have zero weights, but what is left there must be finite.
        let end = (features.len() + observation.len()).next_multiple_of(ROWS) - features.len();
        rest[observation.len()..end].fill(0.0);
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let out = &mut output[..layer.groups];
            layer.run(self.kernel, member, &input.as_flattened()[..layer.rows], out);
            if index < last {
                relu(out.as_flattened_mut());
            }
            std::mem::swap(input, output);
        }
        let (min, max) = self.log_std;
        let head = &mut self.heads[member * 2 * self.action_dim..][..2 * self.action_dim];
        head.copy_from_slice(&input.as_flattened()[..2 * self.action_dim]);
        for log_std in &mut head[self.action_dim..] {
            *log_std = log_std.max(min).min(max).exp();
        }
    }

    /// Moment matching over the members.
    fn moments(&self, out: &mut PolicyOutput) {
        let (n, a) = (self.members as f32, self.action_dim);
        let (low, high) = STD_BOUNDS;
        *out = PolicyOutput { action_dim: a, ..PolicyOutput::default() };
        for d in 0..a {
            let members = || self.heads.chunks_exact(2 * a).map(|head| (head[d], head[a + d]));
            let mean = members().map(|(m, _)| m).sum::<f32>() / n;
            let var = members().map(|(m, sigma)| sigma * sigma + (m - mean) * (m - mean)).sum::<f32>() / n;
            out.mean[d] = mean;
            out.std[d] = var.sqrt().max(low).min(high);
        }
    }
}

impl PolicyBackend for NativePolicy {
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        check_observation(observation, self.observation_dim)?;
        if let Some(eyes) = &self.eyes {
            check_image(image, eyes.shape)?;
        }
        for member in 0..self.members {
            if let Some(eyes) = self.eyes.as_mut().filter(|eyes| member < eyes.encoders.len()) {
                eyes.look(self.kernel, member, image);
            }
            self.run_member(member, observation);
        }
        self.moments(out);
        // The clamps hide a NaN in a log_std; one layer before it, the same NaN reached a mean as well.
        check_output(out)
    }

    fn frame(&self) -> Option<FrameShape> {
        self.eyes.as_ref().map(|eyes| eyes.shape)
    }

    fn engine(&self) -> &'static str {
        self.kernel.name()
    }

    fn observation_dim(&self) -> usize {
        self.observation_dim
    }

    fn action_dim(&self) -> usize {
        self.action_dim
    }
}

impl Layer {
    fn new(layer: &LayerWeights, members: usize) -> Self {
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let (rows, groups) = (inputs.next_multiple_of(ROWS), outputs.div_ceil(LINE));
        let mut weight = Vec::with_capacity(members * rows * groups);
        for matrix in layer.weight.chunks_exact(inputs * outputs) {
            pack(matrix, inputs, outputs, &mut weight);
        }
        let norm = layer.layer_norm.as_ref().map(|(scale, shift)| (lines(scale, outputs), lines(shift, outputs)));
        Self { rows, outputs, groups, weight, bias: lines(&layer.bias, outputs), norm }
    }

    /// The layer of one member without its ReLU.
    fn run(&self, kernel: Kernel, member: usize, input: &[f32], out: &mut [[f32; LINE]]) {
        let per_member = self.rows * self.groups;
        let own = member * self.groups..(member + 1) * self.groups;
        kernel.dense(input, &self.weight[member * per_member..][..per_member], &self.bias[own.clone()], out);
        if let Some((scale, shift)) = &self.norm {
            layer_norm(&mut out.as_flattened_mut()[..self.outputs], &scale[own.clone()], &shift[own]);
        }
    }
}

/// `(members, outputs)` as lines, each member starting on its own.
pub(super) fn lines(values: &[f32], outputs: usize) -> Vec<Line> {
    let mut packed = Vec::with_capacity(values.len().div_ceil(outputs) * outputs.div_ceil(LINE));
    for part in values.chunks_exact(outputs).flat_map(|member| member.chunks(LINE)) {
        let mut line = Line::default();
        line.0[..part.len()].copy_from_slice(part);
        packed.push(line);
    }
    packed
}

pub(super) fn relu(values: &mut [f32]) {
    for value in values {
        // Not `max`: a NaN must stay one. Below the smallest normal number, arithmetic can take a hundred times
        // as long; what is that small becomes zero.
        *value = if *value < f32::MIN_POSITIVE { 0.0 } else { *value };
    }
}

fn layer_norm(values: &mut [f32], scale: &[Line], shift: &[Line]) {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let var = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let factor = 1.0 / (var + LAYER_NORM_EPSILON).sqrt();
    let affine = scale.iter().flat_map(|l| l.0).zip(shift.iter().flat_map(|l| l.0));
    for (value, (scale, shift)) in values.iter_mut().zip(affine) {
        *value = (*value - mean) * factor * scale + shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::checks::{Inputs, probe_observations};
    use crate::policy::sample::{encode, ensemble, normed, reference, reference_of, seeing};

    #[test]
    fn activations_that_are_subnormal_become_zero_and_a_nan_stays() {
        let mut values = [f32::MIN_POSITIVE / 2.0, 1e-45, f32::MIN_POSITIVE, 1.0, -1.0, -1e-45, f32::NAN];
        relu(&mut values);
        assert_eq!(values[..6], [0.0, 0.0, f32::MIN_POSITIVE, 1.0, 0.0, 0.0]);
        assert!(values[6].is_nan());
    }

    #[test]
    fn agrees_with_a_plain_double_precision_loop() {
        let cases = [(1, 3, vec![], 1), (5, 17, vec![256, 256], 6), (3, 11, vec![33, 70, 5], 3), (2, 48, vec![64], 24)];
        for (members, observation, hidden, action) in cases {
            for norm in [false, true] {
                let mut actor = ensemble(members, observation, &hidden, action).actor;
                if norm {
                    normed(&mut actor);
                }
                let mut policy = NativePolicy::new(&actor).unwrap();
                let mut out = PolicyOutput::default();
                for row in probe_observations(observation, 20).chunks_exact(observation) {
                    policy.infer(row, &[], &mut out).unwrap();
                    let (mean, std) = reference(&actor, row);
                    for d in 0..action {
                        assert!((f64::from(out.mean[d]) - mean[d]).abs() < 2e-6, "{} {}", out.mean[d], mean[d]);
                        assert!((f64::from(out.std[d]) - std[d]).abs() < 2e-6, "{} {}", out.std[d], std[d]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_policy_with_eyes_is_its_encoders_in_front_of_its_stack() {
        for (encoders, proprioception) in [(1, true), (1, false), (3, true), (3, false)] {
            let actor = seeing(3, encoders, proprioception).actor;
            let eyes = actor.eyes.clone().unwrap();
            let mut policy = NativePolicy::new(&actor).unwrap();
            assert_eq!((policy.observation_dim(), policy.frame()), (4, Some(eyes.shape)));
            let mut out = PolicyOutput::default();
            for (observation, image) in Inputs::of(&policy, 5).iter() {
                policy.infer(observation, image, &mut out).unwrap();
                let felt = if proprioception { observation } else { &[] };
                let seen =
                    eyes.encoders.iter().map(|encoder| [encode(encoder, eyes.shape, image), felt.to_vec()].concat());
                let (mean, std) = reference_of(&actor, &seen.collect::<Vec<_>>());
                for d in 0..2 {
                    assert!((f64::from(out.mean[d]) - mean[d]).abs() < 1e-5, "{} {}", out.mean[d], mean[d]);
                    assert!((f64::from(out.std[d]) - std[d]).abs() < 1e-5, "{} {}", out.std[d], std[d]);
                }
            }
            let short = policy.infer(&[0.0; 4], &[0; 323], &mut out);
            assert!(matches!(short, Err(PolicyError::ImageLength { expected: 324, got: 323 })));
        }
    }

    #[test]
    fn equal_members_are_one_policy_and_the_spread_of_means_counts() {
        let mut actor = ensemble(2, 3, &[], 1).actor;
        actor.stack.layers[0].weight.fill(0.0);
        // Member 0: mean 3, log_std 0. Member 1: mean -1, log_std 9, clamped to 2.
        actor.stack.layers[0].bias = vec![3.0, 0.0, -1.0, 9.0];
        let mut out = PolicyOutput::default();
        NativePolicy::new(&actor).unwrap().infer(&[0.0; 3], &[], &mut out).unwrap();
        let sigma = 2.0_f32.exp();
        assert_eq!(out.mean(), [1.0]);
        assert!((out.std()[0] - (4.0 + f32::midpoint(1.0, sigma * sigma)).sqrt()).abs() < 1e-5);
    }

    #[test]
    fn bounds_of_the_ensemble_are_those_of_the_published_code() {
        assert_eq!(STD_BOUNDS, ((-20.0_f64).exp() as f32, 2.0_f64.exp() as f32));
        let mut actor = ensemble(2, 1, &[], 1).actor;
        actor.stack.layers[0].weight.fill(0.0);
        actor.stack.layers[0].bias = vec![90.0, 0.0, -90.0, 0.0];
        let mut out = PolicyOutput::default();
        NativePolicy::new(&actor).unwrap().infer(&[0.0], &[], &mut out).unwrap();
        assert_eq!(out.std(), [STD_BOUNDS.1]);
    }

    #[test]
    fn bad_observations_are_refused() {
        let mut policy = NativePolicy::new(&ensemble(2, 3, &[4], 1).actor).unwrap();
        let mut out = PolicyOutput::default();
        assert!(matches!(
            policy.infer(&[0.0; 2], &[], &mut out),
            Err(PolicyError::ObservationLength { expected: 3, got: 2 })
        ));
        let nan = policy.infer(&[0.0, f32::NAN, 0.0], &[], &mut out);
        assert!(matches!(nan, Err(PolicyError::ObservationNotFinite { index: 1 })));
        let overflow = policy.infer(&[f32::MAX, -f32::MAX, f32::MAX], &[], &mut out);
        assert!(matches!(overflow, Err(PolicyError::OutputNotFinite { .. })), "{overflow:?}");
    }
}
