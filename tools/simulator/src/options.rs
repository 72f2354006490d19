//! The command line of a simulated robot; `fieldtune simulate` takes the same options.

use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;

use crate::camera::Span;
use crate::endpoint::Listen;
use crate::task::tasks;

/// Options of a simulated robot.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// What to simulate; all but the pendulum need `tools/setup-native`
    #[arg(long, default_value = "pendulum", value_parser = PossibleValuesParser::new(tasks()))]
    pub task: String,
    /// Where to listen: `unix:PATH`, `udp:HOST:PORT` (port 0 takes a free one) or `pty`
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Listen,
    /// Whose time counts
    #[arg(long, value_enum, default_value_t = ClockMode::Lockstep)]
    pub clock: ClockMode,
    /// Folder with the MuJoCo library and the models
    #[arg(long, value_name = "DIR", default_value = ".native")]
    pub native: PathBuf,
    /// Control periods per second of the robot's clock [default: the task's own, at which its physics is true to time]
    #[arg(long, value_name = "HZ", value_parser = rate)]
    pub rate_hz: Option<f64>,
    /// Silence after which the drive holds still
    #[arg(long, value_name = "MS", default_value_t = 150, value_parser = clap::value_parser!(u16).range(1..))]
    pub watchdog_ms: u16,
    /// Silence after which the drive is in fault
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub fault_ms: u32,
    /// Probability that a frame gets lost, in each direction
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub drop: f64,
    /// Probability that a frame gets damaged, in each direction
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub corrupt: f64,
    /// Probability that a frame comes late, in each direction
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub delay: f64,
    /// How late a delayed frame is
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pub delay_ms: u32,
    /// Seed of lost, damaged and late frames
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fault_seed: u64,
    /// Follow a script of the robot's own in place of the commands, with noise of one of these standard deviations in
    /// every episode; the robot reports what it did. The gantry has one
    #[arg(long, value_name = "STD,...", value_delimiter = ',', value_parser = |text: &str| within(text, 0.0..=2.0))]
    pub script: Vec<f64>,
    /// Where the camera's images are to be had: `unix:PATH`, a stream socket. The gantry has one
    #[arg(long, value_name = "ADDRESS", value_parser = socket)]
    pub camera: Option<PathBuf>,
    /// Probability that an image gets lost
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub camera_drop: f64,
    /// Probability that an image's header gets damaged
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub camera_corrupt: f64,
    /// Probability that an image comes late, by --delay-ms
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub camera_delay: f64,
    /// Images that repeat the picture before, under their own number and time
    #[arg(long, value_name = "FROM..TO")]
    pub camera_frozen: Option<Span>,
    /// Images for which the camera is unplugged
    #[arg(long, value_name = "FROM..TO")]
    pub camera_gone: Option<Span>,
    /// End after so many seconds without a frame; 0 waits for ever
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = seconds)]
    pub idle_exit_s: f64,
    /// No messages on stderr but errors
    #[arg(long)]
    pub quiet: bool,
    /// End when the thread that started this process ends
    #[arg(long)]
    pub die_with_parent: bool,
}

/// Whose time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClockMode {
    /// Simulated time: every command advances it by one control period
    Lockstep,
    /// The machine's time: the robot does not wait for anybody
    Realtime,
}

// The ranges are written so that NaN fails.
fn within(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!("expected a number from {} to {}", range.start(), range.end())),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1.0)
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.1..=10_000.0)
}

fn socket(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err("expected unix:PATH".into()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1e6)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn defaults_and_ranges_hold() {
        let read = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.args);
        let args = read("simulator --listen unix:a").unwrap();
        assert_eq!((args.task.as_str(), args.clock), ("pendulum", ClockMode::Lockstep));
        let args = read("simulator --listen unix:a --camera unix:b --camera-gone 5.. --script 0.1,0.3").unwrap();
        assert_eq!((args.camera, args.script), (Some("b".into()), vec![0.1, 0.3]));
        for wrong in [
            "--listen unix:a --drop 1.5",
            "--listen unix:a --corrupt nan",
            "--listen unix:a --rate-hz 0",
            "--listen unix:a --task unicycle",
            "--listen unix:a --watchdog-ms 0",
            "--listen unix:a --camera pty",
            "--listen unix:a --camera-gone 5..4",
            "--listen unix:a --script 0.1,-1",
            "--drop 0.1",
        ] {
            assert!(read(&format!("simulator {wrong}")).is_err(), "{wrong}");
        }
    }
}
