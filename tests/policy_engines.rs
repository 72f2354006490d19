//! The built-in pass and ONNX Runtime give the same answers for every shape of ensemble.

#![allow(clippy::print_stderr, reason = "what is skipped is printed")]

mod places;
mod sight;

use fieldtune::config::{PolicyConfig, PolicyEngine};
use fieldtune::nn::weights::{ActorWeights, LayerWeights, LogStdBounds, StackWeights};
use fieldtune::policy::checks::{Inputs, agree};
use fieldtune::policy::native::NativePolicy;
use fieldtune::policy::onnxruntime::{OrtPolicy, Runtime};
use fieldtune::policy::{Engine, PolicyBackend, PolicyError, PolicyOutput, onnx_file, prepare_file};
use fieldtune::spaces::{FrameShape, Spaces};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

fn actor(members: usize, observation: usize, hidden: &[usize], action: usize, norm: bool) -> ActorWeights {
    let mut random = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(3));
    let widths: Vec<usize> = [observation].iter().chain(hidden).chain(&[2 * action]).copied().collect();
    let mut layers = Vec::new();
    for (index, pair) in widths.windows(2).enumerate() {
        let (inputs, outputs) = (pair[0], pair[1]);
        let mut draw = |n: usize, scale: f32| random.by_ref().take(n).map(|v: f32| v * scale).collect::<Vec<_>>();
        let rows = members * outputs;
        layers.push(LayerWeights {
            inputs,
            outputs,
            weight: draw(rows * inputs, 1.0 / (inputs as f32).sqrt()),
            bias: draw(rows, 0.2),
            layer_norm: (norm && index < hidden.len()).then(|| (draw(rows, 1.0), draw(rows, 0.5))),
        });
    }
    ActorWeights { stack: StackWeights { members, layers }, log_std: LogStdBounds { min: -1.0, max: 0.5 }, eyes: None }
}

fn spaces(observation: usize, action: usize) -> Spaces {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    Spaces { observation: names("o", observation), action: names("a", action) }
}

#[test]
fn engines_agree_for_every_shape() {
    let Some(library) = places::onnxruntime() else { return };
    let runtime = Runtime::load(&library).unwrap();
    let shapes: [(usize, usize, &[usize], usize, bool); 6] = [
        (1, 1, &[], 1, false),
        (5, 17, &[256, 256], 6, false),
        (5, 17, &[256, 256], 6, true),
        (3, 11, &[33, 70, 5], 3, true),
        (64, 3, &[8], 1, false),
        (2, 48, &[64], 24, true),
    ];
    for (members, observation, hidden, action, norm) in shapes {
        let actor = actor(members, observation, hidden, action, norm);
        let bytes = onnx_file::encode(&actor, &spaces(observation, action), &[]).unwrap();
        let mut ort = OrtPolicy::new(runtime, &bytes).unwrap();
        let mut native = NativePolicy::new(&actor).unwrap();
        let difference = agree(&mut native, &mut ort, &Inputs::new(observation, None, 1000)).unwrap();
        eprintln!("{members} x {observation} {hidden:?} {action}, norm {norm}: {difference:e}");
        assert!(difference < 1e-5);
    }
}

#[test]
fn engines_agree_for_every_kind_of_eyes() {
    let Some(library) = places::onnxruntime() else { return };
    let runtime = Runtime::load(&library).unwrap();
    for (encoders, proprioception, width, cameras) in
        [(1, true, 48, 1), (1, false, 31, 2), (3, true, 16, 1), (3, false, 48, 1)]
    {
        let shape = FrameShape { width, height: 20, channels: 3 * cameras };
        let actor = sight::actor(3, sight::eyes(encoders, shape, 4, proprioception, 1), 2, 2);
        let bytes = onnx_file::encode(&actor, &spaces(4, 2), &[]).unwrap();
        let mut ort = OrtPolicy::new(runtime, &bytes).unwrap();
        let mut native = NativePolicy::new(&actor).unwrap();
        assert_eq!((ort.frame(), ort.observation_dim()), (Some(shape), 4));
        let difference = agree(&mut native, &mut ort, &Inputs::new(4, Some(shape), 100)).unwrap();
        eprintln!("{encoders} encoders, proprioception {proprioception}, {shape}: {difference:e}");
        assert!(difference < 1e-5);
        let mut out = PolicyOutput::default();
        assert!(matches!(ort.infer(&[0.0; 4], &[0; 7], &mut out), Err(PolicyError::ImageLength { got: 7, .. })));
        prepare_file(&bytes, &spaces(4, 2), &PolicyConfig { onnxruntime: library.clone(), ..PolicyConfig::default() })
            .unwrap();
    }
}

