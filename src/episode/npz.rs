//! `.npz` data sets: the arrays of D4RL by name, plus episode ends and last observations.
//!
//! | array | shape | meaning |
//! |---|---|---|
//! | `observations` | `(n, observation_dim)` | needed |
//! | `actions` | `(n, action_dim)` | needed |
//! | `rewards` | `(n)` or `(n, 1)` | needed |
//! | `terminals` | `(n)` | needed; the task ended |
//! | `timeouts` | `(n)` | the episode was cut; without it and `episode_ends` the ends are asked for |
//! | `episode_ends` | `(e)` | one past each last step; absent: behind each terminal or timeout, and at the end |
//! | `final_observations` | `(e, observation_dim)` | absent: unknown |
//! | `images` | `(n, height, width, channels)` bytes | camera images; absent: none |
//! | `final_images` | `(e, height, width, channels)` bytes | needed where there are images and final observations |
//! | `capture_us` | `(n)` | when the observation was taken, in µs of the recorder's clock; absent: unknown |
//!
//! With images, `proprio` and `final_proprio` are read in the place of absent `observations` and `final_observations`.
//! Any number type, row-major; other arrays are ignored. An episode that ends without a flag counts as cut.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use npyz::npz::{NpzArchive, NpzWriter};
use npyz::{AutoSerialize, NpyFile, Order, Serialize, WriterBuilder};

use super::array::{Array, Arrays};
use super::dataset::{Dataset, DatasetProblem, Images};
use super::error::{ArrayProblem, EpisodeError};
use super::table::{Choices, Table, choose};
use crate::spaces::FrameShape;

/// Reads a data set.
///
/// # Errors
/// When the file cannot be read, an array is missing or unusable, the arrays contradict each other, or a question is
/// left open.
pub(super) fn read(path: &Path, choices: &Choices) -> Result<Dataset, EpisodeError> {
    let npz = NpzArchive::open(path);
    let npz = npz.map_err(|source| EpisodeError::Io { action: "open", path: path.to_owned(), source })?;
    let mut file = Npz { path, npz };
    let images = file.images()?;
    let proprio = images.is_some() && file.optional("observations")?.is_none();
    let (name, final_name) =
        if proprio { ("proprio", "final_proprio") } else { ("observations", "final_observations") };
    choose(path, &[String::from(name)], choices)?;
    let (observation_dim, observations) = file.matrix(name)?;
    let (action_dim, actions) = file.matrix("actions")?;
    let rewards = file.optional("rewards")?.map(|a| a.to_f32());
    let ended = file.needed("terminals")?.to_flags();
    let truncated = file.optional("timeouts")?.map(|a| a.to_flags());
    let ends = file.optional("episode_ends")?.map(|a| a.numbers.iter().map(|v| *v as usize).collect::<Vec<_>>());
    let final_observations = file.optional(final_name)?.map_or_else(Vec::new, |a| a.to_f32());
    let capture_us = file.optional("capture_us")?;
    let capture_us = capture_us.map_or_else(Vec::new, |a| a.numbers.iter().map(|v| *v as u64).collect());
    let table = Table {
        observation_dim,
        action_dim,
        observations,
        actions,
        rewards,
        // Where ends are listed, those without a flag were cut.
        truncated: truncated.or_else(|| ends.as_ref().map(|_| vec![false; ended.len()])),
        episode: ends.as_ref().map(|ends| (0..ended.len()).map(|step| episode_of(step, ends)).collect()),
        ended,
        capture_us,
        ..Table::default()
    };
    let mut data = table.into_dataset(path, choices)?;
    if let Some(episode) = ends.and_then(|ends| ends.iter().zip(&data.episode_ends).position(|(a, b)| a != b)) {
        let problem = DatasetProblem::Ends { episode };
        return Err(EpisodeError::Content { path: path.to_owned(), problem });
    }
    (data.final_observations, data.images) = (final_observations, images);
    data.check().map_err(|problem| EpisodeError::Content { path: path.to_owned(), problem })?;
    Ok(data)
}

