//! Named f32 arrays and their safetensors form: how networks and optimiser moments enter a checkpoint.
//!
//! A stack `critic1` becomes `critic1.0.weight` `(members, inputs, outputs)`, `critic1.0.bias`
//! `(members, outputs)`, with layer norm `critic1.0.norm_scale` and `critic1.0.norm_bias`, and so on per layer.
//! Equal arrays give equal bytes. Pure; no files.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use crate::nn::{Encoders, Eyes, LayerWeights, StackWeights};

/// One array, row-major.
#[derive(Clone, Debug, PartialEq)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Arrays by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Arrays(BTreeMap<String, Array>);

/// Why arrays cannot be read back.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArrayError {
    /// No array of that name.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// The array has another shape than its neighbours ask for.
    #[error("tensor `{name}` has shape {shape:?}, expected {expected}")]
    Shape { name: String, shape: Vec<usize>, expected: &'static str },
    /// Not f32.
    #[error("tensor `{name}` is {dtype:?}, expected F32")]
    Type { name: String, dtype: Dtype },
    /// Not a safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
}

impl Arrays {
    /// Stores `values` under `name`.
    pub(super) fn put(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.0.insert(name, Array { shape, values });
    }

    /// Stores all of `others` under `name.` and their own names.
    pub(super) fn put_all(&mut self, name: &str, others: Self) {
        self.0.extend(others.0.into_iter().map(|(own, array)| (format!("{name}.{own}"), array)));
    }

    /// Takes out the values of `name`.
    pub(super) fn take(&mut self, name: &str) -> Result<Vec<f32>, ArrayError> {
        self.take_array(name).map(|array| array.values)
    }

    fn take_array(&mut self, name: &str) -> Result<Array, ArrayError> {
        self.0.remove(name).ok_or_else(|| ArrayError::Missing(name.to_owned()))
    }

    fn take_shaped(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ArrayError> {
        let array = self.take_array(name)?;
        if array.shape == shape {
            return Ok(array.values);
        }
        Err(ArrayError::Shape { name: name.to_owned(), shape: array.shape, expected: "(members, outputs)" })
    }

    /// Stores the layers of a stack under `name`.
    pub(super) fn put_stack(&mut self, name: &str, stack: StackWeights) {
        let members = stack.members;
        for (index, layer) in stack.layers.into_iter().enumerate() {
            let (inputs, outputs) = (layer.inputs, layer.outputs);
            self.put(format!("{name}.{index}.weight"), vec![members, inputs, outputs], layer.weight);
            self.put(format!("{name}.{index}.bias"), vec![members, outputs], layer.bias);
            if let Some((scale, bias)) = layer.layer_norm {
                self.put(format!("{name}.{index}.norm_scale"), vec![members, outputs], scale);
                self.put(format!("{name}.{index}.norm_bias"), vec![members, outputs], bias);
            }
        }
    }

    /// Takes out the stack that was stored under `name`.
    pub(super) fn take_stack(&mut self, name: &str) -> Result<StackWeights, ArrayError> {
        let mut stack = StackWeights::default();
        loop {
            let index = stack.layers.len();
            let weight_name = format!("{name}.{index}.weight");
            if index > 0 && !self.0.contains_key(&weight_name) {
                return Ok(stack);
            }
            let weight = self.take_array(&weight_name)?;
            let &[members, inputs, outputs] = weight.shape.as_slice() else {
                let expected = "(members, inputs, outputs)";
                return Err(ArrayError::Shape { name: weight_name, shape: weight.shape, expected });
            };
            let bias = self.take_shaped(&format!("{name}.{index}.bias"), &[members, outputs])?;
            let scale_name = format!("{name}.{index}.norm_scale");
            let layer_norm = if self.0.contains_key(&scale_name) {
                let scale = self.take_shaped(&scale_name, &[members, outputs])?;
                Some((scale, self.take_shaped(&format!("{name}.{index}.norm_bias"), &[members, outputs])?))
            } else {
                None
            };
            stack.members = members;
            stack.layers.push(LayerWeights { inputs, outputs, weight: weight.values, bias, layer_norm });
        }
    }

    /// Takes out the encoders that [`encoder_tensors`](crate::nn::encoder_tensors) gave.
    pub(super) fn take_encoders(&mut self) -> Result<(Option<Eyes>, Option<Encoders>), ArrayError> {
        let take = |name: &str| self.0.remove(name).map(|array| (array.shape, array.values));
        crate::nn::take_encoders(take).map_err(ArrayError::Missing)
    }

    /// The arrays as a safetensors file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, ArrayError> {
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> =
            self.0.iter().map(|(name, a)| (name, &a.shape, little_endian(&a.values))).collect();
        let views =
            bytes.iter().map(|(name, shape, data)| Ok((*name, TensorView::new(Dtype::F32, (*shape).clone(), data)?)));
        Ok(serialize(views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?, None)?)
    }

    /// Reads a safetensors file.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ArrayError> {
        let mut arrays = Self::default();
        for (name, view) in SafeTensors::deserialize(bytes)?.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(ArrayError::Type { name: name.to_owned(), dtype: view.dtype() });
            }
            let values = view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
            arrays.put(name.to_owned(), view.shape().to_vec(), values);
        }
        Ok(arrays)
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack() -> StackWeights {
        let numbers = |count: usize, from: f32| (0..count).map(|i| from + i as f32).collect::<Vec<_>>();
        let layer = |inputs: usize, outputs: usize, norm: bool| LayerWeights {
            inputs,
            outputs,
            weight: numbers(2 * inputs * outputs, 0.5),
            bias: numbers(2 * outputs, -3.0),
            layer_norm: norm.then(|| (numbers(2 * outputs, 1.0), numbers(2 * outputs, f32::MIN_POSITIVE))),
        };
        StackWeights { members: 2, layers: vec![layer(3, 4, true), layer(4, 1, false)] }
    }

    #[test]
    fn stacks_return_exactly() {
        let mut arrays = Arrays::default();
        arrays.put_stack("q", stack());
        arrays.put("extra".into(), vec![], vec![7.0]);
        let bytes = arrays.encode().unwrap();
        let mut read = Arrays::decode(&bytes).unwrap();
        assert_eq!(read, arrays);
        assert_eq!(read.encode().unwrap(), bytes);
        assert_eq!(read.take_stack("q").unwrap(), stack());
        assert_eq!(read.take("extra").unwrap(), [7.0]);
    }

    #[test]
    fn absent_and_misshapen_tensors_are_named() {
        let mut arrays = Arrays::default();
        arrays.put_stack("q", stack());
        arrays.0.get_mut("q.1.bias").unwrap().shape = vec![2];
        assert!(arrays.clone().take_stack("q").unwrap_err().to_string().contains("q.1.bias"));
        arrays.0.remove("q.0.bias");
        assert!(arrays.clone().take_stack("q").unwrap_err().to_string().contains("`q.0.bias` is missing"));
        assert!(arrays.take_stack("absent").unwrap_err().to_string().contains("absent.0.weight"));
        assert!(Arrays::decode(&[1, 2, 3]).is_err());
    }
}
