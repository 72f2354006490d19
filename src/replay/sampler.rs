//! Replay of one run: an optional offline buffer, the online buffer, and the priorities of both.

use serde::{Deserialize, Serialize};

use super::balanced::{BalancedSettings, OFFLINE_PRIORITY};
use super::error::ReplayError;
use super::frames::Seen;
use super::layout::Layout;
use super::priority_file::{Owner, Snapshot};
use super::store::Store;
use super::sum_tree::SumTree;
use crate::config::{ReplayConfig, Retention, SamplerKind};
use crate::spaces::{Outcome, Source, StepRecord};

/// What the learner samples from.
///
/// Leaves of the priority tree: the slots of the offline buffer, then the slots of the online buffer. Invariant:
/// a leaf has a priority above zero only while its slot holds a transition that may be sampled.
#[derive(Debug)]
pub struct Replay {
    pub(super) offline: Option<Store>,
    pub(super) online: Store,
    pub(super) settings: BalancedSettings,
    pub(super) tree: SumTree,
    /// Share of every minibatch that comes from steps of a person.
    pub(super) intervention_share: f64,
    retention: Retention,
    /// Records that a full buffer did not take.
    not_kept: u64,
    /// Priority of a new transition: the largest of P0 and all priorities ever written. Never decreases.
    running_maximum: f32,
    /// Leaf of the first online slot.
    pub(super) online_leaf: usize,
    pub(super) drawn: Vec<u32>,
    clamped: Vec<f32>,
    pub(super) warned_all_zero: bool,
}

/// The part of a [`Replay`] that a checkpoint holds; records and priorities have files of their own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayState {
    /// Priority that the next new transition gets.
    pub running_maximum: f32,
}

/// Counts for reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplayStats {
    /// Offline transitions that may be sampled.
    pub offline_transitions: u64,
    /// Online transitions that may be sampled.
    pub online_transitions: u64,
    /// Usable online records.
    pub online_records: u64,
    /// Online records that fit.
    pub online_capacity: u64,
    /// Online records that newer ones have replaced, over the life of the buffer.
    pub overwritten: u64,
    /// Records of this process that a full buffer which keeps all did not take.
    pub not_kept: u64,
    /// Online transitions in which a person chose the action.
    pub interventions: u64,
    /// Damaged records found when the two buffers were opened.
    pub bad_records: u64,
    /// Share of the online transitions in the priorities, in `[0, 1]`.
    pub online_share: f64,
    /// Priority that the next new transition gets.
    pub running_maximum: f32,
}

impl Replay {
    /// Joins the buffers. Offline transitions get priority 1 and online ones the running maximum, which starts at
    /// P0 (with the trajectory sampler: at 1); where the online buffer's folder has a priority snapshot that fits, the priorities come from there.
    ///
    /// # Errors
    /// When the layouts differ or a setting is out of range.
    pub fn new(offline: Option<Store>, online: Store, config: &ReplayConfig) -> Result<Self, ReplayError> {
        let settings = BalancedSettings::from(config);
        settings.check()?;
        if !(0.0..1.0).contains(&config.intervention_share) {
            let (key, value) = ("intervention_share", config.intervention_share);
            return Err(ReplayError::Setting { key, value, range: "at least 0 and below 1" });
        }
        if let Some(offline) = &offline {
            offline.expect_layout(online.layout())?;
        }
        let online_leaf = offline.as_ref().map_or(0, |o| o.capacity() as usize);
        let leaves = online_leaf as u64 + online.capacity();
        if leaves > u32::MAX.into() {
            return Err(ReplayError::Capacity { capacity: leaves, least: 1, most: u32::MAX.into() });
        }
        let tree = SumTree::new(leaves as usize);
        let first = match config.sampler {
            SamplerKind::Trajectory => OFFLINE_PRIORITY,
            _ => settings.initial_priority(offline.as_ref().map_or(0, Store::transitions)),
        };
        if first.is_nan() || first > tree.largest() {
            let value = settings.initial_online_share;
            let range = "further below 1: new transitions would get an infinite priority";
            return Err(ReplayError::Setting { key: "initial_online_share", value, range });
        }
        let mut replay = Self {
            offline,
            online,
            settings,
            tree,
            intervention_share: config.intervention_share,
            retention: config.retention,
            not_kept: 0,
            running_maximum: first,
            online_leaf,
            drawn: Vec::new(),
            clamped: Vec::new(),
            warned_all_zero: false,
        };
        replay.start_priorities()?;
        Ok(replay)
    }

