//! ONNX actors that others exported: what such a file says about itself, and the engine that runs it.
//!
//! The graph is run by ONNX Runtime as it is; nothing in it is reinterpreted. An actor is one float32 input `[1, O]`
//! (or `[any, O]`) and one float32 output `[1, A]` that is the action itself, after any squashing, as d3rlpy,
//! mujoco_playground and most exporters of others write it. [`inspect`] reads the file without ONNX Runtime and refuses
//! what no actor needs: other files, subgraphs, weights that are not finite, which ONNX Runtime would all take.
//!
//! Runs in commands and on the publisher's thread; [`PolicyBackend::infer`] on the control thread.

use prost::Message;
use serde::{Deserialize, Serialize};

use super::native::STD_BOUNDS;
use super::onnx_graph::FLOAT;
use super::onnx_proto::{Attribute, Graph, Model, Tensor, ValueInfo, too_many_parts};
use super::onnxruntime::{Bound, Runtime, RuntimeError};
use super::{MAX_ACTION, PolicyBackend, PolicyError, PolicyOutput, check_observation, check_output};

/// Largest file that is read.
pub const MAX_BYTES: usize = 64 << 20;
/// Oldest operator set that is taken.
pub const OLDEST_OPSET: i64 = 11;
/// Longest input and output that are taken.
const MAX_WIDTH: i64 = 4096;
/// Outputs that are taken for the action when there are several, in this order.
const ACTION_NAMES: [&str; 4] = ["action", "actions", "continuous_actions", "deterministic_action"];
/// The largest `f32` below 1: an action of 1 has no finite value before tanh.
const ALMOST_ONE: f32 = 1.0 - f32::EPSILON / 2.0;

/// Why an ONNX file is no actor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// Too large to be read.
    #[error("an ONNX actor of {bytes} bytes is larger than the {MAX_BYTES} that are read")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not protocol buffers: cut, garbage, or another file.
    #[error("not an ONNX file, or a damaged or truncated one: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Too old, or no ONNX operators at all.
    #[error("the ONNX file uses operator set {got}, taken are {OLDEST_OPSET} and newer; export it again")]
    Opset {
        /// Its version; 0 when it names none.
        got: i64,
    },
    /// Something an actor has not.
    #[error("the ONNX file holds {what}, which no actor needs; it is not run")]
    Refused {
        /// What was found.
        what: &'static str,
    },
    /// Other inputs than one observation.
    #[error("the ONNX file has inputs {found}; an actor has one, float32 [1, n]")]
    Inputs {
        /// Names and shapes.
        found: String,
    },
    /// No output, or several that could be the action.
    #[error("which of the outputs {found} is the action? Name it with --output")]
    Outputs {
        /// Names and shapes.
        found: String,
    },
    /// An output that is no action.
    #[error("output {found} is no action, float32 [1, n]; --output names another one")]
    Output {
        /// Name and shape.
        found: String,
    },
    /// A NaN or an infinity in the weights.
    #[error("number {index} of ONNX initializer `{name}` is {value}, weights must be finite")]
    NotFinite {
        /// Which tensor.
        name: String,
        /// Position in it.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Nothing to run it with.
    #[error(
        "an ONNX actor of others is run by ONNX Runtime alone: name its library (policy.onnxruntime, or --onnxruntime; tools/setup-native fetches one)"
    )]
    NeedsRuntime,
    /// Another answer than when the bundle was made.
    #[error(
        "entry {index} of the action for a recorded observation is {got}, recorded was {expected}: damaged file or faulty engine"
    )]
    Recorded {
        /// Position in the action.
        index: usize,
        /// When the bundle was made.
        expected: f32,
        /// Now.
        got: f32,
    },
}

/// Which input and output of a graph are observation and action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Name of the input.
    pub input: String,
    /// Name of the output.
    pub output: String,
    /// O.
    pub observation_dim: usize,
    /// A.
    pub action_dim: usize,
}

