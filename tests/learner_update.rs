//! What one update of the learner does, on problems whose answer is known.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use std::sync::Mutex;

use fieldtune::config::{LearnerConfig, Order, OutputActivation, SamplerKind, TemperatureForm};
use fieldtune::learner::{Learner, LearnerError, UpdateMetrics};
use fieldtune::nn::EnsembleWeights;
use fieldtune::replay::Replay;
use fieldtune::spaces::StepFlags;
use learner_problem::*;
use rand::Rng;

const HIDDEN: &[usize] = &[24, 24];

fn learner(weights: &EnsembleWeights, config: &LearnerConfig, sampler: SamplerKind) -> Learner {
    Learner::new(weights, DIMS, config, &replay_config(sampler), 5).unwrap()
}

fn run(learner: &mut Learner, replay: &Mutex<Replay>, updates: u32) -> UpdateMetrics {
    (0..updates).map(|_| learner.update(replay).unwrap()).last().unwrap()
}

/// Metrics of the first update when critics answer `value`, actors a standard normal, and every reward is 1.
fn first_update(value: f32, flags: StepFlags, entropy_backup: bool) -> (UpdateMetrics, LearnerConfig) {
    let mut weights = ensemble(3, DIMS, HIDDEN, 1);
    make_constant(&mut weights.actor.stack, 0.0);
    make_constant(&mut weights.critic1, value + 1.0);
    make_constant(&mut weights.critic2, value);
    let data = bandit_store(2, 100, flags, |_, _| (0.5, 1.0));
    let config = LearnerConfig {
        batch_size: 4000,
        entropy_backup,
        initial_temperature: 0.7,
        temperature_learning_rate: 1.0,
        ..learner_config()
    };
    let metrics =
        run(&mut learner(&weights, &config, SamplerKind::Online), &replay(None, data, SamplerKind::Online), 1);
    (metrics, config)
}

#[test]
fn a_terminated_step_does_not_bootstrap_and_a_truncated_one_does() {
    let (metrics, _) = first_update(100.0, StepFlags::TERMINATED, true);
    assert_eq!(metrics.target_mean, 1.0);
    let (metrics, config) = first_update(100.0, StepFlags::TRUNCATED, false);
    let expected = 1.0 + config.discount as f32 * 100.0; // the smaller twin
    assert!((metrics.target_mean - expected).abs() < 1e-3, "{metrics:?}");
    // Both twins of three members miss by 1 and by 0: q1 = 101, q2 = 100, y = 100.
    assert!((metrics.critic_loss - 3.0).abs() < 1e-2 && (metrics.q_mean - 100.5).abs() < 1e-3, "{metrics:?}");
}

#[test]
fn entropy_enters_target_and_losses_with_its_sign() {
    let (metrics, config) = first_update(0.0, StepFlags::TRUNCATED, true);
    // Entropy of tanh(z), z ~ N(0, 1): that of z plus E ln(1 - tanh(z)^2), by quadrature.
    let slope = |z: f64| (1.0 - z.tanh().powi(2)).ln() * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let correction: f64 = (-800..=800).map(|i| slope(f64::from(i) / 100.0) / 100.0).sum();
    let entropy = (0.5 * (2.0 * std::f64::consts::PI).ln() + 0.5 + correction) as f32;
    assert!((metrics.entropy - entropy).abs() < 0.05, "{} against {entropy}", metrics.entropy);
    let bonus = config.discount as f32 * metrics.temperature * entropy;
    assert!((metrics.target_mean - 1.0 - bonus).abs() < 0.05, "{metrics:?}, bonus {bonus}");
    assert!((metrics.temperature - 0.7).abs() < 1e-6);
    // L_actor = mean(alpha log pi - Q), L_alpha = -ln alpha (mean log pi - |A|).
    assert!((metrics.actor_loss + metrics.temperature * metrics.entropy).abs() < 1e-4, "{metrics:?}");
    let expected = -metrics.temperature.ln() * (-metrics.entropy - 1.0);
    assert!((metrics.temperature_loss - expected).abs() < 1e-4, "{metrics:?} against {expected}");
    assert!(metrics.disagreement_share < 1e-6, "equal members disagree: {metrics:?}");
}

#[test]
fn temperature_falls_while_entropy_is_above_its_target() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    let config = LearnerConfig { actor_learning_rate: 0.0, ..learner_config() };
    let replay = replay(None, random_bandit(3, 200), SamplerKind::Online);
    let metrics = run(&mut learner(&weights, &config, SamplerKind::Online), &replay, 50);
    assert!(metrics.entropy > -1.0 && metrics.temperature < 0.09, "{metrics:?}");
}