    fn start_priorities(&mut self) -> Result<(), ReplayError> {
        let snapshot = self.online.dir().and_then(|dir| {
            let found = Snapshot::read(dir, self.owner())?;
            found.map_err(|why| log::warn!("replay {}: priorities start afresh: {why}", dir.display())).ok()
        });
        if let Some(snapshot) = &snapshot {
            self.running_maximum = self.running_maximum.max(snapshot.running_maximum).min(self.tree.largest());
        }
        let mut priorities = vec![0.0; self.tree.len()];
        if let Some(offline) = &self.offline {
            for slot in offline.transition_slots().iter() {
                priorities[slot] = snapshot.as_ref().map_or(OFFLINE_PRIORITY, |s| s.priorities[slot]);
            }
        }
        for slot in self.online.transition_slots().iter() {
            let leaf = self.online_leaf + slot;
            let sequence = self.online.sequence_in(slot);
            let known = snapshot.as_ref().filter(|s| (s.online_first..=s.online_last).contains(&sequence));
            // Zero: the record had no successor yet when the snapshot was taken.
            let saved = known.map(|s| s.priorities[leaf]).filter(|p| *p > 0.0);
            priorities[leaf] = saved.unwrap_or(self.running_maximum);
        }
        let most = self.tree.largest();
        for priority in &mut priorities {
            *priority = priority.min(most);
        }
        self.tree.set_all(&priorities)
    }

    fn owner(&self) -> Owner {
        Owner {
            offline_leaves: self.online_leaf as u64,
            online_leaves: self.online.capacity(),
            offline_identity: self.offline.as_ref().map_or(0, Store::identity),
        }
    }

    /// Appends a record to the online buffer. Its transition can be drawn once the next record has arrived, with
    /// the running maximum as its priority. A full buffer that keeps all ([`Retention::KeepAll`]) does not take it:
    /// see [`ReplayStats::not_kept`].
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn append(&mut self, record: &StepRecord) -> Result<(), ReplayError> {
        self.append_by(|online| online.append(record))
    }

    /// [`Replay::append`] for a buffer with camera frames.
    ///
    /// # Errors
    /// As [`Store::append_with_frame`].
    pub fn append_with_frame(&mut self, record: &StepRecord, seen: Seen<'_>) -> Result<(), ReplayError> {
        self.append_by(|online| online.append_with_frame(record, seen))
    }

    fn append_by(&mut self, append: impl FnOnce(&mut Store) -> Result<u64, ReplayError>) -> Result<(), ReplayError> {
        if self.retention == Retention::KeepAll && self.online.last_sequence() >= self.online.capacity() {
            self.not_kept += 1;
            if self.not_kept == 1 {
                let capacity = self.online.capacity();
                log::warn!("replay: all {capacity} records are used and kept; steps are no longer recorded");
            }
            return Ok(());
        }
        let sequence = append(&mut self.online)?;
        // The leaf of the record that was just replaced is zero already, by the same line one append earlier.
        self.tree.set(self.online_leaf + self.online.slot(sequence + 1), 0.0)?;
        if sequence > 1 {
            let previous = self.online.slot(sequence - 1);
            if self.online.is_sampleable(previous) {
                self.tree.set(self.online_leaf + previous, self.running_maximum)?;
            }
        }
        Ok(())
    }

    /// Forgets the online record with this sequence number and all newer ones ([`Store::forget_from`]).
    pub(crate) fn forget_from(&mut self, sequence: u64) -> Result<(), ReplayError> {
        let last = self.online.last_sequence();
        self.online.forget_from(sequence)?;
        for gone in sequence.saturating_sub(1).max(1)..=last {
            self.tree.set(self.online_leaf + self.online.slot(gone), 0.0)?;
        }
        Ok(())
    }

    /// Makes all online records survive a power cut.
    ///
    /// # Errors
    /// As [`Store::sync`].
    pub fn sync(&mut self) -> Result<(), ReplayError> {
        self.online.sync()
    }

    /// Syncs the records and replaces the priority snapshot beside them; belongs to every checkpoint. Does
    /// nothing more than that for a buffer in memory.
    ///
    /// # Errors
    /// When the disk fails; the previous snapshot is still there then.
    pub fn save_priorities(&mut self) -> Result<(), ReplayError> {
        self.online.sync()?;
        let Some(dir) = self.online.dir() else { return Ok(()) };
        let snapshot = Snapshot {
            owner: self.owner(),
            online_first: self.online.first_sequence(),
            online_last: self.online.last_sequence(),
            running_maximum: self.running_maximum,
            priorities: (0..self.tree.len()).map(|leaf| self.tree.get(leaf)).collect(),
        };
        snapshot.write(dir)
    }

    /// Buffer and slot of a leaf.
    pub(super) fn locate(&self, leaf: u32) -> (&Store, usize, Source) {
        let leaf = leaf as usize;
        match &self.offline {
            Some(offline) if leaf < self.online_leaf => (offline, leaf, Source::Offline),
            _ => (&self.online, leaf - self.online_leaf, Source::Online),
        }
    }

