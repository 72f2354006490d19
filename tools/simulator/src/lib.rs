//! Simulated robots that play the motor microcontroller: firmware frames in, firmware frames out.
//!
//! A host cannot tell a simulated robot from a real one except by its firmware version. The program listens on a
//! Unix datagram socket, on UDP or on a pseudo terminal, in lockstep or in real time, and can spoil its own link on
//! purpose. It knows no policy, no time limit and nothing of the `fieldtune` crate.
//!
//! | module | what |
//! |---|---|
//! | `task` | the `Task` trait and the list of tasks |
//! | `pendulum`, `locomotion`, `gantry` | the tasks |
//! | `expert` | the script that solves the gantry's |
//! | `mujoco`, `view` | the binding to MuJoCo, its physics and its pictures; the only unsafe code |
//! | `board` | the microcontroller: drive, task, STATE numbers; no clock and no socket |
//! | `endpoint`, `faults` | the link and its injected faults |
//! | `camera` | the camera's stream and its injected faults |
//! | `server` | the loop that joins them and keeps the time |
//! | `options` | the command line |

mod board;
mod camera;
mod endpoint;
mod expert;
mod faults;
mod gantry;
mod locomotion;
mod mujoco;
mod options;
mod pendulum;
#[cfg(test)]
mod recorded;
mod server;
mod task;
mod view;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};

pub use camera::{Images, Span};
pub use endpoint::Listen;
pub use faults::Injected;
pub use firmware_bridge::Totals;
pub use options::{Args, ClockMode};
pub use server::{Server, Summary};
pub use task::{ImageSize, Names, StepOutcome, Task, make, spaces, tasks};

/// Runs a simulated robot until SIGINT or SIGTERM comes, or no frame for `--idle-exit-s`: the whole program.
///
/// Writes `ready ADDRESS` and a line feed to stdout as soon as hosts may connect, and a summary in words to stderr
/// at the end.
///
/// # Errors
/// When the robot cannot be built, the link cannot be opened or breaks.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.die_with_parent {
        set_parent_process_death_signal(Some(Signal::TERM)).context("cannot tie this process to its parent")?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot watch for signals")?;
    }
    let mut server = Server::bind(args)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready {}", server.address())?;
    stdout.flush()?;
    let summary = server.run(&stop)?;
    if !args.quiet {
        // A closed stderr must not turn a good end into a bad one.
        let _ = writeln!(std::io::stderr(), "simulator: {}: {summary}", args.task);
    }
    Ok(())
}
