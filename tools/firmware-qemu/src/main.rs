//! `cargo run --release -p firmware-qemu`: prints a table, fails when a check does or QEMU or the compiler are missing.
//! With `--or-skip` a machine without them says so and succeeds.
#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    if let Some(missing) = firmware_qemu::missing() {
        if std::env::args().any(|argument| argument == "--or-skip") {
            println!("skipped: the board in QEMU: {missing}");
            return Ok(ExitCode::SUCCESS);
        }
        anyhow::bail!("{missing}");
    }
    let rows = firmware_qemu::run()?;
    print!("{}", firmware_qemu::table(&rows));
    Ok(if rows.iter().all(|row| row.passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
