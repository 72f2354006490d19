//! The ensemble as an ONNX graph: which nodes, which names, which shapes.
//!
//! ```text
//! obs [1,O] -> MatMul w1 [N,O,H] -> Add b1 [N,1,H] (-> norm) -> Relu -> ... -> MatMul wL -> Add bL
//!   -> Split -> mu, ls ; sigma = Exp(Clip(ls, log_std_min, log_std_max))
//! mean = ReduceMean(mu) ; var = ReduceMean(sigma^2 + (mu - mean)^2)
//! std = Clip(Sqrt(var), std_min, std_max) ; action = Tanh(mean)
//! ```
//! What comes in front where the actors have eyes is in [`super::onnx_eyes`]. The names are a contract (`docs/policy-bundle.md`). Two passes for the variance: `E[x^2] - E[x]^2` loses up to
//! all digits of a small standard deviation in f32.

use super::native::{LAYER_NORM_EPSILON, STD_BOUNDS};
use super::onnx_eyes::image_info;
use super::onnx_proto::{Attribute, Dimension, Graph, Node, Shape, Tensor, TensorType, Type, ValueInfo};
use crate::nn::weights::{ActorWeights, LayerWeights};

/// `TensorProto.FLOAT`.
pub(super) const FLOAT: i32 = 1;
/// `TensorProto.INT64`.
const INT64: i32 = 7;
/// Bytes of a number.
const F32: usize = size_of::<f32>();

/// The graph of an ensemble.
pub(super) fn graph(actor: &ActorWeights) -> Graph {
    let action = actor.action_dim();
    let mut builder = Builder::default();
    let mut value = actor.eyes.as_ref().map_or_else(|| String::from("obs"), |eyes| builder.eyes(eyes));
    for (index, layer) in actor.stack.layers.iter().enumerate() {
        let last = index + 1 == actor.stack.layers.len();
        value = builder.layer(&value, index + 1, layer, actor.stack.members, last);
    }
    builder.scalar("log_std_min", actor.log_std.min);
    builder.scalar("log_std_max", actor.log_std.max);
    builder.scalar("std_min", STD_BOUNDS.0);
    builder.scalar("std_max", STD_BOUNDS.1);
    builder.heads(&value, action);
    Graph {
        node: builder.nodes,
        name: String::from("ensemble_policy"),
        initializer: builder.tensors,
        input: [value_info("obs", actor.observation_dim())].into_iter().chain(actor.frame().map(image_info)).collect(),
        output: ["mean", "std", "action"].map(|name| value_info(name, action)).to_vec(),
        sparse_initializer: Vec::new(),
    }
}

/// The tensors of a layer's weights in a fixed order: name, and its numbers.
pub(super) fn layer_tensors(layer: &LayerWeights) -> impl Iterator<Item = (&'static str, &[f32])> {
    let norm = layer.layer_norm.iter().flat_map(|(scale, shift)| [("scale", &scale[..]), ("shift", &shift[..])]);
    [("w", &layer.weight[..]), ("b", &layer.bias[..])].into_iter().chain(norm)
}

#[derive(Default)]
pub(super) struct Builder {
    nodes: Vec<Node>,
    tensors: Vec<Tensor>,
}

impl Builder {
    /// One dense layer; returns the name of its output.
    fn layer(&mut self, input: &str, number: usize, layer: &LayerWeights, members: usize, last: bool) -> String {
        for (name, values) in layer_tensors(layer) {
            let rows = if name == "w" { layer.inputs } else { 1 };
            self.tensor(&format!("{name}{number}"), &[members, rows, layer.outputs], values);
        }
        let named = |name: &str| format!("{name}{number}");
        self.node("MatMul", &[input, &named("w")], &named("product"));
        self.node("Add", &[&named("product"), &named("b")], &named("sum"));
        let mut output = named("sum");
        if layer.layer_norm.is_some() {
            // The operator takes one scale for all members; theirs differ and follow as Mul and Add.
            self.tensor(&named("one"), &[layer.outputs], &vec![1.0; layer.outputs]);
            let epsilon = Attribute { f: LAYER_NORM_EPSILON, ..attribute("epsilon", 1) };
            self.node_with(
                "LayerNormalization",
                &[&output, &named("one")],
                &[&named("normal")],
                vec![epsilon, axis(-1)],
            );
            self.node("Mul", &[&named("normal"), &named("scale")], &named("scaled"));
            self.node("Add", &[&named("scaled"), &named("shift")], &named("shifted"));
            output = named("shifted");
        }
        if !last {
            self.node("Relu", &[&output], &named("hidden"));
            output = named("hidden");
        }
        output
    }

