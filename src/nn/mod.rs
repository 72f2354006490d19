//! Networks of the learner (layer 1): stacks of equal multi-layer perceptrons, a convolutional encoder, the
//! tanh-Gaussian policy, Adam.
//!
//! Tensors are candle's. A [`Stack`] is one differentiable operation with kernels of its own, so that a loss is
//! plain tensor algebra on `(members, batch)` values and still runs at the speed of the matrix products. There are
//! no reinforcement-learning words here; losses live in `rl`.
//!
//! Everything is called from one thread at a time, the learner's. A stack may split its members over more threads;
//! results are the same to the bit for any number of them.

mod adam;
mod conv;
mod encoder_tensors;
mod gradient;
mod kernels;
mod member;
mod one_thread;
pub mod pointwise;
mod policy_op;
mod stack;
mod stack_op;
mod stack_queue;
pub mod tanh_gaussian;
mod trunk;
mod trunk_plan;
pub mod weights;
#[cfg(test)]
mod witness;

pub use adam::{Adam, AdamSettings, AdamState, copy_into, copy_vars};
pub use conv::{ConvEncoder, ConvEncoderWeights, ConvWeights, Encoded};
pub use encoder_tensors::{Array, MAX_CONVOLUTIONS, encoder_tensors, take_encoders};
pub use gradient::limit_norm;
pub use one_thread::hold_candle_to_one_thread;
pub use stack::{Init, Stack};
pub use trunk::{Trunk, random_encoders};
pub use weights::*;
