//! What must hold between the losses whatever the networks say.

use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

use super::actor::{self, ActorOperator};
use super::critic::{self, EntropyTerm, SampledBackup, TargetOperator};
use super::{cql, density_ratio, entropy, state_action};
use crate::nn::{LogStdBounds, tanh_gaussian};

fn tensor(numbers: &[f64], dims: &[usize]) -> Tensor {
    Tensor::from_slice(numbers, dims, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12 * b.abs().max(1.0))
}

fn values(len: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-50.0..50.0f64, len)
}

fn settings(form: cql::Form) -> cql::Settings {
    cql::Settings { form, temperature: 1.0, weight: 5.0, action_dim: 2 }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    /// One member, any operator: the textbook's soft actor-critic.
    #[test]
    fn an_ensemble_of_one_is_sac(q in values(6), log_prob in values(3), reward in values(3), alpha in 0.0..2.0f64) {
        let (q1, q2) = (tensor(&q[..3], &[1, 3]), tensor(&q[3..], &[1, 3]));
        let terminated = [0.0, 1.0, 0.0];
        let temperature = tensor(&[alpha], &[]);
        let log_prob_tensor = tensor(&log_prob, &[3]);
        let term = EntropyTerm { temperature: &temperature, next_log_prob: &log_prob_tensor };
        let want: Vec<f64> = (0..3)
            .map(|b| reward[b] + 0.99 * (1.0 - terminated[b]) * (q[b].min(q[3 + b]) - alpha * log_prob[b]))
            .collect();
        let redq = TargetOperator::Redq { indices: vec![0, 1] };
        for operator in [TargetOperator::OwnTwinMin, TargetOperator::EnsembleMin, redq] {
            let value = critic::next_value(&q1, &q2, &operator).unwrap();
            let (reward, terminated) = (tensor(&reward, &[3]), tensor(&terminated, &[3]));
            let y = critic::td_target(&reward, &terminated, &value, Some(term), 0.99).unwrap();
            prop_assert!(close(&numbers(&y), &want));
        }
        let want: f64 = (0..3).map(|b| alpha * log_prob[b] - q[b].min(q[3 + b])).sum::<f64>() / 3.0;
        for operator in [ActorOperator::MeanOfTwinMin, ActorOperator::Min] {
            let value = actor::value(&q1, &q2, operator).unwrap();
            let loss = actor::loss(&temperature, &log_prob_tensor, &value).unwrap();
            prop_assert!(close(&numbers(&loss), &[want]));
        }
    }

    #[test]
    fn an_ensemble_of_one_acts_like_its_member(out in values(12)) {
        let out = (tensor(&out, &[1, 3, 4]) / 25.0).unwrap();
        let (mean, std) = tanh_gaussian::moments(&out, LogStdBounds::default()).unwrap();
        let (means, stds) = tanh_gaussian::member_moments(&out, LogStdBounds::default()).unwrap();
        prop_assert!(close(&numbers(&mean), &numbers(&means)) && close(&numbers(&std), &numbers(&stds)));
    }

    #[test]
    fn redq_over_the_whole_pool_is_the_minimum_over_all(q in values(24)) {
        let (q1, q2) = (tensor(&q[..12], &[3, 4]), tensor(&q[12..], &[3, 4]));
        let all = TargetOperator::Redq { indices: (0..6).collect() };
        let redq = critic::next_value(&q1, &q2, &all).unwrap();
        let least = critic::next_value(&q1, &q2, &TargetOperator::EnsembleMin).unwrap();
        prop_assert_eq!(numbers(&redq), numbers(&least));
        let own = critic::next_value(&q1, &q2, &TargetOperator::OwnTwinMin).unwrap();
        prop_assert!(numbers(&own).iter().zip(numbers(&least)).all(|(own, least)| *own >= least));
    }

    #[test]
    fn sampled_backups_are_ordered(q in values(24)) {
        let (q1, q2) = (tensor(&q[..12], &[2, 3, 2]), tensor(&q[12..], &[2, 3, 2]));
        let late = critic::sampled_next_value(&q1, &q2, SampledBackup::MaxThenMin).unwrap();
        let early = critic::sampled_next_value(&q1, &q2, SampledBackup::MinThenMax).unwrap();
        prop_assert!(numbers(&late).iter().zip(numbers(&early)).all(|(late, early)| *late >= early));
    }

    #[test]
    fn a_ratio_of_one_is_uniform_replay(temperature in 0.5..8.0f64) {
        let ones = tensor(&[1.0; 5], &[5]);
        prop_assert!(numbers(&density_ratio::loss(&ones, &ones).unwrap())[0].abs() < 1e-9);
        let p = density_ratio::priorities(&ones, &ones, temperature, 1e-3, 1e3).unwrap();
        prop_assert_eq!(p, vec![1.0; 5]);
    }

    /// On equal data a ratio other than one can only lose; between different data the right sign wins.
    #[test]
    fn the_density_loss_knows_online_from_offline(w in prop::collection::vec(1.1..20.0f64, 4)) {
        let high = tensor(&w, &[4]);
        let low = high.recip().unwrap();
        let loss = |on: &Tensor, off: &Tensor| numbers(&density_ratio::loss(on, off).unwrap())[0];
        prop_assert!(loss(&high, &high) > 0.0 && loss(&low, &low) > 0.0);
        prop_assert!(loss(&high, &low) < 0.0 && loss(&low, &high) > 0.0);
        prop_assert!(density_ratio::js_estimate(loss(&high, &low)) <= std::f64::consts::LN_2);
    }

    #[test]
    fn priorities_keep_the_order_and_the_bounds(w in prop::collection::vec(0.0..50.0f64, 6)) {
        let p = density_ratio::priorities(&tensor(&w, &[6]), &tensor(&[1.0, 3.0], &[2]), 2.0, 0.1, 3.0).unwrap();
        prop_assert!(p.iter().all(|p| (0.1..=3.0).contains(p)));
        prop_assert!((0..6).all(|i| (0..6).all(|j| w[i] > w[j] || p[i] <= p[j])));
    }

    /// A bound that never binds is CQL, in value and in gradient; one that always binds leaves the uniform actions.
    #[test]
    fn calibration_without_a_bound_is_cql(q in values(18), log_prob in values(6)) {
        let part = |i: usize| tensor(&q[6 * i..6 * i + 6], &[1, 2, 3]);
        let (uniform, next, data) = (part(0), part(1), tensor(&q[..3], &[1, 3]));
        let policy = Var::from_tensor(&part(2)).unwrap();
        let log_prob = tensor(&log_prob, &[1, 2, 3]);
        let values = cql::SampledValues {
            uniform: &uniform,
            policy: &policy,
            policy_log_prob: &log_prob,
            next: &next,
            next_log_prob: &log_prob,
        };
        let run = |bound: Option<f64>| {
            let bound = bound.map(|b| tensor(&[b; 3], &[3]));
            let penalty = cql::penalty(settings(cql::Form::H), values, &data, bound.as_ref()).unwrap();
            let gradients = penalty.per_member.sum_all().unwrap().backward().unwrap();
            let gradient = gradients.get(&policy).map(numbers);
            (numbers(&penalty.per_member), gradient, numbers(&penalty.bound_rate)[0])
        };
        prop_assert_eq!(run(Some(f64::NEG_INFINITY)), run(None));
        let (_, gradient, rate) = run(Some(1e3));
        prop_assert!(rate == 1.0 && gradient.is_none_or(|g| g.iter().all(|g| *g == 0.0)));
    }

    /// Only differences between actions count: a constant on all values changes nothing.
    #[test]
    fn the_penalty_does_not_see_a_constant(q in values(15), shift in -20.0..20.0f64) {
        for form in [cql::Form::H, cql::Form::Rho] {
            let run = |shift: f64| {
                let part = |i: usize, n: usize| (tensor(&q[i..i + n * 3], &[1, n, 3]) + shift).unwrap();
                let zeros = tensor(&[0.0; 3], &[1, 1, 3]);
                let (uniform, policy, next) = (part(0, 2), part(6, 1), part(9, 1));
                let values = cql::SampledValues {
                    uniform: &uniform,
                    policy: &policy,
                    policy_log_prob: &zeros,
                    next: &next,
                    next_log_prob: &zeros,
                };
                let data = part(12, 1).squeeze(1).unwrap();
                numbers(&cql::penalty(settings(form), values, &data, None).unwrap().per_member)[0]
            };
            prop_assert!((run(shift) - run(0.0)).abs() < 1e-9);
        }
    }

    #[test]
    fn advantage_weights_average_to_one(q in values(8)) {
        let w = actor::advantage_weights(&tensor(&q[..4], &[4]), &tensor(&q[4..], &[4]), 2.0).unwrap();
        prop_assert!((numbers(&w).iter().sum::<f64>() - 4.0).abs() < 1e-9);
    }
}

