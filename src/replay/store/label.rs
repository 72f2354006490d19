//! A word on an episode that is already stored.

use super::Store;
use crate::replay::error::ReplayError;
use crate::replay::layout::{Layout, reward};
use crate::spaces::{Outcome, StepFlags};

impl Store {
    /// Makes `outcome` the outcome of an episode that has ended: its last step becomes terminated, and its reward
    /// changes by what `worth` says the outcome is worth, less the worth of the outcome it had before. Returns the
    /// former outcome.
    ///
    /// # Errors
    /// When the end of the episode is not in the buffer, the reward would not be finite, the buffer is read-only, or a
    /// sync failed before. Nothing is changed then.
    pub fn label(
        &mut self,
        episode: u32,
        outcome: Outcome,
        worth: impl Fn(Outcome) -> f32,
    ) -> Result<Option<Outcome>, ReplayError> {
        self.writable()?;
        let slot = self.end_of(episode)?;
        let range = self.range(slot);
        self.scratch.copy_from_slice(&self.region.bytes()[range]);
        let (mut flags, step) = (self.head(slot).flags, self.head(slot).step);
        let before = flags.outcome();
        let reward = reward(&self.scratch) + worth(outcome) - before.map_or(0.0, &worth);
        if !reward.is_finite() {
            return Err(ReplayError::NotFinite { episode, step, what: "reward" });
        }
        for gone in [StepFlags::TRUNCATED, StepFlags::SUCCESS, StepFlags::FAILURE] {
            flags.remove(gone);
        }
        flags.insert(StepFlags::TERMINATED);
        flags.insert(outcome.flag());
        Layout::relabel(&mut self.scratch, flags, reward);
        self.write_record(slot)?;
        Ok(before)
    }

    /// The transition that ends an episode, the newest first.
    fn end_of(&self, episode: u32) -> Result<usize, ReplayError> {
        let ends = |slot: &usize| {
            let head = self.head(*slot);
            let ended = head.flags.contains(StepFlags::TERMINATED) || head.flags.contains(StepFlags::TRUNCATED);
            head.episode == episode && ended && self.transitions.contains(*slot)
        };
        if let Some(slot) = self.valid.iter().filter(ends).max_by_key(|slot| self.sequence_in(*slot)) {
            return Ok(slot);
        }
        let mut held = None;
        for present in self.valid.iter().map(|slot| self.head(slot).episode) {
            if present == episode {
                return Err(ReplayError::NotEnded { episode });
            }
            let (first, last) = held.unwrap_or((present, present));
            held = Some((present.min(first), present.max(last)));
        }
        Err(ReplayError::NoEpisode { episode, held })
    }
}
