//! `.npz` data sets: the arrays of D4RL by name, plus episode ends and last observations.
//!
//! | array | shape | meaning |
//! |---|---|---|
//! | `observations` | `(n, observation_dim)` | needed |
//! | `actions` | `(n, action_dim)` | needed |
//! | `rewards` | `(n)` or `(n, 1)` | needed |
//! | `terminals` | `(n)` | needed; the task ended |
//! | `timeouts` | `(n)` | the episode was cut; absent: nowhere |
//! | `episode_ends` | `(e)` | one past each last step; absent: behind each terminal or timeout, and at the end |
//! | `final_observations` | `(e, observation_dim)` | absent: unknown |
//!
//! Any number type, row-major; other arrays are ignored. A last episode that ends without a flag counts as cut.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use npyz::npz::{NpzArchive, NpzWriter};
use npyz::{AutoSerialize, NpyFile, Order, Serialize, WriterBuilder};

use super::dataset::{Dataset, DatasetProblem};

/// A data set that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EpisodeError {
    /// The file.
    #[error("data set {}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An array.
    #[error("data set {}: array `{array}` {problem}", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        array: &'static str,
        /// What is wrong with it.
        problem: ArrayProblem,
    },
    /// The arrays together.
    #[error("data set {}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: DatasetProblem,
    },
}

/// What is wrong with one array.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayProblem {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// Its bytes cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// It does not hold numbers.
    #[error("has type {0}; it must hold numbers or booleans")]
    Type(String),
    /// Column-major.
    #[error("is in Fortran order; save it with numpy.ascontiguousarray")]
    Order,
    /// Not the number of axes or rows that belongs there.
    #[error("has shape {found:?}; expected {wanted}")]
    Shape {
        /// Its shape.
        found: Vec<u64>,
        /// What fits.
        wanted: &'static str,
    },
}

/// Reads a data set.
///
/// # Errors
/// When the file cannot be read, an array is missing or unusable, or the arrays contradict each other.
pub fn read_npz(path: &Path) -> Result<Dataset, EpisodeError> {
    let mut file = Arrays::open(path)?;
    let (observation_dim, observations) = file.matrix("observations")?;
    let (action_dim, actions) = file.matrix("actions")?;
    let rewards = to_f32(&file.needed("rewards")?.numbers);
    let terminated = to_flags(&file.needed("terminals")?.numbers);
    let truncated = file.optional("timeouts")?.map_or_else(|| vec![false; rewards.len()], |a| to_flags(&a.numbers));
    let episode_ends = file
        .optional("episode_ends")?
        .map_or_else(|| ends(&terminated, &truncated), |a| a.numbers.iter().map(|v| *v as usize).collect());
    let final_observations = file.optional("final_observations")?.map_or_else(Vec::new, |a| to_f32(&a.numbers));
    let mut data = Dataset {
        observation_dim,
        action_dim,
        observations,
        actions,
        rewards,
        terminated,
        truncated,
        episode_ends,
        final_observations,
    };
    close_last_episode(&mut data);
    data.check().map_err(|problem| EpisodeError::Content { path: path.to_owned(), problem })?;
    Ok(data)
}

/// Marks a last episode without a flag as cut.
fn close_last_episode(data: &mut Dataset) {
    if let (Some(last), Some(false)) = (data.truncated.last_mut(), data.terminated.last()) {
        *last = true;
    }
}

/// One array of an `.npz` file, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    name: &'static str,
    width: Option<u64>,
    numbers: Numbers<'a>,
}

impl<'a> Column<'a> {
    /// With one axis.
    pub fn flat(name: &'static str, numbers: Numbers<'a>) -> Self {
        Self { name, width: None, numbers }
    }

    /// With rows of `width` numbers.
    pub fn rows(name: &'static str, width: usize, numbers: Numbers<'a>) -> Self {
        Self { name, width: Some(width as u64), numbers }
    }

    fn shape(&self) -> Vec<u64> {
        let length = match self.numbers {
            Numbers::F32(values) => values.len(),
            Numbers::F64(values) => values.len(),
            Numbers::I64(values) => values.len(),
            Numbers::Bool(values) => values.len(),
        } as u64;
        self.width.map_or(vec![length], |width| vec![length / width.max(1), width])
    }
}

