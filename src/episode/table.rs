//! Steps in a row, as files hold them, and what a person says about them.

use std::path::Path;
use std::str::FromStr;

use super::dataset::{Dataset, DatasetProblem};
use super::error::EpisodeError;

/// What a person says because a file does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// What the ends of episodes mean.
    pub ends: Option<Ends>,
    /// Arrays that make the observation, side by side in this order.
    pub observation: Vec<String>,
    /// Reward of a step that ends the task, where the file has no rewards; 0 for the others.
    pub success_reward: Option<f32>,
}

/// What an end is, in a data set that does not tell a task that ended from an episode that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Wherever an end is flagged, the task ended.
    Terminated,
    /// Wherever an end is flagged, the episode was cut.
    Truncated,
    /// An episode was cut when it had this many steps; where an end is flagged before, the task ended.
    At(usize),
}

impl FromStr for Ends {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("terminated", _) => Ok(Self::Terminated),
            ("truncated", _) => Ok(Self::Truncated),
            (_, Ok(steps)) if steps > 0 => Ok(Self::At(steps)),
            _ => {
                Err(String::from("possible are terminated, truncated, or the number of steps that episodes are cut at"))
            }
        }
    }
}

/// Columns of steps, not yet cut into episodes. `n` steps.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub observation_dim: usize,
    pub action_dim: usize,
    /// `(n, observation_dim)`.
    pub observations: Vec<f32>,
    /// `(n, action_dim)`.
    pub actions: Vec<f32>,
    pub rewards: Option<Vec<f32>>,
    /// The task ended after the step; where `truncated` is absent, the episode ended somehow.
    pub ended: Vec<bool>,
    /// The episode was cut after the step.
    pub truncated: Option<Vec<bool>>,
    /// Which episode a step belongs to, where the file knows.
    pub episode: Option<Vec<i64>>,
    /// Observation after every step, `(n, observation_dim)`; empty when unknown.
    pub next_observations: Vec<f32>,
    /// When the observation was taken; empty when unknown.
    pub capture_us: Vec<u64>,
}

impl Table {
    /// Cuts the steps into episodes: where the file or `choices` say that one ends, and where its number changes.
    ///
    /// Steps behind an end are an episode of their own.
    ///
    /// # Errors
    /// When the columns contradict each other, or an end could mean two things and nobody says which.
    pub(super) fn into_dataset(self, path: &Path, choices: &Choices) -> Result<Dataset, EpisodeError> {
        let content = |problem| EpisodeError::Content { path: path.to_owned(), problem };
        let steps = self.ended.len();
        let next = (!self.next_observations.is_empty()).then_some(self.next_observations.len());
        for (column, found, width) in [
            ("next_observations", next, self.observation_dim),
            ("timeouts", self.truncated.as_ref().map(Vec::len), 1),
            ("episodes", self.episode.as_ref().map(Vec::len), 1),
        ] {
            let wanted = steps * width;
            if let Some(found) = found.filter(|found| *found != wanted) {
                return Err(content(DatasetProblem::Length { column, found, wanted }));
            }
        }
        self.check_choices(path, choices)?;
        let (terminated, truncated, episode_ends) = self.cut(choices.ends);
        let reward = choices.success_reward.unwrap_or_default();
        let paid = || terminated.iter().map(|ended| if *ended { reward } else { 0.0 }).collect();
        let rewards = self.rewards.unwrap_or_else(paid);
        let next = &self.next_observations;
        let row = |end: &usize| next.get((end - 1) * self.observation_dim..end * self.observation_dim);
        let final_observations = episode_ends.iter().filter_map(row).flatten().copied().collect();
        let data = Dataset {
            observation_dim: self.observation_dim,
            action_dim: self.action_dim,
            observations: self.observations,
            actions: self.actions,
            rewards,
            terminated,
            truncated,
            episode_ends,
            final_observations,
            capture_us: self.capture_us,
            images: None,
        };
        data.check().map_err(content)?;
        Ok(data)
    }

    fn check_choices(&self, path: &Path, choices: &Choices) -> Result<(), EpisodeError> {
        let path = || path.to_owned();
        let said = |flag, reason| Err(EpisodeError::Said { path: path(), flag, reason });
        let known = self.truncated.is_some();
        // Without any flag, episodes that are known can only have been cut.
        let clear = known || (self.episode.is_some() && !self.ended.contains(&true));
        match choices.ends {
            Some(_) if known => return said("--ends", "it says which episodes ended and which were cut"),
            None if !clear => {
                let what = if self.episode.is_some() {
                    "whether the task ended or the episode was cut where it says `done`"
                } else {
                    "where episodes were cut (it has no timeouts)"
                };
                let flag = "--ends terminated, truncated, or the number of steps that episodes were cut at";
                return Err(EpisodeError::Unsaid { path: path(), what: String::from(what), flag });
            }
            _ => {}
        }
        match (&self.rewards, choices.success_reward) {
            (Some(_), Some(_)) => said("--success-reward", "it has rewards"),
            (None, None) => Err(EpisodeError::Unsaid {
                path: path(),
                what: String::from("its rewards"),
                flag: "--success-reward R: R for a step that ends the task, 0 for the others",
            }),
            _ => Ok(()),
        }
    }

