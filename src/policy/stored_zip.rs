//! Zip archives whose entries are stored as they are, which is how PyTorch and Stable-Baselines3 write them.
//!
//! Entries are slices of the archive: nothing is copied or unpacked, so that no archive can be larger inside than
//! outside. Every entry is checked against its CRC-32.

use std::collections::BTreeMap;

/// Most entries of one archive.
const MAX_ENTRIES: usize = 1 << 14;
/// Length of the record at the end without its comment.
const END: usize = 22;
/// Length of an entry of the directory without its texts.
const DIRECTORY: usize = 46;
/// Length of the head in front of an entry's bytes without its texts.
const LOCAL: usize = 30;

/// Why bytes are not such an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZipError {
    /// No directory, or one that does not fit the file.
    #[error("not a zip archive, or a damaged or truncated one: {what}")]
    Damaged {
        /// What was found.
        what: &'static str,
    },
    /// An entry that is compressed or encrypted.
    #[error("entry `{name}` of the zip archive is compressed or encrypted; torch.save stores entries as they are")]
    Packed {
        /// Its name.
        name: String,
    },
    /// An entry with other bytes than were written.
    #[error("entry `{name}` of the zip archive is damaged: its checksum is wrong")]
    Checksum {
        /// Its name.
        name: String,
    },
    /// More entries than any checkpoint needs.
    #[error("the zip archive has more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// The entries of an archive by name.
///
/// # Errors
/// When the bytes are no such archive.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<&str, &[u8]>, ZipError> {
    let end = end_record(bytes)?;
    let (count, length, start) = (half(end, 10)?, word(end, 12)?, word(end, 16)?);
    if count > MAX_ENTRIES {
        return Err(ZipError::TooMany);
    }
    let directory = slice(bytes, start, length)?;
    let mut entries = BTreeMap::new();
    let (mut at, mut total) = (0, 0_usize);
    for _ in 0..count {
        let head = slice(directory, at, DIRECTORY)?;
        if !head.starts_with(b"PK\x01\x02") {
            return Err(damaged("an entry of the directory is none"));
        }
        let texts = [half(head, 28)?, half(head, 30)?, half(head, 32)?];
        let name = slice(directory, at + DIRECTORY, texts[0])?;
        let name = std::str::from_utf8(name).map_err(|_| damaged("a name that is not UTF-8"))?;
        at += DIRECTORY + texts.iter().sum::<usize>();
        let size = word(head, 24)?;
        if half(head, 8)? & 1 != 0 || half(head, 10)? != 0 || word(head, 20)? != size {
            return Err(ZipError::Packed { name: short(name) });
        }
        // Entries that share bytes would make the checksums take any time.
        total = total.saturating_add(size);
        if total > bytes.len() {
            return Err(damaged("its entries overlap"));
        }
        let data = content(bytes, word(head, 42)?, size)?;
        if crc32fast::hash(data) as usize != word(head, 16)? {
            return Err(ZipError::Checksum { name: short(name) });
        }
        if entries.insert(name, data).is_some() {
            return Err(damaged("two entries have one name"));
        }
    }
    Ok(entries)
}

/// The last record of the file, found from behind its comment.
fn end_record(bytes: &[u8]) -> Result<&[u8], ZipError> {
    let last = bytes.len().checked_sub(END).ok_or_else(|| damaged("too short"))?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let fits = |at: &usize| bytes[*at..].starts_with(b"PK\x05\x06") && half(bytes, at + 20) == Ok(last - at);
    (first..=last).rev().find(fits).map(|at| &bytes[at..]).ok_or_else(|| damaged("no directory at its end"))
}

fn content(bytes: &[u8], at: usize, size: usize) -> Result<&[u8], ZipError> {
    let head = slice(bytes, at, LOCAL)?;
    if !head.starts_with(b"PK\x03\x04") {
        return Err(damaged("an entry is not where the directory says"));
    }
    slice(bytes, at + LOCAL + half(head, 26)? + half(head, 28)?, size)
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], ZipError> {
    bytes.get(at..).and_then(|b| b.get(..length)).ok_or_else(|| damaged("it points outside of itself"))
}

fn half(bytes: &[u8], at: usize) -> Result<usize, ZipError> {
    Ok(slice(bytes, at, 2)?.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
}

fn word(bytes: &[u8], at: usize) -> Result<usize, ZipError> {
    Ok(slice(bytes, at, 4)?.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
}

fn short(name: &str) -> String {
    name.chars().take(60).collect()
}

fn damaged(what: &'static str) -> ZipError {
    ZipError::Damaged { what }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An archive of these entries.
    pub(in crate::policy) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in entries {
            let offset = bytes.len() as u32;
            let sizes = [crc32fast::hash(data), data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
            let name_length = (name.len() as u16).to_le_bytes();
            bytes.extend([b"PK\x03\x04", &[0; 10][..], &sizes, &name_length, &[0; 2], name.as_bytes(), data].concat());
            let fixed = [b"PK\x01\x02", &[0; 12][..], &sizes, &name_length, &[0; 12], &offset.to_le_bytes()].concat();
            directory.extend([&fixed[..], name.as_bytes()].concat());
        }
        let count = (entries.len() as u16).to_le_bytes();
        let (start, length) = ((bytes.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
        [&bytes[..], &directory, b"PK\x05\x06", &[0; 4], &count, &count, &length, &start, &[0; 2]].concat()
    }

    #[test]
    fn entries_are_found_and_every_changed_byte_of_them_is_noticed() {
        let good = archive(&[("a/x", b"hello"), ("a/y", b"")]);
        let found = entries(&good).unwrap();
        assert_eq!((found["a/x"], found["a/y"]), (&b"hello"[..], &b""[..]));
        assert!(entries(&[&good[..], b"behind"].concat()).is_err());
        for len in 0..good.len() {
            assert!(entries(&good[..len]).is_err(), "accepted {len} bytes");
        }
        let at = good.windows(5).position(|w| w == b"hello").unwrap();
        for changed in at..at + 5 {
            let mut bytes = good.clone();
            bytes[changed] ^= 1;
            assert!(matches!(entries(&bytes), Err(ZipError::Checksum { name }) if name == "a/x"));
        }
    }

    #[test]
    fn compressed_doubled_and_overlapping_entries_are_refused() {
        let good = archive(&[("x", b"hello")]);
        let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        let mut deflated = good.clone();
        deflated[directory + 10] = 8;
        assert!(matches!(entries(&deflated), Err(ZipError::Packed { .. })));
        assert!(entries(&archive(&[("x", b"1"), ("x", b"2")])).is_err());
        let one = &good[directory..=directory + DIRECTORY];
        let count = 200_u16.to_le_bytes();
        let length = ((one.len() * 200) as u32).to_le_bytes();
        let start = (directory as u32).to_le_bytes();
        let names: Vec<u8> = (0..200_u8).flat_map(|i| [&one[..DIRECTORY], &[i % 100]].concat()).collect();
        let end = [b"PK\x05\x06", &[0; 4][..], &count, &count, &length, &start, &[0; 2]].concat();
        assert!(entries(&[&good[..directory], &names, &end].concat()).is_err());
    }
}