#[test]
fn a_policy_below_its_target_entropy_raises_the_temperature() {
    let log_alpha = Var::new(0.3f64, &Device::Cpu).unwrap();
    let slope = |log_prob: f64| {
        let log_prob = tensor(&[log_prob; 2], &[2]);
        let on_log = entropy::loss(&log_alpha, &log_prob, -6.0).unwrap().backward().unwrap();
        let on_lambda = entropy::softplus_loss(&log_alpha, &log_prob, -6.0).unwrap().backward().unwrap();
        [on_log, on_lambda].map(|g| g.get(&log_alpha).unwrap().to_scalar::<f64>().unwrap())
    };
    assert!(slope(10.0).iter().all(|s| *s < 0.0));
    assert!(slope(-10.0).iter().all(|s| *s > 0.0));
}

#[test]
fn ratios_that_are_not_numbers_never_become_priorities() {
    let good = tensor(&[1.0, 2.0], &[2]);
    for bad in [f64::NAN, f64::INFINITY] {
        let bad = tensor(&[1.0, bad], &[2]);
        assert!(density_ratio::priorities(&bad, &good, 5.0, 1e-3, 1e3).is_err());
        assert!(density_ratio::priorities(&good, &bad, 5.0, 1e-3, 1e3).is_err());
    }
}

