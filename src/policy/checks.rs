//! What a policy must show before it is offered to the control loop.
//!
//! The format checks (version, graph, checksum, finite weights) are [`super::onnx_file::decode`]; here are those that
//! compare with the robot and those that run the policy. They run on the publisher's thread or in commands.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::onnx_file::Probe;
use super::{PolicyBackend, PolicyError, PolicyOutput};
use crate::clock::thread_cpu;
use crate::spaces::{FrameShape, Spaces};

/// Largest difference between two engines, and between now and when a policy was written; relative above 1.
pub const TOLERANCE: f32 = 1e-4;

/// Why a well-formed policy is not offered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Another number of observation or action entries than the robot.
    #[error(
        "the policy's {what} has {got} entries, the robot's has {expected}; this policy is for another robot or task"
    )]
    Dimension {
        /// `observation` or `action`.
        what: &'static str,
        /// The robot's.
        expected: usize,
        /// The policy's.
        got: usize,
    },
    /// Images of another size than the camera's.
    #[error(
        "the policy looks at {got}, the camera gives {expected}; set camera.source, camera.width and camera.height as the policy was trained with"
    )]
    Image {
        /// The camera's, in words.
        expected: String,
        /// The policy's, in words.
        got: String,
    },
    /// Another meaning of an entry.
    #[error(
        "entry {index} of the policy's {what} is `{got}`, the robot's is `{expected}`: same names in the same order are needed"
    )]
    Name {
        /// `observation` or `action`.
        what: &'static str,
        /// Position.
        index: usize,
        /// The robot's name.
        expected: String,
        /// The policy's name.
        got: String,
    },
    /// The policy answers differently than when it was written.
    #[error(
        "{engine}: entry {index} of {output} for a recorded observation is {got}, recorded was {expected}; damaged file or faulty engine"
    )]
    Recorded {
        /// Which engine ran.
        engine: &'static str,
        /// `mean` or `std`.
        output: &'static str,
        /// Position.
        index: usize,
        /// When written.
        expected: f32,
        /// Now.
        got: f32,
    },
    /// The same answer to everything.
    #[error("the policy gives the same answer to {observations} different observations: it does not look at them")]
    Constant {
        /// How many were tried.
        observations: usize,
    },
    /// Two engines disagree.
    #[error(
        "engines disagree in entry {index} of {output}: {first} says {first_value}, {second} says {second_value}; do not use this ONNX Runtime build"
    )]
    Disagreement {
        /// One engine.
        first: &'static str,
        /// Its number.
        first_value: f32,
        /// The other.
        second: &'static str,
        /// Its number.
        second_value: f32,
        /// `mean` or `std`.
        output: &'static str,
        /// Position.
        index: usize,
    },
}

/// `count` observations for trying policies, row-major: first -1 to 1 in even steps, then standard normal numbers.
pub fn probe_observations(observation_dim: usize, count: usize) -> Vec<f32> {
    let steps = observation_dim.saturating_sub(1).max(1) as f64;
    let even = (0..observation_dim).map(|i| (-1.0 + 2.0 * i as f64 / steps) as f32);
    let random = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(0));
    even.chain(random).take(observation_dim * count).collect()
}

/// Observations and images for trying policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    count: usize,
    observation_dim: usize,
    bytes: usize,
    /// `(count, observation_dim)`.
    pub observations: Vec<f32>,
    /// `(count, height, width, channels)`; empty without a frame.
    pub images: Vec<u8>,
}

impl Inputs {
    /// [`probe_observations`], and as many images of a policy that has eyes: first one whose bytes rise evenly from 0 to
    /// 255, then noise.
    pub fn new(observation_dim: usize, frame: Option<FrameShape>, count: usize) -> Self {
        let bytes = frame.map_or(0, FrameShape::bytes);
        let mut images = vec![0; count * bytes];
        let (even, noise) = images.split_at_mut(bytes.min(count * bytes));
        let most = bytes.saturating_sub(1).max(1);
        even.iter_mut().enumerate().for_each(|(i, byte)| *byte = (255 * i / most) as u8);
        ChaCha8Rng::seed_from_u64(1).fill_bytes(noise);
        Self { count, observation_dim, bytes, observations: probe_observations(observation_dim, count), images }
    }

