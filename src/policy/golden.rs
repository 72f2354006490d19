//! `golden.safetensors`: observations, and the answers the ensemble gave when its bundle was made.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView, serialize};

use super::checks::Inputs;
use super::native::NativePolicy;
use super::onnx_file::Probe;
use super::{PolicyBackend, PolicyError, PolicyOutput};
use crate::nn::weights::ActorWeights;
use crate::spaces::FrameShape;

/// Golden observations of a bundle.
pub(super) const ROWS: usize = 16;
/// And of one whose policy has eyes: images are large.
pub(super) const ROWS_WITH_IMAGES: usize = 4;
/// Longest file that is read.
pub(super) const MAX_BYTES: usize = 1 << 25;

/// Why bytes are not golden answers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// Not a safetensors file, or a damaged one.
    #[error("golden.safetensors: {0}")]
    Malformed(#[from] SafeTensorError),
    /// Other tensors than observations, mean, std and, for a policy with eyes, images.
    #[error(
        "golden.safetensors needs f32 tensors observations (K, {observation_dim}), mean and std (K, {action_dim}), and for a policy with eyes u8 images (K, height, width, channels)"
    )]
    Shape {
        /// O.
        observation_dim: usize,
        /// A.
        action_dim: usize,
    },
}

/// Observations and the answers that the ensemble gave when the bundle was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Golden {
    /// `(K, O)`.
    pub observations: Vec<f32>,
    /// `(K, height, width, channels)`; empty for a policy without eyes.
    pub images: Vec<u8>,
    /// `(K, A)`, before tanh.
    pub mean: Vec<f32>,
    /// `(K, A)`.
    pub std: Vec<f32>,
}

impl Golden {
    pub(super) fn of(policy: &mut NativePolicy) -> Result<Self, PolicyError> {
        let inputs = Inputs::of(policy, if policy.frame().is_some() { ROWS_WITH_IMAGES } else { ROWS });
        let (mut mean, mut std, mut out) = (Vec::new(), Vec::new(), PolicyOutput::default());
        for (observation, image) in inputs.iter() {
            policy.infer(observation, image, &mut out)?;
            mean.extend(out.mean());
            std.extend(out.std());
        }
        Ok(Self { observations: inputs.observations, images: inputs.images, mean, std })
    }

    pub(super) fn rows(&self, actor: &ActorWeights) -> impl Iterator<Item = Probe> {
        let answers = self.mean.chunks_exact(actor.action_dim()).zip(self.std.chunks_exact(actor.action_dim()));
        let rows = self.observations.chunks_exact(actor.observation_dim()).zip(answers);
        let bytes = actor.frame().map_or(0, FrameShape::bytes);
        rows.enumerate().map(move |(row, (observation, (mean, std)))| Probe {
            observation: observation.to_vec(),
            image: self.images[row * bytes..(row + 1) * bytes].to_vec(),
            mean: mean.to_vec(),
            std: std.to_vec(),
        })
    }

    pub(super) fn encode(&self, actor: &ActorWeights) -> Result<Vec<u8>, GoldenError> {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (observation_dim, action_dim) = (actor.observation_dim(), actor.action_dim());
        let rows = self.observations.len() / observation_dim;
        let (observations, mean, std) = (bytes(&self.observations), bytes(&self.mean), bytes(&self.std));
        let view = |width, data| TensorView::new(Dtype::F32, vec![rows, width], data);
        let mut tensors = vec![
            ("observations", view(observation_dim, &observations)?),
            ("mean", view(action_dim, &mean)?),
            ("std", view(action_dim, &std)?),
        ];
        if let Some(shape) = actor.frame() {
            tensors.push(("images", TensorView::new(Dtype::U8, image_dims(rows, shape), &self.images)?));
        }
        Ok(serialize(tensors, None)?)
    }

    pub(super) fn decode(bytes: &[u8], actor: &ActorWeights) -> Result<Self, GoldenError> {
        let (observation_dim, action_dim) = (actor.observation_dim(), actor.action_dim());
        let file = SafeTensors::deserialize(bytes)?;
        let wrong = || GoldenError::Shape { observation_dim, action_dim };
        let tensors = 3 + usize::from(actor.frame().is_some());
        let rows = file.tensor("observations")?.shape().first().copied().unwrap_or(0);
        let read = |name, width| {
            let view = file.tensor(name)?;
            if view.dtype() != Dtype::F32 || view.shape() != [rows, width] || rows == 0 || file.len() != tensors {
                return Err(wrong());
            }
            Ok(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let images = match actor.frame().map(|shape| (shape, file.tensor("images"))) {
            Some((shape, view)) => {
                let view = view?;
                if view.dtype() != Dtype::U8 || view.shape() != image_dims(rows, shape) {
                    return Err(wrong());
                }
                view.data().to_vec()
            }
            None => Vec::new(),
        };
        Ok(Self {
            images,
            observations: read("observations", observation_dim)?,
            mean: read("mean", action_dim)?,
            std: read("std", action_dim)?,
        })
    }
}

/// `(K, height, width, channels)`.
fn image_dims(rows: usize, shape: FrameShape) -> Vec<usize> {
    vec![rows, shape.height.into(), shape.width.into(), shape.channels.into()]
}
