//! `fieldtune collect`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, ensure};
use fieldtune::clock::{Stamp, monotonic};
use fieldtune::config::{Config, Exploration};
use fieldtune::episode::write_npz;
use fieldtune::runtime::{self, ActionSource, Event, Hand, Observer, Request, RunOptions, ask_within};
use fieldtune::spaces::Outcome;
use fieldtune::telemetry::{ControlCounters, Report};

use super::gamepad::{Gamepad, Moved};
use super::keys::{Key, Keys};
use super::progress::Progress;
use super::{ConfigArgs, stop_on_signal, this_program, write_json};

/// Record episodes without learning.
///
/// Every step is durable in run.directory as it happens; a recording that was interrupted goes on from there. The
/// folder serves as replay.offline of a run, and for `replay` and `data export`. On a terminal, s ends the episode
/// as a success, f as a failure, q ends the recording.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Who chooses the actions.
    #[arg(long, value_enum, default_value_t = By::Policy)]
    by: By,
    /// Table of actions for --by script: one line per step, entries in [-1, 1] with commas between them. It begins again
    /// at its end.
    #[arg(long, value_name = "FILE.csv", required_if_eq("by", "script"))]
    script: Option<PathBuf>,
    /// Device of the controller for --by gamepad.
    #[arg(long, value_name = "DEVICE", default_value = "/dev/input/js0")]
    gamepad: PathBuf,
    /// Noise of the policy: standard deviation before tanh in place of its own (policy.action_noise).
    #[arg(long, value_name = "STD")]
    noise: Option<f32>,
    /// Steps to record in all, instead of run.steps.
    #[arg(long)]
    steps: Option<u64>,
    /// Also write a data set at the end.
    #[arg(long, value_name = "FILE.npz")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// The policy of the configuration, with its exploration.
    Policy,
    /// Chance, uniform in [-1, 1].
    Uniform,
    /// A table.
    Script,
    /// A person at this keyboard: arrows, then j l, i k, u o, n m, each pair for one entry of the action.
    Keyboard,
    /// A person at a game controller: its first axis is the first entry of the action, and so on; the first button says
    /// success, the second failure.
    Gamepad,
    /// The robot itself: nothing is commanded, what it says it did is recorded. A simulated one follows its script
    /// (simulator.script).
    Robot,
}

/// Keys that move an entry of the action down and up.
const PAIRS: [(Key, Key); 6] = [
    (Key::Left, Key::Right),
    (Key::Down, Key::Up),
    (Key::Char('j'), Key::Char('l')),
    (Key::Char('k'), Key::Char('i')),
    (Key::Char('u'), Key::Char('o')),
    (Key::Char('n'), Key::Char('m')),
];
/// How far one key moves an entry.
const PUSH: f32 = 0.25;
/// After this time without a key the hand springs back to zero.
const SPRING: Duration = Duration::from_millis(600);

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let config = settings(args)?;
    let hand = Arc::new(Hand::default());
    let source = match args.by {
        By::Policy => ActionSource::Policy,
        By::Uniform => ActionSource::Uniform,
        By::Script => ActionSource::Script(script(args.script.as_deref().unwrap_or(Path::new("")), &config)?),
        By::Keyboard | By::Gamepad => ActionSource::Hand(Arc::clone(&hand)),
        By::Robot => ActionSource::Robot,
    };
    let gamepad = if args.by == By::Gamepad { Some(Gamepad::open(&args.gamepad)?) } else { None };
    let options = RunOptions { source, ..RunOptions::new(this_program()?, stop_on_signal()?) };
    let keys = Keys::open();
    ensure!(keys.is_some() || args.by != By::Keyboard, "--by keyboard needs a terminal on stdin");
    let mut operator = Operator {
        progress: Progress::new(false),
        keys,
        gamepad,
        hand,
        axes: config.robot.spaces.action_dim(),
        entries: if args.by == By::Keyboard { config.robot.spaces.action.clone() } else { Vec::new() },
        moved: monotonic(),
        folder: config.run.directory.clone(),
        stop: Arc::clone(&options.stop),
        said: [0; 2],
    };
    operator.explain();
    let outcome = runtime::run(&config, &options, &mut operator);
    operator.progress.finish();
    drop(operator);
    let report = outcome?;
    write_json(&config.run.directory.join("report.json"), &report)?;
    finish(args, &config, &report)
}