/// What an ONNX file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Version of the container.
    pub ir_version: i64,
    /// Version of the operators.
    pub opset: i64,
    /// Who wrote it.
    pub producer: String,
    /// Observation and action.
    pub interface: Interface,
    /// Names of all outputs.
    pub outputs: Vec<String>,
    /// Operators in the order of the graph.
    pub operators: Vec<String>,
    /// Numbers in the initializers.
    pub parameters: usize,
}

/// Reads what a file says about itself and refuses what is no actor. `output` names the action where the file has
/// several outputs.
///
/// # Errors
/// The first thing that is wrong.
pub fn inspect(bytes: &[u8], output: Option<&str>) -> Result<Description, ForeignError> {
    if bytes.len() > MAX_BYTES {
        return Err(ForeignError::TooLarge { bytes: bytes.len() });
    }
    if too_many_parts(bytes) {
        return Err(ForeignError::Refused { what: "thousands of parts" });
    }
    let model = Model::decode(bytes)?;
    let own = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
    let opset = own.map_or(0, |o| o.version);
    if opset < OLDEST_OPSET {
        return Err(ForeignError::Opset { got: opset });
    }
    let Some(graph) = &model.graph else { return Err(ForeignError::Refused { what: "no graph" }) };
    if !model.functions.is_empty() {
        return Err(ForeignError::Refused { what: "functions of its own" });
    }
    check_graph(graph)?;
    let mut parameters = 0;
    for tensor in &graph.initializer {
        parameters += check_tensor(tensor)?;
    }
    Ok(Description {
        ir_version: model.ir_version,
        opset,
        producer: model.producer_name.clone(),
        interface: interface(graph, output)?,
        outputs: graph.output.iter().map(|o| o.name.clone()).collect(),
        operators: graph.node.iter().map(|n| n.op_type.clone()).collect(),
        parameters,
    })
}

fn check_graph(graph: &Graph) -> Result<(), ForeignError> {
    let refused = |what| Err(ForeignError::Refused { what });
    if !graph.sparse_initializer.is_empty() {
        return refused("sparse weights");
    }
    for Attribute { t, g, tensors, graphs, .. } in graph.node.iter().flat_map(|n| &n.attribute) {
        if !(g.is_empty() && graphs.is_empty()) {
            return refused("a graph within the graph");
        }
        if !tensors.is_empty() {
            return refused("a list of tensors as an attribute");
        }
        if let Some(tensor) = t {
            check_tensor(tensor)?;
        }
    }
    Ok(())
}

/// Numbers of a tensor, all finite and in this file.
fn check_tensor(tensor: &Tensor) -> Result<usize, ForeignError> {
    if tensor.data_location != 0 {
        return Err(ForeignError::Refused { what: "weights in another file" });
    }
    if tensor.data_type == FLOAT {
        let raw = tensor.raw_data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let wrong = tensor.float_data.iter().copied().chain(raw).enumerate().find(|(_, v)| !v.is_finite());
        if let Some((index, value)) = wrong {
            return Err(ForeignError::NotFinite { name: short(&tensor.name), index, value });
        }
        return Ok(tensor.float_data.len() + tensor.raw_data.len() / size_of::<f32>());
    }
    Ok(0)
}

fn interface(graph: &Graph, output: Option<&str>) -> Result<Interface, ForeignError> {
    // Up to IR version 3 the weights are inputs as well.
    let weight = |name: &str| graph.initializer.iter().any(|t| t.name == name);
    let inputs: Vec<&ValueInfo> = graph.input.iter().filter(|i| !weight(&i.name)).take(16).collect();
    let observation_dim = match inputs[..] {
        [one] => width(one),
        _ => None,
    };
    let observation_dim = observation_dim.ok_or_else(|| ForeignError::Inputs { found: shapes(&inputs) })?;
    let outputs: Vec<&ValueInfo> = graph.output.iter().take(16).collect();
    let named = |name: &str| outputs.iter().copied().find(|o| o.name == name);
    let action = match (output, &outputs[..]) {
        (Some(name), _) => named(name),
        (None, [one]) => Some(*one),
        (None, _) => ACTION_NAMES.iter().find_map(|name| named(name)),
    };
    let action = action.ok_or_else(|| ForeignError::Outputs { found: shapes(&outputs) })?;
    let action_dim = width(action).ok_or_else(|| ForeignError::Output { found: shapes(&[action]) })?;
    Ok(Interface { input: inputs[0].name.clone(), output: action.name.clone(), observation_dim, action_dim })
}

