//! Learning from images: encoders in front of the networks change what is seen and nothing else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use std::path::Path;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use fieldtune::config::{
    ActorBatch, Crops, LearnerConfig, Order, PretrainConfig, PretrainMethod, SamplerKind, TrunkKind,
};
use fieldtune::learner::pretrain::Pretrainer;
use fieldtune::learner::{Dims, Learner, UpdateMetrics, stream};
use fieldtune::nn::{ActorWeights, Encoders, EnsembleWeights, Eyes, Stack, Trunk, random_encoders};
use fieldtune::replay::{Access, Layout, Replay, Seen, Store};
use fieldtune::spaces::{FrameShape, StepFlags, StepRecord};
use learner_problem::{bandit_reward, best, ensemble, learner_config, replay_config, state};
use rand::Rng;

const FRAME: FrameShape = FrameShape { width: 8, height: 8, channels: 2 };
/// What the robot measures by itself: nothing of use.
const DIMS: Dims = Dims { observation: 1, action: 1 };
const LAYOUT: Layout = Layout { observation_dim: 1, action_dim: 1, schema_hash: 7 };
const FEATURES: usize = 6;

/// The state as an image: each entry is the brightness of a channel.
fn image(s: [f32; 2]) -> Vec<u8> {
    (0..FRAME.bytes()).map(|i| ((s[i % 2] + 1.0) * 127.0) as u8 + (i / 2 % 3) as u8 / 2).collect()
}

/// One-step episodes whose reward depends on what is in the image. `see` makes observation and image of a state.
fn fill(store: &mut Store, count: u32, see: &dyn Fn([f32; 2]) -> (Vec<f32>, Option<Vec<u8>>)) {
    let rng = &mut stream(8, "test data");
    for episode in 0..count {
        let (s, a) = (state(rng), rng.random_range(-1.0..1.0));
        let (observation, pixels) = see(s);
        let (reward, flags) = (bandit_reward(&s, a), StepFlags::TERMINATED);
        let mut record = StepRecord { episode, reward, flags, ..StepRecord::default() };
        record.observation.extend_from_slice(&observation).unwrap();
        record.action.push(a).unwrap();
        let last = StepRecord { step: 1, flags: StepFlags::OBSERVATION_ONLY, ..record.clone() };
        for record in [record, last] {
            match &pixels {
                Some(pixels) => store.append_with_frame(&record, Seen::New { pixels, capture_ns: 0 }).unwrap(),
                None => store.append(&record).unwrap(),
            };
        }
    }
}

fn images(s: [f32; 2]) -> (Vec<f32>, Option<Vec<u8>>) {
    (vec![0.5], Some(image(s)))
}

fn pixel_store(count: u32) -> Store {
    let mut store = Store::in_memory_with_frames(LAYOUT, 3000, Some(FRAME)).unwrap();
    fill(&mut store, count, &images);
    store
}

fn pixel_replay(sampler: SamplerKind) -> Mutex<Replay> {
    Mutex::new(Replay::new(Some(pixel_store(900)), pixel_store(400), &replay_config(sampler)).unwrap())
}

/// Networks of two members behind encoders.
fn seeing(separate: bool) -> EnsembleWeights {
    let own = Dims { observation: FEATURES + 1, ..DIMS };
    let mut weights = ensemble(2, own, &[24, 24], 1);
    let new = |seed, count| random_encoders(count, &[4, 4], FEATURES, FRAME, &mut stream(seed, "encoders")).unwrap();
    let encoders = new(1, if separate { 2 } else { 1 });
    weights.actor.eyes = Some(Eyes { shape: FRAME, encoders, observation_dim: 1, proprioception: true });
    if separate {
        weights.encoder = Some(Encoders::Separate { critic1: new(2, 2), critic2: new(3, 2), targets: None });
    }
    weights
}

fn config(trunk: TrunkKind) -> LearnerConfig {
    LearnerConfig { trunk, shift_pixels: 1, ..learner_config() }
}

fn build(weights: &EnsembleWeights, config: &LearnerConfig, sampler: SamplerKind) -> Learner {
    Learner::new(weights, DIMS, config, &replay_config(sampler), 5).unwrap()
}

