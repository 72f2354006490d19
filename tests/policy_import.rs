//! Checkpoints of d3rlpy, Stable-Baselines3, CORL and flax, made by the packages themselves (`tools/interop`),
//! act after import as the packages said; what a file does not say is asked for; ONNX actors of others keep their
//! answers in a bundle and drive the control loop.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise and prints what it skips"
)]

mod places;

use std::path::{Path, PathBuf};

use fieldtune::config::PolicyConfig;
use fieldtune::nn::weights::{EnsembleWeights, StackWeights};
use fieldtune::policy::checks::probe_observations;
use fieldtune::policy::foreign::{self, ForeignError, ForeignPolicy};
use fieldtune::policy::foreign_bundle::ForeignDescription;
use fieldtune::policy::import::{Given, ImportError, Imported, Kind, StateScaling, detect, import};
use fieldtune::policy::native::NativePolicy;
use fieldtune::policy::onnxruntime::Runtime;
use fieldtune::policy::{AnyBundle, ForeignBundle, PolicyBackend, PolicyError, PolicyOutput};
use fieldtune::spaces::Spaces;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/import").join(name)
}

fn numbers(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(data(name)).expect("a fixture");
    npyz::NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
}

fn raw() -> Given {
    Given { raw_state: true, ..Given::default() }
}

fn corl() -> Given {
    let wide = |name: &str| numbers(name).into_iter().map(f64::from).collect();
    let state = StateScaling { shift: wide("corl_mean.npy"), scale: wide("corl_std.npy") };
    Given { state: Some(state), action_scale: Some(1.5), ..Given::default() }
}

/// Largest difference between an import and what the package answered.
fn difference(weights: &EnsembleWeights, stem: &str) -> f32 {
    let observations = numbers(&format!("{stem}_observations.npy"));
    let expected = numbers(&format!("{stem}_actions.npy"));
    let mut policy = NativePolicy::new(&weights.actor).unwrap();
    let mut out = PolicyOutput::default();
    let (width, action_dim) = (policy.observation_dim(), policy.action_dim());
    assert_eq!(observations.len() / width, expected.len() / action_dim);
    let mut largest = 0.0_f32;
    for (observation, action) in observations.chunks_exact(width).zip(expected.chunks_exact(action_dim)) {
        policy.infer(observation, &[], &mut out).unwrap();
        for (mean, action) in out.mean().iter().zip(action) {
            largest = largest.max((mean.tanh() - action).abs());
        }
    }
    largest
}

fn bring(file: &str, given: &Given) -> Result<Imported, ImportError> {
    let path = data(file);
    import(detect(&path)?, &[&path], given)
}

#[test]
fn imports_act_as_the_packages_that_made_them() {
    for (file, kind, given, stem) in [
        ("d3rlpy_cql.d3", Kind::D3rlpy, Given::default(), "d3rlpy_cql_d3"),
        ("sb3_sac.zip", Kind::Sb3, raw(), "sb3_sac_zip"),
        ("corl_cal_ql.pt", Kind::Corl, corl(), "corl_cal_ql_pt"),
        ("wsrl.safetensors", Kind::Weights, raw(), "wsrl_safetensors"),
    ] {
        assert_eq!(detect(&data(file)).unwrap(), kind, "{file}");
        let imported = bring(file, &given).unwrap();
        let largest = difference(&imported.weights, stem);
        eprintln!("{file}: {}, at most {largest:e} apart", imported.algorithm);
        assert!(largest < 1e-5, "{file}: {largest}");
        assert!(imported.weights.targets.is_some() && imported.weights.log_alpha.is_some(), "{file}");
        let says = matches!(kind, Kind::D3rlpy | Kind::Sb3);
        assert_eq!(imported.discount.is_some(), says, "{file}: who says its discount");
    }
}

#[test]
fn without_its_scaling_an_import_acts_otherwise() {
    let given = Given { state: None, raw_state: true, ..corl() };
    let imported = bring("corl_cal_ql.pt", &given).unwrap();
    assert!(difference(&imported.weights, "corl_cal_ql_pt") > 1e-2);
}

#[test]
fn what_a_file_does_not_say_is_asked_for_and_what_it_says_is_not_to_be_given() {
    let unsaid = |file: &str, given: &Given, flag: &str| {
        let error = bring(file, given).expect_err("guessed").to_string();
        assert!(error.contains(flag), "{error}");
    };
    unsaid("sb3_sac.zip", &Given::default(), "--raw-state");
    unsaid("corl_cal_ql.pt", &raw(), "--action-scale");
    unsaid("corl_cal_ql.pt", &Given { action_scale: Some(1.0), ..Given::default() }, "--state-mean");
    assert!(matches!(bring("d3rlpy_cql.d3", &raw()), Err(ImportError::Said { .. })));
    assert!(matches!(bring("sb3_sac.zip", &Given { action_scale: Some(1.0), ..raw() }), Err(ImportError::Said { .. })));
    let mut short = corl();
    if let Some(state) = &mut short.state {
        state.shift.pop();
    }
    assert!(matches!(bring("corl_cal_ql.pt", &short), Err(ImportError::StateScaling { what: "mean", .. })));
}

