//! A reader of Python pickles that runs nothing: calls are written down, not made.
//!
//! Knows the opcodes that saved dictionaries of tensors and settings need and refuses every other. [`Pickle::read`]
//! refuses every name that such a dictionary does not need as well; [`Pickle::read_any`] writes unknown names down as
//! [`Global::Other`], for checkpoints that keep their optimizers and modules beside the tensors. Values lie in one
//! list and refer to each other by index, so that no input can make it recurse; the number of steps is limited, and
//! with it the memory beside the texts of the input.

use std::collections::HashMap;

/// Most opcodes of one pickle: a tensor takes about 40.
const MAX_STEPS: usize = 1 << 17;

/// Index of a value.
pub(super) type Id = usize;

/// A value of a pickle.
#[derive(Debug)]
pub(super) enum Value {
    /// `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Text(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// A dictionary.
    Dict(Vec<(Id, Id)>),
    /// A name that Python would import.
    Global(Global),
    /// A call that Python would make, the items that were put into its result, and the state that was given to it.
    Call { function: Id, arguments: Id, items: Vec<(Id, Id)>, state: Option<Id> },
    /// Something outside the pickle.
    Persistent(Id),
}

/// The names that may appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.FloatStorage`.
    FloatStorage,
    /// Any other name.
    Other,
}

/// Why bytes are not such a pickle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// The bytes end too early.
    #[error("the file ends within its description (truncated)")]
    Truncated,
    /// An opcode that a dictionary of tensors does not need.
    #[error("pickle opcode 0x{opcode:02x} is not part of a plain dictionary of f32 tensors; nothing was executed")]
    Opcode {
        /// Its number.
        opcode: u8,
    },
    /// A name that a dictionary of f32 tensors does not need.
    #[error("the pickle asks for `{name}`, only dictionaries of f32 tensors are read; nothing was executed")]
    Global {
        /// Module and name.
        name: String,
    },
    /// More opcodes than any network needs.
    #[error("the description of the tensors has more than {MAX_STEPS} steps")]
    TooLong,
    /// Opcodes in an order that makes no sense.
    #[error("the pickle is damaged: {what}")]
    Damaged {
        /// What was found.
        what: &'static str,
    },
}

/// A pickle that was read.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads one pickle and moves `bytes` behind it.
    pub(super) fn read(bytes: &mut &[u8]) -> Result<Self, PickleError> {
        Self::read_with(bytes, false)
    }

    /// Reads one pickle with any names in it.
    pub(super) fn read_any(mut bytes: &[u8]) -> Result<Self, PickleError> {
        Self::read_with(&mut bytes, true)
    }

    fn read_with(bytes: &mut &[u8], any_name: bool) -> Result<Self, PickleError> {
        let mut machine =
            Machine { bytes, any_name, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        for _ in 0..MAX_STEPS {
            match machine.byte()? {
                b'.' => {
                    return Ok(Self { root: machine.pop()?, values: machine.values });
                }
                opcode => machine.step(opcode)?,
            }
        }
        Err(PickleError::TooLong)
    }

    /// Index of the outermost value.
    pub(super) fn root_id(&self) -> Id {
        self.root
    }

    /// The value of a text key of a dictionary.
    pub(super) fn item(&self, dictionary: &Value, key: &str) -> Option<&Value> {
        let Value::Dict(items) = dictionary else { return None };
        let found = items.iter().find(|(k, _)| matches!(self.get(*k), Value::Text(text) if text == key));
        found.map(|(_, value)| self.get(*value))
    }

    /// The outermost value.
    pub(super) fn root(&self) -> &Value {
        self.get(self.root)
    }

    /// A value by its index.
    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }
}