/// Mean reward of `tanh` of the mean action in fixed states.
fn greedy(actor: &ActorWeights) -> f32 {
    let eyes = actor.eyes.as_ref().unwrap();
    let rng = &mut stream(77, "greedy");
    let states: Vec<[f32; 2]> = (0..200).map(|_| state(rng)).collect();
    let pixels: Vec<u8> = states.iter().flat_map(|s| image(*s)).collect();
    let pixels = Tensor::from_vec(pixels, (200, 8, 8, 2), &Device::Cpu).unwrap();
    let trunk = Trunk::from_weights(&eyes.encoders, FRAME, &Device::Cpu).unwrap();
    let features = trunk.forward_detached(&pixels, None).unwrap();
    let members = trunk.members();
    let beside = Tensor::full(0.5f32, (members, 200, 1), &Device::Cpu).unwrap();
    let seen = Tensor::cat(&[&features, &beside], 2).unwrap();
    let seen = if members == 1 { seen.squeeze(0).unwrap() } else { seen };
    let out = Stack::from_weights(&actor.stack, &Device::Cpu).unwrap().forward_detached(&seen).unwrap();
    let means = out.mean(0).unwrap().narrow(1, 0, 1).unwrap().tanh().unwrap();
    let actions = means.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let rewards = states.iter().zip(actions).map(|(s, a)| bandit_reward(s, a));
    rewards.sum::<f32>() / 200.0
}

#[test]
fn a_learner_learns_what_only_the_image_shows() {
    // Blind, the best mean action is 0.
    let rng = &mut stream(77, "greedy");
    let blind = (0..200).map(|_| -4.0 * best(&state(rng)).powi(2)).sum::<f32>() / 200.0;
    for (trunk, crops) in [(TrunkKind::Shared, Crops::Once), (TrunkKind::Separate, Crops::EachPass)] {
        let config = LearnerConfig { crops, ..config(trunk) };
        let mut learner = build(&seeing(trunk == TrunkKind::Separate), &config, SamplerKind::Balanced);
        let replay = pixel_replay(SamplerKind::Balanced);
        for _ in 0..400 {
            learner.update(&replay).unwrap();
        }
        let reward = greedy(&learner.actor().unwrap());
        assert!(reward > 0.25 * blind, "{trunk:?}: {reward}, blind {blind}");
    }
}

#[test]
fn frozen_encoders_are_features_in_the_place_of_the_observation() {
    let weights = seeing(false);
    let trunk = Trunk::from_weights(&weights.actor.eyes.as_ref().unwrap().encoders, FRAME, &Device::Cpu).unwrap();
    let features = |s: [f32; 2]| {
        let pixels = Tensor::from_vec(image(s), (1, 8, 8, 2), &Device::Cpu).unwrap();
        let features = trunk.forward_detached(&pixels, None).unwrap();
        let mut seen = features.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        seen.push(0.5);
        (seen, None)
    };
    let dims = Dims { observation: FEATURES + 1, ..DIMS };
    let layout = Layout { observation_dim: dims.observation, ..LAYOUT };
    let plain_store = |count| {
        let mut store = Store::in_memory(layout, 3000).unwrap();
        fill(&mut store, count, &features);
        store
    };
    let settings = replay_config(SamplerKind::Balanced);
    let plain_replay = Mutex::new(Replay::new(Some(plain_store(900)), plain_store(400), &settings).unwrap());
    let mut blind = weights.clone();
    blind.actor.eyes = None;
    let mut plain = Learner::new(&blind, dims, &learner_config(), &settings, 5).unwrap();
    let mut frozen = build(&weights, &config(TrunkKind::Frozen), SamplerKind::Balanced);
    let replay = pixel_replay(SamplerKind::Balanced);
    for _ in 0..20 {
        let (left, right) = (plain.update(&plain_replay).unwrap(), frozen.update(&replay).unwrap());
        assert_eq!(left, right);
    }
    let (left, right) = (plain.weights().unwrap(), frozen.weights().unwrap());
    assert_eq!((left.critic1, left.critic2, left.actor.stack), (right.critic1, right.critic2, right.actor.stack));
    assert_eq!(right.actor.eyes, weights.actor.eyes, "it stays");
}