fn settings(args: &Args) -> anyhow::Result<Config> {
    let mut config = args.config.load()?;
    config.learner.enabled = false;
    config.run.evaluate_episodes = 0;
    config.run.steps = args.steps.unwrap_or(config.run.steps);
    if let Some(noise) = args.noise {
        ensure!(args.by == By::Policy, "--noise is noise on a policy's actions; it goes with --by policy");
        ensure!(noise > 0.0 && noise <= 10.0, "--noise {noise}: must lie in (0, 10]");
        config.policy.action_noise = noise;
        config.policy.exploration = Exploration::Stochastic;
    }
    let episodes = config.run.steps / u64::from(config.episode.max_steps);
    ensure!(
        config.run.steps + episodes < config.replay.capacity,
        "replay.capacity ({}) is too small for {} steps: the oldest would be overwritten",
        config.replay.capacity,
        config.run.steps
    );
    let entries = config.robot.spaces.action_dim();
    ensure!(
        args.by != By::Keyboard || entries <= PAIRS.len(),
        "--by keyboard moves at most {} entries of the action, this robot has {entries}",
        PAIRS.len()
    );
    Ok(config)
}

/// The rows of a table of actions.
fn script(path: &Path, config: &Config) -> anyhow::Result<Vec<Vec<f32>>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let wanted = config.robot.spaces.action_dim();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let rows = lines.map(|(number, line)| {
        let row: Option<Vec<f32>> = line.split(',').map(|entry| entry.trim().parse().ok()).collect();
        let row = row.filter(|row| row.len() == wanted && row.iter().all(|value| (-1.0..=1.0).contains(value)));
        row.with_context(|| format!("{}:{}: needs {wanted} numbers in [-1, 1]: {line}", path.display(), number + 1))
    });
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!rows.is_empty(), "{} holds no actions", path.display());
    Ok(rows)
}

fn finish(args: &Args, config: &Config, report: &Report) -> anyhow::Result<bool> {
    let (data, _) = super::data::read(&config.run.directory)?;
    say!("{} steps of {} episodes in {}", data.steps(), data.episode_ends.len(), config.run.directory.display());
    let terminated = data.terminated.iter().filter(|ended| **ended).count();
    say!(
        "  {terminated} ended by the task; in this session {} successes, {} failures, {} steps dropped",
        report.successes,
        report.task_failures,
        report.dropped
    );
    if let Some(out) = &args.out {
        write_npz(out, &data)?;
        say!("  written to {}", out.display());
    }
    if let Some(reason) = &report.stopped {
        say!("the robot was stopped: {reason}");
    }
    report.failures.iter().for_each(|failure| say!("FAILURE {failure}"));
    Ok(report.is_clean())
}

/// The person at the terminal: sees the progress, judges, moves the hand.
struct Operator {
    progress: Progress,
    keys: Option<Keys>,
    gamepad: Option<Gamepad>,
    hand: Arc<Hand>,
    /// Entries of the action.
    axes: usize,
    /// Those that the keyboard moves.
    entries: Vec<String>,
    moved: Stamp,
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    /// Successes and failures that were shown.
    said: [u64; 2],
}

impl Operator {
    fn explain(&self) {
        if self.keys.is_none() {
            return;
        }
        self.progress.say("keys: s ends the episode as a success, f as a failure, q ends the recording");
        let name = |key: &Key| match key {
            Key::Char(letter) => letter.to_string(),
            key => format!("{key:?}").to_lowercase(),
        };
        for ((down, up), entry) in PAIRS.iter().zip(&self.entries) {
            self.progress.say(&format!("      {:>5} {:<5} {entry} down, up", name(down), name(up)));
        }
        if !self.entries.is_empty() {
            self.progress.say("      space: all to zero, as 0.6 s without a key");
        }
    }

    fn press(&mut self, key: Key) {
        match key {
            Key::Char('q') => self.stop.store(true, Relaxed),
            Key::Char(letter @ ('s' | 'f')) => self.judge(letter == 's'),
            Key::Char(' ') => self.spring(),
            key => self.push(key),
        }
    }