#[test]
fn networks_with_layer_norm_become_one_ensemble_too() {
    let path = data("wsrl.safetensors");
    let one = bring("wsrl.safetensors", &raw()).unwrap().weights;
    let two = import(Kind::Weights, &[&path, &path], &raw()).unwrap().weights;
    assert_eq!((one.critic1.members, two.critic1.members), (5, 10));
    assert!(two.critic1.layers[0].layer_norm.is_some());
    assert!(difference(&two, "wsrl_safetensors") < 1e-5);
}

#[test]
fn several_checkpoints_are_one_ensemble() {
    let path = data("sb3_sac.zip");
    let one = import(Kind::Sb3, &[&path], &raw()).unwrap().weights;
    let three = import(Kind::Sb3, &[&path, &path, &path], &raw()).unwrap().weights;
    assert_eq!((three.actor.stack.members, three.critic2.members), (3, 3));
    assert!((three.log_alpha.unwrap() - one.log_alpha.unwrap()).abs() < 1e-6);
    let size = |stack: &StackWeights| stack.layers.iter().map(|l| l.weight.len() + l.bias.len()).sum::<usize>();
    assert_eq!(size(&three.actor.stack), 3 * size(&one.actor.stack));
    let other = data("d3rlpy_cql.d3");
    assert!(import(Kind::Sb3, &[&path, &other], &raw()).is_err());
    assert!(import(Kind::D3rlpy, &[&path], &Given::default()).is_err(), "a kind that the file is not");
}

fn describe(interface: &foreign::Interface) -> ForeignDescription {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    ForeignDescription {
        name: String::from("brought"),
        control_hz: 50.0,
        spaces: Spaces { observation: names("o", interface.observation_dim), action: names("a", interface.action_dim) },
        provenance: std::collections::BTreeMap::new(),
    }
}

