//! Draws from both buffers of a run, and the minibatches they fill.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::error::ReplayError;
use super::layout::{Head, copy_floats, reward};
use super::sampler::Replay;
use super::slot_set::SlotSet;
use super::store::Store;
use crate::config::SamplerKind;
use crate::spaces::{FrameShape, Minibatch, Source, StepFlags};

/// How many rows of a minibatch come from where.
struct Plan {
    /// From the offline side, by the symmetric sampler.
    offline: usize,
    /// From the steps of a person.
    interventions: usize,
}

impl Replay {
    /// Fills `into` with `rows` transitions.
    ///
    /// `Balanced` and `Trajectory` draw by priority, one row from each of `rows` equal parts of the total; when all priorities
    /// are zero they draw uniformly and say so once. `Uniform` draws over both buffers, `Online` over one,
    /// `Symmetric` a fixed share from the offline buffer and the rest from the online one. The last rows are steps
    /// of a person, as many as `intervention_share` says. Allocates only while `into` grows. The same state, seed
    /// and `rows` give the same minibatch.
    ///
    /// # Errors
    /// When there is no transition to draw.
    pub fn sample(
        &mut self,
        kind: SamplerKind,
        rows: usize,
        rng: &mut ChaCha8Rng,
        into: &mut Minibatch,
    ) -> Result<(), ReplayError> {
        let plan = self.plan(rows);
        let rest = rows - plan.interventions;
        match kind {
            SamplerKind::Balanced | SamplerKind::Trajectory => self.draw_balanced(rest, rng)?,
            SamplerKind::Uniform => self.draw_uniform(rest, rng)?,
            SamplerKind::Online => self.draw_side(Source::Online, rest, rng)?,
            SamplerKind::Symmetric => {
                self.draw_side(Source::Offline, plan.offline, rng)?;
                self.add_from_side(Source::Online, rest - plan.offline, rng)?;
            }
        }
        for _ in 0..plan.interventions {
            let slot = self.online.intervention_slots().draw(rng);
            self.drawn.extend(slot.map(|slot| (self.online_leaf + slot) as u32));
        }
        self.gather(into)
    }

    /// Fills `into` with `rows` transitions of one side, drawn uniformly, for the density-ratio loss.
    ///
    /// # Errors
    /// When that side has no transition.
    pub fn sample_source(
        &mut self,
        source: Source,
        rows: usize,
        rng: &mut ChaCha8Rng,
        into: &mut Minibatch,
    ) -> Result<(), ReplayError> {
        self.draw_side(source, rows, rng)?;
        self.gather(into)
    }

    fn plan(&self, rows: usize) -> Plan {
        let share = |of: usize, share: f64| (of as f64 * share).round() as usize;
        let any = self.online.interventions() > 0;
        let interventions = if any { share(rows, self.intervention_share) } else { 0 };
        Plan { interventions, offline: share(rows - interventions, self.settings.offline_share) }
    }

    fn draw_balanced(&mut self, rows: usize, rng: &mut ChaCha8Rng) -> Result<(), ReplayError> {
        if self.tree.total() > 0.0 {
            self.tree.sample_stratified(rows, rng, &mut self.drawn);
            return Ok(());
        }
        self.draw_uniform(rows, rng)?;
        if !std::mem::replace(&mut self.warned_all_zero, true) {
            log::warn!("replay: all priorities are zero; drawing uniformly instead of balanced");
        }
        Ok(())
    }

    fn draw_uniform(&mut self, rows: usize, rng: &mut ChaCha8Rng) -> Result<(), ReplayError> {
        let (offline, online) = (self.offline_transitions(), self.online_transitions());
        if offline + online == 0 {
            return Err(ReplayError::Empty { source_side: None });
        }
        self.drawn.clear();
        for _ in 0..rows {
            let side = if rng.random_range(0..offline + online) < offline { Source::Offline } else { Source::Online };
            self.draw_one(side, rng);
        }
        Ok(())
    }

    fn draw_side(&mut self, source: Source, rows: usize, rng: &mut ChaCha8Rng) -> Result<(), ReplayError> {
        self.drawn.clear();
        self.add_from_side(source, rows, rng)
    }