#[test]
fn a_shared_encoder_follows_the_critics_alone() {
    let (weights, still) = (seeing(false), |trunk| LearnerConfig { shift_pixels: 0, ..config(trunk) });
    let first = |trunk| {
        let mut learner = build(&weights, &still(trunk), SamplerKind::Balanced);
        let metrics = learner.update(&pixel_replay(SamplerKind::Balanced)).unwrap();
        (metrics, learner.weights().unwrap())
    };
    let (frozen, shared) = (first(TrunkKind::Frozen), first(TrunkKind::Shared));
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs().max(1e-3);
    let numbers = |m: &UpdateMetrics| [m.critic_loss, m.actor_loss, m.q_mean, m.target_mean, m.entropy];
    assert!(numbers(&frozen.0).into_iter().zip(numbers(&shared.0)).all(|(a, b)| close(a, b)), "{frozen:?}");
    let eyes = shared.1.actor.eyes.unwrap();
    assert_ne!(Some(&eyes), weights.actor.eyes.as_ref());
    // The slow copy has gone target_rate of the way.
    let Some(Encoders::Shared { target: Some(target) }) = shared.1.encoder else { panic!("no slow copy") };
    let start = &weights.actor.eyes.as_ref().unwrap().encoders[0];
    let entry = |e: &fieldtune::nn::ConvEncoderWeights| e.convolutions[0].weight[0];
    let (from, to) = (entry(start), entry(&eyes.encoders[0]));
    assert!((entry(&target) - (from + 0.005 * (to - from))).abs() < 1e-7 && from != to);
    // Without a critics' step nothing teaches it.
    let idle = LearnerConfig { critic_learning_rate: 0.0, ..still(TrunkKind::Shared) };
    let mut learner = build(&weights, &idle, SamplerKind::Balanced);
    learner.update(&pixel_replay(SamplerKind::Balanced)).unwrap();
    assert_eq!(learner.actor().unwrap().eyes, weights.actor.eyes);
}

/// Methods whose updates have several steps or passes.
fn several_steps(trunk: TrunkKind) -> [LearnerConfig; 2] {
    let wsrl = LearnerConfig {
        critic_steps: 2,
        actor_batch: ActorBatch::All,
        order: Order::CriticsFirst,
        critic_loss: fieldtune::config::CriticLoss::Cql,
        cql_actions: 1,
        ..config(trunk)
    };
    let gradient_clip = 1.0;
    [LearnerConfig { crops: Crops::EachPass, gradient_clip, ..config(trunk) }, wsrl]
}

#[test]
fn stop_and_resume_give_the_bytes_of_a_run_that_never_stopped() {
    for trunk in [TrunkKind::Shared, TrunkKind::Separate, TrunkKind::Frozen] {
        for config in several_steps(trunk) {
            let run = |stop: Option<u32>| {
                let dir = tempfile::tempdir().unwrap();
                let replay = pixel_replay(SamplerKind::Balanced);
                let mut learner = build(&seeing(trunk == TrunkKind::Separate), &config, SamplerKind::Balanced);
                for update in 0..4 {
                    if Some(update) == stop {
                        learner.save(dir.path(), &replay.lock().unwrap().state()).unwrap();
                        let settings = replay_config(SamplerKind::Balanced);
                        learner = Learner::load(dir.path(), DIMS, &config, &settings, None).unwrap().0;
                    }
                    learner.update(&replay).unwrap();
                }
                let path = learner.save(dir.path(), &replay.lock().unwrap().state()).unwrap();
                let part = |name: &str| std::fs::read(path.join(name)).unwrap();
                (part("networks.safetensors"), part("optimisers.safetensors"), part("state.bin"))
            };
            assert!(run(None) == run(Some(2)), "{trunk:?}");
        }
    }
}

#[test]
fn a_refused_update_leaves_encoders_as_they_were() {
    // The first critic step throws the encoder far away, the second finds out.
    let config = LearnerConfig { critic_learning_rate: 1e30, ..several_steps(TrunkKind::Shared)[1].clone() };
    let mut learner = build(&seeing(false), &config, SamplerKind::Online);
    let replay = pixel_replay(SamplerKind::Online);
    let before = learner.weights().unwrap();
    assert!(learner.update(&replay).is_err());
    assert_eq!(learner.weights().unwrap(), before);
}