#[test]
fn the_policy_learns_a_one_step_problem() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    for sampler in [SamplerKind::Balanced, SamplerKind::Uniform, SamplerKind::Online] {
        let replay = replay(Some(random_bandit(10, 400)), random_bandit(11, 100), sampler);
        let mut learner = learner(&weights, &learner_config(), sampler);
        let before = greedy_reward(&learner.actor().unwrap());
        let metrics = run(&mut learner, &replay, 400);
        let after = greedy_reward(&learner.actor().unwrap());
        assert!(before < -0.4 && after > -0.05, "{sampler:?}: {before} to {after}, {metrics:?}");
    }
}

#[test]
fn the_density_ratio_prefers_what_looks_like_the_robot() {
    // Half of the offline actions are where the robot acts now, half are elsewhere.
    let near = |rng: &mut rand_chacha::ChaCha8Rng| rng.random_range(0.5..1.0f32);
    let offline = bandit_store(20, 400, StepFlags::TERMINATED, |rng, _| {
        let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
        (side * near(rng), 0.0)
    });
    let online = bandit_store(21, 100, StepFlags::TERMINATED, |rng, _| (near(rng), 0.0));
    let replay = replay(Some(offline), online, SamplerKind::Balanced);
    let mut learner = learner(&ensemble(2, DIMS, HIDDEN, 1), &learner_config(), SamplerKind::Balanced);
    let first = learner.update(&replay).unwrap().density.unwrap();
    assert!(first.loss.abs() < 0.05 && first.zero_share == 0.0, "the ratio starts at one: {first:?}");
    let last = run(&mut learner, &replay, 600).density.unwrap();
    // Online all near, offline half near: JS = ln(4/3)/2 + (ln(2/3) + ln 2)/4 = 0.2158 nats.
    assert!((last.js_estimate - 0.2158).abs() < 0.06, "{last:?}");
    let replay = replay.into_inner().unwrap();
    let (offline, mut record) = (replay.offline().unwrap(), fieldtune::spaces::StepRecord::default());
    let mut means = [(0.0, 0); 2];
    for sequence in (1..=offline.last_sequence()).step_by(2) {
        offline.record(sequence, &mut record).unwrap();
        let mean = &mut means[usize::from(record.action[0] > 0.0)];
        *mean = (mean.0 + replay.priorities().get(((sequence - 1) % offline.capacity()) as usize), mean.1 + 1);
    }
    let [far, near] = means.map(|(sum, count)| sum / count as f32);
    assert!(near > 3.0 * far && near > 0.5, "priority {near} near the robot, {far} elsewhere");
}

#[test]
fn only_the_balanced_sampler_with_offline_data_uses_the_density_network() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    for (sampler, offline) in
        [(SamplerKind::Online, true), (SamplerKind::Uniform, true), (SamplerKind::Balanced, false)]
    {
        let replay = replay(offline.then(|| random_bandit(30, 100)), random_bandit(31, 100), sampler);
        let priorities = |replay: &Mutex<Replay>| {
            let replay = replay.lock().unwrap();
            (0..replay.priorities().len()).map(|leaf| replay.priorities().get(leaf)).collect::<Vec<_>>()
        };
        let before = priorities(&replay);
        let mut learner = learner(&weights, &learner_config(), sampler);
        let metrics = run(&mut learner, &replay, 5);
        assert_eq!(metrics.density, None);
        assert_eq!(metrics.offline_share > 0.0, sampler == SamplerKind::Uniform, "{metrics:?}");
        assert_eq!(priorities(&replay), before);
        assert!(learner.timings().density < learner.timings().actor / 20);
    }
}

#[test]
fn fresh_online_transitions_are_preferred() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    let replay = replay(Some(random_bandit(40, 2000)), random_bandit(41, 100), SamplerKind::Balanced);
    let share = learner(&weights, &learner_config(), SamplerKind::Balanced).update(&replay).unwrap().offline_share;
    // 100 of the 1000 transitions that would make up 3/4 when full: weights 100 * 6 to 2000.
    assert!((share - 2000.0 / 2600.0).abs() < 0.05, "{share}");
}

