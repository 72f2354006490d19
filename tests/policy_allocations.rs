//! Inference does not touch the heap: what the control thread calls on every tick.

mod places;
mod sight;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use fieldtune::config::PolicyConfig;
use fieldtune::nn::weights::{ActorWeights, EnsembleWeights, LayerWeights, LogStdBounds, StackWeights};
use fieldtune::policy::manifest::{Description, Residual};
use fieldtune::policy::native::NativePolicy;
use fieldtune::policy::onnxruntime::{OrtPolicy, Runtime};
use fieldtune::policy::{AnyBundle, Bundle, PolicyBackend, PolicyError, PolicyOutput, Source, onnx_file};
use fieldtune::spaces::{FrameShape, Spaces};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[allow(unsafe_code, reason = "an allocator is unsafe by its trait; every call goes to the system's")]
// SAFETY: every method passes its arguments on to the system allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn actor() -> ActorWeights {
    let layer = |inputs: usize, outputs: usize| LayerWeights {
        inputs,
        outputs,
        weight: (0..5 * inputs * outputs).map(|i| (i as f32 * 0.7).sin() * 0.1).collect(),
        bias: (0..5 * outputs).map(|i| (i as f32).cos() * 0.1).collect(),
        layer_norm: None,
    };
    let stack = StackWeights { members: 5, layers: vec![layer(17, 256), layer(256, 256), layer(256, 12)] };
    ActorWeights { stack, log_std: LogStdBounds::default(), eyes: None }
}

/// Actors behind an encoder for all, or one for each.
fn seeing(encoders: usize) -> ActorWeights {
    let shape = FrameShape { width: 48, height: 48, channels: 3 };
    sight::actor(5, sight::eyes(encoders, shape, 17, true, 1), 6, 1)
}

/// Heap operations of 100 runs and of every kind of refusal.
fn heap_operations(policy: &mut dyn PolicyBackend) -> usize {
    let image = vec![7; policy.frame().map_or(0, FrameShape::bytes)];
    let mut out = PolicyOutput::default();
    let observation = [0.25_f32; 17];
    policy.infer(&observation, &image, &mut out).expect("a good observation");
    let before = COUNT.get();
    for i in 0..100 {
        let mut observation = observation;
        observation[i % 17] = i as f32 * 0.01;
        assert!(policy.infer(&observation, &image, &mut out).is_ok());
    }
    assert!(matches!(policy.infer(&observation[1..], &[], &mut out), Err(PolicyError::ObservationLength { .. })));
    assert!(matches!(policy.infer(&[f32::NAN; 17], &[], &mut out), Err(PolicyError::ObservationNotFinite { .. })));
    let blind = policy.infer(&observation, &[], &mut out);
    assert_eq!(matches!(blind, Err(PolicyError::ImageLength { .. })), policy.frame().is_some());
    COUNT.get() - before
}

#[test]
fn the_counter_counts() {
    let before = COUNT.get();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(COUNT.get() - before, 2);
}

#[test]
fn the_built_in_pass_never_allocates() {
    for actor in [actor(), seeing(1), seeing(5)] {
        assert_eq!(heap_operations(&mut NativePolicy::new(&actor).unwrap()), 0);
    }
}

#[test]
fn a_residual_on_its_base_never_allocates() {
    let dir = tempfile::tempdir().unwrap();
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    let spaces = Spaces { observation: names("o", 17), action: names("a", 6) };
    let description = Description {
        name: "base".into(),
        control_hz: 20.0,
        algorithm: "none".into(),
        discount: 0.99,
        training_log_std: None,
        residual: None,
        spaces: spaces.clone(),
        provenance: BTreeMap::new(),
    };
    let base = Bundle::new(description, EnsembleWeights { actor: actor(), ..EnsembleWeights::default() }).unwrap();
    base.save(dir.path()).unwrap();
    let base_sha256 = AnyBundle::load(dir.path()).unwrap().policy_sha256().into();
    let config = PolicyConfig { base: dir.path().into(), ..PolicyConfig::default() };
    let residual = Residual { base_sha256, scale: 0.2 };
    let mut policy = Source::Ensemble(&actor(), Some(&residual)).prepare(&spaces, &config).unwrap().backend;
    assert_eq!(heap_operations(policy.as_mut()), 0);
}

#[test]
fn onnx_runtime_makes_no_rust_allocation() {
    let Some(library) = places::onnxruntime() else { return };
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    let spaces = Spaces { observation: names("o", 17), action: names("a", 6) };
    for actor in [actor(), seeing(1)] {
        let bytes = onnx_file::encode(&actor, &spaces, &[]).unwrap();
        let mut policy = OrtPolicy::new(Runtime::load(&library).unwrap(), &bytes).unwrap();
        assert_eq!(heap_operations(&mut policy), 0);
    }
}
