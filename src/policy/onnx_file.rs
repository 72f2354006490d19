//! The exported policy: one ONNX file with the ensemble, its names, a checksum and a probe.
//!
//! [`encode`] writes it, [`decode`] reads it back by the names of its initializers (`docs/policy-bundle.md`). Reading
//! is strict: the file must be the very bytes that [`encode`] writes for what it holds, so that the built-in pass and
//! ONNX Runtime cannot disagree about what the graph means. Foreign graphs are refused here.
//!
//! Runs on the publisher's thread or in commands, never on the control thread.

use prost::Message;

use super::checks::Inputs;
use super::native::NativePolicy;
use super::onnx_eyes::{encoder_tensors, read_eyes};
use super::onnx_graph::{FLOAT, graph, layer_tensors};
use super::onnx_proto::{Entry, Graph, Model, OperatorSet, Tensor, too_many_parts};
use super::structure::{MAX_LAYERS, StructureError, check_actor};
use super::{PolicyBackend, PolicyError, PolicyOutput};
use crate::nn::weights::{ActorWeights, LayerWeights, LogStdBounds, StackWeights};
use crate::spaces::Spaces;

/// Version of the ONNX container: 8, which every ONNX Runtime since 1.17 reads.
pub const IR_VERSION: i64 = 8;
/// Version of the operators: 17, where `ReduceMean` still takes its axes as an attribute.
pub const OPSET: i64 = 17;
/// Largest file that is read.
pub const MAX_BYTES: usize = 256 << 20;
const KIND: &str = "fieldtune-ensemble-policy-1";
/// Metadata entries in front of those of the caller.
const OWN_ENTRIES: usize = 8;
/// The last metadata entry.
const SEAL: &str = "file_crc32c";

/// An exported policy as read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyFile {
    /// The ensemble.
    pub actor: ActorWeights,
    /// Names of observation and action entries.
    pub spaces: Spaces,
    /// What the policy answered when it was written.
    pub probe: Probe,
    /// What the writer added.
    pub metadata: Vec<(String, String)>,
}

/// One observation and the ensemble's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// `(O)`.
    pub observation: Vec<f32>,
    /// `(height, width, channels)`; empty for actors without eyes.
    pub image: Vec<u8>,
    /// `(A)`, before tanh.
    pub mean: Vec<f32>,
    /// `(A)`.
    pub std: Vec<f32>,
}

/// Why bytes are not an exported policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// Too large to be read.
    #[error("an ONNX policy of {bytes} bytes is larger than the {MAX_BYTES} that are read")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not protocol buffers: cut, garbage, or another file.
    #[error("not an ONNX file, or a damaged or truncated one: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A version this program does not run.
    #[error("ONNX {what} is {got}, this program runs {expected}; export the policy again with that version")]
    Version {
        /// `IR version` or `operator set`.
        what: &'static str,
        /// What the file says.
        got: i64,
        /// What is run.
        expected: i64,
    },
    /// Something a policy of this program has is not there.
    #[error(
        "the ONNX file has no {what} `{name}`: it is truncated or no policy of this program (then only ONNX Runtime runs it)"
    )]
    Missing {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A tensor whose type, shape and bytes do not fit together.
    #[error(
        "ONNX initializer `{name}`: {bytes} bytes of type {data_type} with shape {dims:?}, expected f32 of shape {expected}"
    )]
    Tensor {
        /// Its name.
        name: String,
        /// Its `data_type`.
        data_type: i32,
        /// Its shape.
        dims: Vec<i64>,
        /// Its length.
        bytes: usize,
        /// The shape in words.
        expected: &'static str,
    },
    /// Metadata that cannot be read.
    #[error("ONNX metadata `{key}` is `{value}`, expected {expected}")]
    Metadata {
        /// Which entry.
        key: &'static str,
        /// Its text, cut.
        value: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// The file changed since it was written.
    #[error("ONNX {what}: checksum {got:08x}, written was {expected:08x}; the file is damaged, copy it again")]
    Checksum {
        /// `weights` or `file`.
        what: &'static str,
        /// Checksum in the file.
        expected: u32,
        /// Checksum of what is there.
        got: u32,
    },
    /// More, less or other nodes than the export has.
    #[error("the ONNX graph is not the ensemble graph of this program; the built-in pass would not mean the same")]
    Foreign,
    /// The weights are not an ensemble.
    #[error("ONNX weights: {0}")]
    Structure(#[from] StructureError),
}

/// Writes an ensemble as an ONNX file.
///
/// `metadata` is added as it is, for example the generation of the weights.
///
/// # Errors
/// When the weights are not an ensemble, do not fit `spaces`, or answer the probe with NaN.
pub fn encode(actor: &ActorWeights, spaces: &Spaces, metadata: &[(&str, &str)]) -> Result<Vec<u8>, PolicyError> {
    let mut native = NativePolicy::new(actor)?;
    super::checks::dimensions(&native, spaces)?;
    let Inputs { observations: observation, images: image, .. } = Inputs::of(&native, 1);
    let mut out = PolicyOutput::default();
    native.infer(&observation, &image, &mut out)?;
    let probe = Probe { mean: out.mean().to_vec(), std: out.std().to_vec(), observation, image };
    Ok(encode_model(actor, spaces, &probe, metadata.iter().copied()))
}

fn encode_model<'a>(
    actor: &ActorWeights,
    spaces: &Spaces,
    probe: &Probe,
    metadata: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    let own: [_; OWN_ENTRIES] = [
        ("kind", String::from(KIND)),
        ("members", actor.stack.members.to_string()),
        ("observation", names_text(&spaces.observation)),
        ("action", names_text(&spaces.action)),
        ("weights_crc32c", format!("{:08x}", weights_crc32c(actor))),
        ("probe_observation", hex(&probe.observation)),
        ("probe_mean", hex(&probe.mean)),
        ("probe_std", hex(&probe.std)),
    ];
    let own = own.into_iter().map(|(key, value)| Entry { key: String::from(key), value });
    let added = metadata.map(|(key, value)| Entry { key: String::from(key), value: String::from(value) });
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: String::from("fieldtune"),
        graph: Some(graph(actor)),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        metadata: own.chain(added).collect(),
        functions: Vec::new(),
    };
    sealed(model.encode_to_vec())
}