    /// Terminated, truncated, and one past the last step of each episode.
    fn cut(&self, ends: Option<Ends>) -> (Vec<bool>, Vec<bool>, Vec<usize>) {
        let steps = self.ended.len();
        let (mut terminated, mut truncated, mut episode_ends) = (vec![false; steps], vec![false; steps], Vec::new());
        let mut count = 0;
        for step in 0..steps {
            count += 1;
            let flagged = self.ended[step];
            let (ended, mut cut) = match (&self.truncated, ends) {
                (Some(truncated), _) => (flagged, truncated[step]),
                (None, Some(Ends::Truncated)) => (false, flagged),
                (None, Some(Ends::At(limit))) if count == limit => (false, true),
                (None, _) => (flagged, false),
            };
            let changes = self.episode.as_ref().is_some_and(|e| e.get(step + 1) != Some(&e[step]));
            cut |= (changes || step + 1 == steps) && !ended;
            if ended || cut {
                (terminated[step], truncated[step]) = (ended, cut);
                episode_ends.push(step + 1);
                count = 0;
            }
        }
        (terminated, truncated, episode_ends)
    }
}

/// The arrays that make an observation: those that were named, or the only one there is.
pub(super) fn choose(path: &Path, available: &[String], choices: &Choices) -> Result<Vec<String>, EpisodeError> {
    let list = available.join(", ");
    if let Some(unknown) = choices.observation.iter().find(|name| !available.contains(name)) {
        let reason = format!("it has no observation `{unknown}`; there are {list}");
        return Err(EpisodeError::Format { path: path.to_owned(), reason });
    }
    if !choices.observation.is_empty() {
        return Ok(choices.observation.clone());
    }
    if let [only] = available {
        return Ok(vec![only.clone()]);
    }
    Err(EpisodeError::Unsaid {
        path: path.to_owned(),
        what: format!("which of its observations count, in which order ({list})"),
        flag: "--observation NAME, once for each",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ended: &[usize], episodes: Option<&[i64]>) -> Table {
        Table {
            observation_dim: 1,
            action_dim: 1,
            observations: (0..6).map(|v| v as f32).collect(),
            actions: vec![0.0; 6],
            rewards: Some(vec![1.0; 6]),
            ended: (0..6).map(|step| ended.contains(&step)).collect(),
            episode: episodes.map(<[i64]>::to_vec),
            next_observations: (1..7).map(|v| v as f32).collect(),
            ..Table::default()
        }
    }

    fn cut(table: Table, ends: Option<Ends>) -> Result<Dataset, String> {
        let choices = Choices { ends, ..Choices::default() };
        table.into_dataset(Path::new("set"), &choices).map_err(|e| e.to_string())
    }

    fn steps(flags: &[bool]) -> Vec<usize> {
        (0..flags.len()).filter(|i| flags[*i]).collect()
    }

    #[test]
    fn ends_that_could_mean_two_things_are_asked_for() {
        assert!(cut(table(&[2], None), None).unwrap_err().contains("--ends"));
        assert!(cut(table(&[], None), None).unwrap_err().contains("no timeouts"));
        assert!(cut(table(&[2], Some(&[0, 0, 0, 1, 1, 1])), None).unwrap_err().contains("`done`"));
        let unflagged = cut(table(&[], Some(&[0, 0, 0, 1, 1, 1])), None).unwrap();
        assert_eq!((unflagged.episode_ends, steps(&unflagged.truncated)), (vec![3, 6], vec![2, 5]));
        let clear = Table { truncated: Some(vec![false; 6]), ..table(&[2], None) };
        assert!(cut(clear, Some(Ends::Terminated)).unwrap_err().contains("not to be given"));
        let unpaid = Table { rewards: None, ..table(&[], Some(&[0; 6])) };
        assert!(cut(unpaid, None).unwrap_err().contains("--success-reward"));
    }

    #[test]
    fn what_is_said_decides_and_every_episode_keeps_its_last_observation() {
        let at = |ends| cut(table(&[2], None), Some(ends)).unwrap();
        let data = at(Ends::Terminated);
        assert_eq!((steps(&data.terminated), steps(&data.truncated)), (vec![2], vec![5]));
        assert_eq!(data.final_observations, [3.0, 6.0]);
        let data = at(Ends::Truncated);
        assert_eq!((steps(&data.terminated), steps(&data.truncated)), (vec![], vec![2, 5]));
        let data = at(Ends::At(2));
        assert_eq!((steps(&data.terminated), steps(&data.truncated)), (vec![2], vec![1, 4, 5]));
        assert_eq!(data.episode_ends, [2, 3, 5, 6]);
        let data = at(Ends::At(3));
        assert_eq!((steps(&data.terminated), steps(&data.truncated)), (vec![], vec![2, 5]));
        assert_eq!("1000".parse(), Ok(Ends::At(1000)));
        assert!("0".parse::<Ends>().is_err() && "done".parse::<Ends>().is_err());
    }

    #[test]
    fn columns_of_other_lengths_are_refused() {
        let short = Table { truncated: Some(vec![true; 5]), ..table(&[], None) };
        assert!(cut(short, None).unwrap_err().contains("`timeouts` holds 5"));
        let short = Table { episode: Some(vec![0; 7]), ..table(&[], None) };
        assert!(cut(short, None).unwrap_err().contains("`episodes` holds 7"));
        let none = Table { episode: Some(Vec::new()), ..table(&[], None) };
        assert!(cut(none, None).unwrap_err().contains("`episodes` holds 0"));
        let short = Table { observations: vec![0.0; 5], ..table(&[], None) };
        assert!(cut(short, Some(Ends::Terminated)).unwrap_err().contains("`observations` holds 5"));
    }
}
