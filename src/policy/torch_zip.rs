//! Reader of the zip format of PyTorch (1.6 and later): all f32 tensors of a checkpoint by their paths, nothing
//! executed.
//!
//! An archive holds one pickle (`data.pkl`) and one file of raw little-endian numbers per storage. Dictionaries,
//! modules and parameters become paths: `{"actor": {"w.weight": tensor}}` gives `actor/w.weight`; the state of an
//! object continues its path. What an optimizer keeps, tensors of other types and everything else is passed over.

use std::collections::BTreeMap;

use super::pickle::{Global, Id, Pickle, Value};
use super::stored_zip;
use super::torch_legacy::{MAX_BYTES, Storages, Tensor, TorchError, content, storage_key, tensor};

/// Most values that are visited: several ways may lead to one value.
const MAX_VISITS: usize = 1 << 16;
/// Deepest path.
const MAX_DEPTH: usize = 8;
/// Longest path.
const MAX_PATH: usize = 200;

/// Reads all f32 tensors of a checkpoint. Numbers count as tensors without dimensions.
///
/// # Errors
/// When the bytes are no such file. Memory stays within a small multiple of the bytes.
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, TorchError> {
    if bytes.len() > MAX_BYTES {
        return Err(TorchError::TooLarge { bytes: bytes.len() });
    }
    let entries = stored_zip::entries(bytes)?;
    let prefix = entries.keys().find_map(|name| name.strip_suffix("data.pkl")).ok_or(TorchError::Magic)?;
    if entries.get(&*format!("{prefix}byteorder")).is_some_and(|order| order.trim_ascii() != b"little") {
        return Err(TorchError::BigEndian);
    }
    let folder = format!("{prefix}data/");
    let key = |name: &str| name.strip_prefix(&folder).map(String::from);
    let storages = entries.iter().filter_map(|(name, data)| Some((key(name)?, data.as_chunks().0))).collect();
    let object = Pickle::read_any(entries[&*format!("{prefix}data.pkl")])?;
    Walk { object: &object, storages, budget: bytes.len() / size_of::<f32>(), found: BTreeMap::new() }.run()
}

struct Walk<'a> {
    object: &'a Pickle,
    storages: Storages<'a>,
    /// Numbers that may still be copied: tensors may share storages.
    budget: usize,
    found: BTreeMap<String, Tensor>,
}

