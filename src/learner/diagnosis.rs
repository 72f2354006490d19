//! Numbers that say why learning goes as it goes: how far the critics are from what really happened, whether they tell
//! good actions from bad ones, and how far the offline data are from what the robot does.
//!
//! A diagnosis reads the replay and the networks and changes neither; it has random streams of its own, so that runs
//! with and without it have the same bytes. Called by the learner's thread.

use std::sync::Mutex;

use candle_core::{Device, Result as TensorResult, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::LearnerError;
use super::batch::{Dims, for_critics, upload_state_action};
use super::critics::judge;
use super::pretrain::returns_over;
use super::streams::stream;
use super::update::{Learner, lock};
use crate::config::{CutReturns, OutputActivation};
use crate::nn::{Adam, AdamSettings, Init, Stack};
use crate::replay::{Replay, ReplayError};
use crate::rl::density_ratio::{js_estimate, loss, ratio};
use crate::rl::state_action;
use crate::spaces::{Minibatch, Source, StepFlags, StepRecord};

/// Newest online steps that a diagnosis looks at.
const STEPS: u64 = 1000;
/// Updates of the network that [`probe`] trains, and the last of them that count.
const PROBE_UPDATES: usize = 120;
const PROBE_COUNTED: usize = 20;
const PROBE_RATE: f64 = 1e-3;
/// Steps next to each other are alike, so that they are held out from the probe's training in blocks of so many leaves.
const PROBE_BLOCK: u32 = 16;

/// What a look at the newest online steps tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Diagnosis {
    /// Updates done.
    pub updates: u64,
    /// Online steps looked at.
    pub steps: usize,
    /// Mean of `mean_i min(Q1_i, Q2_i)` at the actions that were taken.
    pub q_mean: f64,
    /// Mean discounted return that followed them, entropy not counted. What a time limit or the present cuts off
    /// counts as the mean reward of its episode for ever.
    pub return_mean: f64,
    /// Their difference: negative when the critics are too pessimistic.
    pub calibration_gap: f64,
    /// Standard deviation of the returns.
    pub return_spread: f64,
    /// Share of the states in which the action taken is valued above a uniformly random one.
    pub win_rate: f64,
    /// Area under the curve of telling all actions taken from all random ones by their values, `[0, 1]`.
    pub auroc: f64,
    /// Mean reward of these steps.
    pub reward_online: f64,
    /// Mean reward of as many offline steps; `None` without offline data.
    pub reward_offline: Option<f64>,
    /// Jensen-Shannon divergence between offline and online steps by a network trained for it on one half of either and
    /// asked about the other, nats, at most ln 2; only in the diagnosis after the warm-up, and with more steps than a few.
    pub js_divergence: Option<f64>,
}

impl Learner {
    /// Looks at the newest online steps; `None` when there are none. With `probe`, measures the divergence as well.
    ///
    /// # Errors
    /// When the replay or the device cannot be read.
    pub fn diagnose(&self, replay: &Mutex<Replay>, probe: bool) -> Result<Option<Diagnosis>, LearnerError> {
        let tensor = LearnerError::tensor;
        let mut rng = stream(self.updates, "learner diagnosis");
        let (rows, offline) = {
            let mut replay = lock(replay);
            let offline = offline_reward(&mut replay, &mut rng)?;
            (newest(&replay, self.config.discount, self.eyes.is_some())?, offline)
        };
        if rows.returns.is_empty() {
            return Ok(None);
        }
        let count = rows.returns.len();
        let values = self.values(&rows, &mut rng).map_err(tensor("judge the newest steps"))?;
        let (taken, random) = values.split_at(count);
        let wins = taken.iter().zip(random).filter(|(taken, random)| taken > random).count();
        let (q_mean, return_mean) = (mean(taken), mean(&rows.returns));
        let variance = rows.returns.iter().map(|r| (f64::from(*r) - return_mean).powi(2)).sum::<f64>() / count as f64;
        let js = match offline {
            Some(_) if probe => divergence(replay, self.host_dims(), &self.device, &mut rng)?,
            _ => None,
        };
        Ok(Some(Diagnosis {
            updates: self.updates,
            steps: count,
            q_mean,
            return_mean,
            calibration_gap: q_mean - return_mean,
            return_spread: variance.sqrt(),
            win_rate: wins as f64 / count as f64,
            auroc: auroc(taken, random),
            reward_online: mean(&rows.rewards),
            reward_offline: offline,
            js_divergence: js,
        }))
    }

    /// Values of the actions taken, then of random ones in the same states.
    fn values(&self, rows: &Rows, rng: &mut ChaCha8Rng) -> TensorResult<Vec<f32>> {
        let count = rows.returns.len();
        let states = Tensor::from_slice(&rows.observations, (count, self.host_dims().observation), &self.device)?;
        let judged = match &self.eyes {
            Some(eyes) => eyes.stored(&rows.frames, &states)?.1,
            None => [states.clone(), states],
        };
        let taken = Tensor::from_slice(&rows.actions, (count, self.dims.action), &self.device)?;
        let random: Vec<f32> = (0..count * self.dims.action).map(|_| rng.random_range(-1.0..=1.0)).collect();
        let random = Tensor::from_vec(random, (count, self.dims.action), &self.device)?;
        let rows = for_critics(&judged, |states| {
            let (taken, random) = (state_action(states, &taken)?, state_action(states, &random)?);
            Tensor::cat(&[&taken, &random], taken.rank() - 2)
        })?;
        judge(&self.networks, &rows)?.to_vec1()
    }
}

/// Steps and what followed them.
#[derive(Default)]
struct Rows {
    observations: Vec<f32>,
    actions: Vec<f32>,
    rewards: Vec<f32>,
    returns: Vec<f32>,
    frames: Vec<u8>,
}

