//! `weights.safetensors`: everything a pretrained ensemble brings, under stable names.
//!
//! Networks `actor`, `critic1`, `critic2`, `target1`, `target2`; layer `i` from 0 has `NETWORK.wi` `(N, inputs,
//! outputs)`, `NETWORK.bi` `(N, outputs)` and, with layer norm, `NETWORK.scalei`, `NETWORK.shifti` `(N, outputs)`.
//! An ensemble with eyes has `encoder.*` as well ([`crate::nn::encoder_tensors`]).
//! `log_std` `(2)` holds the bounds, `log_alpha` `(1)` the logarithm of the entropy temperature. All f32. Unknown
//! names are refused. Used for bundles and checkpoints; knows nothing about folders or hashes.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView, serialize};

use super::structure::{MAX_LAYERS, StructureError, check_ensemble};
use crate::nn::encoder_tensors;
use crate::nn::take_encoders;
use crate::nn::weights::{ActorWeights, EnsembleWeights, LayerWeights, LogStdBounds, StackWeights};

/// Largest file that is read.
pub const MAX_BYTES: usize = 1 << 30;
/// Largest header that is read: five networks of 16 layers need 20 kB.
const MAX_HEADER: u64 = 1 << 18;
const NETWORKS: [&str; 5] = ["actor", "critic1", "critic2", "target1", "target2"];

/// Why bytes are not the weights of an ensemble.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsFileError {
    /// Too large to be read.
    #[error(
        "weights: {bytes} bytes with a header of {header} are more than the {MAX_BYTES} and {MAX_HEADER} that are read"
    )]
    TooLarge {
        /// Length of the file.
        bytes: usize,
        /// What the file says about its header.
        header: u64,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("weights: not a safetensors file, or a damaged or truncated one: {0}")]
    Malformed(#[from] SafeTensorError),
    /// A tensor this format has not.
    #[error("weights: tensor `{name}` has no meaning here")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A tensor that must be there.
    #[error("weights: tensor `{name}` is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor of another type or shape.
    #[error("weights: tensor `{name}` is {dtype} of shape {shape:?}, expected F32 of shape {expected}")]
    Tensor {
        /// Its name.
        name: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The shape in words.
        expected: &'static str,
    },
    /// The tensors are no ensemble.
    #[error("weights: {0}")]
    Structure(#[from] StructureError),
}

/// Writes an ensemble; the same weights give the same bytes.
///
/// # Errors
/// When the weights are not an ensemble.
pub fn encode(weights: &EnsembleWeights) -> Result<Vec<u8>, WeightsFileError> {
    check_ensemble(weights)?;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut push = |name: String, shape: &[usize], values: &[f32]| {
        tensors.push((name, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    };
    let targets = weights.targets.as_ref();
    let stacks = [
        Some(&weights.actor.stack),
        Some(&weights.critic1),
        Some(&weights.critic2),
        targets.map(|(one, _)| one),
        targets.map(|(_, two)| two),
    ];
    for (network, stack) in NETWORKS.into_iter().zip(stacks).filter_map(|(n, s)| s.map(|s| (n, s))) {
        for (i, layer) in stack.layers.iter().enumerate() {
            let row = [stack.members, layer.outputs];
            push(format!("{network}.w{i}"), &[stack.members, layer.inputs, layer.outputs], &layer.weight);
            push(format!("{network}.b{i}"), &row, &layer.bias);
            if let Some((scale, shift)) = &layer.layer_norm {
                push(format!("{network}.scale{i}"), &row, scale);
                push(format!("{network}.shift{i}"), &row, shift);
            }
        }
    }
    push(String::from("log_std"), &[2], &[weights.actor.log_std.min, weights.actor.log_std.max]);
    if let Some(log_alpha) = weights.log_alpha {
        push(String::from("log_alpha"), &[1], &[log_alpha]);
    }
    for (name, (shape, values)) in encoder_tensors(weights) {
        push(name, &shape, &values);
    }
    let views = tensors.iter().map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)));
    Ok(serialize(views.collect::<Result<Vec<_>, SafeTensorError>>()?, None)?)
}

/// Reads an ensemble. Never reserves more memory than the bytes it was given justify.
///
/// # Errors
/// When the bytes are not what [`encode`] writes for some ensemble.
pub fn decode(bytes: &[u8]) -> Result<EnsembleWeights, WeightsFileError> {
    let header = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    if bytes.len() > MAX_BYTES || header > MAX_HEADER {
        return Err(WeightsFileError::TooLarge { bytes: bytes.len(), header });
    }
    let mut reader = Reader { file: SafeTensors::deserialize(bytes)?, used: 0 };
    let mut stack = |network| reader.stack(network);
    let (actor, critic1, critic2) = (stack("actor")?, stack("critic1")?, stack("critic2")?);
    let targets = (stack("target1")?, stack("target2")?);
    let targets = (targets != Default::default()).then_some(targets);
    let log_std = match reader.numbers::<1>("log_std", "[2]")? {
        Some(([2], bounds)) => LogStdBounds { min: bounds[0], max: bounds[1] },
        _ => {
            return Err(WeightsFileError::Missing { name: String::from("log_std") });
        }
    };
    let log_alpha = match reader.numbers::<1>("log_alpha", "[1]")? {
        Some(([1], value)) if value[0].is_finite() => Some(value[0]),
        None => None,
        Some(_) => {
            return Err(WeightsFileError::Missing { name: String::from("log_alpha (one finite number)") });
        }
    };
    let (eyes, encoder) = take_encoders(|name| reader.any(name)).map_err(|name| WeightsFileError::Missing { name })?;
    reader.all_used()?;
    let actor = ActorWeights { stack: actor, log_std, eyes };
    let weights = EnsembleWeights { actor, critic1, critic2, targets, log_alpha, encoder };
    check_ensemble(&weights)?;
    Ok(weights)
}

