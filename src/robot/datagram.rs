//! Unix datagram sockets and UDP: one datagram is one frame.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use firmware_bridge::{Frame, MAX_FRAME};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with,
};

use super::link::{Intake, Link, LinkCounters, LinkError, MOST_BAD_FRAMES, wait_readable};
use super::{RobotError, link_error, open_error};
use crate::clock::monotonic;
use crate::config::LinkKind;

/// A connected datagram socket that does not block.
pub(super) struct DatagramLink {
    socket: OwnedFd,
    /// Over UDP a refused datagram is a robot that is not there *yet*; on a Unix socket it is one that has gone.
    refusal_is_final: bool,
    intake: Intake,
    /// One byte longer than a frame, so that a datagram that is too long shows.
    buffer: [u8; MAX_FRAME + 1],
}

impl DatagramLink {
    fn new(socket: OwnedFd, refusal_is_final: bool) -> Self {
        Self { socket, refusal_is_final, intake: Intake::default(), buffer: [0; MAX_FRAME + 1] }
    }

    /// Connects to the robot's socket at `path`, from an address that the system chooses.
    pub(super) fn unix(path: &str) -> Result<Self, RobotError> {
        let connected = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
            // An unnamed address makes Linux pick a free abstract name, which the robot can answer to.
            bind(&socket, &SocketAddrUnix::new_unnamed())?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket = connected().map_err(|errno: Errno| open_error(LinkKind::Unix, path, errno))?;
        Ok(Self::new(socket, true))
    }

    /// Connects to `host:port`.
    pub(super) fn udp(address: &str) -> Result<Self, RobotError> {
        let connected = || {
            let robot = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
            let any: SocketAddr = match robot {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(robot)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = connected().map_err(|error: std::io::Error| open_error(LinkKind::Udp, address, error))?;
        Ok(Self::new(socket.into(), false))
    }

    /// Takes an error of the system for what it means here: `Ok` for a datagram that is lost.
    fn refused(&mut self, operation: &'static str, errno: Errno) -> Result<(), LinkError> {
        match errno {
            Errno::INTR => Ok(()),
            Errno::CONNREFUSED | Errno::CONNRESET | Errno::HOSTUNREACH | Errno::NETUNREACH
                if !self.refusal_is_final =>
            {
                Ok(())
            }
            Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN => Err(LinkError::Closed { operation }),
            errno => Err(link_error(operation, errno)),
        }
    }
}

impl Link for DatagramLink {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let mut bytes = [0; MAX_FRAME];
        let len = frame.encode(&mut bytes)?;
        match send(&self.socket, &bytes[..len], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => {
                self.intake.counters.sent += 1;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::NOBUFS) => {
                self.intake.counters.send_dropped += 1;
                Ok(())
            }
            Err(errno) => {
                self.intake.counters.send_dropped += 1;
                self.refused("sending", errno)
            }
        }
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        let until = monotonic().plus(wait);
        let mut bad = 0;
        while bad < MOST_BAD_FRAMES {
            match recv(&self.socket, &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok((len, _)) => match self.intake.judge(Frame::decode(&self.buffer[..len])) {
                    Some(frame) => return Ok(Some(frame)),
                    None => bad += 1,
                },
                Err(Errno::AGAIN) => {
                    if !wait_readable(&self.socket, until)? {
                        break;
                    }
                }
                Err(errno) => {
                    self.refused("receiving", errno)?;
                    bad += 1;
                }
            }
        }
        Ok(None)
    }

    fn counters(&self) -> LinkCounters {
        self.intake.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware_bridge::{Header, Message};
    use std::os::unix::net::UnixDatagram;

    fn frame(seq: u16) -> Frame {
        Frame { header: Header { seq, ..Header::default() }, message: Message::Estop }
    }

    fn bytes(frame: &Frame) -> Vec<u8> {
        let mut bytes = vec![0; MAX_FRAME];
        let len = frame.encode(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn unix_frames_travel_both_ways_and_bad_ones_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("robot");
        let robot = UnixDatagram::bind(&path).unwrap();
        let mut link = DatagramLink::unix(path.to_str().unwrap()).unwrap();
        link.send(&frame(1)).unwrap();
        let mut buffer = [0; 300];
        let (len, host) = robot.recv_from(&mut buffer).unwrap();
        assert_eq!(Frame::decode(&buffer[..len]), Ok(frame(1)));

        let mut damaged = bytes(&frame(2));
        damaged[5] ^= 1;
        for datagram in [damaged, vec![], vec![1; 300], bytes(&frame(3)), bytes(&frame(6))] {
            robot.send_to_addr(&datagram, &host).unwrap();
        }
        assert_eq!(link.receive(Duration::ZERO), Ok(Some(frame(3))));
        assert_eq!(link.receive(Duration::ZERO), Ok(Some(frame(6))));
        assert_eq!(link.receive(Duration::ZERO), Ok(None));
        let expected =
            LinkCounters { sent: 1, send_dropped: 0, received: 2, crc_errors: 1, malformed: 2, sequence_gaps: 2 };
        assert_eq!(link.counters(), expected);

        drop(robot);
        assert!(matches!(link.send(&frame(2)), Err(LinkError::Closed { .. })));
    }

    #[test]
    fn a_full_unix_queue_drops_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("robot");
        let _robot = UnixDatagram::bind(&path).unwrap();
        let mut link = DatagramLink::unix(path.to_str().unwrap()).unwrap();
        for seq in 0..10_000 {
            link.send(&frame(seq)).unwrap();
        }
        assert!(link.counters().send_dropped > 0);
        assert_eq!(link.counters().sent + link.counters().send_dropped, 10_000);
    }

    #[test]
    fn a_udp_robot_may_come_later() {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut link = DatagramLink::udp(&port.to_string()).unwrap();
        for _ in 0..3 {
            link.send(&frame(1)).unwrap();
            assert_eq!(link.receive(Duration::from_millis(1)), Ok(None));
        }
        let robot = UdpSocket::bind(port).unwrap();
        // The system may hand the old refusal to one more call.
        link.send(&frame(2)).unwrap();
        link.send(&frame(2)).unwrap();
        let mut buffer = [0; 300];
        let (len, host) = robot.recv_from(&mut buffer).unwrap();
        assert_eq!(Frame::decode(&buffer[..len]), Ok(frame(2)));
        robot.send_to(&bytes(&frame(4)), host).unwrap();
        assert_eq!(link.receive(Duration::from_secs(5)), Ok(Some(frame(4))));
    }

    #[test]
    fn an_address_without_a_robot_is_named() {
        let message = super::super::open(LinkKind::Unix, "no/such/socket", 0).err().unwrap().to_string();
        assert!(message.contains("no/such/socket") && message.contains("Unix"), "{message}");
        assert!(super::super::open(LinkKind::Udp, "no port", 0).is_err());
    }
}
