//! Step records into the replay, and episodes into returns.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::classifier::Classifier;
use super::event::Event;
use super::parts::{Shared, lock};
use crate::clock::{self, Stamp};
use crate::replay::{Replay, ReplayError, Seen};
use crate::spaces::{Frame, StepFlags, StepRecord};
use crate::telemetry::EpisodeReturn;

/// Writes every step; after a failed write it stops writing, says so and counts.
pub(super) struct Recorder {
    replay: Arc<Mutex<Replay>>,
    shared: Arc<Shared>,
    sync_every: Duration,
    last_sync: Stamp,
    broken: bool,
    /// The frame recorded last.
    frame: Option<Arc<Frame>>,
    classifier: Option<Classifier>,
    /// A person chooses every action.
    person: bool,
    returns: ReturnTracker,
}

impl Recorder {
    pub(super) fn new(
        replay: Arc<Mutex<Replay>>,
        shared: Arc<Shared>,
        sync_every: Duration,
        classifier: Option<Classifier>,
    ) -> Self {
        Self {
            replay,
            shared,
            sync_every,
            last_sync: clock::monotonic(),
            broken: false,
            frame: None,
            classifier,
            person: false,
            returns: ReturnTracker::default(),
        }
    }

    /// Marks every step as one in which a person chose the action.
    pub(super) fn mark_person(&mut self, person: bool) {
        self.person = person;
    }

    /// Where the records go.
    pub(super) fn replay(&self) -> Arc<Mutex<Replay>> {
        Arc::clone(&self.replay)
    }

    /// Takes one record; returns whether it ended a step.
    pub(super) fn take(&mut self, record: &StepRecord) -> bool {
        let transition = !record.flags.contains(StepFlags::OBSERVATION_ONLY);
        self.classify(record);
        if self.broken {
            self.shared.unrecorded.fetch_add(1, Relaxed);
        } else {
            let mut record = record.clone();
            if self.person && transition {
                record.flags.insert(StepFlags::INTERVENTION);
            }
            if let Err(error) = self.append(&record) {
                self.give_up(&error.to_string());
            }
        }
        if transition && !self.broken {
            self.shared.online_steps.fetch_add(1, Relaxed);
        }
        let at_step = self.shared.online_steps.load(Relaxed);
        if let Some(episode) = self.returns.take(record, at_step) {
            self.sync();
            self.shared.ended(episode);
            self.shared.tell(Event::Episode(episode));
        }
        if clock::monotonic().since(self.last_sync) >= self.sync_every {
            self.sync();
        }
        transition
    }

    fn append(&mut self, record: &StepRecord) -> Result<(), ReplayError> {
        let Some(frame) = &record.frame else { return lock(&self.replay).append(record) };
        // A share is held, so nobody has put another image into the same memory.
        let again = self.frame.replace(Arc::clone(frame)).is_some_and(|before| Arc::ptr_eq(&before, frame));
        let new = Seen::New { pixels: &frame.pixels, capture_ns: frame.capture_ns };
        lock(&self.replay).append_with_frame(record, if again { Seen::Same } else { new })
    }

    fn classify(&mut self, record: &StepRecord) {
        if let Some(Err(error)) = self.classifier.as_mut().map(|classifier| classifier.take(record)) {
            self.classifier = None;
            self.shared.fail(format!("the success classifier failed, episodes go on without it: {error}"));
        }
    }

    /// Makes everything so far durable.
    pub(super) fn sync(&mut self) {
        self.last_sync = clock::monotonic();
        if !self.broken {
            let synced = lock(&self.replay).sync();
            if let Err(error) = synced {
                self.give_up(&error.to_string());
            }
        }
    }

    fn give_up(&mut self, reason: &str) {
        self.broken = true;
        self.shared.unrecorded.fetch_add(1, Relaxed);
        self.shared.fail(format!("recording stopped, steps are lost from now on: {reason}"));
    }
}

/// Sums rewards of the episode that is under way.
#[derive(Default)]
pub(super) struct ReturnTracker {
    now: Option<EpisodeReturn>,
    over: bool,
}

impl ReturnTracker {
    /// Takes a record; an episode that ended by task or time limit comes out with its last observation.
    pub(super) fn take(&mut self, record: &StepRecord, at_step: u64) -> Option<EpisodeReturn> {
        if self.now.is_some_and(|e| e.episode != record.episode) {
            self.now = None;
        }
        let last = record.flags.contains(StepFlags::OBSERVATION_ONLY);
        let episode = self.now.get_or_insert_with(|| {
            self.over = false;
            EpisodeReturn {
                episode: record.episode,
                at_step,
                length: 0,
                episode_return: 0.0,
                terminated: false,
                gapped: record.step != 0,
                policy_generation: record.policy_generation,
            }
        });
        if last && !self.over {
            // A step whose end is unknown, or the operator's end of the run.
            episode.gapped = true;
            return None;
        }
        if last {
            episode.at_step = at_step;
            return self.now.take();
        }
        episode.gapped |= record.step != episode.length && !episode.gapped;
        episode.length = record.step + 1;
        episode.episode_return += f64::from(record.reward);
        episode.policy_generation = record.policy_generation;
        episode.terminated = record.flags.contains(StepFlags::TERMINATED);
        self.over = episode.terminated || record.flags.contains(StepFlags::TRUNCATED);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u32, flags: StepFlags, reward: f32) -> StepRecord {
        StepRecord { episode: 3, step, flags, reward, ..StepRecord::default() }
    }

    #[test]
    fn returns_are_sums_of_whole_episodes() {
        let mut tracker = ReturnTracker::default();
        assert_eq!(tracker.take(&step(0, StepFlags::default(), 1.0), 1), None);
        assert_eq!(tracker.take(&step(1, StepFlags::TRUNCATED, 2.5), 2), None);
        let episode = tracker.take(&step(2, StepFlags::OBSERVATION_ONLY, 9.0), 2).unwrap();
        assert_eq!((episode.length, episode.episode_return), (2, 3.5));
        assert!(!episode.terminated && !episode.gapped);
    }

    #[test]
    fn a_missing_step_is_marked() {
        let mut tracker = ReturnTracker::default();
        tracker.take(&step(0, StepFlags::default(), 1.0), 1);
        tracker.take(&step(2, StepFlags::TERMINATED, 1.0), 2);
        let episode = tracker.take(&step(3, StepFlags::OBSERVATION_ONLY, 0.0), 2).unwrap();
        assert!(episode.terminated && episode.gapped);
    }
}