#[test]
fn equal_seeds_give_equal_bytes_for_any_number_of_threads() {
    let weights = ensemble(3, DIMS, HIDDEN, 1);
    let result = |threads, seed| {
        let replay = replay(Some(random_bandit(50, 300)), random_bandit(51, 100), SamplerKind::Balanced);
        let config = LearnerConfig { threads, ..learner_config() };
        let mut learner = Learner::new(&weights, DIMS, &config, &replay_config(SamplerKind::Balanced), seed).unwrap();
        let metrics = run(&mut learner, &replay, 20);
        (metrics, learner.weights().unwrap())
    };
    let first = result(1, 9);
    assert_eq!(first, result(1, 9));
    assert_eq!(first, result(2, 9));
    assert_ne!(first.1, result(1, 10).1);
}

#[test]
fn targets_follow_the_stepped_critics() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    let config = LearnerConfig { target_rate: 0.25, ..learner_config() };
    let mut learner = learner(&weights, &config, SamplerKind::Online);
    run(&mut learner, &replay(None, random_bandit(32, 100), SamplerKind::Online), 1);
    let after = learner.weights().unwrap();
    let (target1, target2) = after.targets.unwrap();
    for (old, new, target) in [(&weights.critic1, &after.critic1, target1), (&weights.critic2, &after.critic2, target2)]
    {
        assert_ne!(old, new);
        for ((old, new), target) in old.layers.iter().zip(&new.layers).zip(&target.layers) {
            for ((old, new), target) in old.weight.iter().zip(&new.weight).zip(&target.weight) {
                assert!((0.75 * old + 0.25 * new - target).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn priorities_come_from_the_ratio_before_its_step() {
    let config = LearnerConfig { density_learning_rate: 1.0, ..learner_config() };
    let replay = replay(Some(random_bandit(33, 100)), random_bandit(34, 100), SamplerKind::Balanced);
    run(&mut learner(&ensemble(2, DIMS, HIDDEN, 1), &config, SamplerKind::Balanced), &replay, 1);
    let replay = replay.into_inner().unwrap();
    let offline = replay.offline().unwrap().capacity() as usize;
    let written = (offline..replay.priorities().len())
        .map(|leaf| replay.priorities().get(leaf))
        .filter(|p| *p > 0.0 && *p < 0.29);
    assert_eq!(written.count(), 0);
    let near_one = (0..offline).map(|leaf| replay.priorities().get(leaf)).filter(|p| *p > 0.0);
    assert!(near_one.map(|p| (p - 1.0).abs()).fold(0.0, f32::max) < 0.02);
}

#[test]
fn a_panic_elsewhere_does_not_stop_the_learner() {
    fn is_send<T: Send>(_: &T) {}
    let replay = replay(None, random_bandit(35, 100), SamplerKind::Online);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = replay.lock();
        panic!("on purpose");
    }));
    assert!(panicked.is_err() && replay.is_poisoned());
    let mut learner = learner(&ensemble(2, DIMS, HIDDEN, 1), &learner_config(), SamplerKind::Online);
    is_send(&learner);
    run(&mut learner, &replay, 1);
}

#[test]
fn divergence_stops_before_the_step() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    let replay = replay(None, bandit_store(60, 100, StepFlags::TERMINATED, |_, _| (0.0, 1e30)), SamplerKind::Online);
    let mut learner = learner(&weights, &learner_config(), SamplerKind::Online);
    let before = learner.weights().unwrap();
    let error = learner.update(&replay).unwrap_err();
    assert!(matches!(error, LearnerError::NotFinite { quantity: "critic loss", update: 0, .. }), "{error}");
    assert_eq!(learner.weights().unwrap(), before);
    assert_eq!(learner.updates(), 0);
}

/// Parts of a checkpoint but for the random streams.
fn bytes(learner: &Learner, replay: &Mutex<Replay>) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let generation = learner.save(dir.path(), &replay.lock().unwrap().state()).unwrap();
    ["networks.safetensors", "optimisers.safetensors"].map(|part| std::fs::read(generation.join(part)).unwrap()).into()
}

#[test]
fn an_update_that_fails_after_its_critic_steps_leaves_nothing_behind() {
    let weights = ensemble(2, DIMS, HIDDEN, 1);
    let replay = replay(None, random_bandit(3, 200), SamplerKind::Online);
    for (critic_steps, order) in [(1, Order::CriticsFirst), (3, Order::Joint), (3, Order::CriticsFirst)] {
        // The critics' losses are finite, the actors' is not: its temperature overflows.
        let config = LearnerConfig {
            critic_steps,
            order,
            entropy_backup: false,
            zero_gradient_adam: true,
            initial_temperature: 1e39,
            ..learner_config()
        };
        let mut learner = learner(&weights, &config, SamplerKind::Online);
        let before = bytes(&learner, &replay);
        for _ in 0..2 {
            let error = learner.update(&replay).unwrap_err();
            assert!(matches!(error, LearnerError::NotFinite { update: 0, .. }), "{error}");
        }
        assert!(bytes(&learner, &replay) == before, "{critic_steps} critic steps, {order:?}");
    }
}

