//! The two header slots of a record file (`docs/replay-format.md`).

use super::error::{HeaderProblem, ReplayError};
use super::layout::{Layout, RECORDS_AT, put, u32_at, u64_at};

/// First bytes: a non-ASCII byte, a name, and line ends that a text-mode copy would damage.
pub(crate) const MAGIC: [u8; 8] = *b"\x89FTR\r\n\x1a\n";
pub(crate) const MAJOR: u16 = 1;
pub(crate) const MINOR: u16 = 0;
pub(crate) const ENDIAN: u32 = 0x0102_0304;
const SLOT: usize = RECORDS_AT / 2;
const SIZE: usize = 128;
const CHECKSUM_AT: usize = SIZE - 4;
const F32: u8 = 1;
/// Below three records a ring can never hold a transition that is not about to be overwritten.
pub(crate) const MIN_CAPACITY: u64 = 3;
/// Camera streams that this version can read.
const MAX_CAMERAS: u16 = 1;
/// Slots are numbered in 32 bits.
pub(crate) const MAX_CAPACITY: u64 = u32::MAX as u64;

/// What a header slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) minor: u16,
    pub(crate) layout: Layout,
    /// Camera streams whose frames lie in the frame file, 0 or 1.
    pub(crate) cameras: u16,
    pub(crate) capacity: u64,
    pub(crate) generation: u64,
    /// Last sequence number that a sync covered, a hint.
    pub(crate) watermark: u64,
    /// The last writer closed the file.
    pub(crate) clean: bool,
}

impl Header {
    /// A new buffer's header.
    pub(crate) fn new(layout: Layout, cameras: u16, capacity: u64) -> Result<Self, ReplayError> {
        if !(MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity) {
            return Err(ReplayError::Capacity { capacity, least: MIN_CAPACITY, most: MAX_CAPACITY });
        }
        let layout = layout.check()?;
        Ok(Self { minor: MINOR, layout, cameras, capacity, generation: 1, watermark: 0, clean: true })
    }

    /// Bytes of a record.
    pub(crate) fn record_size(&self) -> usize {
        self.layout.record_size_with(self.cameras)
    }

    /// Length of the whole file. `None` when it does not fit this machine's address range.
    pub(crate) fn file_len(&self) -> Option<u64> {
        let records = self.capacity.checked_mul(self.record_size() as u64)?;
        records.checked_add(RECORDS_AT as u64).filter(|n| isize::try_from(*n).is_ok())
    }

    /// Slot of this header: A for even generations, B for odd ones.
    fn offset(&self) -> usize {
        (self.generation % 2) as usize * SLOT
    }

    /// Writes the header into its slot of `file`.
    pub(crate) fn write(&self, file: &mut [u8]) {
        let mut bytes = [0; SIZE];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &MAJOR.to_le_bytes());
        put(&mut bytes, 10, &self.minor.to_le_bytes());
        put(&mut bytes, 12, &ENDIAN.to_le_bytes());
        put(&mut bytes, 16, &(self.record_size() as u32).to_le_bytes());
        put(&mut bytes, 20, &(self.layout.observation_dim as u32).to_le_bytes());
        put(&mut bytes, 24, &(self.layout.action_dim as u32).to_le_bytes());
        put(&mut bytes, 28, &[F32, F32]);
        put(&mut bytes, 30, &self.cameras.to_le_bytes());
        put(&mut bytes, 32, &self.capacity.to_le_bytes());
        put(&mut bytes, 40, &self.layout.schema_hash.to_le_bytes());
        put(&mut bytes, 48, &self.generation.to_le_bytes());
        put(&mut bytes, 56, &self.watermark.to_le_bytes());
        put(&mut bytes, 64, &u32::from(self.clean).to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        put(file, self.offset(), &bytes);
    }

    /// The newer usable header of `file`, and how many of the two slots are usable.
    pub(crate) fn read(file: &[u8]) -> Result<(Self, usize), HeaderProblem> {
        if file.len() < RECORDS_AT {
            return Err(HeaderProblem::Short);
        }
        match (Self::read_slot(&file[..SIZE]), Self::read_slot(&file[SLOT..SLOT + SIZE])) {
            (Ok(a), Ok(b)) => Ok((if b.generation > a.generation { b } else { a }, 2)),
            (Ok(header), Err(_)) | (Err(_), Ok(header)) => Ok((header, 1)),
            (Err(problem), Err(_)) => Err(problem),
        }
    }

    fn read_slot(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..8] != MAGIC {
            return Err(HeaderProblem::Magic);
        }
        if u32_at(bytes, 12) != ENDIAN {
            return Err(HeaderProblem::Endian);
        }
        if u16_at(8) != MAJOR {
            return Err(HeaderProblem::Major(u16_at(8)));
        }
        if u32_at(bytes, CHECKSUM_AT) != crc32c::crc32c(&bytes[..CHECKSUM_AT]) {
            return Err(HeaderProblem::Checksum);
        }
        if bytes[28..30] != [F32, F32] || u16_at(30) > MAX_CAMERAS {
            return Err(HeaderProblem::Unsupported);
        }
        let layout = Layout {
            observation_dim: u32_at(bytes, 20) as usize,
            action_dim: u32_at(bytes, 24) as usize,
            schema_hash: u64_at(bytes, 40),
        };
        let header = Self {
            minor: u16_at(10),
            layout: layout.check().map_err(|_| HeaderProblem::Geometry)?,
            cameras: u16_at(30),
            capacity: u64_at(bytes, 32),
            generation: u64_at(bytes, 48),
            watermark: u64_at(bytes, 56),
            clean: u32_at(bytes, 64) == 1,
        };
        let capacity_fits = (MIN_CAPACITY..=MAX_CAPACITY).contains(&header.capacity);
        if u32_at(bytes, 16) as usize != header.record_size() || !capacity_fits || header.file_len().is_none() {
            return Err(HeaderProblem::Geometry);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header::new(Layout { observation_dim: 3, action_dim: 1, schema_hash: 77 }, 0, 10).unwrap()
    }

    #[test]
    fn the_newer_slot_wins_and_a_torn_one_is_survived() {
        let mut file = vec![0; RECORDS_AT];
        let mut header = header();
        header.write(&mut file);
        header.generation += 1;
        header.watermark = 5;
        header.write(&mut file);
        assert_eq!(Header::read(&file), Ok((header.clone(), 2)));
        file[56] ^= 1;
        let (older, usable) = Header::read(&file).unwrap();
        assert_eq!((older.generation, older.watermark, usable), (1, 0, 1));
        file[SLOT + 3] ^= 1;
        assert_eq!(Header::read(&file), Err(HeaderProblem::Checksum));
    }

    #[test]
    fn foreign_files_are_named() {
        let mut file = vec![0; RECORDS_AT];
        assert_eq!(Header::read(&file), Err(HeaderProblem::Magic));
        assert_eq!(Header::read(&file[1..]), Err(HeaderProblem::Short));
        let mut header = header();
        header.generation = 2;
        header.write(&mut file);
        let good = file.clone();
        file[12..16].reverse();
        assert_eq!(Header::read(&file), Err(HeaderProblem::Endian));
        file.clone_from(&good);
        file[8] = 9;
        assert_eq!(Header::read(&file), Err(HeaderProblem::Major(9)));
    }

    #[test]
    fn capacities_that_no_ring_can_have_are_refused() {
        for capacity in [0, 2, MAX_CAPACITY + 1, u64::MAX] {
            assert!(Header::new(header().layout, 0, capacity).is_err());
        }
    }
}
