//! A game controller through the kernel's joystick interface (`/dev/input/js*`): no library is needed.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::OFlags;

/// Bytes of one event: milliseconds (u32), value (i16), kind, number.
const EVENT: usize = 8;
/// Kinds of event (linux/joystick.h); the state at the start carries another bit, [`AT_START`].
const BUTTON: u8 = 1;
const AXIS: u8 = 2;
const AT_START: u8 = 0x80;
/// A stick that is let go does not come back to exactly zero.
const DEAD_ZONE: f32 = 0.05;

/// What was moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moved {
    /// An axis, to a place in [-1, 1].
    Axis(usize, f32),
    /// A button was pressed.
    Button(u8),
}

/// An open controller.
pub(super) struct Gamepad(File);

impl Gamepad {
    /// Opens the device.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path);
        let advice =
            || format!("cannot open the game controller {}: is it plugged in, and may you read it?", path.display());
        Ok(Self(file.with_context(advice)?))
    }

    /// What was moved since the last look. Never waits.
    ///
    /// # Errors
    /// When the controller is gone.
    pub(super) fn moved(&mut self) -> std::io::Result<Vec<Moved>> {
        let mut bytes = [0; 64 * EVENT];
        match self.0.read(&mut bytes) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(bytes[..count].chunks_exact(EVENT).filter_map(moved).collect()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn moved(event: &[u8]) -> Option<Moved> {
    let value = i16::from_le_bytes([event[4], event[5]]);
    let number = event[7];
    match event[6] {
        BUTTON if value != 0 => Some(Moved::Button(number)),
        kind if kind & !AT_START == AXIS => {
            let place = (f32::from(value) / f32::from(i16::MAX)).max(-1.0);
            Some(Moved::Axis(number.into(), if place.abs() < DEAD_ZONE { 0.0 } else { place }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn events_of_the_kernel_are_read_without_waiting() {
        let (reader, mut device) = std::io::pipe().unwrap();
        let reader = OwnedFd::from(reader);
        rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        let mut gamepad = Gamepad(File::from(reader));
        assert_eq!(gamepad.moved().unwrap(), []);
        let event =
            |value: i16, kind: u8, number: u8| [&[1, 2, 3, 4][..], &value.to_le_bytes(), &[kind, number]].concat();
        let events = [
            event(1, BUTTON | AT_START, 0),
            event(-32768, AXIS | AT_START, 1),
            event(1000, AXIS, 0),
            event(1, BUTTON, 3),
            event(0, BUTTON, 3),
            event(32767, AXIS, 2),
        ];
        device.write_all(&events.concat()).unwrap();
        let wanted = [Moved::Axis(1, -1.0), Moved::Axis(0, 0.0), Moved::Button(3), Moved::Axis(2, 1.0)];
        assert_eq!(gamepad.moved().unwrap(), wanted);
        drop(device);
        assert!(gamepad.moved().is_err(), "unplugged");
    }
}
