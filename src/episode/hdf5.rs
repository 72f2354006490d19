//! HDF5 data sets: D4RL, Minari and robomimic.
//!
//! | set | where | ends |
//! |---|---|---|
//! | D4RL | `observations`, `actions`, `rewards`, `terminals` at the root | `timeouts`, or asked for |
//! | Minari | `episode_K/{observations, actions, rewards, terminations, truncations}`; one observation more than actions | in the file |
//! | robomimic | `data/demo_K/{actions, rewards, dones, obs/*, next_obs/*}` | asked for |
//!
//! Arrays within groups of observations are named and chosen; images are not numbers of an observation.

use std::path::Path;

use hdf5_pure::{File, Group};

use super::array::{Array, Arrays};
use super::dataset::Dataset;
use super::error::{ArrayProblem, EpisodeError};
use super::table::{Choices, Table, choose};

/// Deflate cannot make more bytes of one; what claims more is damaged or a trap.
const MOST_BYTES_PER_BYTE: u64 = 1032;
/// A number in memory.
const NUMBER_BYTES: u64 = size_of::<f64>() as u64;

/// Reads a data set in one of the three layouts.
///
/// # Errors
/// When the file cannot be read, is laid out in another way, or leaves a question open.
pub(super) fn read(path: &Path, choices: &Choices) -> Result<Dataset, EpisodeError> {
    let file = File::open_streaming(path).map_err(|e| unreadable(path, &e))?;
    let mut root = Folder { path, group: file.root(), most: file.file_size().saturating_mul(MOST_BYTES_PER_BYTE) };
    let groups = root.groups()?;
    let table = if groups.iter().any(|name| number_behind(name, "episode_").is_some()) {
        minari(&root, &groups, choices)?
    } else if groups.iter().any(|name| name == "data") {
        robomimic(&root.inside("data")?, choices)?
    } else {
        d4rl(&mut root, choices)?
    };
    table.into_dataset(path, choices)
}

fn d4rl(root: &mut Folder<'_>, choices: &Choices) -> Result<Table, EpisodeError> {
    choose(root.path, &[String::from("observations")], choices)?;
    let (observation_dim, observations) = root.matrix("observations")?;
    let (action_dim, actions) = root.matrix("actions")?;
    Ok(Table {
        observation_dim,
        action_dim,
        observations,
        actions,
        rewards: root.optional("rewards")?.map(|a| a.to_f32()),
        ended: root.needed("terminals")?.to_flags(),
        truncated: root.optional("timeouts")?.map(|a| a.to_flags()),
        next_observations: root.optional("next_observations")?.map_or_else(Vec::new, |a| a.to_f32()),
        ..Table::default()
    })
}

fn minari(root: &Folder<'_>, groups: &[String], choices: &Choices) -> Result<Table, EpisodeError> {
    let mut table = Table { truncated: Some(Vec::new()), rewards: Some(Vec::new()), ..Table::default() };
    for (index, name) in numbered(groups, "episode_") {
        let mut episode = root.inside(name)?;
        let names = episode.observation_names("observations", choices)?;
        let (dim, observations) = episode.side_by_side(&names)?;
        let steps = episode.extend(&mut table, index, dim, "terminations")?;
        if let Some(truncated) = &mut table.truncated {
            truncated.extend(episode.needed("truncations")?.to_flags());
        }
        if observations.len() != (steps + 1) * dim {
            let found = vec![(observations.len() / dim.max(1)) as u64, dim as u64];
            let wanted = "one observation more than steps";
            return Err(episode.problem(&format!("{name}/observations"), ArrayProblem::Shape { found, wanted }));
        }
        table.observations.extend_from_slice(&observations[..steps * dim]);
        table.next_observations.extend_from_slice(&observations[dim..]);
    }
    Ok(table)
}

fn robomimic(data: &Folder<'_>, choices: &Choices) -> Result<Table, EpisodeError> {
    let mut table = Table::default();
    let groups = data.groups()?;
    for (index, name) in numbered(&groups, "demo_") {
        let mut demo = data.inside(name)?;
        let names = demo.observation_names("obs", choices)?;
        let (dim, observations) = demo.side_by_side(&names)?;
        demo.extend(&mut table, index, dim, "dones")?;
        table.observations.extend(observations);
        if demo.groups()?.iter().any(|group| group == "next_obs") {
            let next: Vec<String> = names.iter().map(|name| format!("next_{name}")).collect();
            table.next_observations.extend(demo.side_by_side(&next)?.1);
        }
    }
    Ok(table)
}

