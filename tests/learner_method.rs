//! Each switch of the method does what it says, and what is equal by definition is equal to the byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use fieldtune::config::{
    ActorBatch, ActorLoss, ActorOperator, CqlEntries, CriticLoss, LearnerConfig, Order, PRESETS, SamplerKind, Start,
    TargetKind, TemperatureForm, TemperatureStates, parse,
};
use fieldtune::learner::{Learner, UpdateMetrics};
use fieldtune::nn::{EnsembleWeights, StackWeights};
use fieldtune::replay::Store;
use fieldtune::spaces::StepFlags;
use learner_problem::*;

const HIDDEN: &[usize] = &[16, 16];

/// Weights and metrics after `updates` on online data.
fn after(
    weights: &EnsembleWeights,
    updates: u32,
    data: Store,
    change: impl FnOnce(&mut LearnerConfig),
) -> (EnsembleWeights, UpdateMetrics) {
    let mut config = learner_config();
    change(&mut config);
    let replay = replay(None, data, SamplerKind::Online);
    let mut learner = Learner::new(weights, DIMS, &config, &replay_config(SamplerKind::Online), 5).unwrap();
    let metrics = (0..updates).map(|_| learner.update(&replay).unwrap()).last().unwrap();
    (learner.weights().unwrap(), metrics)
}

fn bandit(updates: u32, members: usize, change: impl FnOnce(&mut LearnerConfig)) -> EnsembleWeights {
    after(&ensemble(members, DIMS, HIDDEN, 1), updates, random_bandit(3, 200), change).0
}

/// Transitions that bootstrap.
fn endless(seed: u64) -> Store {
    bandit_store(seed, 200, StepFlags::TRUNCATED, |_, s| (0.4 * s[0], s[1]))
}

fn bootstrapped(members: usize, change: impl FnOnce(&mut LearnerConfig)) -> EnsembleWeights {
    after(&ensemble(members, DIMS, HIDDEN, 1), 8, endless(4), change).0
}

#[test]
fn one_member_makes_all_pessimistic_operators_sac() {
    let sac = bootstrapped(1, |_| {});
    for target in [TargetKind::MeanOfTwinMin, TargetKind::EnsembleMin, TargetKind::WeightedMinPair] {
        assert!(bootstrapped(1, |c| c.target_operator = target) == sac, "{target:?}");
    }
    for operator in [ActorOperator::Min, ActorOperator::WeightedMinPair] {
        assert!(bootstrapped(1, |c| c.actor_operator = operator) == sac, "{operator:?}");
    }
    let all = |c: &mut LearnerConfig| {
        (c.target_operator, c.redq_subset, c.redq_replacement) = (TargetKind::Redq, 2, false);
    };
    assert!(bootstrapped(1, all) == sac);
    assert!(bootstrapped(1, |c| c.actor_operator = ActorOperator::Mean) != sac);
}

#[test]
fn redq_over_all_critics_is_the_ensemble_minimum_and_over_some_is_not() {
    let least = bootstrapped(3, |c| c.target_operator = TargetKind::EnsembleMin);
    let redq = |subset: usize, replacement: bool| {
        bootstrapped(3, |c| {
            (c.target_operator, c.redq_subset, c.redq_replacement) = (TargetKind::Redq, subset, replacement);
        })
    };
    assert!(redq(6, false) == least);
    assert!(redq(2, false) != least && redq(2, true) != redq(2, false) && redq(2, true) == redq(2, true));
    assert!(bootstrapped(3, |_| {}) != least);
}

