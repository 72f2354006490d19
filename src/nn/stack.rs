//! A stack of equal multi-layer perceptrons and the way to and from its host copy.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var, bail};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::kernels::LAYER_NORM_EPS;
use super::member::{Layer, Plan};
use super::pointwise;
use super::stack_op::{Buffers, StackOp};
use super::stack_queue;
use super::weights::{LayerWeights, StackWeights};
use crate::kernels;

/// `members` networks Dense -> \[LayerNorm\] -> ReLU -> ... -> Dense that share a shape but no parameter.
///
/// The derivative of a ReLU at 0 is 0; a layer norm has a biased variance and 1e-6 under its root.
/// All parameters are one variable `(members, parameters of a network)`, so a network is one contiguous block.
/// Forward passes read the parameters again in their backward pass: take every gradient before the first step. A
/// backward pass through changed parameters is refused.
#[derive(Clone, Debug)]
pub struct Stack {
    members: usize,
    plan: Arc<Plan>,
    pub(super) parameters: Var,
    threads: usize,
    buffers: Arc<Buffers>,
}

/// Distribution of new parameters, as in the Off2OnRL code: hidden weights `U(-1/sqrt(outputs), 1/sqrt(outputs))`
/// (its "fan-in" divides by the output width), hidden biases 0, last weights `U(-3e-3, 3e-3)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Init {
    /// Biases of the last layer; `None`: `U(-3e-3, 3e-3)`. The density ratio starts at 1.
    pub last_bias: Option<f32>,
    /// Whether hidden layers have a layer norm, with scale 1 and shift 0.
    pub layer_norm: bool,
}

impl Init {
    /// Half width of the last layer's distribution.
    const LAST: f32 = 3e-3;
}

impl Stack {
    /// Copies host weights to a device.
    ///
    /// # Errors
    /// When lengths and widths do not fit together, the stack is empty or its last layer has a norm.
    pub fn from_weights(weights: &StackWeights, device: &Device) -> Result<Self> {
        let plan = plan_of(weights)?;
        let mut parameters = Vec::with_capacity(weights.members * plan.parameters());
        for member in 0..weights.members {
            for layer in &weights.layers {
                let (i, o) = (layer.inputs, layer.outputs);
                parameters.extend_from_slice(&layer.weight[member * i * o..][..i * o]);
                let norm = layer.layer_norm.iter().flat_map(|(scale, shift)| [scale, shift]);
                for row in std::iter::once(&layer.bias).chain(norm) {
                    parameters.extend_from_slice(&row[member * o..][..o]);
                }
            }
        }
        let parameters = Var::from_vec(parameters, (weights.members, plan.parameters()), device)?;
        Self::from_parameters(plan, parameters)
    }

    fn from_parameters(plan: Plan, parameters: Var) -> Result<Self> {
        let (members, _) = parameters.dims2()?;
        Ok(Self { members, plan: Arc::new(plan), parameters, threads: 1, buffers: Arc::default() })
    }

