//! Robots that only send and fetch, for [`super::measure_fleet`] in another process.

use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use serde::{Deserialize, Serialize};

use super::fleet::ms;
use super::rig::spaces;
use crate::clock::precise;
use crate::config::{Config, SamplerKind};
use crate::fleet::{Answer, ChunkRequest, FleetError, Link, Listener, Parcel, Side, Spool};
use crate::replay::Store;
use crate::runtime::parts::{RuntimeError, layout};
use crate::spaces::StepRecord;

/// How long either side waits for the other.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What the robots are to send, each: `rounds` messages of `count` steps, `every` so often or one after the other.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub count: u32,
    pub rounds: u32,
    pub every: Duration,
}

/// What they saw.
#[derive(Serialize, Deserialize)]
pub(super) enum Seen {
    /// All are connected.
    Ready,
    /// Milliseconds from each message to its answer, and seconds from the first message to the last answer.
    Steps { times: Vec<f64>, seconds: f64 },
    /// One of them has a policy whole since `at` (`precise`).
    Policy { at: Duration },
}

/// The learner's and the robots' configuration.
pub(super) fn configuration(folder: &Path, port: u16) -> Config {
    let mut config = Config::default();
    config.robot.spaces = spaces();
    config.replay.sampler = SamplerKind::Online;
    config.replay.offline.clear();
    folder.clone_into(&mut config.run.directory);
    let place = format!("tcp/127.0.0.1:{port}");
    (config.fleet.listen, config.fleet.connect) = (place.clone(), place);
    config
}

/// What one of them did.
struct Sent {
    times: Vec<f64>,
    begin: Duration,
    end: Duration,
}

/// One robot's session; it fetches every policy that is announced.
struct Player {
    link: Arc<Link>,
    _listener: Listener,
}

/// Plays `count` robots whose learner listens on `port`, does the `orders` that arrive as lines, and says in lines what
/// it saw, until there are no more orders.
///
/// # Errors
/// When the folder or the learner cannot be used, or an order cannot be read.
pub fn play_robots(
    folder: &Path,
    port: u16,
    count: u32,
    orders: impl Iterator<Item = String>,
    say: impl Fn(String) + Clone + Send + 'static,
) -> Result<(), RuntimeError> {
    let config = configuration(folder, port);
    let tell = move |seen: &Seen| say(serde_json::to_string(seen).unwrap_or_default());
    let players = (0..count).map(|_| Player::open(&config, tell.clone())).collect::<Result<Vec<_>, RuntimeError>>()?;
    tell(&Seen::Ready);
    for (number, line) in orders.enumerate() {
        let unread = |e: serde_json::Error| RuntimeError::file(folder)(e.into());
        let order: Order = serde_json::from_str(&line).map_err(unread)?;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let each = players.iter().enumerate().map(|(i, player)| {
                let (config, order, name) = (&config, &order, format!("robot-{number}-{i}"));
                scope.spawn(move || player.send(config, &name, order))
            });
            each.collect::<Vec<_>>().into_iter().map(ScopedJoinHandle::join).collect()
        });
        let (mut times, mut begin, mut end) = (Vec::new(), Duration::MAX, Duration::ZERO);
        for outcome in outcomes {
            let sent = outcome.unwrap_or_else(|_| Err(FleetError::Silent { key: "a robot".into() }.into()))?;
            times.extend(sent.times);
            (begin, end) = (begin.min(sent.begin), end.max(sent.end));
        }
        tell(&Seen::Steps { times, seconds: end.saturating_sub(begin).as_secs_f64() });
    }
    Ok(())
}

impl Player {
    /// Returns when the learner answers.
    fn open(config: &Config, tell: impl Fn(&Seen) + Send + 'static) -> Result<Self, RuntimeError> {
        let link = Arc::new(Link::open(&config.fleet, Side::Robot)?);
        let (heard, announced) = bounded(1);
        let listener = link.listen("policy", move |_, message| drop(heard.try_send(message.to_vec())))?;
        let question = ChunkRequest { hash: [0; 32], offset: 0 }.encode();
        // That there is no such policy is an answer.
        while matches!(link.ask("policy", question.clone(), PATIENCE), Err(FleetError::Silent { .. })) {}
        let own = Arc::clone(&link);
        let fetcher = Builder::new().name("robot".into()).spawn(move || fetch(&own, &announced, tell));
        fetcher.map_err(RuntimeError::file("robot".as_ref()))?;
        Ok(Self { link, _listener: listener })
    }

    fn send(&self, config: &Config, name: &str, order: &Order) -> Result<Sent, RuntimeError> {
        let steps = order.rounds * order.count;
        let mut store = Store::in_memory(layout(config), u64::from(steps) + 1)?;
        // Of the newest step of a message the end is not known: it comes again.
        for step in 0..=steps {
            store.append(&StepRecord {
                step,
                observation: std::iter::repeat_n(0.1, config.robot.spaces.observation_dim()).collect(),
                action: std::iter::repeat_n(0.1, config.robot.spaces.action_dim()).collect(),
                ..StepRecord::default()
            })?;
        }
        let folder = config.run.directory.join(name);
        std::fs::create_dir_all(&folder).map_err(RuntimeError::file(&folder))?;
        let (spool, mut mark, mut times) = (Spool::open(&folder)?, None, Vec::new());
        // As robots begin: who is new is on the learner's disk before its first step is.
        self.link.ask(&format!("records/{name}"), spool.question(&store), PATIENCE)?;
        let first = precise();
        for round in 0..order.rounds {
            std::thread::sleep((first + order.every * round).saturating_sub(precise()));
            let begin = precise();
            let (message, _) = spool.batch(&store, mark, order.count as usize + 1);
            let answer = self.link.ask(&format!("records/{name}"), message, PATIENCE)?;
            mark = Answer::decode(&answer).map_err(FleetError::from)?.mark;
            times.push(ms(precise().saturating_sub(begin)));
        }
        Ok(Sent { times, begin: first, end: precise() })
    }
}

/// Fetches what is announced, whole and with its hash checked, until nothing can be.
fn fetch(link: &Link, announced: &Receiver<Vec<u8>>, tell: impl Fn(&Seen)) {
    while let Ok(message) = announced.recv() {
        let Some(offer) = Answer::decode(&message).ok().and_then(|answer| answer.offer) else { return };
        let mut arrived = Vec::new();
        while (arrived.len() as u64) < offer.size {
            let request = ChunkRequest { hash: offer.hash, offset: arrived.len() as u64 };
            let Ok(piece) = link.ask("policy", request.encode(), PATIENCE) else { return };
            arrived.extend(piece);
        }
        if Parcel::decode(&arrived, &offer).is_err() {
            return;
        }
        tell(&Seen::Policy { at: precise() });
    }
}