/// `n` of float32 `[1, n]` or `[any, n]`.
fn width(value: &ValueInfo) -> Option<usize> {
    let tensor = value.kind.as_ref()?.tensor.as_ref().filter(|t| t.element == FLOAT)?;
    match tensor.shape.as_ref()?.dim[..] {
        // A dimension with a name instead of a number reads as 0.
        [ref batch, ref width] if batch.value <= 1 && (1..=MAX_WIDTH).contains(&width.value) => {
            Some(width.value as usize)
        }
        _ => None,
    }
}

fn shapes(values: &[&ValueInfo]) -> String {
    let shape = |value: &ValueInfo| {
        let tensor = value.kind.as_ref().and_then(|k| k.tensor.as_ref());
        let dims = tensor.and_then(|t| t.shape.as_ref()).map_or(&[][..], |s| &s.dim);
        let dims: Vec<_> = dims.iter().take(8).map(|d| d.value).collect();
        format!("`{}` (type {}, shape {dims:?})", short(&value.name), tensor.map_or(0, |t| t.element))
    };
    if values.is_empty() { "none".into() } else { values.iter().map(|v| shape(v)).collect::<Vec<_>>().join(", ") }
}

fn short(name: &str) -> String {
    name.chars().take(60).collect()
}

/// An ONNX actor of others in an ONNX Runtime session of one thread.
pub struct ForeignPolicy {
    bound: Bound,
    action_dim: usize,
}

impl ForeignPolicy {
    /// Makes a session from the bytes of an ONNX file that [`inspect`] took.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the model, or sees another interface in it.
    pub fn new(runtime: &'static Runtime, bytes: &[u8], interface: &Interface) -> Result<Self, RuntimeError> {
        let bound = Bound::new(runtime, bytes, &interface.input, None, &[&interface.output])?;
        let action_dim = bound.output(0).len();
        for (direction, name, got, expected) in [
            ("input", &interface.input, bound.width(), interface.observation_dim),
            ("output", &interface.output, action_dim, interface.action_dim),
        ] {
            if got != expected {
                let found = format!("{got} numbers, the file says {expected}");
                return Err(RuntimeError::Interface { direction, name: name.clone(), found });
            }
        }
        Ok(Self { bound, action_dim })
    }

    /// The action as the graph gives it.
    ///
    /// # Errors
    /// [`PolicyError::ObservationLength`], [`PolicyError::ObservationNotFinite`], [`PolicyError::Run`].
    pub fn action(&mut self, observation: &[f32]) -> Result<&[f32], PolicyError> {
        check_observation(observation, self.bound.width())?;
        self.bound.run(observation, &[])?;
        Ok(self.bound.output(0))
    }
}

impl PolicyBackend for ForeignPolicy {
    /// The mean is what tanh turns into the action, within 1e-6; an action beyond +-1 becomes +-1. The standard
    /// deviation is the smallest there is: the graph does not say one.
    fn infer(&mut self, observation: &[f32], _image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        let action = self.action(observation)?;
        let dim = action.len().min(MAX_ACTION);
        *out = PolicyOutput { action_dim: dim, ..PolicyOutput::default() };
        for (mean, action) in out.mean.iter_mut().zip(action) {
            // `clamp` keeps a NaN.
            *mean = f64::from(action.clamp(-ALMOST_ONE, ALMOST_ONE)).atanh() as f32;
        }
        out.std[..dim].fill(STD_BOUNDS.0);
        check_output(out)
    }

    fn engine(&self) -> &'static str {
        self.bound.engine
    }

    fn observation_dim(&self) -> usize {
        self.bound.width()
    }

    fn action_dim(&self) -> usize {
        self.action_dim
    }
}
