//! The updates that learners are compared by.

use std::sync::Mutex;

use serde::Serialize;

use super::super::rig::{DIMS, ensemble, store};
use crate::config::{
    ActorBatch, ActorOperator, LayerNorm, LearnerConfig, Order, ReplayConfig, SamplerKind, Start, TargetKind,
    TemperatureForm, TemperatureStates,
};
use crate::learner::Learner;
use crate::replay::Replay;
use crate::runtime::parts::RuntimeError;

/// One update of a known method at HalfCheetah's size: 17 observation and 6 action entries, hidden layers 256-256,
/// minibatches of 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Off2OnRL: five agents with twin critics, balanced replay with density ratio and priorities.
    Off2OnRl,
    /// WSRL: one actor and ten critics with layer norm, two of them drawn for each target, four critic steps on 256 rows,
    /// then one step of actor and temperature on their 1024. Optimisers step only with gradients.
    Wsrl,
}

/// Rows of a minibatch.
const ROWS: usize = 256;
/// Critic steps of [`Workload::Wsrl`].
const CRITIC_STEPS: usize = 4;
/// Critics of either.
const CRITICS: usize = 10;

impl Workload {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Off2OnRl, Self::Wsrl];

    /// A learner of this kind and its data.
    pub(super) fn learner(self, threads: usize) -> Result<(Learner, Mutex<Replay>), RuntimeError> {
        let (config, replay, offline) = match self {
            Self::Off2OnRl => (LearnerConfig::default(), ReplayConfig::default(), Some(store(1)?)),
            Self::Wsrl => (wsrl(), ReplayConfig { sampler: SamplerKind::Online, ..ReplayConfig::default() }, None),
        };
        let config = LearnerConfig { threads, ..config };
        let learner = Learner::new(&ensemble()?, DIMS, &config, &replay, 0)?;
        Ok((learner, Mutex::new(Replay::new(offline, store(2)?, &replay)?)))
    }

    /// Operations of the matrix products, 10^9, where results that do not matter are not computed: the gradient of a
    /// minimum goes to one critic per row, targets are those drawn, one pass of the actor at `s'` serves all that need
    /// it, and the first layer gives an input gradient only to actions.
    pub(super) fn gflop(self) -> f64 {
        let (o, a) = (DIMS.observation, DIMS.action);
        let (actor, critic) = (Network([o, 256, 256, 2 * a]), Network([o + a, 256, 256, 1]));
        let learn = |network: Network, rows| network.forward(rows) + network.gradients(rows);
        let operations = match self {
            Self::Off2OnRl => {
                let members = CRITICS / 2;
                let density = learn(critic, 2 * ROWS) + critic.forward(ROWS);
                let actors = actor.forward(members * ROWS) + learn(actor, members * ROWS);
                let judge = critic.forward(CRITICS * ROWS) + critic.to_actions(members * ROWS, a);
                density + actors + judge + critic.forward(CRITICS * ROWS) + learn(critic, CRITICS * ROWS)
            }
            Self::Wsrl => {
                let rows = CRITIC_STEPS * ROWS;
                let actors = actor.forward(rows) + learn(actor, rows);
                let judge = critic.forward(CRITICS * rows) + critic.to_actions(rows, a);
                actors + judge + critic.forward(2 * rows) + learn(critic, CRITICS * rows)
            }
        };
        operations as f64 * 1e-9
    }
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
        assert!((Workload::Wsrl.gflop() - 6.78).abs() < 0.03, "{}", Workload::Wsrl.gflop());
    }
}