/// Names with a number behind `prefix`, in the order of their numbers.
fn numbered<'a>(names: &'a [String], prefix: &str) -> Vec<(i64, &'a str)> {
    let mut found: Vec<_> =
        names.iter().filter_map(|name| Some((number_behind(name, prefix)?, name.as_str()))).collect();
    found.sort_unstable();
    found
}

fn number_behind(name: &str, prefix: &str) -> Option<i64> {
    name.strip_prefix(prefix)?.parse().ok()
}

fn unreadable(path: &Path, error: &hdf5_pure::Error) -> EpisodeError {
    EpisodeError::Format { path: path.to_owned(), reason: format!("HDF5 cannot be read: {error}") }
}

/// A group of a file.
struct Folder<'a> {
    path: &'a Path,
    group: Group,
    /// Bytes that an array of this file can have.
    most: u64,
}

impl Folder<'_> {
    fn groups(&self) -> Result<Vec<String>, EpisodeError> {
        self.group.groups().map_err(|e| unreadable(self.path, &e))
    }

    fn inside(&self, name: &str) -> Result<Self, EpisodeError> {
        let group = self.group.group(name).map_err(|e| unreadable(self.path, &e))?;
        Ok(Self { group, ..*self })
    }

    /// Paths of the arrays that make the observation: `of` itself, or those chosen of the group `of`.
    fn observation_names(&self, of: &str, choices: &Choices) -> Result<Vec<String>, EpisodeError> {
        if !self.groups()?.iter().any(|name| name == of) {
            return choose(self.path, &[of.to_owned()], choices);
        }
        let mut available = Vec::new();
        self.inside(of)?.numbers("", &mut available)?;
        available.sort();
        let chosen = choose(self.path, &available, choices)?;
        Ok(chosen.into_iter().map(|name| format!("{of}/{name}")).collect())
    }

    /// Arrays in this group and below with one or two axes.
    fn numbers(&self, prefix: &str, into: &mut Vec<String>) -> Result<(), EpisodeError> {
        let failed = |e| unreadable(self.path, &e);
        for name in self.group.datasets().map_err(failed)? {
            let shape = self.group.dataset(&name).and_then(|array| array.shape()).map_err(failed)?;
            if (1..=2).contains(&shape.len()) {
                into.push(format!("{prefix}{name}"));
            }
        }
        // Deep enough for any space; a group that contains itself must end somewhere.
        if prefix.matches('/').count() < 4 {
            for name in self.groups()? {
                self.inside(&name)?.numbers(&format!("{prefix}{name}/"), into)?;
            }
        }
        Ok(())
    }

    /// Appends actions, rewards and ends of this episode; returns its steps.
    fn extend(&mut self, table: &mut Table, index: i64, dim: usize, ends: &str) -> Result<usize, EpisodeError> {
        let (action_dim, actions) = self.matrix("actions")?;
        let ended = self.needed(ends)?.to_flags();
        let steps = ended.len();
        let first = table.ended.is_empty();
        if !first && (dim, action_dim) != (table.observation_dim, table.action_dim) {
            let found = vec![steps as u64, action_dim as u64];
            return Err(
                self.problem("actions", ArrayProblem::Shape { found, wanted: "the widths of the first episode" })
            );
        }
        (table.observation_dim, table.action_dim) = (dim, action_dim);
        if let Some(rewards) = self.optional("rewards")?.filter(|_| first || table.rewards.is_some()) {
            table.rewards.get_or_insert_default().extend(rewards.to_f32());
        }
        table.actions.extend(actions);
        table.ended.extend(ended);
        table.episode.get_or_insert_default().extend(std::iter::repeat_n(index, steps));
        Ok(steps)
    }
}

impl Arrays for Folder<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn read(&mut self, name: &str) -> Result<Option<Array>, ArrayProblem> {
        let unreadable = |e: hdf5_pure::Error| ArrayProblem::Unreadable(std::io::Error::other(e.to_string()));
        let (group, leaf) = match name.rsplit_once('/') {
            Some((group, leaf)) => (&self.group.group(group).map_err(unreadable)?, leaf),
            None => (&self.group, name),
        };
        if !group.datasets().map_err(unreadable)?.iter().any(|n| n == leaf) {
            return Ok(None);
        }
        let array = group.dataset(leaf).map_err(unreadable)?;
        let shape = array.shape().map_err(unreadable)?;
        let bytes = shape.iter().try_fold(NUMBER_BYTES, |product, axis| product.checked_mul(*axis));
        if bytes.is_none_or(|bytes| bytes > self.most) {
            return Err(ArrayProblem::Shape { found: shape, wanted: "no more than the file can hold" });
        }
        let numbers = array.read_f64().map_err(unreadable)?;
        Ok(Some(Array { shape, numbers }))
    }
}