/// Appends the checksum of a whole file as its last metadata entry.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let value = format!("{:08x}", crc32c::crc32c(&bytes));
    let seal = Entry { key: String::from(SEAL), value };
    // Messages written one after the other are one message with the entries of both.
    bytes.extend(Model { metadata: vec![seal], ..Model::default() }.encode_to_vec());
    bytes
}

/// Reads an exported policy and checks everything that can be checked without running it.
///
/// # Errors
/// When the bytes are anything but what [`encode`] writes for these weights and names.
pub fn decode(bytes: &[u8]) -> Result<PolicyFile, OnnxError> {
    if bytes.len() > MAX_BYTES {
        return Err(OnnxError::TooLarge { bytes: bytes.len() });
    }
    if too_many_parts(bytes) {
        return Err(OnnxError::Foreign);
    }
    let model = Model::decode(bytes)?;
    version("IR version", model.ir_version, IR_VERSION)?;
    let opset = model.opset_import.first().map_or(0, |o| o.version);
    version("operator set", opset, OPSET)?;
    let graph = model.graph.as_ref().ok_or_else(|| missing("part", "graph"))?;
    let entry = |key| entry(&model.metadata, key);
    if entry("kind")? != KIND {
        return Err(metadata_error("kind", entry("kind")?, KIND));
    }
    let names = |key| {
        let text = entry(key)?;
        serde_json::from_str(text).map_err(|_| metadata_error(key, text, "a JSON list of names"))
    };
    let spaces = Spaces { observation: names("observation")?, action: names("action")? };
    let actor = read_actor(graph, spaces.observation_dim())?;
    check_actor(&actor)?;
    same("weights", checksum(&model.metadata, "weights_crc32c")?, weights_crc32c(&actor))?;
    let length = bytes.len() - sealed(Vec::new()).len().min(bytes.len());
    same("file", checksum(&model.metadata, SEAL)?, crc32c::crc32c(&bytes[..length]))?;
    let numbers = |key, len| {
        let text = entry(key)?;
        unhex(text, len).ok_or_else(|| metadata_error(key, text, "one group of 8 hexadecimal digits per number"))
    };
    let last = model.metadata.len().saturating_sub(1);
    let file = PolicyFile {
        spaces,
        probe: Probe {
            observation: numbers("probe_observation", actor.observation_dim())?,
            image: Inputs::new(1, actor.frame(), 1).images,
            mean: numbers("probe_mean", actor.action_dim())?,
            std: numbers("probe_std", actor.action_dim())?,
        },
        actor,
        metadata: model.metadata[OWN_ENTRIES.min(last)..last]
            .iter()
            .map(|e| (e.key.clone(), e.value.clone()))
            .collect(),
    };
    let added = file.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    if encode_model(&file.actor, &file.spaces, &file.probe, added) == bytes {
        Ok(file)
    } else {
        Err(OnnxError::Foreign)
    }
}

