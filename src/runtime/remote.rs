//! A learner elsewhere, seen from the robot: steps to it out of the replay, its policies to the publisher.
//!
//! One thread, which may wait for disk and network; nothing waits for it. Without an answer the robot goes on as it is:
//! steps wait in its replay, the policy in use stays.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::event::Event;
use super::parts::{RuntimeError, Shared, lock};
use super::socket::status;
use crate::clock::{self, Stamp};
use crate::config::Config;
use crate::fleet::{Answer, ChunkRequest, FleetError, Link, Listener, MAX_PARCEL, Mark, Offer, Parcel, Side, Spool};
use crate::policy::bundle::save_folder;
use crate::replay::{Replay, Store};
use crate::spaces::StepRecord;

/// How long the end of a run waits for the learner to take the last steps; the rest goes with the next run.
const LAST_CALL: Duration = Duration::from_secs(5);
/// Time between two reports of the robot's counters.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The robot's end of the link.
pub(super) struct Remote {
    link: Link,
    spool: Spool,
    replay: Arc<Mutex<Replay>>,
    shared: Arc<Shared>,
    /// Where policies are unpacked.
    folder: PathBuf,
    robot: String,
    most: usize,
    every: Duration,
    patience: Duration,
    /// What the learner said last; none: it was not asked yet.
    #[expect(clippy::option_option, reason = "not asked yet, and nothing taken yet, are two things")]
    known: Option<Option<Mark>>,
    /// The oldest record that the learner has not got.
    next: u64,
    /// Newest record that is on the disk.
    synced: u64,
    fetch: Option<Fetch>,
    /// The policy that was fetched last.
    have: Option<[u8; 32]>,
    /// Wakes the thread when there is a new policy.
    announced: Receiver<Vec<u8>>,
    _listener: Listener,
    reported: Stamp,
    /// Whether the learner answered last time.
    answers: Option<bool>,
    /// The last reason for which the learner refused.
    refusal: String,
}

/// A policy on its way.
struct Fetch {
    offer: Offer,
    bytes: Vec<u8>,
}

impl Remote {
    /// Opens the link; the learner need not be there.
    pub(super) fn open(
        config: &Config,
        replay: &Arc<Mutex<Replay>>,
        shared: &Arc<Shared>,
    ) -> Result<Self, RuntimeError> {
        let fleet = &config.fleet;
        if lock(replay).online().frame_shape().is_some() {
            return Err(FleetError::Frames.into());
        }
        let link = Link::open(fleet, Side::Robot)?;
        let (wake, announced) = bounded(1);
        let listener = link.listen("policy", move |_, message| {
            // The newest is asked for in any case: one that waits is enough.
            let _ = wake.try_send(message.to_vec());
        })?;
        let folder = config.run.directory.join("fleet");
        // Left behind by a process that was killed.
        let _ = std::fs::remove_dir_all(&folder);
        shared.fleet.enabled.store(true, Relaxed);
        Ok(Self {
            link,
            spool: Spool::open(&config.run.directory.join("replay"))?,
            replay: Arc::clone(replay),
            shared: Arc::clone(shared),
            folder,
            robot: if fleet.robot.is_empty() { config.robot.name.clone() } else { fleet.robot.clone() },
            most: fleet.batch_steps,
            every: Duration::from_millis(fleet.send_every_ms.into()),
            patience: Duration::from_millis(fleet.timeout_ms.into()),
            known: None,
            next: 0,
            synced: 0,
            fetch: None,
            have: None,
            announced,
            _listener: listener,
            reported: Stamp::default(),
            answers: None,
            refusal: String::new(),
        })
    }

    /// Sends and fetches until `ended` is disconnected, then what is left.
    pub(super) fn serve(mut self, ended: &Receiver<()>) {
        let mut last_call = None;
        loop {
            // Asked before sending: what was recorded before the end is sent yet.
            if last_call.is_none() && ended.try_recv() == Err(TryRecvError::Disconnected) {
                last_call = Some(clock::monotonic().plus(LAST_CALL));
            }
            let begin = clock::monotonic();
            let more = self.exchange();
            self.report();
            match (more, last_call) {
                (Ok(true), None) => continue,
                (Ok(true), Some(deadline)) if clock::monotonic() < deadline => continue,
                (_, Some(_)) => return,
                (Err(FleetError::Replay(error)), _) => {
                    return self.shared.fail(format!("steps no longer go to the learner: {error}"));
                }
                _ => {}
            }
            self.rest(begin.plus(self.every), ended);
        }
    }

    /// Fetches pieces of a policy, or waits, until the next exchange is due.
    fn rest(&mut self, until: Stamp, ended: &Receiver<()>) {
        loop {
            let left = until.since(clock::monotonic());
            if left.is_zero() || ended.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            if self.fetch.is_some() {
                let fetched = self.fetch_piece();
                match self.heard(fetched) {
                    Ok(()) => {}
                    // It goes on where it is when the link is back.
                    Err(FleetError::Silent { .. } | FleetError::Link { .. }) => return,
                    Err(_) => self.fetch = None,
                }
            } else if let Ok(message) = self.announced.recv_timeout(left.min(Duration::from_millis(100)))
                && let Ok(answer) = Answer::decode(&message)
            {
                self.consider(answer.offer);
            }
        }
    }