#[test]
fn operators_name_the_value_they_stand_for() {
    let mut weights = ensemble(3, DIMS, HIDDEN, 1);
    for (stack, values) in [(&mut weights.critic1, [10.0, 20.0, 30.0]), (&mut weights.critic2, [5.0, 25.0, 15.0])] {
        make_constant(stack, 0.0);
        stack.layers.last_mut().unwrap().bias.copy_from_slice(&values);
    }
    make_constant(&mut weights.actor.stack, 0.0);
    let data = || bandit_store(5, 50, StepFlags::TRUNCATED, |_, _| (0.0, 0.0));
    let run = |change: &dyn Fn(&mut LearnerConfig)| {
        after(&weights, 1, data(), |c| {
            (c.entropy_backup, c.initial_temperature) = (false, 1e-9);
            change(c);
        })
        .1
    };
    let own = (5.0 + 20.0 + 15.0) / 3.0;
    for (kind, value) in
        [(TargetKind::OwnTwinMin, own), (TargetKind::MeanOfTwinMin, own), (TargetKind::EnsembleMin, 5.0)]
    {
        let metrics = run(&|c| c.target_operator = kind);
        assert!((metrics.target_mean - 0.99 * value).abs() < 1e-4, "{kind:?}: {metrics:?}");
    }
    // Members at their own targets err less than members at the common one.
    let error = |kind| run(&|c| c.target_operator = kind).td_error_online.unwrap();
    let own_error = [10.0 - 4.95, 5.0 - 4.95, 20.0 - 19.8, 25.0 - 19.8, 30.0 - 14.85, 15.0 - 14.85];
    assert!((error(TargetKind::OwnTwinMin) - own_error.iter().sum::<f32>() / 6.0).abs() < 1e-4);
    assert!(error(TargetKind::MeanOfTwinMin) > error(TargetKind::OwnTwinMin) + 1.0);
    // Sorted 5, 10, 15, 20, 25, 30: the least is the lesser of five pairs, the next of four, and so on.
    let pairs = (5.0 * 5.0 + 4.0 * 10.0 + 3.0 * 15.0 + 2.0 * 20.0 + 25.0) / 15.0;
    let metrics = run(&|c| c.target_operator = TargetKind::WeightedMinPair);
    assert!((metrics.target_mean - 0.99 * pairs).abs() < 1e-4, "{metrics:?}");
    for (kind, value) in [
        (ActorOperator::MeanOfTwinMin, own),
        (ActorOperator::Min, 5.0),
        (ActorOperator::Mean, 105.0 / 6.0),
        (ActorOperator::WeightedMinPair, pairs),
    ] {
        let metrics = run(&|c| c.actor_operator = kind);
        assert!((metrics.actor_loss + value).abs() < 1e-4, "{kind:?}: {metrics:?}");
    }
}

#[test]
fn without_a_known_return_cal_ql_is_cql_and_with_one_it_is_not() {
    // Steps of an episode that goes on: no return is known, every bound is minus infinity.
    let unfinished = || {
        let mut store = Store::in_memory(LAYOUT, 512).unwrap();
        let rng = &mut fieldtune::learner::stream(6, "test data");
        for step in 0..200 {
            let mut record = fieldtune::spaces::StepRecord { step, reward: 50.0, ..Default::default() };
            record.observation.extend_from_slice(&state(rng)).unwrap();
            record.action.push(0.1).unwrap();
            store.append(&record).unwrap();
        }
        store
    };
    let run = |loss: CriticLoss, data: Store| {
        after(&ensemble(2, DIMS, HIDDEN, 1), 5, data, |c| (c.critic_loss, c.cql_actions) = (loss, 3))
    };
    assert!(run(CriticLoss::CalQl, unfinished()) == run(CriticLoss::Cql, unfinished()));
    assert!(run(CriticLoss::Sac, unfinished()).0 != run(CriticLoss::Cql, unfinished()).0);
    // Known returns above every value: only the uniform actions are pushed down, by more than before.
    let high = || bandit_store(7, 200, StepFlags::TERMINATED, |_, _| (0.1, 50.0));
    let (calibrated, plain) = (run(CriticLoss::CalQl, high()), run(CriticLoss::Cql, high()));
    assert!(calibrated.0 != plain.0 && calibrated.1.penalty > plain.1.penalty + 100.0, "{:?}", calibrated.1);
}