/// CRC-32C over the little-endian bytes of `w1, b1, (scale1, shift1), w2, ...`, and behind them those of each encoder.
pub fn weights_crc32c(actor: &ActorWeights) -> u32 {
    let mut crc = 0;
    let mut block = Vec::with_capacity(1 << 14);
    let layers = actor.stack.layers.iter().flat_map(layer_tensors).map(|(_, values)| values);
    let encoders = actor.eyes.iter().flat_map(|eyes| &eyes.encoders).flat_map(encoder_tensors);
    for values in layers.chain(encoders).flat_map(|values| values.chunks(1 << 12)) {
        block.clear();
        block.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        crc = crc32c::crc32c_append(crc, &block);
    }
    crc
}

fn read_actor(graph: &Graph, observation_dim: usize) -> Result<ActorWeights, OnnxError> {
    let mut layers = Vec::new();
    let mut members = 0;
    for number in 1..=MAX_LAYERS {
        let Some(weight) = find(graph, &format!("w{number}")) else {
            break;
        };
        let ([n, inputs, outputs], weight) = read_tensor(weight, "[members, inputs, outputs]")?;
        members = if number == 1 { n } else { members };
        let row = |name: &str| {
            let name = format!("{name}{number}");
            let tensor = find(graph, &name).ok_or_else(|| missing("initializer", &name))?;
            Ok::<_, OnnxError>(read_tensor::<3>(tensor, "[members, 1, outputs]")?.1)
        };
        let norm = find(graph, &format!("scale{number}")).is_some();
        let layer_norm = if norm { Some((row("scale")?, row("shift")?)) } else { None };
        layers.push(LayerWeights { inputs, outputs, weight, bias: row("b")?, layer_norm });
    }
    if layers.is_empty() {
        return Err(missing("initializer", "w1"));
    }
    let bound = |name| {
        let tensor = find(graph, name).ok_or_else(|| missing("initializer", name))?;
        Ok::<_, OnnxError>(read_tensor::<0>(tensor, "[]")?.1[0])
    };
    let log_std = LogStdBounds { min: bound("log_std_min")?, max: bound("log_std_max")? };
    let eyes = read_eyes(graph, observation_dim)?;
    Ok(ActorWeights { stack: StackWeights { members, layers }, log_std, eyes })
}

pub(super) fn find<'a>(graph: &'a Graph, name: &str) -> Option<&'a Tensor> {
    graph.initializer.iter().find(|t| t.name == name)
}

/// Shape and numbers of a tensor with `D` dimensions.
pub(super) fn read_tensor<const D: usize>(
    tensor: &Tensor,
    expected: &'static str,
) -> Result<([usize; D], Vec<f32>), OnnxError> {
    let wrong = || OnnxError::Tensor {
        name: tensor.name.chars().take(40).collect(),
        data_type: tensor.data_type,
        dims: tensor.dims.iter().copied().take(8).collect(),
        bytes: tensor.raw_data.len(),
        expected,
    };
    let dims: Vec<usize> = tensor.dims.iter().filter_map(|d| usize::try_from(*d).ok()).collect();
    let shape: [usize; D] = dims.try_into().map_err(|_| wrong())?;
    let numbers = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
    let bytes = numbers.and_then(|n| n.checked_mul(size_of::<f32>()));
    if tensor.data_type != FLOAT || bytes != Some(tensor.raw_data.len()) || bytes == Some(0) {
        return Err(wrong());
    }
    let values = tensor.raw_data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok((shape, values))
}

fn entry<'a>(metadata: &'a [Entry], key: &'static str) -> Result<&'a str, OnnxError> {
    metadata.iter().find(|e| e.key == key).map(|e| e.value.as_str()).ok_or_else(|| missing("metadata", key))
}

fn checksum(metadata: &[Entry], key: &'static str) -> Result<u32, OnnxError> {
    let text = entry(metadata, key)?;
    u32::from_str_radix(text, 16).map_err(|_| metadata_error(key, text, "8 hexadecimal digits"))
}

fn same(what: &'static str, expected: u32, got: u32) -> Result<(), OnnxError> {
    if got == expected { Ok(()) } else { Err(OnnxError::Checksum { what, expected, got }) }
}

fn version(what: &'static str, got: i64, expected: i64) -> Result<(), OnnxError> {
    if got == expected { Ok(()) } else { Err(OnnxError::Version { what, got, expected }) }
}

pub(super) fn missing(what: &'static str, name: &str) -> OnnxError {
    OnnxError::Missing { what, name: String::from(name) }
}

fn metadata_error(key: &'static str, value: &str, expected: &'static str) -> OnnxError {
    OnnxError::Metadata { key, value: value.chars().take(60).collect(), expected }
}

