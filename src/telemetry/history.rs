//! `metrics.jsonl` read back as curves, while it grows or afterwards, whole or damaged.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::series::Series;

/// Curves that share a chart.
#[derive(Debug)]
pub struct Panel {
    /// Heading.
    pub title: &'static str,
    /// Event whose records it shows.
    pub event: &'static str,
    /// Field of the horizontal axis.
    pub x: &'static str,
    /// What the horizontal axis counts.
    pub x_label: &'static str,
    /// Names and JSON pointers of the curves.
    pub curves: &'static [(&'static str, &'static str)],
}

const fn of_updates(title: &'static str, curves: &'static [(&'static str, &'static str)]) -> Panel {
    Panel { title, event: "update", x: "updates", x_label: "learner updates", curves }
}

const fn of_episodes(title: &'static str, curves: &'static [(&'static str, &'static str)]) -> Panel {
    Panel { title, event: "episode", x: "at_step", x_label: "control steps", curves }
}

/// Everything that is drawn of a run.
pub const PANELS: &[Panel] = &[
    of_episodes("Return of each episode", &[("return", "/episode_return")]),
    of_updates("Offline share of the minibatch", &[("offline share", "/offline_share")]),
    of_updates("Q and its target", &[("Q", "/q_mean"), ("target", "/target_mean")]),
    of_updates("Critic loss", &[("critic loss", "/critic_loss")]),
    of_updates("Actor loss", &[("actor loss", "/actor_loss")]),
    of_updates("Entropy temperature", &[("temperature", "/temperature")]),
    of_updates("Entropy of the policy, nats", &[("entropy", "/entropy")]),
    of_updates("Jensen-Shannon estimate, online against offline, nats", &[("JS estimate", "/density/js_estimate")]),
    Panel {
        title: "Calibration gap: Q less the return that followed",
        event: "diagnosis",
        x: "updates",
        x_label: "learner updates",
        curves: &[("calibration gap", "/calibration_gap")],
    },
    of_updates("Disagreement share of the policy's variance", &[("disagreement", "/disagreement_share")]),
    of_episodes("Policy generation", &[("generation", "/policy_generation")]),
];

/// Longest line that is taken for a record; a longer one is damage.
const LONGEST_LINE: usize = 1 << 16;

/// Lines that were no records: how many, and the numbers of the first few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub lines: u64,
    /// Numbers of the first few, from 1.
    pub first: Vec<u64>,
}

/// What a metrics file says.
#[derive(Clone, Debug, Default)]
pub struct History {
    curves: Vec<Vec<Series>>,
    /// Returns of the deterministic episodes before learning.
    pub before: Vec<f64>,
    /// And after.
    pub after: Vec<f64>,
    /// Policies handed over.
    pub published: u64,
    /// Policies refused.
    pub refused: u64,
    /// Why the last one was refused.
    pub last_refusal: Option<String>,
    /// Policies from outside that went back by themselves.
    pub rolled_back: u64,
    /// Why the last one did.
    pub last_roll_back: Option<String>,
    /// Lines read.
    pub lines: u64,
    /// Lines that were no records.
    pub skipped: Skipped,
}

impl History {
    /// The whole file; an unfinished last line counts as skipped.
    ///
    /// # Errors
    /// When the file cannot be read. Damage inside is no error.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let mut follower = Follower::new(path);
        follower.poll()?;
        let Follower { mut history, unfinished, .. } = follower;
        if !unfinished.is_empty() {
            history.line(&unfinished);
        }
        Ok(history)
    }

    /// The episodes and evaluations of a report that was written as JSON.
    pub fn from_report(report: &Value) -> Self {
        let mut history = Self::default();
        let numbers = |key: &str| report[key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        (history.before, history.after) = (numbers("before"), numbers("after"));
        for episode in report["episodes"].as_array().into_iter().flatten() {
            let _ = history.draw("episode", episode);
        }
        history
    }

    /// Curve `curve` of panel `panel` of [`PANELS`].
    pub fn curve(&self, panel: usize, curve: usize) -> Option<&Series> {
        self.curves.get(panel)?.get(curve)
    }

    /// The curve of a name in [`PANELS`].
    pub fn named(&self, name: &str) -> Option<&Series> {
        let mut places = PANELS.iter().enumerate().flat_map(|(p, panel)| (0..panel.curves.len()).map(move |c| (p, c)));
        let (panel, curve) = places.find(|(p, c)| PANELS[*p].curves[*c].0 == name)?;
        self.curve(panel, curve)
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        let record = serde_json::from_slice::<Value>(line).ok();
        if record.and_then(|record| self.record(&record)).is_none() {
            self.skipped.lines += 1;
            if self.skipped.first.len() < 5 {
                self.skipped.first.push(self.lines);
            }
        }
    }

    /// Takes one record; `None` when a field that its event needs is not there.
    fn record(&mut self, record: &Value) -> Option<()> {
        let event = record.get("event")?.as_str()?;
        let numbers = |key: &str| Some(record.get(key)?.as_array()?.iter().filter_map(Value::as_f64).collect());
        match event {
            "evaluated" if record.get("when")? == "before" => self.before = numbers("returns")?,
            "evaluated" => self.after = numbers("returns")?,
            "published" => self.published += 1,
            "refused" => {
                self.refused += 1;
                self.last_refusal = record.get("reason").and_then(Value::as_str).map(str::to_owned);
            }
            "rolled_back" => {
                self.rolled_back += 1;
                self.last_roll_back = record.get("reason").and_then(Value::as_str).map(str::to_owned);
            }
            _ => self.draw(event, record)?,
        }
        Some(())
    }

    fn draw(&mut self, event: &str, record: &Value) -> Option<()> {
        if self.curves.is_empty() {
            self.curves = PANELS.iter().map(|p| vec![Series::default(); p.curves.len()]).collect();
        }
        for (panel, series) in PANELS.iter().zip(&mut self.curves).filter(|(p, _)| p.event == event) {
            let x = record.get(panel.x)?.as_f64()?;
            for ((_, pointer), series) in panel.curves.iter().zip(series) {
                // Absent where the sampler has no density ratio, null where a number is not finite.
                if let Some(y) = record.pointer(pointer).and_then(Value::as_f64) {
                    series.push(x, y);
                }
            }
        }
        Some(())
    }
}

