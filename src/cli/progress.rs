//! What a person sees of a run while it works.

use std::io::IsTerminal;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fieldtune::clock::{Stamp, monotonic};
use fieldtune::runtime::{Event, Observer};
use fieldtune::telemetry::ControlCounters;
use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar on a terminal, a line every few seconds elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    quiet: bool,
    done: u64,
    total: u64,
    recent: Vec<f64>,
    losses: String,
    last_line: Stamp,
}

/// Time between two lines when the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet;
        let bar = if terminal { ProgressBar::new(1) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} steps, {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            terminal,
            quiet,
            done: 0,
            total: 0,
            recent: Vec::new(),
            losses: String::new(),
            last_line: monotonic(),
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        if self.terminal {
            self.bar.println(line);
        } else if !self.quiet {
            eprintln!("{line}");
        }
    }

    fn summary(&self, counters: &ControlCounters, updates: u64) -> String {
        let last = &self.recent[self.recent.len().saturating_sub(5)..];
        let mean = if last.is_empty() { "-".into() } else { format!("{:.0}", super::mean(last)) };
        format!(
            "return {mean} (last {}), {updates} updates, policy {}, late {}, dropped {}{}",
            last.len(),
            counters.generation.load(Relaxed),
            counters.late.load(Relaxed),
            counters.dropped_steps.load(Relaxed),
            self.losses,
        )
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Note(note) => self.say(note),
            // Also when quiet: nobody could know the token otherwise.
            Event::Serving { url } if self.quiet => eprintln!("live page: {url}"),
            Event::Serving { url } => self.say(&format!("live page: {url}")),
            Event::Begin { done, total } => {
                (self.done, self.total) = (*done, *total);
                self.bar.set_length(*total);
            }
            Event::Episode(episode) => {
                self.recent.push(episode.episode_return);
                let mark = if episode.gapped { " (steps missing)" } else { "" };
                let line = format!(
                    "step {:>7}  episode {:>4}  return {:>9.1}  length {:>4}  policy {}{mark}",
                    episode.at_step, episode.episode, episode.episode_return, episode.length, episode.policy_generation
                );
                self.say(&line);
            }
            Event::Update { metrics, .. } => {
                self.losses = format!(
                    ", critic loss {:.3}, Q {:.1}, alpha {:.3}, offline {:.0} %",
                    metrics.critic_loss,
                    metrics.q_mean,
                    metrics.temperature,
                    100.0 * metrics.offline_share
                );
            }
            // Heat has its line in the log.
            Event::Published { .. } | Event::Diagnosis(_) | Event::Heat { .. } => {}
            Event::Refused { reason } => self.say(&format!("policy refused, the one in use stays: {reason}")),
            Event::RolledBack { generation, reason } => {
                self.say(&format!("policy {generation} has collapsed, the one before is in use again: {reason}"));
            }
            Event::Evaluating { when, done, total } => {
                self.bar.set_message(format!("measuring the policy {when} learning: episode {done} of {total}"));
                if !self.terminal && !self.quiet && monotonic().since(self.last_line) >= LINE_EVERY {
                    self.last_line = monotonic();
                    eprintln!("measuring the policy {when} learning: episode {done} of {total}");
                }
            }
            Event::Evaluated { when, returns } => {
                let each: Vec<_> = returns.iter().map(|r| format!("{r:.0}")).collect();
                self.say(&format!(
                    "{when}: mean return {:.2} over {} episodes ({})",
                    super::mean(returns),
                    returns.len(),
                    each.join(", ")
                ));
            }
        }
    }

    fn counters(&mut self, counters: &ControlCounters, updates: u64) {
        let steps = self.done + counters.steps.load(Relaxed);
        if self.terminal {
            self.bar.set_position(steps);
            self.bar.set_message(self.summary(counters, updates));
        } else if !self.quiet && steps > self.done && monotonic().since(self.last_line) >= LINE_EVERY {
            self.last_line = monotonic();
            eprintln!("{steps}/{} steps  {}", self.total, self.summary(counters, updates));
        }
    }
}
