//! Promise: imports between the modules of this crate point down only.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of every top-level module. Modules of one layer never import each other.
const LAYERS: &[(&str, u8)] = &[
    ("clock", 0),
    ("kernels", 0),
    ("pixels", 0),
    ("spaces", 0),
    ("config", 1),
    ("telemetry", 1),
    ("episode", 1),
    ("nn", 1),
    ("camera", 2),
    ("robot", 2),
    ("policy", 2),
    ("replay", 2),
    ("fleet", 3),
    ("rl", 3),
    ("control", 4),
    ("golden", 4),
    ("learner", 4),
    ("runtime", 5),
];

/// Sideways imports that are allowed, each with its reason.
const ALLOWED: &[(&str, &str)] = &[
    // The typed configuration speaks of the bounds of a network's output.
    ("config", "nn"),
];

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Top-level modules that `text` names behind `crate::`, groups (`crate::{a, b::c}`) included.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                c if c.is_alphabetic() && start => {
                    found.push(word(&group[i..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn complaints(module: &str, text: &str) -> Vec<String> {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let Some(own) = layers.get(module) else {
        return vec![format!("module `{module}` has no layer: add it to LAYERS and to the map in lib.rs")];
    };
    let mut complaints = Vec::new();
    for import in imports(text) {
        let Some(other) = layers.get(import.as_str()) else { continue };
        if import != module && other >= own && !ALLOWED.contains(&(module, import.as_str())) {
            complaints.push(format!("`{module}` (layer {own}) imports `{import}` (layer {other})"));
        }
    }
    complaints
}

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut found = Vec::new();
    let mut read = 0;
    for path in all {
        let inside = path.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if matches!(module, "lib" | "main" | "cli") {
            continue;
        }
        read += 1;
        for complaint in complaints(module, &fs::read_to_string(&path).unwrap()) {
            found.push(format!("{}: {complaint}", inside.display()));
        }
    }
    assert!(read > 20, "only {read} files read");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_sees_forbidden_imports() {
    assert_eq!(complaints("replay", "use crate::policy::Bundle;").len(), 1, "sideways");
    assert_eq!(complaints("nn", "use crate::{config::Config, runtime};").len(), 2, "in a group, sideways and up");
    assert_eq!(complaints("control", "crate::learner::Learner::new()").len(), 1, "in a path");
    assert_eq!(complaints("fresh", "").len(), 1, "unlisted");
    assert!(complaints("control", "use crate::robot::Robot; use crate::control::swap;").is_empty());
}

#[test]
fn anyhow_stays_in_the_command_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    for path in all.iter().filter(|p| !p.starts_with(root.join("cli"))) {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("anyhow::"), "{} uses anyhow", path.display());
    }
}
