//! What makes weights an ensemble: lengths that fit, layers that chain, finite numbers, sane sizes.
//!
//! Every reader and every engine calls this once; afterwards indexing by the stated shapes is safe. It knows nothing
//! about files.

use firmware_bridge::{MAX_ACTION, MAX_OBSERVATION};

use crate::nn::weights::{ActorWeights, Encoders, EnsembleWeights, Eyes, LayerWeights, LogStdBounds, StackWeights};
use crate::nn::{ConvEncoderWeights, MAX_CONVOLUTIONS};

/// Most members of an ensemble.
pub const MAX_MEMBERS: usize = 64;
/// Most layers of a network.
pub const MAX_LAYERS: usize = 16;
/// Largest image, bytes.
const MAX_IMAGE: usize = 1 << 22;
/// Widest layer.
pub const MAX_WIDTH: usize = 8192;

/// Why weights are not an ensemble.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StructureError {
    /// A number outside its range.
    #[error("{network}: {what} is {got}, allowed are {min} to {max}")]
    Size {
        /// Which network.
        network: &'static str,
        /// Which number.
        what: &'static str,
        /// Its value.
        got: usize,
        /// Smallest allowed.
        min: usize,
        /// Largest allowed.
        max: usize,
    },
    /// A number that must equal another one.
    #[error("{network}: {what} is {got}, expected {expected}")]
    Mismatch {
        /// Which network.
        network: &'static str,
        /// Which number.
        what: &'static str,
        /// What the rest of the ensemble asks for.
        expected: usize,
        /// What it is.
        got: usize,
    },
    /// A tensor with too few or too many numbers.
    #[error("{network}, layer {layer}: {tensor} has {got} numbers, its shape asks for {expected}")]
    Length {
        /// Which network.
        network: &'static str,
        /// Layer from 0.
        layer: usize,
        /// Which tensor.
        tensor: &'static str,
        /// Numbers the shape asks for.
        expected: usize,
        /// Numbers there are.
        got: usize,
    },
    /// NaN or infinity.
    #[error("{network}, layer {layer}: number {index} of {tensor} is {value}, weights must be finite")]
    NotFinite {
        /// Which network.
        network: &'static str,
        /// Layer from 0.
        layer: usize,
        /// Which tensor.
        tensor: &'static str,
        /// Position in the tensor.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Bounds of the log standard deviation that are not a range.
    #[error("log_std bounds {min} to {max} are not a finite range of at most +-50")]
    LogStd {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
}

/// Checks one stack of networks.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_stack(network: &'static str, stack: &StackWeights) -> Result<(), StructureError> {
    within(network, "the number of members", stack.members, 1, MAX_MEMBERS)?;
    within(network, "the number of layers", stack.layers.len(), 1, MAX_LAYERS)?;
    let mut inputs = stack.inputs();
    for (index, layer) in stack.layers.iter().enumerate() {
        within(network, "the input width of a layer", layer.inputs, 1, MAX_WIDTH)?;
        within(network, "the output width of a layer", layer.outputs, 1, MAX_WIDTH)?;
        equal(network, "the input width of a layer", inputs, layer.inputs)?;
        check_layer(network, index, stack.members, layer)?;
        inputs = layer.outputs;
    }
    Ok(())
}

/// Checks actors: a stack whose output is `action_dim` means and `action_dim` log standard deviations.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_actor(actor: &ActorWeights) -> Result<(), StructureError> {
    check_stack("actor", &actor.stack)?;
    check_log_std(actor.log_std)?;
    let outputs = actor.stack.outputs();
    within("actor", "the observation length", actor.observation_dim(), 1, MAX_OBSERVATION)?;
    if let Some(eyes) = &actor.eyes {
        check_eyes(eyes, &actor.stack)?;
    }
    within("actor", "the action length", outputs / 2, 1, MAX_ACTION)?;
    equal("actor", "the output width (means and log standard deviations)", outputs / 2 * 2, outputs)
}