    /// For a policy.
    pub fn of(policy: &dyn PolicyBackend, count: usize) -> Self {
        Self::new(policy.observation_dim(), policy.frame(), count)
    }

    /// Observation and image, one after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[f32], &[u8])> {
        let part = |i: usize| i * self.observation_dim..(i + 1) * self.observation_dim;
        (0..self.count).map(move |i| (&self.observations[part(i)], &self.images[i * self.bytes..(i + 1) * self.bytes]))
    }
}

/// What the camera gives is what the policy looks at; a policy without eyes does not mind a camera.
///
/// # Errors
/// [`CheckError::Image`].
pub fn frame(policy: Option<FrameShape>, camera: Option<FrameShape>) -> Result<(), CheckError> {
    if policy.is_none() || policy == camera {
        return Ok(());
    }
    Err(CheckError::Image { expected: FrameShape::words(camera), got: FrameShape::words(policy) })
}

/// The policy's lengths are those of `spaces`.
///
/// # Errors
/// [`CheckError::Dimension`].
pub fn dimensions(policy: &dyn PolicyBackend, spaces: &Spaces) -> Result<(), CheckError> {
    length("observation", spaces.observation_dim(), policy.observation_dim())?;
    length("action", spaces.action_dim(), policy.action_dim())
}

/// The policy's names are those of the robot, in the same order.
///
/// # Errors
/// [`CheckError::Dimension`] or [`CheckError::Name`].
pub fn names(policy: &Spaces, robot: &Spaces) -> Result<(), CheckError> {
    for (what, policy, robot) in
        [("observation", &policy.observation, &robot.observation), ("action", &policy.action, &robot.action)]
    {
        length(what, robot.len(), policy.len())?;
        if let Some(index) = (0..robot.len()).find(|i| policy[*i] != robot[*i]) {
            let (expected, got) = (robot[index].clone(), policy[index].clone());
            return Err(CheckError::Name { what, index, expected, got });
        }
    }
    Ok(())
}

/// The policy still answers a recorded observation as recorded. Returns the largest difference.
///
/// # Errors
/// [`CheckError::Recorded`], or what [`PolicyBackend::infer`] returns.
pub fn recorded(policy: &mut dyn PolicyBackend, probe: &Probe) -> Result<f32, PolicyError> {
    let mut out = PolicyOutput::default();
    policy.infer(&probe.observation, &probe.image, &mut out)?;
    let mut largest = 0.0_f32;
    for (output, expected, got) in [("mean", &probe.mean, out.mean()), ("std", &probe.std, out.std())] {
        length("action", expected.len(), got.len())?;
        for (index, (&expected, &got)) in expected.iter().zip(got).enumerate() {
            if !close(expected, got) {
                return Err(CheckError::Recorded { engine: policy.engine(), output, index, expected, got }.into());
            }
            largest = largest.max((expected - got).abs());
        }
    }
    Ok(largest)
}

/// The policy's answer depends on the observation.
///
/// # Errors
/// [`CheckError::Constant`], or what [`PolicyBackend::infer`] returns.
pub fn responds(policy: &mut dyn PolicyBackend, inputs: &Inputs) -> Result<(), PolicyError> {
    let (mut first, mut out) = (None, PolicyOutput::default());
    for (observation, image) in inputs.iter() {
        policy.infer(observation, image, &mut out)?;
        if first.get_or_insert_with(|| out.clone()) != &out {
            return Ok(());
        }
    }
    Err(CheckError::Constant { observations: inputs.count }.into())
}

