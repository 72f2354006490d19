//! Policies from outside: tried, applied, on trial, rolled back by themselves; in lockstep with the parts of a run.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::world::{Answer, Line, PERIOD, Rig, rig, settings};
use crate::clock::Clock;
use crate::config::{Config, PretrainConfig, SamplerKind, SwapAt, SwapConfig};
use crate::control::{Limits, Person};
use crate::learner::Dims;
use crate::learner::pretrain::Pretrainer;
use crate::nn::weights::EnsembleWeights;
use crate::policy::manifest::Description;
use crate::policy::{Bundle, Source};
use crate::replay::{Layout, Replay, Store};
use crate::runtime::event::Event;
use crate::runtime::parts::{Shared, lock};
use crate::runtime::publisher::Publisher;
use crate::runtime::recorder::Recorder;
use crate::runtime::shadow::Kept;
use crate::runtime::socket::{Reply, Request};
use crate::runtime::trainer::Trainer;
use crate::spaces::{Spaces, StepFlags, StepRecord};

/// Rows of the table: fault, what collapses.
pub(super) const CASES: &[(&str, Collapse)] = &[
    ("The return collapses under a policy from outside", Collapse::Return),
    ("The limits change nearly every action of a policy from outside", Collapse::Limits),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collapse {
    Return,
    Limits,
}

/// Steps of an episode.
const LENGTH: u32 = 150;
/// Ticks of an episode, and some for its reset.
const TICKS: u32 = LENGTH + 5;

fn spaces() -> Spaces {
    Spaces { observation: ["a", "b", "c"].map(String::from).to_vec(), action: vec!["u".into()] }
}

/// Networks whose action is near `tanh(mean)`.
fn weights(mean: f32, seed: u64) -> EnsembleWeights {
    let pretrain = PretrainConfig { hidden: vec![4], ensemble_size: 2, ..PretrainConfig::default() };
    let learner = Config::default().learner;
    let mut weights = Pretrainer::new(Dims::from(&spaces()), &pretrain, &learner, seed).unwrap().weights().unwrap();
    let last = weights.actor.stack.layers.last_mut().unwrap();
    last.weight.iter_mut().for_each(|weight| *weight *= 0.1);
    last.bias.chunks_exact_mut(2).for_each(|bias| bias[0] = mean);
    weights
}

struct World {
    rig: Option<Rig>,
    recorder: Recorder,
    publisher: Publisher,
    shared: Arc<Shared>,
    events: Receiver<Event>,
    folder: tempfile::TempDir,
    records: Vec<StepRecord>,
}

impl World {
    /// A robot that a still policy has moved for four episodes.
    fn new(limits: Limits, swap: &SwapConfig, learns: bool) -> Self {
        let (sender, events) = bounded(4096);
        let shared = Shared::new(sender, Arc::default());
        let mut config = Config::default();
        config.replay.sampler = SamplerKind::Online;
        let layout = Layout { observation_dim: 3, action_dim: 1, schema_hash: 0 };
        let store = Store::in_memory(layout, 16_384).unwrap();
        let replay = Arc::new(Mutex::new(Replay::new(None, store, &config.replay).unwrap()));
        let mut rig = rig(
            |_| Line::Good,
            |_| Answer::Mean(0.0),
            settings(LENGTH, limits, Person::default()),
            Clock::lockstep(),
            Arc::clone(&shared.counters),
            None,
        );
        let (_, unused) = crate::control::policy_slot(super::world::offer(|_| Answer::Mean(0.0), 1, 0));
        let handover = std::mem::replace(&mut rig.handover, unused);
        let in_use = Kept::from(Source::Ensemble(&weights(0.0, 0).actor, None));
        let publisher = Publisher::new(spaces(), config.policy, handover, Arc::clone(&shared)).with_swaps(
            swap,
            Arc::clone(&replay),
            Some(in_use),
            learns,
        );
        let recorder = Recorder::new(replay, Arc::clone(&shared), Duration::from_secs(1), None);
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self { rig: Some(rig), recorder, publisher, shared, events, folder, records: Vec::new() };
        world.play(4 * TICKS);
        world
    }

    fn play(&mut self, ticks: u32) {
        let Some(rig) = &mut self.rig else { return };
        for _ in 0..ticks {
            rig.control.tick().unwrap();
            lock(&rig.world).period();
            rig.clock.advance(PERIOD);
            while let Some(record) = rig.steps.pop() {
                self.recorder.take(&record);
                self.records.push(record);
            }
            self.publisher.watch();
        }
    }

    fn bundle(&self, name: &str, mean: f32) -> PathBuf {
        let description = Description {
            name: name.into(),
            control_hz: 200.0,
            algorithm: "none".into(),
            discount: 0.99,
            training_log_std: None,
            residual: None,
            spaces: spaces(),
            provenance: std::collections::BTreeMap::default(),
        };
        let path = self.folder.path().join(name);
        Bundle::new(description, weights(mean, 1)).unwrap().save(&path).unwrap();
        path
    }

    fn swap(&mut self, bundle: &Path, at: SwapAt, adopt: bool) -> Reply {
        let request = Request::Swap { bundle: bundle.to_owned(), at: Some(at), adopt, try_only: false };
        self.publisher.answer(&request)
    }

    /// Generation in use, swaps, roll-backs.
    fn counted(&self) -> [u64; 3] {
        let counters = &self.shared.counters;
        [&counters.generation, &counters.swaps, &counters.rollbacks].map(|counter| counter.load(Relaxed))
    }

    fn collapses(&self) -> Vec<String> {
        let collapsed = |event| if let Event::RolledBack { reason, .. } = event { Some(reason) } else { None };
        self.events.try_iter().filter_map(collapsed).collect()
    }
}

const FREE: Limits = Limits { magnitude: 1.0, slew: 2.0 };

#[test]
fn a_policy_that_collapses_goes_back_once_and_by_itself() {
    for (fault, collapse) in CASES {
        let (limits, word) = match collapse {
            Collapse::Return => (FREE, "swap.return_drop"),
            Collapse::Limits => (Limits { magnitude: 0.5, slew: 2.0 }, "swap.limited_share"),
        };
        for at in [SwapAt::Tick, SwapAt::Episode] {
            let mut world = World::new(limits, &SwapConfig::default(), true);
            let bad = world.bundle("bad", 3.0);
            let reply = world.swap(&bad, at, true);
            assert!(reply.ok && reply.message.contains("on the newest 200 observations"), "{}", reply.message);
            world.play(2 * TICKS);
            assert_eq!(world.counted()[1], 1, "{fault}");
            world.play(4 * TICKS);
            assert_eq!(world.counted(), [0, 1, 1], "{fault} {at:?}");
            let collapses = world.collapses();
            assert!(collapses.len() == 1 && collapses[0].contains(word), "{fault}: {collapses:?}");
            assert!(!world.shared.adopting.load(Relaxed), "the learner never goes on from a collapsed policy");
            // The policy before is not judged: it neither goes back nor forth, whatever its returns.
            world.play(12 * TICKS);
            assert_eq!(world.counted(), [0, 1, 1], "{fault} {at:?}: flapping");
            // The learner's policies are taken again, as before.
            world.publisher.publish(&weights(0.1, 2).actor);
            world.play(2);
            assert_eq!(world.counted(), [2, 2, 1], "{fault}");
            world.play(12 * TICKS);
            assert_eq!(world.counted(), [2, 2, 1], "the learner's policies are not on trial");
        }
    }
}

#[test]
fn a_policy_that_holds_stays_and_the_learner_goes_on_from_it_when_asked() {
    for adopt in [false, true] {
        let mut world = World::new(FREE, &SwapConfig::default(), true);
        let good = world.bundle("good", 0.0);
        assert!(world.swap(&good, SwapAt::Tick, adopt).ok);
        world.play(TICKS);
        assert!(!world.shared.adopting.load(Relaxed), "on trial still");
        world.publisher.publish(&weights(0.1, 2).actor);
        world.play(4 * TICKS);
        assert_eq!(world.counted(), [1, 1, 0], "the learner's policy is held back");
        assert_eq!(world.shared.adopting.load(Relaxed), adopt);
        assert_eq!(lock(&world.shared.adoption).is_some(), adopt);
        // As the drive loops do when the learner has taken it.
        world.shared.adopting.store(false, Relaxed);
        world.play(1);
        world.publisher.publish(&weights(0.1, 2).actor);
        world.play(2);
        assert_eq!(world.counted()[1], 1 + u64::from(adopt), "its policies are taken again when they come from it");
    }
}

#[test]
fn a_policy_for_the_end_of_the_episode_leaves_every_episode_whole() {
    for at in [SwapAt::Tick, SwapAt::Episode] {
        let mut world = World::new(FREE, &SwapConfig::default(), false);
        world.play(40);
        let good = world.bundle("good", 0.0);
        assert!(world.swap(&good, at, false).ok);
        world.play(2 * TICKS);
        let steps = world.records.iter().filter(|record| !record.flags.contains(StepFlags::OBSERVATION_ONLY));
        let steps: Vec<_> = steps.map(|record| (record.episode, record.policy_generation)).collect();
        let mixed = steps.windows(2).filter(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1).count();
        assert_eq!(mixed, usize::from(at == SwapAt::Tick), "{at:?}");
        assert_eq!(world.counted(), [1, 1, 0]);
    }
}

#[test]
fn the_shadow_gate_refuses_and_a_dry_run_changes_nothing() {
    let swap = SwapConfig { shadow_gate: 0.3, ..SwapConfig::default() };
    let mut world = World::new(FREE, &swap, false);
    let (far, near) = (world.bundle("far", 3.0), world.bundle("near", 0.1));
    let reply = world.swap(&far, SwapAt::Tick, false);
    assert!(!reply.ok && reply.message.contains("swap.shadow_gate"), "{}", reply.message);
    let dry = Request::Swap { bundle: near.clone(), at: None, adopt: false, try_only: true };
    let reply = world.publisher.answer(&dry);
    assert!(reply.ok && reply.message.contains("on average, at most"), "{}", reply.message);
    world.play(5);
    assert_eq!(world.counted(), [0, 0, 0]);
    let reply = world.swap(&near, SwapAt::Tick, true);
    assert!(!reply.ok && reply.message.contains("does not learn"), "{}", reply.message);
    assert!(world.swap(&near, SwapAt::Tick, false).ok);
    world.play(5);
    assert_eq!(world.counted(), [1, 1, 0]);
}

#[test]
fn the_learner_takes_networks_over_and_keeps_its_own_when_they_do_not_fit() {
    let mut world = World::new(FREE, &SwapConfig::default(), true);
    world.play(1);
    let mut config = Config { run: crate::config::RunConfig::default(), ..Config::default() };
    config.run.directory = world.folder.path().join("run");
    config.robot.spaces = spaces();
    config.replay.sampler = SamplerKind::Online;
    config.learner.warmup_steps = 10;
    config.learner.batch_size = 4;
    let (own, other) = (weights(0.0, 0), weights(0.5, 5));
    let mut trainer = Trainer::new(&own, None, &config, world.recorder.replay(), Arc::clone(&world.shared)).unwrap();
    trainer.update().unwrap();
    assert!(!trainer.adopt(), "nothing is asked");
    *lock(&world.shared.adoption) = Some(Box::new(other.clone()));
    assert!(trainer.adopt());
    let now = trainer.weights().unwrap();
    assert_eq!((now.actor.stack, now.critic1), (other.actor.stack.clone(), other.critic1.clone()));
    assert_eq!(world.shared.updates.load(Relaxed), 1);
    let mut broken = own;
    broken.critic1.layers.clear();
    *lock(&world.shared.adoption) = Some(Box::new(broken));
    assert!(trainer.adopt());
    assert_eq!(trainer.weights().unwrap().actor.stack, other.actor.stack, "as they were");
    trainer.update().unwrap();
}
