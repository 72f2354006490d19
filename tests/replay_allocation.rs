//! Appending, drawing and writing priorities do not touch the heap once a minibatch has its size.
#![allow(unsafe_code, reason = "a counting allocator is an unsafe trait")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Layout, Replay, Store};
use fieldtune::spaces::{Minibatch, Source, StepRecord};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_steady_state_does_not_allocate() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 0 };
    let fill = |mut store: Store| {
        let mut record = StepRecord::default();
        record.observation.resize(17, 0.5).unwrap();
        record.action.resize(6, 0.5).unwrap();
        for step in 0..1500 {
            record.step = step;
            store.append(&record).unwrap();
        }
        (store, record)
    };
    let (offline, _) = fill(Store::in_memory(layout, 2000).unwrap());
    let (online, mut record) = fill(Store::create(dir.path(), layout, 1000).unwrap());
    let mut replay = Replay::new(Some(offline), online, &ReplayConfig::default()).unwrap();
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(1), Minibatch::default());
    let priorities = [2.0; 256];
    let mut update = || {
        record.step += 1;
        replay.append(&record).unwrap();
        for kind in [SamplerKind::Uniform, SamplerKind::Online, SamplerKind::Balanced] {
            replay.sample(kind, 256, &mut rng, &mut batch).unwrap();
        }
        replay.set_priorities(&batch.leaf, &priorities).unwrap();
        replay.sample_source(Source::Offline, 256, &mut rng, &mut batch).unwrap();
    };
    update();
    let before = COUNT.with(Cell::get);
    (0..2000).for_each(|_| update());
    assert_eq!(COUNT.with(Cell::get) - before, 0);
}