#[test]
fn the_target_networks_bootstrap_and_not_the_critics() {
    let mut weights = ensemble(2, DIMS, HIDDEN, 1);
    make_constant(&mut weights.critic1, 7.0);
    make_constant(&mut weights.critic2, 7.0);
    let target = |value: f32| {
        let mut target = weights.critic1.clone();
        make_constant(&mut target, value);
        target
    };
    weights.targets = Some((target(-60.0), target(-50.0)));
    let data = bandit_store(2, 100, StepFlags::TRUNCATED, |_, _| (0.5, 1.0));
    let config = LearnerConfig { entropy_backup: false, ..learner_config() };
    let metrics =
        run(&mut learner(&weights, &config, SamplerKind::Online), &replay(None, data, SamplerKind::Online), 1);
    assert!((metrics.target_mean - 1.0 + 0.99 * 60.0).abs() < 1e-3 && (metrics.q_mean - 7.0).abs() < 1e-4);
    // The actors follow the critics.
    assert!((metrics.actor_loss + metrics.temperature * metrics.entropy + 7.0).abs() < 1e-3, "{metrics:?}");
}

#[test]
fn a_carried_temperature_goes_on() {
    let weights = EnsembleWeights { log_alpha: Some(0.3f32.ln()), ..ensemble(2, DIMS, HIDDEN, 1) };
    for temperature_form in [TemperatureForm::Exp, TemperatureForm::Softplus] {
        let first = |carry_temperature| {
            let config = LearnerConfig { temperature_form, carry_temperature, ..learner_config() };
            let replay = replay(None, random_bandit(3, 100), SamplerKind::Online);
            run(&mut learner(&weights, &config, SamplerKind::Online), &replay, 1).temperature
        };
        assert!((first(true) - 0.3).abs() < 1e-6 && (first(false) - 0.1).abs() < 1e-6, "{temperature_form:?}");
    }
}

#[test]
fn priorities_are_relative_to_the_offline_rows() {
    // The ratio is 1 at the start, and its step a large one: afterwards the robot's rows weigh more than the data's, and
    // what the rows of the data weigh on average is 1 whatever the robot's do.
    let data = |seed, action| bandit_store(seed, 200, StepFlags::TERMINATED, move |_, _| (action, 0.0));
    let replay = replay(Some(data(80, -0.9)), data(81, 0.9), SamplerKind::Balanced);
    let config =
        LearnerConfig { density_learning_rate: 1e-2, density_output: OutputActivation::Exp, ..learner_config() };
    run(&mut learner(&ensemble(2, DIMS, HIDDEN, 1), &config, SamplerKind::Balanced), &replay, 60);
    let replay = replay.into_inner().unwrap();
    let leaves = replay.priorities();
    let offline = replay.offline().unwrap().capacity() as usize;
    let largest = (0..offline).map(|leaf| leaves.get(leaf)).fold(0.0f32, f32::max);
    let online = (offline..leaves.len()).map(|leaf| leaves.get(leaf)).filter(|p| *p > 0.0 && *p != 1.0);
    let most = online.fold(0.0f32, f32::max);
    assert!((0.3..3.0).contains(&largest) && most > 2.0, "offline {largest}, online {most}");
}

#[test]
fn wrong_networks_are_refused_by_name() {
    let good = ensemble(2, DIMS, HIDDEN, 1);
    let refuse = |change: fn(&mut EnsembleWeights)| {
        let mut weights = good.clone();
        change(&mut weights);
        Learner::new(&weights, DIMS, &learner_config(), &replay_config(SamplerKind::Balanced), 0)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refuse(|w| w.critic2.members = 1).contains("critic2"));
    assert!(refuse(|w| w.actor.stack.layers[0].inputs = 3).contains("actor"));
    assert!(refuse(|w| w.critic1 = fieldtune::nn::StackWeights::default()).contains("critic1"));
    assert!(refuse(|w| w.critic1.layers[1].bias[0] = f32::NAN).contains("not finite"));
    assert!(refuse(|w| w.targets = Some((w.critic1.clone(), w.actor.stack.clone()))).contains("target2"));
}
