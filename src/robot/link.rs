//! Bytes to and from the microcontroller: the [`Link`] trait and what its implementations share.
//!
//! A link moves whole frames. It counts and drops what is not a frame; it does not repeat, order or answer
//! anything. The thread that owns the robot calls it.

use std::os::fd::AsFd;
use std::time::Duration;

use firmware_bridge::{Arrival, DecodeError, EncodeError, Frame, Sequence};
use rustix::io::Errno;

use super::{RobotError, datagram, link_error, serial};
use crate::clock::{self, Stamp};
use crate::config::LinkKind;

/// Bad frames skipped in one call of [`Link::receive`]: a babbling line cannot keep the control thread.
pub(super) const MOST_BAD_FRAMES: u32 = 64;

/// A way to the microcontroller.
pub trait Link: Send {
    /// Sends one frame without waiting. A frame for which the system has no room is dropped and counted. Real time.
    ///
    /// # Errors
    /// When the frame cannot be encoded or the link is broken.
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError>;

    /// The next good frame; `None` when none comes within `wait`. Zero does not block. Damaged frames are counted
    /// and skipped. Real time.
    ///
    /// # Errors
    /// When the link is broken.
    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError>;

    /// What came and went so far.
    fn counters(&self) -> LinkCounters;
}

/// What came and went on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames handed to the system.
    pub sent: u64,
    /// Frames the system had no room for: never sent, or cut short.
    pub send_dropped: u64,
    /// Good frames received.
    pub received: u64,
    /// Frames with a wrong checksum.
    pub crc_errors: u64,
    /// Bytes between two delimiters, or datagrams, that are no frame of this protocol for another reason.
    pub malformed: u64,
    /// Frame numbers of the robot that never came.
    pub sequence_gaps: u64,
}

/// Why a link is of no more use. Holds no heap memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The other end is gone.
    #[error("the robot's end of the link is gone ({operation}); restart the robot, then the run")]
    Closed {
        /// What was tried.
        operation: &'static str,
    },
    /// The system refused.
    #[error("{operation} on the robot link failed: {errno}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Error number of the system.
        errno: Errno,
    },
    /// The frame does not fit the protocol.
    #[error("a frame for the robot cannot be built: {0}")]
    Encode(#[from] EncodeError),
}

/// Opens the link of a configuration.
///
/// `address` is the path of the robot's socket ([`LinkKind::Unix`]), `host:port` ([`LinkKind::Udp`]) or the path
/// of the device ([`LinkKind::Serial`], at `baud` bits per second).
///
/// # Errors
/// When the system refuses.
pub fn open(kind: LinkKind, address: &str, baud: u32) -> Result<Box<dyn Link>, RobotError> {
    Ok(match kind {
        LinkKind::Unix => Box::new(datagram::DatagramLink::unix(address)?),
        LinkKind::Udp => Box::new(datagram::DatagramLink::udp(address)?),
        LinkKind::Serial => Box::new(serial::SerialLink::open(address, baud)?),
    })
}

/// Counts what arrives.
#[derive(Debug, Default)]
pub(super) struct Intake {
    pub(super) counters: LinkCounters,
    sequence: Sequence,
}

impl Intake {
    /// Hands a good frame on and counts everything.
    pub(super) fn judge(&mut self, decoded: Result<Frame, DecodeError>) -> Option<Frame> {
        match decoded {
            Ok(frame) => {
                self.counters.received += 1;
                if let Arrival::After(missing) = self.sequence.observe(frame.header.seq) {
                    self.counters.sequence_gaps += u64::from(missing);
                }
                return Some(frame);
            }
            Err(DecodeError::Checksum) => self.counters.crc_errors += 1,
            Err(_) => self.counters.malformed += 1,
        }
        None
    }
}

/// [`clock::wait_readable`] with the error of a link.
pub(super) fn wait_readable(fd: impl AsFd, until: Stamp) -> Result<bool, LinkError> {
    clock::wait_readable(fd, until).map_err(|errno| link_error("waiting", errno))
}
