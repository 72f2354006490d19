//! Promise: a residual starts as its frozen base, learns what the base lacks, and goes with no other base.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

mod learner_problem;
mod places;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor, Var};
use fieldtune::config::{LearnerConfig, PolicyConfig, SamplerKind};
use fieldtune::learner::{Dims, Learner};
use fieldtune::nn::{ActorWeights, EnsembleWeights, StackWeights};
use fieldtune::policy::checks::probe_observations;
use fieldtune::policy::foreign_bundle::ForeignDescription;
use fieldtune::policy::manifest::{Description, Residual};
use fieldtune::policy::onnxruntime::Runtime;
use fieldtune::policy::residual::{Frozen, start_at_base};
use fieldtune::policy::{AnyBundle, Bundle, ForeignBundle, PolicyBackend, PolicyError, PolicyOutput};
use fieldtune::rl::actor::executed;
use fieldtune::spaces::{Spaces, StepFlags};
use learner_problem::*;

const ROBOT: Dims = Dims { observation: 3, action: 2 };

fn spaces() -> Spaces {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect();
    Spaces { observation: names("o", ROBOT.observation), action: names("a", ROBOT.action) }
}

fn saved(weights: EnsembleWeights, residual: Option<Residual>, folder: &Path) -> AnyBundle {
    let description = Description {
        name: "residual test".into(),
        control_hz: 20.0,
        algorithm: "none".into(),
        discount: 0.99,
        training_log_std: None,
        residual,
        spaces: spaces(),
        provenance: BTreeMap::new(),
    };
    Bundle::new(description, weights).unwrap().save(folder).unwrap();
    AnyBundle::load(folder).unwrap()
}

/// Networks whose last layer is not near zero.
fn strong(seed: u64) -> EnsembleWeights {
    let mut weights = ensemble(2, ROBOT, &[16, 16], seed);
    weights.actor.stack.layers[2].weight.iter_mut().for_each(|w| *w *= 700.0);
    weights
}

/// Executed means over some observations.
fn actions(policy: &AnyBundle, config: &PolicyConfig) -> Vec<f32> {
    let mut policy = policy.source().prepare(&spaces(), config).unwrap().backend;
    let mut out = PolicyOutput::default();
    let mut actions = Vec::new();
    for row in probe_observations(ROBOT.observation, 50).chunks_exact(ROBOT.observation) {
        policy.infer(row, &[], &mut out).unwrap();
        actions.extend((0..ROBOT.action).map(|d| out.action(d, 0.0)));
    }
    actions
}