#[test]
fn the_penalty_lowers_actions_that_the_data_do_not_take() {
    let data = || bandit_store(8, 400, StepFlags::TERMINATED, |_, _| (0.9, 0.0));
    let gap = |loss| {
        let weights = after(&ensemble(2, DIMS, HIDDEN, 1), 150, data(), |c| c.critic_loss = loss).0;
        let q = |a: f32| {
            let stack = fieldtune::nn::Stack::from_weights(&weights.critic1, &candle_core::Device::Cpu).unwrap();
            let row = candle_core::Tensor::new(&[[0.2f32, -0.1, a]], &candle_core::Device::Cpu).unwrap();
            stack.forward_detached(&row).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        q(0.9) - q(-0.9)
    };
    assert!(gap(CriticLoss::Cql) > gap(CriticLoss::Sac) + 1.0);
}

#[test]
fn imitation_finds_the_action_of_the_data_and_awac_the_better_half() {
    let constant = bandit_store(9, 300, StepFlags::TERMINATED, |_, _| (0.5, 0.0));
    let bc = after(&ensemble(2, DIMS, HIDDEN, 1), 300, constant, |c| c.actor_loss = ActorLoss::Bc).0;
    assert!((greedy(&bc.actor, [0.3, -0.3]) - 0.5).abs() < 0.15, "{}", greedy(&bc.actor, [0.3, -0.3]));
    let run = |loss| {
        let change = |c: &mut LearnerConfig| (c.actor_loss, c.awac_beta, c.entropy_backup) = (loss, 0.1, false);
        greedy_reward(&bandit(400, 2, change).actor)
    };
    let (awac, bc) = (run(ActorLoss::Awac), run(ActorLoss::Bc));
    assert!(awac > bc + 0.2 && awac > -0.3, "awac {awac}, imitation {bc}");
}

#[test]
fn several_critic_steps_leave_the_actor_one_step() {
    let rate = 1e-3;
    let one = |steps: usize, order: Order, batch: ActorBatch| {
        bandit(1, 2, |c| {
            (c.critic_steps, c.order, c.actor_batch) = (steps, order, batch);
            (c.actor_learning_rate, c.critic_learning_rate) = (rate, rate);
        })
    };
    let start = ensemble(2, DIMS, HIDDEN, 1);
    let moved = |a: &StackWeights, b: &StackWeights| {
        let pairs = a.layers[0].weight.iter().zip(&b.layers[0].weight);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max)
    };
    for order in [Order::Joint, Order::CriticsFirst] {
        let after = one(4, order, ActorBatch::All);
        // Adam's first step is one learning rate for every parameter with a gradient.
        let (actor, critic) = (moved(&after.actor.stack, &start.actor.stack), moved(&after.critic1, &start.critic1));
        assert!((actor - rate as f32).abs() < 1e-5, "{order:?}: {actor}");
        assert!(critic > 3.0 * rate as f32 && critic < 4.5 * rate as f32, "{order:?}: {critic}");
    }
    assert!(one(4, Order::Joint, ActorBatch::Last) != one(4, Order::Joint, ActorBatch::All));
    assert!(one(1, Order::Joint, ActorBatch::Last) == one(1, Order::Joint, ActorBatch::All));
    assert!(one(1, Order::Joint, ActorBatch::All).actor != one(1, Order::CriticsFirst, ActorBatch::All).actor);
}

#[test]
fn idle_optimisers_move_on_by_their_momentum() {
    let displacement = |zero: bool| {
        let start = ensemble(2, DIMS, HIDDEN, 1);
        let end = bandit(40, 2, |c| {
            (c.critic_steps, c.order, c.zero_gradient_adam) = (4, Order::CriticsFirst, zero);
            (c.actor_learning_rate, c.critic_learning_rate) = (1e-4, 0.0);
        });
        let pairs = start.actor.stack.layers[0].weight.iter().zip(&end.actor.stack.layers[0].weight);
        pairs.map(|(a, b)| (a - b).abs()).sum::<f32>()
    };
    let (with, without) = (displacement(true), displacement(false));
    // Five optimiser steps for one gradient: sqrt(5) times the step in the long run.
    assert!(with > 1.6 * without && with < 3.5 * without, "{with} and {without}");
}

