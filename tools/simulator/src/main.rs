//! The program `simulator`: see the library.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

/// A simulated robot: it plays the motor microcontroller, firmware frames in, firmware frames out.
///
/// Prints `ready ADDRESS` on stdout as soon as hosts may connect. ADDRESS is `unix:PATH`, `udp:HOST:PORT` or, for a
/// pseudo terminal, `serial:PATH`. Ends on SIGINT, SIGTERM, or when no frame came for a while.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: simulator::Args,
}

fn main() -> ExitCode {
    match simulator::run(&Cli::parse().args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The exit code says it too, in case stderr is closed.
            let _ = writeln!(std::io::stderr(), "simulator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
