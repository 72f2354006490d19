//! The encoders of images in the ONNX graph, and back out of it.
//!
//! ```text
//! image u8 [1,H,W,C] -> Cast f32 -> Div 255 -> Transpose [1,C,H,W]
//!   -> Conv conv1_w [E*K1,C,3,3] -> MaxPool 2 -> Relu -> ... -> Conv convL_w [E*KL,K,3,3] (group E) -> Relu
//!   -> Reshape [E,1,I] -> MatMul dense_w [E,I,F] -> Add dense_b [E,1,F] -> features
//! obs [1,O] -> Expand [E,1,O] ; Concat (features, obs) -> input
//! ```
//! `E` is 1 where all members share an encoder, else N: the members' encoders are the groups of one convolution.

use super::onnx_file::{OnnxError, find, missing, read_tensor};
use super::onnx_graph::{Builder, FLOAT, attribute, axis};
use super::onnx_proto::{Attribute, Dimension, Graph, Shape, TensorType, Type, ValueInfo};
use super::structure::MAX_MEMBERS;
use crate::nn::weights::Eyes;
use crate::nn::{ConvEncoderWeights, ConvWeights, MAX_CONVOLUTIONS};
use crate::spaces::FrameShape;

/// `TensorProto.UINT8`.
const UINT8: i32 = 2;
/// Name of the image input.
pub(super) const IMAGE: &str = "image";

/// The tensors of an encoder's weights in a fixed order.
pub(super) fn encoder_tensors(encoder: &ConvEncoderWeights) -> impl Iterator<Item = &[f32]> {
    let convolutions = encoder.convolutions.iter().flat_map(|c| [&c.weight[..], &c.bias[..]]);
    convolutions.chain([&encoder.dense_weight[..], &encoder.dense_bias[..]])
}

impl Builder {
    /// From the image (and the observation) to the input of the stack; returns its name.
    pub(super) fn eyes(&mut self, eyes: &Eyes) -> String {
        let count = eyes.encoders.len();
        let joined =
            |of: &dyn Fn(&ConvEncoderWeights) -> Vec<f32>| eyes.encoders.iter().flat_map(of).collect::<Vec<_>>();
        self.node_with("Cast", &[IMAGE], &["bytes"], vec![Attribute { i: FLOAT.into(), ..attribute("to", 2) }]);
        self.scalar("byte_max", 255.0);
        self.node("Div", &["bytes", "byte_max"], "pixels");
        let order = Attribute { ints: vec![0, 3, 1, 2], ..attribute("perm", 7) };
        self.node_with("Transpose", &["pixels"], &["planes"], vec![order]);
        let mut value = String::from("planes");
        let convolutions = eyes.encoders.first().map_or(&[][..], |encoder| &encoder.convolutions);
        for (index, convolution) in convolutions.iter().enumerate() {
            let named = |name: &str| format!("conv{}_{name}", index + 1);
            let ConvWeights { inputs, outputs, .. } = *convolution;
            self.tensor(
                &named("w"),
                &[count * outputs, inputs, 3, 3],
                &joined(&|e| e.convolutions[index].weight.clone()),
            );
            self.tensor(&named("b"), &[count * outputs], &joined(&|e| e.convolutions[index].bias.clone()));
            let ints = |name, ints: &[i64]| Attribute { ints: ints.to_vec(), ..attribute(name, 7) };
            // All encoders see the same image; behind it each sees its own maps.
            let groups = if index == 0 { 1 } else { count as i64 };
            let group = Attribute { i: groups, ..attribute("group", 2) };
            let shape = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1]), group];
            self.node_with("Conv", &[&value, &named("w"), &named("b")], &[&named("sum")], shape);
            value = named("sum");
            if index + 1 < convolutions.len() {
                let halves = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
                self.node_with("MaxPool", &[&value], &[&named("largest")], halves);
                value = named("largest");
            }
            self.node("Relu", &[&value], &named("maps"));
            value = named("maps");
        }
        let (inputs, outputs) = eyes.encoders.first().map_or((0, 0), |encoder| encoder.dense);
        self.integers("dense_shape", &[count, 1, inputs]);
        self.node("Reshape", &[&value, "dense_shape"], "flat");
        self.tensor("dense_w", &[count, inputs, outputs], &joined(&|e| e.dense_weight.clone()));
        self.tensor("dense_b", &[count, 1, outputs], &joined(&|e| e.dense_bias.clone()));
        self.node("MatMul", &["flat", "dense_w"], "dense_product");
        self.node("Add", &["dense_product", "dense_b"], "features");
        if !eyes.proprioception {
            return String::from("features");
        }
        self.integers("obs_shape", &[count, 1, eyes.observation_dim]);
        self.node("Expand", &["obs", "obs_shape"], "felt");
        self.node_with("Concat", &["features", "felt"], &["input"], vec![axis(2)]);
        String::from("input")
    }
}