#[test]
fn a_shared_output_layer_stays_shared() {
    let weights = bandit(30, 3, |c| {
        (c.start, c.shared_head, c.critic_steps) = (Start::Scratch, true, 2);
    });
    let (target1, target2) = weights.targets.as_ref().unwrap();
    assert!(StackWeights::share_heads(&[&weights.critic1, &weights.critic2]));
    assert!(StackWeights::share_heads(&[target1, target2]));
    assert_ne!(weights.critic1.layers[0], weights.critic2.layers[0]);
    let apart = bandit(30, 3, |c| c.start = Start::Scratch);
    assert!(!StackWeights::share_heads(&[&apart.critic1, &apart.critic2]));
}

#[test]
fn both_forms_of_the_temperature_start_equal_and_fall_under_too_much_entropy() {
    let run = |form, states, target_entropy: f64| {
        let change = |c: &mut LearnerConfig| {
            (c.temperature_form, c.temperature_states, c.target_entropy) = (form, states, target_entropy);
        };
        let metrics = |updates| after(&ensemble(2, DIMS, HIDDEN, 1), updates, endless(9), change).1.temperature;
        (metrics(1), metrics(40))
    };
    for form in [TemperatureForm::Exp, TemperatureForm::Softplus] {
        for states in [TemperatureStates::Current, TemperatureStates::Next] {
            let (start, end) = run(form, states, -1.0);
            assert!((start - 0.1).abs() < 1e-6 && end < start, "{form:?} {states:?}: {start} to {end}");
            let (_, end) = run(form, states, 5.0);
            assert!(end > start, "{form:?} {states:?}: {start} to {end} below the wanted entropy");
        }
    }
}

#[test]
fn the_temperature_sees_the_states_it_is_told_to() {
    // Wide at s = (0, 0), narrow at s' = (1, 0): the log standard deviation falls with the first entry.
    let mut weights = ensemble(1, DIMS, &[1], 1);
    let layers = &mut weights.actor.stack.layers;
    (layers[0].weight, layers[0].bias) = (vec![1.0, 0.0], vec![0.0]);
    (layers[1].weight, layers[1].bias) = (vec![0.0, -4.0], vec![0.0, 0.0]);
    let mut data = Store::in_memory(LAYOUT, 512).unwrap();
    for episode in 0..100 {
        let mut record = fieldtune::spaces::StepRecord { episode, flags: StepFlags::TRUNCATED, ..Default::default() };
        record.observation.extend_from_slice(&[0.0, 0.0]).unwrap();
        record.action.push(0.1).unwrap();
        data.append(&record).unwrap();
        record.observation[0] = 1.0;
        (record.step, record.flags) = (1, StepFlags::OBSERVATION_ONLY);
        data.append(&record).unwrap();
    }
    let replay = replay(None, data, SamplerKind::Online);
    let entropy = |temperature_states| {
        let config = LearnerConfig { temperature_states, batch_size: 2000, ..learner_config() };
        let mut learner = Learner::new(&weights, DIMS, &config, &replay_config(SamplerKind::Online), 5).unwrap();
        let metrics = learner.update(&replay).unwrap();
        // L = -ln alpha (mean log pi - |A|), solved for the entropy.
        (metrics.temperature_loss / metrics.temperature.ln() - 1.0, metrics.entropy)
    };
    let (current, of_policy) = entropy(TemperatureStates::Current);
    assert!((current - of_policy).abs() < 1e-3, "{current} {of_policy}");
    let (next, _) = entropy(TemperatureStates::Next);
    // A standard deviation of e^-4: the tanh is a straight line.
    let narrow = 0.5 * (2.0 * std::f32::consts::PI * std::f32::consts::E).ln() - 4.0;
    assert!((next - narrow).abs() < 0.1 && of_policy > narrow + 2.0, "{next} {narrow} {of_policy}");
}

#[test]
fn the_online_penalty_has_the_switches_of_pretraining() {
    let run = |change: &dyn Fn(&mut LearnerConfig)| {
        after(&ensemble(2, DIMS, HIDDEN, 1), 60, random_bandit(3, 200), |c| {
            (c.critic_loss, c.cql_weight, c.cql_actions) = (CriticLoss::Cql, 1.0, 3);
            change(c);
        })
    };
    let plain = run(&|_| {});
    assert!(run(&|c| c.cql_entries = CqlEntries::Rho).0 != plain.0 && run(&|c| c.cql_temperature = 2.0).0 != plain.0);
    // The multiplier grows while the penalty is above its gap, and falls while it is below.
    let multiplier = |gap: f64| run(&|c| c.cql_gap = gap).1.penalty_multiplier;
    let (tight, loose) = (multiplier(1e-3), multiplier(1e3));
    assert!(tight > 1.1 && loose < 0.9 && plain.1.penalty_multiplier == 1.0, "{tight} {loose}");
}