#[test]
fn rows_for_a_critic_pair_each_action_with_its_own_state() {
    let s = tensor(&[1.0, 2.0], &[2, 1]);
    let rows = |dims: &[usize]| {
        let len = dims.iter().product::<usize>();
        let a: Vec<f64> = (0..len).map(|i| i as f64 / 10.0).collect();
        state_action(&s, &tensor(&a, dims)).unwrap()
    };
    assert_eq!(numbers(&rows(&[2, 1])), [1.0, 0.0, 2.0, 0.1]);
    assert_eq!(numbers(&rows(&[1, 2, 2, 1])), [1.0, 0.0, 2.0, 0.1, 1.0, 0.2, 2.0, 0.3]);
    assert_eq!(rows(&[1, 3, 2, 1]).dims(), [6, 2]);
    assert_eq!(rows(&[4, 3, 2, 1]).dims(), [4, 6, 2]);
}

#[test]
fn numbers_by_hand() {
    let row = |v: &[f64]| tensor(v, &[v.len()]);
    // 32^(1/5) / mean(1, 243^(1/5)) = 2 / 2.
    let p = density_ratio::priorities(&row(&[32.0, 0.0]), &row(&[1.0, 243.0]), 5.0, 1e-3, 1e3).unwrap();
    assert!((p[0] - 1.0).abs() < 1e-6 && p[1] == 1e-3);
    // -0.5 (-1 - 3), and softplus(0) (1 + 3).
    let scalar = |v: f64| tensor(&[v], &[]);
    assert_eq!(numbers(&entropy::loss(&scalar(0.5), &row(&[-1.5, -0.5]), -3.0).unwrap()), [2.0]);
    let on_lambda = entropy::softplus_loss(&scalar(0.0), &row(&[-1.5, -0.5]), -3.0).unwrap();
    assert!(close(&numbers(&on_lambda), &[4.0 * 2f64.ln()]));
    // Values 0 and proposals that are all uniform: ln(3 n) + A ln 2.
    let (zeros, log_uniform) = (tensor(&[0.0; 4], &[1, 2, 2]), tensor(&[-2.0 * 2f64.ln(); 4], &[1, 2, 2]));
    let values = cql::SampledValues {
        uniform: &zeros,
        policy: &zeros,
        policy_log_prob: &log_uniform,
        next: &zeros,
        next_log_prob: &log_uniform,
    };
    let data = tensor(&[0.0; 2], &[1, 2]);
    let penalty = cql::penalty(settings(cql::Form::H), values, &data, None).unwrap();
    assert!(close(&numbers(&penalty.log_sum_exp), &[24f64.ln(); 2]));
    assert!(close(&numbers(&penalty.per_member), &[5.0 * 24f64.ln()]));
    // Two sure members that disagree by 2: mean 0, standard deviation 1.
    let out = tensor(&[1.0, -20.0, -1.0, -20.0], &[2, 1, 2]);
    let (mean, std) = tanh_gaussian::moments(&out, LogStdBounds::default()).unwrap();
    assert!(close(&numbers(&mean), &[0.0]) && close(&numbers(&std), &[1.0]));
}