#[test]
fn an_onnx_actor_of_others_keeps_its_answers_in_a_bundle() {
    let bytes = std::fs::read(data("d3rlpy_cql.onnx")).unwrap();
    let description = foreign::inspect(&bytes, None).unwrap();
    assert_eq!((description.opset, description.interface.observation_dim), (11, 5));
    let Some(library) = places::onnxruntime() else { return };
    let runtime = Runtime::load(&library).unwrap();
    let interface = &description.interface;
    let mut policy = ForeignPolicy::new(runtime, &bytes, interface).unwrap();
    let (observations, expected) = (numbers("d3rlpy_cql_d3_observations.npy"), numbers("d3rlpy_cql_d3_actions.npy"));
    let mut out = PolicyOutput::default();
    for (observation, expected) in observations.chunks_exact(5).zip(expected.chunks_exact(2)) {
        let action = policy.action(observation).unwrap().to_vec();
        policy.infer(observation, &[], &mut out).unwrap();
        for d in 0..2 {
            assert!((action[d] - expected[d]).abs() < 1e-6, "{action:?} {expected:?}");
            assert!((out.mean[d].tanh() - action[d]).abs() < 1e-6, "what the control loop does with the mean");
            assert!(out.std[d] < 1e-8);
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let bundle = ForeignBundle::new(describe(interface), bytes.clone(), None, runtime).unwrap();
    bundle.save(&path).unwrap();
    let AnyBundle::Foreign(again) = AnyBundle::load(&path).unwrap() else { panic!("another kind") };
    assert_eq!(*again, bundle);
    assert!(AnyBundle::load(&path).unwrap().ensemble().is_err(), "there is nothing to learn from");
    let config = PolicyConfig { onnxruntime: library, ..PolicyConfig::default() };
    let prepared = again.prepare(&bundle.manifest().description.spaces, &config).unwrap();
    assert_eq!(prepared.report.probe_difference, 0.0);
    let without = again.prepare(&bundle.manifest().description.spaces, &PolicyConfig::default()).err();
    assert!(matches!(without, Some(PolicyError::Foreign(ForeignError::NeedsRuntime))));
    let mut other = bundle.manifest().description.spaces.clone();
    other.action.swap(0, 1);
    assert!(again.prepare(&other, &config).is_err());

    for name in ["manifest.toml", "policy.onnx", "golden.safetensors"] {
        let good = std::fs::read(path.join(name)).unwrap();
        for at in (0..good.len()).step_by(good.len() / 40 + 1) {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(path.join(name), &bytes).unwrap();
            assert!(AnyBundle::load(&path).is_err(), "byte {at} of {name} may change");
        }
        std::fs::write(path.join(name), &good[..good.len() - 1]).unwrap();
        assert!(AnyBundle::load(&path).is_err(), "{name} may be cut");
        std::fs::write(path.join(name), good).unwrap();
    }
}

#[test]
fn published_onnx_actors_are_read_and_run() {
    let library = places::onnxruntime();
    for (file, observation_dim, action_dim) in [
        ("policies/apollo_policy.onnx", 112, 32),
        ("policies/bh_policy.onnx", 52, 12),
        ("policies/go1_policy.onnx", 48, 12),
        ("policies/leap_reorient_policy.onnx", 57, 16),
        ("datasets/halfcheetah_medium_actor.onnx", 17, 6),
        ("datasets/halfcheetah_strong_actor.onnx", 17, 6),
    ] {
        let Some(path) = places::shared(file) else { continue };
        let bytes = std::fs::read(path).unwrap();
        let interface = foreign::inspect(&bytes, None).unwrap().interface;
        assert_eq!((interface.observation_dim, interface.action_dim), (observation_dim, action_dim), "{file}");
        let Some(library) = &library else { continue };
        let mut policy = ForeignPolicy::new(Runtime::load(library).unwrap(), &bytes, &interface).unwrap();
        for row in probe_observations(observation_dim, 20).chunks_exact(observation_dim) {
            assert!(policy.action(row).unwrap().iter().all(|a| a.abs() <= 1.0), "{file}");
        }
    }
}

#[test]
fn onnx_files_that_are_no_actor_are_refused_by_name() {
    let good = std::fs::read(data("d3rlpy_cql.onnx")).unwrap();
    assert!(matches!(foreign::inspect(&good, Some("value")), Err(ForeignError::Outputs { .. })));
    assert!(matches!(foreign::inspect(b"", None), Err(ForeignError::Opset { got: 0 })));
    for len in (0..good.len()).step_by(7) {
        assert!(foreign::inspect(&good[..len], None).is_err(), "accepted {len} bytes");
    }
    // The first bias of the last layer, which no scaling touches, is in the torch file as well.
    let weights = bring("d3rlpy_cql.d3", &Given::default()).unwrap().weights;
    let bias = weights.actor.stack.layers.last().unwrap().bias[0].to_le_bytes();
    let at = good.windows(4).position(|w| w == bias).expect("the same number in both files");
    let mut nan = good;
    nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(foreign::inspect(&nan, None), Err(ForeignError::NotFinite { .. })));
}

fn fieldtune(arguments: &[&str]) -> String {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_fieldtune")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&done.stderr));
    text
}

#[test]
fn a_brought_actor_drives_the_control_loop_as_its_weights_do() {
    let Some(library) = places::onnxruntime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (config, bundle) = (text(root.join("config/quickstart.toml")), text(folder.path().join("actor")));
    let ensemble = text(root.join("models/pendulum-cql"));
    let onnx = format!("{ensemble}/policy.onnx");
    let (library, engine) = (text(library.clone()), format!("policy.onnxruntime={}", library.display()));
    // The exported ensemble as others would see it: a graph with an output `action`.
    let said = fieldtune(&["policy", "import", &onnx, "-c", &config, "--out", &bundle, "--onnxruntime", &library]);
    assert!(said.contains("is an ONNX actor") && said.contains("no weights to learn from"), "{said}");

    let returns = |policy: &str| -> Vec<f64> {
        let arguments = ["evaluate", "-c", &config, "--policy", policy, "--episodes", "3", "--json", "--set", &engine];
        let json: serde_json::Value = serde_json::from_str(&fieldtune(&arguments)).unwrap();
        json["episodes"].as_array().unwrap().iter().map(|e| e["episode_return"].as_f64().unwrap()).collect()
    };
    let (foreign, own) = (returns(&bundle), returns(&ensemble));
    assert_eq!((foreign.len(), own.len()), (3, 3));
    for (foreign, own) in foreign.iter().zip(&own) {
        assert!((foreign - own).abs() < 0.1 * own.abs().max(10.0), "{foreign} with the graph, {own} with the weights");
    }

    // What is taken out of a bundle is what went in.
    let (taken, weights) = (text(folder.path().join("taken.onnx")), text(folder.path().join("weights.safetensors")));
    fieldtune(&["policy", "export", &bundle, "--onnx", &taken]);
    assert_eq!(std::fs::read(&taken).unwrap(), std::fs::read(&onnx).unwrap());
    fieldtune(&["policy", "export", &ensemble, "--weights", &weights]);
    let original = Path::new(&ensemble).join("weights.safetensors");
    assert_eq!(std::fs::read(&weights).unwrap(), std::fs::read(original).unwrap());

    let run = text(folder.path().join("run"));
    let sets = [
        format!("policy.bundle={bundle}"),
        format!("run.directory={run}"),
        engine.clone(),
        "learner.enabled=false".into(),
        "replay.offline=".into(),
        "replay.sampler=online".into(),
        "run.clock=lockstep".into(),
        "run.steps=150".into(),
        "run.evaluate_episodes=0".into(),
    ];
    let mut arguments = vec!["run", "-c", &config, "--quiet"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    let said = fieldtune(&arguments);
    assert!(said.contains("150 online"), "{said}");
    let with_learner: Vec<&str> =
        arguments.iter().map(|a| if *a == "learner.enabled=false" { "learner.enabled=true" } else { a }).collect();
    let refused = std::process::Command::new(env!("CARGO_BIN_EXE_fieldtune")).args(with_learner).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("no weights to learn from"), "{error}");
}