impl Walk<'_> {
    fn run(mut self) -> Result<BTreeMap<String, Tensor>, TorchError> {
        let mut open = vec![(String::new(), self.object.root_id(), 0)];
        for _ in 0..MAX_VISITS {
            let Some((path, id, depth)) = open.pop() else {
                return Ok(self.found);
            };
            if depth > MAX_DEPTH || path.len() > MAX_PATH {
                return Err(content("deeper than any checkpoint"));
            }
            self.visit(path, id, depth, &mut open)?;
        }
        Err(content("more parts than any checkpoint"))
    }

    fn visit(
        &mut self,
        path: String,
        id: Id,
        depth: usize,
        open: &mut Vec<(String, Id, usize)>,
    ) -> Result<(), TorchError> {
        let object = self.object;
        match object.get(id) {
            Value::Dict(items) => Self::open(object, &path, items, depth, open),
            Value::Float(number) => self.insert(path, Tensor { shape: Vec::new(), data: vec![*number as f32] }),
            Value::Call { function, arguments, items, state } => match object.get(*function) {
                Value::Global(Global::RebuildTensor) => self.tensor(path, id, *arguments),
                Value::Global(Global::RebuildParameter) => {
                    if let Value::Sequence(arguments) = object.get(*arguments)
                        && let Some(inner) = arguments.first()
                    {
                        open.push((path, *inner, depth + 1));
                    }
                    Ok(())
                }
                _ => {
                    if let Some(state) = state {
                        open.push((path.clone(), *state, depth + 1));
                    }
                    Self::open(object, &path, items, depth, open)
                }
            },
            _ => Ok(()),
        }
    }

    /// The items of a dictionary are next.
    fn open(
        object: &Pickle,
        path: &str,
        items: &[(Id, Id)],
        depth: usize,
        open: &mut Vec<(String, Id, usize)>,
    ) -> Result<(), TorchError> {
        for (key, value) in items {
            let Value::Text(key) = object.get(*key) else { continue };
            if key.contains("optim") {
                continue;
            }
            if key.len() > MAX_PATH || open.len() > MAX_VISITS {
                return Err(content("more parts than any checkpoint"));
            }
            let path = if path.is_empty() { key.clone() } else { format!("{path}/{key}") };
            open.push((path, *value, depth + 1));
        }
        Ok(())
    }

    fn tensor(&mut self, path: String, id: Id, arguments: Id) -> Result<(), TorchError> {
        let storage = match self.object.get(arguments) {
            Value::Sequence(arguments) => arguments.first().copied(),
            _ => None,
        };
        if storage.and_then(|storage| storage_key(self.object, storage)).is_none() {
            return Ok(());
        }
        let wrong = |what| TorchError::Tensor { name: path.chars().take(60).collect(), what };
        let tensor = tensor(self.object, id, &self.storages, &mut self.budget).map_err(wrong)?;
        self.insert(path, tensor)
    }

    fn insert(&mut self, path: String, tensor: Tensor) -> Result<(), TorchError> {
        let name = path.chars().take(60).collect();
        match self.found.insert(path, tensor) {
            None => Ok(()),
            Some(_) => Err(TorchError::Tensor { name, what: "there are two of this name" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::stored_zip::tests::archive;

    /// `{"net": {"w": [1, 2]}, "x_optim": 7.0, "n": 0.5, "m": Module with state {"p": parameter [2]}}`.
    fn pickle() -> Vec<u8> {
        let text = |t: &str| [&b"X"[..], &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
        let tensor = |offset: u8, count: u8| {
            let storage =
                [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), b"K\x02tQ"].concat();
            let sizes = [b'K', count, 0x85, b'K', 1, 0x85, 0x89, b'N', b't', b'R'];
            [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K", &[offset], &sizes].concat()
        };
        let parameter = [b"ctorch._utils\n_rebuild_parameter\n(", &tensor(1, 1)[..], b"\x88NtR"].concat();
        [
            b"\x80\x02}(",
            &text("net")[..],
            b"}",
            &text("w"),
            &tensor(0, 2),
            b"s",
            &text("x_optim"),
            b"G\x40\x1c\0\0\0\0\0\0",
            &text("n"),
            b"G\x3f\xe0\0\0\0\0\0\0",
            &text("m"),
            b"c__main__\nModule\n)\x81}",
            &text("p"),
            &parameter,
            b"sbu.",
        ]
        .concat()
    }

    #[test]
    fn dictionaries_modules_parameters_and_numbers_become_paths() {
        let numbers: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let read =
            |order: &[u8]| read(&archive(&[("a/data.pkl", &pickle()), ("a/byteorder", order), ("a/data/0", &numbers)]));
        let tensors = read(b"little").unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["m/p", "n", "net/w"]);
        assert_eq!(tensors["net/w"], Tensor { shape: vec![2], data: vec![1.0, 2.0] });
        assert_eq!(tensors["m/p"].data, [2.0]);
        assert_eq!(tensors["n"], Tensor { shape: Vec::new(), data: vec![0.5] });
        assert_eq!(read(b"big"), Err(TorchError::BigEndian));
    }

    #[test]
    fn what_points_at_itself_ends() {
        // A dictionary that holds itself, and one whose two entries hold the next, 40 levels deep.
        let mut deep = b"\x80\x02}q\0X\x01\0\0\0ah\0s.".to_vec();
        assert!(read(&archive(&[("a/data.pkl", &deep)])).is_err());
        deep = b"\x80\x02}".to_vec();
        for _ in 0..40 {
            deep.extend(b"q\0}X\x01\0\0\0ah\0sX\x01\0\0\0bh\0s");
        }
        deep.push(b'.');
        assert!(read(&archive(&[("a/data.pkl", &deep)])).is_err());
    }
}
