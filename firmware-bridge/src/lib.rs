#![no_std]
#![forbid(unsafe_code)]
#![doc = include_str!("../../docs/firmware-protocol.md")]

mod board;
mod bytes;
mod cobs;
mod crc;
mod drive;
mod frame;
mod image;
mod limits;
mod message;
mod schema;
mod sequence;

pub use board::{Board, BoardConfig, Outcome, Plant, Reply, Totals};
pub use crc::crc32c;
pub use drive::{Drive, DriveConfig, Rejection};
pub use frame::{
    DecodeError, EncodeError, Frame, HEADER, Header, MAX_FRAME, MAX_PAYLOAD, MAX_WIRE, StreamDecoder, VERSION,
    wire_bytes,
};
pub use image::{IMAGE_HEADER, IMAGE_MAGIC, ImageError, ImageFormat, ImageHeader, MAX_IMAGE_SIDE};
pub use limits::{Limited, Limiter, Limits};
pub use message::{
    Command, Counters, DriveState, Faults, Heartbeat, Hello, HelloAck, MAX_ACTION, MAX_OBSERVATION, MAX_STATE_VALUES,
    Message, State, TaskFlags, stream_load,
};
pub use schema::schema_hash;
pub use sequence::{Arrival, Sequence, is_newer};

#[cfg(test)]
extern crate std;
