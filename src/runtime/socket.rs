//! The control socket of a running process: one JSON object in, one out, over a Unix socket only its owner may use.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::event::Event;
use super::parts::{RuntimeError, Shared, lock};
use crate::clock::Clock;
use crate::config::{Config, EpisodeConfig, SwapAt};
use crate::replay::Replay;
use crate::spaces::Outcome;
use crate::telemetry::LatencySummary;

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
    /// Somebody's word on an episode. The one under way ends with it; one that has ended is labelled in the replay.
    Label {
        /// What it was.
        outcome: Outcome,
        /// Which one; none: the one under way.
        #[serde(default)]
        episode: Option<u32>,
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
    labels: Labels,
}

/// Where labels go that come late, and what success and failure are worth.
pub(super) struct Labels {
    replay: Arc<Mutex<Replay>>,
    episode: EpisodeConfig,
}

impl Labels {
    pub(super) fn new(config: &Config, replay: &Arc<Mutex<Replay>>) -> Self {
        Self { replay: Arc::clone(replay), episode: config.episode.clone() }
    }
}

impl Server {
    pub(super) fn bind(
        directory: &Path,
        shared: Arc<Shared>,
        publisher: Sender<Asked>,
        labels: Labels,
    ) -> Result<Self, RuntimeError> {
        let path = directory.join(NAME);
        // The replay's lock has shown that no other process runs here: a socket file is a leftover.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(RuntimeError::file(&path))?;
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).map_err(RuntimeError::file(&path))?;
        listener.set_nonblocking(true).map_err(RuntimeError::file(&path))?;
        Ok(Self { listener, path, shared, publisher, labels })
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
            Ok(Request::Label { outcome, episode }) => self.label(outcome, episode),
            Ok(request) => self.pass_on(request),
            Err(error) => Reply::refused(format!("not a request: {error}")),
        };
        let mut stream = stream;
        writeln!(stream, "{}", serde_json::to_string(&reply)?)
    }

    fn label(&self, outcome: Outcome, episode: Option<u32>) -> Reply {
        let counters = &self.shared.counters;
        let under_way = (counters.episodes.load(Relaxed) > 0).then(|| counters.episode.load(Relaxed) as u32);
        let Some(episode) = episode.or(under_way) else {
            return Reply::refused("no episode is under way".into());
        };
        let word = format!("{outcome:?}").to_lowercase();
        if Some(episode) == under_way {
            self.shared.verdict.say(episode, outcome);
            return Reply::ok(format!("episode {episode} ends as a {word} with its next step"));
        }
        match lock(&self.labels.replay).label(episode, outcome, |outcome| self.labels.episode.worth(outcome)) {
            Ok(before) => {
                let before = before.map_or(String::new(), |before| format!(", no more a {before:?}").to_lowercase());
                let note = format!("episode {episode} is labelled a {word}{before}");
                self.shared.tell(Event::Note(note.clone()));
                Reply::ok(note)
            }
            Err(error) => Reply::refused(error.to_string()),
        }
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
        "blind_steps": c.blind.load(Relaxed), "image_to_action": LatencySummary::from(&c.image_to_action),
        "dropped": c.dropped_steps.load(Relaxed) + shared.unrecorded.load(Relaxed),
        "generation": c.generation.load(Relaxed), "swaps": c.swaps.load(Relaxed),
        "rollbacks": c.rollbacks.load(Relaxed), "refused_policies": c.refused_policies.load(Relaxed),
        "person_steps": c.person_steps.load(Relaxed), "person_silent": c.person_silent.load(Relaxed),
        "refused_commands": shared.refused_commands.load(Relaxed),
        "episode": c.episode.load(Relaxed), "unheard_labels": shared.verdict.unheard.load(Relaxed),
        "episodes": c.episodes.load(Relaxed), "successes": c.successes.load(Relaxed),
        "task_failures": c.failures.load(Relaxed), "wake": c.latency(), "robot": c.robot.summary(),
        "camera": shared.camera.counters.summary(),
        "max_work_us": c.max_work_us.load(Relaxed), "failures": shared.failures(),
        "refused_settings": shared.refused_settings(), "learner": *lock(&shared.effort),
        "fleet": shared.fleet.summary(),
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
