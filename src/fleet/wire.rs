//! The messages as bytes (`docs/fleet.md`). Whatever comes in is checked before it is used, and refused as a whole.

use sha2::{Digest, Sha256};

use crate::replay::{BadReason, Layout};
use crate::spaces::StepRecord;

/// Longest message in bytes; the link accepts no longer one.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Bytes of a parcel that travel in one message.
pub const CHUNK: usize = 1 << 20;
/// Longest parcel that is fetched.
pub const MAX_PARCEL: u64 = 256 << 20;
/// Most files in a parcel.
const MAX_FILES: u32 = 16;
/// Longest name of one.
const MAX_NAME: usize = 64;

/// A message that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Another kind of message, another version, or none at all.
    #[error("not a fleet message of this version ({what})")]
    Magic {
        /// What was expected.
        what: &'static str,
    },
    /// Its length is not what it says.
    #[error("{what}: {found} bytes where {wanted} belong: truncated or damaged")]
    Length {
        /// Which message.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What it should be.
        wanted: usize,
    },
    /// Its checksum does not fit.
    #[error("{what}: the checksum does not fit: damaged on the way")]
    Checksum {
        /// Which message.
        what: &'static str,
    },
    /// A record in it is damaged.
    #[error("record {index} of the batch: {reason}")]
    Record {
        /// Which, from 0.
        index: usize,
        /// Why.
        reason: BadReason,
    },
    /// Records that are not in the order in which a robot makes them.
    #[error("record {index} of the batch does not follow the one before")]
    Order {
        /// Which, from 0.
        index: usize,
    },
    /// A parcel with other content than its hash says.
    #[error("the policy that arrived has another hash than the one offered")]
    Hash,
    /// A file name that a parcel cannot hold.
    #[error("the policy that arrived holds a file with an impossible name")]
    Name,
}

/// How far the learner has got with a robot: the newest step it has. Steps of a robot are ordered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// The robot's own episode number.
    pub episode: u32,
    /// Step in it.
    pub step: u32,
}

impl From<&StepRecord> for Mark {
    fn from(record: &StepRecord) -> Self {
        Self { episode: record.episode, step: record.step }
    }
}

/// A policy that can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The learner's updates when it was made.
    pub generation: u32,
    /// Bytes of its parcel.
    pub size: u64,
    /// SHA-256 of its parcel.
    pub hash: [u8; 32],
}

/// What the learner says to a batch, and, without a mark, to all when there is a new policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How far it has got with this robot; none: nothing yet.
    pub mark: Option<Mark>,
    /// The newest policy.
    pub offer: Option<Offer>,
}

const ANSWER: [u8; 4] = *b"FTA\x01";
const HAS_MARK: u32 = 1;
const HAS_OFFER: u32 = 2;

impl Answer {
    const SIZE: usize = 68;

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let flags = self.mark.map_or(0, |_| HAS_MARK) | self.offer.map_or(0, |_| HAS_OFFER);
        let mark = self.mark.unwrap_or(Mark { episode: 0, step: 0 });
        let offer = self.offer.unwrap_or(Offer { generation: 0, size: 0, hash: [0; 32] });
        let mut out = Writer::new(ANSWER);
        out.u32(flags).u32(mark.episode).u32(mark.step).u32(offer.generation).u32(0);
        out.u64(offer.size).bytes(&offer.hash).sealed()
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are not exactly an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::sealed("answer", ANSWER, bytes, Self::SIZE)?;
        let (flags, mark) = (reader.u32(), Mark { episode: reader.u32(), step: reader.u32() });
        let generation = reader.u32();
        reader.u32();
        let offer = Offer { generation, size: reader.u64(), hash: reader.array() };
        Ok(Self { mark: (flags & HAS_MARK != 0).then_some(mark), offer: (flags & HAS_OFFER != 0).then_some(offer) })
    }
}

/// Some records of a robot, oldest first; with none it only asks how far the learner has got.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Which replay folder they come from.
    pub spool: [u8; 16],
    /// How far the learner has got, as the robot knows it: a learner that has not got so far takes none of them.
    pub after: Option<Mark>,
    /// The records, in the robot's own numbering.
    pub records: Vec<StepRecord>,
}

const BATCH: [u8; 4] = *b"FTB\x01";

impl Batch {
    const HEADER: usize = 56;

    /// Puts the header in front of `records`, which are records of the replay format.
    pub fn encode(spool: [u8; 16], after: Option<Mark>, layout: Layout, records: &[u8]) -> Vec<u8> {
        let mut out = Writer::new(BATCH);
        out.u32(layout.observation_dim as u32).u32(layout.action_dim as u32).u64(layout.schema_hash);
        let mark = after.unwrap_or(Mark { episode: 0, step: 0 });
        out.bytes(&spool).u32(after.map_or(0, |_| HAS_MARK)).u32(mark.episode).u32(mark.step);
        out.u32((records.len() / layout.record_size()) as u32);
        let mut message = out.sealed();
        message.extend_from_slice(records);
        message
    }