#[test]
fn an_anchor_holds_the_actors_and_lets_go() {
    let start = ensemble(2, DIMS, HIDDEN, 1);
    let moved = |change: &dyn Fn(&mut LearnerConfig)| {
        let end = bandit(60, 2, |c| change(c));
        let pairs = start.actor.stack.layers[1].weight.iter().zip(&end.actor.stack.layers[1].weight);
        pairs.map(|(a, b)| (a - b).abs()).sum::<f32>()
    };
    let held = |rate: f64, updates: u64| {
        moved(&|c| (c.anchor_weight, c.anchor_rate, c.anchor_updates) = (100.0, rate, updates))
    };
    let (free, still) = (moved(&|_| {}), held(0.0, 0));
    assert!(still < 0.5 * free, "{still} of {free}");
    assert!(held(0.0, 1) > 1.5 * still && held(0.2, 0) > still);
    // With the entropy backup it counts in the targets as well.
    let target = |weight: f64, entropy_backup: bool| {
        let change = |c: &mut LearnerConfig| {
            (c.anchor_weight, c.anchor_rate, c.entropy_backup) = (weight, 0.0, entropy_backup);
        };
        after(&ensemble(2, DIMS, HIDDEN, 1), 6, endless(9), change).1.target_mean
    };
    assert!(target(100.0, true) != target(0.0, true));
}

#[test]
fn trajectories_weigh_as_the_policy_finds_their_actions() {
    // A standard normal before the tanh, and trajectories of one action each.
    let mut weights = ensemble(2, DIMS, HIDDEN, 1);
    make_constant(&mut weights.actor.stack, 0.0);
    let log_pi = |a: f64| {
        let z = a.atanh();
        -0.5 * z * z - 0.5 * (2.0 * std::f64::consts::PI).ln() - (1.0 - a * a).ln()
    };
    let offline = bandit_store(5, 40, StepFlags::TERMINATED, |_, _| (0.0, 0.0));
    let online = bandit_store(6, 30, StepFlags::TERMINATED, |_, _| (0.8, 0.0));
    let config = fieldtune::config::ReplayConfig {
        trajectory_temperature: 0.5,
        trajectory_refresh: 3,
        ..replay_config(SamplerKind::Trajectory)
    };
    let replay = std::sync::Mutex::new(fieldtune::replay::Replay::new(Some(offline), online, &config).unwrap());
    let still = LearnerConfig { actor_learning_rate: 0.0, ..learner_config() };
    let mut learner = Learner::new(&weights, DIMS, &still, &config, 5).unwrap();
    let leaf = |offline: bool, slot: usize| {
        let replay = replay.lock().unwrap();
        let first = if offline { 0 } else { replay.offline().unwrap().capacity() as usize };
        replay.priorities().get(first + slot)
    };
    assert_eq!((leaf(true, 0), leaf(false, 0)), (1.0, 1.0));
    learner.update(&replay).unwrap();
    let expected = ((log_pi(0.0) - log_pi(0.8)) / 0.5).exp() as f32;
    assert!((leaf(true, 0) - expected).abs() < 1e-4 && leaf(false, 0) == 1.0, "{} {expected}", leaf(true, 0));
    assert_eq!(leaf(true, 78), leaf(true, 0));
    // A step that comes between two sweeps weighs 1.
    let append = |a: f32| {
        let mut replay = replay.lock().unwrap();
        one_step(&mut |r| replay.append(r).unwrap(), 99, [0.0; 2], a, 0.0, StepFlags::TERMINATED);
    };
    append(0.3);
    learner.update(&replay).unwrap();
    assert_eq!(leaf(false, 60), 1.0);
    (0..2).for_each(|_| _ = learner.update(&replay).unwrap());
    let expected = ((log_pi(0.3) - log_pi(0.8)) / 0.5).exp() as f32;
    assert!((leaf(false, 60) - expected).abs() < 1e-4, "{} {expected}", leaf(false, 60));
    assert_eq!(learner.update(&replay).unwrap().density, None);
}

