//! Offline training of an ensemble.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use fieldtune::clock;
use fieldtune::config::{LearnerConfig, PretrainConfig, ReplayConfig, SamplerKind};
use fieldtune::learner::Dims;
use fieldtune::learner::pretrain::{PretrainMetrics, Pretrainer};
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

#[test]
fn the_penalty_pushes_unseen_actions_below_the_data() {
    // The data know only actions near +0.5, all with the same reward.
    let data = || bandit_store(2, 500, StepFlags::TERMINATED, |rng, _| (rng.random_range(0.4..0.6), 1.0));
    let judge = |weight: f64| {
        let (pretrainer, _) = train(&PretrainConfig { cql_weight: weight, ..config() }, data(), 200);
        let critic =
            fieldtune::nn::Stack::from_weights(&pretrainer.weights().unwrap().critic1, &candle_core::Device::Cpu)
                .unwrap();
        let x = candle_core::Tensor::new(&[[0.0f32, 0.0, 0.5], [0.0, 0.0, -0.5]], &candle_core::Device::Cpu).unwrap();
        let q = critic.forward_detached(&x).unwrap().mean(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        q[0] - q[1]
    };
    let (with, without) = (judge(5.0), judge(0.0));
    assert!(with > 1.0 && with > 3.0 * without.abs(), "gap {with} with the penalty, {without} without");
}

#[test]
fn behaviour_cloning_comes_first() {
    // Without a penalty nothing but imitation leads to the one action of the data, which has no better reward.
    let judge = |behaviour_cloning_updates| {
        let data = bandit_store(3, 500, StepFlags::TERMINATED, |_, _| (0.5, 0.0));
        let config = PretrainConfig { behaviour_cloning_updates, cql_weight: 0.0, ..config() };
        greedy(&train(&config, data, 300).0.weights().unwrap().actor, [0.1, -0.4])
    };
    let (with, without) = (judge(300), judge(0));
    assert!((with - 0.5).abs() < 0.05 && (without - 0.5).abs() > 0.2, "{with} with, {without} without");
}

#[test]
fn members_differ_and_equal_seeds_repeat() {
    let run = || train(&config(), random_bandit(4, 300), 20).0.weights().unwrap();
    let weights = run();
    assert_eq!(weights, run());
    let layer = &weights.actor.stack.layers[0].weight;
    let (first, second) = layer.split_at(layer.len() / 2);
    assert_ne!(first, second);
    assert!(weights.targets.is_none() && weights.log_alpha.is_none());
}

#[test]
fn a_terminated_step_does_not_bootstrap() {
    let data = bandit_store(5, 200, StepFlags::TERMINATED, |_, _| (0.0, 3.0));
    let (_, metrics) = train(&PretrainConfig { cql_weight: 0.0, ..config() }, data, 100);
    assert!((metrics.target_mean - 3.0).abs() < 1e-5, "{metrics:?}");
}

#[test]
#[ignore = "timing: prints updates per second of processor time"]
fn pretraining_speed() {
    let dims = Dims { observation: 3, action: 1 };
    let layout = Layout { observation_dim: 3, action_dim: 1, schema_hash: 1 };
    let mut data = Store::in_memory(layout, 5000).unwrap();
    let rng = &mut fieldtune::learner::stream(6, "test data");
    for step in 0..4000u32 {
        let mut record =
            StepRecord { episode: step / 200, step: step % 200, reward: -rng.random::<f32>(), ..StepRecord::default() };
        record.observation.extend((0..3).map(|_| rng.random_range(-1.0..1.0)));
        record.action.push(rng.random_range(-1.0..1.0)).unwrap();
        data.append(&record).unwrap();
    }
    let mut replay = Replay::new(Some(data), Store::in_memory(layout, 100).unwrap(), &ReplayConfig::default()).unwrap();
    let config = PretrainConfig { hidden: vec![64, 64], ..PretrainConfig::default() };
    let mut pretrainer = Pretrainer::new(dims, &config, &LearnerConfig::default(), 0).unwrap();
    (0..20).for_each(|_| _ = pretrainer.step(&mut replay).unwrap());
    let start = clock::process_cpu();
    (0..300).for_each(|_| _ = pretrainer.step(&mut replay).unwrap());
    let seconds = clock::process_cpu().saturating_sub(start).as_secs_f64();
    eprintln!("CQL 3/1, N = 5, 64-64, batch 128, 4+4+4 actions: {:.1} updates per CPU second", 300.0 / seconds);
}
