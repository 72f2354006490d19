//! The updates that learners are compared by.

use std::sync::Mutex;

use serde::Serialize;

use super::super::rig::{DIMS, ensemble, store};
use crate::config::{
    ActorBatch, ActorOperator, DeviceKind, LayerNorm, LearnerConfig, Order, PretrainConfig, ReplayConfig, SamplerKind,
    Start, TargetKind, TemperatureForm, TemperatureStates, TrunkKind,
};
use crate::learner::pretrain::Pretrainer;
use crate::learner::{Dims, Learner, random_store};
use crate::replay::Replay;
use crate::runtime::parts::RuntimeError;
use crate::spaces::FrameShape;

/// One update of a known method: at HalfCheetah's size (17 observation and 6 action entries, hidden layers 256-256,
/// minibatches of 256), or from images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Off2OnRL: five agents with twin critics, balanced replay with density ratio and priorities.
    Off2OnRl,
    /// WSRL: one actor and ten critics with layer norm, two of them drawn for each target, four critic steps on 256 rows,
    /// then one step of actor and temperature on their 1024. Optimisers step only with gradients.
    Wsrl,
    /// SAC from images of 48 x 48 x 3: four agents with twin critics behind one encoder of COG's size, minibatches of 64.
    PixelsShared,
    /// The same with an encoder for each network and member.
    PixelsSeparate,
}

/// Rows of a minibatch.
const ROWS: usize = 256;
/// Critic steps of [`Workload::Wsrl`].
const CRITIC_STEPS: usize = 4;
/// Critics of either.
const CRITICS: usize = 10;

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Off2OnRl, Self::Wsrl, Self::PixelsShared, Self::PixelsSeparate];

    /// A learner of this kind and its data.
    pub(super) fn learner(self, threads: usize, device: DeviceKind) -> Result<(Learner, Mutex<Replay>), RuntimeError> {
        let trunk = match self {
            Self::PixelsShared => Some(TrunkKind::Shared),
            Self::PixelsSeparate => Some(TrunkKind::Separate),
            _ => None,
        };
        if let Some(trunk) = trunk {
            return pixels(trunk, threads, device);
        }
        let (config, replay, offline) = match self {
            Self::Off2OnRl => (LearnerConfig::default(), ReplayConfig::default(), Some(store(1)?)),
            _ => (wsrl(), ReplayConfig { sampler: SamplerKind::Online, ..ReplayConfig::default() }, None),
        };
        let config = LearnerConfig { device, threads, ..config };
        let learner = Learner::new(&ensemble()?, DIMS, &config, &replay, 0)?;
        Ok((learner, Mutex::new(Replay::new(offline, store(2)?, &replay)?)))
    }

    /// Operations of the matrix products, 10^9, where results that do not matter are not computed: the gradient of a
    /// minimum goes to one critic per row, targets are those drawn, one pass of the actor at `s'` serves all that need
    /// it, and the first layer gives an input gradient only to actions.
    pub(super) fn gflop(self) -> f64 {
        if let Self::PixelsShared | Self::PixelsSeparate = self {
            return pixel_operations(self == Self::PixelsSeparate) as f64 * 1e-9;
        }
        let (o, a) = (DIMS.observation, DIMS.action);
        let (actor, critic) = (Network([o, 256, 256, 2 * a]), Network([o + a, 256, 256, 1]));
        let learn = |network: Network, rows| network.forward(rows) + network.gradients(rows);
        let operations = if self == Self::Off2OnRl {
            let members = CRITICS / 2;
            let density = learn(critic, 2 * ROWS) + critic.forward(ROWS);
            let actors = actor.forward(members * ROWS) + learn(actor, members * ROWS);
            let judge = critic.forward(CRITICS * ROWS) + critic.to_actions(members * ROWS, a);
            density + actors + judge + critic.forward(CRITICS * ROWS) + learn(critic, CRITICS * ROWS)
        } else {
            let rows = CRITIC_STEPS * ROWS;
            let actors = actor.forward(rows) + learn(actor, rows);
            let judge = critic.forward(CRITICS * rows) + critic.to_actions(rows, a);
            actors + judge + critic.forward(2 * rows) + learn(critic, CRITICS * rows)
        };
        operations as f64 * 1e-9
    }
}

/// Members, rows and features of the updates from images, and of what robot.
const PIXEL_MEMBERS: usize = 4;
const PIXEL_ROWS: usize = 64;
const FEATURES: usize = 1024;
const HIDDEN: [usize; 2] = [512, 256];
const FRAME: FrameShape = FrameShape { width: 48, height: 48, channels: 3 };
const PIXEL_DIMS: Dims = Dims { observation: 4, action: 4 };

