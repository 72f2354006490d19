//! Offline training of an ensemble.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use fieldtune::clock;
use fieldtune::config::{
    ConfigError, CqlEntries, LearnerConfig, PretrainConfig, PretrainMethod, ReplayConfig, SamplerKind, parse,
};
use fieldtune::learner::Dims;
use fieldtune::learner::pretrain::{PretrainMetrics, Pretrainer};
use fieldtune::nn::StackWeights;
use fieldtune::replay::{Layout, Replay, Store};
use fieldtune::spaces::{StepFlags, StepRecord};
use learner_problem::*;
use rand::Rng;

fn config() -> PretrainConfig {
    PretrainConfig {
        ensemble_size: 2,
        hidden: vec![24, 24],
        batch_size: 64,
        cql_weight: 0.1,
        actor_learning_rate: 3e-3,
        critic_learning_rate: 3e-3,
        ..PretrainConfig::default()
    }
}

fn train(config: &PretrainConfig, data: Store, updates: u32) -> (Pretrainer, PretrainMetrics) {
    let mut replay = replay(Some(data), empty_store(), SamplerKind::Balanced).into_inner().unwrap();
    let mut pretrainer = Pretrainer::new(DIMS, config, &LearnerConfig::default(), 3).unwrap();
    let metrics = (0..updates).map(|_| pretrainer.step(&mut replay).unwrap()).last().unwrap();
    (pretrainer, metrics)
}

#[test]
fn conservative_learning_finds_the_good_actions_of_the_data() {
    let (pretrainer, metrics) = train(&config(), random_bandit(1, 1000), 500);
    let reward = greedy_reward(&pretrainer.weights().unwrap().actor);
    assert!(reward > -0.1, "greedy reward {reward}, {metrics:?}");
    // Every episode ends after its step, so the critics learn the reward.
    assert!(metrics.bellman_error < 0.5, "{metrics:?}");
}

