//! Serial lines and ptys: stuffed frames on a raw terminal.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use firmware_bridge::{Frame, MAX_WIRE, StreamDecoder};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

use super::link::{Intake, Link, LinkCounters, LinkError, MOST_BAD_FRAMES, wait_readable};
use super::{RobotError, link_error, open_error};
use crate::clock::monotonic;
use crate::config::LinkKind;

/// Bytes asked from the system at once; several frames on a fast line.
const READ_SIZE: usize = 512;

/// A raw terminal that does not block.
pub(super) struct SerialLink {
    line: OwnedFd,
    decoder: StreamDecoder,
    intake: Intake,
    buffer: [u8; READ_SIZE],
    /// The part of `buffer` that the decoder has not seen.
    unread: std::ops::Range<usize>,
}

impl SerialLink {
    /// Opens the device at `path`, raw, at `baud` bits per second, and drops what it had received before.
    pub(super) fn open(path: &str, baud: u32) -> Result<Self, RobotError> {
        let opened = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let line = open(path, flags, Mode::empty())?;
            let mut settings = tcgetattr(&line)?;
            settings.make_raw();
            settings.set_speed(baud)?;
            tcsetattr(&line, OptionalActions::Now, &settings)?;
            tcflush(&line, QueueSelector::IFlush)?;
            Ok(line)
        };
        let line = opened().map_err(|errno: Errno| open_error(LinkKind::Serial, path, errno))?;
        if let Some(slow) = hurry(Path::new("/sys/class/tty"), Path::new(path)) {
            log::warn!("{slow}");
        }
        Ok(Self {
            line,
            decoder: StreamDecoder::new(),
            intake: Intake::default(),
            buffer: [0; READ_SIZE],
            unread: 0..0,
        })
    }

    /// Reads what is there; `false` when nothing is.
    fn fill(&mut self) -> Result<bool, LinkError> {
        match read(&self.line, &mut self.buffer) {
            Ok(0) | Err(Errno::IO) => Err(LinkError::Closed { operation: "receiving" }),
            Ok(len) => {
                self.unread = 0..len;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(link_error("receiving", errno)),
        }
    }
}

/// Asks a USB adapter to hand received bytes on after 1 ms (FTDI chips wait 16 ms when nobody asks); says so when it
/// will not. `tty` is the system's list of terminals.
fn hurry(tty: &Path, device: &Path) -> Option<String> {
    // A name under /dev/serial/by-id is a link to the device.
    let device = device.canonicalize().ok()?;
    let timer = tty.join(device.file_name()?).join("device/latency_timer");
    let wait_ms = || std::fs::read_to_string(&timer).ok()?.trim().parse::<u32>().ok();
    let before = wait_ms()?;
    if before > 1 {
        // Refused shows in what is read next.
        let _ = std::fs::write(&timer, "1");
    }
    let after = wait_ms()?;
    (after > 1).then(|| {
        format!("{} keeps received bytes for up to {after} ms; as root: echo 1 > {}", device.display(), timer.display())
    })
}

impl Link for SerialLink {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let mut bytes = [0; MAX_WIRE];
        let len = frame.encode_stream(&mut bytes)?;
        match write(&self.line, &bytes[..len]) {
            Ok(written) if written == len => self.intake.counters.sent += 1,
            // A frame cut short costs itself only: the next one begins with a delimiter.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => self.intake.counters.send_dropped += 1,
            Err(Errno::IO) => return Err(LinkError::Closed { operation: "sending" }),
            Err(errno) => return Err(link_error("sending", errno)),
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        let until = monotonic().plus(wait);
        let mut bad = 0;
        while bad < MOST_BAD_FRAMES {
            let Some(at) = self.unread.next() else {
                if !self.fill()? && !wait_readable(&self.line, until)? {
                    break;
                }
                continue;
            };
            if let Some(decoded) = self.decoder.push(self.buffer[at]) {
                match self.intake.judge(decoded) {
                    Some(frame) => return Ok(Some(frame)),
                    None => bad += 1,
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
    use std::fs;

    #[test]
    fn a_slow_adapter_is_hurried_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let (tty, device) = (folder.path().join("tty"), folder.path().join("ttyUSB3"));
        let by_id = folder.path().join("usb-FTDI");
        fs::write(&device, "").unwrap();
        std::os::unix::fs::symlink(&device, &by_id).unwrap();
        assert_eq!(hurry(&tty, &by_id), None, "no timer, nothing to say");
        let timer = tty.join("ttyUSB3/device/latency_timer");
        fs::create_dir_all(timer.parent().unwrap()).unwrap();
        fs::write(&timer, "16\n").unwrap();
        assert_eq!(hurry(&tty, &by_id), None);
        assert_eq!(fs::read_to_string(&timer).unwrap(), "1");
        assert_eq!(hurry(&tty, &folder.path().join("gone")), None);
    }
}
