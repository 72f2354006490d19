//! `fieldtune watch`: asks the running process, follows its metrics, and draws both in [`view`].

mod view;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::ensure;
use fieldtune::clock::{Stamp, monotonic};
use fieldtune::runtime::{Request, ask_within};
use fieldtune::spaces::Outcome;
use fieldtune::telemetry::Follower;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use serde_json::Value;

/// Show in the terminal how a running process is doing.
///
/// Rates, wake-up latency, returns, learner and faults, from the control socket and the metrics of the run folder.
/// A process that ends or is started again is waited for. Keys: s ends the episode under way as a success, f as a
/// failure, q quits; otherwise it only looks and the process does not notice.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder of the run (run.directory).
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// Seconds between two looks, 0.1 to 60.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    every: f64,
}

/// Longest wait for the process's answer: the keyboard waits with it.
const PATIENCE: Duration = Duration::from_millis(300);
/// Time over which rates are measured.
const WINDOW: Duration = Duration::from_secs(5);
/// Time between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(100);

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.every >= 0.1 && args.every <= 60.0, "--every must lie in 0.1 to 60 seconds");
    ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "watch needs a terminal; use `fieldtune status --json --run {}` elsewhere",
        args.run.display()
    );
    let stop = super::stop_on_signal()?;
    let every = Duration::from_secs_f64(args.every);
    let mut watched = Watched::new(&args.run);
    let mut terminal = ratatui::try_init()?;
    let outcome = loop {
        watched.look();
        let next = monotonic().plus(every);
        let drawn = terminal.draw(|frame| view::draw(frame, &watched.view()));
        if let Err(error) = drawn.map(|_| ()).or_else(quiet_end) {
            break Err(error);
        }
        match quits_before(next, &args.run, || stop.load(Relaxed)) {
            Ok(false) => {}
            done => break done.map(|_| ()),
        }
    };
    ratatui::restore();
    Ok(outcome?)
}

/// A terminal that was closed needs no error.
fn quiet_end(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

/// Waits until `next` and does what the keys say; true when the operator wants to leave. A changed window size ends the wait.
fn quits_before(next: Stamp, run: &Path, stopped: impl Fn() -> bool) -> std::io::Result<bool> {
    loop {
        let left = next.since(monotonic());
        if stopped() {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
        if !event::poll(left.min(KEYS))? {
            continue;
        }
        match event::read()? {
            Event::Key(key) => {
                let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
                let outcome = match key.code {
                    KeyCode::Char('s') => Some(Outcome::Success),
                    KeyCode::Char('f') => Some(Outcome::Failure),
                    _ => None,
                };
                if let Some(outcome) = outcome {
                    // The next look shows whether it was heard: `successes` and `task_failures`.
                    let _ = ask_within(run, &Request::Label { outcome, episode: None }, PATIENCE);
                    return Ok(false);
                }
            }
            Event::Resize(..) => return Ok(false),
            _ => {}
        }
    }
}

/// Counters at one moment.
type Sample = (Stamp, [u64; 4]);

/// What is known of the process.
struct Watched {
    folder: PathBuf,
    follower: Follower,
    status: Value,
    running: bool,
    unreadable: Option<String>,
    samples: VecDeque<Sample>,
}

impl Watched {
    fn new(folder: &std::path::Path) -> Self {
        Self {
            folder: folder.to_owned(),
            follower: Follower::new(&folder.join("metrics.jsonl")),
            status: Value::Null,
            running: false,
            unreadable: None,
            samples: VecDeque::new(),
        }
    }

    fn look(&mut self) {
        self.unreadable = self.follower.poll().err().map(|error| format!("metrics.jsonl: {error}"));
        if let Ok(reply) = ask_within(&self.folder, &Request::Status, PATIENCE) {
            self.status = reply.status;
            self.running = true;
            let count = |key: &str| self.status.pointer(key).and_then(Value::as_u64).unwrap_or(0);
            sample(
                &mut self.samples,
                (monotonic(), [count("/ticks"), count("/steps"), count("/updates"), count("/camera/frames")]),
            );
        } else {
            self.running = false;
            self.samples.clear();
        }
    }

    fn view(&self) -> view::View<'_> {
        view::View {
            folder: self.folder.display().to_string(),
            running: self.running,
            status: &self.status,
            rates: rates(&self.samples),
            history: self.follower.history(),
            unreadable: self.unreadable.as_deref(),
        }
    }
}

/// Adds a sample and forgets those that are too old, or were taken of a process before this one.
fn sample(samples: &mut VecDeque<Sample>, new: Sample) {
    if samples.back().is_some_and(|(_, old)| old[0] > new.1[0]) {
        samples.clear();
    }
    samples.push_back(new);
    while samples.len() > 2 && new.0.since(samples[0].0) > WINDOW {
        samples.pop_front();
    }
}

/// Ticks, steps, updates and camera frames per second.
fn rates(samples: &VecDeque<Sample>) -> Option<[f64; 4]> {
    let ((begin, first), (end, last)) = (samples.front()?, samples.back()?);
    let seconds = end.since(*begin).as_secs_f64();
    (seconds > 0.0).then(|| std::array::from_fn(|i| last[i].saturating_sub(first[i]) as f64 / seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds_of_one_process() {
        let mut samples = VecDeque::new();
        let at = |s: u64| Stamp(s * 1_000_000);
        sample(&mut samples, (at(1), [20, 10, 0, 0]));
        assert_eq!(rates(&samples), None);
        sample(&mut samples, (at(3), [60, 50, 100, 60]));
        assert_eq!(rates(&samples), Some([20.0, 20.0, 50.0, 30.0]));
        sample(&mut samples, (at(30), [600, 590, 100, 600]));
        assert_eq!(samples.len(), 2, "the oldest is too old");
        sample(&mut samples, (at(31), [5, 600, 120, 1]));
        assert_eq!(rates(&samples), None, "a new process");
    }
}
