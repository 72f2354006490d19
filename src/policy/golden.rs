//! `golden.safetensors`: observations, and the answers the ensemble gave when its bundle was made.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView, serialize};

use super::checks::probe_observations;
use super::native::NativePolicy;
use super::onnx_file::Probe;
use super::{PolicyBackend, PolicyError, PolicyOutput};

/// Golden observations of a bundle.
pub(super) const ROWS: usize = 16;
/// Longest file that is read.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Why bytes are not golden answers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// Not a safetensors file, or a damaged one.
    #[error("golden.safetensors: {0}")]
    Malformed(#[from] SafeTensorError),
    /// Other tensors than observations, mean and std.
    #[error("golden.safetensors needs f32 tensors observations (K, {observation_dim}), mean and std (K, {action_dim})")]
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
    /// `(K, A)`, before tanh.
    pub mean: Vec<f32>,
    /// `(K, A)`.
    pub std: Vec<f32>,
}

impl Golden {
    pub(super) fn of(policy: &mut NativePolicy) -> Result<Self, PolicyError> {
        let observations = probe_observations(policy.observation_dim(), ROWS);
        let mut golden = Self { observations, ..Self::default() };
        let mut out = PolicyOutput::default();
        for row in golden.observations.chunks_exact(policy.observation_dim()) {
            policy.infer(row, &mut out)?;
            golden.mean.extend(out.mean());
            golden.std.extend(out.std());
        }
        Ok(golden)
    }

    pub(super) fn rows(&self, observation_dim: usize, action_dim: usize) -> impl Iterator<Item = Probe> {
        let answers = self.mean.chunks_exact(action_dim).zip(self.std.chunks_exact(action_dim));
        let rows = self.observations.chunks_exact(observation_dim).zip(answers);
        rows.map(|(o, (m, s))| Probe { observation: o.to_vec(), mean: m.to_vec(), std: s.to_vec() })
    }

    pub(super) fn encode(&self, observation_dim: usize, action_dim: usize) -> Result<Vec<u8>, GoldenError> {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let rows = self.observations.len() / observation_dim;
        let (observations, mean, std) = (bytes(&self.observations), bytes(&self.mean), bytes(&self.std));
        let view = |width, data| TensorView::new(Dtype::F32, vec![rows, width], data);
        let tensors = [
            ("observations", view(observation_dim, &observations)?),
            ("mean", view(action_dim, &mean)?),
            ("std", view(action_dim, &std)?),
        ];
        Ok(serialize(tensors, None)?)
    }

    pub(super) fn decode(bytes: &[u8], observation_dim: usize, action_dim: usize) -> Result<Self, GoldenError> {
        let file = SafeTensors::deserialize(bytes)?;
        let wrong = || GoldenError::Shape { observation_dim, action_dim };
        let rows = file.tensor("observations")?.shape().first().copied().unwrap_or(0);
        let read = |name, width| {
            let view = file.tensor(name)?;
            if view.dtype() != Dtype::F32 || view.shape() != [rows, width] || rows == 0 || file.len() != 3 {
                return Err(wrong());
            }
            Ok(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        Ok(Self {
            observations: read("observations", observation_dim)?,
            mean: read("mean", action_dim)?,
            std: read("std", action_dim)?,
        })
    }
}