/// Two engines give the same answers. Returns the largest difference.
///
/// # Errors
/// [`CheckError::Disagreement`], or what [`PolicyBackend::infer`] returns.
pub fn agree(
    first: &mut dyn PolicyBackend,
    second: &mut dyn PolicyBackend,
    inputs: &Inputs,
) -> Result<f32, PolicyError> {
    let (mut one, mut two) = (PolicyOutput::default(), PolicyOutput::default());
    let mut largest = 0.0_f32;
    for (observation, image) in inputs.iter() {
        first.infer(observation, image, &mut one)?;
        second.infer(observation, image, &mut two)?;
        for (output, a, b) in [("mean", one.mean(), two.mean()), ("std", one.std(), two.std())] {
            length("action", a.len(), b.len())?;
            for (index, (&first_value, &second_value)) in a.iter().zip(b).enumerate() {
                if !close(first_value, second_value) {
                    let (first, second) = (first.engine(), second.engine());
                    let error = CheckError::Disagreement { first, first_value, second, second_value, output, index };
                    return Err(error.into());
                }
                largest = largest.max((first_value - second_value).abs());
            }
        }
    }
    Ok(largest)
}

/// Runs every observation once, so that memory, caches and pages are there before the first tick. Returns the
/// processor time of the last run.
///
/// # Errors
/// What [`PolicyBackend::infer`] returns.
pub fn warm_up(policy: &mut dyn PolicyBackend, inputs: &Inputs) -> Result<Duration, PolicyError> {
    let mut out = PolicyOutput::default();
    let mut last = Duration::ZERO;
    for (observation, image) in inputs.iter() {
        let start = thread_cpu();
        policy.infer(observation, image, &mut out)?;
        last = thread_cpu().saturating_sub(start);
    }
    Ok(last)
}

fn length(what: &'static str, expected: usize, got: usize) -> Result<(), CheckError> {
    if expected == got { Ok(()) } else { Err(CheckError::Dimension { what, expected, got }) }
}

/// NaN is close to nothing.
fn close(expected: f32, got: f32) -> bool {
    (expected - got).abs() <= TOLERANCE * expected.abs().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::native::NativePolicy;
    use crate::policy::sample::{ensemble, spaces};

    #[test]
    fn wrong_names_are_told_apart_from_wrong_lengths() {
        let robot = spaces(3, 1);
        assert!(matches!(
            names(&spaces(4, 1), &robot),
            Err(CheckError::Dimension { what: "observation", expected: 3, got: 4 })
        ));
        let mut swapped = robot.clone();
        swapped.observation.swap(0, 2);
        assert!(matches!(names(&swapped, &robot), Err(CheckError::Name { what: "observation", index: 0, .. })));
        assert_eq!(names(&robot, &robot), Ok(()));
    }

    #[test]
    fn a_constant_policy_and_a_changed_one_are_refused() {
        let mut actor = ensemble(2, 3, &[4], 1).actor;
        let mut policy = NativePolicy::new(&actor).unwrap();
        let mut out = PolicyOutput::default();
        policy.infer(&[0.1, 0.2, 0.3], &[], &mut out).unwrap();
        let (mean, std) = (out.mean().to_vec(), out.std().to_vec());
        let mut probe = Probe { observation: vec![0.1, 0.2, 0.3], image: Vec::new(), mean, std };
        assert_eq!(recorded(&mut policy, &probe).unwrap(), 0.0);
        probe.std[0] += 1e-3;
        assert!(matches!(
            recorded(&mut policy, &probe),
            Err(PolicyError::Check(CheckError::Recorded { output: "std", .. }))
        ));
        probe.std[0] = f32::NAN;
        assert!(recorded(&mut policy, &probe).is_err(), "NaN passed");

        let observations = Inputs::new(3, None, 8);
        responds(&mut policy, &observations).unwrap();
        actor.stack.layers[1].weight.fill(0.0);
        let mut constant = NativePolicy::new(&actor).unwrap();
        assert!(matches!(
            responds(&mut constant, &observations),
            Err(PolicyError::Check(CheckError::Constant { observations: 8 }))
        ));
        assert!(matches!(
            agree(&mut policy, &mut constant, &observations),
            Err(PolicyError::Check(CheckError::Disagreement { .. }))
        ));
    }
}
