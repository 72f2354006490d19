//! What an update of the learner costs, in the settings that learners are compared in.

mod beside;
mod workload;

use std::time::Duration;

use candle_core::{Device, Tensor};
use serde::Serialize;

pub use beside::{Beside, measure_beside};
pub use workload::Workload;

use crate::clock::{precise, process_cpu};
use crate::config::DeviceKind;
use crate::kernels;
use crate::learner::{LearnerError, Timings};
use crate::runtime::parts::RuntimeError;

/// Calls and bytes that the process has asked of its allocator so far; a program without a counter has none.
pub type Allocations = fn() -> (u64, u64);

/// What to measure.
#[derive(Clone, Debug)]
pub struct LearnerOptions {
    /// Which updates.
    pub workloads: Vec<Workload>,
    /// Threads of the kernels, one measurement each; of no use on a GPU.
    pub threads: Vec<usize>,
    /// Whether on the GPU.
    pub cuda: bool,
    /// Wall time of a measurement, without its warm-up.
    pub seconds: f64,
}

/// The learner's speed on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct LearnerSpeed {
    /// The fastest matrix product of one thread in this run, 10^9 operations per second of processor time; on a GPU that
    /// of cuBLAS by the clock.
    pub gemm_peak_gflops: f64,
    /// One for every workload and number of threads.
    pub rows: Vec<LearnerRow>,
}

/// Cost of one update; times are medians over the measured updates, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct LearnerRow {
    /// What an update is.
    pub workload: Workload,
    /// Threads of the kernels.
    pub threads: usize,
    /// Updates measured.
    pub updates: usize,
    /// Processor time of all threads.
    pub cpu_ms: f64,
    /// Time by the clock.
    pub wall_ms: f64,
    /// `1000 / cpu_ms`.
    pub updates_per_cpu_second: f64,
    /// `1000 / wall_ms`.
    pub updates_per_second: f64,
    /// Arithmetic that the matrix products of an update need when nothing is computed that does not matter, 10^9.
    pub gflop: f64,
    /// `gflop` per second of processor time, on a GPU by the clock.
    pub gflops: f64,
    /// `gflops` of [`LearnerSpeed::gemm_peak_gflops`].
    pub share_of_peak: f64,
    /// Kernels and matrix products that an update sends to the GPU, candle's own operations left out; 0 on the processor.
    pub launches: f64,
    /// Calls of the allocator per update, all threads; `None` without a counter.
    pub allocations: Option<f64>,
    /// Bytes that they asked for.
    pub allocated_bytes: Option<f64>,
    /// Mean processor time of the learner's own thread by part of an update, milliseconds.
    pub parts_ms: Vec<(&'static str, f64)>,
}

/// Updates before a measurement begins.
const WARM_UP: usize = 5;

/// Measures one workload after the other.
///
/// # Errors
/// When a learner cannot be built or diverges.
pub fn measure_learner(
    options: &LearnerOptions,
    allocations: Option<Allocations>,
) -> Result<LearnerSpeed, RuntimeError> {
    let device = if options.cuda { kernels::open().map_err(LearnerError::Device)? } else { Device::Cpu };
    let mut speed = LearnerSpeed { gemm_peak_gflops: gemm_peak(&device)?, rows: Vec::new() };
    for workload in &options.workloads {
        for threads in options.threads.iter().take(if options.cuda { 1 } else { usize::MAX }) {
            speed.rows.push(measure(*workload, *threads, options, allocations)?);
        }
    }
    // The machine may have been slower in the first second than it was later.
    speed.gemm_peak_gflops = speed.gemm_peak_gflops.max(gemm_peak(&device)?);
    for row in &mut speed.rows {
        row.share_of_peak = row.gflops / speed.gemm_peak_gflops;
    }
    Ok(speed)
}

/// The first `updates` updates of a workload as numbers: [`crate::learner::Learner::record`].
///
/// # Errors
/// When a learner cannot be built or diverges.
pub fn record_updates(workload: Workload, updates: usize) -> Result<Vec<u8>, RuntimeError> {
    let (mut learner, replay) = workload.learner(1, DeviceKind::Cpu)?;
    Ok(learner.record(&replay, updates)?)
}