/// Folder with `base`, a residual as `policy new` makes it in `new`, and one that says something in `taught`.
fn family(scale: f32) -> (tempfile::TempDir, [AnyBundle; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let base = saved(strong(1), None, &dir.path().join("base"));
    let on = Residual { base_sha256: base.policy_sha256().into(), scale };
    let mut new = strong(2);
    start_at_base(&mut new.actor);
    let new = saved(new, Some(on.clone()), &dir.path().join("new"));
    let taught = saved(strong(3), Some(on), &dir.path().join("taught"));
    (dir, [base, new, taught])
}

fn on(base: PathBuf) -> PolicyConfig {
    PolicyConfig { base, ..PolicyConfig::default() }
}

#[test]
fn a_new_residual_acts_as_its_base_to_the_bit_and_a_taught_one_stays_near() {
    let (dir, [base, new, taught]) = family(0.25);
    let config = on(dir.path().join("base"));
    let below = actions(&base, &PolicyConfig::default());
    assert!(below.iter().any(|a| a.abs() > 0.5), "the base must say something");
    assert_eq!(actions(&new, &config), below);
    let above = actions(&taught, &config);
    assert!(above.iter().zip(&below).all(|(a, b)| (a - b).abs() <= 0.25 && a.abs() <= 1.0));
    assert!(above.iter().zip(&below).any(|(a, b)| (a - b).abs() > 0.1), "the residual must be added");
}

#[test]
fn a_residual_goes_with_its_base_alone() {
    let (dir, [_, new, _]) = family(0.25);
    let refused = |config: &PolicyConfig| {
        let error = new.source().prepare(&spaces(), config).err().unwrap();
        assert!(matches!(error, PolicyError::Residual(_)), "{error}");
        error.to_string()
    };
    assert!(refused(&PolicyConfig::default()).contains("name its bundle with policy.base"));
    saved(strong(9), None, &dir.path().join("other"));
    assert!(refused(&on(dir.path().join("other"))).contains("this residual was made for"));
    assert!(refused(&on(dir.path().join("taught"))).contains("is a residual itself"));
}

#[test]
fn engines_and_kinds_of_base_agree() {
    let Some(library) = places::onnxruntime() else { return };
    let (dir, [base, _, taught]) = family(0.25);
    let native = actions(&taught, &on(dir.path().join("base")));
    // The base's own file as an ONNX actor of others: the same hash, run by ONNX Runtime.
    let AnyBundle::Ensemble(bundle) = &base else { panic!("an ensemble") };
    let description =
        ForeignDescription { name: "others".into(), control_hz: 20.0, spaces: spaces(), provenance: BTreeMap::new() };
    let runtime = Runtime::load(&library).unwrap();
    let foreign = ForeignBundle::new(description, bundle.onnx().to_vec(), None, runtime).unwrap();
    foreign.save(&dir.path().join("foreign")).unwrap();
    for folder in ["base", "foreign"] {
        let config = PolicyConfig { onnxruntime: library.clone(), ..on(dir.path().join(folder)) };
        let difference =
            actions(&taught, &config).iter().zip(&native).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        eprintln!("{folder} by ONNX Runtime: {difference:e}");
        assert!(difference < 2e-6, "{folder}: {difference}");
    }
}

#[test]
fn the_gradient_ends_where_the_action_is_clipped() {
    let action = Var::new(&[[0.5f32, 0.5, -0.5]], &Device::Cpu).unwrap();
    let base = Tensor::new(&[[0.2f32, 0.9, -1.0]], &Device::Cpu).unwrap();
    let done = executed(&base, 0.4, &action).unwrap();
    assert_eq!(done.to_vec2::<f32>().unwrap(), [[0.4, 1.0, -1.0]]);
    let gradient = done.sum_all().unwrap().backward().unwrap();
    assert_eq!(gradient.get(&action).unwrap().to_vec2::<f32>().unwrap(), [[0.4, 0.0, 0.0]]);
}

/// The same action in every state.
struct Constant(f32);

impl PolicyBackend for Constant {
    fn infer(&mut self, _observation: &[f32], _image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        *out = PolicyOutput { action_dim: 1, ..PolicyOutput::default() };
        out.mean[0] = self.0.atanh();
        Ok(())
    }

    fn engine(&self) -> &'static str {
        "constant"
    }

    fn observation_dim(&self) -> usize {
        2
    }

    fn action_dim(&self) -> usize {
        1
    }
}

fn constant(action: f32, scale: f32) -> Frozen {
    Frozen::around(Box::new(Constant(action)), Residual { base_sha256: "test".into(), scale })
}

fn learner(config: &LearnerConfig, base: Frozen) -> Learner {
    let mut weights = ensemble(2, DIMS, &[16, 16], 1);
    start_at_base(&mut weights.actor);
    Learner::new(&weights, DIMS, config, &replay_config(SamplerKind::Online), 5).unwrap().on_base(Some(base))
}

/// Mean reward over a grid of `clip(base + scale greedy(s))`.
fn reward_on(actor: &ActorWeights, base: f32, scale: f32) -> f32 {
    let grid: Vec<[f32; 2]> = (-4..=4).flat_map(|i| (-4..=4).map(move |j| [i as f32 / 4.0, j as f32 / 4.0])).collect();
    let reward = |s: &[f32; 2]| bandit_reward(s, (base + scale * greedy(actor, *s)).clamp(-1.0, 1.0));
    grid.iter().map(reward).sum::<f32>() / grid.len() as f32
}

#[test]
fn the_critic_judges_and_the_actor_moves_what_is_executed() {
    let (base, scale) = (0.4, 1.5);
    let mut learner = learner(&learner_config(), constant(base, scale));
    let before = reward_on(&learner.actor().unwrap(), base, scale);
    let replay = replay(None, random_bandit(3, 400), SamplerKind::Online);
    (0..600).for_each(|_| _ = learner.update(&replay).unwrap());
    let after = reward_on(&learner.actor().unwrap(), base, scale);
    eprintln!("{before:.3} as the base, {after:.3} with the residual");
    assert!(before < -0.9 && after > -0.12, "{before} before, {after} after");
}

