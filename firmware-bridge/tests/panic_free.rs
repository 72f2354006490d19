//! Promise: nothing a microcontroller calls can panic. The linker throws away what is not reached; what is left of the
//! probe must not know `core::panicking`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds and links the probe; the bytes of the program.
fn linked(name: &str, features: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("probe"));
    cargo.args(["build", "--release", "--locked", "--features", features, "--target-dir"]).arg(&folder);
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program: PathBuf = folder.join("probe");
    let mut cc = Command::new("cc");
    cc.args(["-nostartfiles", "-Wl,--gc-sections", "-Wl,-e,probe", "-o"]).arg(&program);
    let linked = cc.arg(folder.join("release/libprobe.a")).output().unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    std::fs::read(program).unwrap()
}

fn knows(program: &[u8], word: &str) -> bool {
    program.windows(word.len()).any(|window| window == word.as_bytes())
}

#[test]
fn no_panic_is_reachable() {
    if Command::new("cc").arg("--version").output().is_err() {
        eprintln!("skipped: the search for panics needs a C linker (cc)");
        return;
    }
    let clean = linked("probe", "");
    assert!(knows(&clean, "probe"), "the symbols are there");
    assert!(!knows(&clean, "panicking"), "something in firmware-bridge can panic; see nm of the probe");
    assert!(knows(&linked("probe-panics", "panics"), "panicking"), "the search finds a panic that is there");
}
