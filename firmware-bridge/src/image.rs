//! Camera images on a byte stream: a header of 32 bytes in front of every image.

use core::fmt;

use crate::bytes::{Reader, Writer};
use crate::crc32c;

/// Bytes of an image header.
pub const IMAGE_HEADER: usize = 32;
/// The first bytes of every image header.
pub const IMAGE_MAGIC: [u8; 4] = *b"FTIM";
/// Most pixels in a row, and most rows.
pub const MAX_IMAGE_SIDE: u16 = 4096;
const IMAGE_VERSION: u8 = 1;
const CHECKED: usize = IMAGE_HEADER - 4;
/// What a JPEG may have in front of its pixels: tables, comments, a thumbnail.
const JPEG_EXTRA: u32 = 1 << 16;

/// How the pixels of an image are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ImageFormat {
    /// Three bytes a pixel: red, green, blue. Rows from top to bottom, without gaps.
    Rgb8 = 0,
    /// Two pixels in four bytes: Y0 U Y1 V; BT.601, limited range. The width is even.
    Yuyv = 1,
    /// One baseline or progressive JPEG.
    Jpeg = 2,
}

/// What stands in front of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// How the pixels are stored.
    pub format: ImageFormat,
    /// Pixels in a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
    /// Bytes of the image behind the header.
    pub payload_len: u32,
    /// Counted up by the camera, one for each image it took; wraps.
    pub sequence: u32,
    /// When the image was taken, microseconds: `CLOCK_MONOTONIC`, or the simulated time of the STATE it belongs to.
    pub capture_us: u64,
}

/// Why bytes are not an image header, or the header contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageError {
    /// It does not begin with the magic bytes.
    Magic,
    /// The checksum is wrong.
    Checksum,
    /// Another version.
    Version {
        /// The version found.
        got: u8,
    },
    /// An unknown format, or reserved bytes that are not zero.
    Format {
        /// The format found.
        got: u8,
    },
    /// No image has this size.
    Size {
        /// Pixels in a row.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// The payload does not have the length of such an image.
    Payload {
        /// Bytes it has by the header.
        len: u32,
    },
}

impl ImageFormat {
    const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Rgb8,
            1 => Self::Yuyv,
            2 => Self::Jpeg,
            _ => return None,
        })
    }

    /// Bytes of an image of this size: exactly, or of a JPEG at most.
    pub const fn payload(self, width: u16, height: u16) -> u32 {
        // Both sides fit 16 bits, so the pixels fit 32; sizes beyond the largest are refused before this counts.
        let pixels = (width as u32).saturating_mul(height as u32);
        match self {
            Self::Rgb8 => pixels.saturating_mul(3),
            Self::Yuyv => pixels.saturating_mul(2),
            Self::Jpeg => pixels.saturating_mul(3).saturating_add(JPEG_EXTRA),
        }
    }
}

impl ImageHeader {
    /// The header as bytes.
    ///
    /// # Errors
    /// When no image has this size, or an image of this size and format has another length.
    pub fn encode(&self) -> Result<[u8; IMAGE_HEADER], ImageError> {
        self.check()?;
        let mut out = [0; IMAGE_HEADER];
        // Every field fits: the array has the length of the layout.
        let _ = self.write(&mut Writer::new(&mut out));
        let (body, checksum) = out.split_at_mut(CHECKED);
        checksum.copy_from_slice(&crc32c(body).to_le_bytes());
        Ok(out)
    }

    fn write(&self, out: &mut Writer<'_>) -> Option<()> {
        out.put(IMAGE_MAGIC)?;
        out.u8(IMAGE_VERSION)?;
        out.u8(self.format as u8)?;
        out.u16(self.width)?;
        out.u16(self.height)?;
        out.u16(0)?;
        out.u32(self.payload_len)?;
        out.u32(self.sequence)?;
        out.u64(self.capture_us)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When it is anything that [`ImageHeader::encode`] does not make.
    pub fn decode(bytes: &[u8; IMAGE_HEADER]) -> Result<Self, ImageError> {
        let (body, checksum) = bytes.split_at(CHECKED);
        if !body.starts_with(&IMAGE_MAGIC) {
            return Err(ImageError::Magic);
        }
        if crc32c(body).to_le_bytes() != checksum {
            return Err(ImageError::Checksum);
        }
        let header = Self::read(&mut Reader::new(body)).ok_or(ImageError::Magic)??;
        header.check()?;
        Ok(header)
    }

    fn read(input: &mut Reader<'_>) -> Option<Result<Self, ImageError>> {
        input.u32()?;
        let got = input.u8()?;
        if got != IMAGE_VERSION {
            return Some(Err(ImageError::Version { got }));
        }
        let got = input.u8()?;
        let (width, height) = (input.u16()?, input.u16()?);
        let (Some(format), Some(())) = (ImageFormat::from_wire(got), input.reserved()) else {
            return Some(Err(ImageError::Format { got }));
        };
        let (payload_len, sequence, capture_us) = (input.u32()?, input.u32()?, input.u64()?);
        Some(Ok(Self { format, width, height, payload_len, sequence, capture_us }))
    }

    fn check(&self) -> Result<(), ImageError> {
        let Self { format, width, height, payload_len: len, .. } = *self;
        let side = 1..=MAX_IMAGE_SIDE;
        let halves = format == ImageFormat::Yuyv && width % 2 == 1;
        if !side.contains(&width) || !side.contains(&height) || halves {
            return Err(ImageError::Size { width, height });
        }
        let most = format.payload(width, height);
        let fits = if format == ImageFormat::Jpeg { len > 0 && len <= most } else { len == most };
        if fits { Ok(()) } else { Err(ImageError::Payload { len }) }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => {
                write!(f, "no image header: the stream is not at the start of an image, or not one of images")
            }
            Self::Checksum => write!(f, "the image header is damaged: its checksum is wrong"),
            Self::Version { got } => {
                write!(f, "the image header has version {got}, this end reads {IMAGE_VERSION}; update the older end")
            }
            Self::Format { got } => write!(f, "image format {got} is unknown; 0 is RGB8, 1 YUYV, 2 JPEG"),
            Self::Size { width, height } => {
                write!(f, "an image of {width} x {height}: sides are 1 to {MAX_IMAGE_SIDE}, and even in a row of YUYV")
            }
            Self::Payload { len } => write!(f, "{len} bytes are not the length of an image of this size and format"),
        }
    }
}

