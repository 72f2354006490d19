//! `fieldtune bench learner`: what an update costs.
#![allow(unsafe_code, reason = "the allocator of the program counts while a measurement asks for it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::Context;
use fieldtune::runtime::measure::{
    Beside, LearnerOptions, LearnerRow, LearnerSpeed, Workload, measure_beside, measure_learner, record_updates,
};

/// What an update of the learner costs: updates per second, time by part, share of the machine's matrix product,
/// allocations.
///
/// off2onrl: five agents with twin critics, density ratio and priorities. wsrl: ten critics with layer norm, four critic
/// steps. Observations of 17, actions of 6 entries, 256-256, batches of 256. pixels-shared and pixels-separate: four
/// agents with twin critics from images of 48x48, encoders of 3 x 16 channels and 1024 features, 512-256, batches of 64.
/// Data and networks are random.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    seconds: f64,
    /// Threads of the kernels; may be repeated.
    #[arg(long, default_values_t = [1, 2], value_name = "N")]
    threads: Vec<usize>,
    /// On the GPU; needs a build with the cuda feature.
    #[arg(long, conflicts_with_all = ["threads", "beside_loop", "record"])]
    cuda: bool,
    /// Only these updates; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Which>,
    /// Instead: off2onrl without a pause on one processor and the control loop on another, each alone and together.
    #[arg(long, conflicts_with_all = ["only", "threads"])]
    beside_loop: bool,
    /// Ticks per second of that loop.
    #[arg(long, default_value_t = 200.0, requires = "beside_loop")]
    hz: f64,
    /// Processor of that loop; -1: the last one.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, requires = "beside_loop")]
    cpu: i32,
    /// Write the first updates of the (last) update named by --only as numbers, inputs and results, instead of measuring.
    #[arg(long, value_name = "FILE", requires = "only")]
    record: Option<PathBuf>,
    /// How many.
    #[arg(long, default_value_t = 3, value_name = "N", requires = "record")]
    updates: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    Off2onrl,
    Wsrl,
    PixelsShared,
    PixelsSeparate,
}

impl From<Which> for Workload {
    fn from(which: Which) -> Self {
        match which {
            Which::Off2onrl => Self::Off2OnRl,
            Which::Wsrl => Self::Wsrl,
            Which::PixelsShared => Self::PixelsShared,
            Which::PixelsSeparate => Self::PixelsSeparate,
        }
    }
}

/// Counts what is asked of the system's allocator.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whether anybody asks; else a program pays one read of a shared word per call.
static WATCHED: AtomicBool = AtomicBool::new(false);

fn count(bytes: usize) {
    if WATCHED.load(Relaxed) {
        CALLS.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocated() -> (u64, u64) {
    (CALLS.load(Relaxed), BYTES.load(Relaxed))
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if let (Some(file), Some(which)) = (&args.record, args.only.last()) {
        let numbers = record_updates(Workload::from(*which), args.updates)?;
        return std::fs::write(file, numbers).with_context(|| format!("cannot write {}", file.display()));
    }
    if args.beside_loop {
        let beside = measure_beside(args.hz, args.seconds, args.cpu)?;
        if args.json {
            say!("{}", serde_json::to_string(&beside)?);
        } else {
            print_beside(&beside);
        }
        return Ok(());
    }
    WATCHED.store(true, Relaxed);
    let workloads = match args.only.as_slice() {
        [] => Workload::ALL.to_vec(),
        only => only.iter().map(|which| Workload::from(*which)).collect(),
    };
    let options = LearnerOptions { workloads, threads: args.threads.clone(), cuda: args.cuda, seconds: args.seconds };
    let speed = measure_learner(&options, Some(allocated))?;
    if args.json {
        say!("{}", serde_json::to_string(&speed)?);
    } else {
        print(&speed, args.cuda);
    }
    Ok(())
}

fn print(speed: &LearnerSpeed, cuda: bool) {
    let peak = speed.gemm_peak_gflops;
    if cuda {
        say!("matrix product of cuBLAS: {peak:.0} GFLOP/s");
    } else {
        say!("matrix product, one thread: {peak:.0} GFLOP/s of processor time");
    }
    for row in &speed.rows {
        let LearnerRow { workload, threads, updates, cpu_ms, wall_ms, launches, .. } = row;
        let place = if cuda { format!("on the GPU, {launches:.0} launches") } else { format!("{threads} threads") };
        say!("\n{workload:?}, {place}, {updates} updates (medians)");
        say!(
            "  {cpu_ms:.2} ms of processor time, {wall_ms:.2} ms by the clock: {:.1} updates per second of processor time, {:.1} by the clock",
            row.updates_per_cpu_second,
            row.updates_per_second
        );
        say!(
            "  {:.2} GFLOP, {:.0} GFLOP/s, {:.0} % of the matrix product",
            row.gflop,
            row.gflops,
            100.0 * row.share_of_peak
        );
        if let (Some(calls), Some(bytes)) = (row.allocations, row.allocated_bytes) {
            say!("  {calls:.0} allocations of {:.2} MB in all per update", bytes * 1e-6);
        }
        for (part, ms) in &row.parts_ms {
            say!("  {part:16} {ms:7.2} ms");
        }
    }
}

fn print_beside(beside: &Beside) {
    let Beside { updates_per_second_alone: alone, updates_per_second_beside: together, loops } = beside;
    say!("learner: {alone:.1} updates per second alone, {together:.1} beside the control loop");
    for row in loops {
        let wake = row.wake;
        say!(
            "loop at {} Hz {}: wake-up p50 {} us, p99 {} us, p99.9 {} us, max {} us; drift {:+.3} %, {} of {} missed",
            row.hz,
            if row.learner { "beside the learner" } else { "alone" },
            wake.p50_us,
            wake.p99_us,
            wake.p999_us,
            wake.max_us,
            row.drift_percent,
            row.missed,
            row.ticks
        );
        row.refused_settings.iter().for_each(|line| say!("  real time  {line}"));
    }
}
