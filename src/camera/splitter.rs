//! Bytes in, images out: finds the newest whole image in a stream. Touches no file and no clock.

use std::ops::Range;

use firmware_bridge::{IMAGE_HEADER, IMAGE_MAGIC, ImageError, ImageFormat, ImageHeader};

use super::image::Image;
use super::{ImageFault, Numbers};
use crate::config::{CameraConfig, ImageStream};

/// Room that is made for a read.
const CHUNK: usize = 1 << 16;
/// Longest JPEG without a header that tells its length.
const LONGEST_JPEG: usize = 1 << 24;
const SOI: [u8; 2] = [0xff, 0xd8];

#[derive(Clone, Copy, Debug)]
enum Form {
    Headers,
    Jpegs,
    Raw { format: ImageFormat, size: (u16, u16) },
}

/// An image in the buffer.
#[derive(Debug)]
struct Found {
    format: ImageFormat,
    size: Option<(u16, u16)>,
    capture_us: Option<u64>,
    sequence: u32,
    at: Range<usize>,
}

/// The newest image, and what came before it since the last one that was taken.
pub(super) struct Newest<'a> {
    pub image: Image<'a>,
    /// What its header says.
    pub capture_us: Option<u64>,
    pub sequence: u32,
    pub missing: u32,
    pub overtaken: u32,
}

/// Takes a stream apart. Memory grows with what has come, not with what a header promises.
#[derive(Debug)]
pub(super) struct Splitter {
    form: Form,
    bytes: Vec<u8>,
    /// End of what was read.
    filled: usize,
    /// Start of the image under way.
    parsed: usize,
    walk: JpegWalk,
    newest: Option<Found>,
    /// Images without numbers so far.
    counted: u32,
    numbers: Numbers,
    missing: u32,
    overtaken: u32,
    fault: Option<ImageFault>,
}

impl Splitter {
    pub(super) fn new(config: &CameraConfig) -> Self {
        let [width, height] = config.source_size;
        let raw = |format| Form::Raw { format, size: (width, height) };
        let form = match config.format {
            ImageStream::Headers => Form::Headers,
            ImageStream::Mjpeg => Form::Jpegs,
            ImageStream::Rgb => raw(ImageFormat::Rgb8),
            ImageStream::Yuyv => raw(ImageFormat::Yuyv),
        };
        Self {
            form,
            bytes: Vec::new(),
            filled: 0,
            parsed: 0,
            walk: JpegWalk::default(),
            newest: None,
            counted: 0,
            numbers: Numbers::default(),
            missing: 0,
            overtaken: 0,
            fault: None,
        }
    }

