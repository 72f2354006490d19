//! One golden file: its inputs, its settings, and the comparison of every number it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use safetensors::{Dtype, SafeTensors};

use super::{GoldenError, Quantity, Result};
use crate::nn::{LayerWeights, LogStdBounds, Stack, StackWeights};

/// Part of the relative tolerance that holds absolutely, times the largest number of its tensor or 1.
const ABSOLUTE_PART: f64 = 0.1;
/// Adam's second moments span so many decades that only their relative error says something.
const PURELY_RELATIVE: &str = "out.v.";

/// An open golden file and what was compared so far.
pub(super) struct Case {
    settings: BTreeMap<String, String>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    /// Expected tensors that were not compared yet.
    open: BTreeSet<String>,
    pub(super) device: Device,
    pub(super) tolerance: f64,
    pub(super) quantities: Vec<Quantity>,
}

impl Case {
    pub(super) fn open(path: &Path, device: &Device, tolerance: f64) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(GoldenError::Unreadable)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let settings = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            let data = view.data();
            let numbers = match view.dtype() {
                Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
                Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
                dtype => return Err(GoldenError::Type { name, dtype: format!("{dtype:?}") }),
            };
            tensors.insert(name, (view.shape().to_vec(), numbers));
        }
        let open = tensors.keys().filter(|n| n.starts_with("out.") || n.starts_with("grad.")).cloned().collect();
        Ok(Self { settings, tensors, open, device: device.clone(), tolerance, quantities: Vec::new() })
    }

    pub(super) fn text(&self, key: &'static str) -> Result<&str> {
        self.settings.get(key).map(String::as_str).ok_or(GoldenError::Setting { key, value: None })
    }

    pub(super) fn number(&self, key: &'static str) -> Result<f64> {
        let text = self.text(key)?;
        text.parse().map_err(|_| GoldenError::Setting { key, value: Some(text.into()) })
    }

    pub(super) fn number_or(&self, key: &'static str, default: f64) -> Result<f64> {
        if self.settings.contains_key(key) { self.number(key) } else { Ok(default) }
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<bool> {
        let text = self.text(key)?;
        text.parse().map_err(|_| GoldenError::Setting { key, value: Some(text.into()) })
    }

    /// One of the named choices of a setting.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Result<T> {
        let text = self.text(key)?;
        let found = choices.iter().find(|(name, _)| *name == text);
        found.map(|(_, choice)| *choice).ok_or(GoldenError::Setting { key, value: Some(text.into()) })
    }

    /// Bounds of the log standard deviation, those of the conventions where the file names none.
    pub(super) fn bounds(&self) -> Result<LogStdBounds> {
        let default = LogStdBounds::default();
        Ok(LogStdBounds {
            min: self.number_or("log_std_min", default.min.into())? as f32,
            max: self.number_or("log_std_max", default.max.into())? as f32,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of the inputs that begin with `prefix`, without it.
    pub(super) fn inputs(&self, prefix: &str) -> Vec<String> {
        let prefix = format!("in.{prefix}");
        self.tensors.keys().filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect()
    }

    pub(super) fn raw(&self, name: &str) -> Result<&(Vec<usize>, Vec<f64>)> {
        self.tensors.get(name).ok_or_else(|| GoldenError::Missing { name: name.into() })
    }

    /// Numbers of an input in single precision.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.raw(&format!("in.{name}"))?.1.iter().map(|v| *v as f32).collect())
    }

    pub(super) fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.raw(&format!("in.{name}"))?.0)
    }

    pub(super) fn input(&self, name: &str) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.numbers(name)?, self.shape(name)?, &self.device)?)
    }

    pub(super) fn variable(&self, name: &str) -> Result<Var> {
        Ok(Var::from_tensor(&self.input(name)?)?)
    }

    /// The stacked networks `in.NET.*`.
    pub(super) fn stack(&self, net: &str) -> Result<Stack> {
        let (mut layers, mut members) = (Vec::new(), 0);
        loop {
            let l = layers.len();
            let weight = format!("{net}.w{l}");
            if l > 0 && !self.has(&format!("in.{weight}")) {
                break;
            }
            let &[n, inputs, outputs] = self.shape(&weight)? else {
                return Err(GoldenError::Shape { name: weight.clone(), shape: self.shape(&weight)?.to_vec() });
            };
            members = n;
            let norm = self.has(&format!("in.{net}.ln_scale{l}"));
            let norm = norm.then(|| -> Result<_> {
                Ok((self.numbers(&format!("{net}.ln_scale{l}"))?, self.numbers(&format!("{net}.ln_bias{l}"))?))
            });
            layers.push(LayerWeights {
                inputs,
                outputs,
                weight: self.numbers(&weight)?,
                bias: self.numbers(&format!("{net}.b{l}"))?,
                layer_norm: norm.transpose()?,
            });
        }
        Ok(Stack::from_weights(&StackWeights { members, layers }, &self.device)?)
    }

    /// Compares a tensor with `out.NAME`.
    pub(super) fn value(&mut self, name: &str, got: &Tensor) -> Result<()> {
        let numbers = got.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.compare(&format!("out.{name}"), Some(got.dims()), &numbers)
    }

    /// Compares one variable's gradient with `grad.NAME`.
    pub(super) fn gradient(&mut self, name: &str, of: &Var, gradients: &GradStore) -> Result<()> {
        let Some(got) = gradients.get(of) else { return Err(GoldenError::NoGradient { name: name.into() }) };
        let numbers = got.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.compare(&format!("grad.{name}"), Some(got.dims()), &numbers)
    }

    /// Compares all gradients of a stack with `grad.NET.*`.
    pub(super) fn gradients(&mut self, net: &str, stack: &Stack, gradients: &GradStore) -> Result<()> {
        for (l, layer) in stack.gradient_weights(gradients)?.layers.iter().enumerate() {
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            self.compare(&format!("grad.{net}.w{l}"), None, &wide(&layer.weight))?;
            self.compare(&format!("grad.{net}.b{l}"), None, &wide(&layer.bias))?;
            if let Some((scale, shift)) = &layer.layer_norm {
                self.compare(&format!("grad.{net}.ln_scale{l}"), None, &wide(scale))?;
                self.compare(&format!("grad.{net}.ln_bias{l}"), None, &wide(shift))?;
            }
        }
        Ok(())
    }

    /// Compares numbers with the expected tensor `name`; a file that does not expect it has nothing to compare.
    pub(super) fn compare(&mut self, name: &str, shape: Option<&[usize]>, got: &[f64]) -> Result<()> {
        let Some((want_shape, want)) = self.tensors.get(name) else { return Ok(()) };
        if shape.is_some_and(|s| s != want_shape) || got.len() != want.len() {
            let got = shape.map_or_else(|| vec![got.len()], <[usize]>::to_vec);
            return Err(GoldenError::Expected { name: name.into(), got, want: want_shape.clone() });
        }
        let largest = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let floor = if name.starts_with(PURELY_RELATIVE) { 0.0 } else { ABSOLUTE_PART * self.tolerance * largest };
        let mut quantity = Quantity { name: name.into(), numbers: want.len(), ..Quantity::default() };
        for (got, want) in got.iter().zip(want) {
            // Equal numbers, infinities among them, have no error; a NaN has the largest.
            let error = if got == want { 0.0 } else { (got - want).abs() };
            let error = if error.is_nan() { f64::INFINITY } else { error };
            let share = |error: f64, allowed: f64| if error == 0.0 { 0.0 } else { error / allowed };
            quantity.max_absolute = quantity.max_absolute.max(error);
            if *want != 0.0 {
                quantity.max_relative = quantity.max_relative.max(error / want.abs());
            }
            quantity.of_tolerance = quantity.of_tolerance.max(share(error, self.tolerance * want.abs() + floor));
        }
        quantity.passed = quantity.of_tolerance <= 1.0;
        self.quantities.push(quantity);
        self.open.remove(name);
        Ok(())
    }

    /// Whether everything the file expects was compared, and something at all.
    pub(super) fn finish(&self) -> Result<()> {
        if !self.open.is_empty() {
            return Err(GoldenError::NeverCompared(self.open.iter().cloned().collect()));
        }
        if self.quantities.is_empty() { Err(GoldenError::Empty) } else { Ok(()) }
    }
}
