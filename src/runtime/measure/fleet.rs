//! What the way between robots and a learner elsewhere costs: steps there, policies back, over loopback. The learner's
//! side is this process, so that its processor time can be told from that of the robots, which play in another.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use serde::Serialize;

use super::fleet_robots::{Order, PATIENCE, Seen, configuration};
use crate::clock::{precise, process_cpu};
use crate::fleet::{Answer, FleetError, Link, Parcel, Side};
use crate::runtime::hub::{Hub, Shelf, hand_out};
use crate::runtime::parts::{RuntimeError, Shared, open_replay};
use crate::runtime::realtime::spawn;

/// Steps in a message, bytes of a policy, where one robot plays.
const ALONE: (&[u32], &[usize]) = (&[1, 10, 100, 500], &[300_000, 3_000_000, 20_000_000]);
/// The same where several do.
const TOGETHER: (&[u32], &[usize]) = (&[100], &[3_000_000]);

/// What to measure.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Messages of each robot, or policies, per row.
    pub rounds: u32,
    /// Robots at once, for one group of rows each.
    pub robots: Vec<u32>,
    /// Time from one message of a robot to its next one; zero: the next one follows the answer.
    pub every: Duration,
    /// A folder for the learner's replay.
    pub folder: PathBuf,
    /// A free port of this machine.
    pub port: u16,
    /// What starts [`super::play_robots`].
    pub robots_program: PathBuf,
}

/// One kind of message.
#[derive(Clone, Debug, Serialize)]
pub struct FleetRow {
    /// `steps` or `policy`.
    pub what: &'static str,
    /// Robots at once.
    pub robots: u32,
    /// Steps, or bytes of a policy, per message.
    pub size: u64,
    /// From the call that sends to the answer, or to the whole policy with its hash checked on the last of the robots;
    /// milliseconds, median.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// How long whoever publishes is kept; milliseconds, median. Not for steps.
    pub blocked_p50_ms: f64,
    /// Steps, or megabytes, per second, of all robots together.
    pub per_second: f64,
    /// Processor time of the learner's process per step, or per policy and robot; microseconds.
    pub learner_us: f64,
}

/// Steps in messages of some sizes, then policies, through the learner's own threads. Robots have the dimensions of
/// `HalfCheetah`.
///
/// # Errors
/// When there is no link, no folder, or the robots fail.
pub fn measure_fleet(options: &FleetOptions) -> Result<Vec<FleetRow>, RuntimeError> {
    let learner = LearnerSide::open(options)?;
    let mut rows = Vec::new();
    for &robots in &options.robots {
        let mut others = Robots::start(options, robots)?;
        let (steps, policies) = if robots == 1 { ALONE } else { TOGETHER };
        for &count in steps {
            rows.push(others.send_steps(options, count)?);
        }
        for &size in policies {
            rows.push(learner.publish(options.rounds, &others, size)?);
        }
    }
    learner.close();
    Ok(rows)
}

/// The learner's threads, without a learner.
struct LearnerSide {
    link: Arc<Link>,
    shelf: Arc<Shelf>,
    shared: Arc<Shared>,
    threads: [JoinHandle<Option<()>>; 2],
}

impl LearnerSide {
    fn open(options: &FleetOptions) -> Result<Self, RuntimeError> {
        let config = configuration(&options.folder, options.port);
        let shared = Shared::new(bounded(1).0, Arc::new(AtomicBool::new(false)));
        let replay = Arc::new(Mutex::new(open_replay(&config)?));
        let hub = Hub::open(&config, &replay, &shared)?;
        let link = Arc::new(Link::open(&config.fleet, Side::Learner)?);
        let (batches, pieces) = (link.requests("records/*")?, link.requests("policy")?);
        let shelf = Arc::new(Shelf::default());
        let (own, other) = (Arc::clone(&shelf), Arc::clone(&shelf));
        let ending = Arc::clone(&shared);
        let threads = [
            spawn("intake", &shared, move || hub.serve(&batches, &own, &bounded(0).0))?,
            spawn("shelf", &shared, move || hand_out(&ending, &other, &pieces))?,
        ];
        Ok(Self { link, shelf, shared, threads })
    }

