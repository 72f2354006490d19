//! Episodes in flat columns.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use firmware_bridge::{MAX_ACTION, MAX_OBSERVATION};
use sha2::{Digest, Sha256};

use super::error::EpisodeError;
use crate::spaces::{Frame, FrameShape, StepFlags, StepRecord};

/// What a record has room for (`docs/replay-format.md`).
const MOST_US: u64 = (1 << 48) - 1;

/// Episodes of one robot, all steps one after the other. `n` steps, `e` episodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// Length of an observation.
    pub observation_dim: usize,
    /// Length of an action.
    pub action_dim: usize,
    /// `s`, `(n, observation_dim)`, row-major.
    pub observations: Vec<f32>,
    /// `a`, `(n, action_dim)`, row-major.
    pub actions: Vec<f32>,
    /// `r`, `(n)`.
    pub rewards: Vec<f32>,
    /// The task ended after this step, `(n)`; only at the last step of an episode.
    pub terminated: Vec<bool>,
    /// The episode was cut after this step, `(n)`; only at the last step of an episode.
    pub truncated: Vec<bool>,
    /// One past the last step of each episode, `(e)`, increasing, the last one is `n`.
    pub episode_ends: Vec<usize>,
    /// Observation after the last step of each episode, `(e, observation_dim)`; empty when unknown.
    pub final_observations: Vec<f32>,
    /// When each observation was taken, in µs of the recorder's clock, `(n)`; empty when unknown.
    pub capture_us: Vec<u64>,
    /// The camera's part of the observations, where there was a camera.
    pub images: Option<Images>,
}

/// Camera images of a data set, `(height, width, channels)` bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Size of one.
    pub shape: FrameShape,
    /// One for each step.
    pub steps: Vec<u8>,
    /// One for each final observation; empty where these are.
    pub finals: Vec<u8>,
}

/// Why columns do not make a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetProblem {
    /// An observation or action too long for a step record, or of length 0.
    #[error(
        "an observation of {observation_dim} and an action of {action_dim} entries; possible are 1 to {MAX_OBSERVATION} and 1 to {MAX_ACTION}"
    )]
    Dimensions {
        /// Length of an observation.
        observation_dim: usize,
        /// Length of an action.
        action_dim: usize,
    },
    /// A column of the wrong length.
    #[error("`{column}` holds {found} numbers instead of {wanted}")]
    Length {
        /// Its name.
        column: &'static str,
        /// Its length.
        found: usize,
        /// The length that fits the other columns.
        wanted: usize,
    },
    /// Episode ends that do not increase up to the number of steps.
    #[error("the end of episode {episode} is out of order, or the last end is not the number of steps")]
    Ends {
        /// The episode.
        episode: usize,
    },
    /// The task ends or a time limit strikes in the middle of an episode.
    #[error("step {step} ends its episode by its flags, but the episode goes on")]
    EndsWithin {
        /// The step.
        step: usize,
    },
    /// A time later than a record can say.
    #[error("the stamp of step {step} is beyond 2^48 us")]
    Stamp {
        /// The step.
        step: usize,
    },
    /// NaN or infinite numbers.
    #[error("`{column}` is not finite at index {index}")]
    NotFinite {
        /// Name of the column.
        column: &'static str,
        /// Index in the flat column.
        index: usize,
    },
}

