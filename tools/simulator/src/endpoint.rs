//! The robot's end of a link: Unix datagrams, UDP, or the far side of a pseudo terminal.
//!
//! Moves bytes and knows no frames. Nothing here waits except [`Endpoint::wait`]. What cannot be sent at once is
//! dropped, as on a wire.

use std::fmt;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;
use rustix::time::Timespec;

/// Where to listen, as written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `unix:PATH`: a Unix datagram socket.
    Unix(PathBuf),
    /// `udp:HOST:PORT`; port 0 takes a free one.
    Udp(String),
    /// `pty`: a pseudo terminal, the stand-in for a serial line.
    Pty,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("udp", address)) if address.contains(':') => Ok(Self::Udp(address.into())),
            None if text == "pty" => Ok(Self::Pty),
            _ => Err("expected unix:PATH, udp:HOST:PORT or pty".into()),
        }
    }
}

/// Whom to answer.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Unix(SocketAddr),
    Udp(std::net::SocketAddr),
    /// Whoever is at the other end of the line.
    Line,
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(a), Self::Unix(b)) => {
                a.as_pathname() == b.as_pathname() && a.as_abstract_name() == b.as_abstract_name()
            }
            (Self::Udp(a), Self::Udp(b)) => a == b,
            (Self::Line, Self::Line) => true,
            _ => false,
        }
    }
}

/// An open link.
pub(crate) enum Endpoint {
    Unix { socket: UnixDatagram, path: PathBuf },
    Udp { socket: UdpSocket },
    Pty { controller: OwnedFd, path: String, _terminal: OwnedFd },
}

impl Endpoint {
    /// Opens the link.
    ///
    /// # Errors
    /// When the address is not valid, in use or not permitted.
    pub(crate) fn bind(listen: &Listen) -> anyhow::Result<Self> {
        match listen {
            Listen::Unix(path) => bind_unix(path),
            Listen::Udp(address) => {
                let socket =
                    UdpSocket::bind(address.as_str()).with_context(|| format!("cannot listen on udp:{address}"))?;
                socket.set_nonblocking(true)?;
                Ok(Self::Udp { socket })
            }
            Listen::Pty => open_pty().context("cannot open a pseudo terminal"),
        }
    }

    /// Whether frames need delimiters.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Pty { .. })
    }

    /// Waits until bytes may be there, or at `door`, at most `timeout`; a signal ends the wait.
    pub(crate) fn wait(&self, door: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut ways = heapless::Vec::<_, 2>::new();
        for fd in [Some(self.fd()), door].into_iter().flatten() {
            // There is room for both.
            let _ = ways.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        match poll(&mut ways, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// One datagram, or what a line has at the moment; `None` when there is nothing.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Peer)>> {
        let received = match self {
            Self::Unix { socket, .. } => socket.recv_from(buffer).map(|(n, peer)| (n, Peer::Unix(peer))),
            Self::Udp { socket } => socket.recv_from(buffer).map(|(n, peer)| (n, Peer::Udp(peer))),
            Self::Pty { controller, .. } => {
                rustix::io::read(controller, buffer).map(|n| (n, Peer::Line)).map_err(io::Error::from)
            }
        };
        match received {
            Ok(received) => Ok(Some(received)),
            // A refused connection is the echo of an answer to a host that has gone.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends at once; whether all bytes went out.
    pub(crate) fn send(&self, bytes: &[u8], peer: &Peer) -> bool {
        let sent = match (self, peer) {
            (Self::Unix { socket, .. }, Peer::Unix(peer)) => socket.send_to_addr(bytes, peer),
            (Self::Udp { socket }, Peer::Udp(peer)) => socket.send_to(bytes, peer),
            (Self::Pty { controller, .. }, Peer::Line) => rustix::io::write(controller, bytes).map_err(io::Error::from),
            _ => return false,
        };
        sent.is_ok_and(|n| n == bytes.len())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix { socket, .. } => socket.as_fd(),
            Self::Udp { socket } => socket.as_fd(),
            Self::Pty { controller, .. } => controller.as_fd(),
        }
    }
}

/// The address that a host uses: `unix:PATH`, `udp:HOST:PORT` or `serial:PATH`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Udp { socket } => match socket.local_addr() {
                Ok(address) => write!(f, "udp:{address}"),
                Err(error) => write!(f, "udp:({error})"),
            },
            Self::Pty { path, .. } => write!(f, "serial:{path}"),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            // The file may be gone already; the next start removes what is left.
            let _ = fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> anyhow::Result<Endpoint> {
    remove_stale(path, |path| UnixDatagram::unbound()?.connect(path))?;
    let socket = UnixDatagram::bind(path).with_context(|| {
        format!("cannot listen on {}; the folder has to exist and a path has at most 107 bytes", path.display())
    })?;
    socket.set_nonblocking(true)?;
    Ok(Endpoint::Unix { socket, path: path.into() })
}

/// Removes a socket that nobody listens on any more, which `connect` finds out.
pub(crate) fn remove_stale(path: &Path, connect: impl Fn(&Path) -> io::Result<()>) -> anyhow::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    ensure!(metadata.file_type().is_socket(), "{} exists and is not a socket; choose another path", path.display());
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the socket {} of an earlier run", path.display())),
        _ => anyhow::bail!("another program listens on {}; stop it or choose another path", path.display()),
    }
}

fn open_pty() -> io::Result<Endpoint> {
    let controller = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&controller)?;
    rustix::pty::unlockpt(&controller)?;
    let path = rustix::pty::ptsname(&controller, Vec::new())?;
    // Held open, so that the line survives a host that comes and goes, and is raw before the first one comes.
    let terminal = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut settings = rustix::termios::tcgetattr(&terminal)?;
    settings.make_raw();
    rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &settings)?;
    let flags = rustix::fs::fcntl_getfl(&controller)?;
    rustix::fs::fcntl_setfl(&controller, flags | OFlags::NONBLOCK)?;
    Ok(Endpoint::Pty { controller, path: path.to_string_lossy().into_owned(), _terminal: terminal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        assert_eq!("unix:/run/robot".parse(), Ok(Listen::Unix("/run/robot".into())));
        assert_eq!("udp:127.0.0.1:0".parse(), Ok(Listen::Udp("127.0.0.1:0".into())));
        assert_eq!("pty".parse(), Ok(Listen::Pty));
        for wrong in ["", "unix:", "udp:4000", "pty:1", "tcp:localhost:1"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("simulator-stale-{}", std::process::id()));
        drop(UnixDatagram::bind(&path).unwrap());
        let live = Endpoint::bind(&Listen::Unix(path.clone())).unwrap();
        let problem = Endpoint::bind(&Listen::Unix(path.clone())).err().unwrap().to_string();
        assert!(problem.contains("another program listens"), "{problem}");
        drop(live);
        fs::write(&path, "text").unwrap();
        let problem = Endpoint::bind(&Listen::Unix(path.clone())).err().unwrap().to_string();
        assert!(problem.contains("not a socket"), "{problem}");
        fs::remove_file(&path).unwrap();
    }
}
