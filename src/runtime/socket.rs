//! The control socket of a running process: one JSON object in, one out, over a Unix socket only its owner may use.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::parts::{RuntimeError, Shared};
use crate::clock::Clock;
use crate::config::SwapAt;
use crate::control::Outcome;

/// Longest request in bytes.
const LONGEST: u64 = 8192;

/// What can be asked of a running process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Counters and rates.
    Status,
    /// Take the policy of a bundle.
    Swap {
        /// Folder of the bundle.
        bundle: PathBuf,
        /// When it is applied; none: as `swap.at` says.
        #[serde(default)]
        at: Option<SwapAt>,
        /// Whether the learner goes on from it, once it has passed its trial.
        #[serde(default)]
        adopt: bool,
        /// Only tell how it differs from the policy in use.
        #[serde(default)]
        try_only: bool,
    },
    /// Go back to the policy before.
    RollBack,
    /// Take the learner's policies again after a swap or a roll-back.
    Follow,
    /// The operator's word on the episode under way: it ends, as a success or a failure.
    Judge {
        /// Which.
        success: bool,
    },
    /// End the run orderly.
    Stop,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// In words.
    pub message: String,
    /// Numbers, for [`Request::Status`].
    #[serde(default)]
    pub status: Value,
}

impl Reply {
    pub(super) fn ok(message: String) -> Self {
        Self { ok: true, message, status: Value::Null }
    }

    pub(super) fn refused(message: String) -> Self {
        Self { ok: false, message, status: Value::Null }
    }
}

/// A request on its way to the publisher, with the way back.
pub(super) type Asked = (Request, Sender<Reply>);

/// Name of the socket in a run folder.
const NAME: &str = "control.sock";

/// Asks the process that runs in `directory`.
///
/// # Errors
/// When none listens there, or its answer cannot be read.
pub fn ask(directory: &Path, request: &Request) -> std::io::Result<Reply> {
    ask_within(directory, request, Duration::from_secs(30))
}

/// As [`ask`], for who cannot wait long for the answer.
///
/// # Errors
/// When none listens there, or its answer does not come in time or cannot be read.
pub fn ask_within(directory: &Path, request: &Request, patience: Duration) -> std::io::Result<Reply> {
    let mut stream = UnixStream::connect(directory.join(NAME))?;
    stream.set_read_timeout(Some(patience))?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Serves the socket until the run stops; the file is removed at the end.
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
    shared: Arc<Shared>,
    publisher: Sender<Asked>,
}

impl Server {
    pub(super) fn bind(directory: &Path, shared: Arc<Shared>, publisher: Sender<Asked>) -> Result<Self, RuntimeError> {
        let path = directory.join(NAME);
        // The replay's lock has shown that no other process runs here: a socket file is a leftover.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(RuntimeError::file(&path))?;
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).map_err(RuntimeError::file(&path))?;
        listener.set_nonblocking(true).map_err(RuntimeError::file(&path))?;
        Ok(Self { listener, path, shared, publisher })
    }

    /// Answers one request after the other.
    pub(super) fn serve(&self) {
        while !self.shared.stopping() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.answer(stream) {
                        log::debug!("control socket: {error}");
                    }
                }
                Err(_) => Clock::Monotonic.sleep_until(Clock::Monotonic.now().plus(Duration::from_millis(50))),
            }
        }
    }

    fn answer(&self, stream: UnixStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut line = String::new();
        let mut limited = std::io::Read::take(&stream, LONGEST);
        BufReader::new(&mut limited).read_line(&mut line)?;
        let reply = match serde_json::from_str(&line) {
            Ok(Request::Status) => Reply { status: status(&self.shared), ..Reply::ok("running".into()) },
            Ok(Request::Stop) => {
                self.shared.stop.store(true, Relaxed);
                Reply::ok("stopping: the robot first, then everything else".into())
            }
            Ok(Request::Judge { success }) => {
                self.shared.verdict.say(if success { Outcome::Success } else { Outcome::Failure });
                let word = if success { "success" } else { "failure" };
                Reply::ok(format!("the episode ends as a {word} with its next step"))
            }
            Ok(request) => self.pass_on(request),
            Err(error) => Reply::refused(format!("not a request: {error}")),
        };
        let mut stream = stream;
        writeln!(stream, "{}", serde_json::to_string(&reply)?)
    }

    fn pass_on(&self, request: Request) -> Reply {
        let (sender, answer) = bounded(1);
        let sent = self.publisher.send_timeout((request, sender), Duration::from_secs(5));
        let reply = sent.ok().and_then(|()| answer.recv_timeout(Duration::from_secs(20)).ok());
        reply.unwrap_or_else(|| Reply::refused("the publisher is busy or has ended; try again".into()))
    }
}

/// Counters and rates of a run.
pub(super) fn status(shared: &Shared) -> Value {
    let c = &shared.counters;
    json!({
        "steps": shared.online_steps.load(Relaxed), "total_steps": shared.total_steps.load(Relaxed),
        "updates": shared.updates.load(Relaxed),
        "ticks": c.ticks.load(Relaxed), "late_ticks": c.late.load(Relaxed),
        "stale_ticks": c.stale.load(Relaxed), "missed_states": c.missed_states.load(Relaxed),
        "dropped": c.dropped_steps.load(Relaxed) + shared.unrecorded.load(Relaxed),
        "generation": c.generation.load(Relaxed), "swaps": c.swaps.load(Relaxed),
        "rollbacks": c.rollbacks.load(Relaxed), "refused_policies": c.refused_policies.load(Relaxed),
        "episodes": c.episodes.load(Relaxed), "successes": c.successes.load(Relaxed),
        "task_failures": c.failures.load(Relaxed), "wake": c.latency(), "robot": c.robot.summary(),
        "max_work_us": c.max_work_us.load(Relaxed), "failures": shared.failures(),
        "refused_settings": shared.refused_settings(),
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