#[test]
fn a_small_limit_on_gradients_is_felt() {
    let run = |clip: f64| bandit(5, 2, |c| c.gradient_clip = clip);
    assert!(run(0.0) == run(1e6));
    assert!(run(0.0) != run(1e-7));
}

/// Steps that all get reward 1 and end, with the action that `action` gives.
fn ones(seed: u64, action: f32) -> Store {
    bandit_store(seed, 300, StepFlags::TERMINATED, |_, _| (action, 1.0))
}

#[test]
fn a_diagnosis_tells_gap_discrimination_and_distance() {
    let mut weights = ensemble(2, DIMS, HIDDEN, 1);
    make_constant(&mut weights.critic1, 8.0);
    make_constant(&mut weights.critic2, 7.0);
    let look = |weights: &EnsembleWeights, offline: Option<Store>, online: Store| {
        let replay = replay(offline, online, SamplerKind::Uniform);
        let config = replay_config(SamplerKind::Uniform);
        let learner = Learner::new(weights, DIMS, &learner_config(), &config, 5).unwrap();
        learner.diagnose(&replay, true).unwrap()
    };
    assert!(look(&weights, None, empty_store()).is_none());
    let far = look(&weights, Some(ones(10, -0.9)), ones(11, 0.9)).unwrap();
    assert_eq!((far.steps, far.q_mean, far.return_mean, far.calibration_gap), (300, 7.0, 1.0, 6.0));
    assert_eq!((far.win_rate, far.auroc, far.reward_offline), (0.0, 0.5, Some(1.0)));
    assert!(far.js_divergence.unwrap() > 0.5, "{far:?}");
    let near = look(&weights, Some(ones(12, 0.9)), ones(13, 0.9)).unwrap();
    assert!(near.js_divergence.unwrap() < 0.05, "{near:?}");
    assert!(look(&weights, None, ones(14, 0.9)).unwrap().js_divergence.is_none());
    // Critics that learned that 0.9 is right.
    let data = || {
        bandit_store(15, 400, StepFlags::TERMINATED, |rng, _| {
            let a = rand::Rng::random_range(rng, -1.0..1.0);
            (a, -4.0 * (a - 0.9f32).powi(2))
        })
    };
    let taught = after(&ensemble(2, DIMS, HIDDEN, 1), 300, data(), |_| {}).0;
    let aware = look(&taught, None, ones(16, 0.9)).unwrap();
    assert!(aware.win_rate > 0.85 && aware.auroc > 0.85, "{aware:?}");
}