impl Dataset {
    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.rewards.len()
    }

    /// Step range of each episode.
    pub fn episodes(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        (0..self.episode_ends.len()).map(|episode| self.range(episode))
    }

    /// Undiscounted return of each episode.
    pub fn returns(&self) -> Vec<f64> {
        self.episodes().map(|steps| self.rewards[steps].iter().map(|r| f64::from(*r)).sum()).collect()
    }

    /// When each observation was taken, in µs: the recorded stamps, or where there are none, those of a nominal rate
    /// in steps per second, 0 at the begin of each episode. `path` is for the error.
    ///
    /// # Errors
    /// When there are neither stamps nor a rate, or both.
    pub fn stamps(&self, nominal_hz: Option<f64>, path: &Path) -> Result<Vec<u64>, EpisodeError> {
        let path = || path.to_owned();
        match (nominal_hz, self.capture_us.is_empty()) {
            (None, false) => Ok(self.capture_us.clone()),
            (Some(hz), true) => {
                let stamp = |step: usize| (step as f64 * 1e6 / hz).round() as u64;
                Ok(self.episodes().flat_map(|steps| (0..steps.len()).map(stamp)).collect())
            }
            (Some(_), false) => {
                Err(EpisodeError::Said { path: path(), flag: "--control-hz", reason: "every step has its own stamp" })
            }
            (None, true) => {
                let what = String::from("when its steps were taken");
                Err(EpisodeError::Unsaid {
                    path: path(),
                    what,
                    flag: "--control-hz, the rate that stamps are made from",
                })
            }
        }
    }

    /// SHA-256 over all dimensions and values, for a comparison of two data sets.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let lengths = [self.observation_dim, self.action_dim, self.steps(), self.final_observations.len()];
        for number in lengths.iter().chain(&self.episode_ends) {
            hasher.update((*number as u64).to_le_bytes());
        }
        let numbers = [&self.observations, &self.actions, &self.rewards, &self.final_observations];
        for number in numbers.into_iter().flatten() {
            hasher.update(number.to_le_bytes());
        }
        for flag in self.terminated.iter().chain(&self.truncated) {
            hasher.update([u8::from(*flag)]);
        }
        for stamp in &self.capture_us {
            hasher.update(stamp.to_le_bytes());
        }
        if let Some(images) = &self.images {
            for side in [images.shape.width, images.shape.height, images.shape.channels] {
                hasher.update(side.to_le_bytes());
            }
            hasher.update(&images.steps);
            hasher.update(&images.finals);
        }
        format!("{:x}", hasher.finalize())
    }

    fn range(&self, episode: usize) -> Range<usize> {
        let start = if episode == 0 { 0 } else { self.episode_ends[episode - 1] };
        start..self.episode_ends[episode]
    }

    /// The records of an episode: one per step, then its last observation. None for an episode that does not exist.
    ///
    /// Where the last observation is unknown, a terminated episode repeats the one before (nothing bootstraps from
    /// it), and of another episode the last step becomes the last observation.
    pub fn to_records(&self, episode: usize) -> impl Iterator<Item = StepRecord> + '_ {
        let steps = if episode < self.episode_ends.len() { self.range(episode) } else { 0..0 };
        let last = steps.end.saturating_sub(1);
        let dim = self.observation_dim;
        let known = self.final_observations.chunks_exact(dim.max(1)).nth(episode);
        let repeated = || self.terminated[last].then(|| self.observation(last));
        let end = if steps.is_empty() { None } else { known.or_else(repeated) };
        let end_image = known.map_or(Image::Of(last), |_| Image::Final(episode));
        let cut = end.is_none();
        let start = steps.start;
        let records = steps.clone().map(move |step| self.record(episode, step - start, step, cut && step == last));
        records.chain(end.map(move |observation| StepRecord {
            observation: observation.iter().copied().collect(),
            capture_us: self.stamp(last),
            use_us: self.stamp(last),
            frame: self.frame(end_image),
            ..empty(episode, steps.len(), StepFlags::OBSERVATION_ONLY)
        }))
    }

    fn record(&self, episode: usize, number: usize, step: usize, only_observation: bool) -> StepRecord {
        let mut flags = StepFlags::default();
        if self.terminated[step] {
            flags.insert(StepFlags::TERMINATED);
        }
        if self.truncated[step] {
            flags.insert(StepFlags::TRUNCATED);
        }
        if only_observation {
            flags = StepFlags::OBSERVATION_ONLY;
        }
        let action = &self.actions[step * self.action_dim..(step + 1) * self.action_dim];
        StepRecord {
            reward: self.rewards[step],
            observation: self.observation(step).iter().copied().collect(),
            action: action.iter().copied().collect(),
            capture_us: self.stamp(step),
            use_us: self.stamp(step),
            frame: self.frame(Image::Of(step)),
            ..empty(episode, number, flags)
        }
    }

    fn frame(&self, which: Image) -> Option<Arc<Frame>> {
        let images = self.images.as_ref()?;
        let (from, at, step) = match which {
            Image::Of(step) => (&images.steps, step, step),
            Image::Final(episode) => (&images.finals, episode, self.episode_ends[episode] - 1),
        };
        let pixels = from.chunks_exact(images.shape.bytes().max(1)).nth(at)?.into();
        let capture_ns = 1000 * self.stamp(step);
        Some(Arc::new(Frame { shape: images.shape, sequence: 0, capture_ns, pixels }))
    }

    /// 0 where nobody knows. Of a last observation: that of the last step, because no file tells its own.
    fn stamp(&self, step: usize) -> u64 {
        self.capture_us.get(step).copied().unwrap_or_default()
    }

    fn observation(&self, step: usize) -> &[f32] {
        &self.observations[step * self.observation_dim..(step + 1) * self.observation_dim]
    }

    /// Refuses columns that do not fit each other.
    ///
    /// # Errors
    /// The first problem.
    pub fn check(&self) -> Result<(), DatasetProblem> {
        let (observation_dim, action_dim, steps) = (self.observation_dim, self.action_dim, self.steps());
        if !(1..=MAX_OBSERVATION).contains(&observation_dim) || !(1..=MAX_ACTION).contains(&action_dim) {
            return Err(DatasetProblem::Dimensions { observation_dim, action_dim });
        }
        let episodes = self.episode_ends.len();
        let stamps_wanted = if self.capture_us.is_empty() { 0 } else { steps };
        let bytes = self.images.as_ref().map_or(0, |images| images.shape.bytes());
        let (image_bytes, final_bytes) =
            self.images.as_ref().map_or((0, 0), |images| (images.steps.len(), images.finals.len()));
        let finals_wanted = if self.final_observations.is_empty() { 0 } else { episodes * bytes };
        let final_wanted = if self.final_observations.is_empty() { 0 } else { episodes * observation_dim };
        for (column, found, wanted) in [
            ("observations", self.observations.len(), steps * observation_dim),
            ("actions", self.actions.len(), steps * action_dim),
            ("terminated", self.terminated.len(), steps),
            ("truncated", self.truncated.len(), steps),
            ("final_observations", self.final_observations.len(), final_wanted),
            ("capture_us", self.capture_us.len(), stamps_wanted),
            ("images", image_bytes, steps * bytes),
            ("final_images", final_bytes, finals_wanted),
        ] {
            if found != wanted {
                return Err(DatasetProblem::Length { column, found, wanted });
            }
        }
        if let Some(step) = self.capture_us.iter().position(|stamp| *stamp > MOST_US) {
            return Err(DatasetProblem::Stamp { step });
        }
        self.check_ends()?;
        self.check_finite()
    }

    fn check_ends(&self) -> Result<(), DatasetProblem> {
        let mut start = 0;
        for (episode, end) in self.episode_ends.iter().enumerate() {
            if *end <= start || *end > self.steps() {
                return Err(DatasetProblem::Ends { episode });
            }
            if let Some(step) = (start..end - 1).find(|s| self.terminated[*s] || self.truncated[*s]) {
                return Err(DatasetProblem::EndsWithin { step });
            }
            start = *end;
        }
        if start == self.steps() { Ok(()) } else { Err(DatasetProblem::Ends { episode: self.episode_ends.len() }) }
    }

    fn check_finite(&self) -> Result<(), DatasetProblem> {
        for (column, numbers) in [
            ("observations", &self.observations),
            ("actions", &self.actions),
            ("rewards", &self.rewards),
            ("final_observations", &self.final_observations),
        ] {
            if let Some(index) = numbers.iter().position(|v| !v.is_finite()) {
                return Err(DatasetProblem::NotFinite { column, index });
            }
        }
        Ok(())
    }
}