/// Follows a metrics file that grows, is replaced, or is not there yet.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    inode: u64,
    offset: u64,
    unfinished: Vec<u8>,
    history: History,
}

impl Follower {
    /// Nothing is read before [`Self::poll`].
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), inode: 0, offset: 0, unfinished: Vec::new(), history: History::default() }
    }

    /// What was read so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Reads what was added; a file that was replaced or became shorter is read anew.
    ///
    /// # Errors
    /// When the file cannot be read; what was read before stays.
    pub fn poll(&mut self) -> std::io::Result<()> {
        let mut file = File::open(&self.path)?;
        let now = file.metadata()?;
        if now.ino() != self.inode || now.len() < self.offset {
            *self = Self { inode: now.ino(), ..Self::new(&self.path) };
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut chunk = vec![0; 1 << 16];
        loop {
            let n = file.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            self.offset += n as u64;
            self.take(&chunk[..n]);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.unfinished.extend_from_slice(&rest[..end]);
            self.history.line(&self.unfinished);
            self.unfinished.clear();
            rest = &rest[end + 1..];
        }
        // Of a line that is too long only enough is kept to see that it is no record.
        let room = LONGEST_LINE.saturating_sub(self.unfinished.len());
        self.unfinished.extend_from_slice(&rest[..rest.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const EPISODE: &str = r#"{"event":"episode","at_step":200,"episode_return":-900.5,"policy_generation":7}"#;
    const UPDATE: &str = r#"{"event":"update","updates":10,"critic_loss":3.0,"q_mean":null,"offline_share":0.5,"density":{"js_estimate":0.25}}"#;

    #[test]
    fn damaged_and_unfinished_lines_are_skipped_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut bytes = format!("{EPISODE}\n\u{0}\u{0}\n{{\"event\":\"episode\"}}\n{UPDATE}\n").into_bytes();
        bytes.extend([0xff, 0xfe, b'\n']);
        bytes.extend(std::iter::repeat_n(b'[', 300_000));
        bytes.push(b'\n');
        bytes.extend(b"{\"event\":\"later\",\"x\":1}\n");
        bytes.extend(&UPDATE.as_bytes()[..40]);
        std::fs::write(&path, bytes).unwrap();
        let history = History::read(&path).unwrap();
        assert_eq!(history.lines, 8);
        assert_eq!(history.skipped, Skipped { lines: 5, first: vec![2, 3, 5, 6, 8] });
        assert_eq!(history.named("return").unwrap().newest(), Some(-900.5));
        assert_eq!(history.named("JS estimate").unwrap().newest(), Some(0.25));
        assert_eq!(history.named("Q").unwrap().newest(), None, "null is no number");
        assert!(history.named("no such curve").is_none());
    }

    #[test]
    fn a_growing_file_is_followed_and_a_new_one_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut follower = Follower::new(&path);
        assert!(follower.poll().is_err(), "not there yet");
        let mut file = File::create(&path).unwrap();
        let (head, tail) = EPISODE.split_at(30);
        write!(file, "{head}").unwrap();
        follower.poll().unwrap();
        assert_eq!(follower.history().lines, 0);
        writeln!(file, "{tail}").unwrap();
        follower.poll().unwrap();
        follower.poll().unwrap();
        assert_eq!((follower.history().lines, follower.history().skipped.lines), (1, 0));

        std::fs::rename(&path, folder.path().join("aside")).unwrap();
        std::fs::write(&path, format!("{UPDATE}\n")).unwrap();
        follower.poll().unwrap();
        assert_eq!(follower.history().lines, 1);
        assert!(follower.history().named("return").unwrap().newest().is_none());
        assert_eq!(follower.history().named("offline share").unwrap().newest(), Some(0.5));
    }
}
