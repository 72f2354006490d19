//! `fieldtune data export RUN --out FILE.mcap`.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, ensure};
use fieldtune::config;
use fieldtune::policy::manifest::Manifest;
use fieldtune::replay::{Store, open_damaged};
use fieldtune::spaces::{Spaces, StepRecord};
use fieldtune::telemetry::StepLog;

/// Every readable record of a buffer, oldest first.
pub(super) fn export(source: &Path, out: &Path, names: Option<&Path>) -> anyhow::Result<bool> {
    let missing = "has no time stamps: an MCAP log is made from a run or replay folder";
    ensure!(!source.is_file(), "{} {missing}", source.display());
    let store = open_damaged(&super::folder(source))?;
    let spaces = spaces(&store, names.unwrap_or(source), names.is_some())?;
    let file = File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut log = StepLog::new(BufWriter::new(file), spaces)?;
    let mut record = StepRecord::default();
    let mut bad = 0;
    if !store.is_empty() {
        for sequence in store.first_sequence()..=store.last_sequence() {
            match store.record(sequence, &mut record) {
                Ok(()) => log.step(&record)?,
                Err(_) => bad += 1,
            }
        }
    }
    say!("{} records written to {}", log.finish()?, out.display());
    if bad > 0 {
        say!("{bad} bad records are left out");
    }
    Ok(bad == 0)
}

/// Names of the entries: those of the bundle where it fits the buffer, else numbers.
fn spaces(store: &Store, source: &Path, asked: bool) -> anyhow::Result<Spaces> {
    let layout = store.layout();
    let inner = source.join("bundle");
    let manifest = if inner.is_dir() { &inner } else { source }.join("manifest.toml");
    let found = match std::fs::read_to_string(&manifest) {
        Ok(text) => {
            Some(Manifest::from_text(&text).with_context(|| manifest.display().to_string())?.description.spaces)
        }
        Err(error) if asked => return Err(error).with_context(|| format!("cannot read {}", manifest.display())),
        // A recording without a bundle knows them from its configuration.
        Err(_) => config::load(&source.join("config.toml"), &[]).ok().map(|config| config.robot.spaces),
    };
    if let Some(spaces) = found.filter(|s| s.schema_hash() == layout.schema_hash) {
        return Ok(spaces);
    }
    ensure!(!asked, "{} names another robot than the buffer's", manifest.display());
    say!("names are not known, entries are numbered; --names BUNDLE gives them");
    let numbered = |kind: &str, n: usize| (0..n).map(|i| format!("{kind}_{i}")).collect();
    Ok(Spaces {
        observation: numbered("observation", layout.observation_dim),
        action: numbered("action", layout.action_dim),
    })
}
