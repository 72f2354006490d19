//! Columns of Parquet files: numbers, lists of numbers and images in; those, flags and texts out.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};

use super::array::{Array, Arrays};
use super::error::{ArrayProblem, EpisodeError};
use crate::pixels;

/// Rows read or written at a time.
const ROWS: usize = 65_536;
/// A column of equal numbers takes next to nothing; one of so many in so small a file is damaged or a trap.
const MOST_NUMBERS_PER_BYTE: u64 = 1024;
/// Images read or written at a time.
const IMAGES: usize = 256;

/// Takes bytes and path of an image, either of which may be missing.
type TakeImage<'a> = dyn FnMut(Option<&[u8]>, Option<&str>) -> Result<(), EpisodeError> + 'a;

/// The columns of files of one schema, one behind the other.
pub(super) struct Table {
    files: Vec<PathBuf>,
    /// Numbers that a column of these files can have.
    most: u64,
}

impl Table {
    /// With at least one file.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let bytes: u64 = files.iter().map(|file| std::fs::metadata(file).map_or(0, |facts| facts.len())).sum();
        Self { files, most: bytes.saturating_mul(MOST_NUMBERS_PER_BYTE) }
    }

    /// Names of the columns of numbers; lists by their own name, entries of a group as `group.entry`.
    pub(super) fn names(&self) -> Result<Vec<String>, EpisodeError> {
        let Some(path) = self.files.first() else { return Ok(Vec::new()) };
        let reader = open(path).map_err(|e| self.problem("schema", unreadable(&e)))?;
        let columns = reader.metadata().file_metadata().schema_descr().columns();
        let numbers = columns.iter().filter(|c| !matches!(c.physical_type(), Physical::BYTE_ARRAY | Physical::INT96));
        Ok(numbers.map(|column| name_of(column.path().parts())).collect())
    }

    /// Shows `take` every row of a column of images, which is a group of `bytes` and `path`; `false` where there is none.
    pub(super) fn images(&self, name: &str, take: &mut TakeImage<'_>) -> Result<bool, EpisodeError> {
        let problem = |problem| self.problem(name, problem);
        let parts = ["bytes", "path"].map(|part| format!("{name}.{part}"));
        for path in &self.files {
            let reader = open(path).map_err(|e| problem(unreadable(&e)))?;
            let columns = reader.metadata().file_metadata().schema_descr().columns();
            let at = |part: &String| columns.iter().position(|c| name_of(c.path().parts()) == *part);
            let [Some(bytes), Some(paths)] = parts.each_ref().map(at) else { return Ok(false) };
            for group in 0..reader.num_row_groups() {
                let column = |at| Texts::open(&reader, group, at).map_err(problem);
                let (mut bytes, mut paths) = (column(bytes)?, column(paths)?);
                loop {
                    let (images, names) = (bytes.next().map_err(problem)?, paths.next().map_err(problem)?);
                    if images.is_empty() {
                        break;
                    }
                    if images.len() != names.len() {
                        let found = vec![images.len() as u64, names.len() as u64];
                        return Err(problem(ArrayProblem::Shape { found, wanted: "as many images as paths" }));
                    }
                    for (image, name) in images.iter().zip(&names) {
                        let name = name.as_ref().and_then(|name| name.as_utf8().ok());
                        take(image.as_ref().map(ByteArray::data), name)?;
                    }
                }
            }
        }
        Ok(!self.files.is_empty())
    }
}

/// A column of bytes or texts, some of which may be missing.
struct Texts {
    column: ColumnReaderImpl<ByteArrayType>,
    /// Level of a text that is there.
    there: i16,
}

impl Texts {
    fn open(reader: &SerializedFileReader<File>, group: usize, at: usize) -> Result<Self, ArrayProblem> {
        let group = reader.get_row_group(group).map_err(|e| unreadable(&e))?;
        let there = group.metadata().column(at).column_descr().max_def_level();
        match group.get_column_reader(at).map_err(|e| unreadable(&e))? {
            ColumnReader::ByteArrayColumnReader(column) => Ok(Self { column, there }),
            _ => Err(ArrayProblem::Type(String::from("no bytes"))),
        }
    }

