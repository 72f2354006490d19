//! Reading configuration text: every problem at once, each with its file and line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::{Config, check, method};

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File and line, `command line`, or `default`.
    pub place: String,
    /// `section.key`, empty for a syntax error.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}: {}{gap}{}", self.place, self.key, self.message)
    }
}

/// A configuration that was refused; nothing of it was applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// All problems that were found.
    #[error("{} in the configuration:\n  {}", count(.0.len()), list(.0))]
    Refused(Vec<Problem>),
}

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".into() } else { format!("{problems} problems") }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// Reads `path` and then `overrides` (`section.key=value`) on top of the defaults and of the preset that they name.
///
/// # Errors
/// When the file cannot be read, or with every problem of file and overrides together.
pub fn load(path: &Path, overrides: &[String]) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: file.clone(), source })?;
    parse(&file, &text, overrides)
}

/// [`load`] on text; `file` names it in messages.
///
/// # Errors
/// [`ConfigError::Refused`] with every problem.
pub fn parse(file: &str, text: &str, overrides: &[String]) -> Result<Config, ConfigError> {
    let mut reader = Reader::default();
    reader.read(text, |line| format!("{file}:{line}"));
    for setting in overrides {
        reader.read(&quoted(setting), |_| format!("--set {setting}"));
    }
    reader.read_method();
    let mut problems = reader.problems;
    // Keys that are wrong by themselves are left out, so that the ranges of all others are reported too.
    let config = Config::deserialize(reader.merged).map_err(|error| Problem {
        place: file.into(),
        key: String::new(),
        message: error.message().into(),
    });
    match config {
        Ok(config) => {
            problems.extend(check::check(&config).into_iter().map(|mut problem| {
                let place = reader.places.get(&problem.key).map_or("default", String::as_str);
                place.clone_into(&mut problem.place);
                problem
            }));
            if problems.is_empty() {
                return Ok(config);
            }
        }
        Err(problem) => problems.push(problem),
    }
    Err(ConfigError::Refused(problems))
}

impl Config {
    /// Every key with its value, as a file that [`load`] reads to the same configuration. The preset is not named:
    /// what it set is there.
    pub fn to_toml(&self) -> String {
        let mut all = self.clone();
        all.run.method.clear();
        let text = toml::to_string(&all).unwrap_or_else(|error| format!("# {error}\n"));
        format!("# Every key of the run in this folder, as its last process had it.\n{text}")
    }
}

/// `key=value` as TOML: a value that is no TOML by itself is taken as a string, so that paths need no quotes.
fn quoted(setting: &str) -> String {
    if setting.parse::<toml::Table>().is_ok() {
        return setting.to_owned();
    }
    match setting.split_once('=') {
        Some((key, value)) => format!("{key} = {:?}", value.trim()),
        None => setting.to_owned(),
    }
}

#[derive(Default)]
struct Reader {
    merged: toml::Table,
    places: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Reader {
    /// Takes every `section.key` of `text` that is right by itself; the others become problems.
    fn read(&mut self, text: &str, place: impl Fn(usize) -> String) {
        let line = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            self.problem(place(line(error.span().map_or(0, |s| s.start))), "", error.message());
        }
        if !errors.is_empty() {
            return;
        }
        let values: toml::Table = text.parse().unwrap_or_default();
        for (section, value) in document.get_ref() {
            let section_name = section.get_ref().as_ref();
            let DeValue::Table(table) = value.get_ref() else {
                let at = place(line(section.span().start));
                self.problem(at, section_name, "not a section; write it as [section]");
                continue;
            };
            for key in table.keys() {
                let name = format!("{section_name}.{}", key.get_ref());
                let at = place(line(key.span().start));
                let Some(value) = values.get(section_name).and_then(|s| s.get(key.get_ref().as_ref())) else {
                    continue;
                };
                if let Err(message) = single(section_name, key.get_ref(), value) {
                    self.problem(at, &name, &message);
                    continue;
                }
                let entry = self.merged.entry(section_name).or_insert_with(|| toml::Table::new().into());
                if let toml::Value::Table(keys) = entry {
                    keys.insert(key.get_ref().to_string(), value.clone());
                }
                self.places.insert(name, at);
            }
        }
    }

    /// Puts the preset that `run.method` names under what was read so far.
    fn read_method(&mut self) {
        let Some(name) = self.merged.get("run").and_then(|run| run.get("method")?.as_str()) else { return };
        if name.is_empty() {
            return;
        }
        let mut preset = Self::default();
        match method::read(name) {
            Ok((place, text)) => preset.read(&text, |line| format!("{place}:{line}")),
            Err(why) => {
                let at = self.places.get("run.method").cloned().unwrap_or_default();
                self.problem(at, "run.method", &why);
            }
        }
        if let Some(at) = preset.places.get("run.method").cloned() {
            preset.problem(at, "run.method", "a preset cannot name another");
        }
        for (section, keys) in preset.merged {
            let (toml::Value::Table(own), toml::Value::Table(keys)) =
                (self.merged.entry(section).or_insert_with(|| toml::Table::new().into()), keys)
            else {
                continue;
            };
            for (key, value) in keys {
                own.entry(key).or_insert(value);
            }
        }
        for (key, place) in preset.places {
            self.places.entry(key).or_insert(place);
        }
        self.problems.append(&mut preset.problems);
    }