    fn publish(&self, rounds: u32, robots: &Robots, size: usize) -> Result<FleetRow, RuntimeError> {
        let (mut times, mut blocked, mut cpu) = (Vec::new(), Vec::new(), Duration::ZERO);
        for round in 0..rounds {
            // No two policies alike, and none that compresses.
            let content =
                (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(round) >> 11) as u8).collect();
            let parcel = Parcel { files: vec![("policy.onnx".into(), content)] };
            let (begin, cpu_before) = (precise(), process_cpu());
            let (bytes, offer) = parcel.encode(round);
            self.shelf.put(offer, bytes);
            self.link.tell("policy", Answer { mark: None, offer: Some(offer) }.encode());
            blocked.push(ms(precise().saturating_sub(begin)));
            let mut last = begin;
            for _ in 0..robots.count {
                let Seen::Policy { at } = robots.next(PATIENCE)? else { return Err(Robots::lost()) };
                last = last.max(at);
            }
            cpu += process_cpu().saturating_sub(cpu_before);
            times.push(ms(last.saturating_sub(begin)));
        }
        let sent = f64::from(rounds) * f64::from(robots.count);
        let per_second = sent * size as f64 / 1e6 / (times.iter().sum::<f64>() / 1000.0);
        let learner_us = cpu.as_secs_f64() * 1e6 / sent;
        let row = row("policy", robots.count, size as u64, &mut times);
        Ok(FleetRow { blocked_p50_ms: quantile(&mut blocked, 0.5), per_second, learner_us, ..row })
    }

    fn close(self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Robots in a process of their own; killed when dropped.
struct Robots {
    child: Child,
    orders: Option<ChildStdin>,
    seen: Receiver<Seen>,
    count: u32,
}

impl Robots {
    fn start(options: &FleetOptions, count: u32) -> Result<Self, RuntimeError> {
        let mut child = Command::new(&options.robots_program)
            .args(["bench", "fleet", "--play-robots"])
            .args(["--robots", &count.to_string(), "--port", &options.port.to_string(), "--folder"])
            .arg(options.folder.join(format!("robots-{count}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(RuntimeError::file(&options.robots_program))?;
        let (orders, lines) = (child.stdin.take(), child.stdout.take());
        let (sender, seen) = bounded(1);
        // Ends with the pipe, when the robots do.
        let read = move || {
            for line in lines.into_iter().flat_map(|lines| BufReader::new(lines).lines()).map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else { return };
                let _ = sender.send(line);
            }
        };
        Builder::new().name("robots".into()).spawn(read).map_err(RuntimeError::file("robots".as_ref()))?;
        let robots = Self { child, orders, seen, count };
        let Seen::Ready = robots.next(PATIENCE * 6)? else { return Err(Self::lost()) };
        Ok(robots)
    }

    fn next(&self, patience: Duration) -> Result<Seen, RuntimeError> {
        self.seen.recv_timeout(patience).map_err(|_| Self::lost())
    }

    fn lost() -> RuntimeError {
        FleetError::Silent { key: "the robots' process".into() }.into()
    }

    fn send_steps(&mut self, options: &FleetOptions, count: u32) -> Result<FleetRow, RuntimeError> {
        let order = Order { count, rounds: options.rounds, every: options.every };
        let line = serde_json::to_string(&order).unwrap_or_default();
        let cpu = process_cpu();
        let written = self.orders.as_mut().map(|orders| writeln!(orders, "{line}"));
        if !matches!(written, Some(Ok(()))) {
            return Err(Self::lost());
        }
        let answer = self.next(PATIENCE * 6 + options.every * options.rounds)?;
        let Seen::Steps { mut times, seconds } = answer else { return Err(Self::lost()) };
        let steps = times.len() as f64 * f64::from(count);
        let learner_us = process_cpu().saturating_sub(cpu).as_secs_f64() * 1e6 / steps;
        let row = row("steps", self.count, count.into(), &mut times);
        Ok(FleetRow { per_second: steps / seconds, learner_us, ..row })
    }
}

impl Drop for Robots {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn row(what: &'static str, robots: u32, size: u64, times: &mut [f64]) -> FleetRow {
    let (p50_ms, p99_ms) = (quantile(times, 0.5), quantile(times, 0.99));
    FleetRow { what, robots, size, p50_ms, p99_ms, blocked_p50_ms: 0.0, per_second: 0.0, learner_us: 0.0 }
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