    fn judge(&self, success: bool) {
        let outcome = if success { Outcome::Success } else { Outcome::Failure };
        match ask_within(&self.folder, &Request::Label { outcome, episode: None }, Duration::from_millis(300)) {
            Ok(reply) => self.progress.say(&reply.message),
            Err(error) => self.progress.say(&format!("the word did not arrive, say it again: {error}")),
        }
    }

    /// A controller that is gone leaves the hand at zero.
    fn follow_gamepad(&mut self) {
        let Some(gamepad) = &mut self.gamepad else { return };
        match gamepad.moved() {
            Ok(moves) => moves.into_iter().for_each(|moved| match moved {
                Moved::Axis(axis, place) if axis < self.axes => self.hand.put(axis, place),
                Moved::Button(button @ (0 | 1)) => self.judge(button == 0),
                _ => {}
            }),
            Err(error) => {
                self.gamepad = None;
                self.spring();
                self.progress.say(&format!("the game controller is gone, the action stays at zero: {error}"));
            }
        }
    }

    fn push(&mut self, key: Key) {
        for (entry, (down, up)) in PAIRS.iter().enumerate().take(self.entries.len()) {
            let way = f32::from(i8::from(key == *up) - i8::from(key == *down));
            if way != 0.0 {
                self.hand.put(entry, (self.hand.at(entry) + way * PUSH).clamp(-1.0, 1.0));
                self.moved = monotonic();
            }
        }
    }

    fn spring(&self) {
        (0..self.axes).for_each(|entry| self.hand.put(entry, 0.0));
    }
}

impl Observer for Operator {
    fn event(&mut self, event: &Event) {
        self.progress.event(event);
    }

    fn counters(&mut self, counters: &ControlCounters, updates: u64) {
        let pressed = self.keys.as_ref().map(Keys::pressed).unwrap_or_default();
        for key in pressed {
            self.press(key);
        }
        self.follow_gamepad();
        if !self.entries.is_empty() && monotonic().since(self.moved) > SPRING {
            self.spring();
        }
        let counted = [counters.successes.load(Relaxed), counters.failures.load(Relaxed)];
        if counted != self.said {
            self.said = counted;
            self.progress.say(&format!("{} successes, {} failures so far", counted[0], counted[1]));
        }
        self.progress.counters(counters, updates);
    }

    fn patience(&self) -> Duration {
        let attentive = self.keys.is_some() || self.gamepad.is_some();
        Duration::from_millis(if attentive { 20 } else { 100 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(entries: usize) -> Operator {
        Operator {
            progress: Progress::new(true),
            keys: None,
            gamepad: None,
            hand: Arc::default(),
            axes: entries,
            entries: vec!["u".into(); entries],
            moved: monotonic(),
            folder: PathBuf::new(),
            stop: Arc::default(),
            said: [0; 2],
        }
    }

    #[test]
    fn keys_move_the_hand_within_its_range_and_it_springs_back() {
        let mut operator = operator(2);
        for _ in 0..9 {
            operator.press(Key::Left);
        }
        operator.press(Key::Up);
        operator.press(Key::Char('l'));
        assert_eq!([0, 1, 2].map(|entry| operator.hand.at(entry)), [-1.0, 0.25, 0.0]);
        operator.moved = Stamp(0);
        operator.counters(&ControlCounters::default(), 0);
        assert_eq!([0, 1].map(|entry| operator.hand.at(entry)), [0.0; 2]);
        operator.press(Key::Char('q'));
        assert!(operator.stop.load(Relaxed));
    }

    #[test]
    fn a_script_that_does_not_fit_is_refused_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = Config::default();
        std::fs::write(&file, "# torque\n0.5\n\n-1\n").unwrap();
        assert_eq!(script(file.path(), &config).unwrap(), [[0.5], [-1.0]]);
        for (text, line) in [("0.5\n1.5\n", ":2:"), ("nan", ":1:"), ("0,0", ":1:"), ("", "no actions")] {
            std::fs::write(&file, text).unwrap();
            let error = script(file.path(), &config).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }
}
