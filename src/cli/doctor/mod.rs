//! `fieldtune doctor`.

mod configuration;
mod disk;
mod machine;
mod power;

use std::path::{Path, PathBuf};

use fieldtune::config::ThermalConfig;
use serde::Serialize;

/// Check this machine for real-time work. Every finding comes with the command that mends it.
///
/// Exit code 1 when something has to be mended; what is only advised does not count.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Also check a configuration: policy, robot, ONNX Runtime, CUDA, offline data, disk.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Root of the file system to look at, for tests.
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// Works, and would work better.
    Advice,
    /// In the way of real-time work.
    Mend,
}

impl Level {
    fn mend_unless(ok: bool) -> Self {
        if ok { Self::Ok } else { Self::Mend }
    }

    fn advise_unless(ok: bool) -> Self {
        if ok { Self::Ok } else { Self::Advice }
    }
}

#[derive(Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    remedy: String,
}

impl Finding {
    fn new(check: &'static str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level, found: found.into(), remedy: remedy.into() }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let config = args.config.as_ref().map(|path| fieldtune::config::load(path, &[])).transpose()?;
    let root = Root(&args.root);
    let mut findings = machine::look(&root, config.as_ref().map_or(-1, |config| config.realtime.cpu));
    let thermal = config.as_ref().map_or_else(ThermalConfig::default, |config| config.thermal.clone());
    findings.push(power::temperature(&root, &thermal));
    if let Some(config) = &config {
        findings.push(power::memory(&root, config));
        findings.extend(configuration::look(&root, config));
        findings.extend(disk::look(&root, config));
    }
    if args.json {
        say!("{}", serde_json::to_string(&findings)?);
    } else {
        print(&findings);
    }
    Ok(findings.iter().all(|finding| finding.level != Level::Mend))
}

fn print(findings: &[Finding]) {
    for f in findings {
        let word = match f.level {
            Level::Ok => "ok",
            Level::Advice => "hint",
            Level::Mend => "MEND",
        };
        say!("{word:<4} {:<22} {}", f.check, f.found);
        if f.level != Level::Ok {
            say!("     {:<22} {}", "", f.remedy);
        }
    }
}

/// The file system to look at.
struct Root<'a>(&'a Path);

impl Root<'_> {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Contents of a file without the white space around it.
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Names in a folder, sorted.
    fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