fn pixels(trunk: TrunkKind, threads: usize, device: DeviceKind) -> Result<(Learner, Mutex<Replay>), RuntimeError> {
    let config = LearnerConfig {
        trunk,
        trunk_features: FEATURES,
        proprioception: false,
        batch_size: PIXEL_ROWS,
        threads,
        device,
        ..LearnerConfig::default()
    };
    let sizes = PretrainConfig { ensemble_size: PIXEL_MEMBERS, hidden: HIDDEN.to_vec(), ..PretrainConfig::default() };
    let weights = Pretrainer::seeing(Some(FRAME), PIXEL_DIMS, &sizes, &config, 0)?.weights()?;
    let replay = ReplayConfig { sampler: SamplerKind::Uniform, ..ReplayConfig::default() };
    let learner = Learner::new(&weights, PIXEL_DIMS, &config, &replay, 0)?;
    let store = |seed| random_store(PIXEL_DIMS, Some(FRAME), 500, seed);
    Ok((learner, Mutex::new(Replay::new(Some(store(1)?), store(2)?, &replay)?)))
}

/// An encoder's backward pass needs no gradient of the image; the first layers of the stacks give one where an encoder
/// learns from it.
fn pixel_operations(separate: bool) -> usize {
    let (rows, members, a) = (PIXEL_ROWS, PIXEL_MEMBERS, PIXEL_DIMS.action);
    let first = 48 * 48 * 27 * 16;
    let encoder = first + 24 * 24 * 144 * 16 + 12 * 12 * 144 * 16 + 2304 * FEATURES;
    let look = 2 * rows * encoder;
    let learn_to_look = 2 * look + 2 * rows * (encoder - first);
    let looking = if separate {
        // Critics at s, their targets at s', actors at both.
        2 * members * (learn_to_look + look) + members * (learn_to_look + look)
    } else {
        learn_to_look + 2 * look
    };
    let [one, two] = HIDDEN;
    let (actor, critic) = (Network([FEATURES, one, two, 2 * a]), Network([FEATURES + a, one, two, 1]));
    let own = members * rows;
    let features = |network: Network| 2 * own * network.0[0] * network.0[1];
    let actors = 2 * actor.forward(own) + actor.gradients(own) + if separate { features(actor) } else { 0 };
    let critics = 2 * (2 * critic.forward(own) + critic.gradients(own) + features(critic));
    let judge = 2 * critic.forward(own) + critic.to_actions(own, a);
    looking + actors + critics + judge
}

fn wsrl() -> LearnerConfig {
    LearnerConfig {
        start: Start::Scratch,
        actors: 1,
        layer_norm: LayerNorm::On,
        critic_steps: CRITIC_STEPS,
        actor_batch: ActorBatch::All,
        order: Order::CriticsFirst,
        target_operator: TargetKind::Redq,
        actor_operator: ActorOperator::Min,
        entropy_backup: false,
        temperature_form: TemperatureForm::Softplus,
        temperature_states: TemperatureStates::Next,
        ..LearnerConfig::default()
    }
}

/// Widths of a network, input first.
#[derive(Clone, Copy)]
struct Network([usize; 4]);

impl Network {
    fn layers(self, from: usize) -> usize {
        self.0.windows(2).skip(from).map(|pair| pair[0] * pair[1]).sum()
    }

    fn forward(self, rows: usize) -> usize {
        2 * rows * self.layers(0)
    }

    /// Of the parameters; the first layer's input is data.
    fn gradients(self, rows: usize) -> usize {
        2 * rows * (self.layers(0) + self.layers(1))
    }

    /// Input gradient of `actions` entries, parameters fixed.
    fn to_actions(self, rows: usize, actions: usize) -> usize {
        2 * rows * (self.layers(1) + actions * self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_published_count() {
        // Counted by hand for this method, to three digits.
        assert!((Workload::Off2OnRl.gflop() - 2.95).abs() < 0.03, "{}", Workload::Off2OnRl.gflop());
        assert!((Workload::PixelsSeparate.gflop() / 37.1 - 1.0).abs() < 0.2, "{}", Workload::PixelsSeparate.gflop());
        assert!((Workload::Wsrl.gflop() - 6.78).abs() < 0.03, "{}", Workload::Wsrl.gflop());
    }
}