impl core::error::Error for ImageError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rgb(width: u16, height: u16) -> ImageHeader {
        let payload_len = ImageFormat::Rgb8.payload(width, height);
        ImageHeader { format: ImageFormat::Rgb8, width, height, payload_len, sequence: 0x0102_0304, capture_us: 5 }
    }

    /// Written by Python, which knows the table of the documentation and not this code:
    /// `struct.pack('<4sBBHHHIIQ', b'FTIM', 1, 0, 48, 32, 0, 4608, 0x01020304, 5)` and its CRC-32C.
    #[test]
    fn golden_bytes() {
        let wanted: [u8; IMAGE_HEADER] = [
            0x46, 0x54, 0x49, 0x4d, 1, 0, 48, 0, 32, 0, 0, 0, 0, 0x12, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0x86,
            0x32, 0x8f, 0xc4,
        ];
        assert_eq!(rgb(48, 32).encode(), Ok(wanted));
        assert_eq!(ImageHeader::decode(&wanted), Ok(rgb(48, 32)));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let good = rgb(640, 480).encode().unwrap();
        for bit in 0..8 * IMAGE_HEADER {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ImageHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    fn sealed(change: impl FnOnce(&mut [u8; IMAGE_HEADER])) -> Result<ImageHeader, ImageError> {
        let mut bytes = rgb(48, 48).encode().unwrap();
        change(&mut bytes);
        let checksum = crc32c(&bytes[..CHECKED]).to_le_bytes();
        bytes[CHECKED..].copy_from_slice(&checksum);
        ImageHeader::decode(&bytes)
    }

    #[test]
    fn headers_that_contradict_themselves_are_refused() {
        assert_eq!(sealed(|_| {}), Ok(rgb(48, 48)));
        assert_eq!(sealed(|b| b[4] = 2), Err(ImageError::Version { got: 2 }));
        assert_eq!(sealed(|b| b[5] = 3), Err(ImageError::Format { got: 3 }));
        assert_eq!(sealed(|b| b[10] = 1), Err(ImageError::Format { got: 0 }), "reserved");
        assert_eq!(sealed(|b| b[6] = 0), Err(ImageError::Size { width: 0, height: 48 }));
        assert_eq!(sealed(|b| b[12] ^= 1), Err(ImageError::Payload { len: 6913 }));
        let odd = ImageHeader { format: ImageFormat::Yuyv, width: 47, payload_len: 47 * 48 * 2, ..rgb(48, 48) };
        assert_eq!(odd.encode(), Err(ImageError::Size { width: 47, height: 48 }));
        let large = ImageHeader { format: ImageFormat::Jpeg, payload_len: 48 * 48 * 3 + (1 << 16) + 1, ..rgb(48, 48) };
        assert!(matches!(large.encode(), Err(ImageError::Payload { .. })));
        assert!(ImageHeader { payload_len: large.payload_len - 1, ..large }.encode().is_ok());
    }

    proptest! {
        #[test]
        fn headers_come_back(kind in 0u8..3, w in 1u16..=2048, height in 1u16..=4096, cut in 0u32..1000,
                             sequence: u32, capture_us: u64) {
            let (format, width) = (ImageFormat::from_wire(kind).unwrap(), 2 * w);
            let most = format.payload(width, height);
            let payload_len = if format == ImageFormat::Jpeg { most - cut } else { most };
            let header = ImageHeader { format, width, height, payload_len, sequence, capture_us };
            prop_assert_eq!(ImageHeader::decode(&header.encode().unwrap()), Ok(header));
        }

        /// What is accepted is what `encode` makes of it again.
        #[test]
        fn any_bytes_are_refused_or_a_header(mut bytes: [u8; IMAGE_HEADER], seal: bool) {
            if seal {
                let format = bytes[5] % 3;
                bytes[..6].copy_from_slice(&[0x46, 0x54, 0x49, 0x4d, 1, format]);
                bytes[10..12].fill(0);
                let checksum = crc32c(&bytes[..CHECKED]).to_le_bytes();
                bytes[CHECKED..].copy_from_slice(&checksum);
            }
            if let Ok(header) = ImageHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), Ok(bytes));
            }
        }
    }
}