    fn add_from_side(&mut self, source: Source, rows: usize, rng: &mut ChaCha8Rng) -> Result<(), ReplayError> {
        for _ in 0..rows {
            if !self.draw_one(source, rng) {
                return Err(ReplayError::Empty { source_side: Some(source) });
            }
        }
        Ok(())
    }

    /// Adds a uniform draw from one side; `false` when that side is empty.
    fn draw_one(&mut self, source: Source, rng: &mut ChaCha8Rng) -> bool {
        let leaf = match source {
            Source::Offline => self.offline.as_ref().map(Store::transition_slots).and_then(|o| SlotSet::draw(o, rng)),
            Source::Online => self.online.transition_slots().draw(rng).map(|slot| self.online_leaf + slot),
        };
        self.drawn.extend(leaf.map(|leaf| leaf as u32));
        leaf.is_some()
    }

    /// Copies the drawn transitions into the columns of `into`.
    fn gather(&self, into: &mut Minibatch) -> Result<(), ReplayError> {
        let layout = self.online.layout();
        let (observation, action) = (layout.observation_dim, layout.action_dim);
        let rows = self.drawn.len();
        into.rows = rows;
        into.observation.resize(rows * observation, 0.0);
        into.next_observation.resize(rows * observation, 0.0);
        into.action.resize(rows * action, 0.0);
        into.reward.resize(rows, 0.0);
        into.terminated.resize(rows, 0.0);
        into.leaf.clone_from(&self.drawn);
        into.source.clear();
        let columns = into
            .observation
            .chunks_exact_mut(observation)
            .zip(into.next_observation.chunks_exact_mut(observation))
            .zip(into.action.chunks_exact_mut(action))
            .zip(into.reward.iter_mut().zip(&mut into.terminated));
        for (leaf, (((observation, next), action), (reward_out, terminated))) in self.drawn.iter().zip(columns) {
            let (store, slot, source) = self.locate(*leaf);
            let (record, following) = store.transition(slot);
            copy_floats(&record[layout.observation()], observation);
            copy_floats(&following[layout.observation()], next);
            copy_floats(&record[layout.action()], action);
            *reward_out = reward(record);
            *terminated = f32::from(u8::from(Head::read(record).flags.contains(StepFlags::TERMINATED)));
            into.source.push(source);
        }
        if into.with_frames {
            self.gather_frames(&self.drawn, &mut into.frames, &mut into.next_frames)?;
        }
        Ok(())
    }

    /// Copies the camera frames of sampled rows, `(rows, height, width, channels)` bytes each: of the observations
    /// into `frames`, of the next observations into `next_frames`. Call it before anything else is appended.
    ///
    /// # Errors
    /// When a buffer has no frames, or a leaf holds no transition.
    pub fn gather_frames(
        &self,
        leaf: &[u32],
        frames: &mut Vec<u8>,
        next_frames: &mut Vec<u8>,
    ) -> Result<(), ReplayError> {
        frames.clear();
        next_frames.clear();
        for leaf in leaf {
            if *leaf as usize >= self.tree.len() {
                return Err(ReplayError::Leaf { leaf: *leaf, leaves: self.tree.len() });
            }
            let (store, slot, source) = self.locate(*leaf);
            if !store.is_sampleable(slot) {
                return Err(ReplayError::Empty { source_side: Some(source) });
            }
            let (now, next) = store.transition_frames(slot).ok_or(ReplayError::NoFrames)?;
            frames.extend_from_slice(now);
            next_frames.extend_from_slice(next);
        }
        Ok(())
    }

    /// The frames of sampled rows by their numbers, which the buffer of the row's side never gives to two frames: of
    /// the observation and of the next observation.
    ///
    /// # Errors
    /// As [`Replay::gather_frames`].
    pub fn frame_numbers(&self, leaf: u32) -> Result<(Source, [u64; 2]), ReplayError> {
        let (store, slot, source) = self.locate(leaf);
        if !store.is_sampleable(slot) {
            return Err(ReplayError::Empty { source_side: Some(source) });
        }
        store.transition_frame_numbers(slot).map(|numbers| (source, numbers)).ok_or(ReplayError::NoFrames)
    }