/// Targets, advantage weights and multipliers are constants of the losses that use them.
#[test]
fn constants_carry_no_gradient() {
    let var = |v: f64| Var::from_tensor(&tensor(&[v, -v], &[1, 2])).unwrap();
    let (value, temperature, log_prob) = (var(1.0), Var::new(0.5f64, &Device::Cpu).unwrap(), var(2.0));
    let row = tensor(&[0.0, 1.0], &[2]);
    let term = EntropyTerm { temperature: &temperature, next_log_prob: &log_prob };
    let target = critic::td_target(&row, &row, &value, Some(term), 0.9).unwrap();
    let weights = actor::advantage_weights(&value, &log_prob, 2.0).unwrap();
    assert!(!target.track_op() && !weights.track_op());
    let (log_multiplier, penalty) = (var(0.3), var(0.7));
    let [multiplier, p] = [&log_multiplier, &penalty].map(|v| v.squeeze(0).unwrap());
    let weighed = cql::weigh(&multiplier, &p, &p, 0.2).unwrap();
    let critics = weighed.loss.backward().unwrap();
    assert!(critics.get(&log_multiplier).is_none() && critics.get(&penalty).is_some());
    let multipliers = weighed.multiplier_loss.unwrap().backward().unwrap();
    assert!(multipliers.get(&log_multiplier).is_some() && multipliers.get(&penalty).is_none());
}

#[test]
fn weights_of_the_penalty_by_hand() {
    let row = |v: &[f64]| tensor(v, &[v.len()]);
    let (log_multiplier, p1, p2) = (row(&[0.0, 2f64.ln()]), row(&[3.0, 1.0]), row(&[1.0, 0.5]));
    let fixed = cql::weigh(&log_multiplier, &p1, &p2, 0.0).unwrap();
    assert!(close(&numbers(&fixed.loss), &[5.5]) && fixed.multiplier_loss.is_none());
    // 1 (3 + 1 - 2) + 2 (1 + 0.5 - 2), and its negative half.
    let held = cql::weigh(&log_multiplier, &p1, &p2, 1.0).unwrap();
    assert!(close(&numbers(&held.loss), &[1.0]) && close(&numbers(&held.multiplier_loss.unwrap()), &[-0.5]));
}

#[test]
fn pair_minima_and_the_anchor_by_hand() {
    // Pairs of 1, 5, 3: min 1, 1, 3. Of -2, 4, 0: -2, -2, 0.
    let pool = tensor(&[1.0, -2.0, 5.0, 4.0, 3.0, 0.0], &[3, 2]);
    assert!(close(&numbers(&critic::mean_of_pair_minima(&pool).unwrap()), &[5.0 / 3.0, -4.0 / 3.0]));
    let (q1, q2) = (pool.narrow(0, 0, 1).unwrap(), pool.narrow(0, 1, 1).unwrap());
    let pair = critic::mean_of_pair_minima(&pool.narrow(0, 0, 2).unwrap()).unwrap();
    let twin = critic::next_value(&q1, &q2, &TargetOperator::OwnTwinMin).unwrap();
    assert_eq!(numbers(&pair), numbers(&twin));
    assert_eq!(numbers(&actor::value(&q1, &q2, ActorOperator::WeightedMinPair).unwrap()), numbers(&twin));
    let cost = actor::anchor_cost(&tensor(&[-1.0, 2.0], &[2]), &tensor(&[-3.0, 2.5], &[2]), 0.5).unwrap();
    assert!(close(&numbers(&cost), &[1.0, -0.25]));
    // The anchor's own density of a given z: log N(1; 0, 2) - 2 (ln 2 - 1 - softplus(-2)).
    let scalar = |v: f64| tensor(&[v], &[1, 1]);
    let found = tanh_gaussian::log_prob_at(&scalar(0.0), &scalar(2.0), &scalar(1.0)).unwrap();
    let normal = -0.125 - 2f64.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln();
    assert!(close(&numbers(&found), &[normal - (1.0 - 1f64.tanh().powi(2)).ln()]));
}

/// The mean over all pairs is what REDQ's two of all, without replacement, give on average.
#[test]
fn weighted_pairs_are_the_average_of_redq() {
    let (q1, q2) = (tensor(&[3.0, 1.0, 4.0], &[3, 1]), tensor(&[1.5, 9.0, 2.6], &[3, 1]));
    let of = |operator: &TargetOperator| numbers(&critic::next_value(&q1, &q2, operator).unwrap())[0];
    let pairs: Vec<f64> = (0..6u32)
        .flat_map(|i| (i + 1..6).map(move |j| vec![i, j]))
        .map(|indices| of(&TargetOperator::Redq { indices }))
        .collect();
    let mean = pairs.iter().sum::<f64>() / pairs.len() as f64;
    assert!((of(&TargetOperator::WeightedMinPair) - mean).abs() < 1e-12 && pairs.len() == 15);
}