fn names_text(names: &[String]) -> String {
    serde_json::Value::from(names).to_string()
}

fn hex(values: &[f32]) -> String {
    values.iter().map(|v| format!("{:08x}", v.to_bits())).collect::<Vec<_>>().join(" ")
}

fn unhex(text: &str, len: usize) -> Option<Vec<f32>> {
    let values: Vec<f32> =
        text.split(' ').map(|word| u32::from_str_radix(word, 16).map(f32::from_bits)).collect::<Result<_, _>>().ok()?;
    (values.len() == len).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sample::{ensemble, normed, seeing, spaces};

    fn file() -> (ActorWeights, Vec<u8>) {
        let mut actor = ensemble(3, 4, &[8, 5], 2).actor;
        normed(&mut actor);
        actor.log_std = LogStdBounds { min: -5.0, max: 1.5 };
        let bytes = encode(&actor, &spaces(4, 2), &[("generation", "7")]).unwrap();
        (actor, bytes)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (actor, bytes) = file();
        let read = decode(&bytes).unwrap();
        assert_eq!(read.actor, actor);
        assert_eq!(read.spaces, spaces(4, 2));
        assert_eq!(read.metadata, [(String::from("generation"), String::from("7"))]);
        assert_eq!(read.probe.observation, [-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0]);
        assert_eq!(bytes, encode(&actor, &spaces(4, 2), &[("generation", "7")]).unwrap(), "not the same bytes twice");
    }

    #[test]
    fn actors_with_eyes_are_read_back_and_every_truncation_is_refused() {
        for (encoders, proprioception) in [(1, true), (1, false), (3, true), (3, false)] {
            let actor = seeing(3, encoders, proprioception).actor;
            let bytes = encode(&actor, &spaces(4, 2), &[]).unwrap();
            let read = decode(&bytes).unwrap();
            assert_eq!(read.actor, actor);
            assert_eq!(read.probe.image.len(), 12 * 9 * 3);
            for len in (0..bytes.len()).step_by(97) {
                assert!(decode(&bytes[..len]).is_err(), "accepted {len} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn every_truncation_and_every_changed_weight_byte_is_refused() {
        let (actor, bytes) = file();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "accepted {len} of {} bytes", bytes.len());
        }
        let first = actor.stack.layers[0].weight[0].to_le_bytes();
        let at = bytes.windows(4).position(|w| w == first).unwrap();
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(matches!(decode(&flipped), Err(OnnxError::Checksum { what: "weights", .. })));
        let mut nan = bytes;
        nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(decode(&nan), Err(OnnxError::Structure(StructureError::NotFinite { index: 0, .. }))));
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (_, bytes) = file();
        for at in 0..bytes.len() {
            for bit in [0x01, 0x10, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= bit;
                assert!(decode(&changed).is_err(), "byte {at} of {} may change", bytes.len());
            }
        }
    }

    /// Changes a file and gives it a valid seal again.
    fn resealed(bytes: &[u8], change: impl Fn(&mut Model)) -> Result<PolicyFile, OnnxError> {
        let mut model = Model::decode(bytes).unwrap();
        model.metadata.pop();
        change(&mut model);
        decode(&sealed(model.encode_to_vec()))
    }

    #[test]
    fn a_foreign_graph_is_named_as_such() {
        let (_, bytes) = file();
        assert!(resealed(&bytes, |_| ()).is_ok());
        let graph = |model: &mut Model| model.graph.take().unwrap();
        let tanh = resealed(&bytes, |model| {
            let mut changed = graph(model);
            changed.node.iter_mut().filter(|n| n.op_type == "Relu").for_each(|n| n.op_type = String::from("Tanh"));
            model.graph = Some(changed);
        });
        assert!(matches!(tanh, Err(OnnxError::Foreign)));
        let newer = resealed(&bytes, |model| model.opset_import[0].version = 21);
        assert!(matches!(newer, Err(OnnxError::Version { got: 21, .. })));
        let gone = resealed(&bytes, |model| {
            let mut changed = graph(model);
            changed.initializer.retain(|t| t.name != "b2");
            model.graph = Some(changed);
        });
        assert!(matches!(&gone, Err(OnnxError::Missing { name, .. }) if name == "b2"), "{gone:?}");
        let huge = resealed(&bytes, |model| {
            let mut changed = graph(model);
            changed.initializer[0].dims = vec![i64::MAX, i64::MAX, 2];
            model.graph = Some(changed);
        });
        assert!(matches!(huge, Err(OnnxError::Tensor { .. })));
    }
}