/// The newest online steps. An episode that began before them is as good as one that begins with them: a return looks
/// forward only.
fn newest(replay: &Replay, discount: f64, with_frames: bool) -> Result<Rows, ReplayError> {
    let (store, mut rows) = (replay.online(), Rows::default());
    if store.is_empty() {
        return Ok(rows);
    }
    let last = store.last_sequence();
    let first = store.first_sequence().max(last.saturating_sub(STEPS - 1));
    let mut found = Vec::new();
    returns_over(store, first..=last, discount, CutReturns::Steady, |sequence, value| found.push((sequence, value)))?;
    found.sort_unstable_by_key(|(sequence, _)| *sequence);
    let mut record = StepRecord::default();
    for (sequence, value) in found {
        store.record(sequence, &mut record)?;
        if record.flags.contains(StepFlags::OBSERVATION_ONLY) || record.action.is_empty() {
            continue;
        }
        rows.observations.extend_from_slice(&record.observation);
        rows.actions.extend_from_slice(&record.action);
        rows.rewards.push(record.reward);
        rows.returns.push(value);
        if with_frames {
            rows.frames.extend_from_slice(store.frame(sequence)?.2);
        }
    }
    Ok(rows)
}

/// Mean reward of offline steps drawn uniformly.
fn offline_reward(replay: &mut Replay, rng: &mut ChaCha8Rng) -> Result<Option<f64>, ReplayError> {
    if replay.offline_transitions() == 0 {
        return Ok(None);
    }
    let mut batch = Minibatch::default();
    replay.sample_source(Source::Offline, STEPS as usize, rng, &mut batch)?;
    Ok(Some(mean(&batch.reward)))
}

/// Trains a density-ratio network on every other block of steps and estimates the divergence on the others; `None` when
/// there are too few steps to hold any out.
fn divergence(
    replay: &Mutex<Replay>,
    dims: Dims,
    device: &Device,
    rng: &mut ChaCha8Rng,
) -> Result<Option<f64>, LearnerError> {
    let tensor = LearnerError::tensor;
    let mut sides = [(Source::Online, Minibatch::default()), (Source::Offline, Minibatch::default())];
    let widths = [dims.observation + dims.action, 64, 64, 1];
    let network = Stack::random(1, &widths, Init { last_bias: Some(0.0), layer_norm: false }, rng, device);
    let network = network.map_err(tensor("build a density probe"))?;
    let settings = AdamSettings { learning_rate: PROBE_RATE, ..AdamSettings::default() };
    let mut adam = Adam::new(network.vars(), settings).map_err(tensor("build a density probe"))?;
    let (mut sum, mut counted) = (0.0, 0);
    for update in 0..PROBE_UPDATES {
        {
            let mut replay = lock(replay);
            for (source, batch) in &mut sides {
                replay.sample_source(*source, 256, rng, batch)?;
            }
        }
        let counts = update + PROBE_COUNTED >= PROBE_UPDATES;
        let estimate = probe(&network, &sides, dims, device, 0)
            .and_then(|train| train.map(|loss| adam.step(&loss.backward()?)).transpose())
            .and_then(|_| if counts { probe(&network, &sides, dims, device, 1) } else { Ok(None) })
            .and_then(|loss| loss.map(|loss| loss.to_scalar::<f32>()).transpose())
            .map_err(tensor("train a density probe"))?;
        if let Some(estimate) = estimate {
            sum += js_estimate(f64::from(estimate));
            counted += 1;
        }
    }
    Ok((counted > 0).then(|| (sum / f64::from(counted)).clamp(0.0, std::f64::consts::LN_2)))
}

/// The density loss on the rows of either side whose block of leaves has the given parity; `None` when a side has none.
fn probe(
    network: &Stack,
    sides: &[(Source, Minibatch); 2],
    dims: Dims,
    device: &Device,
    parity: u32,
) -> TensorResult<Option<Tensor>> {
    let chosen = sides.each_ref().map(|(_, batch)| {
        (0..batch.rows as u32).filter(|row| batch.leaf[*row as usize] / PROBE_BLOCK % 2 == parity).collect::<Vec<u32>>()
    });
    let count = chosen[0].len().min(chosen[1].len());
    if count == 0 {
        return Ok(None);
    }
    let side = |index: usize| {
        let rows = upload_state_action(&sides[index].1, dims, device)?;
        let rows = rows.index_select(&Tensor::new(&chosen[index][..count], device)?, 0)?;
        ratio(&network.forward(&rows)?, OutputActivation::Exp)?.flatten_all()
    };
    loss(&side(0)?, &side(1)?).map(Some)
}

fn mean(numbers: &[f32]) -> f64 {
    numbers.iter().map(|v| f64::from(*v)).sum::<f64>() / numbers.len().max(1) as f64
}

/// Probability that a positive is above a negative, ties half: the rank statistic of Mann and Whitney.
fn auroc(positive: &[f32], negative: &[f32]) -> f64 {
    let mut sorted = negative.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let below = |v: &f32| (sorted.partition_point(|n| n < v) + sorted.partition_point(|n| n <= v)) as f64 / 2.0;
    let pairs = positive.len() as f64 * negative.len() as f64;
    positive.iter().map(below).sum::<f64>() / pairs.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_counts_pairs_in_order() {
        assert_eq!(auroc(&[3.0, 4.0], &[1.0, 2.0]), 1.0);
        assert_eq!(auroc(&[1.0, 2.0], &[3.0, 4.0]), 0.0);
        assert_eq!(auroc(&[1.0, 3.0], &[2.0, 3.0]), (0.0 + 1.5) / 4.0);
        assert_eq!(auroc(&[5.0; 3], &[5.0; 3]), 0.5);
    }
}
