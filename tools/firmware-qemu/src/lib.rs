//! Builds the board image of `firmware-bridge`, runs it in QEMU and tests it over its serial line.
//!
//! Latencies are printed, not judged: an emulator on a busy machine has none to speak of. What is judged are counts
//! and the board's own clock.

mod host;
mod image;
mod machine;
// Shared with the image: what the board is, and what both processors compute.
#[path = "../../../firmware-bridge/board/src/plant.rs"]
#[allow(dead_code, reason = "the image uses the rest")]
mod plant;
mod suite;
#[path = "../../../firmware-bridge/board/src/vectors.rs"]
#[allow(unreachable_pub, clippy::new_without_default, reason = "a file of the image")]
mod vectors;

pub use suite::Row;

/// Why the suite cannot run on this machine, if so, with the command that mends it.
pub fn missing() -> Option<String> {
    image::missing().or_else(machine::missing)
}

/// Builds the images and runs every check.
///
/// # Errors
/// When an image does not build, or the board does not answer.
pub fn run() -> anyhow::Result<Vec<Row>> {
    suite::all(&image::build()?)
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for row in rows {
        let verdict = if row.passed { "ok  " } else { "FAIL" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{verdict} {:<38} {:<40} {}", row.check, row.asked, row.seen);
    }
    text
}