    /// New networks with widths `dims`, input first.
    ///
    /// # Errors
    /// When there is no member, no layer or a width of 0.
    pub fn random(members: usize, dims: &[usize], init: Init, rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        let mut layers = Vec::new();
        for (index, pair) in dims.windows(2).enumerate() {
            let (inputs, outputs) = (pair[0], pair[1]);
            let last = index + 2 == dims.len();
            let bound = if last { Init::LAST } else { 1.0 / (outputs.max(1) as f32).sqrt() };
            let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-bound..=bound)).collect::<Vec<f32>>();
            let weight = draw(members * inputs * outputs);
            let bias = match init.last_bias {
                _ if !last => vec![0.0; members * outputs],
                Some(value) => vec![value; members * outputs],
                None => draw(members * outputs),
            };
            let norm = || (vec![1.0; members * outputs], vec![0.0; members * outputs]);
            let layer_norm = (init.layer_norm && !last).then(norm);
            layers.push(LayerWeights { inputs, outputs, weight, bias, layer_norm });
        }
        Self::from_weights(&StackWeights { members, layers }, device)
    }

    /// Copies the parameters to the host.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn to_weights(&self) -> Result<StackWeights> {
        self.unpack(&self.parameters)
    }

    /// Copies this stack's gradients to the host, in the layout of its weights.
    ///
    /// # Errors
    /// When the store has none, or the device cannot be read.
    pub fn gradient_weights(&self, gradients: &GradStore) -> Result<StackWeights> {
        let Some(gradient) = gradients.get(&self.parameters) else {
            bail!("no gradient for this stack of {} networks in the store", self.members)
        };
        self.unpack(gradient)
    }

    fn unpack(&self, flat: &Tensor) -> Result<StackWeights> {
        let flat = flat.flatten_all()?.to_vec1::<f32>()?;
        let blocks = || flat.chunks_exact(self.plan.parameters());
        let gather = |range: std::ops::Range<usize>| blocks().flat_map(|b| b[range.clone()].to_vec()).collect();
        let layers = self.plan.layers.iter().map(|l| LayerWeights {
            inputs: l.inputs,
            outputs: l.outputs,
            weight: gather(l.start..l.bias()),
            bias: gather(l.bias()..l.scale()),
            layer_norm: l
                .norm
                .then(|| (gather(l.scale()..l.scale() + l.outputs), gather(l.scale() + l.outputs..l.end()))),
        });
        Ok(StackWeights { members: self.members, layers: layers.collect() })
    }

    /// Number of networks.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Input width.
    pub fn inputs(&self) -> usize {
        self.plan.inputs()
    }

    /// Output width.
    pub fn outputs(&self) -> usize {
        self.plan.outputs()
    }

    /// Start and length of the last layer in each network's block of parameters.
    pub(super) fn last_layer(&self) -> (usize, usize) {
        let start = self.plan.layers.last().map_or(0, |layer| layer.start);
        (start, self.plan.parameters() - start)
    }

    /// What an optimiser steps: one variable with all parameters.
    pub fn vars(&self) -> Vec<Var> {
        vec![self.parameters.clone()]
    }

    /// Splits the members over up to `threads` threads in each pass; 1, the default, uses the caller's only.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// `(members, rows, outputs)` for `x` `(rows, inputs)`, the same for all, or `(members, rows, inputs)`.
    ///
    /// Gradients flow to the parameters, and to `x` where it tracks them.
    ///
    /// # Errors
    /// When the shape of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, &self.parameters, true, x.track_op())
    }

    /// As [`Stack::forward`], with gradients to `x` only.
    ///
    /// # Errors
    /// When the shape of `x` does not fit.
    pub fn forward_frozen(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, &self.parameters.as_detached_tensor(), false, x.track_op())
    }

    /// As [`Stack::forward`], without any gradient.
    ///
    /// # Errors
    /// When the shape of `x` does not fit.
    pub fn forward_detached(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(&x.detach(), &self.parameters.as_detached_tensor(), false, false)
    }

    /// As [`Stack::forward_detached`], of the networks `chosen` only and in their order: `(chosen, rows, outputs)` for
    /// `x` `(rows, inputs)` or `(chosen, rows, inputs)`.
    ///
    /// # Errors
    /// When the shape of `x` does not fit or there is no such network.
    pub fn forward_of(&self, chosen: &[usize], x: &Tensor) -> Result<Tensor> {
        if let Some(missing) = chosen.iter().find(|member| **member >= self.members) {
            bail!("network {missing} of a stack of {}", self.members);
        }
        let (x, parameters) = (x.detach().contiguous()?, self.parameters.as_detached_tensor());
        if !x.device().is_cpu() {
            let indices = chosen.iter().map(|member| *member as u32).collect::<Vec<_>>();
            let indices = Tensor::from_vec(indices, chosen.len(), x.device())?;
            return self.algebra(&x, &parameters.index_select(&indices, 0)?);
        }
        let mut op = StackOp::new(&self.plan, chosen.len(), self.threads, &self.buffers);
        op.chosen = Some(chosen.to_vec());
        x.apply_op2_no_bwd(&parameters, &op)
    }

    fn apply(&self, x: &Tensor, parameters: &Tensor, wants_parameters: bool, wants_input: bool) -> Result<Tensor> {
        if kernels::take(x) && kernels::take(parameters) {
            let x = if wants_input { x.clone() } else { x.detach() };
            return stack_queue::forward(&self.plan, self.members, &x, parameters);
        }
        if !x.device().is_cpu() {
            return self.algebra(x, parameters);
        }
        let x = x.contiguous()?;
        let mut op = StackOp::new(&self.plan, self.members, self.threads, &self.buffers);
        if !wants_parameters && !wants_input {
            return x.apply_op2_no_bwd(parameters, &op);
        }
        (op.keep, op.wants_parameters, op.wants_input) = (true, wants_parameters, wants_input);
        x.apply_op2(parameters, op)
    }

    /// The same function in candle's own operations: devices other than the processor, and the witness of the tests.
    pub(super) fn algebra(&self, x: &Tensor, parameters: &Tensor) -> Result<Tensor> {
        let members = parameters.dim(0)?;
        let mut y = if x.rank() == 2 { x.unsqueeze(0)?.repeat((members, 1, 1))? } else { x.clone() };
        let part = |start: usize, shape: (usize, usize)| {
            parameters.narrow(1, start, shape.0 * shape.1)?.contiguous()?.reshape((members, shape.0, shape.1))
        };
        for (index, layer) in self.plan.layers.iter().enumerate() {
            let row = |start: usize| part(start, (1, layer.outputs));
            y = y.matmul(&part(layer.start, (layer.inputs, layer.outputs))?)?.broadcast_add(&row(layer.bias())?)?;
            if layer.norm {
                let centred = y.broadcast_sub(&y.mean_keepdim(2)?)?;
                let std = (centred.sqr()?.mean_keepdim(2)? + LAYER_NORM_EPS)?.sqrt()?;
                let scaled = centred.broadcast_div(&std)?.broadcast_mul(&row(layer.scale())?)?;
                y = scaled.broadcast_add(&row(layer.scale() + layer.outputs)?)?;
            }
            if index + 1 < self.plan.layers.len() {
                y = pointwise::relu(&y)?;
            }
        }
        Ok(y)
    }
}