#[test]
fn settings_that_contradict_the_encoders_are_refused() {
    let refused = |weights: &EnsembleWeights, trunk| {
        let error = Learner::new(weights, DIMS, &config(trunk), &replay_config(SamplerKind::Online), 5).err().unwrap();
        assert!(error.to_string().starts_with("learner.trunk: "), "{error}");
    };
    refused(&seeing(false), TrunkKind::None);
    refused(&seeing(true), TrunkKind::Shared);
    refused(&seeing(true), TrunkKind::Frozen);
    // One encoder becomes many, and buffers without images are an error.
    let mut learner = build(&seeing(false), &config(TrunkKind::Separate), SamplerKind::Online);
    learner.update(&pixel_replay(SamplerKind::Online)).unwrap();
    let mut blind = Store::in_memory(LAYOUT, 3000).unwrap();
    fill(&mut blind, 200, &|_| (vec![0.5], None));
    let blind = Mutex::new(Replay::new(None, blind, &replay_config(SamplerKind::Online)).unwrap());
    assert!(learner.update(&blind).is_err());
    let frozen = Pretrainer::seeing(Some(FRAME), DIMS, &PretrainConfig::default(), &config(TrunkKind::Frozen), 1);
    assert!(frozen.err().unwrap().to_string().starts_with("learner.trunk: "));
}

fn pretrain_config() -> (PretrainConfig, LearnerConfig) {
    let pretrain = PretrainConfig {
        ensemble_size: 2,
        hidden: vec![24, 24],
        batch_size: 64,
        cql_actions: 1,
        cql_weight: 0.1,
        initial_temperature: 0.05,
        actor_learning_rate: 3e-3,
        critic_learning_rate: 3e-3,
        ..PretrainConfig::default()
    };
    let learner = LearnerConfig { trunk_channels: vec![4, 4], trunk_features: FEATURES, ..config(TrunkKind::Shared) };
    (pretrain, learner)
}

fn data() -> Replay {
    let nothing = Store::in_memory(LAYOUT, 1024).unwrap();
    Replay::new(Some(pixel_store(900)), nothing, &replay_config(SamplerKind::Balanced)).unwrap()
}

#[test]
fn pretraining_learns_from_images_and_its_agents_go_on_online() {
    let (pretrain, learner) = pretrain_config();
    let mut pretrainer = Pretrainer::seeing(Some(FRAME), DIMS, &pretrain, &learner, 3).unwrap();
    let before = greedy(&pretrainer.weights().unwrap().actor);
    let mut replay = data();
    for _ in 0..400 {
        pretrainer.step(&mut replay).unwrap();
    }
    let weights = pretrainer.weights().unwrap();
    let after = greedy(&weights.actor);
    assert!(after > 0.25 * before, "{before} -> {after}");
    for trunk in [TrunkKind::Shared, TrunkKind::Frozen] {
        let mut learner = build(&weights, &config(trunk), SamplerKind::Balanced);
        learner.update(&pixel_replay(SamplerKind::Balanced)).unwrap();
    }
}

#[test]
fn actors_that_imitate_teach_a_shared_encoder() {
    let (pretrain, learner) = pretrain_config();
    let encoder_after = |behaviour_cloning_updates, actor_learning_rate| {
        let pretrain = PretrainConfig {
            method: PretrainMethod::Sac,
            behaviour_cloning_updates,
            actor_learning_rate,
            ..pretrain.clone()
        };
        let mut pretrainer = Pretrainer::seeing(Some(FRAME), DIMS, &pretrain, &learner, 3).unwrap();
        pretrainer.step(&mut data()).unwrap();
        pretrainer.weights().unwrap().actor.eyes.unwrap().encoders
    };
    // The critics, and so what they ask of it, are the same in all.
    let alone = encoder_after(0, 1e-3);
    assert_eq!(encoder_after(0, 1e-2), alone);
    assert_ne!(encoder_after(1, 1e-3), alone);
}

