//! The image: built by whatever toolchain this machine has for the processor.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

const TARGET: &str = "thumbv7em-none-eabihf";

/// Where the repository lies: two folders above this crate.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder with the built images `board` and `limits`.
pub(crate) struct Images(PathBuf);

impl Images {
    /// Path of an image.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Bytes of code and constants of an image, from the program headers of its ELF file.
    pub(crate) fn flash_bytes(&self, name: &str) -> anyhow::Result<u64> {
        let bytes = std::fs::read(self.path(name))?;
        let number = |at: usize, len: usize| -> u64 {
            let field = bytes.get(at..at + len).unwrap_or_default();
            field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        ensure!(bytes.starts_with(b"\x7fELF\x01\x01"), "{name} is not a 32-bit little-endian ELF file");
        let (table, size, count) = (number(28, 4), number(42, 2), number(44, 2));
        let sizes = (0..count).map(|i| (table + i * size) as usize).filter(|at| number(*at, 4) == 1);
        Ok(sizes.map(|at| number(at + 16, 4)).sum())
    }

    /// Whether an image knows the word `panicking`: the module of core that every panic goes through.
    pub(crate) fn can_panic(&self, name: &str) -> anyhow::Result<bool> {
        let bytes = std::fs::read(self.path(name))?;
        Ok(bytes.windows(9).any(|window| window == b"panicking"))
    }
}

/// Why nothing can be built here, if so.
pub(crate) fn missing() -> Option<String> {
    if rustup_target() || debian().is_some() {
        return None;
    }
    Some(format!(
        "no compiler for {TARGET}: `rustup target add {TARGET}`, or on Debian `apt-get install rustc-web cargo-web \
         rust-web-src binutils-arm-none-eabi`"
    ))
}

fn rustup_target() -> bool {
    let asked = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    asked.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout);
        Path::new(folder.trim()).read_dir().is_ok_and(|mut files| files.next().is_some())
    })
}

/// Debian's compiler and cargo with the sources of the core library.
fn debian() -> Option<(PathBuf, PathBuf)> {
    let find = |package: &str, end: &str| {
        let listed = Command::new("dpkg").args(["-L", package]).output().ok()?;
        let listed = String::from_utf8(listed.stdout).ok()?;
        listed.lines().find(|line| line.ends_with(end)).map(PathBuf::from)
    };
    find("rust-web-src", "library/core/Cargo.toml")?;
    Some((find("rustc-web", "bin/rustc")?, find("cargo-web", "bin/cargo")?))
}

/// Builds both images.
pub(crate) fn build() -> anyhow::Result<Images> {
    let target = repository().join("target/firmware");
    let mut cargo = Command::new("cargo");
    if !rustup_target() {
        let Some((compiler, debian)) = debian() else { bail!("{}", missing().unwrap_or_default()) };
        cargo = Command::new(debian);
        cargo.env("RUSTC", compiler).env("RUSTC_BOOTSTRAP", "1").args(["-Zbuild-std=core"]);
        // In addition to those of .cargo/config.toml.
        let flags = "-Clinker=arm-none-eabi-ld -Clinker-flavor=ld";
        cargo.env("CARGO_TARGET_THUMBV7EM_NONE_EABIHF_RUSTFLAGS", flags);
    }
    // What the test runner sets is meant for the host's build.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    cargo.current_dir(repository().join("firmware-bridge/board")).args(["build", "--release", "--locked"]);
    let built = cargo.arg("--target-dir").arg(&target).output().context("cargo cannot be started")?;
    ensure!(built.status.success(), "the image does not build:\n{}", String::from_utf8_lossy(&built.stderr));
    Ok(Images(target.join(TARGET).join("release")))
}
