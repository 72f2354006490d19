//! What the way between a robot and a learner elsewhere costs: steps there, policies back, over loopback.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use serde::Serialize;

use super::rig::spaces;
use crate::clock::precise;
use crate::config::{Config, SamplerKind};
use crate::fleet::{Answer, ChunkRequest, FleetError, Link, Parcel, Side, Spool};
use crate::replay::Store;
use crate::runtime::hub::{Hub, Shelf, hand_out};
use crate::runtime::parts::{RuntimeError, Shared, layout, lock, open_replay};
use crate::runtime::realtime::spawn;
use crate::spaces::StepRecord;

/// What to measure.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Messages, or policies, per row.
    pub rounds: u32,
    /// A folder for the learner's replay.
    pub folder: PathBuf,
    /// A free port of this machine.
    pub port: u16,
}

/// One kind of message.
#[derive(Clone, Debug, Serialize)]
pub struct FleetRow {
    /// `steps` or `policy`.
    pub what: &'static str,
    /// Steps, or bytes of a policy, per message.
    pub size: u64,
    /// From the call that sends to the answer, or to the whole policy with its hash checked; milliseconds, median.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// How long whoever publishes is kept; milliseconds, median. Not for steps.
    pub blocked_p50_ms: f64,
    /// Steps, or megabytes, per second.
    pub per_second: f64,
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Steps in messages of some sizes, then policies of 0.3, 3 and 20 MB, through the learner's own threads. Robots have
/// the dimensions of `HalfCheetah`.
///
/// # Errors
/// When there is no link or no folder.
pub fn measure_fleet(options: &FleetOptions) -> Result<Vec<FleetRow>, RuntimeError> {
    let mut config = Config::default();
    config.robot.spaces = spaces();
    config.replay.sampler = SamplerKind::Online;
    config.replay.offline = PathBuf::new();
    config.run.directory.clone_from(&options.folder);
    let place = format!("tcp/127.0.0.1:{}", options.port);
    (config.fleet.listen, config.fleet.connect) = (place.clone(), place);
    let shared = Shared::new(bounded(1).0, Arc::new(AtomicBool::new(false)));
    let replay = Arc::new(Mutex::new(open_replay(&config)?));
    let hub = Hub::open(&config, &replay, &shared)?;
    let learner = Arc::new(Link::open(&config.fleet, Side::Learner)?);
    let (batches, pieces) = (learner.requests("records/*")?, learner.requests("policy")?);
    let shelf = Arc::new(Shelf::default());
    let threads = [
        {
            let shelf = Arc::clone(&shelf);
            spawn("intake", &shared, move || hub.serve(&batches, &shelf, &bounded(1).0))?
        },
        {
            let (shared, shelf) = (Arc::clone(&shared), Arc::clone(&shelf));
            spawn("shelf", &shared.clone(), move || hand_out(&shared, &shelf, &pieces))?
        },
    ];
    let robot = Link::open(&config.fleet, Side::Robot)?;
    let (heard, announced) = bounded(1);
    let _listener = robot.listen("policy", move |_, message| drop(heard.try_send(message.to_vec())))?;
    let question = Spool::open(&options.folder)?.question(lock(&replay).online());
    while robot.ask("records/robot", question.clone(), PATIENCE).is_err() {}
    let mut rows = Vec::new();
    for steps in [1, 10, 100, 500] {
        rows.push(send_steps(&config, options, &robot, steps)?);
    }
    for size in [300_000, 3_000_000, 20_000_000] {
        rows.push(publish(options.rounds, &learner, &shelf, &robot, &announced, size)?);
    }
    shared.stop.store(true, Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(rows)
}

fn send_steps(config: &Config, options: &FleetOptions, robot: &Link, steps: usize) -> Result<FleetRow, RuntimeError> {
    let mut store = Store::in_memory(layout(config), 1 << 20)?;
    // Of the newest step of a message the end is not known: it comes again.
    for step in 0..=(options.rounds as usize * steps) as u32 {
        store.append(&StepRecord {
            step,
            observation: std::iter::repeat_n(0.1, config.robot.spaces.observation_dim()).collect(),
            action: std::iter::repeat_n(0.1, config.robot.spaces.action_dim()).collect(),
            ..StepRecord::default()
        })?;
    }
    let folder = options.folder.join(format!("robot-{steps}"));
    std::fs::create_dir_all(&folder).map_err(RuntimeError::file(&folder))?;
    let (spool, mut mark, mut times) = (Spool::open(&folder)?, None, Vec::new());
    for _ in 0..options.rounds {
        let begin = precise();
        let (message, _) = spool.batch(&store, mark, steps + 1);
        let answer = robot.ask(&format!("records/robot-{steps}"), message, PATIENCE)?;
        mark = Answer::decode(&answer).map_err(FleetError::from)?.mark;
        times.push(ms(begin));
    }
    let total: f64 = times.iter().sum::<f64>() / 1000.0;
    let per_second = f64::from(options.rounds) * steps as f64 / total;
    let (p50_ms, p99_ms) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    Ok(FleetRow { what: "steps", size: steps as u64, p50_ms, p99_ms, blocked_p50_ms: 0.0, per_second })
}

fn publish(
    rounds: u32,
    learner: &Link,
    shelf: &Shelf,
    robot: &Link,
    announced: &Receiver<Vec<u8>>,
    size: usize,
) -> Result<FleetRow, RuntimeError> {
    let (mut times, mut blocked) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // No two policies alike, and none that compresses.
        let content =
            (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(round) >> 11) as u8).collect();
        let parcel = Parcel { files: vec![("policy.onnx".into(), content)] };
        let begin = precise();
        let (bytes, offer) = parcel.encode(round);
        shelf.put(offer, bytes);
        learner.tell("policy", Answer { mark: None, offer: Some(offer) }.encode());
        blocked.push(ms(begin));
        let Ok(message) = announced.recv_timeout(PATIENCE) else {
            return Err(FleetError::Silent { key: "policy".into() }.into());
        };
        let offer = Answer::decode(&message).map_err(FleetError::from)?.offer.unwrap_or(offer);
        let mut arrived = Vec::new();
        while (arrived.len() as u64) < offer.size {
            let request = ChunkRequest { hash: offer.hash, offset: arrived.len() as u64 };
            arrived.extend(robot.ask("policy", request.encode(), PATIENCE)?);
        }
        Parcel::decode(&arrived, &offer).map_err(FleetError::from)?;
        times.push(ms(begin));
    }
    let per_second = f64::from(rounds) * size as f64 / 1e6 / (times.iter().sum::<f64>() / 1000.0);
    let (p50_ms, p99_ms) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    let blocked_p50_ms = quantile(&mut blocked, 0.5);
    Ok(FleetRow { what: "policy", size: size as u64, p50_ms, p99_ms, blocked_p50_ms, per_second })
}

fn ms(begin: Duration) -> f64 {
    precise().saturating_sub(begin).as_secs_f64() * 1000.0
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