/// Mean over the members of the first critic at `rows`.
fn judge(weights: &StackWeights, rows: &[[f32; 3]]) -> Vec<f32> {
    let critic = fieldtune::nn::Stack::from_weights(weights, &candle_core::Device::Cpu).unwrap();
    let x = candle_core::Tensor::from_slice(rows.as_flattened(), (rows.len(), 3), &candle_core::Device::Cpu).unwrap();
    critic.forward_detached(&x).unwrap().mean(0).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_penalty_pushes_unseen_actions_below_the_data() {
    // The data know only actions near +0.5, all with the same reward.
    let gap = |config: PretrainConfig| {
        let data = bandit_store(2, 500, StepFlags::TERMINATED, |rng, _| (rng.random_range(0.4..0.6), 1.0));
        let weights = train(&config, data, 200).0.weights().unwrap();
        let q = judge(&weights.critic1, &[[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]]);
        q[0] - q[1]
    };
    let penalty = |cql_entries| gap(PretrainConfig { cql_weight: 5.0, cql_entries, ..config() });
    let without = gap(PretrainConfig { method: PretrainMethod::Sac, ..config() });
    for with in [penalty(CqlEntries::ImportanceSampled), penalty(CqlEntries::Rho)] {
        assert!(with > 1.0 && with > 3.0 * without.abs(), "gap {with} with the penalty, {without} without");
    }
}

#[test]
fn the_multiplier_holds_the_penalty_at_its_gap() {
    let multiplier = |cql_gap: f64| {
        let config = PretrainConfig { cql_gap, cql_weight: 1.0, ..config() };
        train(&config, random_bandit(7, 300), 100).1
    };
    let (tight, loose, fixed) = (multiplier(1e-3), multiplier(1e3), multiplier(0.0));
    assert!(tight.penalty_multiplier > 1.1 && loose.penalty_multiplier < 0.9, "{tight:?} {loose:?}");
    assert!(fixed.penalty_multiplier == 1.0 && tight.penalty < fixed.penalty && fixed.penalty < loose.penalty);
}

/// Steps that go on for ever, by time limit: every target bootstraps.
fn endless(reward: f32) -> Store {
    bandit_store(8, 300, StepFlags::TRUNCATED, move |rng, _| (rng.random_range(-1.0..1.0), reward))
}

#[test]
fn the_best_of_several_backup_actions_is_higher() {
    let target = |backup_actions| {
        let config = PretrainConfig { backup_actions, ..config() };
        train(&config, endless(0.0), 1).1.target_mean
    };
    assert!(target(10) > target(1), "{} {}", target(10), target(1));
}

#[test]
fn the_entropy_backup_counts_the_entropy() {
    let target = |entropy_backup| {
        let config = PretrainConfig { entropy_backup, ..config() };
        train(&config, endless(0.0), 1).1
    };
    // The temperature starts at 1 and critics start near 0; the entropy of a fresh actor is below that of uniform.
    let (with, without) = (target(true), target(false));
    let difference = f64::from(with.target_mean - without.target_mean);
    assert!((difference - 0.99 * f64::from(with.entropy)).abs() < 0.2, "{with:?} {without:?}");
    assert!(with.entropy.abs() > 0.3, "{with:?}");
}

#[test]
fn imitation_finds_the_action_of_the_data() {
    // Nothing but imitation leads to the one action of the data, which has no better reward.
    let learned = |method, behaviour_cloning_updates| {
        let data = bandit_store(3, 500, StepFlags::TERMINATED, |_, _| (0.5, 0.0));
        let config = PretrainConfig { behaviour_cloning_updates, method, ..config() };
        greedy(&train(&config, data, 300).0.weights().unwrap().actor, [0.1, -0.4])
    };
    let (first, always) = (learned(PretrainMethod::Sac, 300), learned(PretrainMethod::BehaviourCloning, 0));
    let without = learned(PretrainMethod::Sac, 0);
    assert!((first - 0.5).abs() < 0.05 && (always - 0.5).abs() < 0.05 && (without - 0.5).abs() > 0.2);
    assert_eq!(first, always);
}

#[test]
fn calibration_acts_where_values_are_below_the_return_of_the_data() {
    let run = |method, reward: f32| {
        let data = bandit_store(9, 200, StepFlags::TERMINATED, move |rng, _| (rng.random_range(-1.0..1.0), reward));
        let (pretrainer, metrics) = train(&PretrainConfig { method, ..config() }, data, 20);
        (pretrainer.weights().unwrap(), metrics.bound_rate)
    };
    let (calibrated, rate) = run(PretrainMethod::CalQl, 100.0);
    let (conservative, none) = run(PretrainMethod::Cql, 100.0);
    assert!(rate > 0.9 && none == 0.0 && calibrated != conservative, "{rate} {none}");
    // A bound that never binds is CQL, to the byte.
    let (calibrated, rate) = run(PretrainMethod::CalQl, -100.0);
    assert!(rate == 0.0 && calibrated == run(PretrainMethod::Cql, -100.0).0);
}

#[test]
fn layer_norm_is_in_every_hidden_layer_and_learns() {
    let (pretrainer, metrics) = train(&PretrainConfig { layer_norm: true, ..config() }, random_bandit(1, 1000), 300);
    let weights = pretrainer.weights().unwrap();
    for stack in [&weights.actor.stack, &weights.critic1, &weights.critic2] {
        assert_eq!(stack.layers.iter().map(|l| l.layer_norm.is_some()).collect::<Vec<_>>(), [true, true, false]);
    }
    assert!(greedy_reward(&weights.actor) > -0.2, "{metrics:?}");
}

/// Actors that always do `action`, almost surely.
fn constant_actors(action: f32) -> fieldtune::nn::ActorWeights {
    let mut actor = ensemble(2, DIMS, &[8], 1).actor;
    let last = actor.stack.layers.last_mut().unwrap();
    last.weight.fill(0.0);
    last.bias = [action.atanh(), -6.0].repeat(2);
    actor
}

#[test]
fn critics_are_fitted_to_given_actors() {
    // Two steps: the first leads on without a reward, the second pays its action. What counts is what the given
    // actors would do in the second, not what the data did and not what would be best.
    let mut data = Store::in_memory(LAYOUT, 2000).unwrap();
    let rng = &mut fieldtune::learner::stream(10, "test data");
    for episode in 0..400 {
        for (step, flags) in [(0, StepFlags::default()), (1, StepFlags::TERMINATED), (2, StepFlags::OBSERVATION_ONLY)] {
            let action = rng.random_range(-1.0f32..1.0);
            let reward = if step == 1 { action } else { 0.0 };
            let mut record = StepRecord { episode, step, reward, flags, ..StepRecord::default() };
            record.observation.extend([1.0 - step as f32, step as f32]);
            record.action.push(action).unwrap();
            data.append(&record).unwrap();
        }
    }
    let mut replay = replay(Some(data), empty_store(), SamplerKind::Balanced).into_inner().unwrap();
    let actors = constant_actors(-0.6);
    let learner = LearnerConfig { target_rate: 0.05, ..LearnerConfig::default() };
    let mut pretrainer = Pretrainer::critics_for(&actors, DIMS, &config(), &learner, 3).unwrap();
    (0..500).for_each(|_| _ = pretrainer.step(&mut replay).unwrap());
    let weights = pretrainer.weights().unwrap();
    assert_eq!(weights.actor, actors);
    let q = judge(&weights.critic1, &[[1.0, 0.0, 0.9], [1.0, 0.0, -0.9], [0.0, 1.0, 0.7]]);
    assert!((q[0] + 0.594).abs() < 0.1 && (q[1] + 0.594).abs() < 0.1 && (q[2] - 0.7).abs() < 0.1, "{q:?}");
    let wrong = Dims { observation: 3, action: 1 };
    assert!(Pretrainer::critics_for(&actors, wrong, &config(), &learner, 3).is_err());
}

#[test]
fn a_resumed_training_equals_the_straight_one() {
    let kinds = [
        PretrainConfig { cql_gap: 1.0, backup_actions: 3, ..config() },
        PretrainConfig { method: PretrainMethod::CalQl, behaviour_cloning_updates: 6, ..config() },
        PretrainConfig { method: PretrainMethod::Sac, entropy_backup: true, layer_norm: true, ..config() },
    ];
    let learner = LearnerConfig::default();
    let actors = constant_actors(0.3);
    for (given, config) in [(false, &kinds[0]), (false, &kinds[1]), (false, &kinds[2]), (true, &kinds[0])] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let data = || replay(Some(random_bandit(11, 200)), empty_store(), SamplerKind::Balanced).into_inner().unwrap();
        let fresh = || {
            let made = if given {
                Pretrainer::critics_for(&actors, DIMS, config, &learner, 5)
            } else {
                Pretrainer::new(DIMS, config, &learner, 5)
            };
            made.unwrap()
        };
        let (mut straight, mut replay) = (fresh(), data());
        (0..12).for_each(|_| _ = straight.step(&mut replay).unwrap());
        straight.save(&at("straight")).unwrap();
        let mut stopped = fresh();
        for (stop, go) in [(0, 5), (5, 6), (6, 12)] {
            if stop > 0 {
                stopped = Pretrainer::load(&at("stopped"), DIMS, config, &learner, given).unwrap();
            }
            assert_eq!(stopped.updates(), stop);
            let mut replay = data();
            (stop..go).for_each(|_| _ = stopped.step(&mut replay).unwrap());
            stopped.save(&at("stopped")).unwrap();
        }
        for part in ["networks.safetensors", "optimisers.safetensors", "state.bin"] {
            let read = |name: &str| {
                let generation = fieldtune::learner::checkpoint::latest(&at(name)).unwrap().unwrap();
                std::fs::read(generation.join(part)).unwrap()
            };
            assert!(read("straight") == read("stopped"), "{:?}, given {given}: {part} differs", config.method);
        }
    }
}

