//! A learner for several robots (`fieldtune learner`): their steps into one replay, its policies out to them.
//!
//! | thread | may block on |
//! |---|---|
//! | intake | messages of robots, the disk |
//! | learner | its inbox, the device |
//! | publisher | packing a bundle |
//! | shelf | requests for pieces of a policy |
//! | socket | its clients |

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::event::{Event, Observer};
use super::parts::{RuntimeError, Shared, lock};
use super::realtime::{self, IDLE};
use super::recorder::ReturnTracker;
use super::run::{Begun, Ended, RunOptions, begin, finish};
use super::socket::{Labels, Server};
use crate::clock::{self, Stamp};
use crate::config::Config;
use crate::fleet::{Answer, Batch, ChunkRequest, FleetError, Intake, Link, Mark, Offer, Parcel, Requests, Side};
use crate::nn::weights::{ActorWeights, EnsembleWeights};
use crate::policy::manifest::Description;
use crate::policy::{Bundle, PolicyError};
use crate::replay::Replay;
use crate::telemetry::Report;

/// Policies that robots with slow links may still fetch.
const KEPT: usize = 4;
/// Longest report of a robot's counters that is looked at.
const LONGEST_REPORT: usize = 16 << 10;

/// Takes batches of robots.
pub(super) struct Hub {
    intake: Intake,
    replay: Arc<Mutex<Replay>>,
    shared: Arc<Shared>,
    /// Of each robot.
    returns: Vec<ReturnTracker>,
    sync_every: Duration,
    synced: Stamp,
}

impl Hub {
    pub(super) fn open(
        config: &Config,
        replay: &Arc<Mutex<Replay>>,
        shared: &Arc<Shared>,
    ) -> Result<Self, RuntimeError> {
        let intake = Intake::open(&config.run.directory.join("replay"), &mut lock(replay))?;
        shared.online_steps.store(intake.steps(), Relaxed);
        shared.fleet.robots.store(intake.robots() as u64, Relaxed);
        Ok(Self {
            intake,
            replay: Arc::clone(replay),
            shared: Arc::clone(shared),
            returns: Vec::new(),
            sync_every: Duration::from_secs_f64(config.replay.sync_every_s),
            synced: clock::monotonic(),
        })
    }

    /// One message of a robot. Returns how far the learner has got with it.
    fn take(&mut self, robot: &str, message: &[u8]) -> Result<Option<Mark>, FleetError> {
        let taken = {
            let mut replay = lock(&self.replay);
            let batch = Batch::decode(message, replay.layout())?.ok_or(FleetError::Layout)?;
            self.intake.take(&mut replay, robot, &batch)
        };
        // What was taken before a failure counts, too.
        self.shared.online_steps.store(self.intake.steps(), Relaxed);
        self.shared.fleet.robots.store(self.intake.robots() as u64, Relaxed);
        let taken = taken?;
        self.shared.fleet.records.fetch_add(taken.records.len() as u64, Relaxed);
        self.returns.resize_with(self.intake.robots(), ReturnTracker::default);
        for record in &taken.records {
            if let Some(episode) = self.returns[taken.robot].take(record, self.intake.steps()) {
                self.shared.ended(episode);
                self.shared.tell(Event::Episode(episode));
            }
        }
        Ok(taken.mark)
    }

    /// Makes what was taken durable now and then.
    fn sync(&mut self, now: bool) {
        if now || clock::monotonic().since(self.synced) >= self.sync_every {
            self.synced = clock::monotonic();
            if let Err(error) = self.intake.save(&mut lock(&self.replay)) {
                self.shared.fail(format!("steps of robots are not safe on the disk: {error}"));
            }
        }
    }

    /// Answers robots until the end.
    pub(super) fn serve(mut self, requests: &Requests, shelf: &Shelf, wake: &Sender<()>) {
        while !self.shared.stopping() {
            if let Some(request) = requests.next(IDLE) {
                let before = self.intake.steps();
                let taken = self.take(request.name(), &request.payload());
                let answer = taken.map(|mark| Answer { mark, offer: shelf.newest() }.encode());
                if let Err(reason) = &answer {
                    self.shared.fleet.refused.fetch_add(1, Relaxed);
                    log::warn!("robot {}: {reason}", request.name());
                }
                request.answer(answer.map_err(|reason| reason.to_string()));
                if self.intake.steps() > before {
                    let _ = wake.try_send(());
                }
            }
            self.sync(false);
        }
        self.sync(true);
    }
}

/// The newest policies as parcels.
#[derive(Default)]
pub(super) struct Shelf(Mutex<VecDeque<(Offer, Arc<Vec<u8>>)>>);

impl Shelf {
    fn newest(&self) -> Option<Offer> {
        lock(&self.0).back().map(|(offer, _)| *offer)
    }

    pub(super) fn put(&self, offer: Offer, parcel: Vec<u8>) {
        let mut parcels = lock(&self.0);
        if parcels.len() == KEPT {
            parcels.pop_front();
        }
        parcels.push_back((offer, Arc::new(parcel)));
    }

