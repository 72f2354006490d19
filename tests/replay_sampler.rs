//! The samplers draw with the probabilities they state: shares, weights, and what is kept to draw from.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use fieldtune::config::{ReplayConfig, Retention, SamplerKind};
use fieldtune::replay::{Layout, Replay, ReplayError, Store};
use fieldtune::spaces::{Minibatch, Source, StepFlags, StepRecord};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const LAYOUT: Layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 9 };
const KINDS: [SamplerKind; 5] =
    [SamplerKind::Balanced, SamplerKind::Uniform, SamplerKind::Online, SamplerKind::Symmetric, SamplerKind::Trajectory];

/// Step `step` of one long episode; a person chooses every 5th action of online episodes.
fn record(episode: u32, step: u32) -> StepRecord {
    let mut record = StepRecord { episode, step, reward: step as f32, ..StepRecord::default() };
    if episode > 0 && step.is_multiple_of(5) {
        record.flags = StepFlags::INTERVENTION;
    }
    record.observation.extend([step as f32, 1.0]);
    record.action.push(0.5).unwrap();
    record
}

/// 100 offline and 50 online transitions, 10 of these by a person, with priorities of all sizes.
/// Also their leaves and priorities.
fn replay(config: &ReplayConfig) -> (Replay, Vec<u32>, Vec<f32>) {
    let fill = |episode, records| {
        let mut store = Store::in_memory(LAYOUT, 400).unwrap();
        (0..records).for_each(|step| _ = store.append(&record(episode, step)).unwrap());
        store
    };
    let mut replay = Replay::new(Some(fill(0, 101)), fill(1, 51), config).unwrap();
    let leaves: Vec<u32> = (0..100).chain(400..450).collect();
    let priorities: Vec<f32> = (0..150).map(|k| 0.1 + (k * 37 % 50) as f32 * 0.1).collect();
    replay.set_priorities(&leaves, &priorities).unwrap();
    assert_eq!((replay.offline_transitions(), replay.online_transitions()), (100, 50));
    assert_eq!(replay.stats().interventions, 10);
    (replay, leaves, priorities)
}

/// Draws a million rows and compares them with `wanted`, the probability of each leaf.
fn assert_draws_follow(replay: &mut Replay, kind: SamplerKind, leaves: &[u32], wanted: &[f64]) {
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(2), Minibatch::default());
    let mut counts = vec![0_u32; 800];
    for _ in 0..4000 {
        replay.sample(kind, 250, &mut rng, &mut batch).unwrap();
        batch.leaf.iter().for_each(|leaf| counts[*leaf as usize] += 1);
    }
    let drawn: u32 = leaves.iter().map(|leaf| counts[*leaf as usize]).sum();
    assert_eq!(drawn, 1_000_000, "{kind:?} draws transitions only");
    let mut chi = 0.0;
    for (leaf, probability) in leaves.iter().zip(wanted) {
        let count = f64::from(counts[*leaf as usize]);
        assert!(*probability > 0.0 || count == 0.0, "{kind:?}: leaf {leaf} has no probability and was drawn");
        let expected = 1e6 * probability;
        chi += if expected > 0.0 { (count - expected).powi(2) / expected } else { 0.0 };
    }
    assert!(chi < 208.0, "{kind:?}: chi-square {chi} of at most 149 degrees exceeds its 99.9 % quantile");
}

#[test]
fn each_sampler_draws_with_the_right_probabilities() {
    let config = ReplayConfig { offline_share: 0.3, ..ReplayConfig::default() };
    let (mut replay, leaves, priorities) = replay(&config);
    let total: f32 = priorities.iter().sum();
    for kind in KINDS {
        let wanted: Vec<f64> = (0..150)
            .map(|k| match (kind, k < 100) {
                (SamplerKind::Balanced | SamplerKind::Trajectory, _) => f64::from(priorities[k] / total),
                (SamplerKind::Uniform, _) => 1.0 / 150.0,
                (SamplerKind::Online, offline) => f64::from(u8::from(!offline)) / 50.0,
                (SamplerKind::Symmetric, true) => 0.3 / 100.0,
                (SamplerKind::Symmetric, false) => 0.7 / 50.0,
            })
            .collect();
        let mut stated = Vec::new();
        replay.probabilities(kind, 250, &leaves, &mut stated);
        assert!(stated.iter().zip(&wanted).all(|(s, w)| (s - w).abs() <= 1e-6 * w), "{kind:?}");
        assert_draws_follow(&mut replay, kind, &leaves, &wanted);
    }
}