/// The shape of the networks, or why the weights have none.
fn plan_of(weights: &StackWeights) -> Result<Plan> {
    let mut layers: Vec<Layer> = Vec::new();
    if weights.members == 0 || weights.layers.is_empty() {
        bail!("a stack needs a member and a layer, got {} and {}", weights.members, weights.layers.len());
    }
    for (index, l) in weights.layers.iter().enumerate() {
        let inputs = layers.last().map_or(l.inputs, |before| before.outputs);
        let row = weights.members * l.outputs;
        let norm_fits = l.layer_norm.as_ref().is_none_or(|(s, b)| s.len() == row && b.len() == row);
        if l.inputs == 0 || l.outputs == 0 || l.inputs != inputs {
            bail!("layer {index} of a stack is {} -> {} behind a width of {inputs}", l.inputs, l.outputs);
        }
        if l.weight.len() != row * l.inputs || l.bias.len() != row || !norm_fits {
            bail!(
                "layer {index} of a stack has arrays that do not fit {} x {} -> {}",
                weights.members,
                l.inputs,
                l.outputs
            );
        }
        if l.layer_norm.is_some() && index + 1 == weights.layers.len() {
            bail!("the last layer of a stack cannot have a layer norm");
        }
        let start = layers.last().map_or(0, Layer::end);
        let norm = l.layer_norm.is_some();
        layers.push(Layer { inputs: l.inputs, outputs: l.outputs, start, norm });
    }
    Ok(Plan { layers })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use rand::SeedableRng;

    use super::*;

    fn stack(members: usize, dims: &[usize], layer_norm: bool) -> Stack {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        Stack::random(members, dims, Init { last_bias: None, layer_norm }, &mut rng, &Device::Cpu).unwrap()
    }

    #[test]
    fn weights_survive_the_way_to_the_device_and_back() {
        let weights = stack(3, &[4, 7, 5, 2], true).to_weights().unwrap();
        let again = Stack::from_weights(&weights, &Device::Cpu).unwrap().to_weights().unwrap();
        assert_eq!(weights, again);
        assert_eq!((weights.members, weights.inputs(), weights.outputs()), (3, 4, 2));
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let good = stack(2, &[4, 7, 2], true).to_weights().unwrap();
        let spoil: [fn(&mut StackWeights); 8] = [
            |w| w.members = 0,
            |w| w.members = 3,
            |w| w.layers.clear(),
            |w| w.layers[1].inputs = 6,
            |w| w.layers[0].outputs = 0,
            |w| w.layers[0].bias.truncate(1),
            |w| w.layers[0].layer_norm.as_mut().unwrap().1.push(0.0),
            |w| w.layers[1].layer_norm = Some((vec![1.0; 4], vec![0.0; 4])),
        ];
        for spoil in spoil {
            let mut weights = good.clone();
            spoil(&mut weights);
            assert!(Stack::from_weights(&weights, &Device::Cpu).is_err());
        }
    }

    #[test]
    fn new_parameters_follow_their_distributions() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let init = Init { last_bias: Some(1.0), layer_norm: false };
        let w = Stack::random(2, &[6, 256, 16, 1], init, &mut rng, &Device::Cpu).unwrap().to_weights().unwrap();
        let largest = |v: &[f32]| v.iter().fold(0f32, |m, v| m.max(v.abs()));
        let bounds = [1.0 / 16.0, 0.25, 3e-3];
        for (layer, bound) in w.layers.iter().zip(bounds) {
            assert!(largest(&layer.weight) <= bound && largest(&layer.weight) > 0.9 * bound);
        }
        assert!(largest(&w.layers[0].bias) == 0.0 && w.layers[2].bias == [1.0, 1.0]);
    }

    #[test]
    fn inputs_of_a_wrong_shape_are_refused() {
        let s = stack(2, &[4, 7, 2], false);
        for dims in [&[3, 5][..], &[3, 3, 4], &[4], &[2, 3, 5]] {
            assert!(s.forward(&Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap()).is_err());
        }
        assert_eq!(s.forward(&Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap()).unwrap().dims(), [2, 0, 2]);
        let ints = Tensor::zeros((3, 4), DType::U32, &Device::Cpu).unwrap();
        assert!(s.forward(&ints).is_err());
    }

    #[test]
    fn chosen_networks_answer_as_in_the_whole_stack() {
        let s = stack(4, &[4, 7, 2], true).with_threads(2);
        let x = Tensor::rand(-1f32, 1f32, (3, 4), &Device::Cpu).unwrap();
        let rows = |t: Tensor| t.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        let (all, chosen) = (rows(s.forward_detached(&x).unwrap()), rows(s.forward_of(&[3, 1, 3], &x).unwrap()));
        assert_eq!(chosen, [all[3].clone(), all[1].clone(), all[3].clone()]);
        assert_eq!(s.forward_of(&[], &x).unwrap().dims(), [0, 3, 2]);
        assert!(s.forward_of(&[4], &x).is_err());
    }

    #[test]
    fn backward_through_changed_parameters_is_refused() {
        let s = stack(2, &[4, 7, 1], false);
        let loss = s.forward(&Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        assert!(loss.backward().is_ok());
        s.parameters.set(&s.parameters.affine(1.0, 1e-3).unwrap()).unwrap();
        assert!(loss.backward().is_err());
    }

    #[test]
    fn a_dead_unit_at_zero_gets_no_gradient_and_nan_stays_visible() {
        let zeros = |inputs, outputs| LayerWeights {
            inputs,
            outputs,
            weight: vec![0.0; inputs * outputs],
            bias: vec![0.0; outputs],
            layer_norm: None,
        };
        let mut weights = StackWeights { members: 1, layers: vec![zeros(2, 3), zeros(3, 1)] };
        weights.layers[1].weight = vec![1.0; 3];
        let s = Stack::from_weights(&weights, &Device::Cpu).unwrap();
        let x = Tensor::ones((4, 2), DType::F32, &Device::Cpu).unwrap();
        let gradients = s.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(s.gradient_weights(&gradients).unwrap().layers[0].weight.iter().all(|g| *g == 0.0));
        let nan = (x * f64::NAN).unwrap();
        assert!(s.forward(&nan).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0].is_nan());
    }
}
