//! The command line: one file per subcommand. The only place that prints, and the only one that uses `anyhow`.
#![allow(clippy::print_stderr, reason = "the command line talks to people here and nowhere else")]

/// A line on stdout. Nobody listening any more (a closed pipe) is no reason to stop a robot.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

mod bench;
mod bench_fleet;
mod bench_learner;
mod check;
mod collect;
mod data;
mod doctor;
mod evaluate;
mod gamepad;
mod keys;
mod learner;
mod policy;
mod policy_import;
mod pretrain;
mod progress;
mod replay;
mod report;
mod run;
mod talk;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Parser, Subcommand};
use fieldtune::config::{self, Config};

/// Lets a robot get better on the job: a real-time control loop runs a policy ensemble, a learner beside it
/// fine-tunes the ensemble on what the robot does.
///
/// Start with: fieldtune run --config config/quickstart.toml
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    /// More log lines: -v info, -vv debug.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Learner(learner::Args),
    Evaluate(evaluate::Args),
    Collect(collect::Args),
    Replay(replay::Args),
    Report(report::Args),
    Pretrain(pretrain::Args),
    #[command(subcommand)]
    Policy(policy::Command),
    #[command(subcommand)]
    Data(data::Command),
    Swap(talk::SwapArgs),
    Label(talk::LabelArgs),
    Status(talk::StatusArgs),
    /// Check this build against numbers from elsewhere.
    #[command(subcommand)]
    Check(check::Command),
    Watch(watch::Args),
    Doctor(doctor::Args),
    #[command(subcommand)]
    Bench(bench::Command),
    #[cfg(feature = "simulator")]
    Simulate(simulator::Args),
}

/// The configuration of a command.
#[derive(clap::Args)]
struct ConfigArgs {
    /// Configuration file; keys it does not name have the values of config/default.toml.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Set one key on top of the file; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// A preset of the learning method under the file: off2on-code, wsrl, rlpd, ... (config/method), or a path.
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
}

impl ConfigArgs {
    fn load(&self) -> anyhow::Result<Config> {
        self.load_with(None)
    }

    /// With one more key set.
    fn load_with(&self, key: Option<String>) -> anyhow::Result<Config> {
        let method = self.method.iter().map(|name| format!("run.method={name}"));
        let overrides: Vec<String> = self.overrides.iter().cloned().chain(method).chain(key).collect();
        Ok(config::load(&self.config, &overrides)?)
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose).min(2)];
    env_logger::Builder::new().parse_filters(&format!("{level},ort=warn")).init();
    fieldtune::nn::hold_candle_to_one_thread();
    fieldtune::runtime::tune_allocator();
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Learner(args) => learner::run(&args),
        Command::Evaluate(args) => evaluate::run(&args).map(|()| true),
        Command::Collect(args) => collect::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Report(args) => report::run(&args).map(|()| true),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Policy(command) => policy::run(&command).map(|()| true),
        Command::Data(command) => data::run(&command),
        Command::Swap(args) => talk::swap(&args),
        Command::Label(args) => talk::label(&args),
        Command::Status(args) => talk::status(&args),
        Command::Check(command) => check::run(&command),
        Command::Watch(args) => watch::run(&args).map(|()| true),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(command) => bench::run(&command),
        #[cfg(feature = "simulator")]
        Command::Simulate(args) => simulator::run(&args).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// This program, for starting the simulated robot.
fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// A flag that SIGINT and SIGTERM set; a second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Writes `value` as JSON, whole or not at all.
fn write_json(path: &std::path::Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Mean of returns.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
