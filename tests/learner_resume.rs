//! Stop and resume at any update gives the bytes of a run that never stopped.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learner_problem;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use fieldtune::config::{
    CriticLoss, LearnerConfig, Order, OutputActivation, SamplerKind, TargetKind, TemperatureForm, TemperatureStates,
};
use fieldtune::learner::{CheckpointError, Learner, LearnerError};
use fieldtune::replay::{Replay, Store};
use learner_problem::*;

const PARTS: [&str; 4] = ["networks.safetensors", "optimisers.safetensors", "state.bin", "SHA256SUMS"];

/// An online buffer on disk.
fn online(dir: &Path) -> Store {
    let mut store = Store::create(dir, LAYOUT, 1000).unwrap();
    let rng = &mut fieldtune::learner::stream(71, "test data");
    for episode in 0..120 {
        let s = state(rng);
        one_step(
            &mut |record| _ = store.append(record).unwrap(),
            episode,
            s,
            0.2,
            bandit_reward(&s, 0.2),
            fieldtune::spaces::StepFlags::TERMINATED,
        );
    }
    store
}

fn fresh(sampler: SamplerKind) -> Learner {
    Learner::new(&ensemble(3, DIMS, &[16, 16], 1), DIMS, &learner_config(), &replay_config(sampler), 5).unwrap()
}

/// Checkpoint and priorities, as a run does at its end.
fn save(learner: &Learner, replay: &Mutex<Replay>, dir: &Path) {
    let mut replay = replay.lock().unwrap();
    replay.save_priorities().unwrap();
    learner.save(dir, &replay.state()).unwrap();
}

fn priorities(replay: &Mutex<Replay>) -> Vec<u32> {
    let replay = replay.lock().unwrap();
    (0..replay.priorities().len()).map(|leaf| replay.priorities().get(leaf).to_bits()).collect()
}

fn checkpoint_bytes(dir: &Path) -> Vec<Vec<u8>> {
    let generation = fieldtune::learner::checkpoint::latest(dir).unwrap().unwrap();
    PARTS.iter().map(|part| fs::read(generation.join(part)).unwrap()).collect()
}

/// The switches that have a state of their own: random streams, several critic steps, idle optimisers, returns.
fn methods() -> Vec<(SamplerKind, LearnerConfig)> {
    let wsrl = LearnerConfig {
        critic_steps: 4,
        order: Order::CriticsFirst,
        target_operator: TargetKind::Redq,
        zero_gradient_adam: true,
        temperature_form: TemperatureForm::Softplus,
        temperature_states: TemperatureStates::Next,
        batch_size: 16,
        ..learner_config()
    };
    let cal_ql = LearnerConfig { critic_loss: CriticLoss::CalQl, cql_actions: 2, ..learner_config() };
    let softplus = LearnerConfig { density_output: OutputActivation::Softplus, critic_steps: 2, ..learner_config() };
    let held = LearnerConfig {
        critic_loss: CriticLoss::Cql,
        cql_actions: 2,
        cql_gap: 0.5,
        anchor_weight: 0.3,
        anchor_updates: 20,
        ..learner_config()
    };
    vec![
        (SamplerKind::Trajectory, held),
        (SamplerKind::Balanced, learner_config()),
        (SamplerKind::Online, learner_config()),
        (SamplerKind::Online, LearnerConfig { redq_replacement: false, ..wsrl.clone() }),
        (SamplerKind::Uniform, wsrl),
        (SamplerKind::Symmetric, cal_ql),
        (SamplerKind::Balanced, softplus),
    ]
}

