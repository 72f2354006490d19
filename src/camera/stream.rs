//! Images over a Unix or TCP stream socket, or from the output of a command.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use super::image::View;
use super::splitter::Splitter;
use super::{Camera, CameraError, Capture, lost};
use crate::clock::{Clock, Stamp, monotonic, wait_readable};
use crate::config::{CameraConfig, CaptureStamps};

/// Longest wait for a TCP connection.
const CONNECT: Duration = Duration::from_millis(500);
/// Reads in one call: a source that is faster than us cannot keep us for ever.
const MOST_READS: u32 = 256;

/// A stream of images.
pub(super) struct Stream {
    fd: OwnedFd,
    splitter: Splitter,
    clock: Clock,
    stamps: CaptureStamps,
    _command: Option<Process>,
}

/// A command and everything it started; ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

impl Stream {
    pub(super) fn unix(path: &Path, config: &CameraConfig, clock: &Clock) -> Result<Self, CameraError> {
        let socket = UnixStream::connect(path).map_err(lost("connecting to the camera's socket"))?;
        Self::new(socket.into(), None, config, clock)
    }

    pub(super) fn tcp(address: &str, config: &CameraConfig, clock: &Clock) -> Result<Self, CameraError> {
        let connect = || {
            let address = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
            TcpStream::connect_timeout(&address, CONNECT)
        };
        let socket = connect().map_err(lost("connecting to the camera"))?;
        Self::new(socket.into(), None, config, clock)
    }

    pub(super) fn pipe(command: &str, config: &CameraConfig, clock: &Clock) -> Result<Self, CameraError> {
        let mut process = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map(Process)
            .map_err(lost("starting the camera's command"))?;
        let output =
            process.0.stdout.take().ok_or_else(|| lost("reading")(io::Error::from(io::ErrorKind::BrokenPipe)))?;
        Self::new(output.into(), Some(process), config, clock)
    }

    fn new(fd: OwnedFd, command: Option<Process>, config: &CameraConfig, clock: &Clock) -> Result<Self, CameraError> {
        let flags = fcntl_getfl(&fd).map_err(lost("opening the camera's stream"))?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(lost("opening the camera's stream"))?;
        let (splitter, clock) = (Splitter::new(config), clock.clone());
        Ok(Self { fd, splitter, clock, stamps: config.stamps, _command: command })
    }

    /// Reads what has come; `true` at the end of the stream.
    fn drain(&mut self) -> Result<bool, CameraError> {
        for _ in 0..MOST_READS {
            match rustix::io::read(&self.fd, self.splitter.space()) {
                Ok(0) => return Ok(true),
                Ok(count) => self.splitter.filled(count),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(lost("reading from the camera")(errno)),
            }
        }
        Ok(false)
    }
}

impl Camera for Stream {
    fn newest(&mut self, wait: Duration, view: &mut View, into: &mut [u8]) -> Result<Option<Capture>, CameraError> {
        let until = monotonic().plus(wait);
        loop {
            let over = self.drain()?;
            let arrival = self.clock.now();
            if let Some(fault) = self.splitter.fault() {
                return Err(fault.into());
            }
            if let Some(newest) = self.splitter.take() {
                let source = newest.capture_us.filter(|_| self.stamps == CaptureStamps::Source).map(Stamp);
                let capture = Capture {
                    taken: source.unwrap_or(arrival),
                    sequence: newest.sequence,
                    missing: newest.missing,
                    overtaken: newest.overtaken,
                };
                view.take(&newest.image, into)?;
                return Ok(Some(capture));
            }
            if over {
                return Err(lost("reading from the camera")(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
            if !wait_readable(&self.fd, until).map_err(lost("waiting for the camera"))? {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use firmware_bridge::{ImageFormat, ImageHeader};

    use super::super::ImageFault;
    use super::*;
    use crate::config::{CameraSource, ImageStream};

    const WAIT: Duration = Duration::from_secs(5);

    fn config() -> CameraConfig {
        CameraConfig { width: 2, height: 2, ..CameraConfig::default() }
    }

    fn image(sequence: u32, size: u16) -> Vec<u8> {
        let payload_len = ImageFormat::Rgb8.payload(size, size);
        let header = ImageHeader {
            format: ImageFormat::Rgb8,
            width: size,
            height: size,
            payload_len,
            sequence,
            capture_us: 77 + u64::from(sequence),
        };
        [header.encode().unwrap().to_vec(), vec![sequence as u8; payload_len as usize]].concat()
    }

    fn open(source: &CameraSource, config: &CameraConfig) -> Box<dyn Camera> {
        super::super::open(source, config, &Clock::Monotonic, |_| Err(String::new())).unwrap()
    }

    #[test]
    fn images_come_over_both_kinds_of_socket_and_the_end_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("camera");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        for source in [CameraSource::Unix(path), CameraSource::Tcp(address)] {
            let mut camera = open(&source, &config());
            let mut robot: Box<dyn Write> = match source {
                CameraSource::Unix(_) => Box::new(unix.accept().unwrap().0),
                _ => Box::new(tcp.accept().unwrap().0),
            };
            let (mut view, mut into) = (View::new(&config()), [0; 12]);
            assert!(camera.newest(Duration::from_millis(2), &mut view, &mut into).unwrap().is_none());
            robot.write_all(&[image(4, 4), image(6, 4)].concat()).unwrap();
            let capture = camera.newest(WAIT, &mut view, &mut into).unwrap().unwrap();
            assert_eq!((capture.sequence, capture.taken, capture.missing + capture.overtaken), (6, Stamp(83), 2));
            assert_eq!(into, [6; 12]);
            robot.write_all(&image(7, 5)).unwrap();
            let refused = camera.newest(WAIT, &mut view, &mut into);
            let wanted = ImageFault::Size { found: (5, 5), wanted: (4, 4) };
            assert!(matches!(refused, Err(CameraError::Image(fault)) if fault == wanted));
            robot.write_all(&image(8, 4)[..50]).unwrap();
            drop(robot);
            assert!(matches!(camera.newest(WAIT, &mut view, &mut into), Err(CameraError::Lost { .. })));
        }
    }

    #[test]
    fn a_command_is_a_camera_and_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pixels");
        std::fs::write(&file, [[3u8; 12], [9; 12]].concat()).unwrap();
        let pid = folder.path().join("pid");
        let command = format!("echo $$ > {}; cat {}; sleep 1000 & wait", pid.display(), file.display());
        let config = CameraConfig { format: ImageStream::Rgb, source_size: [2, 2], ..config() };
        let mut camera = open(&CameraSource::Pipe(command), &config);
        let (mut view, mut into) = (View::new(&config), [0; 12]);
        let before = monotonic();
        let capture = camera.newest(WAIT, &mut view, &mut into).unwrap().unwrap();
        assert!(capture.taken >= before && into[0] == [3, 9][capture.sequence as usize - 1]);
        drop(camera);
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "it was ended");
        let mut camera = open(&CameraSource::Pipe("exit 3".into()), &config);
        assert!(matches!(camera.newest(WAIT, &mut view, &mut into), Err(CameraError::Lost { .. })));
    }

    #[test]
    fn a_camera_that_is_not_there_is_named() {
        for source in [CameraSource::Unix("no/such/socket".into()), CameraSource::Tcp("127.0.0.1:1".into())] {
            let error =
                super::super::open(&source, &config(), &Clock::Monotonic, |_| Err(String::new())).err().unwrap();
            assert!(error.to_string().contains("connecting to the camera"), "{error}");
        }
    }
}
