//! Small problems in memory for the tests of the learner.
#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Mutex;

use candle_core::Device;
use fieldtune::config::{LearnerConfig, ReplayConfig, SamplerKind};
use fieldtune::learner::{Dims, stream};
use fieldtune::nn::{ActorWeights, EnsembleWeights, Init, LogStdBounds, Stack, StackWeights};
use fieldtune::replay::{Access, Layout, Replay, Store};
use fieldtune::spaces::{StepFlags, StepRecord};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

pub(crate) const DIMS: Dims = Dims { observation: 2, action: 1 };
pub(crate) const LAYOUT: Layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 7 };

/// Best action in state `s`.
pub(crate) fn best(s: &[f32]) -> f32 {
    0.6 * s[0] - 0.3 * s[1]
}

/// Reward of the one-step problem: 0 at best.
pub(crate) fn bandit_reward(s: &[f32], a: f32) -> f32 {
    -4.0 * (a - best(s)).powi(2)
}

pub(crate) fn state(rng: &mut ChaCha8Rng) -> [f32; 2] {
    [rng.random_range(-1.0..1.0), rng.random_range(-1.0..1.0)]
}

/// Appends an episode of one step.
pub(crate) fn one_step(
    append: &mut dyn FnMut(&StepRecord),
    episode: u32,
    s: [f32; 2],
    a: f32,
    reward: f32,
    flags: StepFlags,
) {
    let mut record = StepRecord { episode, reward, flags, ..StepRecord::default() };
    record.observation.extend_from_slice(&s).unwrap();
    record.action.push(a).unwrap();
    append(&record);
    append(&StepRecord { step: 1, flags: StepFlags::OBSERVATION_ONLY, ..record });
}

/// A buffer in memory with `count` one-step episodes that `step` makes out of a state: action and reward.
pub(crate) fn bandit_store(
    seed: u64,
    count: u32,
    flags: StepFlags,
    mut step: impl FnMut(&mut ChaCha8Rng, [f32; 2]) -> (f32, f32),
) -> Store {
    let mut store = Store::in_memory(LAYOUT, u64::from(2 * count + 64)).unwrap();
    let rng = &mut stream(seed, "test data");
    for episode in 0..count {
        let s = state(rng);
        let (a, reward) = step(rng, s);
        one_step(&mut |record| _ = store.append(record).unwrap(), episode, s, a, reward, flags);
    }
    store
}

/// Random actions with the bandit's rewards.
pub(crate) fn random_bandit(seed: u64, count: u32) -> Store {
    bandit_store(seed, count, StepFlags::TERMINATED, |rng, s| {
        let a = rng.random_range(-1.0..1.0);
        (a, bandit_reward(&s, a))
    })
}

pub(crate) fn empty_store() -> Store {
    Store::in_memory(LAYOUT, 4096).unwrap()
}

pub(crate) fn replay(offline: Option<Store>, online: Store, sampler: SamplerKind) -> Mutex<Replay> {
    Mutex::new(Replay::new(offline, online, &replay_config(sampler)).unwrap())
}

pub(crate) fn reopen(dir: &Path, offline: Option<Store>, sampler: SamplerKind) -> Mutex<Replay> {
    replay(offline, Store::open(dir, Access::ReadWrite).unwrap(), sampler)
}

pub(crate) fn replay_config(sampler: SamplerKind) -> ReplayConfig {
    ReplayConfig { sampler, ..ReplayConfig::default() }
}

pub(crate) fn learner_config() -> LearnerConfig {
    LearnerConfig {
        batch_size: 64,
        actor_learning_rate: 3e-3,
        critic_learning_rate: 3e-3,
        temperature_learning_rate: 3e-3,
        density_learning_rate: 3e-3,
        density_hidden: vec![16, 16],
        initial_temperature: 0.1,
        ..LearnerConfig::default()
    }
}

/// Random networks; their last layers are near zero.
pub(crate) fn ensemble(members: usize, dims: Dims, hidden: &[usize], seed: u64) -> EnsembleWeights {
    let stack = |name: &str, inputs: usize, outputs: usize| -> StackWeights {
        let widths: Vec<usize> = [&[inputs], hidden, &[outputs]].concat();
        let rng = &mut stream(seed, name);
        Stack::random(members, &widths, Init::default(), rng, &Device::Cpu).unwrap().to_weights().unwrap()
    };
    let critic_inputs = dims.observation + dims.action;
    EnsembleWeights {
        actor: ActorWeights {
            stack: stack("actor", dims.observation, 2 * dims.action),
            log_std: LogStdBounds::default(),
            eyes: None,
        },
        critic1: stack("critic1", critic_inputs, 1),
        critic2: stack("critic2", critic_inputs, 1),
        targets: None,
        log_alpha: None,
        encoder: None,
    }
}

/// Sets the last layer of every network to the constant `value`.
pub(crate) fn make_constant(stack: &mut StackWeights, value: f32) {
    let last = stack.layers.last_mut().unwrap();
    last.weight.fill(0.0);
    last.bias.fill(value);
}

/// `tanh` of the mean of the members' means in state `s`.
pub(crate) fn greedy(actor: &ActorWeights, s: [f32; 2]) -> f32 {
    let stack = Stack::from_weights(&actor.stack, &Device::Cpu).unwrap();
    let x = candle_core::Tensor::from_slice(&s, (1, 2), &Device::Cpu).unwrap();
    let out = stack.forward_detached(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (out.chunks(2).map(|o| o[0]).sum::<f32>() / actor.stack.members as f32).tanh()
}

/// Mean reward of the greedy policy over a grid of states.
pub(crate) fn greedy_reward(actor: &ActorWeights) -> f32 {
    let grid: Vec<[f32; 2]> = (-4..=4).flat_map(|i| (-4..=4).map(move |j| [i as f32 / 4.0, j as f32 / 4.0])).collect();
    grid.iter().map(|s| bandit_reward(s, greedy(actor, *s))).sum::<f32>() / grid.len() as f32
}
