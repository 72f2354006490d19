//! Word to a service manager: systemd's notification protocol (sd_notify(3)), datagrams of `NAME=VALUE` lines.
//!
//! `READY=1` after the first tick of the control loop; `WATCHDOG=1` only while it goes on ticking, so that a process
//! whose loop hangs is ended and started again; `STOPPING=1` when the robot has been let go. A manager that does not
//! listen changes nothing.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::clock::{Stamp, monotonic};

/// Where a service manager listens, and within which time it wants to hear from us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceManager {
    /// Path of its datagram socket; with `@` in front an abstract name.
    pub socket: OsString,
    /// `WATCHDOG=1` has to come at least so often.
    pub watchdog: Option<Duration>,
}

impl ServiceManager {
    fn address(&self) -> io::Result<SocketAddr> {
        match self.socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(&self.socket),
        }
    }
}

/// The way to it.
pub(super) struct Notify {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Time between two signs of life: half of what is allowed.
    every: Option<Duration>,
    /// Progress and time of the last one.
    last: Option<(u64, Stamp)>,
}

impl Notify {
    /// `None` when there is no way there, which is said in the log.
    pub(super) fn to(manager: &ServiceManager) -> Option<Self> {
        let opened = manager.address().and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok(Self { socket, address, every: manager.watchdog.map(|allowed| allowed / 2), last: None })
        });
        opened.inspect_err(|error| log::warn!("the service manager is not told anything: {error}")).ok()
    }

    /// Called often with a count that grows while the control loop works; 0 before its first tick.
    pub(super) fn alive(&mut self, progress: u64) {
        let now = monotonic();
        match (self.last, self.every) {
            (None, _) if progress > 0 => self.send("READY=1\nSTATUS=the robot is under control\nWATCHDOG=1"),
            (Some((before, at)), Some(every)) if progress > before && now.since(at) >= every => self.send("WATCHDOG=1"),
            _ => return,
        }
        self.last = Some((progress, now));
    }

    /// The robot has been let go; what follows is saving and measuring.
    pub(super) fn stopping(&mut self) {
        self.send("STOPPING=1\nSTATUS=the robot is released, saving");
    }

    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            log::debug!("the service manager did not take {message:?}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 256];
        std::iter::from_fn(|| {
            let length = manager.recv(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        })
        .collect()
    }

    fn word(socket: OsString, listening: &UnixDatagram, watchdog: Option<Duration>) {
        listening.set_nonblocking(true).unwrap();
        let mut notify = Notify::to(&ServiceManager { socket, watchdog }).unwrap();
        notify.alive(0);
        assert!(heard(listening).is_empty(), "no tick yet");
        notify.alive(1);
        assert!(heard(listening)[0].starts_with("READY=1\n"));
        notify.alive(1);
        std::thread::sleep(Duration::from_millis(3));
        notify.alive(1);
        assert!(heard(listening).is_empty(), "a loop that does not tick gives no sign of life");
        notify.alive(2);
        notify.alive(3);
        let signs = if watchdog.is_some() { vec!["WATCHDOG=1"] } else { vec![] };
        assert_eq!(heard(listening), signs, "as often as needed");
        notify.stopping();
        assert!(heard(listening)[0].starts_with("STOPPING=1\n"));
    }

    #[test]
    fn a_manager_hears_of_life_only_while_there_is_progress() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        word(path.clone().into(), &listening, Some(Duration::from_millis(4)));
        word(path.into(), &listening, None);
    }

    #[test]
    fn a_name_with_an_at_sign_is_abstract() {
        let name = format!("fieldtune-test-{}", std::process::id());
        let listening = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        word(format!("@{name}").into(), &listening, Some(Duration::from_millis(4)));
    }

    #[test]
    fn a_manager_that_is_gone_changes_nothing() {
        let gone = ServiceManager { socket: "/nowhere/at/all".into(), watchdog: None };
        let mut notify = Notify::to(&gone).unwrap();
        notify.alive(1);
        notify.stopping();
    }
}
