//! Arrays by name, wherever they are stored.

use std::path::Path;

use super::error::{ArrayProblem, EpisodeError};

/// Numbers of one array, row-major.
#[derive(Debug, Default)]
pub(super) struct Array {
    pub shape: Vec<u64>,
    /// `f64` holds every `f32` and every index below 2^53 exactly.
    pub numbers: Vec<f64>,
}

impl Array {
    pub(super) fn to_f32(&self) -> Vec<f32> {
        self.numbers.iter().map(|v| *v as f32).collect()
    }

    pub(super) fn to_flags(&self) -> Vec<bool> {
        self.numbers.iter().map(|v| *v != 0.0).collect()
    }
}

/// A file, or a part of one, that holds arrays by name.
pub(super) trait Arrays {
    /// What errors call it.
    fn path(&self) -> &Path;

    /// An array, if it is there.
    fn read(&mut self, name: &str) -> Result<Option<Array>, ArrayProblem>;

    fn optional(&mut self, name: &str) -> Result<Option<Array>, EpisodeError> {
        self.read(name).map_err(|problem| self.problem(name, problem))
    }

    fn needed(&mut self, name: &str) -> Result<Array, EpisodeError> {
        self.optional(name)?.ok_or_else(|| self.problem(name, ArrayProblem::Missing))
    }

    /// Width and numbers of an array with two axes; one axis is one number per step.
    fn matrix(&mut self, name: &str) -> Result<(usize, Vec<f32>), EpisodeError> {
        let array = self.needed(name)?;
        match array.shape[..] {
            [_] => Ok((1, array.to_f32())),
            [_, width] => Ok((width as usize, array.to_f32())),
            _ => Err(self.problem(name, ArrayProblem::Shape { found: array.shape, wanted: "(steps, entries)" })),
        }
    }

    /// Several of them side by side: `(n, sum of their widths)`.
    fn side_by_side(&mut self, names: &[String]) -> Result<(usize, Vec<f32>), EpisodeError> {
        let mut parts = Vec::new();
        for name in names {
            let (width, numbers) = self.matrix(name)?;
            let rows = numbers.len() / width.max(1);
            if parts.first().is_some_and(|(_, _, first)| *first != rows) {
                let found = vec![rows as u64, width as u64];
                return Err(self.problem(name, ArrayProblem::Shape { found, wanted: "as many rows as the others" }));
            }
            parts.push((width, numbers, rows));
        }
        let rows = parts.first().map_or(0, |(.., rows)| *rows);
        let row =
            |row: usize| parts.iter().flat_map(move |(width, numbers, _)| &numbers[row * width..(row + 1) * width]);
        Ok((parts.iter().map(|(width, ..)| width).sum(), (0..rows).flat_map(row).copied().collect()))
    }

    fn problem(&self, array: &str, problem: ArrayProblem) -> EpisodeError {
        EpisodeError::Array { path: self.path().to_owned(), array: array.to_owned(), problem }
    }
}