/// Which image of a data set.
#[derive(Clone, Copy)]
enum Image {
    Of(usize),
    Final(usize),
}

fn empty(episode: usize, step: usize, flags: StepFlags) -> StepRecord {
    StepRecord { episode: episode as u32, step: step as u32, flags, ..StepRecord::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two episodes of 2 and 3 steps: the first ends by itself, the second is cut.
    fn two_episodes() -> Dataset {
        Dataset {
            observation_dim: 2,
            action_dim: 1,
            observations: (0..10).map(|v| v as f32).collect(),
            actions: vec![0.0, 0.1, 0.2, 0.3, 0.4],
            rewards: vec![1.0, 2.0, 3.0, 4.0, 5.0],
            terminated: vec![false, true, false, false, false],
            truncated: vec![false, false, false, false, true],
            episode_ends: vec![2, 5],
            final_observations: vec![100.0, 101.0, 102.0, 103.0],
            capture_us: vec![10, 60, 20, 70, 70],
            images: None,
        }
    }

    #[test]
    fn an_episode_becomes_its_steps_and_a_last_observation() {
        let data = two_episodes();
        data.check().unwrap();
        assert_eq!(data.returns(), [3.0, 12.0]);
        let records: Vec<StepRecord> = data.to_records(1).collect();
        assert_eq!(records.len(), 4);
        assert_eq!(records[2].flags, StepFlags::TRUNCATED);
        assert_eq!((records[2].episode, records[2].step, records[2].reward), (1, 2, 5.0));
        assert_eq!(records[2].observation, [8.0, 9.0]);
        assert_eq!(records[3].flags, StepFlags::OBSERVATION_ONLY);
        assert_eq!((records[3].step, &records[3].observation[..]), (3, &[102.0, 103.0][..]));
        assert_eq!(data.to_records(2).count(), 0);
    }

    #[test]
    fn an_unknown_last_observation_costs_only_what_would_bootstrap_from_it() {
        let data = Dataset { final_observations: Vec::new(), ..two_episodes() };
        let ended: Vec<StepRecord> = data.to_records(0).collect();
        assert_eq!(ended.len(), 3);
        assert_eq!(ended[2].observation, ended[1].observation);
        let cut: Vec<StepRecord> = data.to_records(1).collect();
        assert_eq!(cut.len(), 3);
        assert_eq!(cut[2].flags, StepFlags::OBSERVATION_ONLY);
    }

    #[test]
    fn columns_that_do_not_fit_are_refused() {
        let good = two_episodes();
        let bad = |change: fn(&mut Dataset)| {
            let mut data = good.clone();
            change(&mut data);
            data.check().unwrap_err()
        };
        assert_eq!(bad(|d| d.episode_ends[1] = 4), DatasetProblem::Ends { episode: 2 });
        assert_eq!(bad(|d| d.episode_ends[1] = 6), DatasetProblem::Ends { episode: 1 });
        assert_eq!(bad(|d| d.episode_ends[1] = 2), DatasetProblem::Ends { episode: 1 });
        assert_eq!(bad(|d| d.terminated[2] = true), DatasetProblem::EndsWithin { step: 2 });
        assert!(matches!(bad(|d| d.actions.truncate(4)), DatasetProblem::Length { column: "actions", .. }));
        assert!(matches!(bad(|d| d.rewards[1] = f32::NAN), DatasetProblem::NotFinite { index: 1, .. }));
        assert_eq!(bad(|d| d.capture_us[4] = 1 << 48), DatasetProblem::Stamp { step: 4 });
        assert!(matches!(bad(|d| d.action_dim = 0), DatasetProblem::Dimensions { .. }));
    }
}