#[test]
fn a_configured_library_runs_the_policy_and_a_second_one_is_refused() {
    let Some(library) = places::onnxruntime() else { return };
    let bytes = onnx_file::encode(&actor(5, 3, &[64, 64], 1, false), &spaces(3, 1), &[]).unwrap();
    for engine in [PolicyEngine::Auto, PolicyEngine::Onnxruntime] {
        let config = PolicyConfig { engine, onnxruntime: library.clone(), ..PolicyConfig::default() };
        let prepared = prepare_file(&bytes, &spaces(3, 1), &config).unwrap();
        eprintln!("{}", prepared.report);
        assert_eq!(prepared.engine, Engine::Onnxruntime);
        assert!(prepared.report.engine_difference.is_some_and(|d| d < 1e-5));
    }
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(&library, copy.path()).unwrap();
    let second = Runtime::load(copy.path()).err().map(|e| e.to_string());
    assert!(second.as_deref().is_some_and(|e| e.contains("loaded already")), "{second:?}");
}

#[test]
fn onnx_runtime_refuses_what_is_no_policy() {
    let Some(library) = places::onnxruntime() else { return };
    let runtime = Runtime::load(&library).unwrap();
    let bytes = onnx_file::encode(&actor(2, 3, &[8], 1, false), &spaces(3, 1), &[]).unwrap();
    assert!(OrtPolicy::new(runtime, &bytes[..bytes.len() / 2]).is_err());
    assert!(OrtPolicy::new(runtime, b"").is_err());
    let at = bytes.windows(3).position(|w| w == b"obs").unwrap();
    let mut renamed = bytes.clone();
    for at in (0..bytes.len() - 3).filter(|i| &bytes[*i..*i + 3] == b"obs") {
        renamed[at..at + 3].copy_from_slice(b"abs");
    }
    assert!(at > 0);
    let error = OrtPolicy::new(runtime, &renamed).err().map(|e| e.to_string());
    assert!(error.as_deref().is_some_and(|e| e.contains("input `obs` as absent")), "{error:?}");
    let mut policy = OrtPolicy::new(runtime, &bytes).unwrap();
    let mut out = PolicyOutput::default();
    assert!(matches!(
        policy.infer(&[0.0; 4], &[], &mut out),
        Err(PolicyError::ObservationLength { expected: 3, got: 4 })
    ));
}

#[test]
fn files_that_are_no_library_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Runtime::load(&path).expect_err("loaded").to_string()
    };
    let mut other = [0_u8; 64];
    other[..5].copy_from_slice(b"\x7fELF\x02");
    other[18] = 8;
    assert!(refusal("mips.so", &other).contains("machine 8"));
    assert!(refusal("text.so", &[b'#'; 100]).contains("no ELF file"));
    assert!(refusal("short.so", b"\x7fELF").contains("cannot read"));
    // The head of this very program, and of the real library when it is there: the loader would die on both.
    let program = std::env::current_exe().unwrap();
    for file in places::onnxruntime().into_iter().chain([program]) {
        let head = std::fs::read(&file).unwrap()[..4096].to_vec();
        assert!(refusal("cut.so", &head).contains("truncated, 4096 of"));
    }
}