/// How many of the episodes ended at or before this step.
fn episode_of(step: usize, ends: &[usize]) -> i64 {
    ends.partition_point(|end| *end <= step) as i64
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
            Numbers::Images(values, shape) => {
                let sides = [shape.height, shape.width, shape.channels].map(u64::from);
                let count = values.len() / shape.bytes().max(1);
                return [&[count as u64][..], &sides].concat();
            }
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
    /// `uint8`, images of one size.
    Images(&'a [u8], FrameShape),
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
    if let Some(images) = &data.images {
        columns.push(Column::flat("images", Numbers::Images(&images.steps, images.shape)));
        if !images.finals.is_empty() {
            columns.push(Column::flat("final_images", Numbers::Images(&images.finals, images.shape)));
        }
    }
    let stamps: Vec<i64> = data.capture_us.iter().map(|t| *t as i64).collect();
    if !stamps.is_empty() {
        columns.push(Column::flat("capture_us", Numbers::I64(&stamps)));
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
            Numbers::Images(values, _) => write_array(&mut npz, name, &shape, values),
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
struct Npz<'a> {
    path: &'a Path,
    npz: NpzArchive<BufReader<File>>,
}

impl Arrays for Npz<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn read(&mut self, name: &str) -> Result<Option<Array>, ArrayProblem> {
        read_array(&mut self.npz, name)
    }
}

impl Npz<'_> {
    /// The images, if there are any. They are read as the bytes they are: as numbers they would take eight times the
    /// memory.
    fn images(&mut self) -> Result<Option<Images>, EpisodeError> {
        let Some((shape, steps)) = self.frames("images")? else { return Ok(None) };
        let finals = match self.frames("final_images")? {
            Some((found, finals)) if found == shape => finals,
            Some((found, _)) => {
                let found = [found.height, found.width, found.channels].map(u64::from).to_vec();
                let problem = ArrayProblem::Shape { found, wanted: "images of the size of `images`" };
                return Err(self.problem("final_images", problem));
            }
            None => Vec::new(),
        };
        Ok(Some(Images { shape, steps, finals }))
    }

    fn frames(&mut self, name: &str) -> Result<Option<(FrameShape, Vec<u8>)>, EpisodeError> {
        read_frames(&mut self.npz, name).map_err(|problem| self.problem(name, problem))
    }
}

fn read_frames<R: io::Read + io::Seek>(
    file: &mut NpzArchive<R>,
    name: &str,
) -> Result<Option<(FrameShape, Vec<u8>)>, ArrayProblem> {
    let Some(array) = file.by_name(name).map_err(ArrayProblem::Unreadable)? else { return Ok(None) };
    let header = array.header().clone();
    let found = header.shape().to_vec();
    let wanted = "(steps, height, width, channels)";
    let sides: Vec<u16> = found.iter().skip(1).filter_map(|side| u16::try_from(*side).ok()).collect();
    let &[height, width, channels] = sides.as_slice() else {
        return Err(ArrayProblem::Shape { found, wanted });
    };
    if header.order() == Order::Fortran {
        return Err(ArrayProblem::Order);
    }
    let npy = NpyFile::with_header(header, BufReader::new(array.into_inner()));
    let values = npy.try_data::<u8>().map_err(|npy| ArrayProblem::Type(npy.dtype().descr()))?;
    let bytes = values.collect::<io::Result<Vec<u8>>>().map_err(ArrayProblem::Unreadable)?;
    let shape = FrameShape { width, height, channels };
    if Some(bytes.len() as u64) != found[0].checked_mul(shape.bytes() as u64) {
        return Err(ArrayProblem::Shape { found, wanted: "as many bytes as the array holds" });
    }
    Ok(Some((shape, bytes)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::episode::Ends;

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
            capture_us: vec![7, 50_007, 3, 50_003, 100_003],
            images: None,
        }
    }

    #[test]
    fn a_data_set_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.npz");
        for data in [data(), Dataset { final_observations: Vec::new(), capture_us: Vec::new(), ..data() }] {
            write_npz(&path, &data).unwrap();
            assert_eq!(read(&path, &Choices::default()).unwrap(), data);
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
        assert!(matches!(read(&path, &Choices::default()), Err(EpisodeError::Unsaid { .. })));
        let said = Choices { ends: Some(Ends::Terminated), ..Choices::default() };
        let data = read(&path, &said).unwrap();
        assert_eq!(data.episode_ends, [2, 4]);
        assert_eq!(data.truncated, [false, false, false, true]);
        write(&path, &columns(&[0.0, 1.0, 0.0, 0.0])[..3]);
        let error = read(&path, &Choices::default()).unwrap_err().to_string();
        assert!(error.contains("`terminals` is missing"), "{error}");
        let mut short = columns(&[0.0; 4]);
        short[3] = ("terminals", &[2], vec![0.0, 1.0]);
        write(&path, &short);
        let error = read(&path, &said).unwrap_err().to_string();
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
            assert!(read(&path, &Choices::default()).is_err());
        }
        for flip in (0..good.len()).step_by(7) {
            let mut bytes = good.clone();
            bytes[flip] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let _ = read(&path, &Choices::default());
        }
    }
}