    /// The next rows; none at the end.
    fn next(&mut self) -> Result<Vec<Option<ByteArray>>, ArrayProblem> {
        let (mut values, mut defined) = (Vec::new(), Vec::new());
        let read = self.column.read_records(IMAGES, Some(&mut defined), None, &mut values);
        let (rows, ..) = read.map_err(|e| unreadable(&e))?;
        let mut values = values.into_iter();
        Ok((0..rows)
            .map(|row| if defined.get(row).is_none_or(|level| *level == self.there) { values.next() } else { None })
            .collect())
    }
}

/// Without what Parquet puts below a list.
fn name_of(parts: &[String]) -> String {
    let own = match parts {
        [own @ .., list, _] if list == "list" => own,
        all => all,
    };
    own.join(".")
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, ParquetError> {
    SerializedFileReader::new(File::open(path)?)
}

fn unreadable(error: &ParquetError) -> ArrayProblem {
    ArrayProblem::Unreadable(std::io::Error::other(error.to_string()))
}

impl Arrays for Table {
    fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |file| file)
    }

    fn read(&mut self, name: &str) -> Result<Option<Array>, ArrayProblem> {
        let (mut rows, mut numbers) = (Rows::default(), Vec::new());
        for path in &self.files {
            let reader = open(path).map_err(|e| unreadable(&e))?;
            let columns = reader.metadata().file_metadata().schema_descr().columns();
            let Some(index) = columns.iter().position(|c| name_of(c.path().parts()) == name) else {
                return Ok(None);
            };
            for group in 0..reader.num_row_groups() {
                let column = reader.get_row_group(group).and_then(|group| group.get_column_reader(index));
                rows.read(column.map_err(|e| unreadable(&e))?, &mut numbers, self.most)?;
            }
        }
        let shape = match rows.width {
            Some(width) => vec![rows.count, width],
            None => vec![rows.count],
        };
        Ok(Some(Array { shape, numbers }))
    }
}

/// Counts rows and looks that lists have one length.
#[derive(Default)]
struct Rows {
    count: u64,
    /// Of a list.
    width: Option<u64>,
}

impl Rows {
    fn read(&mut self, column: ColumnReader, into: &mut Vec<f64>, most: u64) -> Result<(), ArrayProblem> {
        match column {
            ColumnReader::BoolColumnReader(c) => self.drain(c, into, most, |v| f64::from(u8::from(*v))),
            ColumnReader::Int32ColumnReader(c) => self.drain(c, into, most, |v| f64::from(*v)),
            ColumnReader::Int64ColumnReader(c) => self.drain(c, into, most, |v| *v as f64),
            ColumnReader::FloatColumnReader(c) => self.drain(c, into, most, |v| f64::from(*v)),
            ColumnReader::DoubleColumnReader(c) => self.drain(c, into, most, |v| *v),
            _ => Err(ArrayProblem::Type(String::from("bytes"))),
        }
    }

    fn drain<T: DataType>(
        &mut self,
        mut column: ColumnReaderImpl<T>,
        into: &mut Vec<f64>,
        most: u64,
        number: impl Fn(&T::T) -> f64,
    ) -> Result<(), ArrayProblem> {
        let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            values.clear();
            defined.clear();
            repeated.clear();
            let read = column.read_records(ROWS, Some(&mut defined), Some(&mut repeated), &mut values);
            let (records, numbers, levels) = read.map_err(|e| unreadable(&e))?;
            if records == 0 {
                return Ok(());
            }
            if numbers != levels {
                return Err(ArrayProblem::Type(String::from("numbers with gaps (null)")));
            }
            self.count += records as u64;
            self.check_lists(&repeated)?;
            if (into.len() + numbers) as u64 > most {
                return Err(ArrayProblem::Shape { found: vec![self.count], wanted: "no more than the file can hold" });
            }
            into.extend(values.iter().map(&number));
        }
    }

    /// `repeated` is 0 where a row begins, and empty for a column without lists.
    fn check_lists(&mut self, repeated: &[i16]) -> Result<(), ArrayProblem> {
        for row in repeated.chunk_by(|_, next| *next != 0) {
            let found = row.len() as u64;
            if *self.width.get_or_insert(found) != found {
                return Err(ArrayProblem::Shape { found: vec![self.count, found], wanted: "lists of one length" });
            }
        }
        Ok(())
    }
}