    /// Reads a batch of records of `layout`.
    ///
    /// # Errors
    /// When a byte of it is wrong; `Ok(None)` when the records are of another layout.
    pub fn decode(bytes: &[u8], layout: Layout) -> Result<Option<Self>, WireError> {
        let what = "batch";
        let header = bytes.get(..Self::HEADER);
        let header = header.ok_or(WireError::Length { what, found: bytes.len(), wanted: Self::HEADER })?;
        let mut reader = Reader::sealed(what, BATCH, header, Self::HEADER)?;
        let (observation_dim, action_dim) = (reader.u32() as usize, reader.u32() as usize);
        let found = Layout { observation_dim, action_dim, schema_hash: reader.u64() };
        let (spool, flags) = (reader.array(), reader.u32());
        let mark = Mark { episode: reader.u32(), step: reader.u32() };
        let (after, count) = ((flags & HAS_MARK != 0).then_some(mark), reader.u32() as usize);
        if found != layout {
            return Ok(None);
        }
        let (records, size) = (&bytes[Self::HEADER..], layout.record_size());
        if count.checked_mul(size) != Some(records.len()) {
            let wanted = Self::HEADER.saturating_add(count.saturating_mul(size));
            return Err(WireError::Length { what, found: bytes.len(), wanted });
        }
        let mut batch = Self { spool, after, records: vec![StepRecord::default(); count] };
        for (index, (record, bytes)) in batch.records.iter_mut().zip(records.chunks_exact(size)).enumerate() {
            layout.read(bytes, record).map_err(|reason| WireError::Record { index, reason })?;
        }
        match batch.records.windows(2).position(|pair| Mark::from(&pair[0]) >= Mark::from(&pair[1])) {
            Some(before) => Err(WireError::Order { index: before + 1 }),
            None => Ok(Some(batch)),
        }
    }
}

/// Asks for a piece of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRequest {
    /// Which parcel.
    pub hash: [u8; 32],
    /// From which byte on; a multiple of [`CHUNK`].
    pub offset: u64,
}

const CHUNK_REQUEST: [u8; 4] = *b"FTR\x01";

impl ChunkRequest {
    const SIZE: usize = 48;

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(CHUNK_REQUEST).u64(self.offset).bytes(&self.hash).sealed()
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are not exactly a request.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::sealed("chunk request", CHUNK_REQUEST, bytes, Self::SIZE)?;
        Ok(Self { offset: reader.u64(), hash: reader.array() })
    }

    /// The piece of a parcel that is asked for; empty beyond its end.
    pub fn of<'a>(&self, parcel: &'a [u8]) -> &'a [u8] {
        let begin = (self.offset as usize).min(parcel.len());
        &parcel[begin..parcel.len().min(begin + CHUNK)]
    }
}

/// The files of a policy bundle on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Name and content of each.
    pub files: Vec<(String, Vec<u8>)>,
}

const PARCEL: [u8; 4] = *b"FTP\x01";

impl Parcel {
    /// As bytes, and as the offer of generation `generation`.
    pub fn encode(&self, generation: u32) -> (Vec<u8>, Offer) {
        let mut out = Writer::new(PARCEL);
        out.u32(self.files.len() as u32);
        for (name, content) in &self.files {
            out.u32(name.len() as u32).bytes(name.as_bytes()).u64(content.len() as u64).bytes(content);
        }
        let bytes = out.sealed();
        let offer = Offer { generation, size: bytes.len() as u64, hash: Sha256::digest(&bytes).into() };
        (bytes, offer)
    }

    /// What arrived for an offer.
    ///
    /// # Errors
    /// When it is not what was offered, or no parcel.
    pub fn decode(bytes: &[u8], offer: &Offer) -> Result<Self, WireError> {
        if bytes.len() as u64 != offer.size || Sha256::digest(bytes).as_slice() != offer.hash {
            return Err(WireError::Hash);
        }
        Self::parse(bytes)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let what = "policy";
        let mut reader = Reader::sealed(what, PARCEL, bytes, bytes.len())?;
        let short = |wanted| WireError::Length { what, found: bytes.len(), wanted };
        let count = reader.try_u32().filter(|count| *count <= MAX_FILES).ok_or(short(0))?;
        let mut files = Vec::new();
        for _ in 0..count {
            let length = reader.try_u32().ok_or(short(0))? as usize;
            let name = reader.take(length).filter(|_| length <= MAX_NAME).ok_or(WireError::Name)?;
            let name = std::str::from_utf8(name).ok().filter(|name| is_plain(name)).ok_or(WireError::Name)?;
            let size = reader.take(8).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)).ok_or(short(0))?;
            let content = usize::try_from(size).ok().and_then(|size| reader.take(size)).ok_or(short(0))?;
            files.push((name.to_owned(), content.to_vec()));
        }
        if reader.rest.is_empty() { Ok(Self { files }) } else { Err(short(bytes.len() - reader.rest.len())) }
    }
}

/// Whether a name is that of a file in its own folder, and of a robot in a key.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

/// Numbers into bytes; the checksum comes last.
struct Writer(Vec<u8>);

impl Writer {
    fn new(magic: [u8; 4]) -> Self {
        Self(magic.to_vec())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn sealed(&mut self) -> Vec<u8> {
        let checksum = crc32c::crc32c(&self.0);
        std::mem::take(&mut self.bytes(&checksum.to_le_bytes()).0)
    }
}

/// Bytes into numbers.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Of a message with this length whose magic and checksum fit; what is read next lies between the two.
    fn sealed(what: &'static str, magic: [u8; 4], bytes: &'a [u8], wanted: usize) -> Result<Self, WireError> {
        if bytes.len() != wanted || wanted < magic.len() + 4 {
            return Err(WireError::Length { what, found: bytes.len(), wanted });
        }
        let (body, checksum) = bytes.split_at(wanted - 4);
        let rest = body.strip_prefix(&magic).ok_or(WireError::Magic { what })?;
        if crc32c::crc32c(body).to_le_bytes() != *checksum {
            return Err(WireError::Checksum { what });
        }
        Ok(Self { rest })
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// Of a message whose length was checked; zeros beyond its end.
    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn try_u32(&mut self) -> Option<u32> {
        (self.rest.len() >= 4).then(|| self.u32())
    }
}