#[test]
fn resumed_run_equals_the_straight_one() {
    for (sampler, config) in methods() {
        let fresh = |sampler| {
            Learner::new(&ensemble(3, DIMS, &[16, 16], 1), DIMS, &config, &replay_config(sampler), 5).unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let offline = || Some(random_bandit(70, 300));
        let straight = replay(offline(), online(&at("straight")), sampler);
        let mut learner = fresh(sampler);
        (0..25).for_each(|_| _ = learner.update(&straight).unwrap());
        save(&learner, &straight, &at("straight-checkpoint"));

        drop(online(&at("stopped")));
        for (stop, go) in [(0, 9), (9, 10), (10, 25)] {
            let stopped = reopen(&at("stopped"), offline(), sampler);
            let mut learner = if stop == 0 {
                fresh(sampler)
            } else {
                let (learner, state) =
                    Learner::load(&at("checkpoint"), DIMS, &config, &replay_config(sampler), None).unwrap();
                stopped.lock().unwrap().restore(&state).unwrap();
                learner
            };
            assert_eq!(learner.updates(), stop);
            (stop..go).for_each(|_| _ = learner.update(&stopped).unwrap());
            save(&learner, &stopped, &at("checkpoint"));
        }
        let stopped = reopen(&at("stopped"), offline(), sampler);
        assert_eq!(priorities(&stopped), priorities(&straight), "{sampler:?}");
        let (ours, theirs) = (checkpoint_bytes(&at("checkpoint")), checkpoint_bytes(&at("straight-checkpoint")));
        for ((part, ours), theirs) in PARTS.iter().zip(ours).zip(theirs) {
            assert!(ours == theirs, "{sampler:?}: {part} differs");
        }
    }
}

fn checkpoint() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let replay = replay(Some(random_bandit(70, 300)), random_bandit(71, 100), SamplerKind::Balanced);
    let mut learner = fresh(SamplerKind::Balanced);
    learner.update(&replay).unwrap();
    let generation = learner.save(dir.path(), &replay.lock().unwrap().state()).unwrap();
    (dir, generation)
}

fn load(dir: &Path, sampler: SamplerKind) -> Result<(), LearnerError> {
    Learner::load(dir, DIMS, &learner_config(), &replay_config(sampler), None).map(drop)
}

#[test]
fn altered_and_missing_parts_are_named() {
    let (dir, generation) = checkpoint();
    load(dir.path(), SamplerKind::Balanced).unwrap();
    for part in &PARTS[..3] {
        let path = generation.join(part);
        let good = fs::read(&path).unwrap();
        for position in [0, 4, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[position] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = load(dir.path(), SamplerKind::Balanced).unwrap_err();
            assert!(
                matches!(&error, LearnerError::Checkpoint(CheckpointError::Altered { part: named, .. }) if named == part),
                "{error}"
            );
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(load(dir.path(), SamplerKind::Balanced).unwrap_err().to_string().contains(part));
        fs::remove_file(&path).unwrap();
        let error = load(dir.path(), SamplerKind::Balanced).unwrap_err();
        assert!(
            matches!(&error, LearnerError::Checkpoint(CheckpointError::Missing { part: named, .. }) if named == part),
            "{error}"
        );
        fs::write(&path, good).unwrap();
    }
    load(dir.path(), SamplerKind::Balanced).unwrap();
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let (dir, _) = checkpoint();
    let error = load(dir.path(), SamplerKind::Online).unwrap_err().to_string();
    assert!(error.contains("state.bin") && error.contains("replay.sampler"), "{error}");
    let other = |change: fn(&mut LearnerConfig)| {
        let mut config = learner_config();
        change(&mut config);
        let replay = replay_config(SamplerKind::Balanced);
        Learner::load(dir.path(), DIMS, &config, &replay, None).err().unwrap().to_string()
    };
    let form = other(|c| c.temperature_form = TemperatureForm::Softplus);
    assert!(form.contains("state.bin") && form.contains("learner.temperature_form"), "{form}");
    assert!(other(|c| c.density_output = OutputActivation::Exp).contains("learner.density_output"));
    let dims = fieldtune::learner::Dims { observation: 3, action: 1 };
    let error =
        Learner::load(dir.path(), dims, &learner_config(), &replay_config(SamplerKind::Balanced), None).err().unwrap();
    assert!(matches!(error, LearnerError::Shape { network: "actor", .. }), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        load(empty.path(), SamplerKind::Online),
        Err(LearnerError::Checkpoint(CheckpointError::NotFound { .. }))
    ));
}
