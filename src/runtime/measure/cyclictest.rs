//! cyclictest of rt-tests, where it is installed: what the machine can do without any of our code.

use std::process::Command;

use serde::Serialize;

use crate::telemetry::LatencySummary;

/// Longest latency it counts, microseconds.
const LONGEST_US: u64 = 100_000;

/// What it saw.
#[derive(Clone, Debug, Serialize)]
pub struct Cyclictest {
    /// Ticks per second.
    pub hz: f64,
    /// Whether a learner worked beside it.
    pub learner: bool,
    /// Wake-up latency.
    pub wake: LatencySummary,
}

/// Runs it on `cpu`; `None` when it is not installed or is refused its rights.
pub(super) fn run(hz: f64, seconds: f64, cpu: i32, learner: bool) -> Option<Cyclictest> {
    let mut command = Command::new("cyclictest");
    command.args(["-q", "-m", "-p80", "-t1", "-h", &LONGEST_US.to_string()]);
    command.args(["-i", &((1e6 / hz) as u64).to_string(), "-l", &((hz * seconds) as u64).to_string()]);
    if cpu >= 0 {
        command.args(["-a", &cpu.to_string()]);
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(Cyclictest { hz, learner, wake: percentiles(&String::from_utf8_lossy(&output.stdout))? })
}

/// From its histogram: lines of latency in microseconds and count.
fn percentiles(text: &str) -> Option<LatencySummary> {
    let number = |word: &str| word.parse::<u64>().ok();
    let buckets: Vec<(u64, u64)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((number(words.next()?)?, number(words.next()?)?))
        })
        .collect();
    let max_us = text.lines().find_map(|line| number(line.strip_prefix("# Max Latencies:")?.trim()))?;
    let total: u64 = buckets.iter().map(|(_, count)| count).sum();
    let at = |share: f64| {
        let mut seen = 0;
        let found = buckets.iter().find(|(_, count)| {
            seen += count;
            seen as f64 >= share * total as f64
        });
        // What is beyond the histogram is in no line.
        found.map_or(max_us, |(us, _)| *us)
    };
    (total > 0).then(|| LatencySummary { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999), max_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_histogram_is_read() {
        let text = "# /dev/cpu_dma_latency set to 0us\n# Histogram\n000003 000090\n000009 000009\n000700 000001\n\
                    # Total: 000000100\n# Min Latencies: 00003\n# Avg Latencies: 00009\n# Max Latencies: 00700\n";
        let wake = percentiles(text).unwrap();
        assert_eq!((wake.p50_us, wake.p99_us, wake.p999_us, wake.max_us), (3, 9, 700, 700));
        assert!(percentiles("# Max Latencies: 00000\n").is_none());
    }
}