struct Reader<'a> {
    file: SafeTensors<'a>,
    used: usize,
}

impl Reader<'_> {
    /// All layers of a network, none when there are none.
    fn stack(&mut self, network: &str) -> Result<StackWeights, WeightsFileError> {
        let mut stack = StackWeights::default();
        for i in 0..MAX_LAYERS {
            let Some((shape, weight)) = self.numbers::<3>(&format!("{network}.w{i}"), "[members, inputs, outputs]")?
            else {
                break;
            };
            let [members, inputs, outputs] = shape;
            stack.members = if i == 0 { members } else { stack.members };
            let mut row = |name: &str| self.numbers::<2>(&format!("{network}.{name}{i}"), "[members, outputs]");
            let missing = |name: &str| WeightsFileError::Missing { name: format!("{network}.{name}{i}") };
            let bias = row("b")?.ok_or_else(|| missing("b"))?.1;
            let layer_norm = match (row("scale")?, row("shift")?) {
                (Some((_, scale)), Some((_, shift))) => Some((scale, shift)),
                (None, None) => None,
                (None, _) => return Err(missing("scale")),
                (_, None) => return Err(missing("shift")),
            };
            stack.layers.push(LayerWeights { inputs, outputs, weight, bias, layer_norm });
        }
        Ok(stack)
    }

    /// Shape and numbers of a tensor, `None` when it is not there.
    #[allow(clippy::type_complexity, reason = "a shape beside its numbers")]
    fn numbers<const D: usize>(
        &mut self,
        name: &str,
        expected: &'static str,
    ) -> Result<Option<([usize; D], Vec<f32>)>, WeightsFileError> {
        let Ok(view) = self.file.tensor(name) else {
            return Ok(None);
        };
        self.used += 1;
        let (dtype, shape) = (view.dtype(), view.shape());
        let wrong = || WeightsFileError::Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), expected };
        let dims = shape.try_into().map_err(|_| wrong())?;
        if dtype != Dtype::F32 || view.data().is_empty() {
            return Err(wrong());
        }
        Ok(Some((dims, view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())))
    }

    /// A tensor in f32 of any shape, `None` when it is not there.
    fn any(&mut self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let view = self.file.tensor(name).ok().filter(|view| view.dtype() == Dtype::F32)?;
        self.used += 1;
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Some((view.shape().to_vec(), values))
    }

    /// Every tensor of the file was read.
    fn all_used(&self) -> Result<(), WeightsFileError> {
        if self.used == self.file.len() {
            return Ok(());
        }
        let known = |name: &str| {
            let (network, tensor) = name.split_once('.').unwrap_or((name, ""));
            let index = tensor.trim_start_matches(|c: char| c.is_ascii_lowercase());
            ["log_std", "log_alpha"].contains(&name)
                || network == "encoder"
                || NETWORKS.contains(&network) && index.parse().is_ok_and(|i: usize| i < MAX_LAYERS)
        };
        let mut names = self.file.names();
        names.sort_unstable();
        let name = names.iter().find(|n| !known(n)).or(names.last()).map_or("", |n| n);
        Err(WeightsFileError::Unknown { name: name.chars().take(60).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sample::{ensemble, normed};

    #[test]
    fn what_is_written_is_read_back() {
        let mut weights = ensemble(3, 4, &[8, 5], 2);
        normed(&mut weights.actor);
        weights.actor.log_std = LogStdBounds { min: -5.0, max: 2.0 };
        let bytes = encode(&weights).unwrap();
        assert_eq!(decode(&bytes).unwrap(), weights);
        assert_eq!(bytes, encode(&weights).unwrap());
        (weights.targets, weights.log_alpha) = (None, None);
        assert_eq!(decode(&encode(&weights).unwrap()).unwrap(), weights);
        (weights.critic1, weights.critic2) = Default::default();
        assert_eq!(decode(&encode(&weights).unwrap()).unwrap(), weights);
    }

    #[test]
    fn truncations_unknown_names_and_wrong_types_are_refused() {
        let bytes = encode(&ensemble(2, 3, &[4], 1)).unwrap();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "accepted {len} bytes");
        }
        let replaced = |from: &str, to: &str| {
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = bytes.clone();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            decode(&bytes)
        };
        let unknown = replaced("log_alpha", "log_alphb");
        assert!(matches!(&unknown, Err(WeightsFileError::Unknown { name }) if name == "log_alphb"), "{unknown:?}");
        let missing = replaced("actor.b0", "actor.b7");
        assert!(matches!(&missing, Err(WeightsFileError::Missing { name }) if name == "actor.b0"), "{missing:?}");
        let integers = replaced("\"F32\"", "\"I32\"");
        assert!(matches!(&integers, Err(WeightsFileError::Tensor { dtype: Dtype::I32, .. })), "{integers:?}");
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(decode(&huge), Err(WeightsFileError::TooLarge { .. })));
    }
}