    /// From the last layer's output to the three graph outputs.
    fn heads(&mut self, value: &str, action: usize) {
        self.integers("sizes", &[action; 2]);
        self.node_with("Split", &[value, "sizes"], &["mu", "ls"], vec![axis(2)]);
        self.node("Clip", &["ls", "log_std_min", "log_std_max"], "log_std");
        self.node("Exp", &["log_std"], "sigma");
        self.mean("mu", "mean");
        self.node("Sub", &["mu", "mean"], "deviation");
        self.node("Mul", &["deviation", "deviation"], "deviation2");
        self.node("Mul", &["sigma", "sigma"], "sigma2");
        self.node("Add", &["sigma2", "deviation2"], "spread");
        self.mean("spread", "variance");
        self.node("Sqrt", &["variance"], "root");
        self.node("Clip", &["root", "std_min", "std_max"], "std");
        self.node("Tanh", &["mean"], "action");
    }

    /// Mean over the members.
    fn mean(&mut self, input: &str, output: &str) {
        let axes = Attribute { ints: vec![0], ..attribute("axes", 7) };
        let keep = Attribute { i: 0, ..attribute("keepdims", 2) };
        self.node_with("ReduceMean", &[input], &[output], vec![axes, keep]);
    }

    pub(super) fn node(&mut self, op_type: &str, input: &[&str], output: &str) {
        self.node_with(op_type, input, &[output], Vec::new());
    }

    pub(super) fn node_with(&mut self, op_type: &str, input: &[&str], output: &[&str], attribute: Vec<Attribute>) {
        let strings = |names: &[&str]| names.iter().map(|n| String::from(*n)).collect();
        self.nodes.push(Node {
            input: strings(input),
            output: strings(output),
            name: format!("{op_type}_{}", output[0]),
            op_type: String::from(op_type),
            attribute,
        });
    }

    pub(super) fn scalar(&mut self, name: &str, value: f32) {
        self.tensor(name, &[], &[value]);
    }

    /// A list of whole numbers.
    pub(super) fn integers(&mut self, name: &str, values: &[usize]) {
        let raw_data = values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect();
        let (dims, name) = (vec![values.len() as i64], String::from(name));
        self.tensors.push(Tensor { dims, data_type: INT64, name, raw_data, ..Tensor::default() });
    }

    pub(super) fn tensor(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        let mut raw_data = Vec::with_capacity(values.len() * F32);
        raw_data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let dims = dims.iter().map(|d| *d as i64).collect();
        self.tensors.push(Tensor { dims, data_type: FLOAT, name: String::from(name), raw_data, ..Tensor::default() });
    }
}

pub(super) fn attribute(name: &str, kind: i32) -> Attribute {
    Attribute { name: String::from(name), kind, ..Attribute::default() }
}

pub(super) fn axis(axis: i64) -> Attribute {
    Attribute { i: axis, ..attribute("axis", 2) }
}

fn value_info(name: &str, width: usize) -> ValueInfo {
    let dim = [1, width as i64].map(|value| Dimension { value }).to_vec();
    let tensor = TensorType { element: FLOAT, shape: Some(Shape { dim }) };
    ValueInfo { name: String::from(name), kind: Some(Type { tensor: Some(tensor) }) }
}