#[test]
fn checkpoints_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let generation = train(&config(), random_bandit(12, 100), 2).0.save(dir.path()).unwrap();
    let load = |config: &PretrainConfig, given| {
        Pretrainer::load(dir.path(), DIMS, config, &LearnerConfig::default(), given).map(|p| p.updates())
    };
    assert_eq!(load(&config(), false).unwrap(), 2);
    let refused = |config: &PretrainConfig, given| load(config, given).unwrap_err().to_string();
    let other = PretrainConfig { method: PretrainMethod::CalQl, ..config() };
    assert!(refused(&other, false).contains("pretrain.method") && refused(&config(), true).contains("pretrain.method"));
    for other in [
        PretrainConfig { ensemble_size: 3, ..config() },
        PretrainConfig { hidden: vec![24], ..config() },
        PretrainConfig { layer_norm: true, ..config() },
    ] {
        assert!(refused(&other, false).contains("networks.safetensors"), "{}", refused(&other, false));
    }
    for part in ["networks.safetensors", "optimisers.safetensors", "state.bin"] {
        let path = generation.join(part);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        std::fs::write(&path, bad).unwrap();
        assert!(refused(&config(), false).contains(part));
        std::fs::write(&path, good).unwrap();
    }
}

#[test]
fn contradictions_are_refused_all_at_once() {
    let text = "[pretrain]\nmethod = \"behaviour-cloning\"\nbehaviour_cloning_updates = 5\ncql_gap = 1.0\n\
                backup_actions = 10\nentropy_backup = true\ncut_returns = \"steady\"\nevaluate_every = 5\n\
                cql_temperature = 0\n[run]\nevaluate_episodes = 0\n";
    let Err(ConfigError::Refused(problems)) = parse("file.toml", text, &[]) else { panic!("accepted") };
    let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "pretrain.cql_temperature",
            "pretrain.cql_gap",
            "pretrain.entropy_backup",
            "pretrain.behaviour_cloning_updates",
            "pretrain.cut_returns",
            "pretrain.evaluate_every"
        ]
    );
}

