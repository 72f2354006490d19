//! The policy of the control loop (layer 2): an ensemble of actors as one file, and the engines that run it.
//!
//! An ensemble sees observations, and through an encoder of its own images, if it has eyes.
//!
//! An exported policy is one ONNX file ([`onnx_file`]) that serves every engine: the built-in forward pass
//! ([`native`]) and ONNX Runtime, loaded at run time ([`onnxruntime`]). [`prepare()`] encodes, checks, warms up and
//! hands back a [`PolicyBackend`]; a policy that fails a check is never offered. [`bundle`] keeps a policy with its
//! critics, provenance and hashes in a folder; [`import`] reads checkpoints of others. An ONNX actor of others is run
//! by ONNX Runtime as it is ([`foreign`]) and has a bundle of its own kind ([`foreign_bundle`]). An ensemble may act as a
//! [`residual`] on a frozen policy.
//!
//! It does not sample actions, apply limits, swap policies or learn: `control` and `learner` do.
//!
//! Invariants: a [`PolicyBackend`] that exists passed the checks of its constructor, accepts exactly
//! `observation_dim` finite numbers and answers with finite numbers or an error. [`PolicyBackend::infer`] runs on the
//! control thread and does not allocate, lock, log or touch files; everything else runs on other threads.

pub mod bundle;
pub mod checks;
mod error;
mod eye;
pub mod foreign;
pub mod foreign_bundle;
pub mod golden;
pub mod import;
mod import_corl;
mod import_d3rlpy;
mod import_kind;
mod import_layers;
mod import_sb3;
pub mod manifest;
pub mod native;
mod noise;
mod onnx_eyes;
pub mod onnx_file;
mod onnx_graph;
mod onnx_proto;
pub mod onnxruntime;
mod panel;
mod pickle;
mod prepare;
pub mod residual;
#[cfg(test)]
mod sample;
mod stored_zip;
pub mod structure;
pub mod torch_legacy;
pub mod torch_zip;
pub mod weights_file;

pub use bundle::Bundle;
pub use error::PolicyError;
pub use firmware_bridge::MAX_ACTION;
pub use foreign_bundle::{AnyBundle, ForeignBundle, Source};
pub use prepare::{Engine, Prepared, Report, prepare, prepare_file};

use crate::spaces::FrameShape;

/// The ensemble's Gaussian before `tanh`, moment-matched over its members (Off2OnRL, Eq. 5), and what it is added to.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyOutput {
    /// Mean of the members' means; the first `action_dim` entries count.
    pub mean: [f32; MAX_ACTION],
    /// Standard deviation, positive; the first `action_dim` entries count.
    pub std: [f32; MAX_ACTION],
    /// Action of the frozen policy below a [`residual`]; 0 without one.
    pub base: [f32; MAX_ACTION],
    /// How much the residual adds at most; 1 without a base.
    pub scale: f32,
    /// Length of an action.
    pub action_dim: usize,
}

impl Default for PolicyOutput {
    fn default() -> Self {
        let zero = [0.0; MAX_ACTION];
        Self { mean: zero, std: zero, base: zero, scale: 1.0, action_dim: 0 }
    }
}

impl PolicyOutput {
    /// The means that count.
    pub fn mean(&self) -> &[f32] {
        &self.mean[..self.action_dim.min(MAX_ACTION)]
    }

    /// The standard deviations that count.
    pub fn std(&self) -> &[f32] {
        &self.std[..self.action_dim.min(MAX_ACTION)]
    }

    /// Entry `d` of the action for standard normal `noise`, in [-1, 1]: `clip(base + scale tanh(mean + std noise), -1, 1)`.
    pub fn action(&self, d: usize, noise: f32) -> f32 {
        // `clamp` keeps a NaN.
        (self.base[d] + self.scale * (self.mean[d] + self.std[d] * noise).tanh()).clamp(-1.0, 1.0)
    }
}

/// An engine with a policy in it.
pub trait PolicyBackend: Send {
    /// Runs the ensemble on one observation. `image` is `(height, width, channels)` of [`PolicyBackend::frame`]; a policy
    /// without eyes does not look at it. Real-time: no Rust allocation, neither on success nor on failure.
    ///
    /// # Errors
    /// [`PolicyError::ObservationLength`], [`PolicyError::ObservationNotFinite`], [`PolicyError::ImageLength`],
    /// [`PolicyError::OutputNotFinite`], [`PolicyError::Run`]. `out` then holds nothing to act on.
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError>;

    /// Size of the image that the policy looks at; `None` without eyes.
    fn frame(&self) -> Option<FrameShape> {
        None
    }

    /// Which engine this is, for people and records.
    fn engine(&self) -> &'static str;

    /// Length of an observation.
    fn observation_dim(&self) -> usize;

    /// Length of an action.
    fn action_dim(&self) -> usize;
}

/// What every engine demands of an observation.
fn check_observation(observation: &[f32], expected: usize) -> Result<(), PolicyError> {
    if observation.len() != expected {
        return Err(PolicyError::ObservationLength { expected, got: observation.len() });
    }
    match observation.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(PolicyError::ObservationNotFinite { index }),
        None => Ok(()),
    }
}

/// What an engine with eyes demands of an image.
fn check_image(image: &[u8], shape: FrameShape) -> Result<(), PolicyError> {
    let expected = shape.bytes();
    if image.len() == expected { Ok(()) } else { Err(PolicyError::ImageLength { expected, got: image.len() }) }
}

/// What every engine promises of its output.
fn check_output(out: &PolicyOutput) -> Result<(), PolicyError> {
    for (output, values) in [("mean", out.mean()), ("std", out.std())] {
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(PolicyError::OutputNotFinite { output, index });
        }
    }
    Ok(())
}
