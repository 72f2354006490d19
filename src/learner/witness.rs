//! Updates as numbers, for a comparison with other implementations.

use std::sync::Mutex;

use super::LearnerError;
use super::critics::subset;
use super::streams::{Streams, normal};
use super::tensors::Arrays;
use super::update::{Learner, lock};
use crate::config::{ActorBatch, TargetKind, TemperatureStates};
use crate::replay::Replay;
use crate::spaces::Minibatch;

impl Learner {
    /// Makes `updates` updates and returns them as a safetensors file: all networks before (`before.NETWORK.LAYER.weight`
    /// as in a checkpoint) and behind them (`after.`), and of update `i` rows and noise of critic step `k`
    /// (`i.k.observation`; bytes of images, `i.k.image`, and how far they are moved where that is once an update,
    /// `i.k.image_shift`), noise of the actor and the temperature (`i.noise`), rows of the density loss (`i.online`), new
    /// priorities (`i.priorities`) and losses of critics, actor, temperature and density (`i.losses`).
    ///
    /// # Errors
    /// When an update fails or the device cannot be read.
    pub fn record(&mut self, replay: &Mutex<Replay>, updates: usize) -> Result<Vec<u8>, LearnerError> {
        let mut all = Arrays::default();
        all.put_all("before", self.arrays()?.0);
        for i in 0..updates {
            let streams = self.streams.clone();
            let metrics = self.update(replay)?;
            self.put_inputs(&mut all, i, streams);
            let density = metrics.density.unwrap_or_default().loss;
            let losses = vec![metrics.critic_loss, metrics.actor_loss, metrics.temperature_loss, density];
            all.put(format!("{i}.losses"), vec![losses.len()], losses);
            if self.density.is_some() {
                let replay = lock(replay);
                let leaves = self.minibatches.iter().flat_map(|m| &m.leaf);
                let priorities: Vec<f32> = leaves.map(|leaf| replay.priorities().get(*leaf as usize)).collect();
                all.put(format!("{i}.priorities"), vec![priorities.len()], priorities);
            }
        }
        all.put_all("after", self.arrays()?.0);
        all.encode().map_err(|error| LearnerError::tensor("record an update")(candle_core::Error::wrap(error)))
    }

    /// What the update just made was made of; `streams`: those from before it.
    fn put_inputs(&self, all: &mut Arrays, i: usize, mut streams: Streams) {
        let action = self.dims.action;
        let mut rows = 0;
        for (k, minibatch) in self.minibatches.iter().enumerate() {
            put_minibatch(all, &format!("{i}.{k}"), minibatch);
            let noise = normal(&mut streams.next_noise, minibatch.rows * action);
            all.put(format!("{i}.{k}.next_noise"), vec![minibatch.rows, action], noise);
            if self.config.target_operator == TargetKind::Redq {
                let drawn = subset(&self.config, 2 * self.networks.critic1.members(), &mut streams.subset);
                let drawn: Vec<f32> = drawn.into_iter().map(|place| place as f32).collect();
                all.put(format!("{i}.{k}.subset"), vec![drawn.len()], drawn);
            }
            if let Some(eyes) = self.eyes.as_ref().filter(|eyes| eyes.learning()) {
                for (name, frames) in [("image", &minibatch.frames), ("next_image", &minibatch.next_frames)] {
                    let shape = vec![minibatch.rows, frames.len() / minibatch.rows.max(1)];
                    all.put(format!("{i}.{k}.{name}"), shape, frames.iter().map(|byte| f32::from(*byte)).collect());
                    let shifts = eyes.draw(minibatch.rows, &mut streams.crops).unwrap_or_default();
                    let shifts: Vec<f32> = shifts.as_flattened().iter().map(|by| *by as f32).collect();
                    all.put(format!("{i}.{k}.{name}_shift"), vec![shifts.len() / 2, 2], shifts);
                }
            }
            rows = if self.config.actor_batch == ActorBatch::All { rows + minibatch.rows } else { minibatch.rows };
        }
        let mut noise =
            |name: &str, rng| all.put(format!("{i}.{name}"), vec![rows, action], normal(rng, rows * action));
        noise("noise", &mut streams.noise);
        if self.config.temperature_states == TemperatureStates::Next {
            noise("temperature_noise", &mut streams.temperature_noise);
        }
        if let Some(density) = &self.density {
            let (online, offline) = density.drawn();
            put_minibatch(all, &format!("{i}.online"), online);
            put_minibatch(all, &format!("{i}.offline"), offline);
        }
    }
}

fn put_minibatch(all: &mut Arrays, name: &str, minibatch: &Minibatch) {
    let columns = [
        ("observation", &minibatch.observation),
        ("action", &minibatch.action),
        ("reward", &minibatch.reward),
        ("terminated", &minibatch.terminated),
        ("next_observation", &minibatch.next_observation),
    ];
    for (column, numbers) in columns {
        let shape = vec![minibatch.rows, numbers.len() / minibatch.rows.max(1)];
        all.put(format!("{name}.{column}"), shape, numbers.clone());
    }
}