/// A column to write.
pub(super) enum Values<'a> {
    Bool(&'a [bool]),
    F32(&'a [f32]),
    I64(&'a [i64]),
    Text(&'a [String]),
    /// Lists of this many numbers each.
    F32Lists(usize, &'a [f32]),
    /// Lists of one text each.
    TextLists(&'a [String]),
    /// PNG files of one of several cameras, of frames with this width and height.
    Png {
        size: (u16, u16),
        camera: usize,
        cameras: usize,
        frames: &'a [u8],
    },
}

impl Values<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::Text(values) | Self::TextLists(values) => values.len(),
            Self::F32Lists(width, values) => values.len() / (*width).max(1),
            Self::Png { frames, .. } => frames.len() / self.frame_bytes().max(1),
        }
    }

    fn frame_bytes(&self) -> usize {
        match self {
            Self::Png { size: (width, height), cameras, .. } => {
                usize::from(*width) * usize::from(*height) * 3 * cameras
            }
            _ => 0,
        }
    }

    fn schema(&self, name: &str) -> Result<TypePtr, ParquetError> {
        let text = |name| {
            Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String))
                .with_converted_type(ConvertedType::UTF8)
        };
        let number = |name, physical| Type::primitive_type_builder(name, physical);
        let (list, one) = match self {
            Self::Png { .. } => return image_schema(name),
            Self::Bool(_) => (false, number(name, Physical::BOOLEAN)),
            Self::F32(_) => (false, number(name, Physical::FLOAT)),
            Self::I64(_) => (false, number(name, Physical::INT64)),
            Self::Text(_) => (false, text(name)),
            Self::F32Lists(..) => (true, number("element", Physical::FLOAT)),
            Self::TextLists(_) => (true, text("element")),
        };
        let one = Arc::new(one.with_repetition(Repetition::REQUIRED).build()?);
        if !list {
            return Ok(one);
        }
        let repeated =
            Type::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![one]).build()?;
        let group = Type::group_type_builder(name)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::List))
            .with_converted_type(ConvertedType::LIST)
            .with_fields(vec![Arc::new(repeated)]);
        Ok(Arc::new(group.build()?))
    }

    /// Writes rows as the next columns of `group`.
    fn write(&self, rows: Range<usize>, group: &mut Group<'_, '_>) -> Result<(), ParquetError> {
        if let Self::Png { .. } = self {
            let names: Vec<ByteArray> = rows.clone().map(|row| format!("frame-{row:06}.png").as_str().into()).collect();
            put(group, |to| to.typed::<ByteArrayType>().write_batch(&self.png(rows)?, None, None).map(drop))?;
            return put(group, |to| to.typed::<ByteArrayType>().write_batch(&names, None, None).map(drop));
        }
        put(group, |to| self.write_one(rows, to))
    }

    fn png(&self, rows: Range<usize>) -> Result<Vec<ByteArray>, ParquetError> {
        let Self::Png { size: (width, height), camera, cameras, frames } = *self else { return Ok(Vec::new()) };
        let bytes = self.frame_bytes();
        let frames = frames[rows.start * bytes..rows.end * bytes].chunks_exact(bytes.max(1));
        let png = |frame| pixels::to_png(width, height, &pixels::of_camera(cameras, camera, frame));
        frames.map(|frame| png(frame).map(ByteArray::from).map_err(ParquetError::General)).collect()
    }

    fn write_one(&self, rows: Range<usize>, to: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let texts = |values: &[String]| -> Vec<ByteArray> { values.iter().map(|v| v.as_str().into()).collect() };
        // One level says that the list is there, the other where a row begins.
        let levels = |width: usize| {
            let count = rows.len() * width;
            (vec![1_i16; count], (0..count).map(|i| i16::from(i % width != 0)).collect::<Vec<_>>())
        };
        match *self {
            Self::Png { .. } => return Ok(()),
            Self::Bool(values) => to.typed::<BoolType>().write_batch(&values[rows], None, None),
            Self::F32(values) => to.typed::<FloatType>().write_batch(&values[rows], None, None),
            Self::I64(values) => to.typed::<Int64Type>().write_batch(&values[rows], None, None),
            Self::Text(values) => to.typed::<ByteArrayType>().write_batch(&texts(&values[rows]), None, None),
            Self::F32Lists(width, values) => {
                let (there, begins) = levels(width);
                let part = &values[rows.start * width..rows.end * width];
                to.typed::<FloatType>().write_batch(part, Some(&there), Some(&begins))
            }
            Self::TextLists(values) => {
                let (there, begins) = levels(1);
                to.typed::<ByteArrayType>().write_batch(&texts(&values[rows]), Some(&there), Some(&begins))
            }
        }
        .map(drop)
    }
}