/// Checks encoders, and that the actors are as wide as what they see.
fn check_eyes(eyes: &Eyes, actors: &StackWeights) -> Result<(), StructureError> {
    let network = "encoder";
    within(network, "the number of bytes of an image", eyes.shape.bytes(), 1, MAX_IMAGE)?;
    let own = eyes.encoders.len();
    if own != 1 {
        equal(network, "the number of encoders (one, or one for each actor)", actors.members, own)?;
    }
    for encoder in &eyes.encoders {
        check_encoder(encoder, eyes)?;
        equal(network, "the number of features", eyes.features(), encoder.dense.1)?;
    }
    let seen = eyes.features() + if eyes.proprioception { eyes.observation_dim } else { 0 };
    equal("actor", "the input width (features and, with proprioception, observation)", seen, actors.inputs())
}

/// Checks one encoder for images of `eyes.shape`.
fn check_encoder(encoder: &ConvEncoderWeights, eyes: &Eyes) -> Result<(), StructureError> {
    let network = "encoder";
    within(network, "the number of convolutions", encoder.convolutions.len(), 1, MAX_CONVOLUTIONS)?;
    let (mut channels, mut height, mut width) =
        (usize::from(eyes.shape.channels), usize::from(eyes.shape.height), usize::from(eyes.shape.width));
    for (layer, conv) in encoder.convolutions.iter().enumerate() {
        if layer > 0 {
            (height, width) = (height / 2, width / 2);
        }
        within(network, "the number of channels of a convolution", conv.outputs, 1, MAX_WIDTH)?;
        equal(network, "the input channels of a convolution", channels, conv.inputs)?;
        let tensors = [("weight", &conv.weight, conv.outputs * channels * 9), ("bias", &conv.bias, conv.outputs)];
        check_tensors(network, layer, tensors)?;
        channels = conv.outputs;
    }
    let ((inputs, outputs), layer) = (encoder.dense, encoder.convolutions.len());
    within(network, "the number of features", outputs, 1, MAX_WIDTH)?;
    within(network, "the number of pixels behind the poolings", height * width, 1, MAX_IMAGE)?;
    equal(network, "the input width of the dense layer", channels * height * width, inputs)?;
    let tensors = [("weight", &encoder.dense_weight, inputs * outputs), ("bias", &encoder.dense_bias, outputs)];
    check_tensors(network, layer, tensors)
}

/// The critics' encoders: of the actors' shape, as many as there are critics.
fn check_critic_eyes(weights: &EnsembleWeights) -> Result<(), StructureError> {
    let Some(others) = &weights.encoder else { return Ok(()) };
    let Some(eyes) = &weights.actor.eyes else {
        let (what, expected, got) = ("the number of actors' encoders beside the critics'", 1, 0);
        return Err(StructureError::Mismatch { network: "encoder", what, expected, got });
    };
    let own = if matches!(others, Encoders::Shared { .. }) { 1 } else { weights.critic1.members };
    for (network, encoders) in others.by_network() {
        equal(network, "the number of encoders", own, encoders.len())?;
        for encoder in encoders {
            check_encoder(encoder, eyes)?;
            equal(network, "the number of features", eyes.features(), encoder.dense.1)?;
        }
    }
    Ok(())
}

/// Checks everything a pretrained ensemble brings. Critics may be absent, both or none; a single actor may have any
/// number of twins.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_ensemble(weights: &EnsembleWeights) -> Result<(), StructureError> {
    check_actor(&weights.actor)?;
    check_critic_eyes(weights)?;
    let critics = [("critic1", &weights.critic1), ("critic2", &weights.critic2)];
    let targets = weights.targets.iter().flat_map(|(one, two)| [("target1", one), ("target2", two)]);
    if critics.iter().all(|(_, c)| c.layers.is_empty()) && weights.targets.is_none() {
        return Ok(());
    }
    let action_dim = weights.actor.stack.outputs() / 2;
    let actors = weights.actor.stack.members;
    let members = if actors == 1 { weights.critic1.members } else { actors };
    for (name, critic) in critics.into_iter().chain(targets) {
        check_stack(name, critic)?;
        equal(name, "the number of members", members, critic.members)?;
        equal(
            name,
            "the input width (observation and action)",
            weights.actor.stack.inputs() + action_dim,
            critic.inputs(),
        )?;
        equal(name, "the output width", 1, critic.outputs())?;
    }
    Ok(())
}

