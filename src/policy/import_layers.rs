//! Layers out of named tensors, and what may be folded into them exactly: a scaling of inputs into the first layer, an
//! affine map of outputs into the last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::import::ImportError;
use super::torch_legacy::Tensor;
use crate::nn::weights::{EnsembleWeights, LayerWeights, StackWeights};

/// How a source scaled its observations: `(observation - shift) / scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct StateScaling {
    /// What was subtracted, one per entry.
    pub shift: Vec<f64>,
    /// What it was divided by, one per entry.
    pub scale: Vec<f64>,
}

/// Tensors of one file that are taken out one by one.
pub(super) struct Named<'a> {
    pub(super) path: &'a Path,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

impl Named<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// One layer whose outputs are those of the named ones side by side. PyTorch keeps `(outputs, inputs)`.
    pub(super) fn layer(&mut self, names: &[&str]) -> Result<LayerWeights, ImportError> {
        let mut parts = Vec::new();
        let mut layer = LayerWeights::default();
        for name in names {
            let weight = self.tensor(&format!("{name}.weight"), &[0, layer.inputs])?;
            layer.inputs = weight.shape[1];
            layer.bias.extend(self.tensor(&format!("{name}.bias"), &[weight.shape[0]])?.data);
            parts.push(weight);
        }
        layer.outputs = layer.bias.len();
        for row in 0..layer.inputs {
            let column = |part: &Tensor| part.data.iter().skip(row).step_by(part.shape[1]).copied().collect::<Vec<_>>();
            layer.weight.extend(parts.iter().flat_map(column));
        }
        Ok(layer)
    }

    /// The layers `name(0)`, `name(1)`, ... as far as they go, then the heads as one layer, if any.
    pub(super) fn network(
        &mut self,
        name: impl Fn(usize) -> String,
        heads: &[&str],
    ) -> Result<StackWeights, ImportError> {
        let mut layers = Vec::new();
        while self.has(&format!("{}.weight", name(layers.len()))) {
            layers.push(self.layer(&[&name(layers.len())])?);
        }
        if !heads.is_empty() || layers.is_empty() {
            let first = [&*name(0)];
            layers.push(self.layer(if heads.is_empty() { &first } else { heads })?);
        }
        Ok(StackWeights { members: 1, layers })
    }

    /// One number, with one dimension or none.
    pub(super) fn number(&mut self, name: &str) -> Result<f32, ImportError> {
        let scalar = self.tensors.get(name).is_some_and(|t| t.shape.is_empty());
        let flat = self.tensors.get(name).is_some_and(|t| t.data.len() == 1 && t.shape.len() <= 2);
        let shape = if scalar { Vec::new() } else { vec![1; if flat { self.tensors[name].shape.len() } else { 1 }] };
        Ok(self.tensor(name, &shape)?.data[0])
    }

    /// Takes a tensor out; 0 in `expected` stands for any size but 0.
    pub(super) fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<Tensor, ImportError> {
        let tensor = self.tensors.remove(name);
        let found = tensor.as_ref().map_or_else(|| String::from("absent"), |t| format!("{:?}", t.shape));
        let fits = |shape: &[usize]| {
            shape.len() == expected.len() && shape.iter().zip(expected).all(|(s, e)| *s > 0 && (*e == 0 || s == e))
        };
        tensor.filter(|t| fits(&t.shape)).ok_or_else(|| ImportError::Tensor {
            path: self.path.to_path_buf(),
            name: name.to_owned(),
            found,
            expected: expected.to_vec(),
        })
    }

    /// Every tensor was taken, apart from those under these prefixes.
    pub(super) fn finish(self, spare: &[&str]) -> Result<(), ImportError> {
        let left = self.tensors.into_keys().find(|name| !spare.iter().any(|prefix| name.starts_with(prefix)));
        match left {
            None => Ok(()),
            Some(name) => Err(ImportError::Unknown { path: self.path.to_path_buf(), name }),
        }
    }
}

/// Makes networks that were trained on scaled observations take them as the robot gives them.
pub(super) fn fold_state(path: &Path, weights: &mut EnsembleWeights, by: &StateScaling) -> Result<(), ImportError> {
    let observation_dim = weights.actor.stack.inputs();
    for (what, values) in [("mean", &by.shift), ("std", &by.scale)] {
        let usable = |v: &f64| v.is_finite() && (what == "mean" || *v > 0.0);
        if values.len() != observation_dim || !values.iter().all(usable) {
            let path: PathBuf = path.to_path_buf();
            return Err(ImportError::StateScaling { path, what, got: values.len(), expected: observation_dim });
        }
    }
    let targets = weights.targets.iter_mut().flat_map(|(one, two)| [one, two]);
    let critics = [&mut weights.critic1, &mut weights.critic2].into_iter();
    for stack in [&mut weights.actor.stack].into_iter().chain(critics).chain(targets) {
        if let Some(layer) = stack.layers.first_mut() {
            scale_inputs(layer, 0, by);
        }
    }
    Ok(())
}

/// Makes critics that were trained on `scale * action` take actions in [-1, 1].
pub(super) fn fold_action(weights: &mut EnsembleWeights, scale: f64) {
    let first = weights.actor.stack.inputs();
    let by = StateScaling { shift: vec![0.0; MAX_FOLD], scale: vec![1.0 / scale; MAX_FOLD] };
    let targets = weights.targets.iter_mut().flat_map(|(one, two)| [one, two]);
    for stack in [&mut weights.critic1, &mut weights.critic2].into_iter().chain(targets) {
        if let Some(layer) = stack.layers.first_mut() {
            scale_inputs(layer, first, &by);
        }
    }
}