#[test]
fn the_target_bootstraps_from_what_is_executed_next() {
    // Q(s, a) = 2 a, and no rewards: y = 0.99 * 2 * base, but for the little noise of a new residual.
    let config = LearnerConfig { entropy_backup: false, ..learner_config() };
    let mut weights = ensemble(2, DIMS, &[], 1);
    start_at_base(&mut weights.actor);
    let linear = |stack: &mut StackWeights| {
        stack.layers[0].weight.copy_from_slice(&[0.0, 0.0, 2.0, 0.0, 0.0, 2.0]);
        stack.layers[0].bias.fill(0.0);
    };
    linear(&mut weights.critic1);
    linear(&mut weights.critic2);
    let data = bandit_store(4, 200, StepFlags::TRUNCATED, |_, _| (0.0, 0.0));
    let replay = replay(None, data, SamplerKind::Online);
    let new = Learner::new(&weights, DIMS, &config, &replay_config(SamplerKind::Online), 5).unwrap();
    let target = new.on_base(Some(constant(0.5, 0.01))).update(&replay).unwrap().target_mean;
    assert!((target - 0.99).abs() < 0.005, "{target}");
}

#[test]
fn a_resumed_residual_goes_on_to_the_byte_and_only_on_its_base() {
    let config = LearnerConfig { critic_steps: 2, ..learner_config() };
    let replay = replay(None, random_bandit(3, 200), SamplerKind::Online);
    let dir = tempfile::tempdir().unwrap();
    let mut straight = learner(&config, constant(0.4, 0.5));
    (0..10).for_each(|_| _ = straight.update(&replay).unwrap());
    let state = replay.lock().unwrap().state();
    straight.save(dir.path(), &state).unwrap();
    let load = |base| Learner::load(dir.path(), DIMS, &config, &replay_config(SamplerKind::Online), base);
    let (mut resumed, _) = load(Some(constant(0.4, 0.5))).unwrap();
    for learner in [&mut straight, &mut resumed] {
        (0..10).for_each(|_| _ = learner.update(&replay).unwrap());
    }
    assert_eq!(resumed.weights().unwrap(), straight.weights().unwrap());
    for other in [None, Some(constant(0.4, 0.6))] {
        let error = load(other).err().unwrap().to_string();
        assert!(error.contains("another `policy.base`"), "{error}");
    }
}

fn fieldtune(arguments: &[&str]) -> std::process::Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new(env!("CARGO_BIN_EXE_fieldtune")).current_dir(root).args(arguments).output().unwrap()
}

#[test]
fn a_residual_on_a_frozen_weak_policy_makes_the_pendulum_better() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let base = format!("policy.base={}", "models/pendulum-cql");
    let made = ["policy", "new", "--config", "config/quickstart.toml", "--residual", "2.0", "--out", &path("residual")];
    let shape = ["--set", &base, "--set", "pretrain.hidden=[64, 64]", "--set", "pretrain.ensemble_size=2"];
    let output = fieldtune(&[&made[..], &shape].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let settings = [
        base.clone(),
        format!("policy.bundle={}", path("residual")),
        format!("run.directory={}", path("run")),
        "run.clock=lockstep".into(),
        "run.steps=2500".into(),
        "replay.offline=".into(),
        "replay.sampler=online".into(),
        "learner.batch_size=64".into(),
        // Critics that begin untrained learn faster over a shorter horizon.
        "learner.discount=0.95".into(),
        "learner.target_rate=0.02".into(),
        "learner.target_entropy=0.0".into(),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
    let run = ["run", "--config", "config/quickstart.toml", "--quiet", "--report", &path("report.json")];
    let output = fieldtune(&[&run[..], &settings].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(path("report.json")).unwrap()).unwrap();
    let mean = |key: &str| {
        let values: Vec<f64> = report[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    eprintln!("{:.0} before, {:.0} after", mean("before"), mean("after"));
    assert!(mean("after") >= mean("before") + 200.0, "{} before, {} after", mean("before"), mean("after"));

    // Before, it is the base to the last digit; what was learned is nothing without the base.
    let evaluate = ["evaluate", "--config", "config/quickstart.toml", "--json", "--episodes", "8", "--policy"];
    let alone = fieldtune(&[&evaluate[..], &["models/pendulum-cql"]].concat());
    let alone: serde_json::Value = serde_json::from_slice(&alone.stdout).unwrap();
    let returns: Vec<&serde_json::Value> =
        alone["episodes"].as_array().unwrap().iter().map(|e| &e["episode_return"]).collect();
    assert_eq!(report["before"].as_array().unwrap().iter().collect::<Vec<_>>(), returns);
    let without = fieldtune(&[&evaluate[..], &[&path("run/bundle")]].concat());
    assert!(!without.status.success());
    let error = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(error.contains("name its bundle with policy.base"), "{error}");
}
