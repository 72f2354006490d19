//! Encoders of an ensemble as named arrays: how they enter bundles and checkpoints.
//!
//! `encoder.shape` `(5)` holds width, height and channels of the image, the length of the robot's observation and
//! whether the networks see it. An encoder of `NETWORK` (`actor`; `target` of a shared one; `critic1`, `critic2`,
//! `target1`, `target2`) has, with `N` the members that have one of their own: `encoder.NETWORK.wi`
//! `(N, outputs, inputs, 3, 3)` and `encoder.NETWORK.bi` `(N, outputs)` for convolution `i` from 0, then
//! `encoder.NETWORK.dense_w` `(N, inputs, outputs)` and `encoder.NETWORK.dense_b` `(N, outputs)`.

use super::conv::{ConvEncoderWeights, ConvWeights};
use super::weights::{Encoders, EnsembleWeights, Eyes};
use crate::spaces::FrameShape;

/// Shape and numbers, row-major.
pub type Array = (Vec<usize>, Vec<f32>);

/// Most convolutions of an encoder.
pub const MAX_CONVOLUTIONS: usize = 8;

/// The arrays of `weights`, none without eyes. Encoders of one network must have one shape.
pub fn encoder_tensors(weights: &EnsembleWeights) -> Vec<(String, Array)> {
    let Some(eyes) = &weights.actor.eyes else { return Vec::new() };
    let FrameShape { width, height, channels } = eyes.shape;
    let mut shape: Vec<f32> = [width, height, channels].map(f32::from).to_vec();
    shape.extend([eyes.observation_dim as f32, f32::from(u8::from(eyes.proprioception))]);
    let mut all = vec![(String::from("encoder.shape"), (vec![shape.len()], shape))];
    put(&mut all, "actor", &eyes.encoders);
    for (network, encoders) in weights.encoder.iter().flat_map(Encoders::by_network) {
        put(&mut all, network, encoders);
    }
    all
}

fn put(all: &mut Vec<(String, Array)>, network: &str, encoders: &[ConvEncoderWeights]) {
    let Some(first) = encoders.first() else { return };
    let mut push = |name: String, own: &[usize], of: &dyn Fn(&ConvEncoderWeights) -> Vec<f32>| {
        let shape = [&[encoders.len()], own].concat();
        all.push((format!("encoder.{network}.{name}"), (shape, encoders.iter().flat_map(of).collect())));
    };
    for (i, conv) in first.convolutions.iter().enumerate() {
        push(format!("w{i}"), &[conv.outputs, conv.inputs, 3, 3], &|e| e.convolutions[i].weight.clone());
        push(format!("b{i}"), &[conv.outputs], &|e| e.convolutions[i].bias.clone());
    }
    let (inputs, outputs) = first.dense;
    push("dense_w".into(), &[inputs, outputs], &|e| e.dense_weight.clone());
    push("dense_b".into(), &[outputs], &|e| e.dense_bias.clone());
}

/// The eyes and the critics' encoders that `take` has the arrays of.
///
/// # Errors
/// The name of an array that is missing or has another shape than its neighbours ask for.
pub fn take_encoders(mut take: impl FnMut(&str) -> Option<Array>) -> Result<(Option<Eyes>, Option<Encoders>), String> {
    let Some((_, shape)) = take("encoder.shape") else { return Ok((None, None)) };
    let whole = |v: f32| (v >= 0.0 && v <= f32::from(u16::MAX) && v.fract() == 0.0).then_some(v as u16);
    let numbers: Option<Vec<u16>> = shape.into_iter().map(whole).collect();
    let Some([width, height, channels, observation_dim, proprioception]) = numbers.as_deref() else {
        return Err(String::from("encoder.shape"));
    };
    let shape = FrameShape { width: *width, height: *height, channels: *channels };
    let mut wrong = None;
    let mut of = |network: &str| {
        take_network(network, &mut take).unwrap_or_else(|name| {
            wrong.get_or_insert(name);
            Vec::new()
        })
    };
    let (observation_dim, proprioception) = (usize::from(*observation_dim), *proprioception > 0);
    let eyes = Eyes { shape, encoders: of("actor"), observation_dim, proprioception };
    let others = Encoders::from_networks(of);
    wrong.map_or(Ok((Some(eyes), others)), Err)
}

fn take_network(
    network: &str,
    take: &mut impl FnMut(&str) -> Option<Array>,
) -> Result<Vec<ConvEncoderWeights>, String> {
    let mut encoders: Vec<ConvEncoderWeights> = Vec::new();
    for i in 0..MAX_CONVOLUTIONS {
        let weight_name = format!("encoder.{network}.w{i}");
        let Some((shape, weight)) = take(&weight_name) else { break };
        let &[members, outputs, inputs, 3, 3] = shape.as_slice() else { return Err(weight_name) };
        if i == 0 {
            encoders = vec![ConvEncoderWeights::default(); members];
        }
        let weights = split(&weight_name, &weight, encoders.len(), outputs * inputs * 9)?;
        let biases = rows(format!("encoder.{network}.b{i}"), encoders.len(), outputs, take)?;
        for ((encoder, weight), bias) in encoders.iter_mut().zip(weights).zip(biases) {
            encoder.convolutions.push(ConvWeights { inputs, outputs, weight, bias });
        }
    }
    if encoders.is_empty() {
        return Ok(encoders);
    }
    let name = format!("encoder.{network}.dense_w");
    let (shape, weight) = take(&name).ok_or_else(|| name.clone())?;
    let &[_, inputs, outputs] = shape.as_slice() else { return Err(name) };
    let weights = split(&name, &weight, encoders.len(), inputs * outputs)?;
    let biases = rows(format!("encoder.{network}.dense_b"), encoders.len(), outputs, take)?;
    for ((encoder, weight), bias) in encoders.iter_mut().zip(weights).zip(biases) {
        (encoder.dense, encoder.dense_weight, encoder.dense_bias) = ((inputs, outputs), weight, bias);
    }
    Ok(encoders)
}

fn rows(
    name: String,
    members: usize,
    len: usize,
    take: &mut impl FnMut(&str) -> Option<Array>,
) -> Result<Vec<Vec<f32>>, String> {
    match take(&name) {
        Some((_, values)) => split(&name, &values, members, len),
        None => Err(name),
    }
}

fn split(name: &str, values: &[f32], members: usize, len: usize) -> Result<Vec<Vec<f32>>, String> {
    if len == 0 || values.len() != members * len {
        return Err(name.to_owned());
    }
    Ok(values.chunks_exact(len).map(<[f32]>::to_vec).collect())
}
