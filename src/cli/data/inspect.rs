//! What is in a data set or a buffer.

use std::path::Path;

use fieldtune::episode::Dataset;
use fieldtune::replay::Store;
use serde_json::{Value, json};

use super::read;
use crate::cli::mean;

const BINS: usize = 10;
/// Longest bar of a histogram, in characters.
const BAR: usize = 40;

pub(super) fn run(source: &Path, json: bool) -> anyhow::Result<bool> {
    let (data, store) = read(source)?;
    let bad = store.as_ref().map_or(0, |s| s.bad_records().total());
    if json {
        say!("{}", as_json(&data, store.as_ref()));
    } else {
        say!("{}", source.display());
        as_text(&data, store.as_ref());
    }
    Ok(bad == 0)
}

fn as_json(data: &Dataset, store: Option<&Store>) -> Value {
    let returns = data.returns();
    let buffer = store.map(|s| {
        json!({"records": s.len(), "capacity": s.capacity(), "transitions": s.transitions(),
            "interventions": s.interventions(), "overwritten": s.overwritten(), "frames": s.frame_shape(),
            "bad_records": s.bad_records().total(), "bad": s.bad_records(), "closed_cleanly": s.was_closed_cleanly()})
    });
    json!({
        "steps": data.steps(), "episodes": returns.len(), "observation_dim": data.observation_dim,
        "action_dim": data.action_dim, "terminated": terminated(data), "return_mean": mean(&returns),
        "histograms": {
            "return": Histogram::of(&returns).as_json(), "length": Histogram::of(&lengths(data)).as_json(),
            "reward": Histogram::of(&numbers(&data.rewards)).as_json(),
            "action": Histogram::of(&numbers(&data.actions)).as_json(),
        },
        "returns": returns, "values_sha256": data.hash(), "stamps": !data.capture_us.is_empty(), "buffer": buffer,
    })
}

fn as_text(data: &Dataset, store: Option<&Store>) {
    let returns = data.returns();
    say!("  {} steps, {} episodes ({} ended by the task)", data.steps(), returns.len(), terminated(data));
    say!("  observation {} entries, action {}", data.observation_dim, data.action_dim);
    if !returns.is_empty() {
        let extreme = |f: fn(f64, f64) -> f64, start: f64| returns.iter().copied().fold(start, f);
        let (low, high) = (extreme(f64::min, f64::INFINITY), extreme(f64::max, f64::NEG_INFINITY));
        say!("  return mean {:.1}, min {low:.1}, max {high:.1}", mean(&returns));
    }
    say!("  values {}, {} stamps", data.hash(), if data.capture_us.is_empty() { "without" } else { "with" });
    ranges("observation", &data.observations, data.observation_dim);
    ranges("action", &data.actions, data.action_dim);
    Histogram::of(&returns).say("return of an episode");
    Histogram::of(&lengths(data)).say("length of an episode");
    Histogram::of(&numbers(&data.rewards)).say("reward of a step");
    Histogram::of(&numbers(&data.actions)).say("action, all entries");
    let Some(store) = store else { return };
    let bad = store.bad_records();
    let end =
        if store.was_closed_cleanly() { "closed cleanly" } else { "not closed cleanly; every record was verified" };
    say!(
        "  buffer: {} of {} records, {} overwritten, {} bad, {end}",
        store.len(),
        store.capacity(),
        store.overwritten(),
        bad.total()
    );
    if let Some(shape) = store.frame_shape() {
        say!("  frames: {} x {} x {}", shape.width, shape.height, shape.channels);
    }
    if store.interventions() > 0 {
        say!("  a person chose the action in {} of {} transitions", store.interventions(), store.transitions());
    }
    if bad.total() > 0 {
        say!("  bad records are skipped; `fieldtune data verify` names them");
    }
}

fn terminated(data: &Dataset) -> usize {
    data.terminated.iter().filter(|t| **t).count()
}

fn lengths(data: &Dataset) -> Vec<f64> {
    data.episodes().map(|steps| steps.len() as f64).collect()
}

fn numbers(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn ranges(name: &str, values: &[f32], width: usize) {
    for column in 0..width {
        let entries = values.iter().skip(column).step_by(width).copied();
        let (low, high) = entries.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low <= high {
            say!("  {name}[{column}] in [{low:.3}, {high:.3}]");
        }
    }
}

/// Counts in [`BINS`] equal parts between the smallest and the largest value.
struct Histogram {
    low: f64,
    high: f64,
    counts: Vec<usize>,
}

impl Histogram {
    fn of(values: &[f64]) -> Self {
        let fold = |f: fn(f64, f64) -> f64, start| values.iter().copied().fold(start, f);
        let (low, high) = (fold(f64::min, f64::INFINITY), fold(f64::max, f64::NEG_INFINITY));
        let mut counts = vec![0; if low < high { BINS } else { usize::from(low == high) }];
        let bins = counts.len();
        for value in values {
            let bin = ((value - low) / (high - low) * bins as f64) as usize;
            if let Some(count) = counts.get_mut(bin.min(bins.saturating_sub(1))) {
                *count += 1;
            }
        }
        Self { low, high, counts }
    }

    fn edge(&self, bin: usize) -> f64 {
        self.low + (self.high - self.low) * bin as f64 / self.counts.len() as f64
    }

    fn as_json(&self) -> Value {
        let edges = if self.counts.is_empty() { 0 } else { self.counts.len() + 1 };
        json!({"edges": (0..edges).map(|bin| self.edge(bin)).collect::<Vec<_>>(), "counts": self.counts})
    }

    fn say(&self, name: &str) {
        let Some(most) = self.counts.iter().max() else { return };
        say!("  {name}");
        for (bin, count) in self.counts.iter().enumerate() {
            let bar = "#".repeat((count * BAR).div_ceil((*most).max(1)));
            say!("    {:>10.3} to {:>10.3} {count:>8}  {bar}", self.edge(bin), self.edge(bin + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_every_value_once() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        let histogram = Histogram::of(&values);
        assert_eq!(histogram.counts, [10, 10, 10, 10, 10, 10, 10, 10, 10, 11]);
        assert_eq!((histogram.edge(0), histogram.edge(10)), (0.0, 100.0));
        assert_eq!(Histogram::of(&[2.0, 2.0]).counts, [2]);
        assert!(Histogram::of(&[]).counts.is_empty());
        assert_eq!(Histogram::of(&[]).as_json()["edges"], json!([]));
    }
}
