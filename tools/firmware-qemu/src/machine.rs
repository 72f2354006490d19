//! A running QEMU: its serial line as a link, and its reset button.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use fieldtune::clock::{Clock, Stamp, monotonic};
use fieldtune::robot::{Link, LinkCounters, LinkError};
use firmware_bridge::{Arrival, DecodeError, Frame, MAX_WIRE, Sequence, StreamDecoder};

const PROGRAM: &str = "qemu-system-arm";

/// Why nothing can be run here, if so.
pub(crate) fn missing() -> Option<String> {
    let found = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    (!found).then(|| format!("{PROGRAM} is not installed (Debian: `apt-get install qemu-system-arm`)"))
}

/// A QEMU that ends with this value.
pub(crate) struct Machine {
    child: Child,
    folder: PathBuf,
}

impl Machine {
    /// Starts `image` and connects to its line before its first instruction.
    pub(crate) fn start(image: &Path) -> anyhow::Result<(Self, Line)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let folder = std::env::temp_dir().join(format!("firmware-qemu-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let child = Command::new(PROGRAM)
            .args(["-M", "mps2-an386", "-cpu", "cortex-m4", "-display", "none", "-S", "-kernel"])
            .arg(image)
            .arg("-serial")
            .arg(format!("unix:{},server=on,wait=off", folder.join("line").display()))
            .arg("-monitor")
            .arg(format!("unix:{},server=on,wait=off", folder.join("monitor").display()))
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("{PROGRAM} cannot be started"))?;
        let machine = Self { child, folder };
        let line = Line::new(machine.connect("line")?);
        machine.say("cont")?;
        Ok((machine, line))
    }

    /// Presses the reset button.
    pub(crate) fn reset(&self) -> anyhow::Result<()> {
        self.say("system_reset")
    }

    fn say(&self, command: &str) -> anyhow::Result<()> {
        let mut monitor = self.connect("monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(5)))?;
        let prompts = |monitor: &mut UnixStream| -> anyhow::Result<()> {
            let mut seen = Vec::new();
            while !seen.ends_with(b"(qemu) ") {
                let mut byte = [0];
                monitor.read_exact(&mut byte).context("the monitor does not answer")?;
                seen.push(byte[0]);
            }
            Ok(())
        };
        prompts(&mut monitor)?;
        writeln!(monitor, "{command}")?;
        prompts(&mut monitor)
    }

    fn connect(&self, name: &str) -> anyhow::Result<UnixStream> {
        let path = self.folder.join(name);
        for _ in 0..200 {
            if let Ok(stream) = UnixStream::connect(&path) {
                return Ok(stream);
            }
            pause(Duration::from_millis(25));
        }
        bail!("QEMU did not open {}", path.display())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Sleeps.
pub(crate) fn pause(time: Duration) {
    Clock::Monotonic.sleep_until(monotonic().plus(time));
}

/// The serial line of a machine.
pub(crate) struct Line {
    stream: UnixStream,
    decoder: StreamDecoder,
    unread: VecDeque<u8>,
    sequence: Sequence,
    counters: LinkCounters,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: StreamDecoder::new(),
            unread: VecDeque::new(),
            sequence: Sequence::new(),
            counters: LinkCounters::default(),
        }
    }

    /// The same line for another owner, one after the other.
    pub(crate) fn again(&self) -> std::io::Result<Self> {
        Ok(Self::new(self.stream.try_clone()?))
    }

    /// Sends any bytes.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Everything up to the next line feed, within `wait`.
    pub(crate) fn read_text(&mut self, wait: Duration) -> anyhow::Result<String> {
        let until = monotonic().plus(wait);
        let mut text = String::new();
        loop {
            match self.unread.pop_front() {
                Some(b'\n') => return Ok(text),
                Some(byte) => text.push(char::from(byte)),
                None if monotonic() >= until => bail!("the image has said {text:?} and no more"),
                None => self.fill(until)?,
            }
        }
    }

    fn fill(&mut self, until: Stamp) -> std::io::Result<()> {
        let wait = until.since(monotonic()).max(Duration::from_micros(1));
        self.stream.set_read_timeout(Some(wait))?;
        let mut bytes = [0; 512];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.unread.extend(&bytes[..len]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Link for Line {
    fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let mut bytes = [0; MAX_WIRE];
        let len = frame.encode_stream(&mut bytes)?;
        self.counters.sent += 1;
        self.send_bytes(&bytes[..len]).map_err(|_| LinkError::Closed { operation: "sending" })
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Frame>, LinkError> {
        let until = monotonic().plus(wait);
        let mut filled = false;
        loop {
            while let Some(byte) = self.unread.pop_front() {
                match self.decoder.push(byte) {
                    Some(Ok(frame)) => {
                        self.counters.received += 1;
                        if let Arrival::After(missing) = self.sequence.observe(frame.header.seq) {
                            self.counters.sequence_gaps += u64::from(missing);
                        }
                        return Ok(Some(frame));
                    }
                    Some(Err(DecodeError::Checksum)) => self.counters.crc_errors += 1,
                    Some(Err(_)) => self.counters.malformed += 1,
                    None => {}
                }
            }
            if filled && monotonic() >= until {
                return Ok(None);
            }
            self.fill(until).map_err(|_| LinkError::Closed { operation: "receiving" })?;
            filled = true;
        }
    }

    fn counters(&self) -> LinkCounters {
        self.counters
    }
}
