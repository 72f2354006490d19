//! Reader of the legacy PyTorch format (before 1.6): a dictionary of f32 tensors, nothing executed.
//!
//! A file is five pickles (magic number, protocol 1001, facts about the machine, the dictionary, the keys of its
//! storages), then per storage an `i64` count and the raw little-endian numbers. The zip format of later versions is
//! recognised and refused; [`super::torch_zip`] reads it.

use std::collections::{BTreeMap, HashMap};

use super::pickle::{Global, Id, Pickle, PickleError, Value};
use super::stored_zip::ZipError;

/// Largest file that is read.
pub const MAX_BYTES: usize = 256 << 20;
/// Pickles of the magic number 0x1950a86a20f9469cfc6c and of protocol 1001.
const PREFIX: &[u8; 21] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";

/// Raw numbers of storages by their keys.
pub(super) type Storages<'a> = HashMap<String, &'a [[u8; 4]]>;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Numbers, row-major.
    pub data: Vec<f32>,
}

/// Why bytes are not such a file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// Too large to be read.
    #[error("{bytes} bytes are more than the {MAX_BYTES} that are read")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The zip format.
    #[error("this is the zip format of PyTorch 1.6 and later, not the older one")]
    Zip,
    /// Another file.
    #[error("not a file of torch.save")]
    Magic,
    /// Numbers of a big-endian machine.
    #[error("the numbers were written by a big-endian machine")]
    BigEndian,
    /// The description of the tensors.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// Not a dictionary of tensors.
    #[error("not a plain dictionary of f32 tensors: {what}")]
    Content {
        /// What was found.
        what: &'static str,
    },
    /// A tensor that does not fit its storage.
    #[error("tensor `{name}`: {what}")]
    Tensor {
        /// Its key.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The zip archive around the tensors.
    #[error(transparent)]
    Archive(#[from] ZipError),
    /// Numbers are missing, or bytes follow.
    #[error("the storages do not fill the file exactly (truncated, or something was appended)")]
    Length,
}

/// Reads a dictionary of f32 tensors.
///
/// # Errors
/// When the bytes are anything else. Memory stays within a small multiple of the bytes.
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, TorchError> {
    if bytes.len() > MAX_BYTES {
        return Err(TorchError::TooLarge { bytes: bytes.len() });
    }
    if bytes.starts_with(b"PK") {
        return Err(TorchError::Zip);
    }
    let mut rest = bytes.strip_prefix(PREFIX).ok_or(TorchError::Magic)?;
    little_endian(&Pickle::read(&mut rest)?)?;
    let object = Pickle::read(&mut rest)?;
    let keys = Pickle::read(&mut rest)?;
    let storages = storages(&keys, rest)?;
    let Value::Call { function, items, .. } = object.root() else {
        return Err(content("no dictionary"));
    };
    if !matches!(object.get(*function), Value::Global(Global::OrderedDict)) {
        return Err(content("no OrderedDict"));
    }
    // Tensors may share storages, so that a short file could describe many large ones.
    let mut budget = bytes.len() / size_of::<f32>();
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        let Value::Text(name) = object.get(*key) else {
            return Err(content("a key that is no text"));
        };
        let wrong = |what| TorchError::Tensor { name: name.chars().take(60).collect(), what };
        let tensor = tensor(&object, *value, &storages, &mut budget).map_err(wrong)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(wrong("there are two of this name"));
        }
    }
    Ok(tensors)
}

fn little_endian(system: &Pickle) -> Result<(), TorchError> {
    let Value::Dict(items) = system.root() else {
        return Err(content("no facts about the machine"));
    };
    let flag = items.iter().find(|(key, _)| matches!(system.get(*key), Value::Text(t) if t == "little_endian"));
    match flag.map(|(_, value)| system.get(*value)) {
        Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) => Err(TorchError::BigEndian),
        _ => Err(content("no byte order")),
    }
}