    /// Pixels of a frame of which [`Replay::frame_numbers`] just told the number.
    ///
    /// # Errors
    /// When that side has no frames.
    pub fn frame_pixels(&self, source: Source, number: u64) -> Result<&[u8], ReplayError> {
        let store = match source {
            Source::Offline => self.offline.as_ref(),
            Source::Online => Some(&self.online),
        };
        store.and_then(|store| store.pixels(number)).ok_or(ReplayError::NoFrames)
    }

    /// Size of the camera frames of all transitions there are, `None` where some have none or of different size.
    pub fn frame_shape(&self) -> Option<FrameShape> {
        let offline = self.offline.as_ref().filter(|o| o.transitions() > 0);
        let online = (self.online.frame_shape().is_some() || !self.online.is_empty()).then_some(&self.online);
        let mut shapes = offline.into_iter().chain(online).map(Store::frame_shape);
        let first = shapes.next().flatten()?;
        shapes.all(|shape| shape == Some(first)).then_some(first)
    }

    /// Probability of each leaf to be the transition in any one row of a minibatch of `rows` rows that
    /// [`Replay::sample`] draws in the present state: over the rows of a minibatch it counts `rows` times this on
    /// average. Of all transitions together it is 1.
    pub fn probabilities(&self, kind: SamplerKind, rows: usize, leaf: &[u32], into: &mut Vec<f64>) {
        let plan = self.plan(rows);
        let rows = rows.max(1) as f64;
        let person = plan.interventions as f64 / rows;
        let rest = 1.0 - person;
        let (offline, online) = (self.offline_transitions() as f64, self.online_transitions() as f64);
        let total = f64::from(self.tree.total());
        into.clear();
        into.extend(leaf.iter().map(|leaf| {
            let (store, slot, source) = self.locate(*leaf);
            if !store.is_sampleable(slot) {
                return 0.0;
            }
            let drawn = match (kind, source) {
                (SamplerKind::Balanced | SamplerKind::Trajectory, _) if total > 0.0 => {
                    rest * f64::from(self.tree.get(*leaf as usize)) / total
                }
                (SamplerKind::Balanced | SamplerKind::Trajectory | SamplerKind::Uniform, _) => {
                    rest / (offline + online)
                }
                (SamplerKind::Online, Source::Offline) => 0.0,
                (SamplerKind::Online, Source::Online) => rest / online,
                (SamplerKind::Symmetric, Source::Offline) => plan.offline as f64 / rows / offline,
                (SamplerKind::Symmetric, Source::Online) => (rest - plan.offline as f64 / rows) / online,
            };
            let of_a_person = source == Source::Online && self.online.intervention_slots().contains(slot);
            drawn + if of_a_person { person / self.online.interventions() as f64 } else { 0.0 }
        }));
    }

    /// Importance weights of a minibatch that [`Replay::sample`] just filled: `(N p)^-exponent`, divided by the
    /// largest of the minibatch. With exponent 1 a weighted mean estimates the mean over all `N` transitions; with 0
    /// all weights are 1. Source: Schaul et al. 2016, Section 3.4. Off2OnRL and RLPD use none.
    pub fn importance_weights(&self, kind: SamplerKind, batch: &Minibatch, exponent: f64, into: &mut Vec<f32>) {
        let plan = self.plan(batch.rows);
        into.clear();
        if matches!(kind, SamplerKind::Balanced | SamplerKind::Trajectory)
            && plan.interventions == 0
            && self.tree.total() > 0.0
        {
            // The factor N / total cancels.
            into.extend(batch.leaf.iter().map(|leaf| self.tree.get(*leaf as usize)));
        } else {
            let mut probabilities = Vec::with_capacity(batch.rows);
            self.probabilities(kind, batch.rows, &batch.leaf, &mut probabilities);
            into.extend(probabilities.iter().map(|p| *p as f32));
        }
        let exponent = -exponent as f32;
        let smallest = into.iter().copied().filter(|p| *p > 0.0).fold(f32::INFINITY, f32::min);
        for weight in into {
            // A row that was overwritten since the draw has no probability, and says nothing.
            *weight = if *weight > 0.0 { (*weight / smallest).powf(exponent) } else { 0.0 };
        }
    }
}
