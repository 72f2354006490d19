//! How the learner's networks see images: encoders in front of the stacks, and who trains them.
//!
//! What an encoder makes of an image, with the robot's observation behind it if the networks see that, is the
//! `observation` of the stacks; everything else in an update is as without images. Of a shared encoder the critics'
//! loss is the teacher, and that of actors that imitate the data: all others get its features without gradient. Features of a frozen encoder are put into
//! the minibatch in the place of the observation ([`super::features`]).

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Result as TensorResult, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::LearnerError;
use super::batch::{Batch, Dims};
use super::features::Features;
use super::streams::stream;
use crate::config::{Crops, LearnerConfig, TrunkKind};
use crate::kernels::Staging;
use crate::nn::{
    Adam, AdamSettings, ConvEncoderWeights, Encoders, EnsembleWeights, Eyes as HostEyes, Trunk, copy_vars, limit_norm,
    random_encoders,
};
use crate::spaces::{FrameShape, Minibatch};

/// A shift of each image, or none.
type Shifts = Option<Vec<[i32; 2]>>;

/// Encoders with their optimisers.
pub(super) struct Eyes {
    shape: FrameShape,
    /// The robot's observation, before an encoder stands beside it.
    pub(super) observation: usize,
    proprioception: bool,
    shift: i32,
    crops: Crops,
    clip: f64,
    pub(super) trunks: Trunks,
    pub(super) optimisers: Vec<(&'static str, Adam)>,
}

/// Who has an encoder.
pub(super) enum Trunks {
    /// All one; target critics its slow copy.
    Shared { online: Trunk, target: Trunk },
    /// All one, which stays.
    Frozen { features: Box<Features> },
    /// Each network and member, and the density network where there is one.
    Separate { actor: Trunk, critics: [Trunk; 2], targets: [Trunk; 2], density: Option<Trunk> },
}

/// Images of a minibatch and what the robot measured beside them, on the device.
#[derive(Clone)]
pub(super) struct Seen {
    /// `(B, height, width, channels)`, bytes.
    pub(super) image: Tensor,
    pub(super) next_image: Tensor,
    /// `(B, observation)`.
    pub(super) observation: Tensor,
    pub(super) next_observation: Tensor,
}

impl Seen {
    /// Rows of all of them.
    pub(super) fn cat(all: &[&Self]) -> TensorResult<Self> {
        let join = |column: fn(&Self) -> &Tensor| Tensor::cat(&all.iter().map(|s| column(s)).collect::<Vec<_>>(), 0);
        Ok(Self {
            image: join(|s| &s.image)?,
            next_image: join(|s| &s.next_image)?,
            observation: join(|s| &s.observation)?,
            next_observation: join(|s| &s.next_observation)?,
        })
    }
}

/// Input width of the networks for a robot of `dims`.
pub(super) fn network_dims(eyes: Option<&HostEyes>, dims: Dims) -> Dims {
    let Some(eyes) = eyes else { return dims };
    let beside = if eyes.proprioception { dims.observation } else { 0 };
    Dims { observation: eyes.features() + beside, ..dims }
}

/// Encoders for new networks, as `config` asks, with random weights: the actors' and the critics'.
///
/// # Errors
/// When the images are too small, or the configured kind has nothing to learn from.
pub(super) fn new_encoders(
    shape: FrameShape,
    observation: usize,
    members: usize,
    config: &LearnerConfig,
    seed: u64,
) -> Result<Option<(HostEyes, Encoders)>, LearnerError> {
    let new = |name: &str, count: usize| {
        let rng = &mut stream(seed, name);
        random_encoders(count, &config.trunk_channels, config.trunk_features, shape, rng)
            .map_err(LearnerError::tensor("make an encoder"))
    };
    let (own, others) = match config.trunk {
        TrunkKind::None => return Ok(None),
        TrunkKind::Frozen => {
            let reason = "\"frozen\" keeps an encoder that was trained before; new ones are \"shared\" or \"separate\"";
            return Err(LearnerError::Setting { key: "learner.trunk", reason: reason.into() });
        }
        TrunkKind::Shared => (new("encoder", 1)?, Encoders::Shared { target: None }),
        TrunkKind::Separate => {
            let (critic1, critic2) = (new("encoder critic 1", members)?, new("encoder critic 2", members)?);
            (new("encoder actor", members)?, Encoders::Separate { critic1, critic2, targets: None })
        }
    };
    let proprioception = config.proprioception;
    Ok(Some((HostEyes { shape, encoders: own, observation_dim: observation, proprioception }, others)))
}

impl Eyes {
    /// The encoders of `weights` for the configured way to train them; `None` without images. `rates`: step sizes of
    /// actors and critics. `density`: whether there is a density network, and the seed of its encoder.
    ///
    /// # Errors
    /// When what the weights bring does not fit the setting.
    pub(super) fn new(
        weights: &EnsembleWeights,
        config: &LearnerConfig,
        rates: (f64, f64),
        density: (bool, u64),
        device: &Device,
    ) -> Result<Option<Self>, LearnerError> {
        let Some(host) = &weights.actor.eyes else { return Ok(None) };
        let trunks = trunks(host, weights, config, density, device)?;
        let adam = |name, trunk: &Trunk, learning_rate| {
            let adam = Adam::new(trunk.vars(), AdamSettings { learning_rate, ..AdamSettings::default() });
            adam.map(|adam| (name, adam)).map_err(LearnerError::tensor("build the optimisers"))
        };
        let (actors, critics) = rates;
        let optimisers = match &trunks {
            Trunks::Shared { online, .. } => vec![adam("trunk", online, critics)?],
            Trunks::Frozen { .. } => Vec::new(),
            Trunks::Separate { actor, critics: [one, two], density, .. } => {
                let density = density.as_ref().map(|d| adam("trunk density", d, config.density_learning_rate));
                let own =
                    [("trunk actor", actor, actors), ("trunk critic1", one, critics), ("trunk critic2", two, critics)];
                own.into_iter()
                    .map(|(name, trunk, rate)| adam(name, trunk, rate))
                    .chain(density)
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(Some(Self {
            shape: host.shape,
            observation: host.observation_dim,
            proprioception: host.proprioception,
            shift: config.shift_pixels as i32,
            crops: config.crops,
            clip: config.gradient_clip,
            trunks,
            optimisers,
        }))
    }

    /// Whether minibatches bring images, and the networks' view changes with every step.
    pub(super) fn learning(&self) -> bool {
        !matches!(self.trunks, Trunks::Frozen { .. })
    }

    /// All encoders by name.
    pub(super) fn named(&self) -> Vec<(&'static str, &Trunk)> {
        match &self.trunks {
            Trunks::Shared { online, target } => vec![("trunk", online), ("trunk target", target)],
            Trunks::Frozen { features } => vec![("trunk", &features.trunk)],
            Trunks::Separate { actor, critics, targets, density } => {
                let mut all = vec![
                    ("trunk actor", actor),
                    ("trunk critic1", &critics[0]),
                    ("trunk critic2", &critics[1]),
                    ("trunk target1", &targets[0]),
                    ("trunk target2", &targets[1]),
                ];
                all.extend(density.as_ref().map(|density| ("trunk density", density)));
                all
            }
        }
    }

    /// All that a step changes.
    pub(super) fn vars(&self) -> Vec<Var> {
        let learning = self.learning();
        self.named().into_iter().filter(|_| learning).flat_map(|(_, trunk)| trunk.vars()).collect()
    }

    /// Copies of the encoders, the actors' and the critics'.
    pub(super) fn to_weights(&self) -> TensorResult<(HostEyes, Encoders)> {
        let one = |trunk: &Trunk| Ok::<_, candle_core::Error>(trunk.to_weights()?.into_iter().next());
        let (encoders, others) = match &self.trunks {
            Trunks::Shared { online, target } => (online.to_weights()?, Encoders::Shared { target: one(target)? }),
            Trunks::Frozen { features } => (features.trunk.to_weights()?, Encoders::Shared { target: None }),
            Trunks::Separate { actor, critics, targets, .. } => {
                let pair =
                    |pair: &[Trunk; 2]| Ok::<_, candle_core::Error>((pair[0].to_weights()?, pair[1].to_weights()?));
                let (critic1, critic2) = pair(critics)?;
                (actor.to_weights()?, Encoders::Separate { critic1, critic2, targets: Some(pair(targets)?) })
            }
        };
        let (observation_dim, proprioception) = (self.observation, self.proprioception);
        Ok((HostEyes { shape: self.shape, encoders, observation_dim, proprioception }, others))
    }

    /// Images of a minibatch that was drawn with them.
    pub(super) fn upload(&self, host: &Minibatch, staging: &mut Staging, device: &Device) -> TensorResult<Seen> {
        let (count, width) = (host.rows, self.observation);
        let numbers = |column: &[f32]| Tensor::from_slice(column, (count, width), device);
        let (now, then) = (&host.frames[..], &host.next_frames[..]);
        let [image, next_image] = staging.upload_bytes([(now, &self.dims(now)), (then, &self.dims(then))], device)?;
        let (observation, next_observation) = (numbers(&host.observation)?, numbers(&host.next_observation)?);
        Ok(Seen { image, next_image, observation, next_observation })
    }

    /// Shape of so many bytes.
    fn dims(&self, bytes: &[u8]) -> [usize; 4] {
        let [height, width, channels] = [self.shape.height, self.shape.width, self.shape.channels].map(usize::from);
        [bytes.len() / self.shape.bytes().max(1), height, width, channels]
    }

    /// Lets all networks look at a minibatch: fills what they see of it. Nothing happens with frozen encoders. `teach`:
    /// the actors' loss trains a shared encoder, too ([`Eyes::join`]).
    pub(super) fn look(&self, batch: &mut Batch, teach: bool, rng: &mut ChaCha8Rng) -> TensorResult<()> {
        let Some(seen) = batch.seen.clone() else { return Ok(()) };
        let (now, then) = (&seen.image, &seen.next_image);
        let count = now.dim(0)?;
        let (first, second) = (self.draw(count, rng), self.draw(count, rng));
        let mut of = |base: &Shifts, members: usize| self.shifts(base, members, rng);
        let beside = |features: &Tensor| self.beside(features, &seen.observation);
        let next_beside = |features: &Tensor| self.beside(features, &seen.next_observation);
        match &self.trunks {
            Trunks::Frozen { .. } => return Ok(()),
            Trunks::Shared { online, target } => {
                let judged = beside(&online.forward(now, first.clone())?.squeeze(0)?)?;
                let own = match self.crops {
                    Crops::Once => judged.clone(),
                    Crops::EachPass => beside(&online.forward(now, of(&first, 1))?.squeeze(0)?)?,
                };
                batch.observation = if teach { own } else { own.detach() };
                batch.judged = [judged.clone(), judged];
                batch.next_observation = next_beside(&online.forward_detached(then, of(&second, 1))?.squeeze(0)?)?;
                let next = next_beside(&target.forward_detached(then, of(&second, 1))?.squeeze(0)?)?;
                batch.next_judged = [next.clone(), next];
                batch.weighed = batch.observation.detach();
            }
            Trunks::Separate { actor, critics: [one, two], targets: [next_one, next_two], density } => {
                let mut pass = |trunk: &Trunk| beside(&trunk.forward(now, of(&first, trunk.members()))?);
                batch.judged = [pass(one)?, pass(two)?];
                batch.observation = pass(actor)?;
                if let Some(density) = density {
                    batch.weighed = pass(density)?.detach().squeeze(0)?;
                }
                let mut pass = |trunk: &Trunk| {
                    next_beside(&trunk.forward_detached(then, self.shifts(&second, trunk.members(), rng))?)
                };
                batch.next_judged = [pass(next_one)?, pass(next_two)?];
                batch.next_observation = pass(actor)?;
            }
        }
        Ok(())
    }

    /// What the density network sees of `host`, drawn with images; with gradient where it has an encoder of its own.
    pub(super) fn weigh(
        &self,
        host: &Minibatch,
        staging: &mut Staging,
        device: &Device,
        rng: &mut ChaCha8Rng,
    ) -> TensorResult<Tensor> {
        let seen = self.upload(host, staging, device)?;
        let shifts = self.draw(host.rows, rng);
        let features = match &self.trunks {
            Trunks::Shared { online, .. } => online.forward_detached(&seen.image, shifts)?,
            Trunks::Separate { density: Some(density), .. } => density.forward(&seen.image, shifts)?,
            Trunks::Separate { actor, .. } => actor.forward_detached(&seen.image, shifts)?,
            Trunks::Frozen { features } => features.trunk.forward_detached(&seen.image, None)?,
        };
        self.beside(&features.squeeze(0)?, &seen.observation)
    }

    /// What actors and both critics see of stored images, without shift and gradient.
    pub(super) fn stored(&self, frames: &[u8], observation: &Tensor) -> TensorResult<(Tensor, [Tensor; 2])> {
        let images = Tensor::from_slice(frames, &self.dims(frames), observation.device())?;
        let view = |trunk: &Trunk| {
            let features = trunk.forward_detached(&images, None)?;
            let features = if trunk.members() == 1 { features.squeeze(0)? } else { features };
            self.beside(&features, observation)
        };
        Ok(match &self.trunks {
            Trunks::Shared { online: one, .. } => {
                let view = view(one)?;
                (view.clone(), [view.clone(), view])
            }
            Trunks::Frozen { features } => {
                let view = view(&features.trunk)?;
                (view.clone(), [view.clone(), view])
            }
            Trunks::Separate { actor, critics, .. } => (view(actor)?, [view(&critics[0])?, view(&critics[1])?]),
        })
    }

    /// `features ++ observation`, if the networks see that.
    fn beside(&self, features: &Tensor, observation: &Tensor) -> TensorResult<Tensor> {
        if !self.proprioception {
            return Ok(features.clone());
        }
        let mut dims = features.dims().to_vec();
        if let Some(width) = dims.last_mut() {
            *width = self.observation;
        }
        Tensor::cat(&[features, &observation.broadcast_as(dims)?], D::Minus1)
    }

    /// One shift for each of `count` images.
    pub(super) fn draw(&self, count: usize, rng: &mut ChaCha8Rng) -> Shifts {
        let side = -self.shift..=self.shift;
        let mut one = || rng.random_range(side.clone());
        (self.shift > 0).then(|| (0..count).map(|_| [one(), one()]).collect())
    }

    /// Shifts of a pass of `members` encoders: those of the update, or new ones.
    fn shifts(&self, base: &Shifts, members: usize, rng: &mut ChaCha8Rng) -> Shifts {
        let base = base.as_ref()?;
        match self.crops {
            Crops::Once => Some(base.repeat(members)),
            Crops::EachPass => self.draw(base.len() * members, rng),
        }
    }

    /// Steps what the critics' loss trains; the slow copies follow.
    pub(super) fn step_critics(&mut self, gradients: &mut GradStore, rate: f64) -> TensorResult<()> {
        self.step("trunk", Some(("trunk target", rate)), gradients)?;
        self.step("trunk critic1", Some(("trunk target1", rate)), gradients)?;
        self.step("trunk critic2", Some(("trunk target2", rate)), gradients)
    }

    /// Adds what the actors' loss asks of a shared encoder to what the critics' loss asks.
    pub(super) fn join(&self, actors: &GradStore, critics: &mut GradStore) -> TensorResult<()> {
        let Trunks::Shared { online, .. } = &self.trunks else { return Ok(()) };
        for var in online.vars() {
            if let Some(own) = actors.get(&var) {
                let sum = critics.get(&var).map_or_else(|| Ok(own.clone()), |other| other.add(own))?;
                critics.insert(&var, sum);
            }
        }
        Ok(())
    }

    /// Steps what the actors' loss trains.
    pub(super) fn step_actors(&mut self, gradients: &mut GradStore) -> TensorResult<()> {
        self.step("trunk actor", None, gradients)
    }

    /// Steps what the density loss trains.
    pub(super) fn step_density(&mut self, gradients: &mut GradStore) -> TensorResult<()> {
        self.step("trunk density", None, gradients)
    }

    /// Steps the encoders `name` if they learn; `slow`: their copy, and how far it follows.
    fn step(&mut self, name: &str, slow: Option<(&str, f64)>, gradients: &mut GradStore) -> TensorResult<()> {
        let vars = |name: &str| {
            let all = self.named().into_iter().filter(|(other, _)| *other == name);
            all.flat_map(|(_, trunk)| trunk.vars()).collect::<Vec<Var>>()
        };
        let (own, slow) = (vars(name), slow.map(|(name, rate)| (vars(name), rate)));
        let Some((_, adam)) = self.optimisers.iter_mut().find(|(other, _)| *other == name) else { return Ok(()) };
        if self.clip > 0.0 {
            own.iter().try_for_each(|var| limit_norm(var, gradients, self.clip))?;
        }
        match slow {
            Some((targets, rate)) => adam.step_followed(gradients, &targets, rate),
            None => adam.step(gradients),
        }
    }

    /// The density network stays when other networks are taken over, and so does what it sees with.
    pub(super) fn keep_density_of(&self, old: &Self) -> TensorResult<()> {
        match (&self.trunks, &old.trunks) {
            (Trunks::Separate { density: Some(new), .. }, Trunks::Separate { density: Some(old), .. }) => {
                copy_vars(&new.vars(), &old.vars())
            }
            _ => Ok(()),
        }
    }
}

fn trunks(
    host: &HostEyes,
    weights: &EnsembleWeights,
    config: &LearnerConfig,
    (with_density, seed): (bool, u64),
    device: &Device,
) -> Result<Trunks, LearnerError> {
    let build = |encoders: &[ConvEncoderWeights]| {
        Trunk::from_weights(encoders, host.shape, device)
            .map(|trunk| trunk.with_threads(config.threads))
            .map_err(LearnerError::tensor("build an encoder"))
    };
    let refuse = |reason: &str| Err(LearnerError::Setting { key: "learner.trunk", reason: reason.into() });
    let members = weights.critic1.members;
    let density = || with_density.then(|| build(&new_density(host, seed)?)).transpose();
    match (config.trunk, &weights.encoder) {
        (TrunkKind::None, _) => refuse("\"none\", but the networks of this bundle see with an encoder"),
        (TrunkKind::Shared | TrunkKind::Frozen, Some(Encoders::Separate { .. })) => {
            refuse("the networks of this bundle have an encoder each; only \"separate\" goes on with them")
        }
        (TrunkKind::Shared, Some(Encoders::Shared { target: Some(target) })) => {
            Ok(Trunks::Shared { online: build(&host.encoders)?, target: build(std::slice::from_ref(target))? })
        }
        (TrunkKind::Shared, _) => Ok(Trunks::Shared { online: build(&host.encoders)?, target: build(&host.encoders)? }),
        (TrunkKind::Frozen, _) => {
            Ok(Trunks::Frozen { features: Box::new(Features::new(build(&host.encoders)?, host)) })
        }
        (TrunkKind::Separate, Some(Encoders::Separate { critic1, critic2, targets })) => {
            let (target1, target2) = targets.as_ref().map_or((critic1, critic2), |(one, two)| (one, two));
            Ok(Trunks::Separate {
                actor: build(&host.encoders)?,
                critics: [build(critic1)?, build(critic2)?],
                targets: [build(target1)?, build(target2)?],
                density: density()?,
            })
        }
        (TrunkKind::Separate, _) => {
            let copies = |count: usize| vec![host.encoders.first().cloned().unwrap_or_default(); count];
            let all = copies(members);
            let pair = || Ok::<_, LearnerError>([build(&all)?, build(&all)?]);
            let actor = copies(weights.actor.stack.members);
            let density = density()?;
            Ok(Trunks::Separate { actor: build(&actor)?, critics: pair()?, targets: pair()?, density })
        }
    }
}

/// A random encoder of the shape of the others.
fn new_density(host: &HostEyes, seed: u64) -> Result<Vec<ConvEncoderWeights>, LearnerError> {
    let channels: Vec<usize> =
        host.encoders.first().map_or_else(Vec::new, |e| e.convolutions.iter().map(|c| c.outputs).collect());
    let rng = &mut stream(seed, "encoder density");
    random_encoders(1, &channels, host.features(), host.shape, rng).map_err(LearnerError::tensor("make an encoder"))
}
