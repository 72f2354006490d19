//! Single keys from a terminal that goes on printing lines as usual.

use std::io::{IsTerminal, Read, Stdin, stdin};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    Right,
    Left,
}

/// The terminal on stdin without waiting for Enter and without echo, until this is dropped. Ctrl-C stays what it is.
pub(super) struct Keys {
    input: Stdin,
    before: Termios,
}

impl Keys {
    /// `None` where stdin is no terminal.
    pub(super) fn open() -> Option<Self> {
        if !stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut single = before.clone();
        single.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(stdin(), OptionalActions::Now, &single).ok()?;
        Some(Self { input: stdin(), before })
    }

    /// What was pressed since the last look. Never waits.
    pub(super) fn pressed(&self) -> Vec<Key> {
        let mut bytes = [0; 256];
        let mut waiting = [PollFd::new(&self.input, PollFlags::IN)];
        let ready = poll(&mut waiting, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0);
        let count = if ready { self.input.lock().read(&mut bytes).unwrap_or(0) } else { 0 };
        keys(&bytes[..count])
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.input, OptionalActions::Now, &self.before);
    }
}

/// The keys in what a terminal sends; what is not known is left out.
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut found = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        let (key, used) = match (first, rest) {
            (0x1b, [b'[' | b'O', b'A', ..]) => (Some(Key::Up), 3),
            (0x1b, [b'[' | b'O', b'B', ..]) => (Some(Key::Down), 3),
            (0x1b, [b'[' | b'O', b'C', ..]) => (Some(Key::Right), 3),
            (0x1b, [b'[' | b'O', b'D', ..]) => (Some(Key::Left), 3),
            (0x1b, [b'[', tail @ ..]) => (None, 3 + tail.iter().take_while(|b| !(0x40..0x7f).contains(*b)).count()),
            (0x20..0x7f, _) => (Some(Key::Char(char::from(*first))), 1),
            _ => (None, 1),
        };
        found.extend(key);
        bytes = &bytes[used.min(bytes.len())..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_what_a_terminal_sends() {
        let sent = b"s\x1b[A\x1bOB\x1b[1;5Cq\x1b[3~\xc3\xa4\x1b[D f\x1b[";
        let wanted = [Key::Char('s'), Key::Up, Key::Down, Key::Char('q'), Key::Left, Key::Char(' '), Key::Char('f')];
        assert_eq!(keys(sent), wanted);
        assert_eq!(keys(b""), []);
    }
}