#[test]
fn moments_of_pretraining_go_on_where_they_fit() {
    use fieldtune::config::PretrainConfig;
    let dir = tempfile::tempdir().unwrap();
    let hidden = vec![16, 16];
    let config = PretrainConfig { ensemble_size: 3, hidden, batch_size: 16, cql_actions: 2, ..Default::default() };
    let mut pretrainer = fieldtune::learner::pretrain::Pretrainer::new(DIMS, &config, &learner_config(), 1).unwrap();
    let mut offline = replay(Some(random_bandit(70, 300)), empty_store(), SamplerKind::Uniform).into_inner().unwrap();
    for _ in 0..5 {
        pretrainer.step(&mut offline).unwrap();
    }
    pretrainer.save(dir.path()).unwrap();
    let weights = pretrainer.weights().unwrap();
    let run = |folder: &std::path::Path, members: usize| {
        let change = |c: &mut LearnerConfig| (c.carry_optimiser, c.members) = (folder.to_owned(), members);
        after(&weights, 3, random_bandit(3, 200), change).0
    };
    for members in [0, 2] {
        assert!(run(dir.path(), members) != run(std::path::Path::new(""), members));
    }
    // The temperature's moments are the mean of the members', in its own parameter.
    let moment = |folder: &std::path::Path, name: &str| {
        let generation = fieldtune::learner::checkpoint::latest(folder).unwrap().unwrap();
        let bytes = std::fs::read(generation.join("optimisers.safetensors")).unwrap();
        let arrays = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = arrays.tensor(name).unwrap().data().to_vec();
        let values = data.as_chunks::<4>().0.iter().map(|v| f64::from(f32::from_le_bytes(*v)));
        values.clone().sum::<f64>() / values.count() as f64
    };
    for (form, slope) in [(TemperatureForm::Exp, 1.0), (TemperatureForm::Softplus, 1.0 - (-0.1f64).exp())] {
        let carried = tempfile::tempdir().unwrap();
        let config = LearnerConfig {
            carry_optimiser: dir.path().to_owned(),
            temperature_form: form,
            carry_temperature: false,
            initial_temperature: 0.1,
            ..learner_config()
        };
        let learner = Learner::new(&weights, DIMS, &config, &replay_config(SamplerKind::Online), 5).unwrap();
        learner.save(carried.path(), &offline.state()).unwrap();
        for (name, scale) in [("temperature.m.0", slope), ("temperature.v.0", slope * slope)] {
            let (ours, theirs) = (moment(carried.path(), name), moment(dir.path(), name) * scale);
            assert!((ours - theirs).abs() < 1e-5 * theirs.abs() && theirs != 0.0, "{form:?} {name}: {ours} {theirs}");
        }
    }
    let other = LearnerConfig { carry_optimiser: dir.path().to_owned(), ..learner_config() };
    let refused = |weights: &EnsembleWeights, config: &LearnerConfig| {
        Learner::new(weights, DIMS, config, &replay_config(SamplerKind::Online), 5).err().unwrap().to_string()
    };
    let shape = refused(&ensemble(3, DIMS, &[8, 8], 1), &other);
    assert!(shape.contains("networks.safetensors") && shape.contains("`actor`"), "{shape}");
    let nowhere = LearnerConfig { carry_optimiser: dir.path().join("nowhere"), ..other };
    assert!(refused(&weights, &nowhere).contains("nowhere"));
}

#[test]
fn looking_changes_nothing() {
    let run = |look: bool| {
        let replay = replay(Some(random_bandit(70, 300)), random_bandit(71, 100), SamplerKind::Balanced);
        let config = replay_config(SamplerKind::Balanced);
        let mut learner = Learner::new(&ensemble(2, DIMS, HIDDEN, 1), DIMS, &learner_config(), &config, 5).unwrap();
        for _ in 0..6 {
            if look {
                learner.diagnose(&replay, true).unwrap().unwrap();
            }
            learner.update(&replay).unwrap();
        }
        learner.weights().unwrap()
    };
    assert!(run(true) == run(false));
}

#[test]
fn every_preset_learns_without_a_complaint() {
    for (name, _) in PRESETS {
        let text = format!(
            "run.method = \"{name}\"\n[learner]\nbatch_size = 16\ncritic_steps = 2\ncql_actions = 2\ndensity_hidden = [8]\n"
        );
        let config = parse("robot.toml", &text, &[]).unwrap();
        let with = !config.replay.offline.as_os_str().is_empty();
        let replay = replay(with.then(|| random_bandit(70, 300)), random_bandit(71, 100), config.replay.sampler);
        let mut learner =
            Learner::new(&ensemble(3, DIMS, HIDDEN, 1), DIMS, &config.learner, &config.replay, 5).unwrap();
        let metrics = (0..5).map(|_| learner.update(&replay).unwrap()).last().unwrap();
        let shares: f32 = metrics.age_shares.iter().sum();
        assert!((shares - 1.0).abs() < 1e-6 && metrics.td_error_online.is_some(), "{name}: {metrics:?}");
        let symmetric = config.replay.sampler == SamplerKind::Symmetric;
        assert!(!symmetric || metrics.offline_share == 0.5, "{name}: {metrics:?}");
        assert_eq!(metrics.penalty > 0.0, ["cal-ql", "cql-ft"].contains(name), "{name}: {metrics:?}");
    }
}