#[test]
fn pretraining_goes_on_from_an_ensemble_and_leaves_a_frozen_encoder() {
    let (pretrain, shared) = pretrain_config();
    let first = Pretrainer::seeing(Some(FRAME), DIMS, &pretrain, &shared, 3).unwrap().weights().unwrap();
    let go_on = |config: &PretrainConfig, trunk| {
        let learner = LearnerConfig { trunk, ..shared.clone() };
        Pretrainer::from_ensemble(&first, DIMS, config, &learner, 3)
    };
    let encoders = |weights: &EnsembleWeights| weights.actor.eyes.clone().unwrap().encoders;
    for trunk in [TrunkKind::Shared, TrunkKind::Frozen] {
        let mut pretrainer = go_on(&pretrain, trunk).unwrap();
        let same = pretrainer.weights().unwrap();
        let networks = |w: &EnsembleWeights| (w.actor.stack.clone(), w.critic1.clone(), w.critic2.clone());
        assert!(networks(&same) == networks(&first) && encoders(&same) == encoders(&first));
        let mut replay = data();
        let before = pretrainer.step(&mut replay).unwrap().bellman_error;
        let errors: Vec<f32> = (0..150).map(|_| pretrainer.step(&mut replay).unwrap().bellman_error).collect();
        assert!(errors[149] < 0.7 * before, "{trunk:?}: {before} -> {}", errors[149]);
        let after = pretrainer.weights().unwrap();
        assert_eq!(encoders(&after) == encoders(&first), trunk == TrunkKind::Frozen);
    }
    let wide = PretrainConfig { hidden: vec![25, 24], ..pretrain.clone() };
    assert!(go_on(&wide, TrunkKind::Frozen).err().unwrap().to_string().contains("pretrain.hidden"));
}

#[test]
fn pretraining_resumes_to_the_byte() {
    let (pretrain, shared) = pretrain_config();
    let first = Pretrainer::seeing(Some(FRAME), DIMS, &pretrain, &shared, 3).unwrap().weights().unwrap();
    for method in [PretrainMethod::Cql, PretrainMethod::BehaviourCloning] {
        for trunk in [TrunkKind::Shared, TrunkKind::Separate, TrunkKind::Frozen] {
            let (pretrain, learner) =
                (PretrainConfig { method, ..pretrain.clone() }, LearnerConfig { trunk, ..shared.clone() });
            let run = |dir: &Path, stop: Option<u32>| {
                let mut replay = data();
                let mut pretrainer = match trunk {
                    TrunkKind::Frozen => Pretrainer::from_ensemble(&first, DIMS, &pretrain, &learner, 3),
                    _ => Pretrainer::seeing(Some(FRAME), DIMS, &pretrain, &learner, 3),
                }
                .unwrap();
                for update in 0..4 {
                    if Some(update) == stop {
                        pretrainer.save(dir).unwrap();
                        pretrainer = Pretrainer::load(dir, DIMS, &pretrain, &learner, false).unwrap();
                    }
                    pretrainer.step(&mut replay).unwrap();
                }
                let path = pretrainer.save(dir).unwrap();
                ["networks.safetensors", "optimisers.safetensors", "state.bin"]
                    .map(|p| std::fs::read(path.join(p)).unwrap())
            };
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            assert!(run(dirs[0].path(), None) == run(dirs[1].path(), Some(2)), "{method:?} {trunk:?}");
            let other = LearnerConfig { trunk_features: FEATURES + 1, ..learner.clone() };
            let loaded = Pretrainer::load(dirs[0].path(), DIMS, &pretrain, &other, false);
            assert_eq!(loaded.is_ok(), trunk == TrunkKind::Frozen, "a frozen encoder has the width it has");
        }
    }
}

#[test]
fn images_of_a_data_set_reach_the_buffer_and_come_back() {
    use fieldtune::episode::{Choices, Dataset, Images, read, write_npz};
    let pixels = |from: u8, count: usize| (0..count * FRAME.bytes()).map(|i| from.wrapping_add(i as u8)).collect();
    let data = Dataset {
        observation_dim: 1,
        action_dim: 1,
        observations: vec![0.0, 1.0, 2.0],
        actions: vec![0.1, 0.2, 0.3],
        rewards: vec![0.0, 1.0, 0.0],
        terminated: vec![false, true, false],
        truncated: vec![false, false, true],
        episode_ends: vec![2, 3],
        final_observations: vec![5.0, 6.0],
        images: Some(Images { shape: FRAME, steps: pixels(0, 3), finals: pixels(9, 2) }),
        ..Dataset::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.npz");
    write_npz(&file, &data).unwrap();
    assert_eq!(read(&file, &Choices::default()).unwrap(), data);
    let buffer = dir.path().join("buffer");
    drop(fieldtune::replay::import(&data, &buffer, LAYOUT).unwrap());
    let store = Store::open(&buffer, Access::ReadOnly).unwrap();
    assert_eq!((store.frame_shape(), store.transitions()), (Some(FRAME), 3));
    assert_eq!(fieldtune::replay::export(&store).unwrap(), data);
    let mut short = data;
    short.images.as_mut().unwrap().finals.pop();
    assert!(short.check().is_err());
}
