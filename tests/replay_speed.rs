//! Times of the replay, in CPU time of one thread. Long and dependent on the machine, so not part of a normal run;
//! `tools/bench/replay-peers` runs them beside other replay buffers.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stderr, reason = "the figures are what these tests are for")]

use std::path::Path;
use std::time::Duration;

use fieldtune::clock::thread_cpu;
use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Access, Layout, Replay, Seen, Store};
use fieldtune::spaces::{FrameShape, Minibatch, StepFlags, StepRecord};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BATCH: usize = 256;

/// Median of the CPU time of `repeat` calls.
fn median(repeat: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..repeat)
        .map(|_| {
            let start = thread_cpu();
            work();
            thread_cpu().saturating_sub(start)
        })
        .collect();
    times.sort_unstable();
    times[repeat / 2]
}

/// A line for people and for the script.
fn say(what: &str, rows: usize, time: Duration) {
    eprintln!("figure {what} {rows} {:.2} us", time.as_secs_f64() * 1e6);
}

fn fill(store: &mut Store, rows: usize, rng: &mut ChaCha8Rng) {
    let mut record = StepRecord::default();
    record.observation.resize(17, 0.0).unwrap();
    record.action.resize(6, 0.0).unwrap();
    for index in 0..rows as u32 {
        (record.episode, record.step) = (index / 1001, index % 1001);
        record.flags = if record.step == 1000 { StepFlags::OBSERVATION_ONLY } else { StepFlags::default() };
        record.observation.iter_mut().for_each(|v| *v = rng.random());
        store.append(&record).unwrap();
    }
}

/// One priority per slot: those of the script, else made here, spread over the range of density ratios.
fn priorities(rows: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let Ok(path) = std::env::var("FIELDTUNE_BENCH_PRIORITIES") else {
        return (0..rows).map(|_| 10.0_f32.powf(rng.random_range(-2.0..2.0))).collect();
    };
    let bytes = std::fs::read(path).unwrap();
    let all = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    all.cycle().take(rows).collect()
}

fn state_rows(rows: usize) {
    let layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 0 };
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut store = Store::create(dir.path(), layout, rows as u64 + 1).unwrap();
    fill(&mut store, rows, &mut rng);
    drop(store);
    let open = || Store::open(dir.path(), Access::ReadWrite).unwrap();
    let reopen = median(5, || drop(open()));
    let mut replay = Replay::new(None, open(), &ReplayConfig::default()).unwrap();
    let all = priorities(rows, &mut rng);
    let leaves: Vec<u32> = (0..rows as u32).collect();
    replay.set_priorities(&leaves, &all).unwrap();
    let (mut batch, mut weights) = (Minibatch::default(), Vec::new());
    let mut sample = |kind| {
        median(5000, || {
            replay.sample(kind, BATCH, &mut rng, &mut batch).unwrap();
            replay.importance_weights(kind, &batch, 0.4, &mut weights);
        })
    };
    let (balanced, uniform) = (sample(SamplerKind::Balanced), sample(SamplerKind::Uniform));
    say("sample", rows, balanced);
    say("sample-uniform", rows, uniform);
    let mut tree = replay.priorities().clone();
    let mut drawn = Vec::new();
    say("of-that-the-tree", rows, median(5000, || tree.sample_stratified(BATCH, &mut rng, &mut drawn)));
    let mut times = Vec::new();
    for round in 0..5000 {
        replay.sample(SamplerKind::Balanced, BATCH, &mut rng, &mut batch).unwrap();
        let start = round * BATCH % (rows - BATCH);
        times.push(median(1, || replay.set_priorities(&batch.leaf, &all[start..start + BATCH]).unwrap()));
    }
    times.sort_unstable();
    let update = times[times.len() / 2];
    say("update", rows, update);
    say("reopen", rows, reopen);
    assert!(balanced < Duration::from_micros(60), "sample: {balanced:?}");
    assert!(update < Duration::from_micros(10), "update: {update:?}");
    assert!(reopen < Duration::from_millis(100), "reopen: {reopen:?}");
}

#[test]
#[ignore = "long: a million records on disk, times of this machine"]
fn a_million_records_are_fast() {
    state_rows(250_000);
    state_rows(1_000_000);
}

/// A ring of frames that fits no cache, in the folder `dir`.
fn frames(dir: &Path, shape: FrameShape, count: usize) -> Replay {
    let layout = Layout { observation_dim: 8, action_dim: 4, schema_hash: 0 };
    let mut store = Store::create_with_frames(dir, layout, count as u64, shape).unwrap();
    let mut record = StepRecord::default();
    record.observation.resize(8, 0.0).unwrap();
    record.action.resize(4, 0.0).unwrap();
    let mut pixels = vec![0; shape.bytes()];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut pixels);
    for step in 0..count {
        record.step = step as u32;
        pixels[step % 6912] ^= step as u8;
        store.append_with_frame(&record, Seen::New { pixels: &pixels, capture_ns: step as u64 }).unwrap();
    }
    Replay::new(None, store, &ReplayConfig::default()).unwrap()
}

#[test]
#[ignore = "long: 280 MB of frames, times of this machine"]
fn frames_are_gathered_at_the_speed_of_a_copy() {
    let (shape, count) = (FrameShape { width: 48, height: 48, channels: 3 }, 40_000);
    let dir = tempfile::tempdir().unwrap();
    let mut replay = frames(dir.path(), shape, count);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut batch, mut now, mut next) = (Minibatch::default(), Vec::new(), Vec::new());
    let mut gathers = Vec::new();
    for _ in 0..400 {
        replay.sample(SamplerKind::Uniform, BATCH, &mut rng, &mut batch).unwrap();
        gathers.push(median(1, || replay.gather_frames(&batch.leaf, &mut now, &mut next).unwrap()));
    }
    gathers.sort_unstable();
    let gather = gathers[200];
    // As many bytes in one piece, each time from another place of as large a memory.
    let bytes = 2 * BATCH * shape.bytes();
    let (source, mut copy) = (vec![1_u8; count * shape.bytes()], vec![0_u8; bytes]);
    let mut round = 0;
    let plain = median(400, || {
        let start = round * bytes % (source.len() - bytes);
        copy.copy_from_slice(&source[start..start + bytes]);
        std::hint::black_box(&mut copy);
        round += 1;
    });
    say("frames", 2 * BATCH, gather);
    say("memcpy", 2 * BATCH, plain);
    let rate = bytes as f64 / gather.as_secs_f64() / 1e9;
    eprintln!("frames: {rate:.1} GB/s, {:.2} of the time of one copy", gather.as_secs_f64() / plain.as_secs_f64());
    assert!(rate > 8.0 || gather < plain.mul_f64(1.5), "{gather:?} against {plain:?} for a plain copy");
}
