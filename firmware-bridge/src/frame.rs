//! Header, checksum and framing: messages in, bytes out, and back.

use core::fmt;

use crate::bytes::{Reader, Writer};
use crate::message::{MAX_STATE_VALUES, Message};
use crate::{cobs, crc32c};

/// Version of the protocol, the first byte of every frame.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER: usize = 12;
/// Most bytes between header and checksum.
pub const MAX_PAYLOAD: usize = 232;
/// Longest frame on a datagram: header, payload, checksum.
pub const MAX_FRAME: usize = HEADER + MAX_PAYLOAD + CHECKSUM;
/// Longest frame on a stream: one byte of stuffing and a delimiter at either end.
pub const MAX_WIRE: usize = wire_bytes(MAX_PAYLOAD);
const CHECKSUM: usize = 4;
const DELIMITER: u8 = 0;

/// The part of the header that the sender chooses; version, kind and length come from the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Zero in this version.
    pub flags: u8,
    /// Frame number of the sender, counted over all kinds, wraps.
    pub seq: u16,
    /// Last number taken from the peer; in a STATE the number of the last COMMAND or RESET.
    pub ack: u16,
    /// Free-running clock of the sender, microseconds, wraps after 71.6 minutes.
    pub t_us: u32,
}

/// A header and what it carries.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Numbers and time of the sender.
    pub header: Header,
    /// Content.
    pub message: Message,
}

/// Bytes that a payload of `payload` bytes makes on a stream, at most.
pub const fn wire_bytes(payload: usize) -> usize {
    HEADER + payload + CHECKSUM + 3
}

impl Frame {
    /// Writes the frame as a datagram and returns its length.
    ///
    /// # Errors
    /// When `out` is too short ([`MAX_FRAME`] bytes always do) or a STATE has too many values. `out` is
    /// undefined afterwards.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let values = self.message.values();
        if values > MAX_STATE_VALUES {
            return Err(EncodeError::TooManyValues { values });
        }
        let available = out.len();
        self.write(out).ok_or(EncodeError::NoRoom { available })
    }

    fn write(&self, out: &mut [u8]) -> Option<usize> {
        let mut payload = Writer::new(out.get_mut(HEADER..)?);
        self.message.write(&mut payload)?;
        let len = payload.written();
        let mut header = Writer::new(out);
        for byte in [VERSION, self.message.kind(), self.header.flags, len as u8] {
            header.u8(byte)?;
        }
        header.u16(self.header.seq)?;
        header.u16(self.header.ack)?;
        header.u32(self.header.t_us)?;
        let (body, rest) = out.split_at_mut_checked(HEADER + len)?;
        *rest.first_chunk_mut()? = crc32c(body).to_le_bytes();
        Some(HEADER + len + CHECKSUM)
    }

    /// Reads a datagram that holds exactly one frame.
    ///
    /// # Errors
    /// When it is anything else: damaged, cut, of another version, or not made by [`Frame::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let wrong_length = DecodeError::Length { bytes: bytes.len() };
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(wrong_length)?;
        if body.len() < HEADER || bytes.len() > MAX_FRAME {
            return Err(wrong_length);
        }
        if crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(DecodeError::Checksum);
        }
        let (head, payload) = body.split_first_chunk::<HEADER>().ok_or(wrong_length)?;
        let [version, kind, flags, len, numbers @ ..] = head;
        if *version != VERSION {
            return Err(DecodeError::Version { got: *version });
        }
        if usize::from(*len) != payload.len() {
            return Err(wrong_length);
        }
        let header = Header::read(*flags, numbers).ok_or(wrong_length)?;
        Ok(Self { header, message: Message::read(*kind, payload)? })
    }

    /// Writes the frame for a stream (delimiter, stuffed bytes, delimiter) and returns its length.
    ///
    /// # Errors
    /// As [`Frame::encode`]; [`MAX_WIRE`] bytes of `out` always do.
    pub fn encode_stream(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let mut plain = [0; MAX_FRAME];
        let len = self.encode(&mut plain)?;
        let available = out.len();
        stuff(plain.get(..len).unwrap_or(&[]), out).ok_or(EncodeError::NoRoom { available })
    }
}