    /// Sends what the learner has not got. Returns whether there is more to send at once.
    fn exchange(&mut self) -> Result<bool, FleetError> {
        let message = self.message()?;
        let answered = self.link.ask(&format!("records/{}", self.robot), message, self.patience);
        let answer = self.heard(answered)?;
        let answer = self.heard(Answer::decode(&answer).map_err(FleetError::from))?;
        let advanced = self.known.replace(answer.mark) != Some(answer.mark);
        self.consider(answer.offer);
        let (pending, behind) = {
            let replay = lock(&self.replay);
            let store = replay.online();
            self.next = Spool::first_after(store, answer.mark);
            (store.last_sequence() + 1 - self.next, answer.mark > newest(store))
        };
        self.shared.fleet.pending.store(pending, Relaxed);
        if behind {
            let reason = "the learner has steps of this replay that are not in it: it was put back to an older copy; remove \
                          the file `spool` in its folder, and its steps count as another robot's";
            self.refused(reason);
        }
        // Of the newest step the end is not known yet.
        Ok(advanced && pending > 1)
    }

    /// The next batch. Only what is on the disk leaves the robot: after a power cut it might give other steps the same
    /// numbers.
    fn message(&mut self) -> Result<Vec<u8>, FleetError> {
        let mut replay = lock(&self.replay);
        if replay.online().last_sequence() != self.synced {
            replay.sync()?;
            self.synced = replay.online().last_sequence();
        }
        let store = replay.online();
        let Some(mark) = self.known else { return Ok(self.spool.question(store)) };
        let replaced = store.first_sequence().saturating_sub(self.next);
        self.shared.fleet.missed.fetch_add(if self.next > 0 { replaced } else { 0 }, Relaxed);
        self.next = self.next.max(store.first_sequence());
        let (message, count) = self.spool.batch(store, mark, self.most);
        self.shared.fleet.records.fetch_add(count as u64, Relaxed);
        Ok(message)
    }

    /// Begins to fetch a policy that is new, when the one before is out of the way.
    fn consider(&mut self, offer: Option<Offer>) {
        let Some(offer) = offer else { return };
        self.shared.fleet.generation.store(offer.generation.into(), Relaxed);
        let waits = lock(&self.shared.offered).is_some();
        if waits || self.fetch.is_some() || self.have == Some(offer.hash) {
            return;
        }
        if offer.size > MAX_PARCEL {
            self.have = Some(offer.hash);
            return self.refused(&format!("a policy of {} bytes, at most {MAX_PARCEL} are fetched", offer.size));
        }
        self.fetch = Some(Fetch { offer, bytes: Vec::new() });
    }

    fn fetch_piece(&mut self) -> Result<(), FleetError> {
        let Some(fetch) = &mut self.fetch else { return Ok(()) };
        let request = ChunkRequest { hash: fetch.offer.hash, offset: fetch.bytes.len() as u64 };
        let piece = self.link.ask("policy", request.encode(), self.patience)?;
        let left = fetch.offer.size - fetch.bytes.len() as u64;
        if piece.is_empty() || piece.len() as u64 > left {
            return Err(FleetError::Wire(crate::fleet::WireError::Hash));
        }
        fetch.bytes.extend_from_slice(&piece);
        if piece.len() as u64 == left
            && let Some(fetch) = self.fetch.take()
        {
            let parcel = Parcel::decode(&fetch.bytes, &fetch.offer)?;
            self.have = Some(fetch.offer.hash);
            self.unpack(&parcel, &fetch.offer);
        }
        Ok(())
    }

    fn unpack(&mut self, parcel: &Parcel, offer: &Offer) {
        let folder = self.folder.join(format!("policy-{}", offer.generation));
        let files: Vec<_> = parcel.files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
        match save_folder(&folder, &files) {
            Ok(()) => {
                self.shared.fleet.policies.fetch_add(1, Relaxed);
                *lock(&self.shared.offered) = Some(folder);
            }
            Err(error) => self.refused(&format!("a policy that cannot be stored: {error}")),
        }
    }

    /// Keeps the state of the link and counts refusals.
    fn heard<T>(&mut self, outcome: Result<T, FleetError>) -> Result<T, FleetError> {
        let answers = !matches!(outcome, Err(FleetError::Silent { .. } | FleetError::Link { .. }));
        self.shared.fleet.linked.store(answers, Relaxed);
        let before = self.answers.replace(answers);
        if before != Some(answers) {
            self.shared.fleet.lost_links.fetch_add(u64::from(before.is_some() && !answers), Relaxed);
            let words = if answers {
                "the learner answers"
            } else {
                "the learner does not answer: the robot goes on alone, its steps wait in its replay"
            };
            self.shared.tell(Event::Note(words.into()));
        }
        if let Err(error @ (FleetError::Refused(_) | FleetError::Wire(_))) = &outcome {
            self.refused(&error.to_string());
        }
        outcome
    }

    /// Says a reason once.
    fn refused(&mut self, reason: &str) {
        self.shared.fleet.refused.fetch_add(1, Relaxed);
        if self.refusal != reason {
            reason.clone_into(&mut self.refusal);
            self.shared.tell(Event::Note(format!("fleet: {reason}")));
        }
    }

    /// The robot's counters, as far as they arrive.
    fn report(&mut self) {
        let now = clock::monotonic();
        if now.since(self.reported) >= REPORT_EVERY {
            self.reported = now;
            self.link.tell(&format!("status/{}", self.robot), status(&self.shared).to_string().into_bytes());
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// The newest step that can be read.
fn newest(store: &Store) -> Option<Mark> {
    let mut record = StepRecord::default();
    let mut all = (store.first_sequence()..=store.last_sequence()).rev();
    all.find(|sequence| store.record(*sequence, &mut record).is_ok()).map(|_| Mark::from(&record))
}

/// Removes a folder of policies that were fetched.
pub(super) fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("{}: {error}", folder.display());
    }
}