fn measure(
    workload: Workload,
    threads: usize,
    options: &LearnerOptions,
    allocations: Option<Allocations>,
) -> Result<LearnerRow, RuntimeError> {
    let device = if options.cuda { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let (mut learner, replay) = workload.learner(threads, device)?;
    for _ in 0..WARM_UP {
        learner.update(&replay)?;
    }
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    let launches = kernels::launches();
    let (began, parts, allocated) = (precise(), learner.timings(), allocations.map(|now| now()));
    while wall.is_empty() || precise().saturating_sub(began).as_secs_f64() < options.seconds {
        let start = (process_cpu(), precise());
        learner.update(&replay)?;
        cpu.push(process_cpu().saturating_sub(start.0));
        wall.push(precise().saturating_sub(start.1));
    }
    let updates = wall.len();
    let per_update = |count: u64| count as f64 / updates as f64;
    let allocated =
        allocations.map(|now| now()).zip(allocated).map(|(after, before)| (after.0 - before.0, after.1 - before.1));
    let (cpu_ms, wall_ms) = (median(cpu), median(wall));
    let gflop = workload.gflop();
    Ok(LearnerRow {
        workload,
        threads,
        updates,
        cpu_ms,
        wall_ms,
        updates_per_cpu_second: 1e3 / cpu_ms,
        updates_per_second: 1e3 / wall_ms,
        gflop,
        gflops: gflop / if options.cuda { wall_ms } else { cpu_ms } * 1e3,
        share_of_peak: 0.0,
        launches: per_update(kernels::launches() - launches),
        allocations: allocated.map(|(calls, _)| per_update(calls)),
        allocated_bytes: allocated.map(|(_, bytes)| per_update(bytes)),
        parts_ms: parts_of(learner.timings(), parts, updates),
    })
}

fn parts_of(after: Timings, before: Timings, updates: usize) -> Vec<(&'static str, f64)> {
    let part = |name, part: fn(&Timings) -> Duration| {
        (name, part(&after).saturating_sub(part(&before)).as_secs_f64() * 1e3 / updates as f64)
    };
    vec![
        part("sampling", |t| t.sampling),
        part("encoder", |t| t.encoder),
        part("density", |t| t.density),
        part("target", |t| t.target),
        part("critic forward", |t| t.critic_forward),
        part("critic backward", |t| t.critic_backward),
        part("actor", |t| t.actor),
        part("optimiser", |t| t.optimiser),
    ]
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64) * 1e3
}

/// The best of several shapes, from a layer's own to one that fills the cache, or a GPU, and of many repetitions.
fn gemm_peak(device: &Device) -> Result<f64, RuntimeError> {
    // What a GPU does shows only by the clock, when it is done.
    let now = || {
        Ok::<_, candle_core::Error>(if device.is_cpu() {
            process_cpu()
        } else {
            device.synchronize().map(|()| precise())?
        })
    };
    let best = |(members, side): (usize, usize)| {
        let matrix = || Tensor::rand(-1f32, 1f32, (members, side, side), device);
        let (a, b) = (matrix()?, matrix()?);
        let gflop = 2e-9 * (members * side * side * side) as f64;
        let mut best = 0f64;
        for _ in 0..20 {
            let start = now()?;
            std::hint::black_box(a.matmul(&b)?);
            best = best.max(gflop / now()?.saturating_sub(start).as_secs_f64().max(1e-9));
        }
        Ok(best)
    };
    let mut shapes = vec![(10, 256), (4, 512), (1, 1024)];
    shapes.extend(device.is_cuda().then_some((1, 8192)));
    let rates: candle_core::Result<Vec<f64>> = shapes.into_iter().map(best).collect();
    let rates = rates.map_err(|source| LearnerError::Tensor { action: "multiply matrices", source })?;
    Ok(rates.into_iter().fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_runs_and_says_what_it_cost() {
        let options =
            LearnerOptions { workloads: Workload::ALL.to_vec(), threads: vec![1, 2], cuda: false, seconds: 0.0 };
        let speed = measure_learner(&options, Some(|| (0, 0))).unwrap();
        assert_eq!(speed.rows.len(), 2 * Workload::ALL.len());
        for row in &speed.rows {
            assert!(row.updates == 1 && row.cpu_ms > 0.0 && row.share_of_peak > 0.0, "{row:?}");
            assert!(row.parts_ms.iter().map(|(_, ms)| ms).sum::<f64>() > 0.0, "{row:?}");
        }
    }
}