    /// Where the next bytes go; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.filled < CHUNK {
            let keep = self.newest.as_ref().map_or(self.parsed, |found| found.at.start);
            self.bytes.copy_within(keep..self.filled, 0);
            self.filled -= keep;
            self.parsed -= keep;
            if let Some(found) = &mut self.newest {
                found.at = found.at.start - keep..found.at.end - keep;
            }
            if self.bytes.len() - self.filled < CHUNK {
                self.bytes.resize(self.filled + 4 * CHUNK, 0);
            }
        }
        &mut self.bytes[self.filled..]
    }

    /// `count` bytes were written to [`Splitter::space`].
    pub(super) fn filled(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.bytes.len());
        loop {
            let step = match self.form {
                Form::Headers => self.behind_header(),
                Form::Jpegs => self.jpeg(),
                Form::Raw { format, size } => self.raw(format, size),
            };
            match step {
                Step::More => return,
                Step::Skip(count, fault) => {
                    self.parsed += count.min(self.filled - self.parsed);
                    self.fault = fault.or(self.fault.take());
                }
                Step::Image(found) => {
                    self.parsed = found.at.end;
                    self.missing += self.numbers.missing_before(found.sequence);
                    self.overtaken += u32::from(self.newest.replace(found).is_some());
                }
            }
        }
    }

    /// What came in place of an image since the last call.
    pub(super) fn fault(&mut self) -> Option<ImageFault> {
        self.fault.take()
    }

    /// The newest image that was not taken yet.
    pub(super) fn take(&mut self) -> Option<Newest<'_>> {
        let found = self.newest.take()?;
        let (missing, overtaken) = (std::mem::take(&mut self.missing), std::mem::take(&mut self.overtaken));
        let image = Image { format: found.format, size: found.size, bytes: &self.bytes[found.at] };
        Some(Newest { image, capture_us: found.capture_us, sequence: found.sequence, missing, overtaken })
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.parsed..self.filled]
    }

    fn behind_header(&mut self) -> Step {
        let Some(head) = self.rest().first_chunk::<IMAGE_HEADER>() else { return Step::More };
        let header = match ImageHeader::decode(head) {
            Ok(header) => header,
            Err(error) => return self.skip_to(&IMAGE_MAGIC, Some(ImageFault::Stream(error))),
        };
        let start = self.parsed + IMAGE_HEADER;
        let at = start..start + header.payload_len as usize;
        if at.end > self.filled {
            return Step::More;
        }
        Step::Image(Found {
            format: header.format,
            size: Some((header.width, header.height)),
            capture_us: Some(header.capture_us),
            sequence: header.sequence,
            at,
        })
    }

    fn jpeg(&mut self) -> Step {
        let rest = &self.bytes[self.parsed..self.filled];
        if rest.len() < SOI.len() {
            return Step::More;
        }
        if !rest.starts_with(&SOI) {
            // Zeros between two images are padding.
            let noise = rest[0] != 0;
            return self.skip_to(&SOI, noise.then_some(ImageFault::Stream(ImageError::Magic)));
        }
        let ended = self.walk.go_on(rest);
        let at = self.parsed..self.parsed + self.walk.at;
        match ended {
            Walked::More if rest.len() < LONGEST_JPEG => Step::More,
            Walked::More | Walked::Broken => {
                self.walk = JpegWalk::default();
                self.skip_to(&SOI, Some(ImageFault::Truncated))
            }
            Walked::Whole => {
                self.walk = JpegWalk::default();
                self.counted = self.counted.wrapping_add(1);
                Step::Image(Found {
                    format: ImageFormat::Jpeg,
                    size: None,
                    capture_us: None,
                    sequence: self.counted,
                    at,
                })
            }
        }
    }

    fn raw(&mut self, format: ImageFormat, size: (u16, u16)) -> Step {
        let at = self.parsed..self.parsed + format.payload(size.0, size.1) as usize;
        if at.end > self.filled || at.is_empty() {
            return Step::More;
        }
        self.counted = self.counted.wrapping_add(1);
        Step::Image(Found { format, size: Some(size), capture_us: None, sequence: self.counted, at })
    }

    /// To the next place where `start` could begin.
    fn skip_to(&self, start: &[u8], fault: Option<ImageFault>) -> Step {
        let rest = self.rest();
        let next = rest.windows(start.len()).skip(1).position(|window| window == start);
        Step::Skip(next.map_or_else(|| (rest.len() + 1).saturating_sub(start.len()).max(1), |at| at + 1), fault)
    }
}

enum Step {
    More,
    Skip(usize, Option<ImageFault>),
    Image(Found),
}

#[derive(PartialEq)]
enum Walked {
    More,
    Broken,
    Whole,
}

/// How far the end of a JPEG was looked for: from marker to marker, so that bytes in a segment are none.
#[derive(Debug, Default)]
struct JpegWalk {
    at: usize,
    in_scan: bool,
}

impl JpegWalk {
    /// `bytes` begin with the image; once it is whole, `at` is its length.
    fn go_on(&mut self, bytes: &[u8]) -> Walked {
        self.at = self.at.max(SOI.len());
        loop {
            if self.in_scan {
                let Some(found) = bytes.get(self.at..).and_then(|rest| rest.iter().position(|b| *b == 0xff)) else {
                    self.at = self.at.max(bytes.len());
                    return Walked::More;
                };
                self.at += found;
            }
            let Some([first, marker]) = bytes.get(self.at..).and_then(|rest| rest.first_chunk()) else {
                return Walked::More;
            };
            match (*first, *marker) {
                (0xff, 0xff) => self.at += 1,
                (0xff, 0x00 | 0xd0..=0xd7) if self.in_scan => self.at += 2,
                (0xff, 0xd9) => {
                    self.at += 2;
                    return Walked::Whole;
                }
                (0xff, marker) if marker > 0x01 && !(0xd0..=0xd8).contains(&marker) => {
                    let Some(length) = bytes.get(self.at + 2..).and_then(|rest| rest.first_chunk()) else {
                        return Walked::More;
                    };
                    self.at += 2 + usize::from(u16::from_be_bytes(*length)).max(2);
                    self.in_scan = marker == 0xda;
                }
                _ => return Walked::Broken,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn splitter(format: ImageStream) -> Splitter {
        Splitter::new(&CameraConfig { format, source_size: [4, 2], ..CameraConfig::default() })
    }

    fn push(splitter: &mut Splitter, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = splitter.space();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            splitter.filled(count);
            bytes = &bytes[count..];
        }
    }

    fn image(sequence: u32) -> Vec<u8> {
        let header = ImageHeader {
            format: ImageFormat::Rgb8,
            width: 4,
            height: 2,
            payload_len: 24,
            sequence,
            capture_us: 1000 + u64::from(sequence),
        };
        [header.encode().unwrap().to_vec(), vec![sequence as u8; 24]].concat()
    }

    /// SOI, an application segment that holds markers, a scan with stuffing and a restart, EOI.
    fn jpeg(filling: u8) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, 8, 0xff, 0xd9, 0xff, 0xd8, 1, 2, 0xff, 0xda, 0, 4, 0, 0];
        bytes.extend([filling, 0xff, 0x00, filling, 0xff, 0xd3, filling, 0xff, 0xff, 0xd9]);
        bytes
    }