type Group<'a, 'file> = SerializedRowGroupWriter<'a, &'file File>;

/// Writes the next column of a group.
fn put(
    group: &mut Group<'_, '_>,
    write: impl FnOnce(&mut SerializedColumnWriter<'_>) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    let Some(mut column) = group.next_column()? else { return Ok(()) };
    write(&mut column)?;
    column.close()
}

/// What the `datasets` package takes for an image.
fn image_schema(name: &str) -> Result<TypePtr, ParquetError> {
    let part = |name, text: Option<LogicalType>| {
        let builder = Type::primitive_type_builder(name, Physical::BYTE_ARRAY).with_repetition(Repetition::REQUIRED);
        builder.with_logical_type(text).build().map(Arc::new)
    };
    let fields = vec![part("bytes", None)?, part("path", Some(LogicalType::String))?];
    let group = Type::group_type_builder(name).with_repetition(Repetition::REQUIRED).with_fields(fields);
    Ok(Arc::new(group.build()?))
}

/// Writes a file; `notes` are keys with texts in its footer.
pub(super) fn write(path: &Path, columns: &[(&str, Values<'_>)], notes: &[(&str, String)]) -> Result<(), EpisodeError> {
    write_file(path, columns, notes).map_err(|error| EpisodeError::Io {
        action: "write",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn write_file(path: &Path, columns: &[(&str, Values<'_>)], notes: &[(&str, String)]) -> Result<(), ParquetError> {
    let fields = columns.iter().map(|(name, values)| values.schema(name)).collect::<Result<_, _>>()?;
    let schema = Type::group_type_builder("schema").with_fields(fields).build()?;
    let notes = notes.iter().map(|(key, text)| KeyValue::new(String::from(*key), text.clone())).collect();
    let properties =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_key_value_metadata(Some(notes)).build();
    let file = File::create(path)?;
    let mut writer = SerializedFileWriter::new(&file, Arc::new(schema), Arc::new(properties))?;
    let rows = columns.first().map_or(0, |(_, values)| values.rows());
    // Readers take a group of images into memory at once.
    let images = columns.iter().any(|(_, values)| matches!(values, Values::Png { .. }));
    let most = if images { IMAGES } else { ROWS };
    for start in (0..rows).step_by(most) {
        let mut group = writer.next_row_group()?;
        for (_, values) in columns {
            values.write(start..(start + most).min(rows), &mut group)?;
        }
        group.close()?;
    }
    writer.close()?;
    file.sync_all()?;
    Ok(())
}