/// More actions than any actor has.
const MAX_FOLD: usize = 256;

/// `x W + b` of scaled inputs from `first` on: `W / scale` and `b - shift / scale W`, in f64, rounded once.
fn scale_inputs(layer: &mut LayerWeights, first: usize, by: &StateScaling) {
    let mut bias: Vec<f64> = layer.bias.iter().map(|b| f64::from(*b)).collect();
    let rows = layer.weight.chunks_exact_mut(layer.outputs.max(1)).skip(first);
    for (row, (shift, scale)) in rows.zip(by.shift.iter().zip(&by.scale)) {
        for (weight, bias) in row.iter_mut().zip(&mut bias) {
            let folded = f64::from(*weight) / scale;
            *bias -= shift * folded;
            *weight = folded as f32;
        }
    }
    layer.bias = bias.into_iter().map(|b| b as f32).collect();
}

/// `y = multiplier y + offset` for the outputs from `first` on.
pub(super) fn map_outputs(layer: &mut LayerWeights, first: usize, multiplier: f64, offset: f64) {
    for row in layer.weight.chunks_exact_mut(layer.outputs.max(1)) {
        for weight in row.iter_mut().skip(first) {
            *weight = (f64::from(*weight) * multiplier) as f32;
        }
    }
    for bias in layer.bias.iter_mut().skip(first) {
        *bias = (f64::from(*bias) * multiplier + offset) as f32;
    }
}

/// Appends the members of `new` to `stack`.
pub(super) fn append(stack: &mut StackWeights, new: StackWeights, path: &Path) -> Result<(), ImportError> {
    if stack.members == 0 {
        *stack = new;
        return Ok(());
    }
    let shape = |l: Option<&LayerWeights>| {
        let norm = |l: &LayerWeights| if l.layer_norm.is_some() { " with layer norm" } else { "" };
        l.map_or(String::from("absent"), |l| format!("{} x {}{}", l.inputs, l.outputs, norm(l)))
    };
    for layer in 0..new.layers.len().max(stack.layers.len()) {
        let (expected, got) = (shape(stack.layers.get(layer)), shape(new.layers.get(layer)));
        if expected != got {
            return Err(ImportError::Member { path: path.to_path_buf(), layer, expected, got });
        }
    }
    for (all, new) in stack.layers.iter_mut().zip(new.layers) {
        all.weight.extend(new.weight);
        all.bias.extend(new.bias);
        if let (Some((scale, shift)), Some((new_scale, new_shift))) = (&mut all.layer_norm, new.layer_norm) {
            scale.extend(new_scale);
            shift.extend(new_shift);
        }
    }
    stack.members += new.members;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sample::{ensemble, reference};

    #[test]
    fn folded_networks_say_of_raw_inputs_what_they_said_of_scaled_ones() {
        let plain = ensemble(1, 4, &[8], 2);
        let by = StateScaling { shift: vec![1.0, -2.0, 0.5, 0.0], scale: vec![2.0, 0.1, 3.0, 1.0] };
        let mut folded = plain.clone();
        fold_state(Path::new("x"), &mut folded, &by).unwrap();
        fold_action(&mut folded, 2.0);
        let raw = [0.3_f32, -1.9, 4.0, 0.7];
        let scaled: Vec<f32> = raw
            .iter()
            .zip(by.shift.iter().zip(&by.scale))
            .map(|(o, (m, s))| ((f64::from(*o) - m) / s) as f32)
            .collect();
        let ((got, _), (expected, _)) = (reference(&folded.actor, &raw), reference(&plain.actor, &scaled));
        assert!(got.iter().zip(&expected).all(|(g, e)| (g - e).abs() < 1e-5), "{got:?} {expected:?}");

        let layer = |critic: &StackWeights, input: &[f32]| -> Vec<f64> {
            let first = &critic.layers[0];
            let sum = |o: usize| -> f64 {
                let products = input
                    .iter()
                    .enumerate()
                    .map(|(i, v)| f64::from(*v) * f64::from(first.weight[i * first.outputs + o]));
                products.sum::<f64>() + f64::from(first.bias[o])
            };
            (0..first.outputs).map(sum).collect()
        };
        for (folded, plain) in [(&folded.critic1, &plain.critic1), (&folded.critic2, &plain.critic2)] {
            let got = layer(folded, &[&raw[..], &[0.25, -0.5]].concat());
            let expected = layer(plain, &[&scaled[..], &[0.5, -1.0]].concat());
            assert!(got.iter().zip(&expected).all(|(g, e)| (g - e).abs() < 1e-5), "{got:?} {expected:?}");
        }
        let wrong = StateScaling { scale: vec![0.0; 4], ..by };
        assert!(matches!(fold_state(Path::new("x"), &mut folded, &wrong), Err(ImportError::StateScaling { .. })));
    }

    #[test]
    fn an_affine_map_of_the_log_std_is_part_of_the_last_layer() {
        let plain = ensemble(1, 3, &[8], 2).actor;
        let mut folded = plain.clone();
        map_outputs(folded.stack.layers.last_mut().unwrap(), 2, 0.5, -1.0);
        let observation = [0.1, 0.2, -0.3];
        let ((mean, std), (same, before)) = (reference(&folded, &observation), reference(&plain, &observation));
        assert_eq!(mean, same);
        for (std, before) in std.iter().zip(before) {
            assert!((std.ln() - (0.5 * before.ln() - 1.0)).abs() < 1e-5);
        }
    }
}