    #[test]
    fn the_newest_of_a_stream_counts_and_the_others_are_overtaken() {
        let mut s = splitter(ImageStream::Headers);
        push(&mut s, &[image(7), image(8), image(12), image(13)[..40].to_vec()].concat());
        let newest = s.take().unwrap();
        assert_eq!((newest.sequence, newest.missing, newest.overtaken), (12, 3, 2));
        assert_eq!((newest.capture_us, newest.image.bytes), (Some(1012), &[12; 24][..]));
        assert!(s.take().is_none());
        push(&mut s, &image(13)[40..]);
        assert_eq!(s.take().map(|n| (n.sequence, n.missing, n.overtaken)), Some((13, 0, 0)));
        assert!(s.fault().is_none());
    }

    #[test]
    fn noise_is_named_and_the_next_image_found() {
        let mut s = splitter(ImageStream::Headers);
        push(&mut s, &[b"GET / HTTP/1.1 FTIM FT".to_vec(), image(1)].concat());
        assert_eq!(s.take().map(|n| n.sequence), Some(1));
        assert!(matches!(s.fault(), Some(ImageFault::Stream(_))));
        let mut s = splitter(ImageStream::Mjpeg);
        push(&mut s, &[b"--boundary\r\n".to_vec(), jpeg(5), vec![0; 30], jpeg(6)].concat());
        assert_eq!(s.take().map(|n| (n.image.bytes.to_vec(), n.overtaken)), Some((jpeg(6), 1)));
        assert!(matches!(s.fault(), Some(ImageFault::Stream(_))));
        push(&mut s, &[vec![0; 9], jpeg(7)].concat());
        assert!(s.take().is_some() && s.fault().is_none(), "padding is no fault");
    }

    #[test]
    fn a_jpeg_that_was_cut_off_is_named_and_costs_no_other() {
        let mut s = splitter(ImageStream::Mjpeg);
        // A cut within the head of a segment may take up to 64 KiB of what follows with it.
        for cut in 19..jpeg(1).len() - 2 {
            push(&mut s, &[jpeg(1)[..cut].to_vec(), jpeg(2), jpeg(3), jpeg(4)].concat());
            assert_eq!(s.take().map(|n| n.image.bytes.to_vec()), Some(jpeg(4)), "cut at {cut}");
        }
        assert!(s.fault().is_some());
    }

    proptest! {
        /// However a stream is cut into reads, every image comes, in order, and nothing else.
        #[test]
        fn reads_of_any_length(lengths in proptest::collection::vec(1usize..90, 1..60), kind in 0..3) {
            let (form, make): (_, fn(u32) -> Vec<u8>) = match kind {
                0 => (ImageStream::Headers, image),
                1 => (ImageStream::Mjpeg, |n| jpeg(n as u8)),
                _ => (ImageStream::Rgb, |n| vec![n as u8; 24]),
            };
            let mut s = splitter(form);
            let stream: Vec<u8> = (1..=40).flat_map(make).collect();
            let (mut rest, mut seen) = (&stream[..], 0);
            for length in lengths {
                let (read, more) = rest.split_at(length.min(rest.len()));
                push(&mut s, read);
                rest = more;
                if let Some(newest) = s.take() {
                    seen += 1 + newest.overtaken;
                    prop_assert_eq!(newest.sequence, seen);
                    let wanted = make(seen);
                    prop_assert!(wanted.ends_with(newest.image.bytes));
                }
            }
            prop_assert_eq!(seen as usize, (stream.len() - rest.len()) / make(1).len());
            prop_assert!(s.fault().is_none());
        }

        /// Any bytes: no panic, and memory in proportion to what came.
        #[test]
        fn any_bytes(chunks in proptest::collection::vec(proptest::collection::vec(
                         prop_oneof![Just(0xffu8), Just(0xd8), Just(0xd9), any::<u8>()], 0..300), 0..20), kind in 0..3) {
            let mut s = splitter([ImageStream::Headers, ImageStream::Mjpeg, ImageStream::Yuyv][kind as usize]);
            for chunk in &chunks {
                push(&mut s, &[&image(3)[..chunk.len() % 50], chunk].concat());
                let _ = (s.take().is_some(), s.fault());
            }
            prop_assert!(s.bytes.len() <= 8 * CHUNK);
        }
    }
}
