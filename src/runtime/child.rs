//! A simulated robot as a child process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::parts::RuntimeError;
use super::rights;
use crate::config::{CameraSource, Config};

/// A running simulator; killed when dropped.
pub(super) struct Simulator {
    child: Child,
    socket: PathBuf,
}

impl Simulator {
    /// Starts `program simulate ...` for the configured task and waits until it listens.
    pub(super) fn start(
        program: &Path,
        config: &Config,
        lockstep: bool,
        socket: PathBuf,
    ) -> Result<Self, RuntimeError> {
        let sees = config.camera.source.0.contains(&CameraSource::Simulator);
        let camera = sees.then(|| camera_beside(&socket));
        let failed = |reason: String| RuntimeError::Simulator { task: config.simulator.task.clone(), reason };
        let _ = std::fs::remove_file(&socket);
        let script = config.simulator.script.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut child = Command::new(program)
            .arg("simulate")
            .args(["--task", &config.simulator.task])
            .args(["--clock", if lockstep { "lockstep" } else { "realtime" }])
            .arg("--native")
            .arg(&config.simulator.native)
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .args(if script.is_empty() { vec![] } else { vec!["--script", &script] })
            .args(["--quiet", "--die-with-parent", "--idle-exit-s", "0"])
            .args(camera.iter().flat_map(|path| ["--camera".to_owned(), format!("unix:{}", path.display())]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{} does not start: {error}", program.display())))?;
        let stdout = child.stdout.take();
        let (sender, ready) = sync_channel(1);
        std::thread::Builder::new()
            .name("simulator-ready".into())
            .spawn(move || {
                let mut line = String::new();
                let read = stdout.map(|out| BufReader::new(out).read_line(&mut line));
                let _ = sender.send(matches!(read, Some(Ok(_))) && line.starts_with("ready"));
            })
            .map_err(|error| failed(error.to_string()))?;
        let mut simulator = Self { child, socket };
        if ready.recv_timeout(Duration::from_secs(20)) != Ok(true) {
            return Err(failed(simulator.last_words()));
        }
        if !lockstep {
            rights::raise(simulator.child.id(), config.realtime.priority);
        }
        Ok(simulator)
    }

    /// Path of its socket.
    pub(super) fn address(&self) -> String {
        self.socket.display().to_string()
    }

    /// Path of its camera's socket, if it has one.
    pub(super) fn camera(&self) -> PathBuf {
        camera_beside(&self.socket)
    }

    /// What it said on stderr before it ended.
    fn last_words(&mut self) -> String {
        let _ = self.child.kill();
        let mut words = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut BufReader::new(stderr), &mut words);
        }
        let words = words.trim();
        if words.is_empty() { "it did not become ready within 20 s".into() } else { words.to_owned() }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.camera());
    }
}

fn camera_beside(socket: &Path) -> PathBuf {
    socket.with_extension("camera")
}