struct Machine<'a, 'b> {
    bytes: &'a mut &'b [u8],
    any_name: bool,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'b> Machine<'_, 'b> {
    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            0x80 => self.byte().map(|_| ()),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.integer::<1>(),
            b'M' => self.integer::<2>(),
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(number)))
            }
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(number))
            }
            0x8a => {
                let length = self.byte()?;
                let bytes = self.take(usize::from(length))?;
                let mut number = [if bytes.last().is_some_and(|b| *b >= 0x80) { 0xff } else { 0 }; 8];
                number.get_mut(..bytes.len()).ok_or_else(|| damaged("a huge number"))?.copy_from_slice(bytes);
                self.push(Value::Int(i64::from_le_bytes(number)))
            }
            b'X' | 0x8c | 0x8d => {
                let length = self.length(opcode, 0x8c, 0x8d)?;
                let text = self.take(length)?.to_vec();
                let text = String::from_utf8(text).map_err(|_| damaged("text that is not UTF-8"))?;
                self.push(Value::Text(text))
            }
            b'B' | b'C' | 0x8e => {
                let length = self.length(opcode, b'C', 0x8e)?;
                let bytes = self.take(length)?.to_vec();
                self.push(Value::Bytes(bytes))
            }
            // A frame: how many bytes belong together, which matters to who reads from a pipe.
            0x95 => self.array::<8>().map(|_| ()),
            b'c' => self.global(),
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match self.values.get(id) {
                    Some(Value::Text(text)) => Ok(text.clone()),
                    _ => Err(damaged("a name that is no text")),
                };
                let (module, name) = (text(module)?, text(name)?);
                self.named(module.as_bytes(), name.as_bytes())
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' | b')' => self.push(Value::Sequence(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let first = self.stack.len().checked_sub(count).ok_or_else(empty)?;
                let items = self.stack.split_off(first);
                self.push(Value::Sequence(items))
            }
            b't' => {
                let items = self.to_mark()?;
                self.push(Value::Sequence(items))
            }
            b'e' | b'a' => self.append(opcode),
            b'u' | b's' => self.set_items(opcode),
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push(Value::Call { function, arguments, items: Vec::new(), state: None })
            }
            b'b' => {
                let new = self.pop()?;
                let target = *self.stack.last().ok_or_else(empty)?;
                if let Value::Call { state, .. } = &mut self.values[target] {
                    *state = Some(new);
                }
                Ok(())
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            b'q' | b'r' => {
                let top = *self.stack.last().ok_or_else(empty)?;
                let number = self.memo_number(opcode == b'q')?;
                self.memo.insert(number, top);
                Ok(())
            }
            0x94 => {
                let top = *self.stack.last().ok_or_else(empty)?;
                self.memo.insert(self.memo.len() as u32, top);
                Ok(())
            }
            b'h' | b'j' => {
                let number = self.memo_number(opcode == b'h')?;
                self.stack.push(*self.memo.get(&number).ok_or_else(|| damaged("a reference to nothing"))?);
                Ok(())
            }
            opcode => Err(PickleError::Opcode { opcode }),
        }
    }

    fn integer<const N: usize>(&mut self) -> Result<(), PickleError> {
        let bytes: [u8; N] = self.array()?;
        let number = bytes.iter().rev().fold(0, |n, b| n << 8 | i64::from(*b));
        self.push(Value::Int(number))
    }

    fn global(&mut self) -> Result<(), PickleError> {
        let (module, name) = (self.line()?, self.line()?);
        self.named(module, name)
    }

    fn named(&mut self, module: &[u8], name: &[u8]) -> Result<(), PickleError> {
        let global = match (module, name) {
            (b"collections", b"OrderedDict") => Global::OrderedDict,
            (b"torch._utils", b"_rebuild_tensor_v2") => Global::RebuildTensor,
            (b"torch._utils", b"_rebuild_parameter") if self.any_name => Global::RebuildParameter,
            (b"torch", b"FloatStorage") => Global::FloatStorage,
            _ if self.any_name => Global::Other,
            _ => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
                return Err(PickleError::Global { name: format!("{}.{}", text(module), text(name)) });
            }
        };
        self.push(Value::Global(global))
    }

    fn append(&mut self, opcode: u8) -> Result<(), PickleError> {
        let new = if opcode == b'a' { vec![self.pop()?] } else { self.to_mark()? };
        let target = *self.stack.last().ok_or_else(empty)?;
        match &mut self.values[target] {
            Value::Sequence(items) => items.extend(new),
            _ => return Err(damaged("items for something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), PickleError> {
        let new = if opcode == b's' {
            let (value, key) = (self.pop()?, self.pop()?);
            vec![key, value]
        } else {
            self.to_mark()?
        };
        let target = *self.stack.last().ok_or_else(empty)?;
        let (pairs, []) = new.as_chunks::<2>() else {
            return Err(damaged("a key without a value"));
        };
        match &mut self.values[target] {
            Value::Dict(items) | Value::Call { items, .. } => {
                items.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            _ => return Err(damaged("items for something that is no dictionary")),
        }
        Ok(())
    }

    /// The length in front of a text or of bytes: one, four or eight bytes.
    fn length(&mut self, opcode: u8, short: u8, long: u8) -> Result<usize, PickleError> {
        if opcode == short {
            return self.byte().map(usize::from);
        }
        let length = if opcode == long {
            u64::from_le_bytes(self.array()?)
        } else {
            u64::from(u32::from_le_bytes(self.array()?))
        };
        usize::try_from(length).map_err(|_| PickleError::Truncated)
    }

    fn memo_number(&mut self, short: bool) -> Result<u32, PickleError> {
        if short { self.byte().map(u32::from) } else { self.array().map(u32::from_le_bytes) }
    }

    #[allow(clippy::unnecessary_wraps, reason = "every step of the machine has the same type")]
    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        self.stack.pop().ok_or_else(empty)
    }

    #[allow(clippy::wrong_self_convention, reason = "everything up to the mark")]
    fn to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        if mark > self.stack.len() { Err(empty()) } else { Ok(self.stack.split_off(mark)) }
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(PickleError::Truncated)?;
        *self.bytes = rest;
        Ok(*head)
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], PickleError> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or(PickleError::Truncated)?;
        *self.bytes = rest;
        Ok(head)
    }

    fn line(&mut self) -> Result<&'b [u8], PickleError> {
        let length = self.bytes.iter().position(|b| *b == b'\n').ok_or(PickleError::Truncated)?;
        let line = self.take(length)?;
        self.take(1)?;
        Ok(line)
    }
}

fn empty() -> PickleError {
    damaged("a value is missing")
}

fn damaged(what: &'static str) -> PickleError {
    PickleError::Damaged { what }
}
