//! The networks that a learner starts with: the bundle's or new ones, as the settings ask.

use candle_core::Device;

use super::LearnerError;
use super::batch::Dims;
use super::eyes::{network_dims, new_encoders};
use super::networks::{check, widths};
use super::streams::stream;
use crate::config::{LayerNorm, LearnerConfig, Start, TargetKind};
use crate::nn::{ActorWeights, Encoders, EnsembleWeights, Eyes, Init, Stack, StackWeights};

/// The members that `config` asks for, out of `given` or new ones of its shape, checked against every setting that
/// speaks of networks.
///
/// # Errors
/// When the networks do not fit `dims`, each other or a setting.
pub(super) fn weights(
    given: &EnsembleWeights,
    dims: Dims,
    config: &LearnerConfig,
    seed: u64,
) -> Result<EnsembleWeights, LearnerError> {
    let own = given.critic1.members.max(given.actor.stack.members);
    let members = if config.members == 0 { own } else { config.members };
    let actors = match (config.actors, given.actor.stack.members) {
        (1, _) => 1,
        (0, 1) if config.start == Start::Bundle => 1,
        _ => members,
    };
    let mut weights = match config.start {
        Start::Bundle if members > own => {
            let reason =
                format!("{members}, but the bundle has {own}; 0 takes all, start = \"scratch\" makes new ones");
            return Err(LearnerError::Setting { key: "learner.members", reason });
        }
        Start::Bundle => {
            check(given, dims)?;
            chosen(given, members, actors)
        }
        Start::Scratch => scratch(given, dims, config, members, actors, seed)?,
    };
    if !config.carry_targets {
        weights.targets = None;
        match &mut weights.encoder {
            Some(Encoders::Shared { target }) => *target = None,
            Some(Encoders::Separate { targets, .. }) => *targets = None,
            None => {}
        }
    }
    if !config.carry_temperature {
        weights.log_alpha = None;
    }
    fits(&weights, config)?;
    Ok(weights)
}

fn chosen(given: &EnsembleWeights, members: usize, actors: usize) -> EnsembleWeights {
    EnsembleWeights {
        actor: ActorWeights {
            stack: given.actor.stack.first(actors),
            log_std: given.actor.log_std,
            eyes: eyes(given, actors),
        },
        critic1: given.critic1.first(members),
        critic2: given.critic2.first(members),
        targets: given.targets.as_ref().map(|(one, two)| (one.first(members), two.first(members))),
        log_alpha: given.log_alpha,
        encoder: encoders(given, members),
    }
}

/// The encoders of the first `actors`.
fn eyes(given: &EnsembleWeights, actors: usize) -> Option<Eyes> {
    let mut eyes = given.actor.eyes.clone()?;
    eyes.encoders.truncate(actors.max(1));
    Some(eyes)
}

/// The encoders of the first `members`.
fn encoders(given: &EnsembleWeights, members: usize) -> Option<Encoders> {
    let mut encoders = given.encoder.clone()?;
    if let Encoders::Separate { critic1, critic2, targets } = &mut encoders {
        let targets = targets.iter_mut().flat_map(|(one, two)| [one, two]);
        [critic1, critic2].into_iter().chain(targets).for_each(|own| own.truncate(members));
    }
    Some(encoders)
}

/// New networks with the hidden widths of the given ones.
fn scratch(
    given: &EnsembleWeights,
    dims: Dims,
    config: &LearnerConfig,
    members: usize,
    actors: usize,
    seed: u64,
) -> Result<EnsembleWeights, LearnerError> {
    let init = Init { last_bias: None, layer_norm: config.layer_norm == LayerNorm::On };
    let new = |name: &str, like: &StackWeights, count: usize, inputs: usize, outputs: usize| {
        let like = if like.layers.is_empty() { &given.actor.stack } else { like };
        let mut widths = widths(like);
        widths.truncate(widths.len().saturating_sub(1));
        widths.push(outputs);
        widths[0] = inputs;
        Stack::random(count, &widths, init, &mut stream(seed, name), &Device::Cpu)
            .and_then(|stack| stack.to_weights())
            .map_err(LearnerError::tensor("make new networks"))
    };
    let eyes = given.actor.eyes.as_ref().map(|eyes| {
        let channels =
            eyes.encoders.first().map_or_else(Vec::new, |e| e.convolutions.iter().map(|c| c.outputs).collect());
        let like = LearnerConfig {
            trunk_channels: channels,
            trunk_features: eyes.features(),
            proprioception: eyes.proprioception,
            ..config.clone()
        };
        new_encoders(eyes.shape, eyes.observation_dim, members, &like, seed)
    });
    let (eyes, encoder) = eyes.transpose()?.flatten().unzip();
    let dims = network_dims(eyes.as_ref(), dims);
    let inputs = dims.observation + dims.action;
    let actor = new("learner scratch actor", &given.actor.stack, actors, dims.observation, 2 * dims.action)?;
    let mut critic1 = new("learner scratch critic 1", &given.critic1, members, inputs, 1)?;
    let mut critic2 = new("learner scratch critic 2", &given.critic2, members, inputs, 1)?;
    if config.shared_head {
        let first = critic1.clone();
        critic1.take_head(&first);
        critic2.take_head(&first);
    }
    let actor = ActorWeights { stack: actor, log_std: config.log_std, eyes };
    Ok(EnsembleWeights { actor, critic1, critic2, targets: None, log_alpha: None, encoder })
}