/// Checks the bounds of a log standard deviation.
///
/// # Errors
/// [`StructureError::LogStd`].
pub fn check_log_std(bounds: LogStdBounds) -> Result<(), StructureError> {
    let LogStdBounds { min, max } = bounds;
    if min >= -50.0 && max <= 50.0 && min <= max { Ok(()) } else { Err(StructureError::LogStd { min, max }) }
}

fn check_layer(
    network: &'static str,
    layer: usize,
    members: usize,
    weights: &LayerWeights,
) -> Result<(), StructureError> {
    let rows = members * weights.outputs;
    let norm =
        weights.layer_norm.iter().flat_map(|(scale, shift)| [("norm scale", scale, rows), ("norm bias", shift, rows)]);
    let dense = [("weight", &weights.weight, rows * weights.inputs), ("bias", &weights.bias, rows)];
    check_tensors(network, layer, dense.into_iter().chain(norm))
}

/// Checks lengths and numbers of tensors.
fn check_tensors<'a>(
    network: &'static str,
    layer: usize,
    tensors: impl IntoIterator<Item = (&'static str, &'a Vec<f32>, usize)>,
) -> Result<(), StructureError> {
    for (tensor, values, expected) in tensors {
        if values.len() != expected {
            return Err(StructureError::Length { network, layer, tensor, expected, got: values.len() });
        }
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(StructureError::NotFinite { network, layer, tensor, index, value: values[index] });
        }
    }
    Ok(())
}

fn within(network: &'static str, what: &'static str, got: usize, min: usize, max: usize) -> Result<(), StructureError> {
    if (min..=max).contains(&got) { Ok(()) } else { Err(StructureError::Size { network, what, got, min, max }) }
}

fn equal(network: &'static str, what: &'static str, expected: usize, got: usize) -> Result<(), StructureError> {
    if got == expected { Ok(()) } else { Err(StructureError::Mismatch { network, what, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sample::ensemble;

    #[test]
    fn an_ensemble_passes_and_each_fault_is_named() {
        let good = ensemble(3, 4, &[8, 8], 2);
        assert_eq!(check_ensemble(&good), Ok(()));

        let mut short = good.clone();
        short.critic1.layers[1].bias.pop();
        assert!(matches!(
            check_ensemble(&short),
            Err(StructureError::Length { network: "critic1", layer: 1, tensor: "bias", .. })
        ));
        let mut nan = good.clone();
        nan.actor.stack.layers[0].weight[5] = f32::NAN;
        assert!(matches!(check_ensemble(&nan), Err(StructureError::NotFinite { network: "actor", index: 5, .. })));
        let mut chain = good.clone();
        chain.actor.stack.layers.remove(1);
        assert!(check_ensemble(&chain).is_ok(), "8x8 between 8-wide layers may go");
        chain.actor.stack.layers.remove(0);
        assert!(check_ensemble(&chain).is_err(), "critics see another observation length");
        let mut alone = good.clone();
        alone.critic2 = StackWeights::default();
        assert!(matches!(check_ensemble(&alone), Err(StructureError::Size { network: "critic2", .. })));
        let mut bounds = good.clone();
        bounds.actor.log_std.min = f32::NAN;
        assert!(matches!(check_ensemble(&bounds), Err(StructureError::LogStd { .. })));
        let mut actor_only = good;
        (actor_only.critic1, actor_only.critic2) = Default::default();
        actor_only.targets = None;
        assert_eq!(check_ensemble(&actor_only), Ok(()));
    }
}