    /// Records of the online buffer that are newer than the one of an online leaf.
    pub fn online_age(&self, leaf: u32) -> u64 {
        let slot = (leaf as usize).saturating_sub(self.online_leaf);
        self.online.last_sequence().saturating_sub(self.online.sequence_in(slot))
    }

    /// Writes the priorities of sampled rows, clamped to the configured range; the running maximum follows. Of
    /// several for one leaf the last one counts. A leaf whose transition was overwritten meanwhile stays at zero.
    ///
    /// # Errors
    /// When a priority is NaN, negative or infinite, a leaf does not exist, or the lengths differ; nothing was
    /// written then.
    pub fn set_priorities(&mut self, leaf: &[u32], priority: &[f32]) -> Result<(), ReplayError> {
        if leaf.len() != priority.len() {
            return Err(ReplayError::Lengths { leaves: leaf.len(), priorities: priority.len() });
        }
        self.clamped.clear();
        for (leaf, value) in leaf.iter().zip(priority) {
            if *leaf as usize >= self.tree.len() {
                return Err(ReplayError::Leaf { leaf: *leaf, leaves: self.tree.len() });
            }
            if !(*value >= 0.0 && value.is_finite()) {
                let most = self.settings.priority_max;
                return Err(ReplayError::Priority { leaf: *leaf, value: *value, most });
            }
            let (store, slot, _) = self.locate(*leaf);
            let live = store.is_sampleable(slot);
            self.clamped.push(if live { self.settings.clamp(*value) } else { 0.0 });
        }
        self.tree.set_batch(leaf, &self.clamped)?;
        self.running_maximum = self.clamped.iter().fold(self.running_maximum, |most, p| most.max(*p));
        Ok(())
    }

    /// Online transitions that may be sampled.
    pub fn online_transitions(&self) -> u64 {
        self.online.transitions()
    }

    /// Offline transitions that may be sampled.
    pub fn offline_transitions(&self) -> u64 {
        self.offline.as_ref().map_or(0, Store::transitions)
    }

    /// Takes both buffers out of locked memory: see [`Store::unlock_memory`].
    pub fn unlock_memory(&self) {
        self.online.unlock_memory();
        if let Some(offline) = &self.offline {
            offline.unlock_memory();
        }
    }

    /// [`Store::label`] of the online buffer.
    ///
    /// # Errors
    /// As [`Store::label`].
    pub fn label(
        &mut self,
        episode: u32,
        outcome: Outcome,
        worth: impl Fn(Outcome) -> f32,
    ) -> Result<Option<Outcome>, ReplayError> {
        self.online.label(episode, outcome, worth)
    }

    /// The online buffer.
    pub fn online(&self) -> &Store {
        &self.online
    }

    /// The offline buffer.
    pub fn offline(&self) -> Option<&Store> {
        self.offline.as_ref()
    }

    /// What the records of both buffers hold.
    pub fn layout(&self) -> Layout {
        self.online.layout()
    }

    /// The settings of balanced replay, which turn density ratios into priorities.
    pub fn settings(&self) -> &BalancedSettings {
        &self.settings
    }

    /// The priority tree, for diagnostics.
    pub fn priorities(&self) -> &SumTree {
        &self.tree
    }

    /// Counts for reports.
    pub fn stats(&self) -> ReplayStats {
        let total = f64::from(self.tree.total());
        let offline = self.tree.prefix(self.online_leaf);
        ReplayStats {
            offline_transitions: self.offline_transitions(),
            online_transitions: self.online_transitions(),
            online_records: self.online.len(),
            online_capacity: self.online.capacity(),
            overwritten: self.online.overwritten(),
            not_kept: self.not_kept,
            interventions: self.online.interventions(),
            bad_records: self.online.bad_records().total()
                + self.offline.as_ref().map_or(0, |o| o.bad_records().total()),
            online_share: if total > 0.0 { (1.0 - offline / total).clamp(0.0, 1.0) } else { 0.0 },
            running_maximum: self.running_maximum,
        }
    }

    /// What a checkpoint should hold.
    pub fn state(&self) -> ReplayState {
        ReplayState { running_maximum: self.running_maximum }
    }

    /// Takes up the state of a checkpoint.
    ///
    /// # Errors
    /// When the running maximum is no priority.
    pub fn restore(&mut self, state: &ReplayState) -> Result<(), ReplayError> {
        let (value, most) = (state.running_maximum, self.tree.largest());
        if !(value > 0.0 && value <= most) {
            return Err(ReplayError::Priority { leaf: 0, value, most });
        }
        self.running_maximum = value;
        Ok(())
    }
}