/// Content of a [`Column`].
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// `float32`.
    F32(&'a [f32]),
    /// `float64`.
    F64(&'a [f64]),
    /// `int64`.
    I64(&'a [i64]),
    /// `bool`.
    Bool(&'a [bool]),
}

/// Writes a data set; at every moment `path` holds either the old file or the whole new one.
///
/// # Errors
/// When the data set contradicts itself or the file cannot be written.
pub fn write_npz(path: &Path, data: &Dataset) -> Result<(), EpisodeError> {
    data.check().map_err(|problem| EpisodeError::Content { path: path.to_owned(), problem })?;
    let ends: Vec<i64> = data.episode_ends.iter().map(|e| *e as i64).collect();
    let mut columns = vec![
        Column::rows("observations", data.observation_dim, Numbers::F32(&data.observations)),
        Column::rows("actions", data.action_dim, Numbers::F32(&data.actions)),
        Column::flat("rewards", Numbers::F32(&data.rewards)),
        Column::flat("terminals", Numbers::Bool(&data.terminated)),
        Column::flat("timeouts", Numbers::Bool(&data.truncated)),
        Column::flat("episode_ends", Numbers::I64(&ends)),
    ];
    if !data.final_observations.is_empty() {
        let numbers = Numbers::F32(&data.final_observations);
        columns.push(Column::rows("final_observations", data.observation_dim, numbers));
    }
    write_columns(path, &columns)
}

/// Writes arrays; at every moment `path` holds either the old file or the whole new one.
///
/// # Errors
/// When the file cannot be written, or rows do not have their width.
pub fn write_columns(path: &Path, columns: &[Column<'_>]) -> Result<(), EpisodeError> {
    let unnamed = path.with_extension("npz.new");
    write_file(&unnamed, columns).and_then(|()| fs::rename(&unnamed, path)).map_err(|source| {
        let _ = fs::remove_file(&unnamed);
        EpisodeError::Io { action: "write", path: path.to_owned(), source }
    })
}

fn write_file(path: &Path, columns: &[Column<'_>]) -> io::Result<()> {
    let file = File::create(path)?;
    let mut npz = NpzWriter::new(BufWriter::new(&file));
    for column in columns {
        let (name, shape) = (column.name, column.shape());
        match column.numbers {
            Numbers::F32(values) => write_array(&mut npz, name, &shape, values),
            Numbers::F64(values) => write_array(&mut npz, name, &shape, values),
            Numbers::I64(values) => write_array(&mut npz, name, &shape, values),
            Numbers::Bool(values) => write_array(&mut npz, name, &shape, values),
        }?;
    }
    npz.zip_writer().finish().map_err(io::Error::other)?.flush()?;
    file.sync_all()
}

fn write_array<T, W>(npz: &mut NpzWriter<W>, name: &str, shape: &[u64], values: &[T]) -> io::Result<()>
where
    T: AutoSerialize + Serialize + Copy,
    W: Write + io::Seek,
{
    let mut array = npz.array(name, <_>::default())?.default_dtype().shape(shape).begin_nd()?;
    array.extend(values.iter().copied())?;
    array.finish()
}

/// The arrays of one file.
struct Arrays {
    path: PathBuf,
    npz: NpzArchive<BufReader<File>>,
}

struct Array {
    shape: Vec<u64>,
    /// `f64` holds every `f32` and every index below 2^53 exactly.
    numbers: Vec<f64>,
}

impl Arrays {
    fn open(path: &Path) -> Result<Self, EpisodeError> {
        let npz = NpzArchive::open(path);
        let path = path.to_owned();
        match npz {
            Ok(npz) => Ok(Self { path, npz }),
            Err(source) => Err(EpisodeError::Io { action: "open", path, source }),
        }
    }

    fn optional(&mut self, name: &'static str) -> Result<Option<Array>, EpisodeError> {
        read_array(&mut self.npz, name).map_err(|problem| self.problem(name, problem))
    }

    fn needed(&mut self, name: &'static str) -> Result<Array, EpisodeError> {
        self.optional(name)?.ok_or_else(|| self.problem(name, ArrayProblem::Missing))
    }

    /// Width and numbers of an array with two axes.
    fn matrix(&mut self, name: &'static str) -> Result<(usize, Vec<f32>), EpisodeError> {
        let array = self.needed(name)?;
        if let [_, width] = array.shape[..] {
            return Ok((width as usize, to_f32(&array.numbers)));
        }
        Err(self.problem(name, ArrayProblem::Shape { found: array.shape, wanted: "(steps, entries)" }))
    }

    fn problem(&self, array: &'static str, problem: ArrayProblem) -> EpisodeError {
        EpisodeError::Array { path: self.path.clone(), array, problem }
    }
}

fn read_array<R: io::Read + io::Seek>(file: &mut NpzArchive<R>, name: &str) -> Result<Option<Array>, ArrayProblem> {
    let Some(array) = file.by_name(name).map_err(ArrayProblem::Unreadable)? else {
        return Ok(None);
    };
    let header = array.header().clone();
    let shape = header.shape().to_vec();
    if header.order() == Order::Fortran && shape.len() > 1 {
        return Err(ArrayProblem::Order);
    }
    let numbers = read_numbers(NpyFile::with_header(header, BufReader::new(array.into_inner())))?;
    let wanted = shape.iter().try_fold(1_u64, |product, axis| product.checked_mul(*axis));
    if wanted != Some(numbers.len() as u64) {
        return Err(ArrayProblem::Shape { found: shape, wanted: "as many numbers as the array holds" });
    }
    Ok(Some(Array { shape, numbers }))
}

fn read_numbers<R: io::Read>(array: NpyFile<R>) -> Result<Vec<f64>, ArrayProblem> {
    macro_rules! try_types {
        ($array:expr, $($type:ty => $convert:expr),*) => {{
            let array = $array;
            $(let array = match array.try_data::<$type>() {
                Ok(values) => {
                    return values.map(|v| v.map($convert)).collect::<io::Result<_>>().map_err(ArrayProblem::Unreadable);
                }
                Err(array) => array,
            };)*
            array
        }};
    }
    let array = try_types!(array,
        f32 => f64::from, f64 => |v| v, bool => |v| f64::from(u8::from(v)),
        i64 => |v| v as f64, i32 => f64::from, i16 => f64::from, i8 => f64::from,
        u64 => |v| v as f64, u32 => f64::from, u16 => f64::from, u8 => f64::from);
    Err(ArrayProblem::Type(array.dtype().descr()))
}

fn to_f32(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|v| *v as f32).collect()
}

fn to_flags(numbers: &[f64]) -> Vec<bool> {
    numbers.iter().map(|v| *v != 0.0).collect()
}

/// Episode ends behind every flag, and behind the last step.
fn ends(terminated: &[bool], truncated: &[bool]) -> Vec<usize> {
    let steps = terminated.len();
    let flagged = |step: usize| terminated[step] || truncated.get(step).is_some_and(|t| *t);
    (1..=steps).filter(|end| *end == steps || flagged(end - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Dataset {
        Dataset {
            observation_dim: 3,
            action_dim: 2,
            observations: (0..15).map(|v| v as f32 * 0.5).collect(),
            actions: (0..10).map(|v| v as f32 * 0.1).collect(),
            rewards: vec![0.0, -1.0, 2.5, 3.0, 1.0],
            terminated: vec![false, true, false, false, false],
            truncated: vec![false, false, false, false, true],
            episode_ends: vec![2, 5],
            final_observations: vec![1.0; 6],
        }
    }

    #[test]
    fn a_data_set_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.npz");
        for data in [data(), Dataset { final_observations: Vec::new(), ..data() }] {
            write_npz(&path, &data).unwrap();
            assert_eq!(read_npz(&path).unwrap(), data);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no leftovers");
    }

    fn write(path: &Path, arrays: &[(&str, &[u64], Vec<f64>)]) {
        let mut npz = NpzWriter::create(path).unwrap();
        for (name, shape, values) in arrays {
            write_array(&mut npz, name, shape, values).unwrap();
        }
        npz.zip_writer().finish().unwrap().flush().unwrap();
    }

    #[test]
    fn plain_d4rl_columns_are_cut_into_episodes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d4rl.npz");
        let columns = |terminals: &[f64]| {
            vec![
                ("observations", &[4, 1][..], vec![1.0, 2.0, 3.0, 4.0]),
                ("actions", &[4, 1][..], vec![0.0; 4]),
                ("rewards", &[4, 1][..], vec![1.0; 4]),
                ("terminals", &[4][..], terminals.to_vec()),
            ]
        };
        write(&path, &columns(&[0.0, 1.0, 0.0, 0.0]));
        let data = read_npz(&path).unwrap();
        assert_eq!(data.episode_ends, [2, 4]);
        assert_eq!(data.truncated, [false, false, false, true]);
        write(&path, &columns(&[0.0, 1.0, 0.0, 0.0])[..3]);
        let error = read_npz(&path).unwrap_err().to_string();
        assert!(error.contains("`terminals` is missing"), "{error}");
        let mut short = columns(&[0.0; 4]);
        short[3] = ("terminals", &[2], vec![0.0, 1.0]);
        write(&path, &short);
        let error = read_npz(&path).unwrap_err().to_string();
        assert!(error.contains("`terminated` holds 2"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors_not_panics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.npz");
        write_npz(&path, &data()).unwrap();
        let good = std::fs::read(&path).unwrap();
        for cut in (0..good.len()).step_by(13) {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(read_npz(&path).is_err());
        }
        for flip in (0..good.len()).step_by(7) {
            let mut bytes = good.clone();
            bytes[flip] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let _ = read_npz(&path);
        }
    }
}