#[test]
fn members_differ_and_equal_seeds_repeat() {
    let run = || train(&config(), random_bandit(4, 300), 20).0.weights().unwrap();
    let weights = run();
    assert_eq!(weights, run());
    let layer = &weights.actor.stack.layers[0].weight;
    let (first, second) = layer.split_at(layer.len() / 2);
    assert_ne!(first, second);
    // What fine-tuning may go on with.
    let (target1, _) = weights.targets.unwrap();
    assert!(target1 != weights.critic1 && weights.log_alpha.unwrap() != 0.0);
}

#[test]
fn a_terminated_step_does_not_bootstrap() {
    let data = bandit_store(5, 200, StepFlags::TERMINATED, |_, _| (0.0, 3.0));
    let (_, metrics) = train(&PretrainConfig { method: PretrainMethod::Sac, ..config() }, data, 100);
    assert!((metrics.target_mean - 3.0).abs() < 1e-5, "{metrics:?}");
}

/// 4000 transitions of a robot with `dims`, 200 steps per episode, random and without meaning.
fn noise_store(dims: Dims) -> (Layout, Store) {
    let layout = Layout { observation_dim: dims.observation, action_dim: dims.action, schema_hash: 1 };
    let mut data = Store::in_memory(layout, 5000).unwrap();
    let rng = &mut fieldtune::learner::stream(6, "test data");
    for step in 0..4000u32 {
        let mut record =
            StepRecord { episode: step / 200, step: step % 200, reward: -rng.random::<f32>(), ..StepRecord::default() };
        record.observation.extend((0..dims.observation).map(|_| rng.random_range(-1.0..1.0)));
        (0..dims.action).for_each(|_| record.action.push(rng.random_range(-1.0..1.0)).unwrap());
        data.append(&record).unwrap();
    }
    (layout, data)
}

/// Median processor time of an update, milliseconds.
fn milliseconds_per_update(dims: Dims, config: &PretrainConfig, updates: usize) -> f64 {
    let (layout, data) = noise_store(dims);
    let mut replay = Replay::new(Some(data), Store::in_memory(layout, 100).unwrap(), &ReplayConfig::default()).unwrap();
    let mut pretrainer = Pretrainer::new(dims, config, &LearnerConfig::default(), 0).unwrap();
    let mut times = Vec::new();
    for _ in 0..updates {
        let start = clock::process_cpu();
        pretrainer.step(&mut replay).unwrap();
        times.push(clock::process_cpu().saturating_sub(start).as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
#[ignore = "timing: prints processor time per update"]
fn pretraining_speed() {
    fieldtune::nn::hold_candle_to_one_thread();
    fieldtune::runtime::tune_allocator();
    let small = PretrainConfig { hidden: vec![64, 64], ..PretrainConfig::default() };
    let time = milliseconds_per_update(Dims { observation: 3, action: 1 }, &small, 200);
    eprintln!("CQL 3/1, N = 5, 64-64, batch 128, 4+4+4 actions: {time:.2} ms of processor time per update");
    let large = PretrainConfig { cql_actions: 10, batch_size: 256, ..PretrainConfig::default() };
    let time = milliseconds_per_update(Dims { observation: 17, action: 6 }, &large, 9);
    eprintln!("CQL 17/6, N = 5, 256-256, batch 256, 10+10+10 actions: {time:.0} ms of processor time per update");
}