    fn problem(&mut self, place: String, key: &str, message: &str) {
        self.problems.push(Problem { place, key: key.into(), message: message.trim().replace('\n', " ") });
    }
}

/// Whether a configuration with only this key is accepted; if not, why.
fn single(section: &str, key: &str, value: &toml::Value) -> Result<(), String> {
    let keys = toml::Table::from_iter([(key.to_owned(), value.clone())]);
    let table = toml::Table::from_iter([(section.to_owned(), keys.into())]);
    Config::deserialize(table).map(drop).map_err(|e| e.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_TOML;

    fn problems(text: &str, overrides: &[&str]) -> Vec<Problem> {
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        match parse("robot.toml", text, &overrides) {
            Err(ConfigError::Refused(problems)) => problems,
            other => panic!("expected problems, got {other:?}"),
        }
    }

    #[test]
    fn default_file_equals_the_defaults_of_the_code_and_names_every_key() {
        assert_eq!(parse("default.toml", DEFAULT_TOML, &[]).unwrap(), Config::default());
        let written: toml::Table = DEFAULT_TOML.parse().unwrap();
        let code = toml::Table::try_from(Config::default()).unwrap();
        for (section, keys) in &code {
            for key in keys.as_table().unwrap().keys() {
                assert!(written[section].get(key).is_some(), "{section}.{key} is not in default.toml");
            }
        }
    }

    #[test]
    fn every_problem_is_reported_with_its_line() {
        let found = problems("[run]\nsteps = \"many\"\nsped = 3\n\n[learner]\ndiscount = 2.0\n", &["robot.colour=red"]);
        let text = list(&found);
        assert!(text.contains("robot.toml:2: run.steps"), "{text}");
        assert!(text.contains("robot.toml:3: run.sped: unknown field `sped`"), "{text}");
        assert!(text.contains("--set robot.colour=red"), "{text}");
        assert!(text.contains("robot.toml:6: learner.discount: 2: must lie in (0, 1)"), "{text}");
        assert_eq!(found.len(), 4, "{text}");
        let ranges = problems("[run]\nsteps = 0\n[learner]\ndiscount = nan\n", &[]);
        assert_eq!(ranges.len(), 2, "{}", list(&ranges));
        assert_eq!(ranges[1].place, "robot.toml:4");
    }

    #[test]
    fn overrides_take_plain_paths_and_nested_tables_are_read() {
        let text = "[robot.spaces]\nobservation = [\"x_m\"]\naction = [\"force\"]\n[robot]\nname = \"cart\"\n";
        let config = parse("f", text, &["policy.bundle=models/cart".into(), "run.seed=7".into()]).unwrap();
        assert_eq!(config.robot.spaces.observation, ["x_m"]);
        assert_eq!(config.policy.bundle.to_str(), Some("models/cart"));
        assert_eq!(config.run.seed, 7);
    }

    /// 17 observation and 6 action entries: a STATE of 139 bytes, 1390 bits.
    #[test]
    fn a_serial_line_is_filled_to_seventy_percent_at_most() {
        let names = |prefix: &str, n: usize| (0..n).map(|i| format!("\"{prefix}{i}\"")).collect::<Vec<_>>().join(", ");
        let serial = |baud: u32, hz: u32| {
            let spaces = format!("{{ observation = [{}], action = [{}] }}", names("x", 17), names("u", 6));
            let robot = format!("control_hz = {hz}\nlink = \"serial\"\nbaud = {baud}\nspaces = {spaces}");
            parse("robot.toml", &format!("[robot]\n{robot}\n"), &[])
        };
        for (baud, hz, fits) in [(921_600, 400, true), (921_600, 500, false), (3_000_000, 1000, true), (0, 1, false)] {
            let found = serial(baud, hz);
            assert_eq!(found.is_ok(), fits, "{baud} {hz}: {found:?}");
        }
        let text = serial(921_600, 500).unwrap_err().to_string();
        assert!(text.contains("robot.toml:4: robot.baud") && text.contains("76 % of the line"), "{text}");
        assert!(text.contains("999000 bits per second"), "{text}");
    }

    #[test]
    fn syntax_errors_name_the_line() {
        assert_eq!(problems("[run]\nseed = = 3\n", &[])[0].place, "robot.toml:2");
        assert_eq!(problems("seed = 3\n", &[])[0].key, "seed");
    }
}
