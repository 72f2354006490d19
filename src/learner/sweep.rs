//! The trajectory sampler's sweeps: all transitions of both buffers, weighed by the policy of the moment (ARB).
//!
//! The replay is locked for a block of rows at a time, so that the recorder never waits for the networks; a step that was
//! overwritten meanwhile is left alone.

use std::sync::Mutex;

use candle_core::{Device, Result as TensorResult, Tensor};

use super::LearnerError;
use super::actors::ACTION_CLIP;
use super::batch::Dims;
use super::eyes::Eyes;
use super::networks::Networks;
use super::update::lock;
use crate::config::{LearnerConfig, ReplayConfig};
use crate::nn::tanh_gaussian;
use crate::replay::{Replay, ReplayError, Store};
use crate::rl::trajectory;
use crate::spaces::{Source, StepRecord};

/// Rows that are read, evaluated and written at once.
const BLOCK: usize = 4096;
/// As many with images.
const FRAME_BLOCK: usize = 256;

/// What is read at once.
#[derive(Default)]
struct Rows {
    observations: Vec<f32>,
    actions: Vec<f32>,
    frames: Vec<u8>,
}

/// Settings of the sweeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweeps {
    pub(super) lambda: f64,
    /// Updates between two.
    pub(super) every: u64,
}

impl From<&ReplayConfig> for Sweeps {
    fn from(replay: &ReplayConfig) -> Self {
        Self { lambda: replay.trajectory_temperature, every: replay.trajectory_refresh }
    }
}

/// What was read so far, one entry for each transition.
#[derive(Default)]
struct Seen {
    source: Vec<Source>,
    sequence: Vec<u64>,
    log_prob: Vec<f32>,
    /// Where trajectories begin.
    starts: Vec<usize>,
}

impl Sweeps {
    /// Gives every transition the weight of its trajectory as its priority.
    pub(super) fn run(
        self,
        (networks, eyes): (&Networks, Option<&Eyes>),
        config: &LearnerConfig,
        dims: Dims,
        replay: &Mutex<Replay>,
        device: &Device,
    ) -> Result<(), LearnerError> {
        let mut seen = Seen::default();
        for source in [Source::Offline, Source::Online] {
            let (mut from, mut goes_on) = (1, false);
            loop {
                let mut rows = Rows::default();
                from = seen.read(&lock(replay), source, from, &mut goes_on, &mut rows, eyes.is_some())?;
                if rows.actions.is_empty() {
                    break;
                }
                let log_prob = log_prob((networks, eyes), config, dims, &rows, device)
                    .map_err(LearnerError::tensor("weigh trajectories"))?;
                seen.log_prob.extend(log_prob);
            }
        }
        let weights = trajectory::weights(&seen.log_prob, &seen.starts, dims.action, self.lambda);
        for (block, weights) in weights.chunks(BLOCK).enumerate() {
            let mut locked = lock(replay);
            let at = block * BLOCK..block * BLOCK + weights.len();
            let leaf = |(source, sequence): (&Source, &u64)| still_there(&locked, *source, *sequence);
            let rows = seen.source[at.clone()].iter().zip(&seen.sequence[at]).map(leaf).zip(weights);
            let (leaves, weights): (Vec<u32>, Vec<f32>) = rows.filter_map(|(leaf, w)| Some((leaf?, *w))).unzip();
            locked.set_priorities(&leaves, &weights)?;
        }
        Ok(())
    }
}

impl Seen {
    /// Reads up to a block of transitions from sequence `from` on into `rows`, observations and actions; where to go on.
    fn read(
        &mut self,
        replay: &Replay,
        source: Source,
        from: u64,
        goes_on: &mut bool,
        rows: &mut Rows,
        with_frames: bool,
    ) -> Result<u64, ReplayError> {
        let Some(store) = side(replay, source) else { return Ok(from) };
        let most = if with_frames { FRAME_BLOCK } else { BLOCK };
        let (mut record, mut count) = (StepRecord::default(), 0);
        let first = from.max(store.first_sequence());
        *goes_on &= first == from;
        for sequence in first..=store.last_sequence() {
            if count == most {
                return Ok(sequence);
            }
            let found = store.is_sampleable(store.slot(sequence)) && store.record(sequence, &mut record).is_ok();
            if found {
                if record.step == 0 || !*goes_on {
                    self.starts.push(self.sequence.len());
                }
                self.source.push(source);
                self.sequence.push(sequence);
                rows.observations.extend_from_slice(&record.observation);
                rows.actions.extend_from_slice(&record.action);
                if with_frames {
                    rows.frames.extend_from_slice(store.frame(sequence)?.2);
                }
                count += 1;
            }
            *goes_on = found;
        }
        Ok(store.last_sequence() + 1)
    }
}

fn side(replay: &Replay, source: Source) -> Option<&Store> {
    match source {
        Source::Offline => replay.offline(),
        Source::Online => Some(replay.online()),
    }
}

/// Leaf of a transition, unless a newer one has its place.
fn still_there(replay: &Replay, source: Source, sequence: u64) -> Option<u32> {
    let store = side(replay, source)?;
    let offset = if source == Source::Offline { 0 } else { replay.offline().map_or(0, Store::capacity) };
    let there = sequence >= store.first_sequence() && store.is_sampleable(store.slot(sequence));
    there.then(|| (offset as usize + store.slot(sequence)) as u32)
}

/// `log pi(a|s)` of the ensemble policy.
fn log_prob(
    (networks, eyes): (&Networks, Option<&Eyes>),
    config: &LearnerConfig,
    dims: Dims,
    rows: &Rows,
    device: &Device,
) -> TensorResult<Vec<f32>> {
    let count = rows.actions.len() / dims.action;
    let observation = Tensor::from_slice(&rows.observations, (count, rows.observations.len() / count), device)?;
    let observation = match eyes {
        Some(eyes) => eyes.stored(&rows.frames, &observation)?.0,
        None => observation,
    };
    let action = Tensor::from_slice(&rows.actions, (count, dims.action), device)?;
    let (mean, std) = tanh_gaussian::moments(&networks.actor.forward_detached(&observation)?, config.log_std)?;
    tanh_gaussian::log_prob_of(&mean, &std, &action, ACTION_CLIP)?.to_vec1()
}
