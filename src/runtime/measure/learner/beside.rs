//! A learner that updates without a pause beside the control loop, and each of them alone.

use std::time::Duration;

use serde::Serialize;

use super::super::pacing::{Pacing, PacingOptions, PacingRow, Scheme, measure_pacing};
use super::super::rig::{BusyLearner, ensemble};
use crate::runtime::parts::RuntimeError;
use crate::runtime::rights;

/// What two share a machine with each other cost.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// Updates per second of the learner without the loop, off the loop's processor as well.
    pub updates_per_second_alone: f64,
    /// Beside the loop.
    pub updates_per_second_beside: f64,
    /// The loop without a learner, then beside it.
    pub loops: Vec<PacingRow>,
}

/// Measures [`Workload::Off2OnRl`](super::Workload::Off2OnRl) and the control loop at `hz`, each measurement `seconds`
/// long; `cpu`: the loop's processor, -1 for the last one.
///
/// # Errors
/// When the control loop or the learner cannot be built.
pub fn measure_beside(hz: f64, seconds: f64, cpu: i32) -> Result<Beside, RuntimeError> {
    let cpu = if cpu < 0 { rights::last_processor() } else { cpu };
    let options =
        |learner| PacingOptions { hz, seconds, cpu, learner, schemes: vec![Scheme::Deadlines], cyclictest: false };
    let learner = BusyLearner::start(&ensemble()?, cpu)?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let updates_per_second_alone = learner.rate();
    let alone = measure_pacing(&options(false))?;
    let Pacing { rows, learner_updates_per_second, .. } = measure_pacing(&options(true))?;
    Ok(Beside {
        updates_per_second_alone,
        updates_per_second_beside: learner_updates_per_second.unwrap_or(0.0),
        loops: alone.rows.into_iter().chain(rows).collect(),
    })
}
