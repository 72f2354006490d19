//! A person's commands from outside the process: datagrams into the control loop's slot (`docs/intervention.md`).

use std::net::UdpSocket;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Deserialize;

use super::event::Event;
use super::parts::{RuntimeError, Shared};
use crate::clock::{Clock, Stamp};
use crate::config::ListenAt;

/// Longest datagram.
const LONGEST: usize = 4096;
/// How often the listener looks at the wish to stop.
const IDLE: Duration = Duration::from_millis(50);

/// One datagram: an action, or letting go.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Datagram {
    seq: u64,
    #[serde(default)]
    action: Vec<f32>,
    #[serde(default)]
    release: bool,
}

enum Socket {
    Unix(UnixDatagram, PathBuf),
    Udp(UdpSocket),
}

impl Socket {
    fn receive(&self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Unix(socket, _) => socket.recv(into),
            Self::Udp(socket) => socket.recv(into),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens until the run stops.
pub(super) struct PersonListener {
    socket: Socket,
    commands: Commands,
}

impl PersonListener {
    /// `None` where nobody is to be listened to.
    pub(super) fn bind(
        place: &ListenAt,
        shared: &Arc<Shared>,
        clock: &Clock,
        action_dim: usize,
        longest_age: Duration,
    ) -> Result<Option<Self>, RuntimeError> {
        let socket = match place {
            ListenAt::Nowhere => return Ok(None),
            ListenAt::Unix(path) => {
                let failed = RuntimeError::file(path);
                let made = clear_socket(path).and_then(|()| UnixDatagram::bind(path)).and_then(|socket| {
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                    socket.set_read_timeout(Some(IDLE))?;
                    Ok(socket)
                });
                Socket::Unix(made.map_err(failed)?, path.clone())
            }
            ListenAt::Udp(address) => {
                let made = UdpSocket::bind(address).and_then(|socket| {
                    socket.set_read_timeout(Some(IDLE))?;
                    Ok(socket)
                });
                Socket::Udp(made.map_err(RuntimeError::file(format!("udp:{address}").as_ref()))?)
            }
        };
        let commands =
            Commands { shared: Arc::clone(shared), clock: clock.clone(), action_dim, longest_age, newest: None };
        Ok(Some(Self { socket, commands }))
    }

    pub(super) fn serve(mut self) {
        let mut bytes = [0; LONGEST];
        while !self.commands.shared.stopping() {
            if let Ok(length) = self.socket.receive(&mut bytes) {
                self.commands.take(&bytes[..length]);
            }
        }
    }
}

/// Removes what an earlier run left at `path`, and nothing but a socket.
fn clear_socket(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(std::io::Error::other("something that is no socket is there: name another path")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is taken and what is not.
struct Commands {
    shared: Arc<Shared>,
    clock: Clock,
    action_dim: usize,
    longest_age: Duration,
    /// Number and time of the newest datagram that was taken.
    newest: Option<(u64, Stamp)>,
}

impl Commands {
    fn take(&mut self, bytes: &[u8]) {
        if let Err(reason) = self.judge(bytes)
            && self.shared.refused_commands.fetch_add(1, Relaxed) == 0
        {
            let note = format!("a command of the person was refused ({reason}); status counts them from now on");
            self.shared.tell(Event::Note(note));
        }
    }

    fn judge(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Datagram { seq, action, release } =
            serde_json::from_slice(bytes).map_err(|error| format!("not a command: {error}"))?;
        let now = self.clock.now();
        // A source that was silent may have been started again, with new numbers.
        let recent = self.newest.filter(|(_, at)| now.since(*at) <= self.longest_age);
        if let Some((newest, _)) = recent.filter(|(newest, _)| seq <= *newest) {
            return Err(format!("seq {seq} came after {newest}"));
        }
        let slot = &self.shared.person;
        match (release, action.len()) {
            (true, 0) => slot.release(now.0),
            (false, n) if n == self.action_dim => slot.command(&action, now.0),
            (true, _) => return Err("it has an action and lets go".into()),
            (false, n) => return Err(format!("its action has {n} entries, the robot takes {}", self.action_dim)),
        }
        .map_err(|error| error.to_string())?;
        self.newest = Some((seq, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    fn commands() -> (Commands, Clock) {
        let clock = Clock::lockstep();
        let shared = Shared::new(bounded(64).0, Arc::default());
        let longest_age = Duration::from_millis(100);
        (Commands { shared, clock: clock.clone(), action_dim: 2, longest_age, newest: None }, clock)
    }

    #[test]
    fn only_a_socket_makes_way_for_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let (file, socket) = (dir.path().join("notes.txt"), dir.path().join("person.sock"));
        std::fs::write(&file, "kept").unwrap();
        drop(UnixDatagram::bind(&socket).unwrap());
        let bind = |path: &Path| {
            let shared = Shared::new(bounded(64).0, Arc::default());
            let place = ListenAt::Unix(path.to_path_buf());
            PersonListener::bind(&place, &shared, &Clock::lockstep(), 2, Duration::from_millis(100))
        };
        assert!(bind(&socket).unwrap().is_some());
        assert!(bind(&file).err().unwrap().to_string().contains("no socket"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    }

    #[test]
    fn damaged_old_and_foreign_commands_are_refused_and_counted() {
        let (mut commands, clock) = commands();
        let in_force = |commands: &Commands| {
            let command = commands.shared.person.read().unwrap();
            command.action[..command.len as usize].to_vec()
        };
        let mut take = |text: &str| {
            commands.take(text.as_bytes());
            (in_force(&commands), commands.shared.refused_commands.load(Relaxed))
        };
        assert_eq!(take(r#"{"seq": 5, "action": [0.5, -0.5]}"#), (vec![0.5, -0.5], 0));
        for (refused, text) in [
            "",
            "{",
            "\u{0}",
            r#"{"seq": 5, "action": [0.1, 0.1]}"#,
            r#"{"seq": 4, "release": true}"#,
            r#"{"seq": 6, "action": [0.1]}"#,
            r#"{"seq": 6, "action": [0.1, 1e39]}"#,
            r#"{"seq": 6, "action": [0.1, null]}"#,
            r#"{"seq": 6, "action": [0.1, 0.1], "release": true}"#,
            r#"{"seq": 6, "actions": [0.1, 0.1]}"#,
            r#"{"seq": 6}"#,
            r#"{"seq": -1, "release": true}"#,
        ]
        .iter()
        .enumerate()
        {
            assert_eq!(take(text), (vec![0.5, -0.5], refused as u64 + 1), "{text}");
        }
        assert_eq!(take(r#"{"seq": 6, "release": true}"#).0, Vec::<f32>::new());
        clock.advance(Duration::from_millis(101));
        assert_eq!(take(r#"{"seq": 1, "action": [0.0, 0.25]}"#), (vec![0.0, 0.25], 12), "started again");
    }
}