/// The raw numbers of each storage.
fn storages<'a>(keys: &Pickle, mut bytes: &'a [u8]) -> Result<Storages<'a>, TorchError> {
    let Value::Sequence(ids) = keys.root() else {
        return Err(content("no list of storages"));
    };
    let mut storages = HashMap::new();
    for id in ids {
        let Value::Text(key) = keys.get(*id) else {
            return Err(content("a storage without a key"));
        };
        let (count, rest) = bytes.split_first_chunk().ok_or(TorchError::Length)?;
        let length = usize::try_from(i64::from_le_bytes(*count)).ok().and_then(|n| n.checked_mul(size_of::<f32>()));
        let (numbers, rest) = length.and_then(|n| rest.split_at_checked(n)).ok_or(TorchError::Length)?;
        storages.insert(key.clone(), numbers.as_chunks().0);
        bytes = rest;
    }
    if bytes.is_empty() { Ok(storages) } else { Err(TorchError::Length) }
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, ...)`.
pub(super) fn tensor(
    object: &Pickle,
    id: Id,
    storages: &Storages<'_>,
    budget: &mut usize,
) -> Result<Tensor, &'static str> {
    let Value::Call { function, arguments, .. } = object.get(id) else {
        return Err("no tensor");
    };
    let (Value::Global(Global::RebuildTensor), Value::Sequence(arguments)) =
        (object.get(*function), object.get(*arguments))
    else {
        return Err("no tensor");
    };
    let [storage, offset, size, stride, ..] = arguments[..] else {
        return Err("no tensor");
    };
    let (shape, stride) = (sizes(object, size)?, sizes(object, stride)?);
    let count = contiguous(&shape, &stride)?;
    let [offset] = sizes_of(object, &[offset])?[..] else {
        return Err("no offset");
    };
    let data = offset.checked_add(count).and_then(|end| storages.get(storage_key(object, storage)?)?.get(offset..end));
    let data = data.ok_or("outside of its storage")?;
    *budget = budget.checked_sub(count).ok_or("more numbers than the file has")?;
    Ok(Tensor { shape, data: data.iter().map(|b| f32::from_le_bytes(*b)).collect() })
}

/// The key in `("storage", FloatStorage, key, location, count, None)`.
pub(super) fn storage_key(object: &Pickle, id: Id) -> Option<&str> {
    let Value::Persistent(id) = object.get(id) else {
        return None;
    };
    let Value::Sequence(parts) = object.get(*id) else {
        return None;
    };
    let [_, kind, key, ..] = parts[..] else { return None };
    match (object.get(kind), object.get(key)) {
        (Value::Global(Global::FloatStorage), Value::Text(key)) => Some(key),
        _ => None,
    }
}

/// Number of elements of a row-major tensor without holes.
fn contiguous(shape: &[usize], stride: &[usize]) -> Result<usize, &'static str> {
    if shape.len() != stride.len() || shape.len() > 8 {
        return Err("shape and strides differ in length");
    }
    let mut count = 1_usize;
    for (&size, &stride) in shape.iter().zip(stride).rev() {
        if size > 1 && stride != count {
            return Err("not stored row by row; call contiguous() before saving");
        }
        count = count.checked_mul(size).ok_or("its shape overflows")?;
    }
    Ok(count)
}

fn sizes(object: &Pickle, id: Id) -> Result<Vec<usize>, &'static str> {
    match object.get(id) {
        Value::Sequence(ids) => sizes_of(object, ids),
        _ => Err("no shape"),
    }
}

fn sizes_of(object: &Pickle, ids: &[Id]) -> Result<Vec<usize>, &'static str> {
    let size = |id: &Id| match object.get(*id) {
        Value::Int(n) => usize::try_from(*n).map_err(|_| "a negative size"),
        _ => Err("a size that is no number"),
    };
    ids.iter().map(size).collect()
}

pub(super) fn content(what: &'static str) -> TorchError {
    TorchError::Content { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"w": [[1, 2, 3], [4, 5, 6]], "b": row 1 of the same storage}`, in the opcodes of PyTorch.
    fn file(global: &str, stride: u8) -> Vec<u8> {
        let mut bytes = PREFIX.to_vec();
        bytes.extend(b"\x80\x02}q\x00(X\x0d\0\0\0little_endianq\x01\x88u.");
        bytes.extend(b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(");
        let storage =
            [b"(X\x07\0\0\0storagectorch\n".to_vec(), global.into(), b"\nX\x01\0\0\0kX\x03\0\0\0cpuK\x06NtQ".to_vec()]
                .concat();
        let call = |name: u8, offset: u8, shape: &[u8]| {
            let start = [b'X', 1, 0, 0, 0, name];
            let head = [&start[..], b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K", &[offset]].concat();
            [&head[..], shape, b"\x89NtR"].concat()
        };
        bytes.extend(call(b'w', 0, &[b'K', 2, b'K', 3, 0x86, b'K', stride, b'K', 1, 0x86]));
        bytes.extend(call(b'b', 3, &[b'K', 3, 0x85, b'K', 1, 0x85]));
        bytes.extend(b"u.\x80\x02](X\x01\0\0\0ke.");
        bytes.extend(6_i64.to_le_bytes());
        bytes.extend((1..=6).flat_map(|v| (v as f32).to_le_bytes()));
        bytes
    }

    #[test]
    fn tensors_and_views_are_read() {
        let tensors = read(&file("FloatStorage", 3)).unwrap();
        assert_eq!(tensors["w"], Tensor { shape: vec![2, 3], data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] });
        assert_eq!(tensors["b"], Tensor { shape: vec![3], data: vec![4.0, 5.0, 6.0] });
    }

    #[test]
    fn what_is_not_a_dictionary_of_tensors_is_refused_by_name() {
        assert!(matches!(read(&file("FloatStorage", 1)), Err(TorchError::Tensor { .. })));
        let asked = read(&file("load", 3));
        assert!(
            matches!(&asked, Err(TorchError::Pickle(PickleError::Global { name })) if name == "torch.load"),
            "{asked:?}"
        );
        assert_eq!(read(b"PK\x03\x04"), Err(TorchError::Zip));
        assert_eq!(read(b""), Err(TorchError::Magic));
        let good = file("FloatStorage", 3);
        for len in 0..good.len() {
            assert!(read(&good[..len]).is_err(), "accepted {len} bytes");
        }
        assert_eq!(read(&[&good[..], b"x"].concat()), Err(TorchError::Length));
        let mut huge = good.clone();
        let at = good.len() - 32;
        huge[at..at + 8].copy_from_slice(&i64::MAX.to_le_bytes());
        assert_eq!(read(&huge), Err(TorchError::Length));
    }
}