/// The image input.
pub(super) fn image_info(shape: FrameShape) -> ValueInfo {
    let dim = [1, shape.height, shape.width, shape.channels].map(|n| Dimension { value: n.into() }).to_vec();
    let tensor = TensorType { element: UINT8, shape: Some(Shape { dim }) };
    ValueInfo { name: String::from(IMAGE), kind: Some(Type { tensor: Some(tensor) }) }
}

/// The eyes of a graph that has an image input; what they say is checked by encoding them again.
pub(super) fn read_eyes(graph: &Graph, observation_dim: usize) -> Result<Option<Eyes>, OnnxError> {
    let Some(image) = graph.input.iter().find(|i| i.name == IMAGE) else { return Ok(None) };
    let tensor = image.kind.as_ref().and_then(|k| k.tensor.as_ref());
    let dims = tensor.and_then(|t| t.shape.as_ref()).map_or(&[][..], |s| &s.dim[..]);
    let shape = match dims {
        [_, height, width, channels] => {
            let number = |d: &Dimension| u16::try_from(d.value).map_err(|_| OnnxError::Foreign);
            FrameShape { height: number(height)?, width: number(width)?, channels: number(channels)? }
        }
        _ => return Err(OnnxError::Foreign),
    };
    let tensor = |name: &str| find(graph, name).ok_or_else(|| missing("initializer", name));
    let ([count, inputs, features], dense_weight) = read_tensor(tensor("dense_w")?, "[encoders, inputs, features]")?;
    let (_, dense_bias) = read_tensor::<3>(tensor("dense_b")?, "[encoders, 1, features]")?;
    if count > MAX_MEMBERS {
        return Err(OnnxError::Foreign);
    }
    // What does not divide evenly fails the check of the structure.
    let part = |values: &[f32], e: usize| values[values.len() / count * e..values.len() / count * (e + 1)].to_vec();
    let mut encoders: Vec<ConvEncoderWeights> = (0..count)
        .map(|e| ConvEncoderWeights {
            convolutions: Vec::new(),
            dense: (inputs, features),
            dense_weight: part(&dense_weight, e),
            dense_bias: part(&dense_bias, e),
        })
        .collect();
    for number in 1..=MAX_CONVOLUTIONS {
        let Some(weight) = find(graph, &format!("conv{number}_w")) else { break };
        let ([outputs, inputs, _, _], weight) = read_tensor(weight, "[encoders * outputs, inputs, 3, 3]")?;
        let (_, bias) = read_tensor::<1>(tensor(&format!("conv{number}_b"))?, "[encoders * outputs]")?;
        for (e, encoder) in encoders.iter_mut().enumerate() {
            let (weight, bias) = (part(&weight, e), part(&bias, e));
            encoder.convolutions.push(ConvWeights { inputs, outputs: outputs / count, weight, bias });
        }
    }
    let proprioception = graph.node.iter().any(|node| node.op_type == "Concat");
    Ok(Some(Eyes { shape, encoders, observation_dim, proprioception }))
}