    /// The piece that a message asks for.
    fn piece(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let request = ChunkRequest::decode(message).map_err(|error| error.to_string())?;
        let found = lock(&self.0).iter().find(|(offer, _)| offer.hash == request.hash).map(|(_, p)| Arc::clone(p));
        let parcel = found.ok_or("that policy has been replaced by newer ones")?;
        Ok(request.of(&parcel).to_vec())
    }
}

/// Makes bundles of actors and offers them.
struct Packer {
    description: Description,
    shared: Arc<Shared>,
    shelf: Arc<Shelf>,
    link: Arc<Link>,
}

impl Packer {
    fn serve(&self, fresh: &Receiver<ActorWeights>) {
        while !self.shared.stopping() {
            match fresh.recv_timeout(IDLE) {
                Ok(actor) => self.offer(actor),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn offer(&self, actor: ActorWeights) {
        let begin = clock::monotonic();
        match self.pack(self.shared.updates.load(Relaxed), actor) {
            Ok(offer) => {
                self.link.tell("policy", Answer { mark: None, offer: Some(offer) }.encode());
                self.shared.fleet.policies.fetch_add(1, Relaxed);
                self.shared.fleet.generation.store(offer.generation.into(), Relaxed);
                let prepare_ms = clock::monotonic().since(begin).as_secs_f64() * 1000.0;
                self.shared.tell(Event::Published { generation: offer.generation, prepare_ms });
            }
            Err(error) => self.shared.fail(format!("the learner's policy makes no bundle: {error}")),
        }
    }

    fn pack(&self, updates: u64, actor: ActorWeights) -> Result<Offer, PolicyError> {
        // Robots act, and do not learn: the critics stay here.
        let weights = EnsembleWeights { actor, ..EnsembleWeights::default() };
        let mut description = self.description.clone();
        description.provenance.insert("learner updates".into(), updates.to_string());
        let files = Bundle::new(description, weights)?.files()?;
        let files = files.into_iter().map(|(name, content)| (name.to_owned(), content)).collect();
        let (bytes, offer) = Parcel { files }.encode(updates as u32);
        self.shelf.put(offer, bytes);
        Ok(offer)
    }
}

/// Learns from robots elsewhere until it is stopped; `config.run.steps` does not count.
///
/// # Errors
/// When it cannot begin: no learner in the configuration, no way to listen, a replay that is not a fleet's.
pub fn learn_for_fleet(
    config: &Config,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Report, RuntimeError> {
    let mut config = config.clone();
    (config.run.steps, config.learner.remote) = (i64::MAX as u64, false);
    let link = Arc::new(Link::open(&config.fleet, Side::Learner)?);
    let begun = begin(&config, options, observer)?;
    let Begun { shared, mut outlet, bundle, replay, trainer, _page, .. } = begun;
    let (trainer, start) = trainer.zip(bundle.as_ref()).ok_or(RuntimeError::NoLearner)?;
    shared.fleet.enabled.store(true, Relaxed);
    let hub = Hub::open(&config, &replay, &shared)?;
    shared.tell(Event::Note(format!(
        "learning for the fleet `{}`; robots reach it at {}",
        config.fleet.name,
        link.place()
    )));

    let shelf = Arc::new(Shelf::default());
    let (batches, pieces) = (link.requests("records/*")?, link.requests("policy")?);
    let heard = Arc::clone(&shared);
    let _reports = link.listen("status/*", move |robot, report| hear(&heard, robot, report))?;
    let (snapshots, fresh) = bounded(1);
    let newest = (snapshots, fresh.clone());
    let (wake, woken) = bounded(1);
    let description = start.ensemble().map_err(PolicyError::from)?.manifest().description.clone();
    let packer =
        Packer { description, shared: Arc::clone(&shared), shelf: Arc::clone(&shelf), link: Arc::clone(&link) };
    packer.offer(trainer.weights()?.actor);
    let server = Server::bind(&config.run.directory, Arc::clone(&shared), bounded(0).0, Labels::new(&config, &replay))?;

    let begin = clock::monotonic();
    let threads = [
        realtime::spawn("socket", &shared, move || server.serve())?,
        realtime::spawn("publisher", &shared, move || packer.serve(&fresh))?,
        {
            let (shared, shelf) = (Arc::clone(&shared), Arc::clone(&shelf));
            realtime::spawn("shelf", &shared.clone(), move || hand_out(&shared, &shelf, &pieces))?
        },
        realtime::spawn("intake", &shared, move || hub.serve(&batches, &shelf, &wake))?,
    ];
    let learning = {
        let shared = Arc::clone(&shared);
        realtime::spawn("learner", &shared.clone(), move || realtime::learn(trainer, &shared, &woken, &newest))?
    };
    shared.fleet.linked.store(true, Relaxed);
    while !shared.stopping() {
        outlet.wait(&shared);
    }
    for thread in threads {
        let _ = thread.join();
    }
    let trainer = learning.join().ok().flatten().flatten();
    outlet.report_mut().seconds = clock::monotonic().since(begin).as_secs_f64();
    finish(&config, options, bundle.as_ref(), &shared, &replay, Ended { trainer, stopped: None }, &mut outlet)?;
    outlet.pump(&shared);
    Ok(outlet.into_report())
}

/// Pieces of policies to whoever asks.
pub(super) fn hand_out(shared: &Shared, shelf: &Shelf, requests: &Requests) {
    while !shared.stopping() {
        let Some(request) = requests.next(IDLE) else { continue };
        let piece = shelf.piece(&request.payload());
        shared.fleet.refused.fetch_add(u64::from(piece.is_err()), Relaxed);
        request.answer(piece);
    }
}

/// Keeps a robot's counters for whoever asks for the learner's status.
fn hear(shared: &Shared, robot: &str, report: &[u8]) {
    match serde_json::from_slice(report) {
        Ok(numbers) if report.len() <= LONGEST_REPORT => shared.fleet.hear(robot, numbers),
        _ => drop(shared.fleet.refused.fetch_add(1, Relaxed)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::parts::layout;
    use super::super::trainer::Trainer;
    use super::*;
    use crate::config;
    use crate::fleet::Spool;
    use crate::replay::Store;
    use crate::spaces::{StepFlags, StepRecord};
    use crate::telemetry::ControlCounters;

    struct Nobody;

    impl Observer for Nobody {
        fn event(&mut self, _: &Event) {}
        fn counters(&mut self, _: &ControlCounters, _: u64) {}
    }

    fn configuration(folder: &Path) -> Config {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut config = config::load(&root.join("config/quickstart.toml"), &[]).unwrap();
        config.run.directory = folder.join("run");
        (config.run.steps, config.run.existing) = (i64::MAX as u64, config::Existing::Resume);
        config.policy.bundle = root.join("models/pendulum-cql");
        config.replay.offline = root.join("models/pendulum-offline.npz");
        (config.learner.batch_size, config.learner.utd_ratio, config.learner.warmup_steps) = (16, 0.5, 20);
        config
    }

    /// A learner on messages alone: after each, the updates that are due.
    fn learn(config: &Config, messages: &[(String, Vec<u8>)]) -> (Trainer, u64, Report) {
        let stop = Arc::new(AtomicBool::new(false));
        let mut nobody = Nobody;
        let options = RunOptions::new("no program".into(), stop);
        let Begun { shared, outlet, replay, trainer, .. } = begin(config, &options, &mut nobody).unwrap();
        let (mut trainer, mut hub) = (trainer.unwrap(), Hub::open(config, &replay, &shared).unwrap());
        for (robot, message) in messages {
            hub.take(robot, message).unwrap();
            while trainer.due() > 0 {
                trainer.update().unwrap();
            }
        }
        hub.sync(true);
        let steps = hub.intake.steps();
        (trainer, steps, outlet.into_report())
    }

    /// What two robots send, in turns.
    fn messages(config: &Config, count: usize) -> Vec<(String, Vec<u8>)> {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let folder = tempfile::tempdir().unwrap();
        let mut robots: Vec<_> = ["a", "b"]
            .map(|name| {
                let dir = folder.path().join(name);
                std::fs::create_dir(&dir).unwrap();
                (name, Spool::open(&dir).unwrap(), Store::in_memory(layout(config), 5000).unwrap(), None)
            })
            .into();
        let mut record = StepRecord::default();
        let mut sent = Vec::new();
        for turn in 0..count {
            let (name, spool, store, mark) = &mut robots[turn % 2];
            for _ in 0..9 {
                record.step = store.last_sequence() as u32;
                record.observation = [rng.random(), rng.random(), rng.random()].into_iter().collect();
                record.action = [rng.random()].into_iter().collect();
                record.reward = rng.random();
                record.flags = StepFlags::default();
                store.append(&record).unwrap();
            }
            sent.push((String::from(*name), spool.batch(store, *mark, 100).0));
            // Of the newest step the end is not known yet.
            *mark = Some(Mark { episode: 0, step: record.step - 1 });
        }
        sent
    }

    #[test]
    fn a_learner_that_was_stopped_goes_on_bit_for_bit() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [straight, broken] = [configuration(folders[0].path()), configuration(folders[1].path())];
        let messages = messages(&straight, 14);
        let (trainer, steps, _) = learn(&straight, &messages);
        let (wanted, updates) = (trainer.weights().unwrap(), trainer.realised_ratio());
        drop(trainer);

        let (mut first, _, _) = learn(&broken, &messages[..6]);
        first.save().unwrap();
        let at_the_stop = first.weights().unwrap();
        drop(first);
        let (second, steps_broken, _) = learn(&broken, &messages[6..]);
        let found = second.weights().unwrap();
        assert_eq!((steps_broken, second.realised_ratio()), (steps, updates));
        assert!(found == wanted, "the learner that was stopped differs from the one that was not");
        assert!(found != at_the_stop, "nothing was learned after the stop");
        assert_eq!(steps, 7 * 9 * 2 - 2, "every step but the newest of each robot");
    }
}