#[test]
fn steps_of_a_person_get_their_share() {
    let config = ReplayConfig { intervention_share: 0.2, ..ReplayConfig::default() };
    let (mut replay, leaves, _) = replay(&config);
    let mut stated = Vec::new();
    for kind in KINDS {
        replay.probabilities(kind, 250, &leaves, &mut stated);
        let sum: f64 = stated.iter().sum();
        assert!((sum - 1.0).abs() < 1e-6, "{kind:?}: {sum}");
        assert_draws_follow(&mut replay, kind, &leaves, &stated);
    }
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(2), Minibatch::default());
    replay.sample(SamplerKind::Symmetric, 250, &mut rng, &mut batch).unwrap();
    assert_eq!(batch.offline_share(), 0.4, "half of the other rows");
    let of_a_person = |row: usize| batch.source[row] == Source::Online && batch.observation[2 * row] % 5.0 == 0.0;
    assert!((200..250).all(of_a_person), "the last fifth of the rows");
    // Nobody has helped yet: the sampler fills all rows.
    let store = Store::in_memory(LAYOUT, 400).unwrap();
    let mut alone = Replay::new(None, store, &config).unwrap();
    (1..4).for_each(|step| alone.append(&record(1, step)).unwrap());
    alone.sample(SamplerKind::Online, 50, &mut rng, &mut batch).unwrap();
    assert_eq!(batch.rows, 50);
    assert!(
        Replay::new(None, Store::in_memory(LAYOUT, 9).unwrap(), &ReplayConfig { intervention_share: 1.0, ..config })
            .is_err()
    );
}

#[test]
fn one_side_without_data_is_an_error_of_the_symmetric_sampler() {
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(2), Minibatch::default());
    let mut online = Store::in_memory(LAYOUT, 400).unwrap();
    (0..20).for_each(|step| _ = online.append(&record(1, step)).unwrap());
    let mut replay = Replay::new(None, online, &ReplayConfig::default()).unwrap();
    let refused = replay.sample(SamplerKind::Symmetric, 10, &mut rng, &mut batch);
    assert!(matches!(refused, Err(ReplayError::Empty { source_side: Some(Source::Offline) })));
}

#[test]
fn importance_weights_turn_any_draw_into_the_plain_mean() {
    let config = ReplayConfig { intervention_share: 0.1, ..ReplayConfig::default() };
    for config in [ReplayConfig::default(), config] {
        let (mut replay, _, _) = replay(&config);
        let mean = ((0..100).sum::<u32>() + (0..50).sum::<u32>()) as f32 / 150.0;
        let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(7), Minibatch::default());
        let mut weights = Vec::new();
        let mut probability = Vec::new();
        for kind in [SamplerKind::Balanced, SamplerKind::Uniform, SamplerKind::Symmetric] {
            let (mut sum, mut norm) = (0.0, 0.0);
            for _ in 0..4000 {
                replay.sample(kind, 250, &mut rng, &mut batch).unwrap();
                replay.importance_weights(kind, &batch, 1.0, &mut weights);
                assert!(weights.iter().all(|w| *w > 0.0 && *w <= 1.0) && weights.contains(&1.0));
                replay.probabilities(kind, 250, &batch.leaf, &mut probability);
                // The largest weight of a minibatch is 1, so its scale differs from that of the next one.
                let scale = f64::from(weights[0]) * probability[0];
                for ((weight, reward), probability) in weights.iter().zip(&batch.reward).zip(&probability) {
                    let weight = f64::from(*weight) / scale;
                    assert!((weight * probability - 1.0).abs() < 1e-4, "weights are in proportion to 1/p");
                    sum += weight * f64::from(*reward);
                    norm += weight;
                }
            }
            let estimate = sum / norm;
            assert!((estimate / f64::from(mean) - 1.0).abs() < 0.02, "{kind:?}: {estimate} instead of {mean}");
            replay.importance_weights(kind, &batch, 0.0, &mut weights);
            assert!(weights.iter().all(|w| *w == 1.0));
        }
    }
}

#[test]
fn a_buffer_that_keeps_all_counts_what_it_does_not_take() {
    let keep_all = ReplayConfig { retention: Retention::KeepAll, ..ReplayConfig::default() };
    let fill = |config: &ReplayConfig| {
        let mut replay = Replay::new(None, Store::in_memory(LAYOUT, 30).unwrap(), config).unwrap();
        (0..100).for_each(|step| replay.append(&record(1, step)).unwrap());
        replay
    };
    let (kept, ring) = (fill(&keep_all), fill(&ReplayConfig::default()));
    let counts = |replay: &Replay| (replay.stats().overwritten, replay.stats().not_kept, replay.online_transitions());
    assert_eq!(counts(&kept), (0, 70, 28));
    assert_eq!(counts(&ring), (70, 0, 28));
    assert_eq!((kept.online().first_sequence(), kept.online().last_sequence()), (1, 30));
    assert_eq!((ring.online().first_sequence(), ring.online().last_sequence()), (71, 100));
}