fn stuff(plain: &[u8], out: &mut [u8]) -> Option<usize> {
    let (first, rest) = out.split_first_mut()?;
    *first = DELIMITER;
    let len = cobs::encode(plain, rest)?;
    *rest.get_mut(len)? = DELIMITER;
    Some(len + 2)
}

impl Header {
    fn read(flags: u8, numbers: &[u8]) -> Option<Self> {
        let mut input = Reader::new(numbers);
        Some(Self { flags, seq: input.u16()?, ack: input.u16()?, t_us: input.u32()? })
    }
}

/// Takes a stream apart, byte by byte. After any noise the next whole frame is found.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    stuffed: [u8; MAX_WIRE],
    len: usize,
    overrun: bool,
}

impl StreamDecoder {
    /// A decoder between two frames.
    pub const fn new() -> Self {
        Self { stuffed: [0; MAX_WIRE], len: 0, overrun: false }
    }

    /// Takes one byte; returns a frame, or why there is none, when the byte ends one.
    pub fn push(&mut self, byte: u8) -> Option<Result<Frame, DecodeError>> {
        if byte != DELIMITER {
            match self.stuffed.get_mut(self.len) {
                Some(place) => (*place, self.len) = (byte, self.len + 1),
                None => self.overrun = true,
            }
            return None;
        }
        let (len, overrun) = (self.len, self.overrun);
        (self.len, self.overrun) = (0, false);
        // Two delimiters in a row: the end of one frame and the beginning of the next.
        (len > 0).then(|| if overrun { Err(DecodeError::Stuffing) } else { self.unstuff(len) })
    }

    fn unstuff(&mut self, len: usize) -> Result<Frame, DecodeError> {
        let stuffed = self.stuffed.get_mut(..len).ok_or(DecodeError::Stuffing)?;
        let plain = cobs::decode(stuffed).ok_or(DecodeError::Stuffing)?;
        Frame::decode(stuffed.get(..plain).ok_or(DecodeError::Stuffing)?)
    }
}

impl Default for StreamDecoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a frame cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The frame needs more bytes than it was given.
    NoRoom {
        /// Bytes that it was given.
        available: usize,
    },
    /// More action and observation values than a STATE holds.
    TooManyValues {
        /// Values of the message.
        values: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { available } => {
                write!(f, "the frame does not fit into {available} bytes; {MAX_WIRE} bytes always do")
            }
            Self::TooManyValues { values } => write!(
                f,
                "the frame would carry {values} values, a frame holds {MAX_STATE_VALUES}; shorten the observation"
            ),
        }
    }
}

impl core::error::Error for EncodeError {}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// Too short, too long, or not as long as the header says.
    Length {
        /// Bytes that came.
        bytes: usize,
    },
    /// The checksum is wrong: damaged on the way.
    Checksum,
    /// Another version of the protocol.
    Version {
        /// Version of the sender.
        got: u8,
    },
    /// A kind of frame that this version does not know.
    Kind {
        /// Kind byte.
        got: u8,
    },
    /// The payload does not have the form of its kind.
    Payload {
        /// Kind byte.
        kind: u8,
    },
    /// The bytes between two delimiters are not a stuffed frame.
    Stuffing,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { bytes } => write!(f, "{bytes} bytes are not the length of a frame"),
            Self::Checksum => write!(f, "the checksum is wrong, the frame was damaged on the way"),
            Self::Version { got } => {
                write!(f, "the frame has protocol version {got}, this end speaks {VERSION}; update the older end")
            }
            Self::Kind { got } => write!(f, "frame kind {got:#04x} is unknown in protocol version {VERSION}"),
            Self::Payload { kind } => write!(f, "the payload does not have the form of frame kind {kind:#04x}"),
            Self::Stuffing => write!(f, "the bytes between two delimiters are not a stuffed frame"),
        }
    }
}

impl core::error::Error for DecodeError {}

#[cfg(test)]
mod tests;