/// What the settings say about networks, against the networks.
fn fits(weights: &EnsembleWeights, config: &LearnerConfig) -> Result<(), LearnerError> {
    let refuse = |key, reason: String| Err(LearnerError::Setting { key, reason });
    let critics = [&weights.critic1, &weights.critic2];
    let wanted = match config.layer_norm {
        LayerNorm::AsGiven => None,
        LayerNorm::On => Some(true),
        LayerNorm::Off => Some(false),
    };
    for (name, stack) in [("actor", &weights.actor.stack), ("critic1", critics[0]), ("critic2", critics[1])] {
        let found = stack.layer_norm();
        if wanted.is_some_and(|wanted| found != Some(wanted) && stack.layers.len() > 1) {
            let state = match found {
                Some(true) => "has it in every layer",
                Some(false) => "has none",
                None => "has it in some layers",
            };
            let reason = format!("`{name}` {state}; set it to \"as-given\" or bring a bundle that was trained so");
            return refuse("learner.layer_norm", reason);
        }
    }
    let targets = weights.targets.iter().flat_map(|(one, two)| [one, two]);
    if config.shared_head
        && !(StackWeights::share_heads(&critics) && StackWeights::share_heads(&targets.collect::<Vec<_>>()))
    {
        let reason = "the output layers of the critics differ: this bundle was not trained with one; set it to false";
        return refuse("learner.shared_head", reason.into());
    }
    let (pool, subset) = (2 * weights.critic1.members, config.redq_subset);
    if config.target_operator == TargetKind::Redq && !config.redq_replacement && subset > pool {
        let reason = format!("{subset} different critics of {pool}: ask for fewer or set redq_replacement = true");
        return refuse("learner.redq_subset", reason);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims = Dims { observation: 3, action: 2 };

    fn made(change: impl FnOnce(&mut LearnerConfig)) -> Result<EnsembleWeights, LearnerError> {
        let shape = |inputs, outputs| {
            let rng = &mut stream(1, "start");
            Stack::random(4, &[inputs, 6, outputs], Init::default(), rng, &Device::Cpu).unwrap().to_weights().unwrap()
        };
        let critic = shape(5, 1);
        let given = EnsembleWeights {
            actor: ActorWeights { stack: shape(3, 4), ..ActorWeights::default() },
            critic1: critic.clone(),
            critic2: critic.clone(),
            targets: Some((critic.clone(), critic)),
            log_alpha: Some(-1.0),
            encoder: None,
        };
        let mut config = LearnerConfig::default();
        change(&mut config);
        weights(&given, DIMS, &config, 7)
    }

    #[test]
    fn the_first_members_are_taken_and_carrying_is_a_choice() {
        let all = made(|_| {}).unwrap();
        assert_eq!((all.critic1.members, all.log_alpha), (4, Some(-1.0)));
        let one = made(|c| (c.members, c.carry_targets, c.carry_temperature) = (1, false, false)).unwrap();
        assert_eq!((one.actor.stack.members, one.critic2.members), (1, 1));
        assert_eq!(one.critic1.layers[0].weight[..], all.critic1.layers[0].weight[..30]);
        assert!(one.targets.is_none() && one.log_alpha.is_none());
        let single = made(|c| c.actors = 1).unwrap();
        assert_eq!((single.actor.stack.members, single.critic1.members), (1, 4));
    }

    #[test]
    fn networks_from_scratch_are_as_asked() {
        let scratch = |c: &mut LearnerConfig| {
            (c.start, c.members, c.actors, c.layer_norm, c.shared_head) = (Start::Scratch, 7, 1, LayerNorm::On, true);
        };
        let new = made(scratch).unwrap();
        assert_eq!((new.actor.stack.members, new.critic1.members), (1, 7));
        assert_eq!(new.critic1.layer_norm(), Some(true));
        assert!(StackWeights::share_heads(&[&new.critic1, &new.critic2]));
        assert_ne!(new.critic1.layers[0], new.critic2.layers[0]);
        assert_eq!(new, made(scratch).unwrap());
        check(&new, DIMS).unwrap();
    }

    #[test]
    fn settings_that_contradict_the_networks_are_refused_by_name() {
        let refused = |change: fn(&mut LearnerConfig)| made(change).unwrap_err().to_string();
        assert!(refused(|c| c.members = 5).starts_with("learner.members: 5, but the bundle has 4"));
        assert!(refused(|c| c.layer_norm = LayerNorm::On).contains("`actor` has none"));
        assert!(refused(|c| c.shared_head = true).starts_with("learner.shared_head"));
        let subset = refused(|c| {
            (c.target_operator, c.redq_subset, c.redq_replacement) = (TargetKind::Redq, 9, false);
        });
        assert!(subset.starts_with("learner.redq_subset: 9 different critics of 8"), "{subset}");
    }
}
